"""Brings what happened to the server, and looks whether it has arrived there for good. Asynchronous, on one event loop.

Delivery is in batches and in order; what the server refuses for good is logged and given up, what it does not answer stays.
An answer says only that the server has taken the items into its memory. So task runs are read back until the server shows
their latest state, and after an outage the events of the half minute before it are sent again. But no event that may be on
the server is sent again before it is known not to be: see ``missing_events`` for what a second copy does.
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
from orchestrator_adapter.prefect_flow.client.internals import set_state_by_api
from orchestrator_adapter.prefect_flow.recovery.outbox import Item, Outbox
from orchestrator_adapter.prefect_flow.recovery.reconcile import BATCH, EVENTS, LOGS, missing_events, post
from orchestrator_adapter.prefect_flow.reporting.decisions import decision_event, log_line
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from orchestrator_adapter.prefect_flow.reporting.task_runs import TaskRunTracker, TrackedTaskRun
from orchestrator_adapter.primitives.errors import describe
from orchestrator_adapter.resilience.retry import Permanent, Retry, RetryDisposition, RetryOk
from orchestrator_adapter.supervision.events import Decided, Exited, Spawned

Record: TypeAlias = Spawned | Exited | Decided

RECORDED_AFTER_S = 3.0
"""What the server has taken it has written by then; it does so once a second or so."""

SHOWN_AFTER_S = 8.0
"""What the server has taken, and will keep, it shows by then: it writes events every 5 s, or 20 at a time."""

_NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout)
_RESENT_AT_ONCE = 20  # task runs told again between two deliveries; each is two requests or three
_MAY_BE_LOST_S = 30.0  # a server that is killed may have lost what it took so long before

logger = logging.getLogger("orchestrator_adapter.prefect")


class Delivery:
    """What is to be told of one run, and its delivery."""

    def __init__(self, identity: RunIdentity, *, queue: int, monotonic: Callable[[], float]) -> None:
        self._identity = identity
        self._monotonic = monotonic
        self._outboxes = {EVENTS: Outbox(queue), LOGS: Outbox(queue)}
        self._task_runs = TaskRunTracker(identity)
        self._unreachable_since: float | None = None
        self._reachable_since: float | None = None  # until what it was told since then has been looked at once more
        self._events_wait_until = float(
            "-inf"
        )  # events; of what was sent before, the server then shows all that it has
        self._uncertain: set[str] = set()  # ids of waiting events that the server may have
        self._last_shown_at = float("-inf")  # when the server last showed a task run as it is
        self._shown_up_to = float("-inf")  # the latest telling of one that it has shown so
        self._refused = 0

    def add(self, record: Record, at_ns: int) -> None:
        """Something has happened, at UTC nanoseconds ``at_ns``: it will be told."""
        at = datetime.fromtimestamp(at_ns / 1e9, UTC)
        match record:
            case Spawned():
                for item in self._task_runs.spawned(record, at, self._monotonic()):
                    self._outboxes[EVENTS].put(item)
            case Exited():
                self._outboxes[EVENTS].put(self._task_runs.exited(record, at, self._monotonic()))
            case Decided():
                self._outboxes[EVENTS].put(decision_event(self._identity, record, at))
                self._outboxes[LOGS].put(log_line(self._identity, record, at))

    def end_run(self, at_ns: int) -> None:
        """The run is over: whoever has not ended is a straggler."""
        for item in self._task_runs.abandoned(datetime.fromtimestamp(at_ns / 1e9, UTC), self._monotonic()):
            self._outboxes[EVENTS].put(item)

    @property
    def idle(self) -> bool:
        """Nothing waits to be delivered, or to be looked at once more."""
        return self._reachable_since is None and not any(self._outboxes.values())

    @property
    def all_delivered(self) -> bool:
        """The server has everything, and shows every task run as it is."""
        return self.idle and self._task_runs.all_confirmed

    @property
    def given_up(self) -> int:
        """How much was never told, because the server refused it or there was no room for it."""
        return sum(box.dropped for box in self._outboxes.values()) + self._task_runs.evicted + self._refused

    def undelivered(self) -> list[tuple[str, Item]]:
        """What the server may not have, as (kind, item): what it has not confirmed, or may have taken only to lose it."""
        if self._unreachable_since is not None:
            self._outboxes[EVENTS].requeue_delivered(since=self._unreachable_since - _MAY_BE_LOST_S)
        elif self._reachable_since is not None:
            self._outboxes[EVENTS].requeue_delivered(since=self._reachable_since)
        unconfirmed = self._task_runs.unconfirmed(sent_before=float("inf"))
        again = [item for told in unconfirmed for item in self._task_runs.events_of(told, self._monotonic())]
        events = {
            item["id"]: item for item in (*again, *self._outboxes[EVENTS].undelivered())
        }  # told more than once, kept once
        return [(EVENTS, item) for item in events.values()] + [
            (LOGS, item) for item in self._outboxes[LOGS].undelivered()
        ]

    async def deliver(self, client: PrefectClient) -> bool:
        """Bring everything that waits; False if the server is away or troubled, and the rest still waits."""
        self._recheck_after_outage()
        for kind, box in self._outboxes.items():
            while box and not (kind == EVENTS and self._monotonic() < self._events_wait_until):
                batch = box.take(BATCH)
                news = await self._news(client, batch) if kind == EVENTS else batch
                if news is None:
                    box.return_batch()
                    return False
                try:
                    answer = await self._post(client, kind, box, news) if news else RetryOk(None)
                except asyncio.CancelledError:
                    box.return_batch()
                    if kind == EVENTS:
                        self._mark_uncertain(batch)
                    raise
                self.on_response(answer)
                match answer:
                    case RetryOk():
                        box.mark_delivered(self._monotonic())
                        if kind == EVENTS:
                            self._on_events_accepted(batch)
                    case _:
                        box.return_batch()
                        nobody_listened = isinstance(answer, Retry) and isinstance(answer.error, _NOT_CONNECTED)
                        if kind == EVENTS and not nobody_listened:
                            self._mark_uncertain(batch)
                        return False
        if not self._outboxes[EVENTS]:
            self._uncertain.clear()  # of what had no more room
        return True

    def _recheck_after_outage(self) -> None:
        """Some time after an outage, doubt what was told since.

        Prefect's own clients send what they have twice when a server is back, which on SQLite makes it drop a batch
        (see ``missing_events``): ours may have been in it.
        """
        if self._reachable_since is not None and self._monotonic() >= self._reachable_since + SHOWN_AFTER_S:
            before = {item["id"] for item in self._outboxes[EVENTS].undelivered()}
            self._outboxes[EVENTS].requeue_delivered(since=self._reachable_since)
            self._mark_uncertain([item for item in self._outboxes[EVENTS].undelivered() if item["id"] not in before])
            self._reachable_since = None

    async def _post(self, client: PrefectClient, kind: str, box: Outbox, news: list[Item]) -> RetryDisposition[None]:
        """Bring items together; where the server refuses them, one by one, and give up those that it refuses alone."""
        answer = await ask(post(client, kind, news))
        if not isinstance(answer, Permanent):
            return answer
        if len(news) == 1:
            logger.error("Prefect refuses one %s, which is given up: %s", kind, answer.error)
            box.reject(news[0])
            return RetryOk(None)
        for item in news:
            if not isinstance(alone := await self._post(client, kind, box, [item]), RetryOk):
                return alone
        return RetryOk(None)

    def _mark_uncertain(self, batch: list[Item]) -> None:
        """The server may have taken them, although it did not say so: look before they are sent again."""
        self._uncertain |= {item["id"] for item in batch}
        self._events_wait_until = self._monotonic() + SHOWN_AFTER_S

    async def _news(self, client: PrefectClient, batch: list[Item]) -> list[Item] | None:
        """What of the batch the server has not got; ``None`` if it is away or troubled."""
        doubtful = [item for item in batch if item["id"] in self._uncertain]
        to_send = await missing_events(client, self._identity.flow_run_id, doubtful)
        return None if to_send is None else [*to_send, *(item for item in batch if item["id"] not in self._uncertain)]

    def _on_events_accepted(self, batch: list[Item]) -> None:
        ids, now = {item["id"] for item in batch}, self._monotonic()
        self._uncertain -= ids
        for told in self._task_runs.unconfirmed(sent_before=now):
            if str(told.state.id) in ids:
                told.sent_at = now

    async def check(self, client: PrefectClient, *, after_s: float = RECORDED_AFTER_S) -> bool:
        """Read back task runs told longer than ``after_s`` ago, and tell again what is missing for too long.

        False as in ``deliver``.
        """
        waiting = {item["id"] for item in self._outboxes[EVENTS].undelivered()}
        unconfirmed = self._task_runs.unconfirmed(sent_before=self._monotonic() - after_s)
        asked = [told for told in unconfirmed if str(told.state.id) not in waiting][:BATCH]
        if not asked:
            return True
        ids = TaskRunFilter(id=TaskRunFilterId(any_=[told.task_run.id for told in asked]))
        answer = await ask(client.read_task_runs(task_run_filter=ids, limit=BATCH))
        self.on_response(answer)
        if not isinstance(answer, RetryOk):
            return False
        missing = self._task_runs.compare(asked, {run.id: _state(run) for run in answer.value})
        if shown := [told.sent_at for told in asked if told.confirmed]:
            self._last_shown_at, self._shown_up_to = self._monotonic(), max(self._shown_up_to, *shown)
        for told in [told for told in missing if self._is_lost(told)][:_RESENT_AT_ONCE]:
            if not await self._resend(client, told):
                return False
        return True

    def _is_lost(self, told: TrackedTaskRun) -> bool:
        """Whether the server is not to show it any more; one that is only behind must not be told everything twice.

        It records what it takes one by one and in order (about 60 events a second on SQLite, as Prefect sets it up): while it
        gets on, only what was told well before something that it shows is lost.
        """
        now = self._monotonic()
        overtaken = self._shown_up_to - told.sent_at >= SHOWN_AFTER_S
        stands_still = now - self._last_shown_at >= SHOWN_AFTER_S
        return now - told.sent_at >= SHOWN_AFTER_S and (overtaken or stands_still)

    def on_response(self, answer: RetryDisposition[Any]) -> None:
        """Whatever the server was asked, this is its answer: notice when it goes away and when it is back."""
        if isinstance(answer, Retry):
            if self._unreachable_since is None:
                self._unreachable_since = self._monotonic()
                logger.warning(
                    "Prefect does not answer; the pipeline runs on, and tells it later: %s", describe(answer.error)
                )
        elif self._unreachable_since is not None:
            again = self._outboxes[EVENTS].requeue_delivered(since=self._unreachable_since - _MAY_BE_LOST_S)
            self._uncertain = {item["id"] for item in self._outboxes[EVENTS].undelivered()}
            self._events_wait_until = max(self._events_wait_until, self._unreachable_since + SHOWN_AFTER_S)
            away_s = self._monotonic() - self._unreachable_since
            logger.warning(
                "Prefect answers again, after %.1f s; %d events are sent once more, unless it has them", away_s, again
            )
            self._unreachable_since, self._reachable_since = None, self._monotonic()

    async def _resend(self, client: PrefectClient, told: TrackedTaskRun) -> bool:
        """By its events, if the server has not even those; else, and the second time, by the API. False as in ``deliver``."""
        items = self._task_runs.events_of(told, self._monotonic())
        to_send = await missing_events(client, self._identity.flow_run_id, items)
        if to_send is None:
            return False
        if told.sent_again or all(item["id"] != str(told.state.id) for item in to_send):
            await self._set_by_api(client, told)
            return True
        told.sent_again = True
        for item in to_send:
            self._outboxes[EVENTS].put(item)
        return True

    async def _set_by_api(self, client: PrefectClient, told: TrackedTaskRun) -> None:
        logger.warning(
            "Prefect has not recorded task run %s from its events; telling it by the API", told.task_run.name
        )
        state = told.state
        answer = await ask(set_state_by_api(client, told.task_run, state))
        self.on_response(answer)
        if told.state is not state:
            return  # it has gone on meanwhile: that is told as everything is
        if isinstance(answer, RetryOk):
            self._task_runs.confirm(told)
        elif isinstance(answer, Permanent):
            logger.error("Prefect refuses task run %s, which is given up: %s", told.task_run.name, answer.error)
            self._refused += 1
            self._task_runs.confirm(told)


def _state(task_run: TaskRun) -> State[object] | None:
    return task_run.state
