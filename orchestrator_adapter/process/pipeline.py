"""Runs a graph as a process: signals, a report on disk, an exit code. No Prefect here; ``prefect_flow`` calls this as well."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator_adapter.bulkhead import Bulkhead
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.event_log import EventLog, current_run, in_run, new_run_id
from orchestrator_adapter.primitives.gc_freeze import freeze_heap
from orchestrator_adapter.process.report import ExitCode, exit_code, write_report
from orchestrator_adapter.process.signals import stop_on_signals
from orchestrator_adapter.runtime.built_graph import BuiltGraph, SupervisionPolicy
from orchestrator_adapter.storage.claims import Owner, claim
from orchestrator_adapter.storage.dead_letter import DeadLetterStore
from orchestrator_adapter.supervision.events import SupervisionHooks, SupervisorEvent

logger = logging.getLogger("orchestrator_adapter.pipeline")


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
    handle_signals: bool = True,
) -> RunOutcome:
    """Build the graph, run it to its end, close the store and write the report. All of it is done when this returns.

    The first SIGTERM or SIGINT requests the drain, a second one the abort. The previous handlers are installed again when
    this returns; ``handle_signals=False`` leaves signals to the caller. ``on_built`` gets the built graph before it starts,
    for example to show progress. ``run_label`` is this run's name in the errors of other runs that claim the same things.
    ``run_id`` is the field ``run`` of its log lines: the flow run's id under Prefect; a new one if it is empty.

    Raises ``GraphError`` before anything is opened; the error of a preparation; ``OSError`` if another run has claimed
    the same socket or folder, a bulkhead cannot start, the dead-letter store cannot be opened or the control plane cannot
    listen. If it is cancelled, the run drains and writes its report as usual, and then the cancellation is passed on.
    """
    pipeline.graph.validate()
    problems: list[str] = []
    run_id = run_id or current_run() or new_run_id(pipeline.graph.name)
    async with AsyncExitStack() as resources:
        resources.enter_context(in_run(run_id))
        resources.enter_context(claim(pipeline.claims, Owner.this_process(pipeline.graph.name, run=run_label)))
        for prepare in pipeline.preparations:
            await prepare()
        freeze_heap()
        for bulkhead in pipeline.bulkheads:
            await resources.enter_async_context(bulkhead)
        run_resources = resources.enter_context(ExitStack())
        dead_letters = pipeline.dead_letters() if pipeline.dead_letters is not None else None
        try:
            built = pipeline.graph.build(clock=pipeline.clock, rng=pipeline.rng, dead_letters=dead_letters)
            run_resources.enter_context(_control_plane(built, pipeline.control_plane))
            if on_built is not None:
                on_built(built)
        except BaseException:
            if dead_letters is not None:
                _try("closing the dead-letter store", dead_letters.close, problems)
            raise
        if handle_signals:
            # Installed until the report is written, so that a second Ctrl-C cannot lose it.
            run_resources.enter_context(stop_on_signals(built.request_shutdown))
        try:
            event = await built.run(pipeline.policy, hooks=hooks)
        finally:
            if dead_letters is not None:
                _try("closing the dead-letter store", dead_letters.close, problems)
            if pipeline.report is not None:
                _report(built, pipeline.report, problems)
    return RunOutcome(event, exit_code(event), tuple(problems))


def _control_plane(built: BuiltGraph, control_plane: ControlPlane | None) -> AbstractContextManager[object]:
    if control_plane is None:
        return nullcontext()
    # Imported here: a web server takes a tenth of a second to import.
    from orchestrator_adapter.control_plane.server import ControlPlaneServer  # noqa: PLC0415

    return ControlPlaneServer(built, control_plane)


def _report(built: BuiltGraph, path: Path, problems: list[str]) -> None:
    if (event := built.event) is not None:
        _try(f"writing the report {path}", lambda: write_report(event, path), problems)


def _try(what: str, action: Callable[[], object], problems: list[str]) -> None:
    try:
        action()
    except (OSError, ValueError) as error:  # ValueError: an invalid path ("", or one with a NUL)
        problems.append(f"{what} failed: {error}")
        EventLog(logger)("finishing_failed", level=logging.ERROR, exc=error, what=what)
