"""Figures that are kept while a graph runs, cheap enough for the data path. Knows nothing of their readers."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import sub
from typing import Final

RATE_TAU_S = 30.0
"""In a ``RateMeter`` an item of this age weighs a third (1/e) of a new one, seconds."""


@dataclass(frozen=True, slots=True)
class LatencySummary:
    """Quantiles in milliseconds, exact to 5 %; ``max`` is exact. ``count`` items were measured."""

    count: int
    p50_ms: float
    p99_ms: float
    max_ms: float


BOUNDS_S: Final = (
    0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
"""The bounds of the histograms that `/metrics` serves, seconds."""

_NS_PER_S: Final = 1_000_000_000
_WIDEST: Final = 1.05  # a bucket's upper bound by its lower one: quantiles are exact to that
_FROM_S, _TO_S = 1e-6, 86_400.0  # with this exactness: from a microsecond to a day


def _fine_bounds_ns() -> tuple[int, ...]:
    """Upper bounds of the buckets, nanoseconds: each step between two of ``BOUNDS_S`` is divided into steps of equal ratio."""
    bounds = [round(_FROM_S * _NS_PER_S)]
    for low, high in pairwise((_FROM_S, *BOUNDS_S, _TO_S)):
        steps = math.ceil(math.log(high / low) / math.log(_WIDEST * (1 - 1e-3)))  # the bounds are whole nanoseconds
        bounds += [round(low * (high / low) ** (step / steps) * _NS_PER_S) for step in range(1, steps + 1)]
    return tuple(bounds)


_FINE_NS: Final = _fine_bounds_ns()
_COARSE_AT: Final = tuple(_FINE_NS.index(round(bound * _NS_PER_S)) for bound in BOUNDS_S)
"""Which of the fine bounds the bounds of ``BOUNDS_S`` are."""
_AT_ONCE: Final = 32  # buckets that the search for a quantile steps over: a document has some hundred quantiles


@dataclass(frozen=True, slots=True)
class LatencyFigures:
    """What a ``LatencyHistogram`` has recorded up to one moment.

    Attributes:
        count: How many were recorded.
        sum_s: Their sum, seconds.
        counts: By bucket, as the histogram has them; empty if it has recorded nothing.
    """

    count: int = 0
    sum_s: float = 0.0
    counts: tuple[int, ...] = ()


def quantile_s(figures: LatencyFigures, quantile: float) -> float | None:
    """The nearest-rank quantile, seconds, or at most 5 % more; ``None`` if nothing was recorded.

    Less than a microsecond counts as one, and more than a day as a day.
    """
    if not figures.count:
        return None
    return _FINE_NS[min(_bucket_of(figures, quantile), len(_FINE_NS) - 1)] / _NS_PER_S


def difference(later: LatencyFigures, earlier: LatencyFigures) -> LatencyFigures:
    """What the same histogram has recorded between two moments."""
    if not earlier.counts:
        return later
    if later is earlier:
        return LatencyFigures()
    counts = tuple(map(sub, later.counts, earlier.counts))
    return LatencyFigures(later.count - earlier.count, later.sum_s - earlier.sum_s, counts)


def merged(figures: Iterable[LatencyFigures]) -> LatencyFigures:
    """What several histograms have recorded together."""
    parts = [part for part in figures if part.counts]
    if len(parts) <= 1:
        return parts[0] if parts else LatencyFigures()
    counts = tuple(map(sum, zip(*(part.counts for part in parts), strict=True)))
    return LatencyFigures(sum(part.count for part in parts), math.fsum(part.sum_s for part in parts), counts)


def cumulative_counts(figures: LatencyFigures) -> tuple[int, ...]:
    """How many were at most as long as each of ``BOUNDS_S``, exactly; then all of them."""
    if not figures.counts:
        return (0,) * (len(BOUNDS_S) + 1)
    up_to = tuple(accumulate(figures.counts))
    return (*(up_to[at] for at in _COARSE_AT), figures.count)


def _bucket_of(figures: LatencyFigures, quantile: float) -> int:
    rank, counts, start = max(1, quantile * figures.count), figures.counts, 0
    while (here := sum(counts[start : start + _AT_ONCE])) < rank:
        rank -= here
        start += _AT_ONCE
    return start + bisect_left(list(accumulate(counts[start : start + _AT_ONCE])), rank)


class LatencyHistogram:
    """Latencies in fine, fixed buckets: bounded memory, any number of items. Each bound of ``BOUNDS_S`` is the bound of one.

    A bucket contains its upper bound. The first one has everything up to a microsecond, negative latencies included (two
    clocks may disagree; they add nothing to the sum), and the last one everything above a day.
    """

    __slots__ = ("_count", "_counts", "_figures", "_max_ns", "_sum_ns")

    def __init__(self) -> None:
        self._counts = [0] * (len(_FINE_NS) + 1)
        self._count = 0
        self._figures = LatencyFigures()  # those that were last asked for: right until something is recorded
        self._max_ns = 0
        self._sum_ns = 0

    def record(self, latency_ns: int, count: int = 1) -> None:
        """``count`` items took ``latency_ns`` nanoseconds each."""
        self._counts[bisect_left(_FINE_NS, latency_ns)] += count
        self._count += count
        if latency_ns > 0:
            self._sum_ns += latency_ns * count
            if latency_ns > self._max_ns:  # noqa: PLR1730 - a call of max costs twice as much
                self._max_ns = latency_ns

    def merge(self, other: LatencyHistogram) -> None:
        """Add everything that ``other`` has recorded."""
        if not other._count:
            return
        self._counts = list(map(sum, zip(self._counts, other._counts, strict=True)))
        self._count += other._count
        self._sum_ns += other._sum_ns
        self._max_ns = max(self._max_ns, other._max_ns)

    def figures(self) -> LatencyFigures:
        """What was recorded so far: the same object as before if nothing was recorded since then."""
        if self._figures.count != self._count:
            self._figures = LatencyFigures(self._count, self._sum_ns / _NS_PER_S, tuple(self._counts))
        return self._figures

    def summary(self) -> LatencySummary | None:
        """The quantiles, or ``None`` if nothing was measured."""
        figures = self.figures()
        if not figures.count:
            return None
        return LatencySummary(figures.count, self._ms(figures, 0.50), self._ms(figures, 0.99), self._max_ns / 1e6)

    def _ms(self, figures: LatencyFigures, quantile: float) -> float:
        """No quantile is above the maximum, which is exact also above a day."""
        bucket = _bucket_of(figures, quantile)
        bound_ns = _FINE_NS[bucket] if bucket < len(_FINE_NS) else self._max_ns
        return min(bound_ns, self._max_ns) / 1e6


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
