"""``compile_flow``: a pipeline as one long-running Prefect flow.

The data plane never touches Prefect. The flow runs the graph exactly as ``pipeline.run_pipeline`` does without it; all
that Prefect sees hangs on the supervision hooks. Each operator instance gets a task run, started by a direct call on the
flow's own loop (``.submit()`` would give it a thread and a loop of its own), whose body does nothing but wait for the
instance's ``TaskExit`` and then *returns* the state which that exit deserves. No exception reaches Prefect's engine
undecided, and an engine that is slow, or that cannot reach its server, delays nobody but itself.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar, assert_never

from prefect import Flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Cancelled, Completed, Crashed, Failed
from pydantic import BaseModel

from orchestrator_adapter import task_exit
from orchestrator_adapter.decision_log import logger as decision_logger
from orchestrator_adapter.events import Exited, Spawned, SupervisionHooks
from orchestrator_adapter.pipeline import Outcome, Pipeline, run_pipeline
from orchestrator_adapter.report import ExitCode, cause
from orchestrator_adapter.runtime import BuiltGraph
from orchestrator_adapter.task_exit import TaskExit

Settings = TypeVar("Settings", bound=BaseModel)

REPORTING_GRACE = timedelta(seconds=10)
"""How long the flow waits at its end for task runs to be told to Prefect. The outcome is on disk before."""

logger = logging.getLogger("orchestrator_adapter.prefect")


@dataclass
class _Caller:
    """What a caller in the same process wants to know of the run; see ``run_flow``."""

    on_built: Callable[[BuiltGraph], object] | None
    outcome: Outcome | None = None
    error: Exception | None = None  # what kept the run from coming about; Prefect makes a state's message of it


_caller: ContextVar[_Caller | None] = ContextVar("orchestrator_caller", default=None)


def compile_flow(
    name: str,
    settings: type[Settings],
    pipeline: Callable[[Settings], Pipeline],
    *,
    description: str,
    version: str | None = None,
) -> Flow[..., Any]:
    """A flow whose one parameter, ``settings``, is the model (the Prefect UI shows it as a form).

    Assign it to a module-level name: ``prefect deploy``, ``flow.serve()`` and a direct call all accept it. The flow run
    ends *Completed* on ``AllOk`` and ``ShutDown``, *Failed* on ``BudgetExhausted``, stragglers and ledger violations, and
    *Crashed* on ``Panicked``.
    """

    async def run(settings: Settings) -> State[Any]:
        caller = _caller.get()
        reporter = _Reporter()
        with _decisions_in_run_log():
            try:
                outcome = await run_pipeline(
                    pipeline(settings), hooks=reporter.hooks(), on_built=caller.on_built if caller is not None else None
                )
            except Exception as error:
                if caller is not None:
                    caller.error = error
                raise
            if caller is not None:
                caller.outcome = outcome
            await reporter.finish()
        return flow_state(outcome)

    # Prefect reads the parameters' schema from the signature, and the model is known only now.
    parameter = inspect.Parameter(
        "settings", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=settings(), annotation=settings
    )
    run.__signature__ = inspect.Signature([parameter])  # type: ignore[attr-defined] # functions may carry one (PEP 362)
    run.__annotations__ = {"settings": settings}
    run.__name__ = run.__qualname__ = name.replace("-", "_")
    run.__doc__ = description
    return Flow(
        run, name=name, description=description, version=version, validate_parameters=True, persist_result=False
    )


async def run_flow(
    flow: Flow[..., Any], settings: BaseModel, *, on_built: Callable[[BuiltGraph], object] | None = None
) -> Outcome:
    """Run a compiled flow in this process and return the ``Outcome``, whatever Prefect makes of the state.

    Needs a Prefect API. ``on_built`` is given the built graph before it starts. Raises what kept the run from coming
    about, as it was raised: an API that cannot be reached, a graph that is not valid, a port that is taken.
    """
    caller = _Caller(on_built)
    token = _caller.set(caller)
    try:
        # Prefect's overloads cannot tell that a flow of a coroutine function is awaitable.
        call: Any = flow(settings=settings, return_state=True)
        state: State[Any] = await call
    except Exception:
        if caller.outcome is None and caller.error is None:
            raise
        logger.exception("Prefect could not record how the run ended")
    finally:
        _caller.reset(token)
    if caller.outcome is None:
        if caller.error is not None:
            raise caller.error
        raise RuntimeError(f"flow {flow.name!r} did not run: {state.name}: {state.message}")
    return caller.outcome


def flow_state(outcome: Outcome) -> State[Any]:
    """The state in which a flow run with this outcome ends."""
    event = outcome.event
    message = f"{type(event).__name__}{f': {why}' if (why := cause(event)) else ''}; {event.figures.ledger}"
    match outcome.exit_code:
        case ExitCode.OK:
            return Completed(message=message)
        case ExitCode.PANICKED:
            return Crashed(message=message)
        case _:
            return Failed(message=f"{outcome.exit_code.name}: {message}")


def task_state(exit_: TaskExit) -> State[Any]:
    """The state in which an operator's task run ends."""
    match exit_:
        case task_exit.Ok():
            return Completed(message="end of stream")
        case task_exit.Errored(error):
            return Failed(message=" <- ".join(task_exit.cause_chain(error)))
        case task_exit.Panicked(message, trace):
            return Crashed(message=f"{message}\n{trace}")
        case task_exit.Aborted(reason):
            return Cancelled(message=reason)
        case _:
            assert_never(exit_)


@task(persist_result=False, cache_policy=NO_CACHE)
async def operator(ended: asyncio.Future[TaskExit]) -> State[Any]:
    """One operator instance, as Prefect sees it: *Running* until it has ended."""
    return task_state(await ended)


@dataclass
class _Reporter:
    """Tells Prefect of operator instances, beside the data plane. Nothing it does can fail the run."""

    _ended: dict[tuple[str, int], asyncio.Future[TaskExit]] = field(default_factory=dict)
    _telling: set[asyncio.Task[None]] = field(default_factory=set)

    def hooks(self) -> SupervisionHooks:
        return SupervisionHooks(on_spawn=self._spawned, on_exit=self._exited)

    async def finish(self) -> None:
        """Wait, bounded, until everything is told. An instance that never ended (a straggler) is told as such."""
        for (name, instance), ended in self._ended.items():
            if not ended.done():
                error = RuntimeError(f"{name} #{instance} was asked to stop and did not")
                ended.set_result(task_exit.classify(error))
        if not self._telling:
            return
        _, late = await asyncio.wait(self._telling, timeout=REPORTING_GRACE.total_seconds())
        for telling in late:
            telling.cancel()
        if late:
            logger.warning("%d task runs could not be told to Prefect within %s", len(late), REPORTING_GRACE)
            await asyncio.wait(late)

    def _spawned(self, record: Spawned) -> None:
        ended: asyncio.Future[TaskExit] = asyncio.get_running_loop().create_future()
        self._ended[record.operator, record.instance] = ended
        telling = asyncio.get_running_loop().create_task(_tell_task_run(record, ended))
        self._telling.add(telling)
        telling.add_done_callback(self._telling.discard)

    def _exited(self, record: Exited) -> None:
        self._ended.pop((record.operator, record.instance)).set_result(record.exit)


async def _tell_task_run(record: Spawned, ended: asyncio.Future[TaskExit]) -> None:
    run_name = record.operator if record.instance == 1 else f"{record.operator} #{record.instance}"
    named = operator.with_options(name=f"{record.role}: {record.operator}", task_run_name=run_name)
    try:
        call: Any = named(ended, return_state=True)  # as in run_flow
        await call
    except Exception:
        logger.exception("Prefect does not know of %s; the operator runs on without it", run_name)


class _ToRunLog(logging.Handler):
    """Forwards the supervisor's decisions to the flow run's log. A line a decision, never one an item."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self._run_logger = get_run_logger()

    def emit(self, record: logging.LogRecord) -> None:
        self._run_logger.log(record.levelno, record.getMessage())


@contextmanager
def _decisions_in_run_log() -> Iterator[None]:
    handler = _ToRunLog()
    decision_logger.addHandler(handler)
    try:
        yield
    finally:
        decision_logger.removeHandler(handler)
