"""What a running pipeline screens next: everything, the next window at the horizon's end, or the objects that changed. Pure.

Times are cut at absolute multiples of the window's length since the Unix epoch. What is screened begins `REACH_NS` before
now, so that a conjunction of the near future whose new estimate has moved into the past is not taken for a withdrawn one.
A window at the horizon's end begins twice that before the end of what was screened, for the same reason at that edge.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeAlias

import numpy as np

from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog.columns import ElementColumns
from sda_ops.screening.conjunctions.identity import REACH_NS
from sda_ops.screening.objects import Rows, ScreenedObjects


@dataclass(frozen=True, slots=True, kw_only=True)
class CoveragePlan:
    """How far ahead, and when everything is screened again.

    Attributes:
        horizon: How far ahead at least; at most one window more is covered.
        window: The length of the windows.
        all_above: If more objects changed, everything is screened again: that takes less time then.
    """

    horizon: timedelta
    window: timedelta
    all_above: int

    @property
    def window_ns(self) -> int:
        """The length of the windows."""
        return round(self.window.total_seconds()) * NS_PER_S

    def start_ns(self, now_ns: int) -> int:
        """The begin of the first window."""
        return (now_ns - REACH_NS) // self.window_ns * self.window_ns

    def end_ns(self, now_ns: int) -> int:
        """The end of the last window."""
        return -(-(now_ns + round(self.horizon.total_seconds()) * NS_PER_S) // self.window_ns) * self.window_ns


@dataclass(frozen=True, slots=True, eq=False)
class Coverage:
    """What was screened: these element sets, in this time.

    Attributes:
        objects: The element sets.
        start_ns: UTC.
        end_ns: UTC, a multiple of the window's length.
    """

    objects: ScreenedObjects
    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True)
class ScreenAll:
    """Screen all objects against each other in ``[start_ns, end_ns)``.

    ``end_ns`` is also the end of what is covered afterwards.
    """

    start_ns: int
    end_ns: int


@dataclass(frozen=True, slots=True, eq=False)
class ScreenChanged:
    """Screen ``rows`` against all objects in ``[start_ns, end_ns)``.

    Attributes:
        start_ns: UTC.
        end_ns: UTC.
        rows: The rows of the objects with other element sets, in the new objects; perhaps empty.
        numbers: Their catalogue numbers, and those of objects that are not in the catalogue any more.
    """

    start_ns: int
    end_ns: int
    rows: Rows
    numbers: Collection[int]


Step: TypeAlias = ScreenAll | ScreenChanged


def next_step(coverage: Coverage | None, objects: ScreenedObjects, now_ns: int, plan: CoveragePlan) -> Step | None:
    """What to screen now, of ``objects``, the newest element sets; ``None`` if everything is covered."""
    start_ns, end_ns = plan.start_ns(now_ns), plan.end_ns(now_ns)
    if coverage is None or not coverage.start_ns <= now_ns < coverage.end_ns:  # also if the clock was set back
        return ScreenAll(start_ns, end_ns)
    if objects is not coverage.objects:
        numbers = changed_objects(coverage.objects.columns, objects.columns)
        if len(numbers) > plan.all_above:
            return ScreenAll(start_ns, end_ns)
        if numbers:
            rows = np.flatnonzero(np.isin(objects.columns.catalog_number, list(numbers)))
            return ScreenChanged(start_ns, coverage.end_ns, rows, numbers)
    if coverage.end_ns < end_ns:
        return ScreenAll(max(start_ns, coverage.end_ns - 2 * REACH_NS), end_ns)
    return None


def covered_after(step: Step | None, coverage: Coverage | None, objects: ScreenedObjects) -> Coverage | None:
    """What is covered when ``step`` is done; ``None`` only without any step so far."""
    if step is None:
        return coverage if coverage is None else replace(coverage, objects=objects)
    if coverage is not None and coverage.end_ns - 2 * REACH_NS <= step.start_ns <= coverage.end_ns:  # the next window
        return Coverage(objects, coverage.start_ns, step.end_ns)
    return Coverage(objects, step.start_ns, step.end_ns)


def seconds_to_next_window(coverage: Coverage, now_ns: int, plan: CoveragePlan) -> float:
    """When the horizon reaches the end of what is covered."""
    return max(0.0, (coverage.end_ns - now_ns) / NS_PER_S - plan.horizon.total_seconds())


def changed_objects(old: ElementColumns, new: ElementColumns) -> frozenset[int]:
    """Catalogue numbers of the objects whose element sets differ, and of those that only one of the two has.

    Both have one element set of each object.
    """
    common, old_rows, new_rows = np.intersect1d(
        old.catalog_number, new.catalog_number, assume_unique=True, return_indices=True
    )
    differs = np.zeros(len(common), dtype=np.bool_)
    for name, column in old.arrays().items():
        differs |= column[old_rows] != new.arrays()[name][new_rows]
    only_one = np.setxor1d(old.catalog_number, new.catalog_number, assume_unique=True)
    return frozenset([*common[differs].tolist(), *only_one.tolist()])
