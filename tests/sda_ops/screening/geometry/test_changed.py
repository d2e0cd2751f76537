"""Held positions after a change of the catalogue: as if all had been propagated, without propagating the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from sda_ops.screening.geometry import changed as changed_module
from sda_ops.screening.geometry.against import screen_against
from sda_ops.screening.geometry.changed import rows_changed, with_objects
from sda_ops.screening.geometry.ephemeris import Ephemeris, PreparedObjects
from sda_ops.screening.geometry.screen import ScreeningOptions, screen_window
from sda_ops.screening.objects import ScreenedObjects
from tests.helpers.mixed_objects import rows_of, with_elements
from tests.helpers.screening_comparison import same_list
from tests.sda_ops.screening.orbits import DECAYING_ORBIT, EPOCH_NS, HOUR_NS, Orbit, random_orbits, screened

END_NS = EPOCH_NS + HOUR_NS
MISS_M = 100e3
BOUND_KM = 0.004


def population() -> list[Orbit]:
    """Random orbits, three that decay, one without knots, and two that need shorter knots than their class."""
    return [
        *random_orbits(60, seed=4),
        DECAYING_ORBIT,
        replace(DECAYING_ORBIT, anomaly_deg=0.1),
        replace(DECAYING_ORBIT, anomaly_deg=0.2, inclination_deg=53.3),
        Orbit(perigee_km=-150.0, eccentricity=0.2, anomaly_deg=200.0),
        Orbit(perigee_km=180.0, eccentricity=0.099, anomaly_deg=340.0),
        Orbit(perigee_km=160.0, eccentricity=0.8, anomaly_deg=359.0),
    ]


OBJECTS = screened(population())
LAST = len(OBJECTS) - 1


def changed_objects(rows: Sequence[int]) -> ScreenedObjects:
    """The same objects, those rows a little farther on their orbits."""
    mean_anomaly = OBJECTS.columns.mo.copy()
    mean_anomaly[list(rows)] += 0.01
    return with_elements(OBJECTS, mo=mean_anomaly)


def positions(prepared: PreparedObjects) -> Ephemeris:
    """With a bound that a dozen objects do not keep with knots of their class."""
    return Ephemeris(prepared, EPOCH_NS, END_NS, interpolation_km=BOUND_KM)


def assert_equal(got: Ephemeris, expected: Ephemeris) -> None:
    first, end = expected.first_slice, expected.end_slice
    one, other = got.states(first, end), expected.states(first, end)
    np.testing.assert_array_equal(one.alive, other.alive)
    alive = np.broadcast_to(one.alive[:, np.newaxis, :], one.r_km.shape)
    np.testing.assert_allclose(one.r_km[alive], other.r_km[alive], rtol=0.0, atol=1e-9)
    np.testing.assert_allclose(one.v_km_s[alive], other.v_km_s[alive], rtol=0.0, atol=1e-11)
    np.testing.assert_allclose(
        one.beta_km_s2 + 0.0 * one.r_km[:, 0], other.beta_km_s2 + 0.0 * one.r_km[:, 0], rtol=1e-6
    )
    np.testing.assert_array_equal(got.direct.columns, expected.direct.columns)
    np.testing.assert_array_equal(got.direct.slices, expected.direct.slices)
    np.testing.assert_allclose(got.greatest.speed_km_s, expected.greatest.speed_km_s, rtol=1e-6)
    np.testing.assert_allclose(got.greatest.radial_km, expected.greatest.radial_km, rtol=1e-6)
    np.testing.assert_array_equal(got.greatest.regular, expected.greatest.regular)
    columns = np.repeat(np.arange(len(expected.prepared)), 7)
    at_s = np.tile(np.linspace(0.0, 3599.0, 7), len(expected.prepared))
    np.testing.assert_allclose(got.at(columns, at_s)[0], expected.at(columns, at_s)[0], rtol=0.0, atol=1e-9)
    assert got.shortened == expected.shortened > 0
    assert got.certified_km >= expected.certified_km


CATALOGS = {
    "one changed element set": (changed_objects([7]), 1),
    "changed element sets of every kind": (changed_objects([3, 60, 63, 64, 65]), 5),
    "no change": (OBJECTS, 0),
    "another order": (rows_of(OBJECTS, range(LAST, -1, -1)), 0),
    "removed objects": (rows_of(OBJECTS, [*range(1, 60, 2), 61, 65]), 0),
    "all element sets": (changed_objects(range(LAST + 1)), LAST + 1),
}


@pytest.mark.parametrize("name", CATALOGS)
def test_positions_are_those_of_the_changed_catalogue(name: str) -> None:
    objects, expected_count = CATALOGS[name]
    held = positions(PreparedObjects(OBJECTS, engine="sgp4"))
    assert held.greatest.regular.any()
    prepared = PreparedObjects(objects, engine="sgp4")
    got, changed = with_objects(held, prepared)
    assert len(changed) == expected_count
    assert_equal(got, positions(prepared))


def test_new_objects_are_added_and_others_stay() -> None:
    some = rows_of(OBJECTS, [*range(40), 61, 64])
    held = positions(PreparedObjects(some, engine="sgp4"))
    prepared = PreparedObjects(changed_objects([2]), engine="sgp4")
    got, changed = with_objects(held, prepared)
    assert changed.tolist() == [2, *range(40, 61), 62, 63, 65]
    assert_equal(got, positions(prepared))
    # Twice in succession, back to the first catalogue.
    again, changed = with_objects(got, PreparedObjects(some, engine="sgp4"))
    assert changed.tolist() == [2]
    assert_equal(again, positions(PreparedObjects(some, engine="sgp4")))


def test_only_changed_element_sets_are_propagated(monkeypatch: pytest.MonkeyPatch) -> None:
    propagated: list[int] = []

    class Counting(PreparedObjects):
        def __init__(self, objects: ScreenedObjects, *, engine: str = "auto") -> None:
            super().__init__(objects, engine="sgp4")
            propagated.append(len(objects))

    held = positions(PreparedObjects(OBJECTS, engine="sgp4"))
    prepared = PreparedObjects(changed_objects([7, 9]), engine="sgp4")
    monkeypatch.setattr(changed_module, "PreparedObjects", Counting)
    monkeypatch.setattr(prepared, "knots_km", None)  # would propagate all
    with_objects(held, prepared)
    assert propagated == [2]


def test_a_changed_object_against_all_has_its_part_of_the_new_list() -> None:
    rows = [1, 5, 60, 61]
    prepared = PreparedObjects(changed_objects(rows), engine="sgp4")
    held = positions(PreparedObjects(OBJECTS, engine="sgp4"))
    updated, changed = with_objects(held, prepared)
    assert changed.tolist() == rows
    got = screen_against(updated, changed, MISS_M, start_ns=EPOCH_NS, end_ns=END_NS)
    expected = screen_against(positions(prepared), changed, MISS_M, start_ns=EPOCH_NS, end_ns=END_NS)
    assert same_list(expected, got) == ""
    whole = screen_window(prepared, EPOCH_NS, END_NS, MISS_M, ScreeningOptions(broad_phase="scipy"))
    assert len(got.approaches) == sum(
        first in rows or second in rows
        for first, second in zip(whole.approaches.first.tolist(), whole.approaches.second.tolist(), strict=True)
    )


def test_a_row_is_changed_if_any_element_is() -> None:
    changed, old_rows = rows_changed(OBJECTS, rows_of(changed_objects([4]), [5, 4, 3]))
    assert changed.tolist() == [1]
    assert old_rows.tolist() == [5, -1, 3]
