"""Brings what happened to the server, and looks whether it has arrived there for good. Asynchronous, on one event loop.

Delivery is in batches and in order; what the server refuses for good is logged and given up, what it does not answer stays.
An answer says only that the server has taken the items into its memory. So task runs are read back until the server shows
their latest state, and after an outage the events of the half minute before it are sent again: the server knows each by its
id, and keeps it once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterId
from prefect.client.schemas.objects import State, TaskRun

from orchestrator_adapter.events import Decided, Exited, Spawned
from orchestrator_adapter.prefect_flow.api import ask
from orchestrator_adapter.prefect_flow.decisions import decision_event, log_line
from orchestrator_adapter.prefect_flow.identity import RunIdentity
from orchestrator_adapter.prefect_flow.internals import tell_by_api
from orchestrator_adapter.prefect_flow.outbox import Item, Outbox
from orchestrator_adapter.prefect_flow.reconcile import BATCH, EVENTS, LOGS, post
from orchestrator_adapter.prefect_flow.task_runs import TaskRunBook, Told
from orchestrator_adapter.retry import Ok, Permanent, Retry, RetryDisposition
from orchestrator_adapter.task_exit import describe

Record: TypeAlias = Spawned | Exited | Decided

RECORDED_AFTER_S = 3.0
"""What the server has taken it has written by then; it does so once a second or so."""

_FORGETS_S = 30.0  # a server that is killed may have lost what it took so long before
_TRIES_BY_EVENT = 3  # then a task run is told by the documented API instead

logger = logging.getLogger("orchestrator_adapter.prefect")


class Courier:
    """What is to be told of one run, and its delivery."""

    def __init__(self, identity: RunIdentity, *, queue: int, monotonic: Callable[[], float]) -> None:
        self._identity = identity
        self._monotonic = monotonic
        self._boxes = {EVENTS: Outbox(queue), LOGS: Outbox(queue)}
        self._book = TaskRunBook(identity)
        self._away_since: float | None = None

    def note(self, record: Record, at_ns: int) -> None:
        """Something has happened, at UTC nanoseconds ``at_ns``: it will be told."""
        at = datetime.fromtimestamp(at_ns / 1e9, UTC)
        match record:
            case Spawned():
                for item in self._book.spawned(record, at, self._monotonic()):
                    self._boxes[EVENTS].put(item)
            case Exited():
                self._boxes[EVENTS].put(self._book.exited(record, at, self._monotonic()))
            case Decided():
                self._boxes[EVENTS].put(decision_event(self._identity, record, at))
                self._boxes[LOGS].put(log_line(self._identity, record, at))

    def over(self, at_ns: int) -> None:
        """The run is over: whoever has not ended is a straggler."""
        for item in self._book.abandoned(datetime.fromtimestamp(at_ns / 1e9, UTC), self._monotonic()):
            self._boxes[EVENTS].put(item)

    @property
    def idle(self) -> bool:
        """Nothing waits to be delivered."""
        return not any(self._boxes.values())

    @property
    def all_told(self) -> bool:
        """The server has everything, and shows every task run as it is."""
        return self.idle and self._book.all_confirmed

    @property
    def given_up(self) -> int:
        """How much was never told, because the server refused it or there was no room for it."""
        return sum(box.dropped for box in self._boxes.values()) + self._book.forgotten

    def left(self) -> list[tuple[str, Item]]:
        """What the server may not have, as (kind, item): what it has not confirmed, or may have taken only to lose it."""
        if self._away_since is not None:
            self._boxes[EVENTS].send_again(since=self._away_since - _FORGETS_S)
        unconfirmed = self._book.unconfirmed(told_before=float("inf"))
        again = [item for told in unconfirmed for item in self._book.again(told, self._monotonic())]
        waiting = {item["id"] for item in again}
        events = [item for item in self._boxes[EVENTS].left() if item["id"] not in waiting]
        return [(EVENTS, item) for item in (*again, *events)] + [(LOGS, item) for item in self._boxes[LOGS].left()]

    async def deliver(self, client: PrefectClient) -> bool:
        """Bring everything that waits; False if the server is away or troubled, and the rest still waits."""
        for kind, box in self._boxes.items():
            while box:
                batch = box.take(BATCH)
                answer = await ask(post(client, kind, batch))
                self.heard(answer)
                match answer:
                    case Ok():
                        box.arrived(self._monotonic())
                    case Permanent(error):
                        logger.error("Prefect refuses %d %ss, which are given up: %s", len(batch), kind, error)
                        box.refused()
                    case _:
                        box.failed()
                        return False
        return True

    async def check(self, client: PrefectClient, *, after_s: float = RECORDED_AFTER_S) -> bool:
        """Read back task runs told longer than ``after_s`` ago, and queue again what is missing; False as in ``deliver``."""
        asked = self._book.unconfirmed(told_before=self._monotonic() - after_s)[:BATCH]
        if not asked:
            return True
        ids = TaskRunFilter(id=TaskRunFilterId(any_=[told.task_run.id for told in asked]))
        answer = await ask(client.read_task_runs(task_run_filter=ids, limit=BATCH))
        self.heard(answer)
        if not isinstance(answer, Ok):
            return False
        for told in self._book.compare(asked, {run.id: _state(run) for run in answer.value}):
            if told.tries > _TRIES_BY_EVENT:
                await self._tell_by_api(client, told)
            else:
                for item in self._book.again(told, self._monotonic()):
                    self._boxes[EVENTS].put(item)
        return True

    def heard(self, answer: RetryDisposition[Any]) -> None:
        """Whatever the server was asked, this is its answer: notice when it goes away and when it is back."""
        if isinstance(answer, Retry):
            if self._away_since is None:
                self._away_since = self._monotonic()
                logger.warning(
                    "Prefect does not answer; the pipeline runs on, and tells it later: %s", describe(answer.error)
                )
        elif self._away_since is not None:
            again = self._boxes[EVENTS].send_again(since=self._away_since - _FORGETS_S)
            away_s = self._monotonic() - self._away_since
            logger.warning("Prefect answers again, after %.1f s; %d events are sent once more", away_s, again)
            self._away_since = None

    async def _tell_by_api(self, client: PrefectClient, told: Told) -> None:
        logger.warning(
            "Prefect has not recorded task run %s from its events; telling it by the API", told.task_run.name
        )
        answer = await ask(tell_by_api(client, told.task_run, told.state))
        self.heard(answer)
        if isinstance(answer, Ok):
            self._book.confirm(told)
        elif isinstance(answer, Permanent):
            logger.error("Prefect refuses task run %s, which is given up: %s", told.task_run.name, answer.error)
            self._book.confirm(told)


def _state(task_run: TaskRun) -> State[object] | None:
    return task_run.state
