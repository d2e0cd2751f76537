"""Run a graph as a process should: with signals, a report on disk, and an exit code. No Prefect here.

``prefect_flow`` runs the very same thing inside a flow.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, AsyncExitStack, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from orchestrator_adapter.bulkhead import Bulkhead
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.primitives.clock import Clock, SystemClock
from orchestrator_adapter.primitives.event_log import EventLog, current_run, in_run, new_run_id
from orchestrator_adapter.primitives.gc_freeze import freeze_heap
from orchestrator_adapter.process.report import ExitCode, exit_code, write_report
from orchestrator_adapter.runtime.built_graph import BuiltGraph, SupervisionPolicy
from orchestrator_adapter.storage.claims import Owner, claim
from orchestrator_adapter.storage.dead_letter import DeadLetterStore
from orchestrator_adapter.supervision.events import SupervisionHooks, SupervisorEvent

logger = logging.getLogger("orchestrator_adapter.pipeline")

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@dataclass(frozen=True)
class Pipeline:
    """A graph with what it needs to run as a process.

    Attributes:
        graph: What runs.
        policy: How it stops.
        dead_letters: Makes the store, once, when the run begins; ``None`` for a bounded list in memory.
        report: Where the report goes; ``None`` for nowhere.
        clock: Time; the machine's if ``None``.
        rng: The random source of jitter; a fresh one if ``None``.
        control_plane: Where it is asked for its health and its figures while it runs and drains; ``None`` for nowhere.
        claims: What no other run on this machine may have meanwhile, each in one form (see ``claims``); empty for nothing.
        preparations: What must have succeeded before anything starts, one after another: loading what no operator can be
            without, say. What one raises is raised by the run, which has then opened nothing.
        bulkheads: Worker processes that its operators call: started before the graph, stopped when that has ended.
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
    """How a pipeline ended. ``problems`` are what went wrong in telling it; they change nothing of what happened."""

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
    """Build, run to the end and settle: the outcome is on disk when this returns, or raises after the run has ended.

    SIGTERM and SIGINT ask for the two-phase shutdown, a second one goes to its second phase; both are handled as before
    when this returns; ``handle_signals=False`` leaves them to the caller. ``run_id`` is the ``run`` of its log lines (the
    flow run's id under Prefect); one is made if it is empty. ``on_built`` is given the built graph before it starts (for progress, say). Raises ``GraphError``
    before anything has been opened, and ``OSError`` if another run has what this one claims (it is told of this one by
    ``run_label``, if it has a name elsewhere), a bulkhead cannot start, the dead-letter store cannot be opened or the control
    plane cannot listen; and whatever a preparation raises.
    Cancelled, the run drains and is reported as it would be otherwise, and then the cancellation is passed on.
    """
    pipeline.graph.validate()
    problems: list[str] = []
    run_id = run_id or current_run() or new_run_id(pipeline.graph.name, pipeline.clock or SystemClock())
    async with AsyncExitStack() as before_and_after:
        before_and_after.enter_context(in_run(run_id))
        before_and_after.enter_context(claim(pipeline.claims, Owner.this_process(pipeline.graph.name, run=run_label)))
        for prepare in pipeline.preparations:
            await prepare()
        freeze_heap()
        for bulkhead in pipeline.bulkheads:
            await before_and_after.enter_async_context(bulkhead)
        until_the_end = before_and_after.enter_context(ExitStack())
        dead_letters = pipeline.dead_letters() if pipeline.dead_letters is not None else None
        try:
            built = pipeline.graph.build(clock=pipeline.clock, rng=pipeline.rng, dead_letters=dead_letters)
            until_the_end.enter_context(_served(built, pipeline.control_plane))
            if on_built is not None:
                on_built(built)
        except BaseException:
            if dead_letters is not None:
                _attempt("closing the dead-letter store", dead_letters.close, problems)
            raise
        if handle_signals:
            until_the_end.enter_context(
                stop_on_signals(built.request_shutdown)
            )  # an impatient one may not cost the report
        try:
            event = await built.run(pipeline.policy, hooks=hooks)
        finally:
            if dead_letters is not None:
                _attempt("closing the dead-letter store", dead_letters.close, problems)
            if pipeline.report is not None:
                _report(built, pipeline.report, problems)
    return RunOutcome(event, exit_code(event), tuple(problems))


def _served(built: BuiltGraph, control_plane: ControlPlane | None) -> AbstractContextManager[object]:
    if control_plane is None:
        return nullcontext()
    # A web server takes a tenth of a second to import, and nothing else here needs it.
    from orchestrator_adapter.control_plane.server import ControlPlaneServer  # noqa: PLC0415

    return ControlPlaneServer(built, control_plane)


@contextmanager
def stop_on_signals(request: Callable[[str], object]) -> Iterator[None]:
    """While inside, SIGTERM and SIGINT call ``request`` with their names; afterwards whoever handled them does so again.

    Outside the main thread, where Python cannot handle signals, it does nothing.
    """
    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Callable[[int, FrameType | None], object] | int | None] = {}
    for number in _SIGNALS:
        previous = signal.getsignal(number)
        try:
            loop.add_signal_handler(number, request, number.name)
        except (ValueError, RuntimeError):
            break  # not the main thread: whoever runs us there must call request_shutdown
        before[number] = previous
    try:
        yield
    finally:
        for number, previous in before.items():
            loop.remove_signal_handler(number)
            if previous is not None:
                signal.signal(number, previous)


def _report(built: BuiltGraph, path: Path, problems: list[str]) -> None:
    if (event := built.event) is not None:
        _attempt(f"writing the report {path}", lambda: write_report(event, path), problems)


def _attempt(what: str, action: Callable[[], object], problems: list[str]) -> None:
    try:
        action()
    except (OSError, ValueError) as error:  # the latter: a path that is none ("", or with a NUL)
        problems.append(f"{what} failed: {error}")
        EventLog(logger)("settling_failed", level=logging.ERROR, exc=error, what=what)
