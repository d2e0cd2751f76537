"""The link between a run and Prefect: a thread with an event loop of its own, so that nothing of it is on the data plane's.

The data plane's side appends records to a queue and goes on (``hooks``). The thread delivers them (``delivery``), keeps the
artifacts fresh (``display``), puts earlier runs right (``reconcile``), and looks whether somebody cancels the run. A server
that is slow, away or killed costs the run nothing.
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
from datetime import timedelta

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State, StateType

from orchestrator_adapter.control_plane.snapshot import Snapshots
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.prefect_flow.client.api import ask, client_without_retries
from orchestrator_adapter.prefect_flow.options import Reporting
from orchestrator_adapter.prefect_flow.recovery.outbox import Item
from orchestrator_adapter.prefect_flow.recovery.reconcile import reconcile_run
from orchestrator_adapter.prefect_flow.recovery.records import RunRecord, RunRecords
from orchestrator_adapter.prefect_flow.reporting.artifact_publisher import ArtifactPublisher
from orchestrator_adapter.prefect_flow.reporting.delivery import RECORDED_AFTER_S, Delivery, Record
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from orchestrator_adapter.process.pipeline import RunOutcome
from orchestrator_adapter.resilience.retry import RetryOk, RetryPolicy
from orchestrator_adapter.runtime.built_graph import BuiltGraph
from orchestrator_adapter.supervision.events import SupervisionHooks

_PACE = RetryPolicy(
    timedelta(milliseconds=200), timedelta(seconds=5), max_attempts=None
)  # of attempts while the server is away
_GATHER_S = 0.1  # what happens within it travels together
_FINAL_CHECK_S = 0.3  # how often the end looks whether everything has been recorded
_FINAL_STEP_S = 3.0  # for each of the last look and the last artifact
_SNAPSHOT_PATIENCE = timedelta(milliseconds=500)
_AFTER_A_BUG_S = 10.0
_ALL_RECONCILED_S = 3_600.0
_MARGIN_S = 15.0  # a thread that is so late beyond its own deadline is given up

logger = logging.getLogger("orchestrator_adapter.prefect")


@dataclass(frozen=True, slots=True)
class DeliveryReport:
    """How far the telling had come at the end.

    Attributes:
        everything: The server has all there was to tell.
        cancelled: The server says that somebody cancelled the run.
        answers: It can be told how the run ended, although it may not have everything.
        left: What it has not got, as (kind, item).
    """

    complete: bool
    cancelled: bool
    api_answers: bool
    undelivered: tuple[tuple[str, Item], ...] = ()


class Reporter:
    """One run's link. Made and used on the data plane's loop; ``on_cancel`` is called there."""

    def __init__(
        self,
        identity: RunIdentity,
        graph: OperatorGraph,
        options: Reporting,
        *,
        on_cancel: Callable[[str], object],
    ) -> None:
        self._identity = identity
        self._options = options
        self._on_cancel = on_cancel
        self._delivery = Delivery(identity, queue=options.queue, monotonic=time.monotonic)
        self._publisher = ArtifactPublisher(identity, graph)
        self._records = RunRecords(options.directory) if options.directory is not None else None
        self._inbox: deque[tuple[int, Record]] = deque()
        self._data_loop = asyncio.get_running_loop()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()
        self._has_work = asyncio.Event()
        self._wakeup_sent = False  # the thread knows that there is something in the inbox
        self._ending = asyncio.Event()
        self._delivering = asyncio.Lock()
        self._patience_s = 0.0
        self._stop_waiting = asyncio.Event()
        self._stopped_waiting = False
        self._cancelled = False
        self._abandoned = False
        self._failed = False
        self._outcome: RunOutcome | None = None
        self._result: Future[DeliveryReport] = Future()
        self._snapshots: Snapshots | None = None

    def hooks(self) -> SupervisionHooks:
        """What the supervision calls; nothing here takes longer than an append."""
        return SupervisionHooks(on_spawn=self._note, on_exit=self._note, on_decision=self._note)

    def start(self, built: BuiltGraph) -> None:
        """Begin to tell of ``built``, which is about to run."""
        self._snapshots = Snapshots(built, patience=_SNAPSHOT_PATIENCE)
        context = contextvars.copy_context()  # Prefect's settings, as they are here
        thread = threading.Thread(target=context.run, args=(self._run,), name="prefect-link", daemon=True)
        thread.start()

    async def finish(self, outcome: RunOutcome, patience: timedelta) -> DeliveryReport:
        """Tell the rest, for ``patience`` at most while the server is away; ``hurry`` ends that at once. Never raises."""
        self._outcome, self._patience_s = outcome, patience.total_seconds()
        self._call(self._ending.set)
        try:
            async with asyncio.timeout(self._patience_s + _MARGIN_S):
                return await asyncio.wrap_future(self._result)
        except TimeoutError:
            logger.exception("the link to Prefect does not end, and is given up")
            return DeliveryReport(complete=False, cancelled=self._cancelled, api_answers=False)

    def abandon(self) -> None:
        """The run has ended without an outcome (it was cancelled, or did not come about): tell what there is, and end."""
        self._abandoned = True
        self._call(self._ending.set)
        self.stop_waiting()

    def stop_waiting(self) -> None:
        """Somebody is impatient: do not wait for a server that is away."""
        self._stopped_waiting = True  # for a thread that has no loop yet
        self._call(self._stop_waiting.set)

    def _note(self, record: Record) -> None:
        if self._failed:
            return  # nobody empties the inbox any more, and the run may be long
        self._inbox.append((time.time_ns(), record))
        if not self._wakeup_sent:  # waking another thread costs ten times the rest
            self._wakeup_sent = True
            self._call(self._news.set)

    def _call(self, action: Callable[[], object]) -> None:
        if (loop := self._loop) is not None:
            with suppress(RuntimeError):  # it is closed: the link has ended
                loop.call_soon_threadsafe(action)

    # On the thread.

    def _run(self) -> None:
        self._result.set_running_or_notify_cancel()  # whoever gives the end up may not keep us from it
        try:
            self._result.set_result(asyncio.run(self._main()))
        except BaseException:  # whatever it is: the data plane is not to die of it, nor the end to wait for it
            logger.exception("the link to Prefect has broken; the pipeline runs on without it")
            self._failed = True
            self._result.set_result(
                DeliveryReport(
                    complete=False, cancelled=self._cancelled, api_answers=True, undelivered=self._undelivered()
                )
            )

    def _undelivered(self) -> tuple[tuple[str, Item], ...]:
        """What has not been told, as far as that can still be said."""
        try:
            self._take_from_inbox()
            return tuple(self._delivery.undelivered())
        except Exception:
            logger.exception("what Prefect was not told is lost")
            return ()

    async def _main(self) -> DeliveryReport:
        self._loop = asyncio.get_running_loop()
        self._news.set()  # of what was appended before there was a loop to tell
        if self._outcome is not None or self._abandoned:
            self._ending.set()
        if self._stopped_waiting:
            self._stop_waiting.set()
        async with client_without_retries() as client:
            beside = [
                asyncio.create_task(self._watch_flow_run(client)),
                asyncio.create_task(self._reconcile_earlier_runs(client)),
            ]
            if self._options.artifacts:
                beside.append(asyncio.create_task(self._publish_artifacts(client)))
            beside += [asyncio.create_task(self._empty_inbox()), asyncio.create_task(self._deliver(client))]
            await self._ending.wait()
            with suppress(TimeoutError):  # cut short, a delivery has to be looked for before it goes on
                async with asyncio.timeout(_FINAL_STEP_S), self._delivering:
                    pass
            for task in beside:
                task.cancel()
            await asyncio.gather(*beside, return_exceptions=True)
            return await self._end(client)

    async def _empty_inbox(self) -> None:
        """Empty the inbox, which has no bound, into what has one; also while the server takes its time over what it is asked."""

        async def step() -> float:
            await self._news.wait()
            await asyncio.sleep(_GATHER_S)
            self._take_from_inbox()
            self._has_work.set()
            return 0.0

        await _repeat("taking in what happens", step)

    async def _deliver(self, client: PrefectClient) -> None:
        """Deliver what happens as it happens, and check what was delivered."""
        pace = _Backoff()

        async def step() -> float:
            with suppress(TimeoutError):
                async with asyncio.timeout(RECORDED_AFTER_S):
                    await self._has_work.wait()
            self._has_work.clear()
            async with self._delivering:
                answers = await self._delivery.deliver(client) and await self._delivery.check(client)
            if answers:
                pace.reset()
                return 0.0
            return pace.next_s()

        await _repeat("telling Prefect what happens", step)

    def _take_from_inbox(self) -> None:
        self._news.clear()
        self._wakeup_sent = False  # before it is emptied: what is appended from now on wakes us again
        while self._inbox:
            at_ns, record = self._inbox.popleft()
            self._delivery.add(record, at_ns)

    async def _publish_artifacts(self, client: PrefectClient) -> None:
        async def step() -> float:
            assert self._snapshots is not None
            self._delivery.on_response(await self._publisher.refresh(client, await self._snapshots.view()))
            return self._options.status_every.total_seconds()

        await _repeat("renewing the artifacts", step)

    async def _watch_flow_run(self, client: PrefectClient) -> None:
        async def step() -> float:
            await self._check_flow_run(client)
            return self._options.look_every.total_seconds()

        await _repeat("looking at the run's state", step)

    async def _check_flow_run(self, client: PrefectClient) -> None:
        """Whether somebody cancels the run, or takes it for dead."""
        answer = await ask(client.read_flow_run(self._identity.flow_run_id))
        self._delivery.on_response(answer)
        if not isinstance(answer, RetryOk) or (state := answer.value.state) is None:
            return
        if state.type in {StateType.CANCELLING, StateType.CANCELLED} and not self._cancelled:
            self._cancelled = True
            with suppress(RuntimeError):  # the data plane's loop is closed: there is nothing left to stop
                self._data_loop.call_soon_threadsafe(
                    self._on_cancel, f"cancelled in Prefect: {state.message or state.name}"
                )
        elif state.type is StateType.CRASHED and self._outcome is None:
            logger.warning("Prefect took this run for dead (%s); it is not, and says so", state.message)
            alive: State[None] = State(type=StateType.RUNNING, name="Running", message="it is alive")
            self._delivery.on_response(
                await ask(client.set_flow_run_state(self._identity.flow_run_id, alive, force=True))
            )

    async def _reconcile_earlier_runs(self, client: PrefectClient) -> None:
        """Put earlier runs right; again and again while the server is away."""
        if (records := self._records) is None:
            return
        pace, mine = _Backoff(), (self._identity.flow_run_id, self._identity.attempt)
        for path in records.unreadable():
            logger.error("%s should be the record of a run and is none; it is left alone", path)

        async def step() -> float:
            earlier = [record for record in records.all() if (record.flow_run_id, record.attempt) != mine]
            done = await self._reconcile_all(client, records, earlier)
            return _ALL_RECONCILED_S if done else pace.next_s()

        await _repeat("putting earlier runs right", step)

    async def _reconcile_all(self, client: PrefectClient, records: RunRecords, earlier: list[RunRecord]) -> bool:
        for record in earlier:
            done = await reconcile_run(client, records, record, by=self._identity.label)
            if done is None:
                return False
            if done.flow_run_state is not None or done.task_runs:
                logger.warning(
                    "earlier run %s (%s): set to %s, %d of its task runs to Crashed",
                    *(record.flow_run_name, record.flow_run_id, done.flow_run_state or "nothing new", done.task_runs),
                )
        return True

    async def _end(self, client: PrefectClient) -> DeliveryReport:
        """Tell the rest: until the server shows all of it, or is away for longer than anybody wants to wait."""
        deadline = time.monotonic() + self._patience_s
        pace = _Backoff()
        self._take_from_inbox()
        self._delivery.end_run(time.time_ns())
        while True:
            answers = False
            with suppress(TimeoutError):  # a server that answers, but slowly, may have thousands of things to be asked
                async with asyncio.timeout(max(deadline - time.monotonic(), _FINAL_STEP_S)):
                    answers = await self._delivery.deliver(client) and await self._delivery.check(
                        client, after_s=_FINAL_CHECK_S
                    )
            left_s = deadline - time.monotonic()
            if self._delivery.all_delivered or self._stop_waiting.is_set() or left_s <= 0:
                break
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, _FINAL_CHECK_S if answers else pace.next_s())):
                    await self._stop_waiting.wait()
        if self._delivery.all_delivered:
            await self._final_update(client)
        if given_up := self._delivery.given_up:
            logger.error("%d events, log lines and task runs were never told to Prefect", given_up)
        left = tuple(self._delivery.undelivered())
        return DeliveryReport(complete=not left, cancelled=self._cancelled, api_answers=answers, undelivered=left)

    async def _final_update(self, client: PrefectClient) -> None:
        await _run_bounded("looking at the run's state", self._check_flow_run(client))
        if self._options.artifacts and self._outcome is not None:
            await _run_bounded("showing the report", self._publisher.report(client, self._outcome))


async def _repeat(what: str, step: Callable[[], Awaitable[float]]) -> None:
    """Take one step after another, each after as many seconds as the last one asked for. A bug in one costs that one."""
    while True:
        try:
            pause_s = await step()
        except Exception:
            logger.exception("%s has failed; it goes on", what)
            pause_s = _AFTER_A_BUG_S
        await asyncio.sleep(pause_s)


async def _run_bounded(what: str, word: Awaitable[object]) -> None:
    """Await it, within bounds. A bug in it costs it, and not how the run ended."""
    try:
        async with asyncio.timeout(_FINAL_STEP_S):
            await word
    except TimeoutError:
        logger.warning("%s took longer than %g s, and was given up", what, _FINAL_STEP_S)
    except Exception:
        logger.exception("%s has failed", what)


class _Backoff:
    """Delays between attempts, decorrelated; from the start again after one that worked."""

    def __init__(self) -> None:
        self._rng = random.Random()
        self.reset()

    def reset(self) -> None:
        self._previous_s = _PACE.initial.total_seconds()

    def next_s(self) -> float:
        self._previous_s = _PACE.next_delay_s(self._previous_s, self._rng)
        return self._previous_s
