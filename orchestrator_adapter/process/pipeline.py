"""Runs a graph as a process: signals, a report on disk, an exit code. No Prefect here; ``prefect_flow`` calls this as well."""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from orchestrator_adapter.bulkhead import Bulkhead
from orchestrator_adapter.control_plane import ControlPlane, Links
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.daemon_threads import DaemonThreads
from orchestrator_adapter.primitives.event_log import EventLog, TaskRunId, current_run, in_run, new_run_id
from orchestrator_adapter.primitives.gc_freeze import freeze_heap
from orchestrator_adapter.process.notices import NoticeBoard
from orchestrator_adapter.process.report import ExitCode, exit_code, write_report
from orchestrator_adapter.process.signals import ForcedEnd
from orchestrator_adapter.process.stop_requests import StopRequested, StopRequests
from orchestrator_adapter.runtime.built_graph import BuiltGraph, SupervisionPolicy
from orchestrator_adapter.storage.claims import Owner, claim, with_addresses
from orchestrator_adapter.storage.dead_letter import DeadLetterStore
from orchestrator_adapter.supervision.events import SupervisionHooks, SupervisorEvent
from orchestrator_adapter.supervision.watchdog import inspect_loop

logger = logging.getLogger("orchestrator_adapter.pipeline")

_SHARED_THREADS = 32
"""Threads of the loop for host names and ``asyncio.to_thread``, started when they are needed. Python's own number is six on a machine
with two processors: then three peers whose names no resolver answers hold every thread, and all that needs one."""


@dataclass(frozen=True)
class Pipeline:
    """A graph with what it needs to run as a process.

    Attributes:
        graph: The graph that runs.
        policy: How it is watched and stopped.
        dead_letters: Makes the dead-letter store, once, when the run begins; ``None``: a bounded list in memory.
        report: The report's path; ``None``: no report.
        clock: Time; ``None``: the machine's.
        rng: The random source of jitter; ``None``: a new one.
        control_plane: Where health and metrics are served while the graph runs and drains; ``None``: nowhere.
        claims: Sockets and folders that no other run on this machine may use at the same time, as URLs (see ``claims``).
        preparations: Called one after another before anything is opened, for example to load data that every operator
            needs. If one raises, the run raises it and has opened nothing.
        bulkheads: Pools of worker processes: started before the graph, stopped after it has ended.
        notices: Where operators post notices, which a compiled flow reports to Prefect; ``None``: none post any.
    """

    graph: OperatorGraph
    policy: SupervisionPolicy = field(default_factory=SupervisionPolicy)
    dead_letters: Callable[[], DeadLetterStore] | None = None
    report: Path | None = None
    clock: Clock | None = None
    rng: random.Random | None = None
    control_plane: ControlPlane | None = None
    claims: tuple[str, ...] = ()
    preparations: tuple[Callable[[], Awaitable[object]], ...] = ()
    bulkheads: tuple[Bulkhead, ...] = ()
    notices: NoticeBoard | None = None


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a pipeline ended. ``problems`` are failures to close the store or write the report; they do not change the event."""

    event: SupervisorEvent
    exit_code: ExitCode
    problems: tuple[str, ...]


async def run_pipeline(
    pipeline: Pipeline,
    *,
    hooks: SupervisionHooks | None = None,
    on_built: Callable[[BuiltGraph], object] | None = None,
    run_label: str = "",
    run_id: str = "",
    task_run_id: TaskRunId | None = None,
    links: Links | None = None,
    stop: StopRequests | None = None,
    on_forced_end: Callable[[RunOutcome], object] | None = None,
) -> RunOutcome:
    """Build the graph, run it to its end, close the store and write the report. All of it is done when this returns.

    The first SIGTERM, SIGINT or SIGHUP requests the drain, a second one the abort. Signals are requests from the first
    statement on: one that arrives during the preparations, or while bulkheads start, cancels them, and the run ends as
    ``ShutDown`` with its report, without having started an operator. The previous handlers are installed again when this
    returns. With ``stop`` the requests come from there, and signals are left to the caller (``stop.listen()``).

    If the loop does not turn for grace + patience after a signal (for the patience after a second one), a thread writes the
    report, with the operator that blocks the loop as a straggler, calls ``on_forced_end`` with the outcome, and ends the
    process with the outcome's exit code. ``on_forced_end`` must not use the loop.

    ``on_built`` gets the built graph before it starts, for example to show progress. ``run_label`` is this run's name in the
    errors of other runs that claim the same things. ``run_id`` is the field ``run`` of its log lines: the flow run's id under
    Prefect; a new one if it is empty. ``task_run_id`` gives the field ``task_run`` of lines that name an operator's instance,
    and ``links`` the addresses where another system shows the run and its instances.

    Raises ``GraphError`` before anything is opened; the error of a preparation; ``OSError`` if another run has claimed
    the same socket or folder, a bulkhead cannot start, the dead-letter store cannot be opened or the control plane cannot
    listen. If it is cancelled, the run drains and writes its report as usual, and then the cancellation is passed on.
    """
    problems: list[str] = []
    run_id = run_id or current_run() or new_run_id(pipeline.graph.name)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_SHARED_THREADS, "shared"))
    async with AsyncExitStack() as resources:
        if stop is None:
            # Until the report is written, so that a second Ctrl-C cannot lose it.
            resources.enter_context((stop := StopRequests()).listen())
        pipeline.graph.validate()
        resources.enter_context(in_run(run_id, task_run_id=task_run_id))
        forced = _ForcedEnd(pipeline, partial(in_run, run_id, task_run_id=task_run_id), on_forced_end)
        policy = pipeline.policy
        stop.forced = ForcedEnd(policy.grace.total_seconds(), policy.patience.total_seconds(), forced.end)
        owner = Owner.this_process(pipeline.graph.name, run=run_label)
        prepared = await _prepare(pipeline, stop, resources, owner)
        freeze_heap()
        run_resources = resources.enter_context(ExitStack())
        dead_letters = pipeline.dead_letters() if prepared and pipeline.dead_letters is not None else None
        try:
            built = pipeline.graph.build(clock=pipeline.clock, rng=pipeline.rng, dead_letters=dead_letters)
            run_resources.enter_context(_control_plane(built, pipeline, links, prepared=prepared))
            if on_built is not None:
                on_built(built)
        except BaseException:
            if dead_letters is not None:
                _try("closing the dead-letter store", dead_letters.close, problems)
            raise
        forced.built = built
        stop.attach(built)
        try:
            event = await built.run(pipeline.policy, hooks=hooks)
        finally:
            if dead_letters is not None:
                _try("closing the dead-letter store", dead_letters.close, problems)
            if pipeline.report is not None:
                _report(built, pipeline.report, problems)
        forced.outcome = RunOutcome(event, exit_code(event), tuple(problems))
    return forced.outcome


async def _prepare(pipeline: Pipeline, stop: StopRequests, resources: AsyncExitStack, owner: Owner) -> bool:
    """Claim, prepare, start the bulkheads. ``False`` if a request to stop came first."""
    grace = pipeline.policy.grace
    names, claims = DaemonThreads("host-names"), pipeline.claims
    try:
        with suppress(StopRequested):  # it claims by name then: the report that it writes is claimed as well
            resolve = partial(asyncio.get_running_loop().run_in_executor, names, with_addresses, claims)
            claims = await stop.unless_requested("resolving host names", resolve, cancel_within=grace)
        resources.enter_context(claim(claims, owner))
        for prepare in pipeline.preparations:
            what = f"preparation {getattr(prepare, '__name__', prepare)}"
            await stop.unless_requested(what, prepare, cancel_within=grace)
        for bulkhead in pipeline.bulkheads:
            start = partial(resources.enter_async_context, bulkhead)
            await stop.unless_requested(f"bulkhead {bulkhead.name}", start, cancel_within=grace)
    except StopRequested:
        return False
    finally:
        names.shutdown()
    return not stop.reasons


class _ForcedEnd:
    """Reports a run whose loop does not turn, on another thread.

    Attributes:
        built: The run's graph, once it is built.
        outcome: How the run has ended, once its report is written.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        within_run: Callable[[], AbstractContextManager[None]],
        on_end: Callable[[RunOutcome], object] | None,
    ) -> None:
        self.built: BuiltGraph | None = None
        self.outcome: RunOutcome | None = None
        self._pipeline = pipeline
        self._within_run = within_run
        self._on_end = on_end
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()

    def end(self, signal_name: str, silent_s: float) -> int:
        """Write the report, log and pass on how the run ended; returns the exit code. A run that has ended has its report."""
        if self.outcome is not None:
            if self._on_end is not None:
                self._on_end(self.outcome)
            return self.outcome.exit_code
        problems: list[str] = []
        with self._within_run():
            stall = inspect_loop(self._loop, self._loop_thread, silent_s)
            built = self.built or self._pipeline.graph.build(clock=self._pipeline.clock)
            event = built.event_of_forced_end(stall, signal_name)
            if self._pipeline.report is not None:
                path = self._pipeline.report
                _try(f"writing the report {path}", lambda: write_report(event, path), problems)
            if built.event is not None:  # the run had ended: its event says nothing of this
                problems.append(
                    f"{signal_name}: the event loop did not turn for {silent_s:.1f} s while the run closed its dead-letter "
                    "store or wrote its report, so the process was ended"
                )
            outcome = RunOutcome(event, exit_code(event), tuple(problems))
            if self._on_end is not None:
                self._on_end(outcome)
            built.log_forced_end(event)
            if built.event is not None:
                EventLog(logger)("finishing_failed", level=logging.ERROR, what=problems[-1], stack=stall.stack)
        return outcome.exit_code


def _control_plane(
    built: BuiltGraph, pipeline: Pipeline, links: Links | None, *, prepared: bool
) -> AbstractContextManager[object]:
    if pipeline.control_plane is None or not prepared:
        return nullcontext()
    # Imported here: a web server takes a tenth of a second to import.
    from orchestrator_adapter.control_plane.server import ControlPlaneServer  # noqa: PLC0415

    return ControlPlaneServer(built, pipeline.control_plane, pools=pipeline.bulkheads, links=links)


def _report(built: BuiltGraph, path: Path, problems: list[str]) -> None:
    if (event := built.event) is not None:
        _try(f"writing the report {path}", lambda: write_report(event, path), problems)


def _try(what: str, action: Callable[[], object], problems: list[str]) -> None:
    try:
        action()
    except (OSError, ValueError) as error:  # ValueError: an invalid path ("", or one with a NUL)
        problems.append(f"{what} failed: {error}")
        EventLog(logger)("finishing_failed", level=logging.ERROR, exc=error, what=what)
