"""The metrics of event time: marks, lags, windows. A collector for ``ControlPlane(collectors=…)``.

Sources and operators call it from the graph's thread, once for each batch; the control plane collects from its own thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final, Literal, TypeAlias, get_args

import numpy as np
from prometheus_client import Counter, Gauge
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from sda_ops.event_time.watermark import Watermark

LateOutcome: TypeAlias = Literal["amended", "dropped", "dead_lettered"]
"""``amended``: within the allowed lateness; its window was retracted and emitted again. ``dropped``: later than that; counted
only. ``dead_lettered``: later than that; a dead letter has it."""

LAG_BUCKETS_S: Final = (
    *(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3_600.0),
)
"""Upper bounds, seconds: those of the orchestrator's histograms, from 0.2 ms to 120 s, and up to one hour. A radar is late by milliseconds, an archive by half a minute."""

MAX_SOURCES: Final = 100
"""Sources with a label of their own in lags and clock skew, beside those that are named at the start. The names of satellites come from the network."""

OTHER: Final = "other"
"""The label of all further sources."""

_NS_PER_S = 1_000_000_000


class EventTimeMetrics(Collector):
    """What sources promise, how late items are, and which windows wait. Every method may be called from any thread.

    Args:
        sources: Their counters begin at 0, so that Prometheus sees the first increase.
        operators: The same for operators with windows.
    """

    def __init__(self, *, sources: Iterable[str] = (), operators: Iterable[str] = ()) -> None:
        self._lock = threading.Lock()
        self._sources = dict.fromkeys(sources)  # in order
        self._max_sources = len(self._sources) + MAX_SOURCES
        self._source_lag = _Lags("source_lag_seconds", "From the measurement to its ingest, seconds")
        self._pipeline_lag = _Lags(
            "pipeline_lag_seconds", "From the ingest of an observation to the end of its processing, seconds"
        )
        self._skew = _counter(
            "clock_skew_observed", "Lags below zero: one of the two clocks is wrong; no histogram has them", "source"
        )
        self._source_mark = _gauge(
            "source_watermark_seconds", "The source promises that no earlier event time follows, Unix seconds", "source"
        )
        self._idle = _gauge(
            "source_idle",
            "Whether the source promises nothing, so that its watermark holds back no other: 1, else 0",
            "source",
        )
        self._regressions = _counter(
            "watermark_regressions", "Marks of the source that were earlier than its last", "source"
        )
        self._pipeline_mark = _gauge("pipeline_watermark_seconds", "The least watermark of all sources, Unix seconds")
        self._holder = _gauge(
            "pipeline_watermark_holder", "The source that has the least watermark: 1; absent if all are idle", "source"
        )
        self._pending = _gauge("pending_windows", "Windows that the operator holds", "operator", "tier")
        self._late = _counter("late_items", "Items that came after their window was closed", "operator", "outcome")
        self._retractions = _counter("retractions_emitted", "Results that the operator has retracted", "operator")
        self._closed_early = _counter(
            "windows_closed_early",
            "Windows that were closed before the watermark, because the operator holds too much",
            "operator",
        )
        self._reported = False
        for source in self._sources:
            self._skew.labels(source)
            self._regressions.labels(source)
        for operator in operators:
            self._retractions.labels(operator)
            self._closed_early.labels(operator)
            for outcome in get_args(LateOutcome):
                self._late.labels(operator, outcome)

    def source_mark(self, mark: Watermark) -> None:
        """The source ``mark.source`` has sent this mark. An idle source keeps its last one in the metric."""
        if mark.time_ns is not None:
            self._source_mark.labels(mark.source).set(mark.time_ns / _NS_PER_S)
        self._idle.labels(mark.source).set(mark.time_ns is None)

    def source_ended(self, source: str) -> None:
        """The source has ended for good: it has no watermark any more, and no operator waits for it."""
        with suppress(KeyError):  # it has sent none
            self._source_mark.remove(source)
        self._idle.labels(source).set(1)

    def regression(self, source: str) -> None:
        """A mark of the source was earlier than its last one, and was not sent."""
        self._regressions.labels(source).inc()

    def source_lag(self, source: str, lags_ns: Sequence[int], *, each: int = 1) -> None:
        """Ingest time minus event time of these items, nanoseconds. Negative ones are counted as clock skew only.

        Each of them counts for ``each`` items: more than one, if they are a sample.
        """
        self._lags(self._source_lag, source, lags_ns, each)

    def pipeline_lag(self, source: str, lags_ns: Sequence[int], *, each: int = 1) -> None:
        """The time now minus ingest time of these items, nanoseconds; otherwise as ``source_lag``.

        Where streams are merged, ``source`` may be a kind of sensor: this lag does not depend on the feed.
        """
        self._lags(self._pipeline_lag, source, lags_ns, each)

    def pipeline_mark(self, mark: Watermark) -> None:
        """The least mark of all sources. ``mark.source`` holds it; no source does if it is idle."""
        with self._lock:
            self._holder.clear()
            if mark.time_ns is not None:
                self._reported = True
                self._pipeline_mark.set(mark.time_ns / _NS_PER_S)
                self._holder.labels(mark.source).set(1)

    def windows(self, operator: str, active: int, retained: int) -> None:
        """How many windows the operator holds: open ones, and closed ones that late items may still amend."""
        self._pending.labels(operator, "active").set(active)
        self._pending.labels(operator, "retained").set(retained)

    def late(self, operator: str, outcome: LateOutcome, count: int = 1) -> None:
        """So many items came after their window was closed."""
        self._late.labels(operator, outcome).inc(count)

    def retractions(self, operator: str, count: int = 1) -> None:
        """The operator has retracted so many results."""
        self._retractions.labels(operator).inc(count)

    def closed_early(self, operator: str, count: int = 1) -> None:
        """The operator has closed so many windows before the watermark, because it holds too much."""
        self._closed_early.labels(operator).inc(count)

    def collect(self) -> Iterator[Metric]:
        """Every family, at this moment."""
        with self._lock:
            pipeline = [self._holder, *([self._pipeline_mark] if self._reported else [])]
            families = list(collected(*pipeline))
            families += [self._source_lag.family(), self._pipeline_lag.family()]
        rest = (
            *(self._source_mark, self._idle, self._regressions, self._skew),
            *(self._pending, self._late, self._retractions, self._closed_early),
        )
        yield from (*families, *collected(*rest))

    def _lags(self, histogram: _Lags, source: str, lags_ns: Sequence[int], each: int) -> None:
        with self._lock:
            if source not in self._sources:
                if len(self._sources) < self._max_sources:
                    self._sources[source] = None
                else:
                    source = OTHER
            negative = histogram.observe(source, lags_ns, each)
        if negative:
            self._skew.labels(source).inc(negative * each)


class _Lags:
    """A histogram for each source, filled by the batch: 256 lags cost a twentieth of 256 calls of ``Histogram.observe``."""

    def __init__(self, name: str, meaning: str) -> None:
        self._name = name
        self._meaning = meaning
        self._counts: dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]] = {}
        self._sums_s: dict[str, float] = {}

    def observe(self, source: str, lags_ns: Sequence[int], each: int) -> int:
        """Count these lags; returns how many are negative. Those are not in the histogram."""
        # Not integers: a sender may claim any time, and these cannot overflow.
        lags = np.fromiter(lags_ns, dtype=np.float64, count=len(lags_ns))
        negative = int(np.count_nonzero(lags < 0))
        if negative:
            lags = lags[lags >= 0]
        if source not in self._counts:
            self._counts[source] = np.zeros(len(LAG_BUCKETS_S) + 1, dtype=np.int64)
        at = np.searchsorted(_BOUNDS_NS, lags)  # a lag equal to a bound belongs to that bucket
        self._counts[source] += np.bincount(at, minlength=len(LAG_BUCKETS_S) + 1) * each
        self._sums_s[source] = self._sums_s.get(source, 0.0) + float(lags.sum()) * each / _NS_PER_S
        return negative

    def family(self) -> Metric:
        """All sources' histograms, cumulative, as Prometheus has them."""
        family = HistogramMetricFamily(self._name, self._meaning, labels=["source"])
        bounds = [*map(str, LAG_BUCKETS_S), "+Inf"]
        for source, counts in self._counts.items():
            cumulative = map(float, np.cumsum(counts))
            family.add_metric([source], list(zip(bounds, cumulative, strict=True)), self._sums_s[source])
        return family


_BOUNDS_NS = np.array([round(bound * _NS_PER_S) for bound in LAG_BUCKETS_S], dtype=np.float64)


def collected(*metrics: Collector) -> Iterator[Metric]:
    """The families of these metrics, without the series ``…_created`` that the client library adds to each counter."""
    for metric in metrics:
        for family in metric.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family


def _counter(name: str, meaning: str, *labels: str) -> Counter:
    return Counter(name, meaning, labels, registry=None)


def _gauge(name: str, meaning: str, *labels: str) -> Gauge:
    return Gauge(name, meaning, labels, registry=None)
