"""``compile_flow``: a pipeline as one long-running Prefect flow.

The data plane never touches Prefect. The flow runs the graph exactly as ``pipeline.run_pipeline`` does without it; all that
Prefect learns hangs on the supervision hooks and travels on a thread of its own (``link``). At the end the outcome is on disk
first, then Prefect is told, and a server that is away is waited for a bounded time only: what it does not know then, the next
start (or ``reconcile_run``) tells it.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from pydantic import BaseModel

from orchestrator_adapter.prefect_flow.client.internals import ENGINE_ABORTED, bound_event_queue, exit_without_state
from orchestrator_adapter.prefect_flow.options import Reporting
from orchestrator_adapter.prefect_flow.recovery.records import RunRecord, RunRecords
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from orchestrator_adapter.prefect_flow.reporting.reporter import DeliveryReport, Reporter
from orchestrator_adapter.prefect_flow.states import flow_state
from orchestrator_adapter.prefect_flow.workers import TaskRunnerLauncher
from orchestrator_adapter.primitives.gc_freeze import frozen_heap
from orchestrator_adapter.process.pipeline import Pipeline, RunOutcome, run_pipeline
from orchestrator_adapter.process.signals import stop_on_signals
from orchestrator_adapter.runtime.built_graph import BuiltGraph
from orchestrator_adapter.storage.claims import Owner, claim
from orchestrator_adapter.supervision import events

Settings = TypeVar("Settings", bound=BaseModel)

_SAME_REQUEST_S = 1.0  # a terminal's Ctrl-C reaches a worker's child twice: as SIGINT, and as the worker's SIGTERM

logger = logging.getLogger("orchestrator_adapter.prefect")


@dataclass
class _Caller:
    """What a caller in the same process wants to know of the run; see ``run_flow``."""

    on_built: Callable[[BuiltGraph], object] | None
    outcome: RunOutcome | None = None
    error: Exception | None = None  # what kept the run from coming about; Prefect makes a state's message of it


_caller: ContextVar[_Caller | None] = ContextVar("orchestrator_caller", default=None)


def compile_flow(
    name: str,
    settings: type[Settings],
    pipeline: Callable[[Settings], Pipeline],
    *,
    description: str,
    version: str | None = None,
    reporting: Callable[[Settings], Reporting] | None = None,
    run_name: str | None = None,
) -> Flow[..., Any]:
    """A flow whose one parameter, ``settings``, is the model (the Prefect UI shows it as a form).

    Assign it to a module-level name: ``prefect deploy``, ``flow.serve()`` and a direct call all accept it. ``reporting`` says
    what Prefect is told beside the stream; ``run_name`` is Prefect's ``flow_run_name``, a template.

    The flow run ends *Completed* on ``AllOk`` and ``ShutDown`` (*Cancelled* where it was Prefect that asked), *Failed* on
    ``BudgetExhausted``, stragglers and ledger violations, and *Crashed* on ``Panicked``. SIGTERM, SIGINT, a cancellation in
    the UI and ``prefect flow-run cancel`` each ask for the two-phase shutdown; a second signal goes to its second phase,
    and ends the waiting for a server that is away.
    """

    async def run(settings: Settings) -> State[Any]:
        return await _run(pipeline(settings), reporting(settings) if reporting is not None else Reporting(), name)

    # Prefect reads the parameters' schema from the signature, and the model is known only now.
    parameter = inspect.Parameter(
        "settings", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=settings(), annotation=settings
    )
    run.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined] # functions may carry one (PEP 362)
    run.__annotations__ = {"settings": settings}
    run.__name__ = run.__qualname__ = name.replace("-", "_")
    run.__doc__ = description
    return Flow(
        run,
        name=name,
        description=description,
        version=version,
        flow_run_name=run_name,
        validate_parameters=True,
        persist_result=False,
    )


async def run_flow(
    flow: Flow[..., Any], settings: BaseModel, *, on_built: Callable[[BuiltGraph], object] | None = None
) -> RunOutcome:
    """Run a compiled flow in this process and return the ``RunOutcome``, whatever Prefect makes of the state.

    Needs a Prefect API when it starts, and none from then on. ``on_built`` is given the built graph before it starts. Raises
    what kept the run from coming about, as it was raised: an API that cannot be reached, a graph that is not valid, a port
    that is taken.
    """
    caller = _Caller(on_built)
    token = _caller.set(caller)
    state: State[Any] | None = None
    try:
        # Prefect's overloads cannot tell that a flow of a coroutine function is awaitable.
        call: Any = flow(settings=settings, return_state=True)
        state = await call
    except ENGINE_ABORTED as left:
        if caller.outcome is None:
            raise RuntimeError(f"flow {flow.name!r} did not run: {left}") from left
    except Exception:
        if caller.outcome is None and caller.error is None:
            raise
        logger.exception("Prefect could not record how the run ended")
    finally:
        _caller.reset(token)
    if caller.outcome is None:
        if caller.error is not None:
            raise caller.error
        assert state is not None
        raise RuntimeError(f"flow {flow.name!r} did not run: {state.name}: {state.message}")
    return caller.outcome


async def _run(pipeline: Pipeline, options: Reporting, flow_name: str) -> State[Any]:
    """The flow's body."""
    caller = _caller.get() or _Caller(None)
    identity = _identity(pipeline.graph.name, flow_name)
    bound_event_queue(options.queue)
    requests = _StopRequests()
    link = Reporter(identity, pipeline.graph, options, on_cancel=requests.cancelled)
    record_file = RunRecordFile(identity, options.directory)
    for bulkhead in pipeline.bulkheads:
        bulkhead.launch_with(TaskRunnerLauncher())

    def built(graph: BuiltGraph) -> None:
        record_file.open()
        requests.attach(graph, link)
        link.start(graph)
        if caller.on_built is not None:
            caller.on_built(graph)

    with stop_on_signals(requests.signalled), record_file.claimed(pipeline.graph.name), frozen_heap():
        try:
            outcome = await run_pipeline(
                pipeline,
                hooks=link.hooks(),
                on_built=built,
                run_label=identity.label,
                run_id=str(identity.flow_run_id),
                handle_signals=False,
            )
        except BaseException as error:
            link.abandon()
            if isinstance(error, Exception):  # no cancellation: it did not come about, and Prefect says so itself
                caller.error = error
                record_file.discard()
            raise
        caller.outcome = outcome
        requests.ended = True
        record_file.record_outcome(flow_state(outcome, cancelled=requests.by_prefect), int(outcome.exit_code))
        asked = isinstance(outcome.event, events.ShutDown)
        telling = await link.finish(outcome, options.patience_when_stopped if asked else options.patience)
        state = flow_state(outcome, cancelled=requests.by_prefect or telling.cancelled)
        record_file.record_outcome(state, int(outcome.exit_code))
        record_file.keep(telling)
    if not telling.api_answers:
        exit_without_state(
            "Prefect does not answer: how the run ended is on disk, and is told at the next start"
            if options.directory is not None
            else "Prefect does not answer, and there is no folder to keep for it how the run ended"
        )
    return state


def _identity(pipeline: str, flow_name: str) -> RunIdentity:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("a compiled flow's function was called outside a flow run; call the flow, or run_pipeline")
    return RunIdentity.of(context.flow_run, pipeline=pipeline, flow_name=flow_name)


@dataclass
class _StopRequests:
    """Who has asked the run to stop: people and supervisors by signals, Prefect by the run's state.

    A cancellation under a worker comes twice, as a state and as the worker's SIGTERM: together they are one request. Two
    signals are two, unless they are different ones within a second (a terminal's Ctrl-C, and the worker that passes it on).

    Attributes:
        by_prefect: Prefect asked.
        ended: The graph has: from now on a signal is about the waiting for Prefect.
    """

    by_prefect: bool = False
    ended: bool = False
    _signals: list[tuple[float, str]] = field(default_factory=list)
    _graph: BuiltGraph | None = None
    _reporter: Reporter | None = None
    _before_start: list[str] = field(default_factory=list)

    def attach(self, graph: BuiltGraph, link: Reporter) -> None:
        self._graph, self._reporter = graph, link
        for reason in self._before_start:
            graph.request_shutdown(reason)

    def cancelled(self, reason: str) -> None:
        """Prefect's state of the run says so."""
        self.by_prefect = True
        if not self._signals:
            self._ask(reason)

    def signalled(self, name: str) -> None:
        """A signal has come."""
        now = asyncio.get_running_loop().time()
        again = any(earlier == name or now - at > _SAME_REQUEST_S for at, earlier in self._signals)
        first = not self._signals
        self._signals.append((now, name))
        if self.ended:
            if self._reporter is not None:
                self._reporter.stop_waiting()
        elif again or (first and not self.by_prefect):
            self._ask(name)

    def _ask(self, reason: str) -> None:
        if self._graph is None:
            self._before_start.append(reason)
        else:
            self._graph.request_shutdown(reason)


class RunRecordFile:
    """Keeps this run's record, if there is a folder for it. A disk that fails costs the record, not the run."""

    def __init__(self, identity: RunIdentity, directory: Path | None) -> None:
        self._identity = identity
        self._directory = directory
        self._record: RunRecord | None = None

    @contextmanager
    def claimed(self, pipeline: str) -> Iterator[None]:
        """The folder is this run's while inside. Raises ``OSError`` naming who has it."""
        if self._directory is None:
            yield
            return
        with claim((f"file://{self._directory.resolve()}",), Owner.this_process(pipeline, run=self._identity.label)):
            yield

    def open(self) -> None:
        """The run begins. Raises ``OSError``: a folder that cannot be written is better known now."""
        if self._directory is not None:
            self._record = RunRecord(
                flow_run_id=self._identity.flow_run_id,
                flow_run_name=self._identity.flow_run_name,
                pipeline=self._identity.pipeline,
                attempt=self._identity.attempt,
                pid=os.getpid(),
                started=datetime.now(UTC).isoformat(timespec="seconds"),
            )
            RunRecords(self._directory).write(self._record)

    def discard(self) -> None:
        """There was no run after all."""
        if self._directory is not None and self._record is not None:
            RunRecords(self._directory).delete(self._record)

    def record_outcome(self, state: State[Any], exit_code: int) -> None:
        """The run has ended, so."""
        if self._directory is not None and self._record is not None:
            try:
                self._record = RunRecords(self._directory).record_outcome(
                    self._record, state_type=state.type.value, message=state.message or "", exit_code=exit_code
                )
            except OSError:
                logger.exception("how the run ended could not be written to %s", self._directory)

    def keep(self, telling: DeliveryReport) -> None:
        """Keep what Prefect was not told."""
        if self._directory is not None and self._record is not None and telling.undelivered:
            try:
                RunRecords(self._directory).write_undelivered(self._record, telling.undelivered)
            except OSError:
                logger.exception("what Prefect was not told could not be written to %s", self._directory)
            else:
                logger.warning(
                    "Prefect could not be told everything: %d events and log lines are kept in %s for the next start",
                    *(len(telling.undelivered), self._directory),
                )
