"""``compile_flow``: a pipeline as one long-running Prefect flow.

The flow runs the graph exactly as ``run_pipeline`` does without Prefect. Reports to Prefect travel on a thread of their own
(``reporting``). At the end, the outcome is first written to disk and then reported. An unreachable server is waited for, for
a bounded time; what it has not received then is reported at the next start, or by ``recovery.reconcile_run``.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from prefect import Flow
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from pydantic import BaseModel

from orchestrator_adapter.prefect_flow.client.internals import (
    ENGINE_ABORTED,
    bound_event_queue,
    exit_without_state,
    ignore_suspension,
)
from orchestrator_adapter.prefect_flow.client.retries import retries_left, withdraw_retries
from orchestrator_adapter.prefect_flow.options import Reporting
from orchestrator_adapter.prefect_flow.pipeline_flow import PARAMETER, PipelineFlow, default_of
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from orchestrator_adapter.prefect_flow.reporting.links import RunPageLinks
from orchestrator_adapter.prefect_flow.reporting.reporter import Reporter
from orchestrator_adapter.prefect_flow.reporting.run_record_file import RunRecordFile
from orchestrator_adapter.prefect_flow.states import flow_state
from orchestrator_adapter.prefect_flow.workers import TaskRunnerLauncher
from orchestrator_adapter.primitives.errors import OrchestratorError
from orchestrator_adapter.primitives.gc_freeze import frozen_heap
from orchestrator_adapter.process.ending import end_process
from orchestrator_adapter.process.pipeline import Pipeline, RunOutcome, run_pipeline
from orchestrator_adapter.process.report import ExitCode
from orchestrator_adapter.process.stop_requests import StopRequests
from orchestrator_adapter.runtime.built_graph import BuiltGraph
from orchestrator_adapter.supervision import events

Settings = TypeVar("Settings", bound=BaseModel)

_SAME_REQUEST_S = (
    1.0  # a Ctrl-C reaches the child of a worker twice: as the terminal's SIGINT and as the worker's SIGTERM
)

_FLOW_RUN_OF_PROCESS = "PREFECT__FLOW_RUN_ID"  # set by Prefect's workers and runners in the processes of flow runs
_ENGINE_EXIT_S = 60.0  # for Prefect's engine to record the state and to end

logger = logging.getLogger("orchestrator_adapter.prefect")


@dataclass
class _Caller:
    """Hands the outcome of the run to a caller in the same process; see ``run_flow``."""

    on_built: Callable[[BuiltGraph], object] | None
    on_forced_end: Callable[[RunOutcome], object] | None = None
    stop: StopRequests | None = None
    outcome: RunOutcome | None = None
    error: Exception | None = None  # why the run did not start; Prefect keeps only its message, in a state


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
    retries: int = 0,
    retry_delay: timedelta = timedelta(0),
) -> Flow[..., Any]:
    """Compile a pipeline into a flow with one parameter, ``settings``: the model, which the Prefect UI shows as a form.

    Assign the flow to a module-level name: ``prefect deploy``, ``flow.serve()`` and a direct call all accept it. ``reporting``
    says what is reported to Prefect beside the stream; ``run_name`` is Prefect's ``flow_run_name``, a template. The parameter
    is required if a field of the model is. Raises ``ValueError`` if the model's defaults are not valid.

    ``retries`` is how often a run that ended in ``BudgetExhausted``, or that did not start, is run again: in the same flow run
    and process, ``retry_delay`` later, with a new pipeline and new task runs. A bug, stragglers, a violated ledger, and a
    run that was asked to stop are not retried. Operators are restarted by their own policies, so the default is no retry,
    also if ``PREFECT_FLOWS_DEFAULT_RETRIES`` is set.

    The flow run ends *Completed* on ``AllOk`` and ``ShutDown`` (*Cancelled* if Prefect asked for it), *Failed* on
    ``BudgetExhausted``, stragglers and ledger violations, and *Crashed* on ``Panicked``. SIGTERM, SIGINT, a cancellation in
    the UI and ``prefect flow-run cancel`` each request the two-phase shutdown. A second signal starts its second phase, and
    ends the wait for an unreachable server.
    """

    async def run(settings: Settings) -> State[Any]:
        # ``flow.serve()`` pickles this function, with every global that it uses.
        return await _make_and_run(pipeline, reporting, settings, name)

    # Prefect reads the schema of the parameters from the signature, and the model is known only here.
    parameter = inspect.Parameter(
        PARAMETER, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default_of(settings, name), annotation=settings
    )
    run.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined] # functions may carry one (PEP 362)
    run.__annotations__ = {PARAMETER: settings}
    run.__name__ = run.__qualname__ = name.replace("-", "_")
    run.__doc__ = description
    flow = PipelineFlow(
        run,
        name=name,
        description=description,
        version=version,
        flow_run_name=run_name,
        validate_parameters=True,
        persist_result=False,
        retries=retries,
        retry_delay_seconds=retry_delay.total_seconds(),
    )
    flow.settings_model = settings
    return flow


async def run_flow(
    flow: Flow[..., Any],
    settings: BaseModel,
    *,
    on_built: Callable[[BuiltGraph], object] | None = None,
    on_forced_end: Callable[[RunOutcome], object] | None = None,
    stop: StopRequests | None = None,
) -> RunOutcome:
    """Run a compiled flow in this process and return its ``RunOutcome``, independent of the state that Prefect records.

    It needs a Prefect API at the start, and not after that. ``on_built`` is called with the built graph before the graph
    starts. ``stop`` has the requests to stop that were made before the flow's body listens to signals itself;
    ``on_forced_end`` is called if the process is ended because the loop does not turn (see ``run_pipeline``).

    If the run does not start, the original exception is raised: an API that cannot be reached, an invalid graph, a
    port in use.
    """
    caller = _Caller(on_built, on_forced_end, stop)
    token = _caller.set(caller)
    state: State[Any] | None = None
    try:
        # Prefect's overloads do not express that a flow of a coroutine function is awaitable.
        call: Any = flow(settings=settings, return_state=True)
        state = await call
    except ENGINE_ABORTED as aborted:
        if caller.outcome is None:
            raise RuntimeError(f"flow {flow.name!r} did not run: {aborted}") from aborted
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


async def _make_and_run(
    pipeline: Callable[[Settings], Pipeline],
    reporting: Callable[[Settings], Reporting] | None,
    settings: Settings,
    flow_name: str,
) -> State[Any]:
    try:
        made, options = pipeline(settings), reporting(settings) if reporting is not None else Reporting()
    except Exception as error:  # as when the run does not start
        if (caller := _caller.get()) is not None:
            caller.error = error
        raise
    return await _run(made, options, flow_name)


async def _run(pipeline: Pipeline, options: Reporting, flow_name: str) -> State[Any]:
    """The flow's body."""
    caller = _caller.get() or _Caller(None)
    caller.outcome = caller.error = None  # of an earlier attempt in this process
    identity = _identity(pipeline.graph.name, flow_name)
    bound_event_queue(options.queue)
    ignore_suspension()
    requests = _StopRequests(earlier=caller.stop.reasons if caller.stop is not None else ())
    reporter = Reporter(
        identity,
        pipeline.graph,
        options,
        on_cancel=requests.cancelled,
        on_cancel_noticed=requests.noticed,
        notices=pipeline.notices,
    )
    record_file = RunRecordFile(identity, options.directory)
    for bulkhead in pipeline.bulkheads:
        bulkhead.launch_with(TaskRunnerLauncher())

    def built(graph: BuiltGraph) -> None:
        record_file.open()
        requests.reporter = reporter
        reporter.start(graph)
        if caller.on_built is not None:
            caller.on_built(graph)

    def forced_end(outcome: RunOutcome) -> None:
        record_file.record_outcome(flow_state(outcome, cancelled=requests.by_prefect), int(outcome.exit_code))
        if caller.on_forced_end is not None:
            caller.on_forced_end(outcome)

    with requests.listen(), record_file.claimed(pipeline.graph.name), frozen_heap():
        try:
            outcome = await run_pipeline(
                pipeline,
                hooks=reporter.hooks(),
                on_built=built,
                run_label=identity.label,
                run_id=str(identity.flow_run_id),
                task_run_id=lambda operator, instance: str(identity.task_run_id(operator, instance)),
                links=RunPageLinks(identity),
                stop=requests,
                on_forced_end=forced_end,
            )
        except BaseException as error:
            reporter.abandon()
            if isinstance(error, Exception):  # not a cancellation: the run did not start, which Prefect itself records
                caller.error = error
                record_file.discard()
                if requests.reasons and retries_left():
                    await withdraw_retries()
            raise
        caller.outcome = outcome
        requests.graph_ended = True
        record_file.record_outcome(flow_state(outcome, cancelled=requests.by_prefect), int(outcome.exit_code))
        asked = isinstance(outcome.event, events.ShutDown)
        delivered = await reporter.finish(outcome, options.patience_when_stopped if asked else options.patience)
        state = flow_state(outcome, cancelled=requests.by_prefect or delivered.cancelled)
        record_file.record_outcome(state, int(outcome.exit_code))
        record_file.write_undelivered(delivered.undelivered)
    _end_own_process(outcome, identity)
    if not delivered.api_answers:
        exit_without_state(
            "Prefect does not answer: how the run ended is on disk and is reported at the next start"
            if options.directory is not None
            else "Prefect does not answer, and no folder is configured that could keep how the run ended"
        )
    if state.is_failed() and retries_left():
        if outcome.exit_code is ExitCode.BUDGET_EXHAUSTED and not (requests.reasons or delivered.cancelled):
            raise PipelineFailed(state.message)  # Prefect's engine retries a flow that raises, and only that
        await withdraw_retries()
    return state


def _end_own_process(outcome: RunOutcome, identity: RunIdentity) -> None:
    """See that the process of a worker's or runner's flow run ends, although an operator of the run does not.

    asyncio and Python wait for tasks and threads at their exit, and the worker for the process. In any other process its owner
    decides.
    """
    made_for_this_run = os.environ.get(_FLOW_RUN_OF_PROCESS) == str(identity.flow_run_id)
    if made_for_this_run and outcome.event.figures.stragglers:
        end_process(outcome.exit_code, within_s=_ENGINE_EXIT_S)


class PipelineFailed(OrchestratorError):
    """The pipeline failed and is run again, as a retry of the flow run."""


def _identity(pipeline: str, flow_name: str) -> RunIdentity:
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        raise RuntimeError("a compiled flow's function was called outside a flow run; call the flow, or run_pipeline")
    return RunIdentity.of(context.flow_run, pipeline=pipeline, flow_name=flow_name)


class _StopRequests(StopRequests):
    """The requests to stop the run: by signals, and by Prefect through the state of the flow run.

    Under a worker, a cancellation arrives twice: as a state and as the worker's SIGTERM. Together they are one request. Two
    signals are two requests, except two different ones within a second: a terminal's Ctrl-C, and the worker passing it on.

    Attributes:
        by_prefect: Prefect has asked.
        graph_ended: The graph has ended. A signal now ends the wait for Prefect.
        reporter: Reports to Prefect, once the graph is built.
    """

    def __init__(self, *, earlier: Sequence[str] = ()) -> None:
        super().__init__()
        self.by_prefect = False
        self.graph_ended = False
        self.reporter: Reporter | None = None
        self._signals: list[tuple[float, str]] = []
        for reason in earlier:
            self.signalled(reason)

    def cancelled(self, reason: str) -> None:
        """The flow run is being cancelled in Prefect."""
        self.by_prefect = True
        if not self._signals:
            self.request(reason)

    def signalled(self, name: str) -> None:
        """The process received a signal."""
        now = asyncio.get_running_loop().time()
        again = any(earlier == name or now - at > _SAME_REQUEST_S for at, earlier in self._signals)
        first = not self._signals
        self._signals.append((now, name))
        if self.graph_ended:
            if self.reporter is not None:
                self.reporter.stop_waiting()
        elif again or (first and not self.by_prefect):
            self.request(name)
