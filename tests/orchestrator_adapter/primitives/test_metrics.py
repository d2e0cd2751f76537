"""``LatencyHistogram`` and ``RateMeter``."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_adapter.primitives.metrics import (
    BOUNDS_S,
    LatencyFigures,
    LatencyHistogram,
    LatencySummary,
    RateMeter,
    cumulative_counts,
    difference,
    merged,
    quantile_s,
)

ONE_BUCKET = 1.05  # how far above the true quantile an answer may lie

latencies = st.lists(st.integers(1_000, 86_400_000_000_000), min_size=1, max_size=200)


def histogram_of(values: list[int]) -> LatencyHistogram:
    histogram = LatencyHistogram()
    for value in values:
        histogram.record(value)
    return histogram


def summary_of(values: list[int]) -> LatencySummary:
    summary = histogram_of(values).summary()
    assert summary is not None
    return summary


def test_an_empty_histogram_has_no_summary() -> None:
    """It has no quantiles, instead of zero quantiles."""
    assert LatencyHistogram().summary() is None


@given(latencies)
def test_quantiles_are_exact_to_one_bucket(values: list[int]) -> None:
    """Each quantile lies at or above the nearest-rank one, by at most 5 %; the maximum is exact."""
    summary = summary_of(values)
    ranked = sorted(values)
    for quantile, answer_ms in ((0.50, summary.p50_ms), (0.99, summary.p99_ms)):
        exact_ms = ranked[math.ceil(quantile * len(ranked)) - 1] / 1e6
        assert exact_ms * (1 - 1e-9) <= answer_ms <= exact_ms * ONE_BUCKET * (1 + 1e-9)
    assert summary.max_ms == ranked[-1] / 1e6
    assert summary.count == len(values)


@given(latencies, st.floats(0, 1))
def test_any_quantile_of_figures_is_exact_to_one_bucket(values: list[int], quantile: float) -> None:
    """The same for the figures, and for every quantile."""
    exact_s = sorted(values)[max(0, math.ceil(quantile * len(values)) - 1)] / 1e9
    answer_s = quantile_s(histogram_of(values).figures(), quantile)
    assert answer_s is not None
    assert exact_s * (1 - 1e-9) <= answer_s <= exact_s * ONE_BUCKET * (1 + 1e-9)


def test_figures_of_nothing_have_no_quantile() -> None:
    assert quantile_s(LatencyFigures(), 0.5) is None
    assert cumulative_counts(LatencyFigures()) == (0,) * (len(BOUNDS_S) + 1)
    assert merged([]) == LatencyFigures() == LatencyHistogram().figures()


@given(st.lists(st.one_of(st.sampled_from(BOUNDS_S), st.floats(0, 200)), max_size=100))
def test_counts_at_the_bounds_are_exact(seconds: list[float]) -> None:
    """A latency equal to a bound is counted at it, as Prometheus' label ``le`` says. The last count has everything."""
    values = [round(value * 1e9) for value in seconds]
    expected = [sum(value <= round(bound * 1e9) for value in values) for bound in BOUNDS_S]
    figures = histogram_of(values).figures()
    assert cumulative_counts(figures) == (*expected, len(values))
    assert figures.sum_s == pytest.approx(sum(values) / 1e9)


@given(st.lists(st.integers(1, 10**11), max_size=50), st.lists(st.integers(1, 10**11), max_size=50))
def test_the_difference_of_two_moments_has_what_came_between_them(before: list[int], after: list[int]) -> None:
    """And together they have everything again."""
    histogram = histogram_of(before)
    earlier = histogram.figures()
    for value in after:
        histogram.record(value)
    between, alone = difference(histogram.figures(), earlier), histogram_of(after).figures()
    assert between.count == alone.count
    assert cumulative_counts(between) == cumulative_counts(alone)
    assert quantile_s(between, 0.9) == quantile_s(alone, 0.9)
    assert between.sum_s == pytest.approx(alone.sum_s, abs=1e-6)
    together = merged([earlier, alone])
    assert cumulative_counts(together) == cumulative_counts(histogram.figures())
    assert together.sum_s == pytest.approx(histogram.figures().sum_s)


@given(latencies, latencies)
def test_merging_is_the_same_as_recording_everything_in_one(left: list[int], right: list[int]) -> None:
    """Two merged histograms have the summary of one histogram of all values."""
    merged = LatencyHistogram()
    for values in (left, right):
        part = LatencyHistogram()
        for value in values:
            part.record(value)
        merged.merge(part)
    assert merged.summary() == summary_of(left + right)


def test_a_batch_is_recorded_in_one_call() -> None:
    """``count`` items of one latency count as much as ``count`` calls."""
    histogram = LatencyHistogram()
    histogram.record(2_000_000, 99)
    histogram.record(900_000_000)
    summary = histogram.summary()
    assert summary is not None
    assert summary.count == 100
    assert summary.p50_ms == summary.p99_ms == pytest.approx(2, rel=0.045)
    assert summary.max_ms == 900


def test_memory_is_bounded_for_any_latencies() -> None:
    """Up to a week there are fewer than 700 buckets. Above a day, the maximum is the quantile."""
    histogram = histogram_of([*range(0, 86_400 * 10**9, 10**10), *[7 * 86_400 * 10**9] * 10_000])
    assert len(histogram.figures().counts) < 700
    summary = histogram.summary()
    assert summary is not None
    assert summary.p99_ms == summary.max_ms == 7 * 86_400 * 1e3


def test_a_negative_latency_is_recorded_in_the_lowest_bucket() -> None:
    """Two clocks may disagree. The sum, which Prometheus has as a counter, does not decrease."""
    assert summary_of([-5]).count == 1
    figures = histogram_of([-5]).figures()
    assert (figures.count, figures.sum_s) == (1, 0.0)
    assert cumulative_counts(figures)[0] == 1


# Rates.

gaps_and_counts = st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10_000)), min_size=1, max_size=50)


@given(gaps_and_counts, st.floats(0.001, 200), st.floats(0.5, 60))
def test_a_rate_is_the_weighted_mean_of_all_items(marks: list[tuple[float, int]], wait_s: float, tau_s: float) -> None:
    """It is the sum of count times exp(-age/tau) over all marks, divided by the integral of that weight."""
    now, meter, came = 1_000.0, RateMeter(1_000.0, tau_s=tau_s), list[tuple[float, int]]()
    for gap_s, count in marks:
        now += gap_s
        meter.mark(count, now)
        came.append((now, count))
    now += wait_s
    weighed = sum(count * math.exp((at - now) / tau_s) for at, count in came)
    assert meter.rate(now) == pytest.approx(weighed / integral(now - 1_000.0, tau_s), rel=1e-6, abs=1e-9)


def integral(age_s: float, tau_s: float) -> float:
    """The integral of exp(-t/tau) over ``age_s``, by Simpson's rule. Beyond 40 tau it is negligible."""
    steps = 2_000
    width = min(age_s, 40 * tau_s) / steps
    heights = [math.exp(-step * width / tau_s) for step in range(steps + 1)]
    return (heights[0] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2]) + heights[-1]) * width / 3


@pytest.mark.parametrize("age_s", [0.1, 1, 29, 3_600])
def test_a_constant_rate_is_correct_from_the_start(age_s: float) -> None:
    """Fifty per second are 50 after a tenth of a second and after an hour. The first half minute is not too low."""
    meter = RateMeter(0.0)
    ticks = round(age_s * 50)
    for tick in range(ticks):
        meter.mark(1, (tick + 0.5) / 50)
    assert meter.rate(age_s) == pytest.approx(50, rel=1e-3)


def test_a_rate_decreases_while_no_item_comes() -> None:
    """By a factor of e in each tau, after a long time."""
    meter = RateMeter(0.0, tau_s=10)
    for second in range(1_000):
        meter.mark(7, float(second))
    assert meter.rate(1_010.0) == pytest.approx(meter.rate(1_000.0) / math.e, rel=1e-9)
    assert meter.rate(10_000.0) == pytest.approx(0, abs=1e-300)


def test_the_rate_is_zero_before_any_time_has_passed() -> None:
    """There is no division by zero."""
    meter = RateMeter(5.0)
    meter.mark(1_000, 5.0)
    assert meter.rate(5.0) == 0


def test_the_default_tau_is_half_a_minute() -> None:
    """As documented for the metric ``source_ingest_rate``."""
    short, long = RateMeter(0.0), RateMeter(0.0, tau_s=30)
    for meter in (short, long):
        meter.mark(100, 1.0)
    assert short.rate(60.0) == long.rate(60.0)


def test_what_a_histogram_recorded_after_its_figures_were_read_is_in_the_next_ones() -> None:
    histogram, other = LatencyHistogram(), LatencyHistogram()
    histogram.record(1_000_000)
    before = histogram.figures()
    assert histogram.figures() is before
    assert difference(before, before) == LatencyFigures()
    histogram.record(-5, 2)  # adds nothing to the sum
    assert histogram.figures().count == 3
    other.record(3_000_000, 4)
    histogram.merge(other)
    assert histogram.figures().count == 7
    assert sum(histogram.figures().counts) == 7
    histogram.merge(LatencyHistogram())
    assert histogram.figures().count == 7
    assert difference(histogram.figures(), before).count == 6
