"""The metrics of event time: values, names, labels, and what a scrape sees while the holder changes."""

from __future__ import annotations

import threading
from collections.abc import Iterable

import pytest

from sda_ops.event_time.metrics import LAG_BUCKETS_S, MAX_SOURCES, OTHER, EventTimeMetrics
from sda_ops.event_time.watermark import Watermark
from tests.helpers.metrics import scraped_from

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


def holders(samples: Iterable[tuple[str, tuple[str, ...]]]) -> list[str]:
    return [labels[0] for name, labels in samples if name == "pipeline_watermark_holder"]


def test_a_lag_is_counted_in_every_bucket_whose_bound_it_does_not_exceed() -> None:
    """1 ms and 200 ms are exactly two bounds; 2 h is beyond the last one. The sum has all three."""
    metrics = EventTimeMetrics()
    metrics.source_lag("radar-01", [1 * NS_PER_MS, 200 * NS_PER_MS, 7_200 * NS_PER_S])
    metrics.source_lag("radar-01", [2 * NS_PER_MS])
    samples = scraped_from(metrics)
    counts = {le: samples["source_lag_seconds_bucket", (le, "radar-01")] for le in map(str, LAG_BUCKETS_S)}
    assert (counts["0.001"], counts["0.002"], counts["0.1"], counts["0.2"], counts["3600.0"]) == (1, 2, 2, 3, 3)
    assert samples["source_lag_seconds_bucket", ("+Inf", "radar-01")] == 4
    assert samples["source_lag_seconds_count", ("radar-01",)] == 4
    assert samples["source_lag_seconds_sum", ("radar-01",)] == pytest.approx(7_200.203, rel=1e-12)


def test_negative_lags_are_counted_as_skew_and_change_no_histogram() -> None:
    """Of four lags, two are negative: the count and the sum are those of the other two."""
    metrics = EventTimeMetrics(sources=["radar-01"])
    assert scraped_from(metrics)["clock_skew_observed_total", ("radar-01",)] == 0
    metrics.source_lag("radar-01", [-1, 1 * NS_PER_S, -5 * NS_PER_S, 0])
    metrics.pipeline_lag("radar-01", [-1])
    samples = scraped_from(metrics)
    assert samples["clock_skew_observed_total", ("radar-01",)] == 3
    assert samples["source_lag_seconds_count", ("radar-01",)] == 2
    assert samples["source_lag_seconds_sum", ("radar-01",)] == 1
    assert samples["pipeline_lag_seconds_count", ("radar-01",)] == 0


def test_a_time_that_is_far_from_any_other_is_counted() -> None:
    """A sender claims the year 1385 and the year 2554: lags beyond 64 bits."""
    metrics = EventTimeMetrics()
    metrics.source_lag("radar-01", [1 << 64, -(1 << 64)])
    samples = scraped_from(metrics)
    assert samples["source_lag_seconds_bucket", ("+Inf", "radar-01")] == 1
    assert samples["clock_skew_observed_total", ("radar-01",)] == 1


def test_source_lag_and_pipeline_lag_are_apart() -> None:
    """One may be minutes while the other is milliseconds."""
    metrics = EventTimeMetrics()
    metrics.source_lag("optical", [120 * NS_PER_S])
    metrics.pipeline_lag("optical", [4 * NS_PER_MS])
    samples = scraped_from(metrics)
    assert samples["source_lag_seconds_sum", ("optical",)] == 120
    assert samples["pipeline_lag_seconds_sum", ("optical",)] == 0.004


def test_sources_beyond_a_number_share_one_label() -> None:
    """The names of satellites come from the network: a sender must not be able to make series without end."""
    metrics = EventTimeMetrics()
    for number in range(MAX_SOURCES + 50):
        metrics.source_lag(f"isl-{number}", [NS_PER_S, -1])
    samples = scraped_from(metrics)
    counts = {labels[0]: count for (name, labels), count in samples.items() if name == "source_lag_seconds_count"}
    assert len(counts) == MAX_SOURCES + 1
    assert counts[OTHER] == 50
    skews = {labels[0]: count for (name, labels), count in samples.items() if name == "clock_skew_observed_total"}
    assert len(skews) == MAX_SOURCES + 1
    assert sum(skews.values()) == MAX_SOURCES + 50


def test_an_idle_source_keeps_its_last_watermark() -> None:
    """`source_idle` says that it holds nothing; its next mark makes it 0 again."""
    metrics = EventTimeMetrics()
    metrics.source_mark(Watermark(1_500 * NS_PER_MS, "radar-01"))
    metrics.source_mark(Watermark(None, "radar-01"))
    samples = scraped_from(metrics)
    assert samples["source_watermark_seconds", ("radar-01",)] == 1.5
    assert samples["source_idle", ("radar-01",)] == 1
    metrics.source_mark(Watermark(2 * NS_PER_S, "radar-01"))
    assert scraped_from(metrics)["source_idle", ("radar-01",)] == 0


def test_a_source_that_has_ended_has_no_watermark_and_holds_nothing() -> None:
    """Also one that never sent a mark, such as a replay without files."""
    metrics = EventTimeMetrics()
    metrics.source_mark(Watermark(NS_PER_S, "replay"))
    for source in ("replay", "never"):
        metrics.source_ended(source)
    samples = scraped_from(metrics)
    assert not [labels for name, labels in samples if name == "source_watermark_seconds"]
    assert [samples["source_idle", (source,)] for source in ("replay", "never")] == [1, 1]


def test_one_source_holds_the_pipelines_watermark() -> None:
    """The previous holder's series is gone. While all sources are idle there is no holder, and the mark stays."""
    metrics = EventTimeMetrics()
    assert "pipeline_watermark_seconds" not in {name for name, _ in scraped_from(metrics)}
    metrics.pipeline_mark(Watermark(10 * NS_PER_S, "optical"))
    metrics.pipeline_mark(Watermark(11 * NS_PER_S, "isl"))
    samples = scraped_from(metrics)
    assert samples["pipeline_watermark_seconds", ()] == 11
    assert holders(samples) == ["isl"]
    metrics.pipeline_mark(Watermark(None, "isl"))
    samples = scraped_from(metrics)
    assert samples["pipeline_watermark_seconds", ()] == 11
    assert holders(samples) == []


def test_every_scrape_sees_exactly_one_holder() -> None:
    """While another thread changes the holder all the time."""
    metrics = EventTimeMetrics()
    metrics.pipeline_mark(Watermark(0, "first"))
    stop = threading.Event()

    def change() -> None:
        at = 0
        while not stop.is_set():
            at += 1
            metrics.pipeline_mark(Watermark(at, ("radar", "optical", "isl")[at % 3]))

    changing = threading.Thread(target=change)
    changing.start()
    try:
        seen = [len(holders(scraped_from(metrics))) for _ in range(200)]
    finally:
        stop.set()
        changing.join()
    assert set(seen) == {1}


def test_windows_and_late_items_are_counted_by_operator() -> None:
    """Counters of operators that are named at the start begin at 0."""
    metrics = EventTimeMetrics(operators=["fuse"])
    before = scraped_from(metrics)
    outcomes = ("amended", "dropped", "dead_lettered")
    assert [before["late_items_total", ("fuse", outcome)] for outcome in sorted(outcomes)] == [0, 0, 0]
    metrics.windows("fuse", active=3, retained=40)
    metrics.windows("fuse", active=2, retained=41)
    metrics.late("fuse", "amended", 5)
    metrics.late("risk", "dropped")
    metrics.retractions("fuse", 4)
    metrics.closed_early("fuse")
    metrics.regression("isl")
    samples = scraped_from(metrics)
    assert samples["pending_windows", ("fuse", "active")] == 2
    assert samples["pending_windows", ("fuse", "retained")] == 41
    assert samples["late_items_total", ("fuse", "amended")] == 5
    assert samples["late_items_total", ("risk", "dropped")] == 1
    assert samples["retractions_emitted_total", ("fuse",)] == 4
    assert samples["windows_closed_early_total", ("fuse",)] == 1
    assert samples["watermark_regressions_total", ("isl",)] == 1
