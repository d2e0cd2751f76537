"""``RetryPolicy``: the delays of decorrelated jitter, their bounds and their distribution."""

from __future__ import annotations

import random
from bisect import bisect_left
from datetime import timedelta
from itertools import pairwise
from math import sqrt
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_adapter import (
    RetriesExhausted,
    RetryPolicy,
    with_retry,
)
from orchestrator_adapter.primitives.errors import Tried
from orchestrator_adapter.testing import (
    ManualClock,
)
from tests.helpers.retry_script import (
    MS,
    Highest,
    Pinned,
    S,
    Script,
    away,
    finish,
    policy,
    waits,
)

Clamp = Literal["delay", "draw"]
CLAMPS: list[Clamp] = ["delay", "draw"]

SPECIFIED_MS = [300, 900, 2700, 5000, 5000, 5000]
"""Specification, section 7: the delays for initial=100 ms, cap=5 s, with the draw pinned to its upper bound."""


# The schedule.


def test_the_specified_schedule() -> None:
    """Pinned to the upper bound, the delays are 300, 900, 2700 and then 5000 ms, 18.9 s in all."""
    specified = RetryPolicy(100 * MS, 5 * S, max_attempts=7)
    delays_s, previous_s = list[float](), 0.1
    for _ in SPECIFIED_MS:
        previous_s = specified.next_delay_s(previous_s, Highest())
        delays_s.append(previous_s)
    assert [round(1000 * delay_s, 9) for delay_s in delays_s] == SPECIFIED_MS
    assert sum(delays_s) == pytest.approx(18.9, abs=1e-12)


async def test_the_waits_between_attempts_follow_the_specified_schedule() -> None:
    """Seven attempts are made with the specified waits in between. There is no wait after the last one."""
    clock = ManualClock()
    op = Script(clock, *[away()] * 7)
    with pytest.raises(RetriesExhausted) as raised:
        await finish(clock, with_retry(RetryPolicy(100 * MS, 5 * S, max_attempts=7), op, clock=clock, rng=Highest()))
    assert [round(1000 * wait_s, 6) for wait_s in waits(op.calls)] == SPECIFIED_MS
    assert clock.monotonic() == pytest.approx(18.9, abs=1e-9)
    assert raised.value.tried == Tried(7, 0, clock.monotonic())


@given(
    initial=st.timedeltas(timedelta(microseconds=1), timedelta(hours=1)),
    ratio=st.floats(1, 1e6),
    how_far=st.floats(0, 1),
    share=st.floats(0, 1),
    clamp=st.sampled_from(CLAMPS),
)
def test_a_delay_is_at_least_initial_and_at_most_cap_and_three_times_the_previous(
    initial: timedelta, ratio: float, how_far: float, share: float, clamp: Clamp
) -> None:
    """For any previous delay and any draw."""
    any_policy = RetryPolicy(initial, max(initial, initial * ratio), None, clamp=clamp)
    initial_s, cap_s = initial.total_seconds(), any_policy.cap.total_seconds()
    previous_s = min(cap_s, initial_s + how_far * (cap_s - initial_s))
    delay_s = any_policy.next_delay_s(previous_s, Pinned(share))
    assert initial_s <= delay_s <= cap_s
    assert delay_s <= 3 * previous_s * (1 + 1e-12)


@pytest.mark.parametrize("clamp", CLAMPS)
def test_ten_thousand_consecutive_delays_are_within_their_bounds(clamp: Clamp) -> None:
    """None is below initial, above the cap, or above three times the previous one."""
    delays_s = run_of(10_000, policy(clamp=clamp))
    assert all(0.5 <= delay_s <= 8 for delay_s in delays_s)
    assert all(after <= 3 * before for before, after in pairwise([0.5, *delays_s]))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("clamp", CLAMPS)
def test_a_draw_at_a_share_of_its_range_gives_the_formulas_delay(clamp: Clamp, share: float) -> None:
    """After 4 s, with a cap of 8 s, the range is 0.5 to 12 s, limited to 8 s afterwards, or 0.5 to 8 s."""
    drawn = policy(clamp=clamp).next_delay_s(4.0, Pinned(share))
    assert drawn == pytest.approx(min(8.0, 0.5 + share * 11.5) if clamp == "delay" else 0.5 + share * 7.5)


def test_a_previous_delay_of_zero_still_gives_a_delay() -> None:
    """``max(initial, 3 * previous)``: the range is never empty."""
    assert policy().next_delay_s(0.0, Highest()) == 0.5


DRAWS = 100_000
KOLMOGOROV_1_PER_MILLE = 1.95 / sqrt(DRAWS)
"""The largest distance between the empirical and the true distribution exceeds this once in a thousand times."""


def run_of(count: int, of: RetryPolicy, *, seed: int = 7) -> list[float]:
    """``count`` consecutive delays."""
    rng, previous_s, delays_s = random.Random(seed), of.initial.total_seconds(), list[float]()
    for _ in range(count):
        previous_s = of.next_delay_s(previous_s, rng)
        delays_s.append(previous_s)
    return delays_s


def distance_from_uniform(sample: list[float]) -> float:
    """Kolmogorov's distance between the sample's distribution and the uniform one on [0, 1]."""
    ordered, count = sorted(sample), len(sample)
    return max(max((rank + 1) / count - value, value - rank / count) for rank, value in enumerate(ordered))


def test_the_statistic_detects_a_small_deviation() -> None:
    """A distribution that deviates by one in a hundred is distinguished from the uniform one."""
    rng = random.Random(7)
    assert distance_from_uniform([rng.random() for _ in range(DRAWS)]) < KOLMOGOROV_1_PER_MILLE
    assert distance_from_uniform([rng.random() ** 1.03 for _ in range(DRAWS)]) > KOLMOGOROV_1_PER_MILLE


@pytest.mark.parametrize("clamp", CLAMPS)
def test_the_first_delay_is_uniform_between_initial_and_three_times_initial(clamp: Clamp) -> None:
    """100,000 first delays have that distribution."""
    rng = random.Random(7)
    firsts = [policy(clamp=clamp).next_delay_s(0.5, rng) for _ in range(DRAWS)]
    assert distance_from_uniform([first - 0.5 for first in firsts]) < KOLMOGOROV_1_PER_MILLE


@pytest.mark.parametrize("clamp", CLAMPS)
def test_a_delay_below_the_cap_is_uniform_within_its_range(clamp: Clamp) -> None:
    """In 100,000 consecutive delays the position within the range is uniform and does not depend on the previous one."""
    delays_s = run_of(DRAWS, policy(clamp=clamp))
    positions = [
        (after - 0.5) / (min(8.0, 3 * before) - 0.5) for before, after in pairwise([0.5, *delays_s]) if after < 8
    ]
    assert len(positions) > DRAWS / 2
    assert distance_from_uniform(positions) < 1.95 / sqrt(len(positions))
    correlation = sum((a - 0.5) * (b - 0.5) for a, b in pairwise(positions)) * 12 / len(positions)
    assert abs(correlation) < 3.3 / sqrt(len(positions))


def test_a_delay_equals_the_cap_as_often_as_the_formula_says() -> None:
    """Its probability is the share of the range that is above the cap."""
    delays_s = run_of(DRAWS, policy())
    chances = [max(0.0, (3 * before - 8.0) / (3 * before - 0.5)) for before in [0.5, *delays_s[:-1]]]
    surplus = sum((delay_s == 8.0) - chance for delay_s, chance in zip(delays_s, chances, strict=True))
    assert abs(surplus) < 3.3 * sqrt(sum(chance * (1 - chance) for chance in chances))


def test_near_saturation_a_quarter_to_a_third_of_the_delays_equal_the_cap() -> None:
    """With the specification's example for an archive. With ``clamp="draw"`` no delay equals the cap."""
    archive = {"initial": 200 * MS, "cap": 15 * S, "max_attempts": 8}
    capped = run_of(DRAWS, policy(**archive)).count(15.0)
    assert 1 / 4 <= capped / DRAWS <= 1 / 3
    assert run_of(DRAWS, policy(**archive, clamp="draw")).count(15.0) == 0


def test_a_hundred_callers_of_one_outage_do_not_retry_at_the_same_time() -> None:
    """Ten seconds after a common failure, no tenth of a second has more than ten attempts of a hundred callers."""
    attempts: list[float] = []
    for caller in range(100):
        at = 0.0
        for delay_s in run_of(20, RetryPolicy(200 * MS, 15 * S, 8), seed=caller):
            at += delay_s
            attempts.append(at)
    attempts.sort()
    slots = [bisect_left(attempts, 10 + n / 10) for n in range(100)]
    assert max(after - before for before, after in pairwise(slots)) <= 10


def test_eight_attempts_usually_end_before_an_outage_of_half_a_minute_does() -> None:
    """This is why the optical source does not limit its attempts: 11 s in the median, and less than 30 s in 85 of 100 cases."""
    policy, rng = RetryPolicy(200 * MS, 15 * S, max_attempts=8), random.Random(8)

    def lasts_s() -> float:
        delays_s = [0.2]
        for _ in range(7):
            delays_s.append(policy.next_delay_s(delays_s[-1], rng))
        return sum(delays_s[1:])

    lasted_s = sorted(lasts_s() for _ in range(10_000))
    assert 10.0 < lasted_s[5_000] < 11.5
    assert 0.84 < bisect_left(lasted_s, 30.0) / 10_000 < 0.86
