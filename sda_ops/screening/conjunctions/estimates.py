"""Assessed close approaches as records: one `ConjunctionEstimate` each, in their order."""

from __future__ import annotations

import numpy as np

from sda_ops.astro.time import Floats
from sda_ops.records.conjunction import ConjunctionEstimate
from sda_ops.screening.assessment.assess import Conjunctions
from sda_ops.screening.assessment.orbit_classes import OrbitClass
from sda_ops.screening.exact import exact_states
from sda_ops.screening.objects import Rows, ScreenedObjects


def estimates_of(objects: ScreenedObjects, conjunctions: Conjunctions) -> list[ConjunctionEstimate]:
    """One estimate for each conjunction. About 30 µs each, of which 21 for the states.

    Raises ``ValueError`` if the objects are not sorted by catalogue number: a record's first object has the smaller number.
    """
    if (np.diff(objects.columns.catalog_number) <= 0).any():
        raise ValueError("expected objects sorted by catalogue number")
    fleets: tuple[str | None, ...] = (*conjunctions.fleets, None)  # index -1 is no fleet
    classes = {each.value: each.name for each in OrbitClass}
    first, second = (_names(objects, rows) for rows in (conjunctions.first, conjunctions.second))
    radial, in_track, cross_track = conjunctions.relative_position_m.T.tolist()
    columns = zip(
        conjunctions.catalog_number_first.tolist(),
        conjunctions.catalog_number_second.tolist(),
        first,
        second,
        conjunctions.tca_ns.tolist(),
        conjunctions.miss_m.tolist(),
        radial,
        in_track,
        cross_track,
        conjunctions.relative_speed_m_s.tolist(),
        conjunctions.max_probability.tolist(),
        _known(conjunctions.dilution_m),
        _known(conjunctions.probability),
        conjunctions.epoch_first_ns.tolist(),
        conjunctions.epoch_second_ns.tolist(),
        conjunctions.age_first_s.tolist(),
        conjunctions.age_second_s.tolist(),
        conjunctions.radius_first_m.tolist(),
        conjunctions.radius_second_m.tolist(),
        [classes[code] for code in conjunctions.orbit_class_first.tolist()],
        [classes[code] for code in conjunctions.orbit_class_second.tolist()],
        [fleets[index] for index in conjunctions.fleet_first.tolist()],
        [fleets[index] for index in conjunctions.fleet_second.tolist()],
        conjunctions.same_fleet.tolist(),
        conjunctions.formation.tolist(),
        [objects.designators[row] for row in conjunctions.first.tolist()],
        [objects.designators[row] for row in conjunctions.second.tolist()],
        *_states(objects, conjunctions),
        strict=True,
    )
    names = ConjunctionEstimate.__struct_fields__
    return [ConjunctionEstimate(**dict(zip(names, values, strict=True))) for values in columns]


def _names(objects: ScreenedObjects, rows: Rows) -> list[str]:
    return [objects.names[row] for row in rows.tolist()]


def _states(objects: ScreenedObjects, conjunctions: Conjunctions) -> list[list[float | None]]:
    """Twelve columns: position and velocity of the first object, then of the second; ``None`` where SGP4 has no state."""
    columns: list[list[float | None]] = []
    for rows in (conjunctions.first, conjunctions.second):
        states = exact_states(objects.satrecs, rows, conjunctions.tca_ns)
        both = np.concatenate((states.r_teme_m, states.v_teme_m_s), axis=1)
        both[states.failed] = np.nan
        columns += map(_known, both.T)
    return columns


def _known(values: Floats) -> list[float | None]:
    """``None`` where there is no value."""
    return [value if np.isfinite(value) else None for value in values.tolist()]
