from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_adapter.metrics import LatencyHistogram, LatencySummary

ONE_BUCKET = 2 ** (1 / 16)  # 4.4 %: how far above the true quantile an answer may lie

latencies = st.lists(st.integers(1_000, 60_000_000_000), min_size=1, max_size=200)


def summary_of(values: list[int]) -> LatencySummary:
    histogram = LatencyHistogram()
    for value in values:
        histogram.record(value)
    summary = histogram.summary()
    assert summary is not None
    return summary


def test_nothing_measured_is_no_summary() -> None:
    """An empty histogram has no quantiles, not zero ones."""
    assert LatencyHistogram().summary() is None


@given(latencies)
def test_quantiles_are_exact_to_one_bucket(values: list[int]) -> None:
    """Each quantile lies at or above the nearest-rank one, by at most 4.4 %; the maximum is exact."""
    summary = summary_of(values)
    ranked = sorted(values)
    for quantile, answer_ms in ((0.50, summary.p50_ms), (0.99, summary.p99_ms)):
        exact_ms = ranked[math.ceil(quantile * len(ranked)) - 1] / 1e6
        assert exact_ms * (1 - 1e-9) <= answer_ms <= exact_ms * ONE_BUCKET * (1 + 1e-9)
    assert summary.max_ms == ranked[-1] / 1e6
    assert summary.count == len(values)


@given(latencies, latencies)
def test_merging_is_the_same_as_recording_everything_in_one(left: list[int], right: list[int]) -> None:
    """Two merged histograms tell what one histogram of all values tells."""
    merged = LatencyHistogram()
    for values in (left, right):
        part = LatencyHistogram()
        for value in values:
            part.record(value)
        merged.merge(part)
    assert merged.summary() == summary_of(left + right)


def test_a_batch_is_recorded_in_one_call() -> None:
    """``count`` items of one latency weigh as much as ``count`` calls."""
    histogram = LatencyHistogram()
    histogram.record(2_000_000, 99)
    histogram.record(900_000_000)
    summary = histogram.summary()
    assert summary is not None
    assert summary.count == 100
    assert summary.p50_ms == summary.p99_ms == pytest.approx(2, rel=0.045)
    assert summary.max_ms == 900


def test_memory_stays_bounded_whatever_is_recorded() -> None:
    """From a microsecond to a day there are fewer than 700 buckets."""
    histogram = LatencyHistogram()
    for value in range(0, 86_400 * 10**9, 10**10):
        histogram.record(value)
    assert len(histogram._buckets) < 700


def test_clocks_that_disagree_do_no_harm() -> None:
    """A negative latency is booked in the lowest bucket."""
    assert summary_of([-5]).count == 1
