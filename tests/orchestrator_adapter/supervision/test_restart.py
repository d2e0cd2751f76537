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


def test_five_restarts_are_admitted_and_the_sixth_within_the_window_is_refused() -> None:
    """``bounded(5, 60 s)`` admits five restarts in 59 seconds, and not a sixth."""
    assert admitted_at(FIVE_A_MINUTE, 0, 1, 2, 3, 4, 59) == [True] * 5 + [False]


def test_a_restart_exactly_as_old_as_the_window_no_longer_counts() -> None:
    """At 60 s the restart of 0 s is out of the window, to the instant, and one more is admitted; not two."""
    assert admitted_at(FIVE_A_MINUTE, 0, 1, 2, 3, 4, 60, 60.5) == [True] * 6 + [False]


def test_a_refused_restart_is_not_charged() -> None:
    """Being refused does not lengthen the wait: the next is admitted when the oldest admitted one has aged out."""
    assert admitted_at(FIVE_A_MINUTE, 0, 0, 0, 0, 0, 59, 60) == [True] * 5 + [False, True]


def test_never_admits_none_and_always_admits_all() -> None:
    """``never`` refuses the first; ``always`` admits a thousand and remembers none of them."""
    assert admitted_at(RestartPolicy.never(), 0) == [False]
    assert all(admitted_at(RestartPolicy.always(), *range(1_000)))
    assert admit(RestartPolicy.always(), (), 1.0, begins_at=1.0) == (True, ())


@given(
    max_restarts=st.integers(1, 6),
    window=st.integers(1, 20),
    gaps=st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=40),
)
def test_no_sliding_window_ever_holds_more_than_the_bound(
    max_restarts: int, window: int, gaps: list[tuple[int, int]]
) -> None:
    """With any backoffs, no window holds more restarts or more failures than it may; and none is refused too early."""
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
def test_a_budget_without_restarts_or_window_is_refused(max_restarts: int, window_s: int) -> None:
    """The message says what was expected and what came."""
    window = timedelta(seconds=window_s)
    with pytest.raises(
        ValueError, match=r"^RestartPolicy\.bounded: (max_restarts must be >= 1|window must be > 0), got "
    ):
        RestartPolicy.bounded(max_restarts, window)


def test_the_defaults_are_those_of_the_specification() -> None:
    """Sources and stateless operators get five a minute, stateful ones three, sinks none."""
    assert (str(SOURCE_DEFAULT), str(STATELESS_DEFAULT)) == ("bounded(5, 60 s)", "bounded(5, 60 s)")
    assert (str(STATEFUL_DEFAULT), str(SINK_DEFAULT)) == ("bounded(3, 60 s)", "never")


@given(row=st.integers(1, 10_000), seed=st.integers(0, 99))
def test_a_backoff_lies_between_its_initial_and_its_cap(row: int, seed: int) -> None:
    """Every delay is within [initial, min(cap, initial * 3**row)], for rows so long that the power overflows."""
    backoff = Backoff(timedelta(milliseconds=100), timedelta(seconds=5))
    upper = 5.0 if row >= 4 else 0.1 * 3**row
    assert 0.1 <= backoff.delay_s(row, random.Random(seed)) <= upper * (1 + 1e-12)


def test_two_instances_do_not_back_off_in_step() -> None:
    """Two random sources give different delays: this is what keeps a fleet from coming back at the same instant."""
    backoff = Backoff(timedelta(milliseconds=100), timedelta(seconds=5))
    assert backoff.delay_s(3, random.Random(1)) != backoff.delay_s(3, random.Random(2))


@pytest.mark.parametrize(("initial_s", "cap_s"), [(0, 1), (-1, 1), (2, 1)])
def test_a_backoff_needs_an_initial_delay_below_its_cap(initial_s: int, cap_s: int) -> None:
    """The message says what was expected and what came."""
    with pytest.raises(ValueError, match=r"^Backoff: initial must be > 0 and <= cap \(.*\), got "):
        Backoff(timedelta(seconds=initial_s), timedelta(seconds=cap_s))
