"""How a run has ended, in words for people."""

from __future__ import annotations

from typing import assert_never

from orchestrator_adapter.supervision import events


def ending_of(event: events.SupervisorEvent | None) -> tuple[str, str]:
    """The name of the event, and a sentence. The name is empty if the run has not ended."""
    match event:
        case None:
            return "", "the control plane stops, and the run has not ended"
        case events.AllOk():
            text = "every operator has ended by itself"
        case events.ShutDown(_, reason):
            text = f"the run was asked to stop ({reason}) and has drained"
        case events.BudgetExhausted(_, operator, chain):
            text = f"operator {operator!r} failed more often than its restart policy admits: {chain[0]}"
        case events.GraphPanicked(_, operator, chain):
            text = f"operator {operator!r} failed with a bug: {chain[0]}"
        case _:
            assert_never(event)
    return event.name, text
