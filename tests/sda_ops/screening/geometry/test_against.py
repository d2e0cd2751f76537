"""Some objects against all: the part of the whole list that involves them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from sda_ops.screening.approaches import Screening
from sda_ops.screening.geometry.against import screen_against
from sda_ops.screening.geometry.ephemeris import Ephemeris, PreparedObjects
from sda_ops.screening.geometry.nearby import nearby
from sda_ops.screening.geometry.screen import ScreeningOptions, screen_window
from tests.helpers.mixed_objects import START_NS, mixed, needs_real_catalog, real_objects
from tests.helpers.screening_comparison import part_of, same_list
from tests.helpers.sizes import small_and_long
from tests.sda_ops.screening.orbits import (
    DECAYING_ORBIT,
    EPOCH_NS,
    HOUR_NS,
    TWO_DOCKED,
    TWO_IN_FORMATION,
    Orbit,
    random_orbits,
    screened,
)


def population() -> list[Orbit]:
    """Random orbits, two docked objects, a formation, and three that decay: one of them has no knots at all."""
    return [
        *random_orbits(150, seed=5),
        *TWO_DOCKED,
        *TWO_IN_FORMATION,
        DECAYING_ORBIT,
        replace(DECAYING_ORBIT, anomaly_deg=0.1),
        replace(DECAYING_ORBIT, anomaly_deg=0.2, inclination_deg=53.3),
        Orbit(perigee_km=-150.0, eccentricity=0.2, anomaly_deg=200.0),
    ]


PREPARED = PreparedObjects(screened(population()), engine="sgp4")
DOCKED, DECAYING, UNDERGROUND = 150, 154, 157
END_NS = EPOCH_NS + 2 * HOUR_NS
MISS_M = 100e3
PLAIN = ScreeningOptions(broad_phase="scipy")


@pytest.fixture(scope="module")
def whole() -> Screening:
    return screen_window(PREPARED, EPOCH_NS, END_NS, MISS_M, PLAIN)


@pytest.fixture(scope="module")
def held() -> Ephemeris:
    return Ephemeris(PREPARED, EPOCH_NS, END_NS)


def assert_same(expected: Screening, got: Screening) -> None:
    assert same_list(expected, got) == ""
    np.testing.assert_array_equal(got.approaches.first, expected.approaches.first)
    np.testing.assert_array_equal(got.approaches.second, expected.approaches.second)
    np.testing.assert_allclose(got.approaches.tca_ns, expected.approaches.tca_ns, rtol=0.0, atol=100_000)
    np.testing.assert_allclose(got.approaches.miss_m, expected.approaches.miss_m, rtol=0.0, atol=1e-5)
    np.testing.assert_array_equal(got.slow_pairs.minima, expected.slow_pairs.minima)
    np.testing.assert_allclose(got.slow_pairs.contact_s, expected.slow_pairs.contact_s, rtol=0.0, atol=0.1)
    assert got.ended == expected.ended


@small_and_long("rows", [*range(0, 150, 30), *range(150, 158)], range(158))
def test_each_object_against_all_gives_its_part_of_the_whole_list(
    whole: Screening, held: Ephemeris, rows: Sequence[int]
) -> None:
    assert len(whole.approaches) > 40
    assert len(whole.slow_pairs) >= 2
    assert {each.row for each in whole.ended} >= {DECAYING, UNDERGROUND}
    for row in rows:
        got = screen_against(held, np.array([row]), MISS_M, start_ns=EPOCH_NS, end_ns=END_NS)
        assert_same(part_of(whole, [row]), got)


@pytest.mark.parametrize(
    "rows", [[3, 77, 12], [DOCKED, DOCKED + 1, DECAYING, DECAYING + 1, UNDERGROUND, 5], range(158)]
)
def test_a_list_of_objects_gives_each_pair_once(whole: Screening, held: Ephemeris, rows: Sequence[int]) -> None:
    got = screen_against(held, np.array([*rows, rows[0]]), MISS_M, start_ns=EPOCH_NS, end_ns=END_NS)
    assert_same(part_of(whole, rows), got)


@pytest.mark.parametrize(("slice_s", "knot_s"), [(20.0, 240.0), (120.0, 240.0), (60.0, 50.0), (45.0, 200.0)])
def test_the_lengths_of_slices_and_knots_do_not_matter(whole: Screening, slice_s: float, knot_s: float) -> None:
    held = Ephemeris(PREPARED, EPOCH_NS, END_NS, slice_s=slice_s, knot_s=knot_s)
    rows = [DOCKED, DECAYING, *range(0, 150, 10)]
    got = screen_against(held, np.array(rows), MISS_M, start_ns=EPOCH_NS, end_ns=END_NS)
    assert same_list(part_of(whole, rows), got) == ""


def test_a_part_of_the_held_window_is_screened(held: Ephemeris) -> None:
    start_ns, end_ns = EPOCH_NS + HOUR_NS // 2 + 123_456_789, END_NS - 31 * 10**9
    whole = screen_window(PREPARED, start_ns, end_ns, MISS_M, PLAIN)
    rows = range(0, 158, 7)
    got = screen_against(held, np.array(rows), MISS_M, start_ns=start_ns, end_ns=end_ns)
    assert same_list(part_of(whole, rows), got) == ""


def test_pairs_near_in_the_first_and_last_slices_are_found_where_knots_are_outside_of_the_window() -> None:
    """A perigee pass with the shortest knots, which end before the nearest knot of the full length does."""
    perigee = Orbit(perigee_km=160.0, eccentricity=0.8, anomaly_deg=0.0)
    prepared = PreparedObjects(screened([perigee, replace(perigee, anomaly_deg=0.002), *random_orbits(8, seed=1)]))
    for start_s, end_s in ((-250, -130), (190, 230), (220, 290)):
        start_ns, end_ns = EPOCH_NS + start_s * 10**9, EPOCH_NS + end_s * 10**9
        held = Ephemeris(prepared, start_ns, end_ns, slice_s=10.0, knot_s=480.0, interpolation_km=1e-4)
        assert held.level_of[prepared.columns[0]] > 3
        whole = screen_window(prepared, start_ns, end_ns, MISS_M, PLAIN)
        near = nearby(held, prepared.columns[:1], MISS_M / 1e3)
        assert len(np.unique(near.slices)) == len(held)  # 1 to 30 km apart all the time
        got = screen_against(held, np.array([0]), MISS_M, start_ns=start_ns, end_ns=end_ns)
        assert same_list(part_of(whole, [0]), got) == ""


def test_knots_that_are_too_long_for_the_bounds_between_them_are_rejected() -> None:
    held = Ephemeris(PREPARED, EPOCH_NS, EPOCH_NS + HOUR_NS, knot_s=900.0)
    with pytest.raises(ValueError, match="an interval of 960 s is too long for bound 0: use shorter knots or slices"):
        screen_against(held, np.array([0]), MISS_M, start_ns=EPOCH_NS, end_ns=EPOCH_NS + HOUR_NS)


def test_a_window_that_is_not_held_is_rejected(held: Ephemeris) -> None:
    with pytest.raises(ValueError, match=r"^expected a window within \d+ to \d+, which is held, got \d+ to \d+$"):
        screen_against(held, np.array([0]), MISS_M, start_ns=EPOCH_NS, end_ns=END_NS + 1)
    with pytest.raises(ValueError, match="expected at least one object to screen, got none"):
        screen_against(held, np.array([], dtype=np.intp), MISS_M, start_ns=EPOCH_NS, end_ns=END_NS)
    with pytest.raises(ValueError, match="miss_distance_m must be positive and finite, got nan"):
        screen_against(held, np.array([0]), float("nan"), start_ns=EPOCH_NS, end_ns=END_NS)


@needs_real_catalog
@small_and_long(("count", "hours", "miss_m"), (90, 3, 50e3), (300, 24, 5e3), (300, 24, 50e3))
def test_of_a_mixed_part_of_the_real_catalogue_each_object_has_its_part_of_the_list(
    count: int, hours: int, miss_m: float
) -> None:
    prepared = PreparedObjects(mixed(count, seed=3))
    end_ns = START_NS + hours * HOUR_NS
    whole = screen_window(prepared, START_NS, end_ns, miss_m, PLAIN)
    assert len(whole.slow_pairs) > 0
    held = Ephemeris(prepared, START_NS, end_ns)
    for row in range(0, count, 1 if count > 100 else 9):
        got = screen_against(held, np.array([row]), miss_m, start_ns=START_NS, end_ns=end_ns)
        assert_same(part_of(whole, [row]), got)


@pytest.mark.long
@needs_real_catalog
def test_random_objects_of_the_real_catalogue_have_their_part_of_the_list_and_a_list_costs_less() -> None:
    prepared = PreparedObjects(real_objects())
    end_ns = START_NS + 24 * HOUR_NS
    whole = screen_window(prepared, START_NS, end_ns, 5_000.0)
    held = Ephemeris(prepared, START_NS, end_ns)
    assert held.greatest.regular.any()  # computed before the time is measured
    rows = np.random.default_rng(1).choice(len(prepared), 25, replace=False)
    single_s = 0.0
    for row in rows.tolist():
        begin_s = time.process_time()
        got = screen_against(held, np.array([row]), 5_000.0, start_ns=START_NS, end_ns=end_ns)
        single_s += time.process_time() - begin_s
        assert_same(part_of(whole, [row]), got)
    begin_s = time.process_time()
    got = screen_against(held, rows, 5_000.0, start_ns=START_NS, end_ns=end_ns)
    together_s = time.process_time() - begin_s
    assert_same(part_of(whole, rows.tolist()), got)
    print(f"25 objects, one by one {single_s:.2f} s of CPU, together {together_s:.2f} s")
    assert together_s < 0.8 * single_s
