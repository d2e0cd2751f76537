"""Retries of a fleet in the simulated outage of ``bench.storm``: retries must not prolong the outage."""

from __future__ import annotations

from functools import cache

import pytest

from bench.storm import CAP, OUTAGE_AT_S, STRATEGIES, VARIANTS, Storm, World, simulate
from tests.helpers.sizes import small_and_long

HORIZON_S = 300.0
TWO_CAPS_S = 2 * CAP.total_seconds()

pytestmark = pytest.mark.usefixtures("_many_schedules")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_fleet_without_an_outage_never_overloads_the_archive(name: str) -> None:
    """Without an outage no request fails, with any strategy: the overload comes from the outage, not from the model."""
    healthy = storm(name, 1, outage_s=0.0)
    assert healthy.down == ()
    assert healthy.idle_s == 0
    assert 13 < sum(healthy.sent) / (OUTAGE_AT_S + healthy.watched_s) < 19  # requests a second


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 6))])
def test_decorrelated_jitter_with_a_breaker_recovers_within_two_caps(seed: int) -> None:
    """30 s after the outage (a cooldown and a longest delay) all pollers have data. The archive was never overloaded."""
    with_breaker = storm("decorrelated + breaker", seed)
    assert recovery_s(with_breaker) <= TWO_CAPS_S
    assert with_breaker.collapses == 0


@pytest.mark.parametrize(
    "outage_s", [1.0, 45.0, *(pytest.param(outage_s, marks=pytest.mark.long) for outage_s in (10.0, 300.0))]
)
def test_recovery_within_two_caps_holds_for_short_and_long_outages(outage_s: float) -> None:
    """It does not depend on the phase of the breaker's cooldown at the end of an outage of 30 s."""
    assert recovery_s(storm("decorrelated + breaker", 0, outage_s=outage_s)) <= TWO_CAPS_S


@small_and_long("name", "fixed delay, 1 s", "fixed delay, 5 s", "fixed delay, 15 s")
def test_a_fixed_delay_does_not_recover(name: str) -> None:
    """Five minutes after an outage of half a minute the fleet is still without data nearly all the time."""
    fixed = storm(name, 0)
    assert fixed.recovery_s is None
    assert fixed.idle_s > 0.9 * HORIZON_S


def test_exponential_backoff_without_jitter_does_not_recover_either() -> None:
    """Doubled delays keep the pollers synchronised; only random delays separate them."""
    assert storm("plain exponential", 0).recovery_s is None


def test_a_breaker_costs_time_and_saves_requests() -> None:
    """With it the fleet sends less than a third of the requests during the outage, and recovers later, not sooner."""
    without, with_breaker = storm("decorrelated jitter", 0), storm("decorrelated + breaker", 0)
    assert with_breaker.sent_in_outage < without.sent_in_outage / 3
    assert recovery_s(without) < recovery_s(with_breaker)


@pytest.mark.parametrize(
    ("outage_s", "seed"),
    [
        (30.0, 0),
        (120.0, 0),
        *(pytest.param(*each, marks=pytest.mark.long) for each in [(30.0, 1), (300.0, 0), (300.0, 1)]),
    ],
)
def test_a_budget_behind_a_breaker_adds_no_request(outage_s: float, seed: int) -> None:
    """With a budget the fleet sends no more requests during the outage than without, in short and in long outages."""
    without = storm("decorrelated + breaker", seed, outage_s=outage_s)
    with_budget = storm("decorrelated + breaker + budget", seed, outage_s=outage_s)
    assert with_budget.sent_in_outage <= without.sent_in_outage


def test_a_budget_alone_does_not_replace_a_backoff() -> None:
    """Pollers that give up without a token, and ask again at their poll interval, keep the archive down."""
    assert storm("decorrelated + budget, no breaker", 0, horizon_s=30.0).collapses == 1


def test_equal_seeds_give_equal_storms() -> None:
    """Every figure follows from the seed, and from it only."""
    first = storm("decorrelated + breaker", 3)
    storm.cache_clear()
    assert storm("decorrelated + breaker", 3) == first
    assert storm("decorrelated + breaker", 4).sent != first.sent


@cache
def storm(name: str, seed: int, *, outage_s: float = 30.0, horizon_s: float = HORIZON_S) -> Storm:
    strategy = STRATEGIES[name] if name in STRATEGIES else VARIANTS[name]
    return simulate(strategy, seed, horizon_s=horizon_s, world=World(outage_s=outage_s))


def recovery_s(run: Storm) -> float:
    assert run.recovery_s is not None
    return run.recovery_s
