"""`CatalogInterval`: its states compared with SGP4, and its spatial indices compared with an exhaustive search."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sda_ops.astro.frames import sidereal_angle, teme_to_j2000_matrix
from sda_ops.astro.propagation import PropagationError, Propagator
from sda_ops.astro.sites import Site, teme_sites
from sda_ops.astro.time import NS_PER_DAY, NS_PER_S, Floats, Nanoseconds, julian_date
from sda_ops.astro.topocentric import SPEED_OF_LIGHT_M_S, line_of_sight_teme_from_j2000
from sda_ops.catalog import ElementColumns, ElementSet, read_catalog
from sda_ops.correlate.associate import Associator
from sda_ops.correlate.sensors import Sensor
from sda_ops.propagation.interval import STEP_NS, VIEW_NS, CatalogInterval, Pairs, Placed, knots_of
from sda_ops.propagation.uncertainty import AxisErrors, ElementSetErrors
from sda_ops.records.observation import Observation, Uncertainty
from sda_ops.simulate.places import RADAR_SITES
from tests.helpers.running import NOON_NS
from tests.helpers.sizes import examples
from tests.scenes.correlation import (
    TROMSO,
    Exhaustive,
    Moment,
    beacon,
    direction_of,
    echo,
    echo_of,
    elevations_rad,
    facts_of,
    flying_straight,
    interval_at,
    knots_at,
    noon,
    risen,
    sighting,
    sky,
)
from tests.scenes.tracks import CATALOG

FIVE_CENTIMETRES, A_TENTH_OF_A_MILLIMETRE_PER_SECOND = 0.05, 1e-4
SIX_CENTIMETRES = 0.06
FIVE_MILLIMETRES, A_HUNDREDTH_OF_A_MILLIMETRE_PER_SECOND = 0.005, 1e-5
FIFTEEN_CENTIMETRES, HALF_A_MILLIMETRE_PER_SECOND = 0.15, 5e-4

EARTH_CENTRE = np.zeros((1, 3))
"""The Earth's centre, where no object is."""


# States.


def differences(element_sets: tuple[ElementSet, ...], start_ns: int) -> tuple[Floats, Floats]:
    """The greatest differences of each object's states in an interval from SGP4: metres, and metres per second."""
    interval = interval_at(element_sets, start_ns)
    times_ns = start_ns + np.linspace(0.0, STEP_NS, 9, endpoint=False).astype(np.int64)
    truth = Propagator([each.satrec for each in element_sets], engine="sgp4").propagate(times_ns)
    everything = np.arange(len(element_sets))
    r_m, v_m_s = np.empty_like(truth.r_teme_m), np.empty_like(truth.v_teme_m_s)
    for column, time_ns in enumerate(times_ns.tolist()):
        r_m[:, column], v_m_s[:, column] = interval.states(everything, np.full(everything.size, time_ns))
    unusable = np.setdiff1d(everything, interval.usable)
    away_m = np.linalg.norm(r_m - truth.r_teme_m, axis=2).max(axis=1)
    away_m_s = np.linalg.norm(v_m_s - truth.v_teme_m_s, axis=2).max(axis=1)
    away_m[unusable] = away_m_s[unusable] = 0.0
    return away_m, away_m_s


@pytest.mark.parametrize("later_s", [0, 20, 40_000])
def test_states_between_knots_match_sgp4(later_s: int) -> None:
    """For 2,000 generated objects, the lowest at 450 km, to 5 cm and 0.1 mm/s."""
    away_m, away_m_s = differences(sky(2_000), NOON_NS + later_s * NS_PER_S)
    assert away_m.max() < FIVE_CENTIMETRES
    assert away_m_s.max() < A_TENTH_OF_A_MILLIMETRE_PER_SECOND


@pytest.mark.skipif(not CATALOG.exists(), reason=f"real data absent: no {CATALOG} (set SDA_DATA_DIR)")
def test_states_of_real_objects_between_knots_match_sgp4() -> None:
    """At 12 times of a day: low orbits to 6 cm, high ones to 5 mm, eccentric ones (fastest at perigee) to 15 cm."""
    element_sets = read_catalog(CATALOG).element_sets
    columns = ElementColumns.of(element_sets)
    eccentric = columns.ecco > 0.1
    low = columns.near_earth & ~eccentric
    high = ~columns.near_earth & ~eccentric
    some_low = np.flatnonzero(low)[::10]
    chosen = np.concatenate((some_low, np.flatnonzero(~low)))
    noon_ns = int(np.median(columns.epoch_ns)) // STEP_NS * STEP_NS
    worst_m, worst_m_s = np.zeros(len(columns)), np.zeros(len(columns))
    for hour in range(0, 24, 2):
        away = differences(tuple(element_sets[row] for row in chosen.tolist()), noon_ns + hour * 3600 * NS_PER_S)
        worst_m[chosen] = np.maximum(worst_m[chosen], away[0])
        worst_m_s[chosen] = np.maximum(worst_m_s[chosen], away[1])
    assert [int(kind.sum()) for kind in (high, eccentric)] == [761, 42]
    assert worst_m[low].max() < SIX_CENTIMETRES
    assert worst_m_s[low].max() < A_TENTH_OF_A_MILLIMETRE_PER_SECOND
    assert worst_m[high].max() < FIVE_MILLIMETRES
    assert worst_m_s[high].max() < A_HUNDREDTH_OF_A_MILLIMETRE_PER_SECOND
    assert worst_m[eccentric].max() < FIFTEEN_CENTIMETRES
    assert worst_m_s[eccentric].max() < HALF_A_MILLIMETRE_PER_SECOND


@given(st.integers(0, 2**62))
def test_knots_are_the_two_ends_of_the_interval_and_one_more_on_each_side(timestamp_ns: int) -> None:
    """The interval that contains the time lies between the middle two knots."""
    before, start, end, after = (knot * STEP_NS for knot in knots_of(timestamp_ns))
    assert start <= timestamp_ns < end
    assert (before, after) == (start - STEP_NS, end + STEP_NS)


def test_one_rotation_to_j2000_is_accurate_for_the_whole_interval() -> None:
    """At both ends it differs from that time's own rotation by less than 0.05 milliarcseconds."""
    interval = noon()
    for time_ns in (interval.start_ns, interval.start_ns + STEP_NS):
        own = teme_to_j2000_matrix(*julian_date(np.array(time_ns)))
        assert np.abs(interval.teme_to_j2000 - own).max() < np.deg2rad(0.05e-3 / 3600)


# Usable objects.


@pytest.mark.parametrize("knot", range(4))
@pytest.mark.parametrize("code", [PropagationError.DECAYED, PropagationError.STALE, PropagationError.IMPLAUSIBLE])
def test_an_object_without_a_state_at_one_knot_is_never_a_candidate(knot: int, code: PropagationError) -> None:
    """For any of the four knots and any reason the object is not usable, and all others still are."""
    gone = int(risen(TROMSO, noon(), NOON_NS + STEP_NS // 2)[3])
    moment = Moment.of(noon(), gone, NOON_NS + STEP_NS // 2)
    knots = knots_at(sky(), NOON_NS)
    for array in (knots[knot].r_teme_m, knots[knot].v_teme_m_s):
        array[gone] = np.nan
    knots[knot].error[gone] = code
    interval = CatalogInterval(noon().facts, NOON_NS, knots)
    assert interval.usable.tolist() == [row for row in range(600) if row != gone]
    assert gone in found_near(noon(), moment)
    assert gone not in found_near(interval, moment)
    assert gone in found_towards(noon(), moment)
    assert gone not in found_towards(interval, moment)
    assert gone in found_at_range(noon(), moment)
    assert gone not in found_at_range(interval, moment)


def found_near(interval: CatalogInterval, moment: Moment) -> list[int]:
    times_ns, sigma_m = np.array([moment.timestamp_ns]), np.array([100.0])
    found: list[int] = interval.near(moment.r_m[np.newaxis], times_ns, 5.0, sigma_m).object.tolist()
    return found


def sight_of(site: Site, moment: Moment, interval: CatalogInterval) -> Floats:
    """The unit vector in TEME from the site to the object, as a telescope observes it."""
    ascension_rad, declination_rad = np.split(direction_of(site, moment), 2)
    sights: Floats = line_of_sight_teme_from_j2000(ascension_rad, declination_rad, interval.teme_to_j2000)[0]
    return sights


def found_towards(interval: CatalogInterval, moment: Moment, site: Site = TROMSO) -> list[int]:
    times_ns, sights = np.array([moment.timestamp_ns]), sight_of(site, moment, interval)[np.newaxis]
    found: list[int] = interval.towards(site, sights, times_ns, np.array([1e-5]), 5.0).object.tolist()
    return found


def found_at_range(interval: CatalogInterval, moment: Moment, site: Site = TROMSO) -> list[int]:
    range_m = echo_of(site, moment)[:1]
    found: list[int] = interval.at_range(
        site, range_m, np.array([moment.timestamp_ns]), np.array([10.0]), 5.0
    ).object.tolist()
    return found


def test_an_element_set_that_exceeds_max_age_at_a_knot_is_not_usable() -> None:
    """With a maximum age of one day, an element set is usable only if all four knots lie within a day of its epoch."""
    day = sky(20)
    old = replace(day[0], satrec=ElementColumns.of(day[:1]).satrecs()[0])
    old.satrec.jdsatepoch -= 1.0
    propagator = Propagator([each.satrec for each in (old, *day[1:])], max_age=timedelta(days=1))
    for start_ns, usable in ((NOON_NS - 2 * STEP_NS, 20), (NOON_NS - STEP_NS, 19), (NOON_NS, 19)):
        knots = [propagator.propagate(np.array([knot * STEP_NS])) for knot in knots_of(start_ns)]
        interval = CatalogInterval(facts_of(ElementColumns.of((old, *day[1:]))), start_ns, knots)
        assert interval.usable.size == usable


# The indices return every object that could pass the gate.

SITES = st.builds(
    Site,
    st.just("anywhere"),
    st.floats(-np.pi / 2, np.pi / 2),
    st.floats(-np.pi, np.pi),
    st.floats(-100.0, 5_000.0),
)
WITHIN_NS = st.sampled_from(
    [0, 1, VIEW_NS // 2, VIEW_NS - 1, VIEW_NS, STEP_NS // 2, STEP_NS - VIEW_NS, STEP_NS - 1]
) | st.integers(0, STEP_NS - 1)
SIGMAS, BIT_OFF = st.floats(-5.5, 5.5), st.floats(-0.5, 0.5)
"""Errors in standard deviations along one axis (inside and outside the gate) and along the other two."""


LATER_NS = (0, 7 * STEP_NS, NS_PER_DAY, 9 * NS_PER_DAY)


@cache
def indexed(later_ns: int) -> CatalogInterval:
    return interval_at(sky(), NOON_NS + later_ns)


@cache
def exhaustive(later_ns: int) -> CatalogInterval:
    return interval_at(sky(), NOON_NS + later_ns, kind=Exhaustive)


@st.composite
def reports(draw: st.DrawFn, later_ns: int) -> tuple[Observation, Site]:
    """An observation of an object above the horizon, with an orbit error, by a sensor of any quality."""
    site = draw(SITES)
    interval = indexed(later_ns)
    time_ns = interval.start_ns + draw(WITHIN_NS)
    up = risen(site, interval, time_ns, above_deg=1.0)
    row = int(up[draw(st.integers(0, up.size - 1))]) if up.size else 0
    moment = Moment.of(interval, row, time_ns)
    offsets = np.array([draw(BIT_OFF), draw(BIT_OFF), draw(BIT_OFF)])
    offsets[draw(st.integers(0, 2))] = draw(SIGMAS)
    moment = moment.moved(offsets * interval.facts.errors.sigmas_m(np.array([row]), np.array([time_ns]))[0])
    sigma = Uncertainty(
        sigma_range_m=draw(st.sampled_from([0.1, 30.0, 3_000.0])),
        sigma_range_rate_m_s=draw(st.sampled_from([0.01, 1.0, 1e4])),
        sigma_angle_rad=draw(st.sampled_from([1e-7, 1e-5, 1e-3, 0.02])),
        sigma_position_m=draw(st.sampled_from([0.1, 100.0, 20_000.0])),
        sigma_velocity_m_s=draw(st.sampled_from([0.001, 1.0, 1e4])),
    )
    report = draw(
        st.sampled_from(
            [
                beacon(moment, sigma=sigma),
                sighting(site, moment, sigma=sigma),
                echo(site, moment, sigma=sigma),
                echo(site, moment, sigma=sigma, only=("range_m",)),
                echo(site, moment, sigma=sigma, only=("range_m", "range_rate_m_s", "azimuth_rad")),
            ]
        )
    )
    return report, site


@settings(max_examples=examples(150))
@given(st.data(), st.sampled_from(LATER_NS))
def test_no_index_misses_an_object_that_passes_the_gate(data: st.DataObject, later_ns: int) -> None:
    """An exhaustive search finds no more, for any site, time, kind of measurement, and quality of sensor and catalogue."""
    report, site = data.draw(reports(later_ns))
    associator = Associator({report.source_id: Sensor(site)})
    (found,) = associator.correlate([Placed(report, indexed(later_ns))], now_ns=0)
    (expected,) = associator.correlate([Placed(report, exhaustive(later_ns))], now_ns=0)
    assert set(found.candidates) >= set(expected.candidates)


def test_objects_that_rise_or_set_within_the_interval_are_candidates_while_above_the_horizon() -> None:
    """Checked at both ends of the interval, from six sites, for every object below 2 degrees of elevation. At least 12 of
    them are below the horizon ten seconds earlier or later."""
    interval = noon(2_000)
    down = 0
    for site in RADAR_SITES:
        up_in_the_middle = risen(site, interval, NOON_NS + STEP_NS // 2, above_deg=0.0)
        for time_ns in (NOON_NS, NOON_NS + STEP_NS - 1):
            up = risen(site, interval, time_ns, above_deg=0.0)
            low = np.setdiff1d(up, risen(site, interval, time_ns, above_deg=2.0))
            down += np.setdiff1d(low, up_in_the_middle).size
            for row in low.tolist():
                moment = Moment.of(interval, row, time_ns)
                assert row in found_towards(interval, moment, site)
                assert row in found_at_range(interval, moment, site)
    assert down >= 12


MIDDLE_OF_A_VIEW_NS = NOON_NS + 3 * VIEW_NS + VIEW_NS // 2
"""A time at which the search radius has no margin for motion."""

PERFECT = Uncertainty(
    sigma_range_m=1e-3,
    sigma_range_rate_m_s=1e-3,
    sigma_angle_rad=1e-9,
    sigma_position_m=1e-3,
    sigma_velocity_m_s=1e-3,
)


def far_up(range_m: float, towards: Floats, *, at_ns: int, errors: ElementSetErrors | None = None) -> CatalogInterval:
    """One object over Tromsø, moving at 3 km/s in the direction ``towards`` (east, north, up)."""
    there = teme_sites(TROMSO.r_fixed_m, TROMSO.horizon, sidereal_angle(*julian_date(np.array([at_ns]))))
    horizon = there.horizon_teme[0]
    velocity_m_s = 3_000.0 * towards @ horizon / np.linalg.norm(towards)
    return flying_straight(there.r_teme_m + range_m * horizon[2], velocity_m_s[np.newaxis], at_ns=at_ns, errors=errors)


def in_the_gate(report: Observation, interval: CatalogInterval) -> bool:
    """Whether the report is correlated with the only object."""
    (found,) = Associator({report.source_id: Sensor(TROMSO)}).correlate([Placed(report, interval)], now_ns=0)
    return found.association == "correlated"


WEST, UP = np.array([-1.0, 0.0, 0.0]), np.array([0.0, 0.1, 1.0])


def test_the_search_radius_includes_the_element_sets_uncertainty() -> None:
    """With perfect sensors and no margin for motion, an object four standard deviations off is still found."""
    ahead = np.array([0.0, 4.0 * 500.0, 0.0])
    interval = far_up(1e7, WEST, at_ns=MIDDLE_OF_A_VIEW_NS)
    moment = Moment.of(interval, 0, MIDDLE_OF_A_VIEW_NS)
    assert in_the_gate(sighting(TROMSO, moment.moved(ahead), sigma=PERFECT), interval)
    away = far_up(1e7, UP, at_ns=MIDDLE_OF_A_VIEW_NS)
    higher = Moment.of(away, 0, MIDDLE_OF_A_VIEW_NS).moved(np.array([3.8 * 400.0, 0.0, 0.0]))
    assert in_the_gate(echo(TROMSO, higher, sigma=PERFECT, only=("range_m",)), away)
    interval = far_up(1e7, WEST, at_ns=NOON_NS + STEP_NS // 2)
    moment = Moment.of(interval, 0, NOON_NS + STEP_NS // 2)
    assert in_the_gate(beacon(moment.moved(ahead), sigma=PERFECT), interval)


def test_the_indices_use_positions_corrected_for_light_time() -> None:
    """An object known to 10 m, at 40,000 km, moves 400 m in its light time and is still found."""
    known = AxisErrors(
        radial_m=10.0,
        in_track_m=10.0,
        cross_track_m=10.0,
        radial_m_per_day=0.0,
        in_track_m_per_day=0.0,
        cross_track_m_per_day=0.0,
    )
    errors = ElementSetErrors(near_earth=known, deep_space=known)
    across = far_up(4e7, WEST, at_ns=MIDDLE_OF_A_VIEW_NS, errors=errors)
    assert in_the_gate(sighting(TROMSO, Moment.of(across, 0, MIDDLE_OF_A_VIEW_NS), sigma=PERFECT), across)
    away = far_up(4e7, UP, at_ns=MIDDLE_OF_A_VIEW_NS, errors=errors)
    report = echo(TROMSO, Moment.of(away, 0, MIDDLE_OF_A_VIEW_NS), sigma=PERFECT, only=("range_m",))
    assert in_the_gate(report, away)


@pytest.mark.parametrize("sigmas", [-4.8, 4.8])
def test_a_radar_searches_at_the_time_of_the_bounce(sigmas: float) -> None:
    """At 40,000 km and 3 km/s west, an object moves 0.8 km between the bounce and the echo. In the middle of the interval,
    where the search radius has no margin for motion, an in-track error of 4.8 standard deviations is within the gate."""
    time_ns = NOON_NS + STEP_NS // 2
    interval = far_up(4e7, WEST, at_ns=time_ns)
    moment = Moment.of(interval, 0, time_ns).moved(np.array([0.0, sigmas * 500.0, 0.0]))
    sigma = Uncertainty(sigma_range_m=30.0, sigma_range_rate_m_s=1.0, sigma_angle_rad=1e-7)
    assert in_the_gate(echo(TROMSO, moment, sigma=sigma), interval)


# The results of the indices.


@cache
def with_forty_copies() -> CatalogInterval:
    """Forty objects at one position, and three hundred others."""
    return interval_at((*sky(300), *[copy_of_noon_object(number) for number in range(40)]))


def copy_of_noon_object(number: int) -> ElementSet:
    return replace(noon_object(), catalog_number=900_000 + number)


@cache
def noon_object() -> ElementSet:
    """The highest object over Tromsø at noon."""
    return sky()[int(np.argmax(elevations_rad(TROMSO, noon(), NOON_NS)))]


def test_all_objects_at_one_position_are_candidates() -> None:
    """There are forty, five times the number in the first query; searched by position, direction and range."""
    moment = Moment.of(with_forty_copies(), 300, NOON_NS + 1)
    crowd = set(range(300, 340))
    assert crowd <= set(found_near(with_forty_copies(), moment))
    assert crowd <= set(found_towards(with_forty_copies(), moment))
    assert crowd <= set(found_at_range(with_forty_copies(), moment))


def test_no_object_is_twice_a_candidate_for_one_observation() -> None:
    """Neither with many objects at one position, nor with a search radius of the whole sky."""
    everything = with_forty_copies().near(EARTH_CENTRE, np.array([NOON_NS]), 5.0, np.array([1e9]))
    assert sorted(everything.object.tolist()) == list(range(340))
    found = found_near(with_forty_copies(), Moment.of(with_forty_copies(), 300, NOON_NS))
    assert len(found) == len(set(found))


def test_candidates_are_sorted_by_observation_and_equal_those_of_a_single_search() -> None:
    """The observations have many candidates, one, or no candidate, and use all views of the interval."""
    interval = with_forty_copies()
    rng = np.random.default_rng(3)
    times_ns = NOON_NS + rng.integers(0, STEP_NS, 60)
    rows = rng.permutation(np.repeat([300, int(risen(TROMSO, interval, NOON_NS)[0]), -1], 20))
    moments = [Moment.of(interval, row, time_ns) for row, time_ns in zip(rows.tolist(), times_ns.tolist(), strict=True)]
    r_m = np.array([each.r_m if row >= 0 else np.zeros(3) for row, each in zip(rows.tolist(), moments, strict=True)])
    sights = np.array([sight_of(TROMSO, moment, interval) for moment in moments])
    sights[rows < 0] = -tromso_zenith(times_ns[rows < 0])
    ranges_m = np.array([echo_of(TROMSO, moment)[0] for moment in moments])
    ranges_m[rows < 0] = 1.0
    gate_rad, gate_m = np.full(60, 1e-4), np.full(60, 10.0)
    for pairs, alone in (
        (
            interval.near(r_m, times_ns, 5.0, gate_m),
            [interval.near(r_m[[n]], times_ns[[n]], 5.0, gate_m[[n]]) for n in range(60)],
        ),
        (
            interval.towards(TROMSO, sights, times_ns, gate_rad, 5.0),
            [interval.towards(TROMSO, sights[[n]], times_ns[[n]], gate_rad[[n]], 5.0) for n in range(60)],
        ),
        (
            interval.at_range(TROMSO, ranges_m, times_ns, gate_m, 5.0),
            [interval.at_range(TROMSO, ranges_m[[n]], times_ns[[n]], gate_m[[n]], 5.0) for n in range(60)],
        ),
    ):
        assert np.all(np.diff(pairs.row) >= 0)
        for number, (row, of_it) in enumerate(zip(rows.tolist(), alone, strict=True)):
            found = set(pairs.object[pairs.row == number].tolist())
            assert found == set(of_it.object.tolist())
            assert row < 0 or row in found
            assert row >= 0 or not found


def tromso_zenith(times_ns: Nanoseconds) -> Floats:
    """The zenith of Tromsø in TEME."""
    angle_rad = sidereal_angle(*julian_date(times_ns))
    return teme_sites(TROMSO.r_fixed_m, TROMSO.horizon, angle_rad).horizon_teme[:, 2]


def test_an_empty_catalogue_has_no_candidates() -> None:
    """No search fails either."""
    interval = interval_at(())
    times_ns, one = np.array([NOON_NS, NOON_NS + 1]), np.ones(2)
    assert interval.usable.size == 0
    for pairs in (
        interval.near(np.zeros((2, 3)), times_ns, 5.0, one),
        interval.towards(TROMSO, np.eye(3)[:2], times_ns, one, 5.0),
        interval.at_range(TROMSO, one, times_ns, one, 5.0),
    ):
        assert (pairs.row.size, pairs.object.size) == (0, 0)


def test_there_are_no_candidates_where_there_are_no_objects() -> None:
    """At the Earth's centre, straight down, and at a range of one metre or one light-second."""
    times_ns, gate = np.array([NOON_NS]), np.array([1e-4])
    assert noon().near(EARTH_CENTRE, times_ns, 5.0, gate).object.size == 0
    assert noon().towards(TROMSO, -tromso_zenith(times_ns), times_ns, gate, 5.0).object.size == 0
    for range_m in (1.0, SPEED_OF_LIGHT_M_S):
        assert noon().at_range(TROMSO, np.array([range_m]), times_ns, gate, 5.0).object.size == 0


def test_pairs_can_be_renumbered_to_the_callers_rows() -> None:
    """Rows 0 and 1 of a selection become the selected row numbers."""
    pairs = Pairs(np.array([0, 1, 1]), np.array([7, 8, 9])).renumbered(np.array([30, 50]))
    assert (pairs.row.tolist(), pairs.object.tolist()) == ([30, 50, 50], [7, 8, 9])
