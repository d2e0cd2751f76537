"""``Shutdown`` alone: requests and times in, phases out."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_adapter import SupervisionPolicy
from orchestrator_adapter.runtime.shutdown import Phase, Shutdown

GRACE_S, PATIENCE_S = 5.0, 1.0


def requested_at(*times: float) -> Shutdown:
    shutdown = Shutdown()
    for now in times:
        shutdown = shutdown.request(f"request at {now:g}", now, grace_s=GRACE_S)
    return shutdown


def test_without_a_request_no_phase_follows() -> None:
    """A running graph has no deadline, and time alone never stops it."""
    assert Shutdown().next_deadline is None
    assert Shutdown().advance(1e9, patience_s=PATIENCE_S) == Shutdown()
    assert Shutdown().stopped_because is None


def test_the_first_request_starts_the_drain_and_the_grace_period() -> None:
    """The reason and the deadline are those of the first request."""
    shutdown = requested_at(10.0)
    assert (shutdown.phase, shutdown.next_deadline) == (Phase.DRAINING, 15.0)
    assert shutdown.reason == shutdown.stopped_because == "request at 10"


def test_a_phase_lasts_until_its_deadline() -> None:
    """Grace, then patience, then no further phase."""
    shutdown = requested_at(10.0)
    assert shutdown.advance(14.999, patience_s=PATIENCE_S) is shutdown
    shutdown = shutdown.advance(15.0, patience_s=PATIENCE_S)
    assert (shutdown.phase, shutdown.next_deadline) == (Phase.ABORTING, 16.0)
    shutdown = shutdown.advance(16.5, patience_s=PATIENCE_S)
    assert (shutdown.phase, shutdown.next_deadline) == (Phase.ABANDONING, None)
    assert shutdown.advance(1e9, patience_s=PATIENCE_S) is shutdown


def test_a_late_turn_advances_one_phase_only() -> None:
    """What is aborted has its patience in full, however late the abort comes."""
    shutdown = requested_at(10.0).advance(100.0, patience_s=PATIENCE_S)
    assert (shutdown.phase, shutdown.next_deadline) == (Phase.ABORTING, 101.0)


def test_a_second_request_ends_the_grace_period_at_once() -> None:
    """The reason stays that of the first request."""
    shutdown = requested_at(10.0, 11.0)
    assert (shutdown.phase, shutdown.next_deadline) == (Phase.DRAINING, 11.0)
    assert shutdown.advance(11.0, patience_s=PATIENCE_S).phase is Phase.ABORTING
    assert shutdown.reason == "request at 10"


def test_the_first_request_during_a_teardown_lets_the_drain_go_on() -> None:
    """Only a second request ends the grace period of a drain that started by itself."""
    shutdown = Shutdown().drain("BudgetExhausted: op", 10.0, grace_s=GRACE_S)
    shutdown = shutdown.request("SIGTERM", 11.0, grace_s=GRACE_S)
    assert (shutdown.next_deadline, shutdown.reason) == (15.0, "BudgetExhausted: op")
    assert shutdown.request("SIGTERM", 12.0, grace_s=GRACE_S).next_deadline == 12.0


def test_a_drain_by_the_end_rule_is_not_a_stop() -> None:
    """A graph whose sinks are done has not been stopped, even if a request follows."""
    shutdown = Shutdown().drain("done: sink", 10.0, grace_s=GRACE_S, done=True)
    assert shutdown.stopped_because is None
    assert shutdown.request("SIGTERM", 11.0, grace_s=GRACE_S).stopped_because is None


def test_a_second_cause_of_the_drain_changes_nothing() -> None:
    """Neither a teardown nor the end rule restarts the grace period."""
    shutdown = requested_at(10.0)
    assert shutdown.drain("Panicked: op", 12.0, grace_s=GRACE_S) is shutdown
    assert shutdown.drain("done: sink", 12.0, grace_s=GRACE_S, done=True) is shutdown


@given(st.lists(st.tuples(st.sampled_from(["request", "drain", "advance"]), st.floats(0, 3)), max_size=20))
def test_the_phase_never_goes_back_and_never_skips(steps: list[tuple[str, float]]) -> None:
    """After any requests, drains and turns: each step advances by one phase at most, and a deadline is never missing."""
    now, history = 0.0, [Shutdown()]
    for what, wait_s in steps:
        now += wait_s
        last = history[-1]
        match what:
            case "request":
                history.append(last.request("request", now, grace_s=GRACE_S))
            case "drain":
                history.append(last.drain("drain", now, grace_s=GRACE_S))
            case _:
                history.append(last.advance(now, patience_s=PATIENCE_S))
    assert all(0 <= after.phase - before.phase <= 1 for before, after in pairwise(history))
    assert all((state.next_deadline is None) is (state.phase in {Phase.RUNNING, Phase.ABANDONING}) for state in history)


@pytest.mark.parametrize(
    ("field", "value", "bounds"),
    [
        ("grace", timedelta(seconds=-1), "a timedelta >= 0"),
        ("grace", 5, "a timedelta >= 0"),
        ("patience", timedelta(seconds=-1), "a timedelta >= 0"),
        ("loop_stall", timedelta(0), "a timedelta > 0, or None"),
        ("loop_stall", 0, "a timedelta > 0, or None"),
        ("done_when", "sink", "a set of the names of sinks"),
    ],
)
def test_a_supervision_policy_out_of_bounds_is_rejected_when_it_is_made(field: str, value: Any, bounds: str) -> None:
    """Before a graph is built or started. A number of seconds is no duration, and a name is no set of names."""
    with pytest.raises(ValueError, match="SupervisionPolicy") as raised:
        SupervisionPolicy(**{field: value})
    assert str(raised.value) == f"SupervisionPolicy: {field} must be {bounds}, got {value!r}"


def test_durations_of_zero_are_within_bounds() -> None:
    """No grace: a request to stop aborts at once. No patience: what does not stop at once is a straggler."""
    SupervisionPolicy(grace=timedelta(0), patience=timedelta(0))
