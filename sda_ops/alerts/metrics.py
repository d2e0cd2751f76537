"""The metrics of alerts: outcomes, the outbox, latency. A collector for ``ControlPlane(collectors=…)``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Literal, TypeAlias, get_args

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sda_ops.event_time.metrics import collected

AlertOutcome: TypeAlias = Literal[
    "recorded", "duplicate", "quiet", "sent", "retracted", "failed", "parked", "superseded", "late"
]
"""- ``recorded``: a new revision is in the outbox
- ``duplicate``: it says what the outbox has already
- ``quiet``: a subscriber's rules do not want this revision
- ``sent``: a subscriber has acknowledged it; ``retracted``: the same, for a retraction
- ``failed``: an attempt to send it failed; it is tried again
- ``parked``: it will not be sent again by itself: a subscriber rejects it for good, or it is too old
- ``superseded``: it is not sent, because the outbox was full and a newer revision of the conjunction is pending
- ``late``: of those acknowledged, more than `LATE_S` after its evidence
"""

LATE_S: Final = 30.0
"""The objective, seconds: from the evidence of a new alert to its acknowledgement."""

LATENCY_BUCKETS_S: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, LATE_S, 60.0, 300.0, 900.0, 3_600.0)
"""Upper bounds, seconds."""

_NS_PER_S = 1_000_000_000


class AlertMetrics(Collector):
    """How many alerts there were, what became of them, and how long they took. Every method may be called from any thread.

    Args:
        subscribers: Their outbox depths begin at 0.
    """

    def __init__(self, *, subscribers: Iterable[str] = ()) -> None:
        self._outcomes = Counter("alerts", "Revisions of alerts, by what became of them", ["outcome"], registry=None)
        self._depth = Gauge(
            "alert_outbox_depth",
            "Revisions that wait for the subscriber's acknowledgement",
            ["subscriber"],
            registry=None,
        )
        self._parked = Gauge(
            "alert_outbox_parked", "Revisions that are not sent again by themselves", ["subscriber"], registry=None
        )
        self._oldest = Gauge(
            "alert_outbox_oldest_seconds",
            "For how long the oldest of these revisions has waited, seconds; 0 if none waits",
            ["subscriber"],
            registry=None,
        )
        self._bytes = Gauge("alert_outbox_bytes", "Size of the outbox on the disk, bytes", registry=None)
        self._max_bytes = Gauge("alert_outbox_max_bytes", "The size that it may have, bytes", registry=None)
        self._latency = Histogram(
            "alert_latency_seconds",
            "From the evidence of an alert to a subscriber's acknowledgement, seconds",
            buckets=LATENCY_BUCKETS_S,
            registry=None,
        )
        for outcome in get_args(AlertOutcome):
            self._outcomes.labels(outcome)
        for subscriber in subscribers:
            self._depth.labels(subscriber)
            self._oldest.labels(subscriber)
            self._parked.labels(subscriber)

    def count(self, outcome: AlertOutcome, n: int = 1) -> None:
        """So many revisions had this outcome. ``late`` is counted by `latency_ns`."""
        self._outcomes.labels(outcome).inc(n)

    def depth(self, subscriber: str, n: int, *, oldest_ns: int = 0) -> None:
        """So many revisions wait for this subscriber now, the oldest of them for ``oldest_ns`` nanoseconds."""
        self._depth.labels(subscriber).set(n)
        self._oldest.labels(subscriber).set(oldest_ns / _NS_PER_S)

    def parked(self, subscriber: str, n: int) -> None:
        """So many revisions are parked for this subscriber now."""
        self._parked.labels(subscriber).set(n)

    def size(self, used_bytes: int, max_bytes: int) -> None:
        """The outbox has this size on the disk now, and may have at most ``max_bytes``."""
        self._bytes.set(used_bytes)
        self._max_bytes.set(max_bytes)

    def latency_ns(self, ns: int) -> None:
        """A subscriber has acknowledged a new alert this long after its evidence, nanoseconds. Longer than `LATE_S`: late.

        For revisions that come from new evidence (`screened`, `observed`). A final revision waits for the watermark.
        """
        self._latency.observe(ns / _NS_PER_S)
        if ns > LATE_S * _NS_PER_S:
            self._outcomes.labels("late").inc()

    def collect(self) -> Iterator[Metric]:
        """Every family, at this moment."""
        yield from collected(
            *(self._outcomes, self._depth, self._oldest, self._parked, self._bytes, self._max_bytes, self._latency)
        )
