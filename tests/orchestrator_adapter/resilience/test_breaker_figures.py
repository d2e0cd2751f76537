"""``CircuitBreaker``: statistics, exact times, policies, and the breakers of a graph."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_adapter.primitives.event_log import DecisionLog
from orchestrator_adapter.resilience.breaker import (
    BreakerPolicy,
    Breakers,
    BreakerState,
    BreakerStatistics,
    CircuitBreaker,
    Permit,
    Rejection,
)
from orchestrator_adapter.testing import ManualClock
from tests.helpers.breaker_calls import (
    CLOSED,
    HALF_OPEN,
    MICROSECOND,
    OPEN,
    S,
    archive,
    calls,
    permitted,
    rejected,
)
from tests.helpers.log_lines import event_of

# Figures.


def test_the_statistics_count_calls_rejections_openings_and_time_open() -> None:
    """Time half-open is not time open. A breaker that is still open counts up to now."""
    clock = ManualClock()
    breaker = archive(clock)
    calls(breaker, "SSF")
    assert breaker.statistics() == statistics(calls=3, failures=1)
    clock.advance(10)
    calls(breaker, "FF")
    clock.advance(12)
    rejected(breaker)
    assert breaker.statistics() == statistics(state=OPEN, rejections=1, opened=1, open_s=12.0, probe_in_s=18.0)
    clock.advance(28)
    probe = permitted(breaker)
    clock.advance(5)
    rejected(breaker)
    assert breaker.statistics() == statistics(state=HALF_OPEN, rejections=2, opened=1, open_s=40.0)
    probe.failed()
    clock.advance(1)
    assert breaker.statistics() == statistics(state=OPEN, rejections=2, opened=2, open_s=41.0, probe_in_s=29.0)
    breaker.force_open()
    clock.advance(1)
    assert breaker.statistics() == statistics(state=OPEN, forced=True, rejections=2, opened=2, open_s=42.0)
    breaker.force_closed()
    clock.advance(100)
    assert breaker.statistics() == statistics(forced=True, rejections=2, opened=2, open_s=42.0)
    breaker.force_open()
    assert breaker.statistics() == statistics(state=OPEN, forced=True, rejections=2, opened=3, open_s=42.0)


def statistics(**changes: Any) -> BreakerStatistics:
    figures: dict[str, Any] = {
        "state": CLOSED,
        "forced": False,
        "calls": 0,
        "failures": 0,
        "rejections": 0,
        "opened": 0,
        "open_s": 0.0,
    }
    return BreakerStatistics("archive", **(figures | changes))


def test_the_statistics_exclude_outcomes_outside_the_window() -> None:
    """An outcome exactly as old as the window does not count in the statistics either."""
    clock = ManualClock()
    breaker = archive(clock)
    calls(breaker, "FF")
    clock.advance(15)
    calls(breaker, "S")
    clock.advance(14.75)
    assert breaker.statistics() == statistics(calls=3, failures=2)
    clock.advance(0.25)
    assert breaker.statistics() == statistics(calls=1, failures=0)


def test_the_states_have_the_metrics_values_and_names_for_people() -> None:
    """Closed is 0, open is 1, half-open is 2."""
    assert [(state.label, int(state)) for state in BreakerState] == [("closed", 0), ("open", 1), ("half-open", 2)]


# Any clock reading.

WHEN = st.floats(0, 1e7)  # a machine that has been up for four months
DURATION = st.timedeltas(MICROSECOND, timedelta(days=1))


@given(start_s=WHEN, cooldown=DURATION, share=st.floats(0, 1, exclude_max=True))
def test_a_request_exactly_after_ask_again_in_is_admitted(start_s: float, cooldown: timedelta, share: float) -> None:
    """Not a microsecond earlier and not one later, for any binary fractions of the clock and the cooldown."""
    for early, admitted in ((timedelta(0), True), (MICROSECOND, False)):
        clock = ManualClock()
        clock.advance(start_s)
        breaker = archive(clock, cooldown=cooldown, min_calls=1)
        calls(breaker, "F")
        clock.advance(share * cooldown.total_seconds())
        rejection = breaker.ask()
        if isinstance(rejection, Permit) or rejection.ask_again_in - early <= timedelta(0):
            continue  # rounding has reached the edge
        clock.advance((rejection.ask_again_in - early).total_seconds())
        assert isinstance(breaker.ask(), Permit) is admitted


@given(start_s=WHEN, longest=DURATION, share=st.floats(0, 1, exclude_max=True))
def test_the_next_probe_is_admitted_exactly_after_ask_again_in(
    start_s: float, longest: timedelta, share: float
) -> None:
    """The same holds for a probe that never reports."""
    clock = ManualClock()
    clock.advance(start_s)
    breaker = archive(clock, max_probe_wait=longest)
    breaker.force_open()
    breaker.release()
    permitted(breaker)
    clock.advance(share * longest.total_seconds())
    if isinstance(rejection := breaker.ask(), Rejection):
        clock.advance(rejection.ask_again_in.total_seconds())
        permitted(breaker)


@given(start_s=WHEN, duration=DURATION)
def test_time_limits_are_exact_at_any_clock_reading(start_s: float, duration: timedelta) -> None:
    """After exactly a window no outcome counts. After exactly a cooldown or a probe's maximum wait one call is admitted."""
    clock = ManualClock()
    clock.advance(start_s)
    breaker = archive(clock, window=duration, cooldown=duration, min_calls=2)
    calls(breaker, "F")
    clock.advance(duration.total_seconds())
    assert breaker.statistics().calls == 0
    calls(breaker, "FF")
    assert breaker.state is OPEN
    clock.advance(duration.total_seconds())
    permitted(breaker)
    clock.advance(duration.total_seconds())
    permitted(breaker)


# Policies.


def test_the_specified_defaults() -> None:
    """Half of at least five outcomes in 30 s opens it, for 30 s."""
    assert CircuitBreaker("archive").policy == BreakerPolicy(
        threshold=0.5, window=30 * S, cooldown=30 * S, min_calls=5, max_probe_wait=None
    )
    assert BreakerPolicy() == CircuitBreaker("archive").policy


def test_every_invalid_field_of_a_policy_is_named_in_one_error() -> None:
    """Five invalid fields give one message that names all five."""
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - pinned whole below
        CircuitBreaker("archive", threshold=0, window=0 * S, cooldown=-S, min_calls=0, max_probe_wait=0 * S)
    assert str(raised.value) == (
        "BreakerPolicy: threshold must be > 0 and <= 1, got 0; "
        "BreakerPolicy: window must be > 0, got datetime.timedelta(0); "
        "BreakerPolicy: cooldown must be > 0, got datetime.timedelta(days=-1, seconds=86399); "
        "BreakerPolicy: min_calls must be in [1, 10000], got 0; "
        "BreakerPolicy: max_probe_wait must be > 0, or None, got datetime.timedelta(0)"
    )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"threshold": 1.01}, "BreakerPolicy: threshold must be > 0 and <= 1, got 1.01"),
        ({"threshold": float("nan")}, "BreakerPolicy: threshold must be > 0 and <= 1, got nan"),
        ({"cooldown": 0 * S}, "BreakerPolicy: cooldown must be > 0, got datetime.timedelta(0)"),
        ({"min_calls": 10_001}, "BreakerPolicy: min_calls must be in [1, 10000], got 10001"),
    ],
)
def test_a_value_just_out_of_bounds_is_rejected(wrong: dict[str, Any], message: str) -> None:
    """The message names the field."""
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - pinned whole below
        BreakerPolicy(**wrong)
    assert str(raised.value) == message


def test_the_bounds_themselves_are_valid() -> None:
    """The smallest and the largest value of each field are valid."""
    BreakerPolicy(threshold=1, window=MICROSECOND, cooldown=MICROSECOND, min_calls=1, max_probe_wait=MICROSECOND)
    BreakerPolicy(threshold=1e-9, min_calls=10_000)


# A graph's breakers.


def test_the_same_name_gives_the_same_breaker() -> None:
    """With the same policy, the same name gives the same object. Another name gives another breaker."""
    breakers = Breakers(DecisionLog("graph"), ManualClock())
    policy = BreakerPolicy(cooldown=5 * S)
    archive = breakers.get("archive", policy)
    assert breakers.get("archive", BreakerPolicy(cooldown=5 * S)) is archive
    assert breakers.get("mirror", policy) is not archive
    assert archive.policy == policy
    assert list(breakers.statistics()) == ["archive", "mirror"]


def test_the_same_name_with_another_policy_is_rejected() -> None:
    """The message shows both policies."""
    breakers = Breakers(DecisionLog("graph"), ManualClock())
    breakers.get("archive", BreakerPolicy())
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - pinned whole below
        breakers.get("archive", BreakerPolicy(min_calls=6))
    assert str(raised.value) == (
        "breaker 'archive': expected the policy it was made with, BreakerPolicy(threshold=0.5, "
        "window=datetime.timedelta(seconds=30), cooldown=datetime.timedelta(seconds=30), min_calls=5, "
        "max_probe_wait=None), got BreakerPolicy(threshold=0.5, window=datetime.timedelta(seconds=30), "
        "cooldown=datetime.timedelta(seconds=30), min_calls=6, max_probe_wait=None)"
    )


def test_each_change_is_one_decision_on_the_graphs_clock(caplog: pytest.LogCaptureFixture) -> None:
    """The line has the breaker, both states, whether it was forced, and the reason."""
    clock = ManualClock()
    breaker = Breakers(DecisionLog("graph"), clock).get("archive", BreakerPolicy())
    with caplog.at_level(logging.INFO, "orchestrator_adapter"):
        calls(breaker, "FFFFF")
        clock.advance(30)
        permitted(breaker)
        breaker.force_open("maintenance")
    assert [event_of(record.getMessage()) for record in caplog.records] == [
        {
            "event": "circuit_breaker",
            "graph": "graph",
            "breaker": "archive",
            "was": was,
            "state": state,
            "forced": forced,
            "reason": reason,
        }
        for was, state, forced, reason in [
            ("closed", "open", False, "5 of 5 calls in 30 s failed"),
            ("open", "half-open", False, "30 s of cooldown are over: one probe decides"),
            ("half-open", "open", True, "maintenance"),
        ]
    ]
