"""Figures that are kept while a graph runs, cheap enough for the data path. Knows nothing of their readers."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

_BUCKETS_PER_DOUBLING = 16  # a bucket is 4.4 % wide: quantiles are exact to that
RATE_TAU_S = 30.0
"""In a ``RateMeter`` an item of this age weighs a third (1/e) of a new one, seconds."""


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Quantiles in milliseconds, exact to 4.4 %; ``max`` is exact. ``count`` items were measured."""

    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float


BOUNDS_S: Final = (
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
"""The bounds of the histograms that `/metrics` serves, seconds."""


@dataclass(frozen=True, slots=True)
class LatencyFigures:
    """What a ``LatencyHistogram`` has recorded up to one moment.

    Attributes:
        count: How many were recorded.
        sum_s: Their sum, seconds.
        counts: By bucket, as the histogram has them.
    """

    count: int = 0
    sum_s: float = 0.0
    counts: tuple[int, ...] = ()


class LatencyHistogram:
    """Latencies in logarithmic buckets: bounded memory, any number of items."""

    __slots__ = ("_buckets", "_count", "_max_ns")

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._count = 0
        self._max_ns = 0

    def record(self, latency_ns: int, count: int = 1) -> None:
        """``count`` items took ``latency_ns`` nanoseconds each. Less than a microsecond counts as one."""
        bucket = math.ceil(math.log2(max(latency_ns, 1_000)) * _BUCKETS_PER_DOUBLING)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self._count += count
        self._max_ns = max(self._max_ns, latency_ns)

    def merge(self, other: LatencyHistogram) -> None:
        """Add everything that ``other`` has recorded."""
        for bucket, count in other._buckets.items():
            self._buckets[bucket] = self._buckets.get(bucket, 0) + count
        self._count += other._count
        self._max_ns = max(self._max_ns, other._max_ns)

    def summary(self) -> LatencySummary | None:
        """The quantiles, or ``None`` if nothing was measured."""
        if not self._count:
            return None
        return LatencySummary(self._count, self._quantile_ms(0.50), self._quantile_ms(0.99), self._max_ns / 1e6)

    def _quantile_ms(self, quantile: float) -> float:
        wanted, seen = quantile * self._count, 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                return float(min(2 ** (bucket / _BUCKETS_PER_DOUBLING), self._max_ns) / 1e6)
        raise AssertionError("the buckets hold fewer items than were counted")


class RateMeter:
    """Items per second, as an exponentially weighted mean over the last ``tau_s`` seconds, in constant memory.

    The count decays by a factor of e in each ``tau_s``. It is divided by the weight of the time since the meter was made,
    so that the rate is right from the first second on. It decreases while no item comes. ``now`` is monotonic seconds.
    """

    __slots__ = ("_at", "_count", "_since", "_tau_s")

    def __init__(self, now: float, *, tau_s: float = RATE_TAU_S) -> None:
        self._since = self._at = now
        self._count = 0.0
        self._tau_s = tau_s

    def mark(self, count: int, now: float) -> None:
        """``count`` items came at ``now``."""
        self._count = self._count * math.exp((self._at - now) / self._tau_s) + count
        self._at = now

    def rate(self, now: float) -> float:
        """Items per second at ``now``; 0 until some time has passed."""
        if now <= self._since:
            return 0.0
        weight = -math.expm1((self._since - now) / self._tau_s) * self._tau_s
        return self._count * math.exp((self._at - now) / self._tau_s) / weight
