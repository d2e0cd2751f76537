"""Correlation as operators of a graph: ``propagate``, ``correlate`` and ``fuse``.

``propagate`` gives each observation the catalogue at its time; the orbits themselves are computed elsewhere, by whatever
it is handed as a propagator. ``correlate`` and ``fuse`` compute where they are: ten milliseconds a batch at most.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, get_args

import numpy as np

from orchestrator_adapter import DeadLetterKind, Factory, Timeout, WiredEnds, freeze_heap
from orchestrator_adapter.bulkhead import BatchLost
from sda_ops.astro.propagation import States
from sda_ops.astro.time import Nanoseconds
from sda_ops.catalog.columns import ElementColumns
from sda_ops.correlate.associate import Associator, Placed
from sda_ops.correlate.uncertainty import CatalogErrors, ElementSetErrors, Objects
from sda_ops.correlate.windows import CrossSensorWindows, WindowLimits
from sda_ops.propagation.interval import STEP_NS, CatalogFacts, Interval, knots_of
from sda_ops.records.correlation import Association, Correlation, CrossSensorUpdate

_BATCH = 256
_S_PER_MIN = 60.0


class Propagator(Protocol):
    """Who computes orbits; `sda_ops.propagation.pool.PropagatorPool` is one."""

    async def use_catalog(self, columns: ElementColumns) -> object:
        """From now on objects are rows of this catalogue."""

    async def propagate(self, objects: Objects | None, timestamp_ns: Nanoseconds) -> States:
        """States ``(objects, times, 3)``; all objects for ``None``."""


class Catalog(Protocol):
    """Who has the catalogue; `sda_ops.catalog.live.LiveCatalog` is one."""

    @property
    def current(self) -> CatalogVersion:
        """The newest that is good."""

    async def load(self) -> object:
        """See to it that there is one."""


class CatalogVersion(Protocol):
    """One catalogue, as it was loaded."""

    @property
    def number(self) -> int:
        """Counts them."""

    @property
    def columns(self) -> ElementColumns:
        """Its elements."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """How observations get their interval.

    Attributes:
        errors: What is assumed of element sets.
        max_intervals: How many are remembered, the last used ones: 4 MB each for 15,000 objects.
    """

    errors: ElementSetErrors
    max_intervals: int = 16


class _Intervals:
    """Intervals of one catalogue at a time, and the knots that they share.

    Attributes:
        lost: Those that could not be propagated for, by number: nobody asks for them again until this is cleared.
    """

    def __init__(self, propagator: Propagator, prediction: Prediction) -> None:
        self._propagator = propagator
        self._prediction = prediction
        self._facts: CatalogFacts | None = None
        self._knots: OrderedDict[int, States] = OrderedDict()
        self._intervals: OrderedDict[int, Interval] = OrderedDict()
        self.lost: dict[int, BatchLost] = {}

    def __len__(self) -> int:
        return len(self._intervals)

    async def use(self, version: CatalogVersion) -> None:
        """The catalogue to answer from. What was computed of another one is forgotten."""
        if self._facts is not None and self._facts.version == version.number:
            return
        columns = version.columns
        await self._propagator.use_catalog(columns)
        self._knots.clear()
        self._intervals.clear()
        self._facts = CatalogFacts(
            version.number,
            columns.catalog_number,
            columns.epoch_ns,
            CatalogErrors(
                self._prediction.errors,
                epoch_ns=columns.epoch_ns,
                mean_motion_rad_s=columns.no_kozai / _S_PER_MIN,
            ),
        )
        freeze_heap()  # a full catalogue's make each later collection a stall of 4 to 17 ms

    async def at(self, timestamp_ns: int) -> Interval:
        """The interval of this time, propagated for if need be."""
        assert self._facts is not None
        number = timestamp_ns // STEP_NS
        interval = self._intervals.get(number)
        if interval is None:
            numbers = knots_of(timestamp_ns)
            await self._propagate([knot for knot in numbers if knot not in self._knots])
            interval = Interval(self._facts, number * STEP_NS, [self._knots[knot] for knot in numbers])
            self._intervals[number] = interval
            _forget_all_but(self._intervals, self._prediction.max_intervals)
            _forget_all_but(self._knots, self._prediction.max_intervals + len(numbers))
        self._intervals.move_to_end(number)
        return interval

    async def at_or_lost(self, timestamp_ns: int) -> Interval | BatchLost:
        """The same, or why not: a request that has cost two workers is not made for every observation again."""
        number = timestamp_ns // STEP_NS
        if number not in self.lost:
            try:
                return await self.at(timestamp_ns)
            except BatchLost as error:
                self.lost[number] = error
        return self.lost[number]

    async def _propagate(self, knots: list[int]) -> None:
        if not knots:
            return
        states = await self._propagator.propagate(None, np.array(knots, dtype=np.int64) * STEP_NS)
        for column, knot in enumerate(knots):
            of_knot = slice(column, column + 1)
            self._knots[knot] = States(
                states.r_teme_m[:, of_knot], states.v_teme_m_s[:, of_knot], states.error[:, of_knot]
            )


def propagate(
    catalog: Catalog,
    propagator: Propagator,
    prediction: Prediction,
    *,
    keep_fresh: Callable[[WiredEnds], Coroutine[Any, Any, None]] | None = None,
    figures: Callable[[], Mapping[str, int]] | None = None,
) -> Factory:
    """An operator that turns observations into `Placed` ones, in order.

    A newer catalogue is used from the next batch on. Observations whose batch the propagator has lost twice go to the dead
    letters as ``ProcessingException``; whatever else the propagator raises is the operator's own failure. ``keep_fresh``
    runs beside each instance and is cancelled with it: to reload the catalogue, say.

    Its own figures, as of the last batch: ``catalog_objects``, ``catalog_version``, ``intervals``, and whatever ``figures``
    has to tell of the propagator.
    """

    async def run(ends: WiredEnds) -> None:
        intervals = ends.keep("intervals", lambda: _Intervals(propagator, prediction))
        await catalog.load()
        async with _beside(keep_fresh(ends) if keep_fresh is not None else None):
            async for batch in ends.receiver.batches(_BATCH):
                version = catalog.current
                await intervals.use(version)
                intervals.lost.clear()  # every batch may try again
                found = [await intervals.at_or_lost(observation.sensor_timestamp) for observation in batch]
                placed = []
                for observation, interval in zip(batch, found, strict=True):
                    if isinstance(interval, BatchLost):
                        ends.dead_letter(observation, DeadLetterKind.PROCESSING_EXCEPTION, str(interval), attempts=2)
                    else:
                        placed.append(Placed(observation, interval))
                ends.gauge("catalog_objects", len(version.columns))
                ends.gauge("catalog_version", version.number)
                ends.gauge("intervals", len(intervals))
                for name, value in (figures() if figures is not None else {}).items():
                    ends.gauge(name, value)
                ends.commit(placed, acknowledge=len(batch))
                await ends.flush()

    return run


def correlate(associator: Associator) -> Factory:
    """An operator that turns `Placed` observations into correlations, one each, in order.

    Its own figures: how many were ``correlated``, ``ambiguous``, ``uct`` and ``unpredicted``, over all instances.
    """

    async def run(ends: WiredEnds) -> None:
        for association in get_args(Association):
            ends.count(association, 0)
        async for batch in ends.receiver.batches(_BATCH):
            correlations = associator.correlate(batch, now_ns=ends.clock.now_ns())
            ends.commit(correlations, acknowledge=len(batch))
            for association, count in Counter([found.association for found in correlations]).items():
                ends.count(association, count)
            await ends.flush()

    return run


def fuse(limits: WindowLimits | None = None) -> Factory:
    """An operator that passes correlations on, in order, and adds an update for every object that several sensors saw.

    Declare it as ``expanding`` and ``stateful``: updates are derived. The windows outlive the instance. At the end of the
    stream every window closes; if the operator is aborted, what is in them is given up, and the correlations are through.

    Its own figures: ``open_windows``, ``updates`` and ``closed_early``.
    """
    limits = limits or WindowLimits()

    async def run(ends: WiredEnds) -> None:
        windows = ends.keep("windows", lambda: CrossSensorWindows(limits))
        ends.count("updates", 0)
        while (batch := await _next_batch(ends, windows)) is None or batch:
            now, now_ns = ends.clock.monotonic(), ends.clock.now_ns()
            passed: list[Correlation | CrossSensorUpdate] = []
            passed += windows.due(now=now, now_ns=now_ns)
            for correlation in batch or ():
                passed.append(correlation)
                passed += windows.add(correlation, now=now, now_ns=now_ns)
            _commit(ends, windows, passed, acknowledge=len(batch or ()))
            await ends.flush()
        _commit(ends, windows, list(windows.close_all(now_ns=ends.clock.now_ns())), acknowledge=0)
        await ends.flush()

    return run


def _commit(
    ends: WiredEnds,
    windows: CrossSensorWindows,
    passed: Sequence[Correlation | CrossSensorUpdate],
    *,
    acknowledge: int,
) -> None:
    ends.commit(passed, acknowledge=acknowledge)
    ends.gauge("open_windows", len(windows))
    ends.gauge("closed_early", windows.closed_early)
    ends.count("updates", len(passed) - acknowledge)


async def _next_batch(ends: WiredEnds, windows: CrossSensorWindows) -> list[Correlation] | None:
    """What has come, or nothing by the time at which a window is due, or an empty list at the end of the stream."""
    due = windows.next_due()
    if due is None:
        return await ends.receiver.recv_many(_BATCH)
    limit = Timeout(ends.clock, max(0.0, due - ends.clock.monotonic()))
    try:
        async with limit:
            return await ends.receiver.recv_many(_BATCH)
    except TimeoutError:
        if not limit.expired:
            raise
        return None


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None] | None) -> AsyncIterator[None]:
    """Run it alongside, and call it off on leaving. If it fails, so does what it runs beside, at once and with that error."""
    if work is None:
        yield
        return
    try:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(work)
            try:
                yield
            finally:
                task.cancel()
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None


def _forget_all_but(kept: OrderedDict[int, Any], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)
