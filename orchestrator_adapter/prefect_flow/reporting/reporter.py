"""Reports a run to Prefect from a thread with an event loop of its own, so that the data plane never waits for Prefect.

On the data plane's side, the hooks append records to an inbox. The thread delivers them (``delivery``), publishes artifacts,
reconciles earlier runs, and watches whether the run is cancelled in Prefect. A server that is slow, unreachable or killed does
not slow down the run.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import PrefectClient

from orchestrator_adapter.control_plane.snapshot import Snapshots
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.prefect_flow.client.api import client_without_retries
from orchestrator_adapter.prefect_flow.client.internals import enter_task_run
from orchestrator_adapter.prefect_flow.client.posting import ReportItem
from orchestrator_adapter.prefect_flow.options import Reporting
from orchestrator_adapter.prefect_flow.recovery.reconcile import reconcile_run
from orchestrator_adapter.prefect_flow.recovery.records import RunRecord, RunRecords
from orchestrator_adapter.prefect_flow.reporting.artifact_publisher import ArtifactPublisher
from orchestrator_adapter.prefect_flow.reporting.delivery import RECORDED_AFTER_S, Delivery, SupervisionRecord
from orchestrator_adapter.prefect_flow.reporting.flow_run_watch import FlowRunWatch
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from orchestrator_adapter.prefect_flow.reporting.task_runs import task_run_of
from orchestrator_adapter.primitives.event_log import enter_instance
from orchestrator_adapter.process.notices import NoticeBoard
from orchestrator_adapter.process.pipeline import RunOutcome
from orchestrator_adapter.resilience.retry import RetryPolicy
from orchestrator_adapter.runtime.built_graph import BuiltGraph
from orchestrator_adapter.supervision.events import Spawned, SupervisionHooks

_RETRY = RetryPolicy(
    timedelta(milliseconds=200), timedelta(seconds=5), max_attempts=None
)  # while the server is unreachable
_GATHER_S = 0.1  # records that arrive within this time are delivered together
_FINAL_CHECK_S = 0.3  # how often the end checks whether the server shows everything
_FINAL_STEP_S = 3.0  # limit for each of the last delivery, the last check of the flow run, and the report artifact
_SNAPSHOT_PATIENCE = timedelta(milliseconds=500)
_AFTER_A_BUG_S = 10.0
_ALL_RECONCILED_S = 3_600.0
_MARGIN_S = 15.0  # a thread that is this late after its own deadline is abandoned

logger = logging.getLogger("orchestrator_adapter.prefect")


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """What was delivered when the reporter ended.

    Attributes:
        complete: The server has everything.
        cancelled: The server says that the run was cancelled.
        api_answers: The server answers, so the flow run can be set to its final state, although it may not have everything.
        undelivered: What the server may not have, as (kind, item).
    """

    complete: bool
    cancelled: bool
    api_answers: bool
    undelivered: tuple[tuple[str, ReportItem], ...] = ()


class Reporter:
    """Reports one run. Created and used on the data plane's loop; ``on_cancel`` is called there.

    ``on_cancel_noticed`` is called before it, on the reporter's own thread, also while the data plane's loop is blocked.
    """

    def __init__(
        self,
        identity: RunIdentity,
        graph: OperatorGraph,
        options: Reporting,
        *,
        on_cancel: Callable[[str], object],
        on_cancel_noticed: Callable[[str], object] = lambda _: None,
        notices: NoticeBoard | None = None,
    ) -> None:
        self._identity = identity
        self._options = options
        self._on_cancel = on_cancel
        self._on_cancel_noticed = on_cancel_noticed
        self._delivery = Delivery(identity, queue=options.queue, monotonic=time.monotonic)
        self._publisher = ArtifactPublisher(identity, graph)
        self._flow_run = FlowRunWatch(identity.flow_run_id, on_cancel=self._pass_on_cancel, log=self._warn)
        self._records = RunRecords(options.directory) if options.directory is not None else None
        self._inbox: deque[tuple[int, SupervisionRecord]] = deque()
        self._notices = NoticeBoard() if notices is None else notices
        self._notices_dropped = 0
        self._data_loop = asyncio.get_running_loop()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._inbox_filled = asyncio.Event()
        self._has_work = asyncio.Event()
        self._wakeup_sent = False  # `_inbox_filled` is already set, or about to be
        self._ending = asyncio.Event()
        self._delivering = asyncio.Lock()
        self._patience_s = 0.0
        self._stop_waiting = asyncio.Event()
        self._stopped_waiting = False
        self._abandoned = False
        self._failed = False
        self._outcome: RunOutcome | None = None
        self._result: Future[DeliveryReport] = Future()
        self._snapshots: Snapshots | None = None

    def hooks(self) -> SupervisionHooks:
        """The hooks for the supervisor. They only append to the inbox, and choose the context of an instance."""
        return SupervisionHooks(
            on_spawn=self._note, on_exit=self._note, on_decision=self._note, context_for=self._context_for
        )

    def start(self, built: BuiltGraph) -> None:
        """Start reporting ``built``, which is about to run."""
        self._snapshots = Snapshots(built, patience=_SNAPSHOT_PATIENCE)
        self._notices.notify(self._wake_up)
        context = contextvars.copy_context()  # Prefect's settings, as they are here
        thread = threading.Thread(target=context.run, args=(self._run,), name="prefect-reporter", daemon=True)
        thread.start()

    async def finish(self, outcome: RunOutcome, patience: timedelta) -> DeliveryReport:
        """Deliver the rest. Waits at most ``patience`` for an unreachable server, or until ``stop_waiting``. Never raises."""
        self._outcome, self._patience_s = outcome, patience.total_seconds()
        self._call(self._ending.set)
        try:
            async with asyncio.timeout(self._patience_s + _MARGIN_S):
                return await asyncio.wrap_future(self._result)
        except TimeoutError:
            logger.exception("the Prefect reporter does not end and is abandoned")
            return DeliveryReport(complete=False, cancelled=self._flow_run.cancelled, api_answers=False)

    def abandon(self) -> None:
        """The run ended without an outcome (it was cancelled, or did not start): deliver what is there, and end."""
        self._abandoned = True
        self._call(self._ending.set)
        self.stop_waiting()

    def stop_waiting(self) -> None:
        """Do not wait any longer for an unreachable server."""
        self._stopped_waiting = True  # for a thread whose loop does not run yet
        self._call(self._stop_waiting.set)

    def _note(self, record: SupervisionRecord) -> None:
        if self._failed:
            return  # the thread no longer empties the inbox, and the run may be long
        self._inbox.append((time.time_ns(), record))
        self._wake_up()

    def _wake_up(self) -> None:
        if not self._wakeup_sent:  # waking another thread costs ten times as much as the append
            self._wakeup_sent = True
            self._call(self._inbox_filled.set)

    def _context_for(self, spawned: Spawned) -> contextvars.Context:
        """The context of an instance: that of its own task run, which the server may get much later."""
        context = contextvars.copy_context()
        task_run = task_run_of(self._identity, spawned, datetime.now(UTC))
        context.run(enter_task_run, task_run, spawned.operator)
        context.run(enter_instance, spawned.operator, spawned.instance, str(task_run.id))
        return context

    def _call(self, action: Callable[[], object]) -> None:
        if (loop := self._loop) is not None:
            with suppress(RuntimeError):  # the loop is closed: the reporter has ended
                loop.call_soon_threadsafe(action)

    # The methods below run on the thread.

    def _run(self) -> None:
        self._result.set_running_or_notify_cancel()  # a caller that stops waiting must not cancel the result
        try:
            self._result.set_result(asyncio.run(self._main()))
        except BaseException:  # it must neither end the data plane nor leave `finish` waiting
            logger.exception("the Prefect reporter has failed; the pipeline runs on without it")
            self._failed = True
            self._result.set_result(
                DeliveryReport(
                    complete=False,
                    cancelled=self._flow_run.cancelled,
                    api_answers=True,
                    undelivered=self._undelivered(),
                )
            )

    def _undelivered(self) -> tuple[tuple[str, ReportItem], ...]:
        """What has not been delivered, as far as that can still be determined."""
        try:
            self._take_from_inbox()
            return tuple(self._delivery.undelivered())
        except Exception:
            logger.exception("undelivered events and log lines are lost")
            return ()

    async def _main(self) -> DeliveryReport:
        self._loop = asyncio.get_running_loop()
        self._inbox_filled.set()  # records may have been appended before there was a loop
        if self._outcome is not None or self._abandoned:
            self._ending.set()
        if self._stopped_waiting:
            self._stop_waiting.set()
        async with client_without_retries() as client:
            side_tasks = [
                asyncio.create_task(self._watch_flow_run(client)),
                asyncio.create_task(self._reconcile_earlier_runs(client)),
            ]
            if self._options.artifacts:
                side_tasks.append(asyncio.create_task(self._publish_artifacts(client)))
            side_tasks += [asyncio.create_task(self._empty_inbox()), asyncio.create_task(self._deliver(client))]
            await self._ending.wait()
            with suppress(TimeoutError):  # an interrupted delivery must be queried before it can be repeated
                async with asyncio.timeout(_FINAL_STEP_S), self._delivering:
                    pass
            for task in side_tasks:
                task.cancel()
            await asyncio.gather(*side_tasks, return_exceptions=True)
            return await self._end(client)

    async def _empty_inbox(self) -> None:
        """Move records from the inbox, which is unbounded, to the bounded outboxes, even while a request takes long."""

        async def step() -> float:
            await self._inbox_filled.wait()
            await asyncio.sleep(_GATHER_S)
            self._take_from_inbox()
            self._has_work.set()
            return 0.0

        await _repeat("emptying the inbox", step)

    async def _deliver(self, client: PrefectClient) -> None:
        """Deliver records soon after they happen, and check what was delivered."""
        delays = _RetryDelays()

        async def step() -> float:
            with suppress(TimeoutError):
                async with asyncio.timeout(RECORDED_AFTER_S):
                    await self._has_work.wait()
            self._has_work.clear()
            async with self._delivering:
                answers = await self._delivery.deliver(client) and await self._delivery.check(client)
            if answers:
                delays.reset()
                if self._delivery.has_artifacts:
                    self._has_work.set()
                return 0.0
            return delays.next_s()

        await _repeat("delivering to Prefect", step)

    def _take_from_inbox(self) -> None:
        self._inbox_filled.clear()
        self._wakeup_sent = False  # before the inbox is emptied: a record appended from now on sends a new wakeup
        while self._inbox:
            at_ns, record = self._inbox.popleft()
            self._delivery.add(record, at_ns)
        for at_ns, notice in self._notices.take():
            self._delivery.add_notice(notice, at_ns, artifact=self._options.artifacts)
        if (dropped := self._notices.dropped) > self._notices_dropped:
            self._delivery.warn(f"{dropped - self._notices_dropped} notices were dropped: too many at once")
            self._notices_dropped = dropped

    async def _publish_artifacts(self, client: PrefectClient) -> None:
        async def step() -> float:
            assert self._snapshots is not None
            self._delivery.on_response(await self._publisher.refresh(client, await self._snapshots.view()))
            return self._options.status_every.total_seconds()

        await _repeat("publishing the artifacts", step)

    async def _watch_flow_run(self, client: PrefectClient) -> None:
        async def step() -> float:
            await self._check_flow_run(client)
            return self._options.look_every.total_seconds()

        await _repeat("checking the flow run", step)

    async def _check_flow_run(self, client: PrefectClient) -> None:
        self._delivery.on_response(await self._flow_run.check(client, has_ended=self._outcome is not None))

    def _pass_on_cancel(self, reason: str) -> None:
        self._on_cancel_noticed(reason)
        with suppress(RuntimeError):  # the data plane's loop is closed: the run has ended
            self._data_loop.call_soon_threadsafe(self._on_cancel, reason)

    def _warn(self, message: str) -> None:
        self._delivery.warn(message)
        self._has_work.set()

    async def _reconcile_earlier_runs(self, client: PrefectClient) -> None:
        """Reconcile earlier runs; try again while the server is unreachable."""
        if (records := self._records) is None:
            return
        delays, mine = _RetryDelays(), (self._identity.flow_run_id, self._identity.attempt)
        for path in records.unreadable():
            logger.error("%s is not a valid record of a run; it is left unchanged", path)

        async def step() -> float:
            earlier = [record for record in records.all() if (record.flow_run_id, record.attempt) != mine]
            done = await self._reconcile_all(client, records, earlier)
            return _ALL_RECONCILED_S if done else delays.next_s()

        await _repeat("reconciling earlier runs", step)

    async def _reconcile_all(self, client: PrefectClient, records: RunRecords, earlier: list[RunRecord]) -> bool:
        for record in earlier:
            done = await reconcile_run(client, records, record, by=self._identity.label)
            if done is None:
                return False
            if done.flow_run_state is not None or done.task_runs:
                logger.warning(
                    "earlier run %s (%s): set to %s, %d of its task runs to Crashed",
                    *(record.flow_run_name, record.flow_run_id, done.flow_run_state or "no new state", done.task_runs),
                )
        return True

    async def _end(self, client: PrefectClient) -> DeliveryReport:
        """Deliver the rest, until the server shows all of it or the patience is over."""
        deadline = time.monotonic() + self._patience_s
        delays = _RetryDelays()
        self._take_from_inbox()
        self._delivery.end_run(time.time_ns())
        while True:
            answers = False
            with suppress(TimeoutError):  # a slow server may need thousands of requests
                async with asyncio.timeout(max(deadline - time.monotonic(), _FINAL_STEP_S)):
                    answers = await self._delivery.deliver(client) and await self._delivery.check(
                        client, after_s=_FINAL_CHECK_S
                    )
            left_s = deadline - time.monotonic()
            if self._delivery.all_delivered or self._stop_waiting.is_set() or left_s <= 0:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _FINAL_CHECK_S if answers else delays.next_s())):
                    await self._stop_waiting.wait()
        if self._delivery.all_delivered:
            await self._final_update(client)
        if given_up := self._delivery.given_up:
            logger.error("%d events, log lines and task runs were never delivered to Prefect", given_up)
        left = tuple(self._delivery.undelivered())
        return DeliveryReport(
            complete=not left, cancelled=self._flow_run.cancelled, api_answers=answers, undelivered=left
        )

    async def _final_update(self, client: PrefectClient) -> None:
        await _run_bounded("checking the flow run", self._check_flow_run(client))
        if self._options.artifacts and self._outcome is not None:
            await _run_bounded("publishing the report", self._publisher.report(client, self._outcome))


async def _repeat(what: str, step: Callable[[], Awaitable[float]]) -> None:
    """Repeat ``step`` for ever. Each step returns the pause until the next, in seconds. A bug in a step ends only that step."""
    while True:
        try:
            pause_s = await step()
        except Exception:
            logger.exception("%s failed; it is tried again", what)
            pause_s = _AFTER_A_BUG_S
        await asyncio.sleep(pause_s)


async def _run_bounded(what: str, step: Awaitable[object]) -> None:
    """Await ``step`` for a bounded time. A bug in it is logged, and does not affect how the run is recorded."""
    try:
        async with asyncio.timeout(_FINAL_STEP_S):
            await step
    except TimeoutError:
        logger.warning("%s took longer than %g s and was abandoned", what, _FINAL_STEP_S)
    except Exception:
        logger.exception("%s failed", what)


class _RetryDelays:
    """Delays between attempts, with decorrelated jitter. ``reset`` after an attempt that worked."""

    def __init__(self) -> None:
        self._rng = random.Random()
        self.reset()

    def reset(self) -> None:
        self._previous_s = _RETRY.initial.total_seconds()

    def next_s(self) -> float:
        self._previous_s = _RETRY.next_delay_s(self._previous_s, self._rng)
        return self._previous_s
