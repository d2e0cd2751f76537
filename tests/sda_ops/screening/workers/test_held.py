"""What a worker keeps of the positions of windows."""

from __future__ import annotations

import numpy as np

from sda_ops.screening.geometry.ephemeris import Ephemeris, PreparedObjects
from sda_ops.screening.geometry.screen import ScreeningOptions
from sda_ops.screening.workers.held import HeldPositions
from tests.helpers.mixed_objects import rows_of, with_elements
from tests.sda_ops.screening.orbits import EPOCH_NS, HOUR_NS, random_orbits, screened

OBJECTS = screened(random_orbits(40, seed=2))
OPTIONS = ScreeningOptions(engine="sgp4")


def of_hours(held: HeldPositions, prepared: PreparedObjects, first: int, last: int) -> Ephemeris:
    return held.of_window(prepared, EPOCH_NS + first * HOUR_NS, EPOCH_NS + last * HOUR_NS, OPTIONS)


def test_a_window_is_computed_once_and_updated_for_another_catalogue() -> None:
    held = HeldPositions()
    held.max_bytes = 10**9
    prepared = PreparedObjects(OBJECTS, engine="sgp4")
    first = of_hours(held, prepared, 0, 1)
    of_hours(held, prepared, 1, 2)
    assert of_hours(held, prepared, 0, 1) is first
    assert (held.computed, held.updated) == (2, 0)
    other = PreparedObjects(with_elements(rows_of(OBJECTS, range(30)), mo=OBJECTS.columns.mo[:30] + 0.1), engine="sgp4")
    updated = of_hours(held, other, 0, 1)
    assert (held.computed, held.updated, len(held)) == (2, 1, 2)
    assert updated.prepared is other
    np.testing.assert_allclose(updated.states(*window(updated)).r_km, computed_km(other), rtol=0.0, atol=1e-9)
    assert of_hours(held, other, 0, 1) is updated


def test_the_window_that_was_used_least_recently_goes_first() -> None:
    held = HeldPositions()
    prepared = PreparedObjects(OBJECTS, engine="sgp4")
    size = sum(level.r_km.nbytes for level in of_hours(held, prepared, 0, 1).levels)
    assert len(held) == 0  # nothing may be kept
    held.max_bytes = 2 * size
    for hour in (0, 1, 0, 2):  # the second goes
        of_hours(held, prepared, hour, hour + 1)
    held.computed = 0
    of_hours(held, prepared, 0, 1)
    of_hours(held, prepared, 2, 3)
    assert held.computed == 0
    of_hours(held, prepared, 1, 2)
    assert held.computed == 1


def window(ephemeris: Ephemeris) -> tuple[int, int]:
    return ephemeris.first_slice, ephemeris.end_slice


def computed_km(prepared: PreparedObjects) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    ephemeris = Ephemeris(prepared, EPOCH_NS, EPOCH_NS + HOUR_NS, interpolation_km=OPTIONS.interpolation_bound_m / 1e3)
    return ephemeris.states(*window(ephemeris)).r_km
