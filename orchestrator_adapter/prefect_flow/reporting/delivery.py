"""Brings what happened to the server, and looks whether it has arrived there for good. Asynchronous, on one event loop.

Delivery is in batches and in order; what the server refuses for good is logged and given up, what it does not answer stays.
An answer says only that the server has taken the items into its memory. So task runs are read back until the server shows
their latest state, and after an outage the events of the half minute before it are sent again. But no event that may be on
the server is sent again before it is known not to be: see ``still_to_send`` for what a second copy does.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeAlias

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterId
from prefect.client.schemas.objects import State, TaskRun

from orchestrator_adapter.prefect_flow.client.api import ask
from orchestrator_adapter.prefect_flow.client.internals import tell_by_api
from orchestrator_adapter.prefect_flow.recovery.outbox import Item, Outbox
from orchestrator_adapter.prefect_flow.recovery.reconcile import BATCH, EVENTS, LOGS, post, still_to_send
from orchestrator_adapter.prefect_flow.reporting.decisions import decision_event, log_line
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from orchestrator_adapter.prefect_flow.reporting.task_runs import TaskRunBook, Told
from orchestrator_adapter.primitives.errors import describe
from orchestrator_adapter.resilience.retry import Permanent, Retry, RetryDisposition, RetryOk
from orchestrator_adapter.supervision.events import Decided, Exited, Spawned

Record: TypeAlias = Spawned | Exited | Decided

RECORDED_AFTER_S = 3.0
"""What the server has taken it has written by then; it does so once a second or so."""

AGAIN_AFTER_S = 8.0
"""What the server has taken, and will keep, it shows by then: it writes events every 5 s, or 20 at a time."""

_NOBODY_LISTENED = (httpx.ConnectError, httpx.ConnectTimeout)
_AGAIN_AT_ONCE = 20  # task runs told again between two deliveries; each is two requests or three
_FORGETS_S = 30.0  # a server that is killed may have lost what it took so long before

logger = logging.getLogger("orchestrator_adapter.prefect")


class Courier:
    """What is to be told of one run, and its delivery."""

    def __init__(self, identity: RunIdentity, *, queue: int, monotonic: Callable[[], float]) -> None:
        self._identity = identity
        self._monotonic = monotonic
        self._boxes = {EVENTS: Outbox(queue), LOGS: Outbox(queue)}
        self._book = TaskRunBook(identity)
        self._away_since: float | None = None
        self._back_since: float | None = None  # until what it was told since then has been looked at once more
        self._hold_until = float("-inf")  # events; of what was sent before, the server then shows all that it has
        self._doubtful: set[str] = set()  # ids of waiting events that the server may have
        self._shown_at = float("-inf")  # when the server last showed a task run as it is
        self._shown_up_to = float("-inf")  # the latest telling of one that it has shown so
        self._refused = 0

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
        """Nothing waits to be delivered, or to be looked at once more."""
        return self._back_since is None and not any(self._boxes.values())

    @property
    def all_told(self) -> bool:
        """The server has everything, and shows every task run as it is."""
        return self.idle and self._book.all_confirmed

    @property
    def given_up(self) -> int:
        """How much was never told, because the server refused it or there was no room for it."""
        return sum(box.dropped for box in self._boxes.values()) + self._book.forgotten + self._refused

    def left(self) -> list[tuple[str, Item]]:
        """What the server may not have, as (kind, item): what it has not confirmed, or may have taken only to lose it."""
        if self._away_since is not None:
            self._boxes[EVENTS].send_again(since=self._away_since - _FORGETS_S)
        elif self._back_since is not None:
            self._boxes[EVENTS].send_again(since=self._back_since)
        unconfirmed = self._book.unconfirmed(told_before=float("inf"))
        again = [item for told in unconfirmed for item in self._book.again(told, self._monotonic())]
        events = {item["id"]: item for item in (*again, *self._boxes[EVENTS].left())}  # told more than once, kept once
        return [(EVENTS, item) for item in events.values()] + [(LOGS, item) for item in self._boxes[LOGS].left()]

    async def deliver(self, client: PrefectClient) -> bool:
        """Bring everything that waits; False if the server is away or troubled, and the rest still waits."""
        self._look_back()
        for kind, box in self._boxes.items():
            while box and not (kind == EVENTS and self._monotonic() < self._hold_until):
                batch = box.take(BATCH)
                news = await self._news(client, batch) if kind == EVENTS else batch
                if news is None:
                    box.failed()
                    return False
                try:
                    answer = await self._post(client, kind, box, news) if news else RetryOk(None)
                except asyncio.CancelledError:
                    box.failed()
                    if kind == EVENTS:
                        self._doubt(batch)
                    raise
                self.heard(answer)
                match answer:
                    case RetryOk():
                        box.arrived(self._monotonic())
                        if kind == EVENTS:
                            self._book_arrival(batch)
                    case _:
                        box.failed()
                        nobody_listened = isinstance(answer, Retry) and isinstance(answer.error, _NOBODY_LISTENED)
                        if kind == EVENTS and not nobody_listened:
                            self._doubt(batch)
                        return False
        if not self._boxes[EVENTS]:
            self._doubtful.clear()  # of what had no more room
        return True

    def _look_back(self) -> None:
        """Some time after an outage, doubt what was told since.

        Prefect's own clients send what they have twice when a server is back, which on SQLite makes it drop a batch
        (see ``still_to_send``): ours may have been in it.
        """
        if self._back_since is not None and self._monotonic() >= self._back_since + AGAIN_AFTER_S:
            before = {item["id"] for item in self._boxes[EVENTS].left()}
            self._boxes[EVENTS].send_again(since=self._back_since)
            self._doubt([item for item in self._boxes[EVENTS].left() if item["id"] not in before])
            self._back_since = None

    async def _post(self, client: PrefectClient, kind: str, box: Outbox, news: list[Item]) -> RetryDisposition[None]:
        """Bring items together; where the server refuses them, one by one, and give up those that it refuses alone."""
        answer = await ask(post(client, kind, news))
        if not isinstance(answer, Permanent):
            return answer
        if len(news) == 1:
            logger.error("Prefect refuses one %s, which is given up: %s", kind, answer.error)
            box.refused(news[0])
            return RetryOk(None)
        for item in news:
            if not isinstance(alone := await self._post(client, kind, box, [item]), RetryOk):
                return alone
        return RetryOk(None)

    def _doubt(self, batch: list[Item]) -> None:
        """The server may have taken them, although it did not say so: look before they are sent again."""
        self._doubtful |= {item["id"] for item in batch}
        self._hold_until = self._monotonic() + AGAIN_AFTER_S

    async def _news(self, client: PrefectClient, batch: list[Item]) -> list[Item] | None:
        """What of the batch the server has not got; ``None`` if it is away or troubled."""
        doubtful = [item for item in batch if item["id"] in self._doubtful]
        to_send = await still_to_send(client, self._identity.flow_run_id, doubtful)
        return None if to_send is None else [*to_send, *(item for item in batch if item["id"] not in self._doubtful)]

    def _book_arrival(self, batch: list[Item]) -> None:
        ids, now = {item["id"] for item in batch}, self._monotonic()
        self._doubtful -= ids
        for told in self._book.unconfirmed(told_before=now):
            if str(told.state.id) in ids:
                told.told_at = now

    async def check(self, client: PrefectClient, *, after_s: float = RECORDED_AFTER_S) -> bool:
        """Read back task runs told longer than ``after_s`` ago, and tell again what is missing for too long.

        False as in ``deliver``.
        """
        waiting = {item["id"] for item in self._boxes[EVENTS].left()}
        unconfirmed = self._book.unconfirmed(told_before=self._monotonic() - after_s)
        asked = [told for told in unconfirmed if str(told.state.id) not in waiting][:BATCH]
        if not asked:
            return True
        ids = TaskRunFilter(id=TaskRunFilterId(any_=[told.task_run.id for told in asked]))
        answer = await ask(client.read_task_runs(task_run_filter=ids, limit=BATCH))
        self.heard(answer)
        if not isinstance(answer, RetryOk):
            return False
        missing = self._book.compare(asked, {run.id: _state(run) for run in answer.value})
        if shown := [told.told_at for told in asked if told.confirmed]:
            self._shown_at, self._shown_up_to = self._monotonic(), max(self._shown_up_to, *shown)
        for told in [told for told in missing if self._is_lost(told)][:_AGAIN_AT_ONCE]:
            if not await self._tell_again(client, told):
                return False
        return True

    def _is_lost(self, told: Told) -> bool:
        """Whether the server is not to show it any more; one that is only behind must not be told everything twice.

        It records what it takes one by one and in order (about 60 events a second on SQLite, as Prefect sets it up): while it
        gets on, only what was told well before something that it shows is lost.
        """
        now = self._monotonic()
        overtaken = self._shown_up_to - told.told_at >= AGAIN_AFTER_S
        stands_still = now - self._shown_at >= AGAIN_AFTER_S
        return now - told.told_at >= AGAIN_AFTER_S and (overtaken or stands_still)

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
            self._doubtful = {item["id"] for item in self._boxes[EVENTS].left()}
            self._hold_until = max(self._hold_until, self._away_since + AGAIN_AFTER_S)
            away_s = self._monotonic() - self._away_since
            logger.warning(
                "Prefect answers again, after %.1f s; %d events are sent once more, unless it has them", away_s, again
            )
            self._away_since, self._back_since = None, self._monotonic()

    async def _tell_again(self, client: PrefectClient, told: Told) -> bool:
        """By its events, if the server has not even those; else, and the second time, by the API. False as in ``deliver``."""
        items = self._book.again(told, self._monotonic())
        to_send = await still_to_send(client, self._identity.flow_run_id, items)
        if to_send is None:
            return False
        if told.told_again or all(item["id"] != str(told.state.id) for item in to_send):
            await self._tell_by_api(client, told)
            return True
        told.told_again = True
        for item in to_send:
            self._boxes[EVENTS].put(item)
        return True

    async def _tell_by_api(self, client: PrefectClient, told: Told) -> None:
        logger.warning(
            "Prefect has not recorded task run %s from its events; telling it by the API", told.task_run.name
        )
        state = told.state
        answer = await ask(tell_by_api(client, told.task_run, state))
        self.heard(answer)
        if told.state is not state:
            return  # it has gone on meanwhile: that is told as everything is
        if isinstance(answer, RetryOk):
            self._book.confirm(told)
        elif isinstance(answer, Permanent):
            logger.error("Prefect refuses task run %s, which is given up: %s", told.task_run.name, answer.error)
            self._refused += 1
            self._book.confirm(told)


def _state(task_run: TaskRun) -> State[object] | None:
    return task_run.state
