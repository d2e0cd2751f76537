"""What a run did in the last seconds and in the last 15 minutes, from samples of its status. Bounded, and in memory only.

A sample is a status and the time at which it was taken. Of the last ``WINDOW_S`` seconds a few samples are kept: their
differences are rates, shares and present latencies. The last ``BRIEF_S`` seconds say what holds the graph up now. Of the last ``LATENCY_S`` seconds only the latency of the sinks is kept,
once each ``INTERVAL_S``.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from orchestrator_adapter.control_plane.document import Latency, LatencyPoint, Quantiles, Shares
from orchestrator_adapter.primitives.metrics import LatencyFigures, difference, merged, quantile_s
from orchestrator_adapter.runtime.status import GraphStatus, OperatorStatus

WINDOW_S: Final = 10.0
LATENCY_S: Final = 900.0
INTERVAL_S: Final = 10.0
BRIEF_S: Final = 2.5
_APART_S: Final = 2.0  # between two kept samples: a sample of a large graph has many figures
_BRIEFLY_APART_S: Final = 0.4


@dataclass(frozen=True, slots=True)
class Sample:
    """A status and when it was taken: seconds of a monotonic clock, and UTC seconds."""

    at_s: float
    utc_s: float
    status: GraphStatus


class History:
    """The samples of one run. ``add`` them in the order of their times."""

    def __init__(self) -> None:
        self._recent: deque[Sample] = deque()
        self._brief: deque[Sample] = deque()
        self._newest: Sample | None = None
        self._intervals: deque[tuple[float, float, LatencyFigures]] = deque(maxlen=round(LATENCY_S / INTERVAL_S) + 1)

    def add(self, sample: Sample) -> None:
        """Take ``sample`` as the newest one. One that is not newer than the newest is ignored."""
        if self._newest is not None and sample.at_s <= self._newest.at_s:
            return
        self._newest = sample
        _keep(self._recent, sample, length_s=WINDOW_S, apart_s=_APART_S)
        _keep(self._brief, sample, length_s=BRIEF_S, apart_s=_BRIEFLY_APART_S)
        if not self._intervals or sample.at_s - self._intervals[-1][0] >= INTERVAL_S:
            self._intervals.append((sample.at_s, sample.utc_s, latency_of(sample.status)))

    def window(self) -> Window | None:
        """The last ``WINDOW_S`` seconds, or what there is of them; ``None`` without a sample."""
        return None if self._newest is None else Window(self._recent[0], self._newest)

    def brief_window(self) -> Window | None:
        """The last ``BRIEF_S`` seconds, or what there is of them; ``None`` without a sample."""
        return None if self._newest is None else Window(self._brief[0], self._newest)

    def latency(self) -> Latency:
        """The latency of the sinks, now and in the last 15 minutes."""
        window = self.window()
        if window is None:
            return Latency(now=None, last_15_min=None)
        latest = latency_of(window.newest.status)
        series = [
            LatencyPoint(at=utc_s, quantiles=quantiles(difference(figures, before)))
            for (_, _, before), (_, utc_s, figures) in pairwise(self._intervals)
        ]
        return Latency(
            now=quantiles(difference(latest, latency_of(window.oldest.status))),
            last_15_min=quantiles(difference(latest, self._intervals[0][2])),
            series=tuple(series),
        )


def _keep(samples: deque[Sample], newest: Sample, *, length_s: float, apart_s: float) -> None:
    """Keep samples of at least the last ``length_s`` seconds, some ``apart_s`` from each other."""
    if not samples or newest.at_s - samples[-1].at_s >= apart_s:
        samples.append(newest)
    while len(samples) > 1 and newest.at_s - samples[1].at_s >= length_s:
        samples.popleft()


@dataclass(frozen=True, slots=True)
class Window:
    """Two samples of one run, and what happened between them. At the start of a run both may be the same."""

    oldest: Sample
    newest: Sample

    @property
    def length_s(self) -> float:
        """Seconds between them."""
        return self.newest.at_s - self.oldest.at_s

    def rate(self, before: float, now: float) -> float:
        """Per second, of a figure that only grows; 0 in an empty window."""
        return (now - before) / self.length_s if self.length_s > 0 else 0.0

    def before(self) -> dict[str, OperatorStatus]:
        """The operators at the beginning, by name."""
        return {operator.name: operator for operator in self.oldest.status.operators}

    def shares(self, before: OperatorStatus, now: OperatorStatus) -> Shares:
        """What an operator did with its time. The shares add up to 1."""
        if self.length_s <= 0:
            running = now.state in {"running", "paused"}
            return Shares(busy=0.0, idle=float(running), blocked=0.0, down=float(not running))
        alive = _share(now.times.alive_s - before.times.alive_s, self.length_s)
        idle = min(alive, _share(now.times.idle_s - before.times.idle_s, self.length_s))
        blocked = min(alive - idle, _share(now.times.blocked_s - before.times.blocked_s, self.length_s))
        return Shares(busy=max(0.0, alive - idle - blocked), idle=idle, blocked=blocked, down=1.0 - alive)


def latency_of(status: GraphStatus) -> LatencyFigures:
    """From ingest to acknowledgement, of all sinks that measure it, so far."""
    return merged(operator.sink_latency for operator in status.operators if operator.sink_latency is not None)


def quantiles(figures: LatencyFigures) -> Quantiles | None:
    """The figures as quantiles; ``None`` if nothing was recorded."""
    median, high = quantile_s(figures, 0.5), quantile_s(figures, 0.99)
    if median is None or high is None:
        return None
    return Quantiles(count=figures.count, p50_s=median, p99_s=high)


def _share(part_s: float, whole_s: float) -> float:
    return min(1.0, max(0.0, part_s / whole_s))
