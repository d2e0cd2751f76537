"""The lags of a pipeline without watermarks: at its sources, and at its end. Sampled, so that they cost little.

Of each batch at most 16 items are measured, at even distances and from another place each time. Each of them counts for those
around it, so that the counts are right on average.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

from orchestrator_adapter import Control, Factory, WiredEnds
from sda_ops.event_time.metrics import EventTimeMetrics
from sda_ops.event_time.source import TimesOf

MEASURED_OF_A_BATCH: Final = 16


def with_source_lag(source: Factory, metrics: EventTimeMetrics, *, times_of: TimesOf) -> Factory:
    """``source``, whose items are measured when it emits them: from the event time to the arrival, as ``times_of`` gives them."""

    async def run(ends: WiredEnds) -> None:
        await source(cast("WiredEnds", _MeasuredEnds(ends, metrics, times_of)))

    return run


class PipelineLag:
    """Measures items at the end of a pipeline. ``label_and_arrival`` gives an item's label ``source``, and its arrival (UTC ns)."""

    def __init__(self, metrics: EventTimeMetrics, label_and_arrival: Callable[[Any], tuple[str, int]]) -> None:
        self._metrics = metrics
        self._label_and_arrival = label_and_arrival
        self._sample = _sampler()

    def ended(self, batch: Sequence[Any], now_ns: int) -> None:
        """Their processing ended at ``now_ns``."""
        items, each = self._sample(batch)
        lags_ns = defaultdict[str, list[int]](list)
        for label, arrived_ns in map(self._label_and_arrival, items):
            lags_ns[label].append(now_ns - arrived_ns)
        for label, lags in lags_ns.items():
            self._metrics.pipeline_lag(label, lags, each=each)


class _MeasuredEnds:
    """The ends of a source, with the two ways to send items measured. The rest is that of the ends."""

    def __init__(self, ends: WiredEnds, metrics: EventTimeMetrics, times_of: TimesOf) -> None:
        self._ends = ends
        self._metrics = metrics
        self._times_of = times_of
        self._sample = _sampler()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ends, name)

    async def emit(self, items: Sequence[Any]) -> None:
        """See ``WiredEnds.emit``."""
        self._measure(items)
        await self._ends.emit(items)

    def ingest(self, items: Sequence[Any]) -> None:
        """See ``WiredEnds.ingest``."""
        self._measure(items)
        self._ends.ingest(items)

    def _measure(self, items: Sequence[Any]) -> None:
        measured, each = self._sample(items)
        times = [self._times_of(item) for item in measured if not isinstance(item, Control)]
        if times:
            self._metrics.source_lag(self._ends.name, [arrived - event for event, arrived in times], each=each)


def _sampler() -> Callable[[Sequence[Any]], tuple[Sequence[Any], int]]:
    """Takes the items of a batch to measure. Also returns for how many items each of them counts."""
    turn = 0

    def sample(items: Sequence[Any]) -> tuple[Sequence[Any], int]:
        nonlocal turn
        each = -(-len(items) // MEASURED_OF_A_BATCH)
        if each <= 1:
            return items, 1
        turn += 1
        return items[turn % each :: each], each

    return sample
