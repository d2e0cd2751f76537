"""Tools for the tests of ``CircuitBreaker``: breakers in a given state, and calls with given outcomes."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from orchestrator_adapter.resilience.breaker import (
    BreakerState,
    CircuitBreaker,
    Permit,
    Rejection,
    StateChange,
)
from orchestrator_adapter.testing import ManualClock

CLOSED, OPEN, HALF_OPEN = BreakerState
S = timedelta(seconds=1)
MICROSECOND = timedelta(microseconds=1)


def archive(clock: ManualClock, **changes: Any) -> CircuitBreaker:
    return CircuitBreaker("archive", clock=clock, **changes)


def permitted(breaker: CircuitBreaker) -> Permit:
    answer = breaker.ask()
    assert isinstance(answer, Permit), answer
    return answer


def rejected(breaker: CircuitBreaker) -> Rejection:
    answer = breaker.ask()
    assert isinstance(answer, Rejection)
    return answer


def calls(breaker: CircuitBreaker, trace: str) -> None:
    """Consecutive calls: F fails, S succeeds, a dot has no outcome."""
    for letter in trace:
        {"F": Permit.failed, "S": Permit.succeeded, ".": Permit.release}[letter](permitted(breaker))


def opened(clock: ManualClock, **changes: Any) -> CircuitBreaker:
    breaker = archive(clock, **changes)
    calls(breaker, "FFFFF")
    assert breaker.state is OPEN
    return breaker


def half_open(clock: ManualClock, **changes: Any) -> tuple[CircuitBreaker, Permit]:
    """A half-open breaker, and its probe."""
    breaker = opened(clock, **changes)
    clock.advance(breaker.policy.cooldown.total_seconds())
    probe = permitted(breaker)
    assert breaker.state is HALF_OPEN
    return breaker, probe


def changes_of(breaker: CircuitBreaker) -> list[StateChange]:
    """The state changes from now on."""
    changes: list[StateChange] = []
    breaker.on_change(changes.append)
    return changes
