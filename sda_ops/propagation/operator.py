"""The ``propagate`` operator: it attaches the catalogue's states at an observation's time to that observation.

It does not compute orbits itself: that is the task of the `CatalogPropagator` passed in.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from orchestrator_adapter import DeadLetterKind, Factory, WiredEnds, freeze_heap
from orchestrator_adapter.bulkhead import BatchLost
from sda_ops.astro.propagation import States
from sda_ops.astro.time import Nanoseconds
from sda_ops.catalog.columns import ElementColumns
from sda_ops.catalog.history import ElementHistory
from sda_ops.propagation.interval import STEP_NS, CatalogFacts, CatalogInterval, Placed, knots_of
from sda_ops.propagation.uncertainty import CatalogErrors, ElementSetErrors, Objects

_BATCH = 256
_S_PER_MIN = 60.0


class CatalogPropagator(Protocol):
    """Computes states of catalogued objects, like `sda_ops.propagation.pool.PropagatorPool`."""

    async def use_catalog(self, columns: ElementColumns) -> object:
        """Use this catalogue for all later requests."""

    async def propagate(self, objects: Objects | None, timestamp_ns: Nanoseconds) -> States:
        """States ``(objects, times, 3)`` of these rows of the catalogue; ``None`` means all."""


class CatalogSource(Protocol):
    """Provides the current catalogue, like `sda_ops.catalog.live.LiveCatalog`."""

    @property
    def current(self) -> LoadedCatalog:
        """The newest usable catalogue."""

    async def load(self) -> object:
        """Load a first catalogue, if none is loaded yet."""


class LoadedCatalog(Protocol):
    """One version of the catalogue, like `sda_ops.catalog.live.CatalogVersion`."""

    @property
    def number(self) -> int:
        """Its version number."""

    @property
    def columns(self) -> ElementColumns:
        """Its element sets; an object may have several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Settings of the ``propagate`` operator.

    Attributes:
        errors: The assumed errors of element sets.
        max_intervals: How many intervals are cached (least recently used ones go first): 4 MB each for 15,000 objects.
    """

    errors: ElementSetErrors
    max_intervals: int = 16


@dataclass(frozen=True, slots=True, eq=False)
class _Choice:
    """One element set of each object.

    Attributes:
        number: Identifies it within one catalogue.
        rows: Their rows in the catalogue; ``None`` means all.
        facts: Of these element sets.
    """

    number: int
    rows: Objects | None
    facts: CatalogFacts


class _Choices:
    """For each time one element set of each object: that of the nearest epoch.

    A choice is made for the middle of each ten minutes, so that the intervals in it share their knots, and all knots of an
    interval are of the same sets. So a set may be used five minutes before or after the time at which it is the nearest.
    """

    def __init__(self, version: LoadedCatalog, errors: ElementSetErrors) -> None:
        """Takes 30 ms for 73,000 element sets: not for the event loop."""
        columns = version.columns
        self._catalog_number = columns.catalog_number
        self._epoch_ns = columns.epoch_ns
        self._mean_motion_rad_s = columns.no_kozai / _S_PER_MIN
        self._version = version.number
        self._errors = errors
        self._history = ElementHistory(columns)
        self._made = 0
        self._by_block: OrderedDict[int, _Choice] = OrderedDict()
        self._only = self._make(None) if self._history.is_flat else None

    @property
    def version(self) -> int:
        return self._version

    @property
    def objects(self) -> int:
        return self._history.objects

    def at(self, timestamp_ns: int) -> _Choice:
        """The choice for this time."""
        if self._only is not None:
            return self._only
        block = timestamp_ns // _BLOCK_NS
        choice = self._by_block.get(block)
        if choice is None:
            rows = self._history.rows_at(block * _BLOCK_NS + _BLOCK_NS // 2)
            # Often the sets are those of a neighbouring block; then its knots are those of this one, too.
            made = (choice for choice in self._by_block.values() if _same(choice.rows, rows))
            choice = next(made, None) or self._make(rows)
            self._by_block[block] = choice
            _shrink(self._by_block, _MAX_BLOCKS)
        self._by_block.move_to_end(block)
        return choice

    def _make(self, rows: Objects | None) -> _Choice:
        chosen = slice(None) if rows is None else rows
        epoch_ns = self._epoch_ns[chosen]
        errors = CatalogErrors(self._errors, epoch_ns=epoch_ns, mean_motion_rad_s=self._mean_motion_rad_s[chosen])
        self._made += 1
        return _Choice(self._made, rows, CatalogFacts(self._version, self._catalog_number[chosen], epoch_ns, errors))


def _same(one: Objects | None, other: Objects) -> bool:
    return one is not None and np.array_equal(one, other)


_BLOCK_NS = 30 * STEP_NS
_MAX_BLOCKS = 16


class _IntervalCache:
    """Intervals of the catalogue in use, and the knots that they share.

    Attributes:
        lost: By interval number, the failed requests. They are not repeated until this is cleared.
    """

    def __init__(self, propagator: CatalogPropagator, prediction: Prediction) -> None:
        self._propagator = propagator
        self._prediction = prediction
        self._choices: _Choices | None = None
        self._knots: OrderedDict[tuple[int, int], States] = OrderedDict()  # by the numbers of choice and knot
        self._intervals: OrderedDict[int, CatalogInterval] = OrderedDict()
        self.lost: dict[int, BatchLost] = {}

    def __len__(self) -> int:
        return len(self._intervals)

    @property
    def objects(self) -> int:
        """How many objects the catalogue has."""
        return 0 if self._choices is None else self._choices.objects

    async def use(self, version: LoadedCatalog) -> None:
        """Switch to this catalogue and drop what was computed with another one."""
        if self._choices is not None and self._choices.version == version.number:
            return
        choices = await asyncio.to_thread(_Choices, version, self._prediction.errors)
        await self._propagator.use_catalog(version.columns)
        self._knots.clear()
        self._intervals.clear()
        self._choices = choices
        freeze_heap()  # otherwise each garbage collection scans the catalogue: a stall of 4 to 17 ms

    async def at(self, timestamp_ns: int) -> CatalogInterval:
        """The interval that contains this time; it is computed if it is not cached."""
        assert self._choices is not None
        number = timestamp_ns // STEP_NS
        interval = self._intervals.get(number)
        if interval is None:
            choice = self._choices.at(timestamp_ns)
            numbers = knots_of(timestamp_ns)
            await self._propagate(choice, [knot for knot in numbers if (choice.number, knot) not in self._knots])
            knots = [self._knots[choice.number, knot] for knot in numbers]
            interval = CatalogInterval(choice.facts, number * STEP_NS, knots)
            self._intervals[number] = interval
            _shrink(self._intervals, self._prediction.max_intervals)
            _shrink(self._knots, self._prediction.max_intervals + len(numbers))
        self._intervals.move_to_end(number)
        return interval

    async def at_or_lost(self, timestamp_ns: int) -> CatalogInterval | BatchLost:
        """As `at`, but returns ``BatchLost`` instead of raising it.

        Such a request has cost two workers, so it is not repeated for the next observation of the same interval.
        """
        number = timestamp_ns // STEP_NS
        if number not in self.lost:
            try:
                return await self.at(timestamp_ns)
            except BatchLost as error:
                self.lost[number] = error
        return self.lost[number]

    async def _propagate(self, choice: _Choice, knots: list[int]) -> None:
        if not knots:
            return
        states = await self._propagator.propagate(choice.rows, np.array(knots, dtype=np.int64) * STEP_NS)
        for column, knot in enumerate(knots):
            of_knot = slice(column, column + 1)
            self._knots[choice.number, knot] = States(
                states.r_teme_m[:, of_knot], states.v_teme_m_s[:, of_knot], states.error[:, of_knot]
            )


def propagate(
    catalog: CatalogSource,
    propagator: CatalogPropagator,
    prediction: Prediction,
    *,
    keep_fresh: Callable[[WiredEnds], Coroutine[Any, Any, None]] | None = None,
    figures: Callable[[], Mapping[str, int]] | None = None,
) -> Factory:
    """An operator that turns observations into `Placed` observations, in order.

    A newer catalogue is used from the next batch on. If the propagator loses an observation's request twice
    (``BatchLost``), the observation is dead-lettered as ``ProcessingException``. Any other error of the propagator fails the
    operator. ``keep_fresh`` (to reload the catalogue, for example) runs beside each instance and is cancelled with it.

    If an object has several element sets, the one whose epoch is nearest to the observation's time is used.

    Metrics, as of the last batch: ``catalog_objects``, ``catalog_element_sets``, ``catalog_version``, ``intervals``, and
    those that ``figures`` returns.
    """

    async def run(ends: WiredEnds) -> None:
        intervals = ends.keep("intervals", lambda: _IntervalCache(propagator, prediction))
        await catalog.load()
        async with _running_beside(keep_fresh(ends) if keep_fresh is not None else None):
            async for batch in ends.receiver.batches(_BATCH):
                version = catalog.current
                await intervals.use(version)
                intervals.lost.clear()  # each batch tries again
                found = [await intervals.at_or_lost(observation.sensor_timestamp) for observation in batch]
                placed = []
                for observation, interval in zip(batch, found, strict=True):
                    if isinstance(interval, BatchLost):
                        ends.dead_letter(observation, DeadLetterKind.PROCESSING_EXCEPTION, str(interval), attempts=2)
                    else:
                        placed.append(Placed(observation, interval))
                ends.gauge("catalog_objects", intervals.objects)
                ends.gauge("catalog_element_sets", len(version.columns))
                ends.gauge("catalog_version", version.number)
                ends.gauge("intervals", len(intervals))
                for name, value in (figures() if figures is not None else {}).items():
                    ends.gauge(name, value)
                ends.commit(placed, acknowledge=len(batch))
                await ends.flush()

    return run


@asynccontextmanager
async def _running_beside(work: Coroutine[Any, Any, None] | None) -> AsyncIterator[None]:
    """Run ``work`` during the block and cancel it at the end. If it fails, the block fails at once with the same error."""
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


def _shrink(cache: OrderedDict[Any, Any], max_items: int) -> None:
    while len(cache) > max_items:
        cache.popitem(last=False)
