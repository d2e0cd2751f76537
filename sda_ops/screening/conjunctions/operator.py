"""The ``screen`` source of a graph: it screens the current catalogue as it changes and as time goes on, and keeps the table.

Each result of a screening is first written to the table of conjunctions, in one transaction, and then sent on from there. So
a restart of the operator or of the process repeats a screening at most, and the table finds that nothing has changed. A sink
confirms what it has on its disk (`confirming`); the next process sends what was not confirmed.

It does not compute orbits itself: that is the task of the `Screener` passed in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol

import numpy as np

from orchestrator_adapter import EventLog, Factory, Wakeup, WiredEnds, check_fields, freeze_heap
from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog.columns import ElementColumns
from sda_ops.catalog.elements import ElementSet
from sda_ops.catalog.history import ElementHistory, selected
from sda_ops.records.conjunction import ConjunctionEstimate, ConjunctionUpdate
from sda_ops.records.ids import ENCOUNTER_BUCKET_NS
from sda_ops.screening.conjunctions.conjunction_table import (
    ConjunctionTable,
    ConjunctionTableError,
    Screened,
    WithoutPosition,
)
from sda_ops.screening.conjunctions.coverage import (
    Coverage,
    CoveragePlan,
    ScreenAll,
    ScreenChanged,
    Step,
    covered_after,
    next_step,
    seconds_to_next_window,
)
from sda_ops.screening.objects import Rows, ScreenedObjects

logger = logging.getLogger(__name__)

_BATCH = 1_024
_REASONS_LOGGED = 3


@dataclass(frozen=True, slots=True)
class Found:
    """The result of one screening.

    Attributes:
        estimates: One for each close approach.
        slow_pairs: The catalogue numbers of the pairs that are docked, in formation or otherwise slow, the smaller one first.
        unscreened: One sentence for each object without a usable position in a part of the time.
        without_position: The same objects, each with that part.
    """

    estimates: Sequence[ConjunctionEstimate]
    slow_pairs: Collection[tuple[int, int]] = ()
    unscreened: Sequence[str] = ()
    without_position: Sequence[WithoutPosition] = ()


class Screener(Protocol):
    """Finds and assesses close approaches, like `sda_ops.screening.conjunctions.screener.WorkerScreener`."""

    async def screen(self, objects: ScreenedObjects, start_ns: int, end_ns: int, rows: Rows | None) -> Found:
        """Screen ``rows`` (``None``: all) against all objects in ``[start_ns, end_ns)``."""
        ...


class CatalogVersion(Protocol):
    """One version of the catalogue, like `sda_ops.catalog.live.CatalogVersion`."""

    @property
    def number(self) -> int:
        """Its version number."""

    @property
    def element_sets(self) -> Sequence[ElementSet]:
        """Its element sets; an object may have several."""

    @property
    def columns(self) -> ElementColumns:
        """The same element sets, in the same order."""


class ChangingCatalog(Protocol):
    """The current catalogue, like `sda_ops.catalog.live.LiveCatalog`."""

    @property
    def current(self) -> CatalogVersion:
        """The newest usable version."""

    async def load(self) -> object:
        """Load a first version, if none is loaded yet."""

    def on_change(self, listener: Callable[[CatalogVersion], object]) -> Callable[[], None]:
        """Call ``listener`` with each later version. Returns a function that ends this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreeningRules:
    """What the operator covers, and what it keeps.

    Attributes:
        plan: How far ahead, in which windows, and when everything is screened again.
        keep: How long a conjunction stays in the table after its time of closest approach; at least `ENCOUNTER_BUCKET_NS`.
        check_every: How often conjunctions are examined for being over, on the graph's clock.
    """

    plan: CoveragePlan
    keep: timedelta = timedelta(days=3)
    check_every: timedelta = timedelta(seconds=60)

    def __post_init__(self) -> None:
        check_fields(
            "ScreeningRules",
            ("keep", self.keep, self.keep >= timedelta(0), ">= 0"),
            ("check_every", self.check_every, self.check_every > timedelta(0), "> 0"),
        )


def screen_conjunctions(
    catalog: ChangingCatalog,
    screener: Screener,
    table: ConjunctionTable,
    settings: ScreeningRules,
    *,
    figures: Callable[[], Mapping[str, int]] | None = None,
) -> Factory:
    """A source of `ConjunctionUpdate` records, in the order of their sequence. It ends at the shutdown only.

    At the start everything up to the horizon is screened. After that: the next window when the horizon reaches it, the
    objects whose element sets have changed when there is a new catalogue, and everything if too many have changed. Of several
    element sets of an object, the one is used whose epoch was the nearest when the catalogue's version came.

    ``table`` is opened, if it is not open, and closed with the run. A shutdown cancels a screening; the next start repeats it.
    What ``screener`` and ``table`` raise fails the operator.

    Metrics: ``conjunctions`` (active ones), ``conjunctions_withdrawn``, ``conjunctions_passed`` and ``conjunction_updates`` in
    the table; ``screenings`` and, of these, ``rescreenings`` because of a new catalogue; ``last_screening_ms`` and
    ``last_screening_age_s``, since the operator began before the first; ``slow_pairs`` and ``unscreened_objects`` of the last screening of everything, and those
    that ``figures`` returns.
    """

    async def run(ends: WiredEnds) -> None:
        await ends.run_blocking_within(None, table.open)
        ends.keep("table", lambda: table, ConjunctionTable.close)
        held = ends.keep("screening", lambda: _Held(ends.clock.monotonic()))
        screening = _Screening(ends, held, screener, table, settings, figures)
        await catalog.load()
        changed = Wakeup()
        ends.shutdown.on_set(changed.wake)
        stop_listening = catalog.on_change(lambda _: changed.wake())
        try:
            while not ends.shutdown.is_set:
                await screening.check_times()
                await screening.deliver()
                version = catalog.current
                objects = await screening.objects_of(version)
                step = next_step(held.coverage, objects, ends.clock.now_ns(), settings.plan)
                if step is not None:
                    await screening.perform(step, objects)
                    continue
                held.coverage = covered_after(step, held.coverage, objects)
                if catalog.current is version and not ends.shutdown.is_set:
                    await changed.wait_until(ends.clock.monotonic() + screening.idle_s(), ends.clock)
        finally:
            stop_listening()

    return run


def confirming(table: ConjunctionTable) -> Callable[[Sequence[object]], None]:
    """For the sink's ``on_commit``: confirm to ``table`` the updates that the sink has on its disk.

    If the table cannot be written, a line in the log says so, and the sink goes on: the next confirmation includes this one, or
    the next process sends these updates again, with the same ids and revisions.
    """

    def confirm(batch: Sequence[object]) -> None:
        sequences = [record.sequence for record in batch if isinstance(record, ConjunctionUpdate)]
        if sequences:
            try:
                table.confirm(max(sequences))
            except ConjunctionTableError as error:
                logger.warning("updates that are on the disk are not confirmed: %s", error)

    return confirm


def newest_objects(version: CatalogVersion, now_ns: int) -> ScreenedObjects:
    """The element set of each object whose epoch is nearest to ``now_ns``, sorted by catalogue number."""
    rows = ElementHistory(version.columns).rows_at(now_ns)
    rows = rows[np.argsort(version.columns.catalog_number[rows])]
    chosen = [version.element_sets[row] for row in rows.tolist()]
    return ScreenedObjects(
        selected(version.columns, rows),
        tuple(each.name for each in chosen),
        tuple(each.satrec.intldesg.strip() for each in chosen),
    )


@dataclass(slots=True)
class _Held:
    """What outlives an instance of the operator.

    Attributes:
        coverage: What was screened, and is in the table.
        version: The number of the catalogue's version that ``objects`` are of.
        objects: The objects to screen.
        sent: The last update that was sent on.
        screened_at: When the last screening ended, or the operator began, monotonic seconds.
    """

    screened_at: float

    coverage: Coverage | None = None
    version: int = 0
    objects: ScreenedObjects | None = None
    sent: int = 0


class _Screening:
    """The steps of the operator."""

    def __init__(
        self,
        ends: WiredEnds,
        held: _Held,
        screener: Screener,
        table: ConjunctionTable,
        settings: ScreeningRules,
        figures: Callable[[], Mapping[str, int]] | None,
    ) -> None:
        self._ends = ends
        self._held = held
        self._screener = screener
        self._table = table
        self._settings = settings
        self._figures = figures
        self._log = EventLog(logger, clock=ends.clock, operator=ends.name, instance=ends.instance)
        for name in ("screenings", "rescreenings"):
            ends.count(name, 0)

    async def objects_of(self, version: CatalogVersion) -> ScreenedObjects:
        """The objects of the catalogue's current version."""
        held = self._held
        if held.objects is None or held.version != version.number:
            held.objects = await asyncio.to_thread(newest_objects, version, self._ends.clock.now_ns())
            held.version = version.number
            freeze_heap()  # otherwise each garbage collection scans the objects
        return held.objects

    async def perform(self, step: Step, objects: ScreenedObjects) -> None:
        """Screen, and write the result to the table. Does nothing more if the shutdown comes first."""
        ends, began = self._ends, self._ends.clock.monotonic()
        rows = step.rows if isinstance(step, ScreenChanged) else None
        found: Found | None = Found(())
        if rows is None or len(rows):
            found = await ends.unless_shutdown(self._screener.screen(objects, step.start_ns, step.end_ns, rows))
        if found is None:
            return
        changed = step.numbers if isinstance(step, ScreenChanged) else None
        there = frozenset(objects.columns.catalog_number.tolist())
        screened = Screened(
            step.start_ns, step.end_ns, changed, there, found.without_position, frozenset(found.slow_pairs)
        )
        now_ns = ends.clock.now_ns()
        recorded = await ends.run_blocking_within(None, self._table.record, found.estimates, screened, now_ns)
        held = self._held
        of_new_catalog = held.coverage is not None and held.coverage.objects is not objects
        held.coverage = covered_after(step, held.coverage, objects)
        held.screened_at = ends.clock.monotonic()
        ends.count("screenings")
        ends.count("rescreenings", of_new_catalog)
        ends.gauge("last_screening_ms", round(1_000 * (held.screened_at - began)))
        if isinstance(step, ScreenAll):
            ends.gauge("slow_pairs", len(found.slow_pairs))
            ends.gauge("unscreened_objects", len(found.unscreened))
        self._log(
            "screened",
            objects=len(objects) if rows is None else len(rows),
            hours=round((step.end_ns - step.start_ns) / (3_600 * NS_PER_S), 1),
            new_catalog=of_new_catalog,
            approaches=len(found.estimates),
            new=recorded.new,
            updated=recorded.updated,
            unchanged=recorded.unchanged,
            withdrawn=recorded.withdrawn,
            elapsed_s=round(held.screened_at - began, 3),
        )
        if found.unscreened:
            reasons = list(found.unscreened[:_REASONS_LOGGED])
            self._log("objects_unscreened", level=logging.WARNING, objects=len(found.unscreened), reasons=reasons)

    async def check_times(self) -> None:
        """Set conjunctions whose time is over to ``passed``, and remove old ones."""
        ends, now_ns = self._ends, self._ends.clock.now_ns()
        await ends.run_blocking_within(None, self._table.mark_passed, now_ns)
        keep_ns = round(self._settings.keep.total_seconds()) * NS_PER_S
        before_ns = now_ns - max(keep_ns, ENCOUNTER_BUCKET_NS)  # the next approach must not get the id of a removed one
        await ends.run_blocking_within(None, self._table.remove_older, before_ns)

    async def deliver(self) -> None:
        """Send on what is in the table and was not sent, and set the figures."""
        ends, held = self._ends, self._held
        while not ends.shutdown.is_set:
            updates = await ends.run_blocking_within(None, self._table.undelivered, held.sent, _BATCH)
            if not updates:
                break
            ends.ingest(updates)  # from here on the runtime delivers them, also if this instance fails
            held.sent = updates[-1].sequence
            await ends.flush()
        count = await ends.run_blocking_within(None, self._table.held)
        ends.gauge("conjunctions", count.active)
        ends.gauge("conjunctions_withdrawn", count.withdrawn)
        ends.gauge("conjunctions_passed", count.passed)
        ends.gauge("conjunction_updates", count.updates)
        ends.gauge("last_screening_age_s", round(ends.clock.monotonic() - held.screened_at))
        for name, value in (self._figures() if self._figures is not None else {}).items():
            ends.gauge(name, value)

    def idle_s(self) -> float:
        """How long there is nothing to do, unless the catalogue changes."""
        assert self._held.coverage is not None
        to_window_s = seconds_to_next_window(self._held.coverage, self._ends.clock.now_ns(), self._settings.plan)
        return min(self._settings.check_every.total_seconds(), to_window_s + 1e-3)
