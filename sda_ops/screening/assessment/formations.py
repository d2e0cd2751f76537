"""Assessment of slow pairs: docked objects, formations, and objects that pass each other slowly.

The kind follows from the orbits alone, not from a list of known stations. It says nothing about intentions: two satellites
that drift through each other's neighbourhood for hours look like a formation.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds
from sda_ops.screening.approaches import SlowPairs
from sda_ops.screening.assessment.assumptions import Assumptions
from sda_ops.screening.assessment.fleets import NO_FLEET, FleetIndices
from sda_ops.screening.exact import exact_states
from sda_ops.screening.objects import Rows, ScreenedObjects

DOCKED_M = 100.0
"""A pair that stays within this distance for a revolution is taken as docked: the largest station measures 109 m."""

FORMATION_S = 6 * 3_600.0
"""A formation is within the miss distance for so long in a screening. Objects of one launch drift apart sooner."""

FORMATION_M = 25_000.0
"""The objects of a formation stay within this distance for a revolution. Objects that drift past each other do not."""

_SAMPLES = 24
"""Times in a revolution at which the distance of a pair is computed."""


class PairKind(IntEnum):
    """What a slow pair is."""

    PASSING = 0
    """The objects pass each other slowly, as satellites of one launch do and neighbours in the geosynchronous belt."""
    FORMATION = 1
    """They are within the miss distance for `FORMATION_S`, and stay within `FORMATION_M` for a revolution."""
    DOCKED = 2
    """They have the same elements, or stay within `DOCKED_M` for a revolution."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AssessedSlowPairs:
    """Slow pairs, in the order of the screening's. Every array has ``n`` rows.

    Attributes:
        first: Row numbers of the screened objects.
        second: Row numbers, ``first < second``.
        catalog_number_first: Of the first object.
        catalog_number_second: Of the second object.
        kind: Values of `PairKind`.
        smallest_m: The smallest distance in the window.
        smallest_at_ns: When, UTC.
        relative_speed_m_s: The speed at that time.
        minima: The number of minima.
        contact_s: How long the pair is within the miss distance, to the length of a slice.
        largest_m: The largest distance in the revolution around ``smallest_at_ns``, at 24 times; NaN if SGP4 fails there.
        fleet_first: Index into ``fleets``; -1 for none.
        fleet_second: Index into ``fleets``; -1 for none.
        same_fleet: Whether both belong to one fleet.
        fleets: The names of the fleets.
    """

    first: Rows
    second: Rows
    catalog_number_first: npt.NDArray[np.int64]
    catalog_number_second: npt.NDArray[np.int64]
    kind: npt.NDArray[np.int8]
    smallest_m: Floats
    smallest_at_ns: Nanoseconds
    relative_speed_m_s: Floats
    minima: Nanoseconds
    contact_s: Floats
    largest_m: Floats
    fleet_first: FleetIndices
    fleet_second: FleetIndices
    same_fleet: npt.NDArray[np.bool_]
    fleets: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.first)

    def are_together(self, first: Rows, second: Rows, *, objects: int) -> npt.NDArray[np.bool_]:
        """Whether each pair of rows ``first[i]``, ``second[i]`` is docked or in formation. ``objects``: how many were screened."""
        stay = self.kind != PairKind.PASSING
        key = self.first[stay].astype(np.int64) * objects + self.second[stay]
        return np.isin(first.astype(np.int64) * objects + second, key)


def assess_slow_pairs(
    objects: ScreenedObjects, slow_pairs: SlowPairs, *, assumptions: Assumptions | None = None
) -> AssessedSlowPairs:
    """What each slow pair is. ``slow_pairs`` are those of a whole screening: one shorter than `FORMATION_S` has no formation."""
    given = Assumptions() if assumptions is None else assumptions
    columns = objects.columns
    first, second = slow_pairs.first, slow_pairs.second
    period_s = 2.0 * np.pi / columns.no_kozai[first] * 60.0
    shared = _share_elements(objects, first, second)
    largest_m = np.where(shared, 0.0, _largest_m(objects, slow_pairs, period_s))
    kind = np.full(len(slow_pairs), PairKind.PASSING.value, dtype=np.int8)
    together = (slow_pairs.contact_s >= FORMATION_S) & (largest_m <= FORMATION_M)
    kind[together] = PairKind.FORMATION.value
    kind[shared | (largest_m <= DOCKED_M)] = PairKind.DOCKED.value
    both = np.concatenate((first, second))
    fleet = given.fleets.of(columns.catalog_number[both].tolist(), [objects.names[row] for row in both.tolist()])
    fleet_first, fleet_second = fleet[: len(first)], fleet[len(first) :]
    return AssessedSlowPairs(
        first=first,
        second=second,
        catalog_number_first=columns.catalog_number[first],
        catalog_number_second=columns.catalog_number[second],
        kind=kind,
        smallest_m=slow_pairs.smallest_m,
        smallest_at_ns=slow_pairs.smallest_at_ns,
        relative_speed_m_s=slow_pairs.relative_speed_m_s,
        minima=slow_pairs.minima,
        contact_s=slow_pairs.contact_s,
        largest_m=largest_m,
        fleet_first=fleet_first,
        fleet_second=fleet_second,
        same_fleet=(fleet_first == fleet_second) & (fleet_first != NO_FLEET),
        fleets=given.fleets.names,
    )


def _share_elements(objects: ScreenedObjects, first: Rows, second: Rows) -> npt.NDArray[np.bool_]:
    """Whether both have the same element set, as docked objects have in public catalogues."""
    same = np.ones(len(first), dtype=np.bool_)
    for name, column in objects.columns.arrays().items():
        if name != "catalog_number":
            same &= column[first] == column[second]
    return same


def _largest_m(objects: ScreenedObjects, slow_pairs: SlowPairs, period_s: Floats) -> Floats:
    fractions = np.linspace(-0.5, 0.5, _SAMPLES)
    offset_ns = (period_s[:, np.newaxis] * fractions * NS_PER_S).astype(np.int64)
    timestamp_ns = (slow_pairs.smallest_at_ns[:, np.newaxis] + offset_ns).ravel()
    first, second = (
        exact_states(objects.satrecs, np.repeat(rows, _SAMPLES), timestamp_ns)
        for rows in (slow_pairs.first, slow_pairs.second)
    )
    distance_m = np.linalg.norm(second.r_teme_m - first.r_teme_m, axis=1)
    distance_m[first.failed | second.failed] = np.nan
    largest_m: Floats = distance_m.reshape(-1, _SAMPLES).max(axis=1, initial=0.0)
    return largest_m
