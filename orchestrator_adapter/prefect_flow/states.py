"""Maps outcomes and exits to Prefect states, and states that others set to reactions. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias, assert_never

from prefect.client.schemas.objects import State, StateType
from prefect.states import Cancelled, Completed, Crashed, Failed

from orchestrator_adapter.prefect_flow.client.text import storable
from orchestrator_adapter.primitives.errors import cause_chain
from orchestrator_adapter.process.pipeline import RunOutcome
from orchestrator_adapter.process.report import ExitCode, cause
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.supervision.task_exit import TaskExit


def flow_state(outcome: RunOutcome, *, cancelled: bool = False) -> State[Any]:
    """The final state of a flow run with this outcome. ``cancelled``: Prefect asked the run to stop."""
    event = outcome.event
    message = storable(f"{event.name}{f': {why}' if (why := cause(event)) else ''}; {event.figures.ledger}")
    match outcome.exit_code:
        case ExitCode.OK if cancelled and isinstance(event, events.ShutDown):
            return Cancelled(message=message)
        case ExitCode.OK:
            return Completed(message=message)
        case ExitCode.PANICKED:
            return Crashed(message=message)
        case _:
            return Failed(message=f"{outcome.exit_code.name}: {message}")


def task_state(exit_: TaskExit) -> State[Any]:
    """The final state of an operator's task run."""
    match exit_:
        case task_exit.Ok():
            return Completed(message="end of stream")
        case task_exit.Errored(error):
            return Failed(message=storable(" <- ".join(cause_chain(error))))
        case task_exit.Panicked(message, trace):
            return Crashed(message=storable(f"{message}\n{trace}"))
        case task_exit.Aborted(reason):
            return Cancelled(message=storable(reason))
        case _:
            assert_never(exit_)


@dataclass(frozen=True, slots=True)
class KeepRunning:
    """The state is right."""


@dataclass(frozen=True, slots=True)
class StopRun:
    """The state asks the run to stop."""

    reason: str


@dataclass(frozen=True, slots=True)
class SetBack:
    """The state is wrong: set it back to Running with this ``message``, and log ``why``."""

    message: str
    why: str


Reaction: TypeAlias = KeepRunning | StopRun | SetBack


def reaction_to(state: State[Any]) -> Reaction:
    """What follows when the flow run of a pipeline that is alive is found in ``state``."""
    name = state.name or state.type.value.capitalize()
    match state.type:
        case StateType.RUNNING:  # under any name
            return KeepRunning()
        case StateType.CANCELLING | StateType.CANCELLED:
            return StopRun(f"cancelled in Prefect: {state.message or name}")
        case StateType.PAUSED:
            message = "a stream cannot be paused, so it runs on; cancel the run to stop it"
        case StateType.SCHEDULED | StateType.PENDING | StateType.COMPLETED | StateType.FAILED | StateType.CRASHED:
            message = f"the run is alive, and {name} does not stop it; cancel the run to stop it"
        case _:
            assert_never(state.type)
    given = f" ({storable(state.message)})" if state.message else ""
    return SetBack(message, f"the run was set {name} in Prefect{given} and is set Running again: {message}")
