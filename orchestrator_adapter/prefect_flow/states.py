"""Maps outcomes and exits to Prefect states. Pure functions."""

from __future__ import annotations

from typing import Any, assert_never

from prefect.client.schemas.objects import State
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
