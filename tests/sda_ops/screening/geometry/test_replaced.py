"""Other element sets of some objects in a window whose positions are held, also of another class or without knots."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sda_ops.screening.approaches import Screening
from sda_ops.screening.geometry.against import screen_against
from sda_ops.screening.geometry.changed import with_objects
from sda_ops.screening.geometry.ephemeris import Ephemeris, PreparedObjects
from sda_ops.screening.geometry.screen import ScreeningOptions, screen_window
from tests.helpers.screening_comparison import part_of, same_list
from tests.sda_ops.screening.orbits import DECAYING_ORBIT, EPOCH_NS, HOUR_NS, Orbit, random_orbits, screened

END_NS = EPOCH_NS + HOUR_NS // 2
MISS_M = 200e3
KNOT_S = 360.0  # with such long knots some objects need shorter ones
ORBITS = [
    *random_orbits(150, seed=5),
    DECAYING_ORBIT,
    replace(DECAYING_ORBIT, node_deg=100.0),
    Orbit(perigee_km=-150.0),
]
OPTIONS = ScreeningOptions(broad_phase="scipy", engine="sgp4", knot_s=KNOT_S)

OTHERS = {
    0: replace(ORBITS[0], anomaly_deg=ORBITS[0].anomaly_deg + 0.5),
    2: replace(ORBITS[2], anomaly_deg=ORBITS[2].anomaly_deg - 0.5),  # geosynchronous
    3: replace(ORBITS[3], anomaly_deg=ORBITS[3].anomaly_deg + 3.0),  # eccentric
    5: replace(ORBITS[5], eccentricity=0.3),  # from the coarse to the fine class
    7: replace(ORBITS[7], eccentricity=1e-3),  # from the fine to the coarse class
    9: replace(ORBITS[9], perigee_km=110.0, bstar=1e-2),  # it decays now
    150: Orbit(perigee_km=560.0, node_deg=5.0),  # it decays no longer
    152: Orbit(perigee_km=560.0, node_deg=15.0),  # it had no position at all
}
NEW_ORBITS = [OTHERS.get(row, orbit) for row, orbit in enumerate(ORBITS)]
ROWS = np.array([*OTHERS])


@pytest.fixture(scope="module")
def old() -> Ephemeris:
    return held(ORBITS)


@pytest.fixture(scope="module")
def new(old: Ephemeris) -> Ephemeris:
    return with_objects(old, PreparedObjects(screened(NEW_ORBITS), engine="sgp4"))[0]


@pytest.fixture(scope="module")
def whole() -> Screening:
    """All against all, with the new element sets."""
    return screen_window(screened(NEW_ORBITS), EPOCH_NS, END_NS, MISS_M, OPTIONS)


def held(orbits: list[Orbit]) -> Ephemeris:
    prepared = PreparedObjects(screened(orbits), engine="sgp4")
    return Ephemeris(prepared, EPOCH_NS, END_NS, knot_s=KNOT_S, interpolation_km=0.025)


def positions(ephemeris: Ephemeris) -> np.ndarray:
    """Of every object, by row, at 30 times."""
    times_s = np.arange(30) * 60.0 + 7.25
    columns = np.repeat(ephemeris.prepared.columns, len(times_s))
    r_km, _ = ephemeris.at(columns, np.tile(times_s, len(ephemeris.prepared)))
    return r_km


def test_positions_are_those_of_the_new_element_sets(new: Ephemeris) -> None:
    """Of every object, within the certified error; an object that decays or that no longer does has them where SGP4 has."""
    expected = positions(held(NEW_ORBITS))
    ours = positions(new)
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(expected))
    assert np.isnan(expected).any()
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2 * new.interpolation_km)
    assert new.shortened > 0


def test_the_held_positions_do_not_change(old: Ephemeris, new: Ephemeris) -> None:
    """A replacement leaves the original as it was, with its element sets and every array."""
    assert new.prepared is not old.prepared
    np.testing.assert_array_equal(positions(old), positions(held(ORBITS)))


@pytest.mark.parametrize("rows", [ROWS, np.array([48]), np.array([5, 20])])
def test_a_screening_from_replaced_positions_is_that_of_the_new_element_sets(
    new: Ephemeris, rows: np.ndarray, whole: Screening
) -> None:
    """Changed and unchanged objects against all: the list of the whole screening with one of them."""
    ours = screen_against(new, rows, MISS_M, start_ns=EPOCH_NS, end_ns=END_NS)
    assert same_list(ours, part_of(whole, rows.tolist())) == ""
    assert len(ours.approaches) > 0
    assert ours.ended == whole.ended


def test_replacing_twice_and_back_gives_the_first_list(old: Ephemeris, new: Ephemeris) -> None:
    """The second replacement is of the first one's result."""
    back, _ = with_objects(new, PreparedObjects(screened(ORBITS), engine="sgp4"))
    lists = [screen_against(each, ROWS, MISS_M, start_ns=EPOCH_NS, end_ns=END_NS) for each in (back, old)]
    assert same_list(lists[0], lists[1]) == ""
    assert lists[0].ended == lists[1].ended


def test_the_replaced_objects_can_be_propagated_to_other_windows(new: Ephemeris) -> None:
    """A new window of the replaced objects has the new element sets' positions."""
    span = END_NS, END_NS + HOUR_NS // 2
    later = Ephemeris(new.prepared, *span)
    fresh = Ephemeris(PreparedObjects(screened(NEW_ORBITS), engine="sgp4"), *span)
    np.testing.assert_allclose(positions(later), positions(fresh), rtol=0, atol=0.1)
