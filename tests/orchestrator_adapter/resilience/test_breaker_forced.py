"""``CircuitBreaker``: forcing, releasing, and listeners."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from orchestrator_adapter.resilience.breaker import (
    Permit,
    Rejection,
    StateChange,
)
from orchestrator_adapter.testing import ManualClock
from tests.helpers.breaker_calls import (
    CLOSED,
    HALF_OPEN,
    OPEN,
    S,
    archive,
    calls,
    changes_of,
    half_open,
    opened,
    permitted,
    rejected,
)

# Forced.


def test_forced_open_it_rejects_every_call_until_its_release() -> None:
    """Neither time nor outcomes change that; a rejection says to ask again after a cooldown."""
    clock = ManualClock()
    breaker = archive(clock)
    late = permitted(breaker)
    breaker.force_open("maintenance")
    for waited_s in (0, 29, 1, 86_400):
        clock.advance(waited_s)
        assert rejected(breaker) == Rejection("archive", OPEN, 30 * S)
    late.succeeded()
    assert breaker.statistics().forced
    breaker.release("done")
    assert not breaker.statistics().forced
    assert breaker.state is HALF_OPEN  # a probe decides
    probe = permitted(breaker)
    rejected(breaker)
    probe.succeeded()
    assert breaker.state is CLOSED


def test_forced_closed_it_admits_every_call() -> None:
    """A hundred failures do not open it, and do not count after its release."""
    breaker = archive(ManualClock())
    breaker.force_closed()
    calls(breaker, "F" * 100)
    running = permitted(breaker)
    assert breaker.state is CLOSED
    breaker.release()
    running.failed()  # it started while the breaker was forced
    assert breaker.statistics().calls == 0
    calls(breaker, "FFFF")
    assert breaker.state is CLOSED
    calls(breaker, "F")
    assert breaker.state is OPEN


@pytest.mark.parametrize("report", [Permit.failed, Permit.succeeded, Permit.release])
def test_a_probe_that_runs_while_it_is_forced_does_not_decide(report: Any) -> None:
    """Neither while the breaker is forced nor after its release."""
    breaker, probe = half_open(ManualClock())
    breaker.force_open()
    report(probe)
    assert breaker.state is OPEN
    breaker.release()
    assert breaker.state is HALF_OPEN

    breaker, probe = half_open(ManualClock())
    breaker.force_open()
    breaker.release()
    second = permitted(breaker)
    report(probe)
    assert breaker.state is HALF_OPEN
    rejected(breaker)
    second.succeeded()
    assert breaker.state is CLOSED


def test_releasing_a_breaker_that_is_not_forced_changes_nothing() -> None:
    """In every state it keeps its state, its history and its probe."""
    clock = ManualClock()
    breaker = archive(clock)
    changes = changes_of(breaker)
    calls(breaker, "FFFF")
    breaker.release()
    calls(breaker, "F")
    assert breaker.state is OPEN
    breaker.release()
    assert breaker.state is OPEN
    clock.advance(30)
    probe = permitted(breaker)
    breaker.release()
    rejected(breaker)
    probe.succeeded()
    assert [change.state for change in changes] == [OPEN, HALF_OPEN, CLOSED]


def test_it_can_be_forced_open_and_closed_from_every_state() -> None:
    """Each change is reported with the given reason."""
    clock = ManualClock()
    breaker, _ = half_open(clock)
    changes = changes_of(breaker)
    breaker.force_closed("trust it")
    breaker.force_open("do not")
    breaker.force_closed()
    breaker.release("as usual")
    assert changes == [
        StateChange("archive", HALF_OPEN, CLOSED, forced=True, reason="trust it"),
        StateChange("archive", CLOSED, OPEN, forced=True, reason="do not"),
        StateChange("archive", OPEN, CLOSED, forced=True, reason="by hand"),
        StateChange("archive", CLOSED, CLOSED, forced=False, reason="as usual"),
    ]


def test_forcing_it_twice_is_reported_once() -> None:
    """Listeners receive only changes."""
    breaker = archive(ManualClock())
    breaker.force_open()
    changes = changes_of(breaker)
    breaker.force_open()
    assert not changes
    breaker.force_closed()
    breaker.force_closed()
    assert len(changes) == 1


# Listeners.


def test_listeners_receive_one_frozen_record_for_each_change() -> None:
    """Each listener receives every change of a whole cycle."""
    clock = ManualClock()
    breaker = archive(clock)
    first, second = changes_of(breaker), changes_of(breaker)
    calls(breaker, "FFFFF")
    clock.advance(30)
    calls(breaker, "F")
    clock.advance(30)
    calls(breaker, "S")
    assert [(change.was, change.state) for change in first] == [
        (CLOSED, OPEN),
        (OPEN, HALF_OPEN),
        (HALF_OPEN, OPEN),
        (OPEN, HALF_OPEN),
        (HALF_OPEN, CLOSED),
    ]
    assert first == second
    assert first[1].reason == "30 s of cooldown are over: one probe decides"
    with pytest.raises(FrozenInstanceError):
        first[0].reason = "another"  # type: ignore[misc]


def test_a_listener_that_raises_changes_nothing_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """The breaker opens, and the later listeners are called."""
    breaker = archive(ManualClock())

    def broken(_: StateChange) -> None:
        raise KeyError("bug")

    breaker.on_change(broken)
    changes = changes_of(breaker)
    calls(breaker, "FFFFF")
    assert breaker.state is OPEN
    assert len(changes) == 1
    assert [record.getMessage() for record in caplog.records] == ["a hook failed; what it was called for goes on"]


def test_a_listener_may_force_it() -> None:
    """A listener forces it open at the change to half-open: the caller gets no probe."""
    clock = ManualClock()
    breaker = opened(clock)
    breaker.on_change(lambda change: breaker.force_open("not yet") if change.state is HALF_OPEN else None)
    clock.advance(30)
    assert rejected(breaker) == Rejection("archive", OPEN, 30 * S)
    assert breaker.statistics().forced


def test_a_listener_added_by_a_listener_receives_the_next_change() -> None:
    """It does not receive the current one."""
    breaker = archive(ManualClock())
    late: list[StateChange] = []
    breaker.on_change(lambda _: breaker.on_change(late.append))
    breaker.force_open()
    assert not late
    breaker.release()
    assert [change.state for change in late] == [HALF_OPEN]
