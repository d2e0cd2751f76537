"""Rates, shares and latencies from samples that are given."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator_adapter import OperatorGraph, for_each, source_of
from orchestrator_adapter.control_plane.history import INTERVAL_S, LATENCY_S, WINDOW_S, History, Sample
from orchestrator_adapter.primitives.metrics import LatencyHistogram
from orchestrator_adapter.runtime.status import GraphStatus, OperatorTimes


def idle_status() -> GraphStatus:
    graph = OperatorGraph("sums")
    graph.connect(graph.add_source("numbers", source_of([])), graph.add_sink("show", for_each(print)), 8)
    return graph.build().status()


IDLE = idle_status()


def sample(at_s: float, *, times: OperatorTimes | None = None, latency: LatencyHistogram | None = None) -> Sample:
    """At this time, with these figures of the sink."""
    source, sink = IDLE.operators
    sink = replace(sink, times=times or OperatorTimes(), sink_latency=latency.figures() if latency else None)
    return Sample(at_s, 1_000_000 + at_s, replace(IDLE, operators=(source, sink)))


def history_of(*samples: Sample) -> History:
    history = History()
    for each in samples:
        history.add(each)
    return history


def test_shares_are_those_of_the_window_and_add_up_to_one() -> None:
    """Of ten seconds the sink ran eight, waited three for input and one for space."""
    history = history_of(sample(0), sample(10, times=OperatorTimes(alive_s=8, idle_s=3, blocked_s=1)))
    window = history.window()
    assert window is not None
    shares = window.shares(window.oldest.status.operators[1], window.newest.status.operators[1])
    assert (shares.busy, shares.idle, shares.blocked, shares.down) == pytest.approx((0.4, 0.3, 0.1, 0.2))


def test_the_window_is_at_least_ten_seconds_long_and_not_much_longer() -> None:
    """A sample a second for a minute; before the first ten seconds have passed, it is what there is."""
    history = History()
    for second in range(60):
        history.add(sample(second))
        window = history.window()
        assert window is not None
        assert min(second, WINDOW_S) <= window.length_s <= WINDOW_S + 2


def test_a_sample_that_is_not_newer_changes_nothing() -> None:
    """The event loop is stalled: the same status is seen again."""
    history = history_of(sample(0), sample(5), sample(5))
    window = history.window()
    assert window is not None
    assert window.length_s == 5


def test_latency_now_and_in_the_last_quarter_of_an_hour() -> None:
    """An hour at 10 ms, then ten seconds at 1 s: now only the second counts; in the quarter of an hour, the first 900 s too."""
    latency, history = LatencyHistogram(), History()
    for second in range(3_600):
        latency.record(10_000_000)
        history.add(sample(second, latency=latency))
    for second in range(3_600, 3_611):
        latency.record(1_000_000_000)
        history.add(sample(second, latency=latency))
    figures = history.latency()
    assert figures.now is not None
    assert figures.last_15_min is not None
    assert figures.now.p50_s == pytest.approx(1.0, rel=0.05)
    assert figures.last_15_min.p50_s == pytest.approx(0.01, rel=0.05)
    assert LATENCY_S - INTERVAL_S <= figures.last_15_min.count <= LATENCY_S + 2 * INTERVAL_S
    assert len(figures.series) <= LATENCY_S / INTERVAL_S
    assert figures.series[-1].at > figures.series[0].at


def test_without_measurements_there_is_no_latency() -> None:
    figures = history_of(sample(0), sample(20)).latency()
    assert (figures.now, figures.last_15_min) == (None, None)
    assert [point.quantiles for point in figures.series] == [None]
