"""The Prefect state of each outcome and each exit."""

from __future__ import annotations

from typing import Any

import pytest
from prefect.client.schemas.objects import State, StateType
from prefect.states import (
    AwaitingRetry,
    Cancelled,
    Cancelling,
    Completed,
    Crashed,
    Failed,
    Late,
    Paused,
    Pending,
    Running,
    Scheduled,
    Suspended,
)

from orchestrator_adapter.prefect_flow.states import (
    KeepRunning,
    Reaction,
    SetBack,
    StopRun,
    flow_state,
    reaction_to,
    task_state,
)
from orchestrator_adapter.process.pipeline import RunOutcome
from orchestrator_adapter.process.report import ExitCode, exit_code
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.supervision.events import SupervisorEvent
from orchestrator_adapter.supervision.task_exit import TaskExit
from tests.helpers.figures import BALANCED, FIGURES, STUCK, UNBALANCED, VIOLATED, all_ok, exhausted, panicked, shut_down

CANNOT_PAUSE = "a stream cannot be paused, so it runs on; cancel the run to stop it"
CHAIN = "poll: OSError: down <- ValueError: no"


def outcome(event: SupervisorEvent, code: ExitCode | None = None) -> RunOutcome:
    return RunOutcome(event, exit_code(event) if code is None else code, ())


@pytest.mark.parametrize(
    ("event", "kind", "message"),
    [
        (all_ok(), StateType.COMPLETED, f"AllOk; {BALANCED}"),
        (shut_down(), StateType.COMPLETED, f"ShutDown: SIGTERM; {BALANCED}"),
        (exhausted(), StateType.FAILED, f"BUDGET_EXHAUSTED: BudgetExhausted: {CHAIN}; {BALANCED}"),
        (panicked(), StateType.CRASHED, f"Panicked: map: KeyError: 'x'; {BALANCED}"),
        (shut_down(STUCK), StateType.FAILED, f"STRAGGLERS: ShutDown: SIGTERM; {BALANCED}"),
        (panicked(STUCK), StateType.FAILED, f"STRAGGLERS: Panicked: map: KeyError: 'x'; {BALANCED}"),
        (all_ok(VIOLATED), StateType.FAILED, f"LEDGER_VIOLATION: AllOk; {BALANCED}"),
        (shut_down(UNBALANCED), StateType.FAILED, f"LEDGER_VIOLATION: ShutDown: SIGTERM; {UNBALANCED.ledger}"),
    ],
)
def test_a_flow_run_ends_as_its_exit_code_says(event: SupervisorEvent, kind: StateType, message: str) -> None:
    """The most severe condition gives the state. The message always has event, cause and ledger."""
    state = flow_state(outcome(event))
    assert (state.type, state.name, state.message) == (kind, kind.value.capitalize(), message)


@pytest.mark.parametrize("code", list(ExitCode))
def test_every_exit_code_has_a_final_state(code: ExitCode) -> None:
    """Also codes that a started run cannot have: they are Failed, with the code's name."""
    state = flow_state(outcome(all_ok(), code))
    assert state.is_final()
    expected = {ExitCode.OK: StateType.COMPLETED, ExitCode.PANICKED: StateType.CRASHED}
    assert state.type is expected.get(code, StateType.FAILED)


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (shut_down(), StateType.CANCELLED),
        (all_ok(), StateType.COMPLETED),
        (exhausted(), StateType.FAILED),
        (panicked(), StateType.CRASHED),
        (shut_down(STUCK), StateType.FAILED),
        (shut_down(UNBALANCED), StateType.FAILED),
    ],
)
def test_only_a_run_that_was_shut_down_and_drained_is_cancelled(event: SupervisorEvent, kind: StateType) -> None:
    """A cancelled run that had already ended, or that ended badly, has the state of its outcome."""
    assert flow_state(outcome(event), cancelled=True).type is kind


def chained() -> OSError:
    error = OSError("cable")
    error.__cause__ = ValueError("bent")
    return error


@pytest.mark.parametrize(
    ("exit_", "kind", "message"),
    [
        (task_exit.Ok(), StateType.COMPLETED, "end of stream"),
        (task_exit.Errored(chained()), StateType.FAILED, "OSError: cable <- ValueError: bent"),
        (
            task_exit.Panicked("KeyError: 'x'", "Traceback", KeyError("x")),
            StateType.CRASHED,
            "KeyError: 'x'\nTraceback",
        ),
        (task_exit.Aborted("SIGTERM"), StateType.CANCELLED, "SIGTERM"),
    ],
)
def test_a_task_run_ends_as_its_instance_did(exit_: TaskExit, kind: StateType, message: str) -> None:
    """The four exits give four states, each with its message."""
    state = task_state(exit_)
    assert (state.type, state.name, state.message) == (kind, kind.value.capitalize(), message)


def test_a_character_that_cannot_be_stored_is_replaced_in_a_message() -> None:
    """An exception's text may come from outside. A lone surrogate in it would fail every request that contains it."""
    exits: list[TaskExit] = [
        task_exit.Errored(OSError("\udcff")),
        task_exit.Panicked("", "\x00", KeyError()),
        task_exit.Aborted("\udcff"),
    ]
    found = [task_state(exit_) for exit_ in exits] + [flow_state(outcome(events.ShutDown(FIGURES, "\udcff")))]
    for state in found:
        assert "\N{REPLACEMENT CHARACTER}" in (state.message or "")
        assert state.message
        state.message.encode()


STATES: dict[str, State[Any]] = {
    "Resuming": Scheduled(name="Resuming"),
    "Late": Late(),
    "AwaitingRetry": AwaitingRetry(),
    "Pending": Pending(),
    "Failed": Failed(),
    "TimedOut": Failed(name="TimedOut"),
    "Completed": Completed(),
    "Crashed": Crashed(),
}


def alive(name: str) -> str:
    return f"the run is alive, and {name} does not stop it; cancel the run to stop it"


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (Running(), KeepRunning()),
        (Running(name="Custom"), KeepRunning()),
        (Cancelling(message="by hand"), StopRun("cancelled in Prefect: by hand")),
        (Cancelled(), StopRun("cancelled in Prefect: Cancelled")),
        (
            Suspended(message="tea"),
            SetBack(
                CANNOT_PAUSE, f"the run was set Suspended in Prefect (tea) and is set Running again: {CANNOT_PAUSE}"
            ),
        ),
        (
            Paused(),
            SetBack(CANNOT_PAUSE, f"the run was set Paused in Prefect and is set Running again: {CANNOT_PAUSE}"),
        ),
        *(
            (seen, SetBack(alive(name), f"the run was set {name} in Prefect and is set Running again: {alive(name)}"))
            for name, seen in STATES.items()
        ),
    ],
)
def test_only_a_cancellation_stops_a_live_run_and_any_other_state_than_running_is_set_back(
    state: State[Any], expected: Reaction
) -> None:
    """Prefect's client and its UI can set each of them; a run that is alive is shown as Running."""
    assert reaction_to(state) == expected
