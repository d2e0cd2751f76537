"""Finds and assesses close approaches for the operator: screened in worker processes, assessed in a thread."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from sda_ops.astro.time import NS_PER_S
from sda_ops.screening.approaches import EndedObject, Screening
from sda_ops.screening.assessment.assess import assess
from sda_ops.screening.assessment.assumptions import Assumptions
from sda_ops.screening.assessment.formations import assess_slow_pairs
from sda_ops.screening.conjunctions.conjunction_table import WithoutPosition
from sda_ops.screening.conjunctions.estimates import estimates_of
from sda_ops.screening.conjunctions.operator import Found
from sda_ops.screening.geometry.screen import ScreeningOptions
from sda_ops.screening.objects import Rows, ScreenedObjects
from sda_ops.screening.workers.windows import WorkerLimits, Workers, screen_in_windows


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerScreener:
    """Screens in the workers of a pool that no other screening uses (``sda_ops.screening.workers.windows.screening_bulkhead``).

    Attributes:
        workers: The pool. It is not owned.
        miss_distance_m: Closer approaches are found.
        window: What one worker screens at a time.
        options: How windows are screened.
        assumptions: Sizes, fleets, errors.
        limits: What a screening may use of the workers' machines.
    """

    workers: Workers
    miss_distance_m: float
    window: timedelta
    options: ScreeningOptions = field(default_factory=ScreeningOptions)
    assumptions: Assumptions = field(default_factory=Assumptions)
    limits: WorkerLimits = field(default_factory=lambda: WorkerLimits(niceness=19))

    async def screen(self, objects: ScreenedObjects, start_ns: int, end_ns: int, rows: Rows | None) -> Found:
        """As `Screener`. Raises as `screen_in_windows`; a lost worker's window is repeated. A cancellation sends no more windows."""
        screening = await screen_in_windows(
            self.workers,
            objects,
            start_ns,
            timedelta(microseconds=(end_ns - start_ns) // 1_000),
            self.miss_distance_m,
            rows=rows,
            options=self.options,
            window=self.window,
            limits=self.limits,
        )
        return await asyncio.to_thread(self._assessed, objects, screening)

    def _assessed(self, objects: ScreenedObjects, screening: Screening) -> Found:
        slow_pairs = assess_slow_pairs(objects, screening.slow_pairs, assumptions=self.assumptions)
        conjunctions = assess(objects, screening.approaches, assumptions=self.assumptions, slow_pairs=slow_pairs)
        unscreened = [_why(objects, each) for each in screening.ended]
        numbers = objects.columns.catalog_number
        without = [WithoutPosition(numbers[each.row].item(), each.from_ns, each.until_ns) for each in screening.ended]
        first, second = (numbers[rows].tolist() for rows in (screening.slow_pairs.first, screening.slow_pairs.second))
        slow = set(zip(first, second, strict=True))
        return Found(estimates_of(objects, conjunctions), slow, unscreened, without)


def _why(objects: ScreenedObjects, ended: EndedObject) -> str:
    since = datetime.fromtimestamp(ended.from_ns // NS_PER_S, UTC)
    name = f"{objects.columns.catalog_number[ended.row]} {objects.names[ended.row]}".rstrip()
    return f"{name} from {since:%Y-%m-%dT%H:%M:%SZ}: {ended.reason}"
