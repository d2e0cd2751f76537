"""Delivers events, log lines and artifacts of notices to the server, and checks that the server has stored them. Asynchronous, on one event loop.

Delivery is in batches and in order. What the server rejects is logged and dropped; what it does not answer stays queued.
An answer says only that the server has the items in memory. So task runs are read back until the server shows their latest
state, and after an outage the events of the 30 s before it are checked and sent again if they are missing. An event that may
be on the server is never sent again before a query has shown that it is not there: see ``missing_events``. Events and artifacts
of notices are looked up before they are sent at all: an earlier run may have sent them.
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

from orchestrator_adapter.prefect_flow.client.api import ask
from orchestrator_adapter.prefect_flow.client.internals import set_state_by_api
from orchestrator_adapter.prefect_flow.client.posting import (
    ARTIFACTS,
    BATCH,
    BATCHES,
    EVENTS,
    LOGS,
    ReportItem,
    missing_artifacts,
    missing_events,
    post,
)
from orchestrator_adapter.prefect_flow.reporting.decisions import decision_event, log_line, warning_line
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from orchestrator_adapter.prefect_flow.reporting.notices import notice_artifact, notice_event
from orchestrator_adapter.prefect_flow.reporting.outbox import Outbox
from orchestrator_adapter.prefect_flow.reporting.task_runs import TaskRunTracker, TrackedTaskRun
from orchestrator_adapter.primitives.errors import describe
from orchestrator_adapter.process.notices import Notice
from orchestrator_adapter.resilience.retry import Permanent, Retry, RetryDisposition, RetryOk
from orchestrator_adapter.supervision.events import Decided, Exited, Spawned

SupervisionRecord: TypeAlias = Spawned | Exited | Decided

RECORDED_AFTER_S = 3.0
"""The server has written what it accepted after this time; it writes about once a second."""

SHOWN_AFTER_S = 8.0
"""The server shows what it accepted, and keeps, after this time: it writes events every 5 s, or 20 at a time."""

_NOT_CONNECTED = (httpx.ConnectError, httpx.ConnectTimeout)
_ARTIFACTS_AT_ONCE = 20  # between two deliveries of events; each needs two requests
_RESENT_AT_ONCE = 20  # task runs sent again between two deliveries; each needs two or three requests
_MAY_BE_LOST_S = 30.0  # a killed server may have lost what it accepted in this time before

logger = logging.getLogger("orchestrator_adapter.prefect")


class Delivery:
    """Everything to report of one run, and its delivery."""

    def __init__(self, identity: RunIdentity, *, queue: int, monotonic: Callable[[], float]) -> None:
        self._identity = identity
        self._monotonic = monotonic
        self._outboxes = {kind: Outbox(queue) for kind in (EVENTS, LOGS, ARTIFACTS)}
        self._task_runs = TaskRunTracker(identity)
        self._unreachable_since: float | None = None
        self._reachable_since: float | None = None  # set until the events sent since then have been checked
        self._events_wait_until = float("-inf")  # by then the server shows every event that it has
        self._uncertain: set[str] = set()  # ids of queued events that the server may have
        self._last_shown_at = float("-inf")  # when the server last showed a task run's latest state
        self._shown_up_to = float("-inf")  # the latest send time of a task run that it has shown so
        self._rejected_task_runs = 0

    def add(self, record: SupervisionRecord, at_ns: int) -> None:
        """Queue what is to be reported of ``record``, which happened at UTC nanoseconds ``at_ns``."""
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

    def add_notice(self, notice: Notice, at_ns: int, *, artifact: bool) -> None:
        """Queue the event of a notice that was posted at UTC nanoseconds ``at_ns``, and its artifact."""
        event = notice_event(self._identity, notice, datetime.fromtimestamp(at_ns / 1e9, UTC))
        self._uncertain.add(event["id"])
        self._outboxes[EVENTS].put(event)
        if artifact:
            self._outboxes[ARTIFACTS].put(notice_artifact(self._identity, notice))

    def warn(self, message: str) -> None:
        """Queue a line for the flow run's log."""
        self._outboxes[LOGS].put(warning_line(self._identity, message, datetime.now(UTC)))

    def end_run(self, at_ns: int) -> None:
        """The run is over: every instance that has not ended is a straggler."""
        for item in self._task_runs.end_run(datetime.fromtimestamp(at_ns / 1e9, UTC), self._monotonic()):
            self._outboxes[EVENTS].put(item)

    @property
    def idle(self) -> bool:
        """Nothing waits to be delivered, or to be checked after an outage."""
        return self._reachable_since is None and not any(self._outboxes.values())

    @property
    def has_artifacts(self) -> bool:
        """More artifacts wait than one ``deliver`` delivers."""
        return bool(self._outboxes[ARTIFACTS])

    @property
    def all_delivered(self) -> bool:
        """The server has everything, and shows the latest state of every task run."""
        return self.idle and self._task_runs.all_confirmed

    @property
    def given_up(self) -> int:
        """How many items were never delivered: the server rejected them, or there was no room."""
        dropped = sum(outbox.dropped for outbox in self._outboxes.values())
        return dropped + self._task_runs.evicted + self._rejected_task_runs

    def undelivered(self) -> list[tuple[str, ReportItem]]:
        """What the server may not have, as (kind, item): not confirmed, or accepted and perhaps lost."""
        if self._unreachable_since is not None:
            self._outboxes[EVENTS].requeue_delivered(since=self._unreachable_since - _MAY_BE_LOST_S)
        elif self._reachable_since is not None:
            self._outboxes[EVENTS].requeue_delivered(since=self._reachable_since)
        unconfirmed = self._task_runs.unconfirmed(sent_before=float("inf"))
        again = [item for run in unconfirmed for item in self._task_runs.events_of(run, self._monotonic())]
        events = {item["id"]: item for item in (*again, *self._outboxes[EVENTS].undelivered())}  # each event once
        return [(EVENTS, item) for item in events.values()] + [
            (kind, item) for kind in (LOGS, ARTIFACTS) for item in self._outboxes[kind].undelivered()
        ]

    async def deliver(self, client: PrefectClient) -> bool:
        """Deliver everything queued. False if the server is unreachable or failing; the rest then stays queued.

        Of the artifacts of notices it delivers a few: thousands of them would hold up the events for minutes.
        """
        self._check_again_after_outage()
        artifacts_left = _ARTIFACTS_AT_ONCE
        for kind, outbox in self._outboxes.items():
            while outbox and not (kind == EVENTS and self._monotonic() < self._events_wait_until):
                if kind == ARTIFACTS:
                    if not artifacts_left:
                        break
                    artifacts_left -= 1
                batch = outbox.take(BATCHES[kind])
                to_send = await self._not_on_server(client, kind, batch)
                if to_send is None:
                    outbox.return_batch()
                    return False
                try:
                    answer = await self._post(client, kind, outbox, to_send) if to_send else RetryOk(None)
                except asyncio.CancelledError:
                    outbox.return_batch()
                    if kind == EVENTS:
                        self._mark_uncertain(batch)
                    raise
                self.on_response(answer)
                match answer:
                    case RetryOk():
                        outbox.mark_delivered(self._monotonic())
                        if kind == EVENTS:
                            self._on_events_accepted(batch)
                    case _:
                        outbox.return_batch()
                        connected = not (isinstance(answer, Retry) and isinstance(answer.error, _NOT_CONNECTED))
                        if kind == EVENTS and connected:
                            self._mark_uncertain(batch)
                        return False
        if not self._outboxes[EVENTS]:
            self._uncertain.clear()  # ids of dropped events
        return True

    def _check_again_after_outage(self) -> None:
        """Some time after an outage, mark what was sent since as uncertain.

        Prefect's own clients send their items twice when a server is back. On SQLite this makes the server drop a batch (see
        ``missing_events``), and our events may have been in it.
        """
        if self._reachable_since is not None and self._monotonic() >= self._reachable_since + SHOWN_AFTER_S:
            before = {item["id"] for item in self._outboxes[EVENTS].undelivered()}
            self._outboxes[EVENTS].requeue_delivered(since=self._reachable_since)
            self._mark_uncertain([item for item in self._outboxes[EVENTS].undelivered() if item["id"] not in before])
            self._reachable_since = None

    async def _post(
        self, client: PrefectClient, kind: str, outbox: Outbox, items: list[ReportItem]
    ) -> RetryDisposition[None]:
        """Post items together. If the server rejects the batch, post them one by one and drop those that it rejects."""
        answer = await ask(post(client, kind, items))
        if not isinstance(answer, Permanent):
            return answer
        if len(items) == 1:
            logger.error("Prefect rejects one %s, which is dropped: %s", kind, answer.error)
            outbox.reject(items[0])
            return RetryOk(None)
        for item in items:
            if not isinstance(alone := await self._post(client, kind, outbox, [item]), RetryOk):
                return alone
        return RetryOk(None)

    def _mark_uncertain(self, batch: list[ReportItem]) -> None:
        """The server may have accepted these events without an answer: query them before they are sent again."""
        self._uncertain |= {item["id"] for item in batch}
        self._events_wait_until = self._monotonic() + SHOWN_AFTER_S

    async def _not_on_server(
        self, client: PrefectClient, kind: str, batch: list[ReportItem]
    ) -> list[ReportItem] | None:
        """What of the batch must be sent; ``None`` if the server is unreachable or failing."""
        if kind == LOGS:
            return batch
        if kind == ARTIFACTS:
            return await missing_artifacts(client, batch)
        uncertain = [item for item in batch if item["id"] in self._uncertain]
        missing = await missing_events(client, self._identity.flow_run_id, uncertain)
        return None if missing is None else [*missing, *(item for item in batch if item["id"] not in self._uncertain)]

    def _on_events_accepted(self, batch: list[ReportItem]) -> None:
        ids, now = {item["id"] for item in batch}, self._monotonic()
        self._uncertain -= ids
        for run in self._task_runs.unconfirmed(sent_before=now):
            if str(run.state.id) in ids:
                run.sent_at = now

    async def check(self, client: PrefectClient, *, after_s: float = RECORDED_AFTER_S) -> bool:
        """Read back task runs that were sent more than ``after_s`` ago, and send again what the server has lost.

        False as in ``deliver``.
        """
        queued = {item["id"] for item in self._outboxes[EVENTS].undelivered()}
        unconfirmed = self._task_runs.unconfirmed(sent_before=self._monotonic() - after_s)
        asked = [run for run in unconfirmed if str(run.state.id) not in queued][:BATCH]
        if not asked:
            return True
        ids = TaskRunFilter(id=TaskRunFilterId(any_=[run.task_run.id for run in asked]))
        answer = await ask(client.read_task_runs(task_run_filter=ids, limit=BATCH))
        self.on_response(answer)
        if not isinstance(answer, RetryOk):
            return False
        missing = self._task_runs.compare(asked, {run.id: run.state for run in answer.value})
        if shown := [run.sent_at for run in asked if run.confirmed]:
            self._last_shown_at, self._shown_up_to = self._monotonic(), max(self._shown_up_to, *shown)
        for run in [run for run in missing if self._is_lost(run)][:_RESENT_AT_ONCE]:
            if not await self._resend(client, run):
                return False
        return True

    def _is_lost(self, run: TrackedTaskRun) -> bool:
        """Whether the server will not show this state any more. A state that is only late must not be sent twice.

        The server records events one by one and in order, about 60 a second on SQLite with Prefect's defaults. While it makes
        progress, an event is lost only if another one is shown that was sent well after it.
        """
        now = self._monotonic()
        overtaken = self._shown_up_to - run.sent_at >= SHOWN_AFTER_S
        no_progress = now - self._last_shown_at >= SHOWN_AFTER_S
        return now - run.sent_at >= SHOWN_AFTER_S and (overtaken or no_progress)

    def on_response(self, answer: RetryDisposition[Any]) -> None:
        """Learn from the server's answer to any call whether it has become unreachable, or reachable again."""
        if isinstance(answer, Retry):
            if self._unreachable_since is None:
                self._unreachable_since = self._monotonic()
                logger.warning(
                    "Prefect does not answer; the pipeline runs on and reports later: %s", describe(answer.error)
                )
        elif self._unreachable_since is not None:
            again = self._outboxes[EVENTS].requeue_delivered(since=self._unreachable_since - _MAY_BE_LOST_S)
            self._uncertain = {item["id"] for item in self._outboxes[EVENTS].undelivered()}
            self._events_wait_until = max(self._events_wait_until, self._unreachable_since + SHOWN_AFTER_S)
            unreachable_s = self._monotonic() - self._unreachable_since
            logger.warning(
                "Prefect answers again after %.1f s; %d events are checked, and sent again if it lacks them",
                *(unreachable_s, again),
            )
            self._unreachable_since, self._reachable_since = None, self._monotonic()

    async def _resend(self, client: PrefectClient, run: TrackedTaskRun) -> bool:
        """Send its events again if the server lacks them; otherwise, and the second time, set its state by the API.

        False as in ``deliver``.
        """
        items = self._task_runs.events_of(run, self._monotonic())
        missing = await missing_events(client, self._identity.flow_run_id, items)
        if missing is None:
            return False
        if run.sent_again or all(item["id"] != str(run.state.id) for item in missing):
            await self._set_by_api(client, run)
            return True
        run.sent_again = True
        for item in missing:
            self._outboxes[EVENTS].put(item)
        return True

    async def _set_by_api(self, client: PrefectClient, run: TrackedTaskRun) -> None:
        logger.warning(
            "Prefect has not recorded task run %s from its events; its state is set by the API", run.task_run.name
        )
        state = run.state
        answer = await ask(set_state_by_api(client, run.task_run, state))
        self.on_response(answer)
        if run.state is not state:
            return  # its state has changed during the call; the change is delivered in the normal way
        if isinstance(answer, RetryOk):
            self._task_runs.confirm(run)
        elif isinstance(answer, Permanent):
            logger.error("Prefect rejects task run %s, which is dropped: %s", run.task_run.name, answer.error)
            self._rejected_task_runs += 1
            self._task_runs.confirm(run)
