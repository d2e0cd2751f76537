"""Restart budgets and backoffs."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_adapter.supervision.restart import (
    SINK_DEFAULT,
    SOURCE_DEFAULT,
    STATEFUL_DEFAULT,
    STATELESS_DEFAULT,
    Backoff,
    RestartPolicy,
    admit,
)

FIVE_A_MINUTE = RestartPolicy.bounded(5, timedelta(seconds=60))


def admitted_at(policy: RestartPolicy, *times: float) -> list[bool]:
    charged: tuple[float, ...] = ()
    answers = []
    for now in times:
        answer, charged = admit(policy, charged, now, begins_at=now)
        answers.append(answer)
    return answers


def test_the_sixth_restart_within_the_window_is_rejected() -> None:
    """``bounded(5, 60 s)`` admits five restarts in 59 seconds and rejects the sixth."""
    assert admitted_at(FIVE_A_MINUTE, 0, 1, 2, 3, 4, 59) == [True] * 5 + [False]


def test_a_restart_exactly_as_old_as_the_window_does_not_count() -> None:
    """At exactly 60 s the restart of 0 s is outside the window. One more restart is admitted, and not two."""
    assert admitted_at(FIVE_A_MINUTE, 0, 1, 2, 3, 4, 60, 60.5) == [True] * 6 + [False]


def test_a_rejected_restart_is_not_charged() -> None:
    """The next restart is admitted when the oldest admitted one is outside the window."""
    assert admitted_at(FIVE_A_MINUTE, 0, 0, 0, 0, 0, 59, 60) == [True] * 5 + [False, True]


def test_never_admits_none_and_always_admits_all() -> None:
    """``never`` rejects the first; ``always`` admits a thousand and keeps none of them."""
    assert admitted_at(RestartPolicy.never(), 0) == [False]
    assert all(admitted_at(RestartPolicy.always(), *range(1_000)))
    assert admit(RestartPolicy.always(), (), 1.0, begins_at=1.0) == (True, ())


@given(
    max_restarts=st.integers(1, 6),
    window=st.integers(1, 20),
    gaps=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=40),
)
def test_no_sliding_window_has_more_restarts_than_the_bound(
    max_restarts: int, window: int, gaps: list[tuple[int, int]]
) -> None:
    """With any backoffs, no window has more restarts or failures than the bound, and no restart is rejected too early."""
    policy = RestartPolicy.bounded(max_restarts, timedelta(seconds=window))
    charged: tuple[float, ...] = ()
    failures: list[int] = []
    began: list[int] = []
    now = 0
    for uptime, backoff in gaps:
        now += uptime
        expected = sum(now - window < at for at in began) < max_restarts
        answer, charged = admit(policy, charged, float(now), begins_at=float(now + backoff))
        assert answer == expected
        assert len(charged) <= max_restarts
        if not expected:
            continue
        failures.append(now)
        now += backoff
        began.append(now)
        for restarts in (failures, began):
            assert sum(now - window < at <= now for at in restarts) <= max_restarts


@pytest.mark.parametrize(("max_restarts", "window_s"), [(0, 60), (-1, 60), (5, 0), (5, -1)])
def test_a_bound_without_restarts_or_window_is_rejected(max_restarts: int, window_s: int) -> None:
    """The message has the expected bounds and the given value."""
    window = timedelta(seconds=window_s)
    with pytest.raises(
        ValueError, match=r"^RestartPolicy\.bounded: (max_restarts must be >= 1|window must be > 0), got "
    ):
        RestartPolicy.bounded(max_restarts, window)


def test_the_defaults_are_those_of_the_specification() -> None:
    """Sources and stateless operators get five a minute, stateful ones three, sinks none."""
    assert (str(SOURCE_DEFAULT), str(STATELESS_DEFAULT)) == ("bounded(5, 60 s)", "bounded(5, 60 s)")
    assert (str(STATEFUL_DEFAULT), str(SINK_DEFAULT)) == ("bounded(3, 60 s)", "never")


@given(consecutive=st.integers(1, 10_000), seed=st.integers(0, 99))
def test_a_backoff_lies_between_its_initial_and_its_cap(consecutive: int, seed: int) -> None:
    """Every delay is within [initial, min(cap, initial * 3**consecutive)], also when the power overflows."""
    backoff = Backoff(timedelta(milliseconds=100), timedelta(seconds=5))
    upper = 5.0 if consecutive >= 4 else 0.1 * 3**consecutive
    assert 0.1 <= backoff.delay_s(consecutive, random.Random(seed)) <= upper * (1 + 1e-12)


def test_two_random_sources_give_different_delays() -> None:
    """This keeps the operators of a fleet from restarting at the same instant."""
    backoff = Backoff(timedelta(milliseconds=100), timedelta(seconds=5))
    assert backoff.delay_s(3, random.Random(1)) != backoff.delay_s(3, random.Random(2))


@pytest.mark.parametrize(("initial_s", "cap_s"), [(0, 1), (-1, 1), (2, 1)])
def test_a_backoff_with_an_initial_delay_above_its_cap_is_rejected(initial_s: int, cap_s: int) -> None:
    """The message has the expected bounds and the given value."""
    with pytest.raises(ValueError, match=r"^Backoff: initial must be > 0 and <= cap \(.*\), got "):
        Backoff(timedelta(seconds=initial_s), timedelta(seconds=cap_s))
