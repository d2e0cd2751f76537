"""Light time, radar and telescope measurements, and their inverses, for 400 objects from 400 sites."""

from __future__ import annotations

import erfa
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sgp4.api import SatrecArray

from sda_ops.astro.frames import EARTH_ROTATION_RAD_S, sidereal_angle, teme_to_j2000_matrix
from sda_ops.astro.propagation import sgp4_states
from sda_ops.astro.sites import Site
from sda_ops.astro.time import Floats, julian_date
from sda_ops.astro.topocentric import (
    SPEED_OF_LIGHT_M_S,
    Look,
    direction_j2000,
    direction_j2000_many,
    light_time_corrected,
    line_of_sight_teme,
    line_of_sight_teme_from_j2000,
    look,
    look_many,
    radar_measurement,
    site_in_teme,
    telescope_measurement,
    teme_from_look,
)
from sda_ops.catalog import synthetic_catalog

NOW_NS = 1_790_000_000_000_000_000
CATALOG = synthetic_catalog(objects=400, epoch_ns=NOW_NS)
SATRECS = SatrecArray([elements.satrec for elements in CATALOG])
SITES = [
    Site("one of many", latitude_rad, longitude_rad, 100.0)
    for latitude_rad, longitude_rad in zip(np.linspace(-1.5, 1.5, 400), np.linspace(0.0, 37.7, 400), strict=True)
]
SITE_FIXED_M = np.array([site.r_fixed_m for site in SITES])
HORIZONS = np.array([site.horizon for site in SITES])
SIDEREAL_RAD = np.full(400, sidereal_angle(*julian_date(np.array(NOW_NS))))
SITE_TEME_M = site_in_teme(SITE_FIXED_M, SIDEREAL_RAD)
TO_J2000 = teme_to_j2000_matrix(*julian_date(np.array(NOW_NS)))
STATES = sgp4_states(SATRECS, np.array([NOW_NS]))
R_M, V_M_S = STATES.r_teme_m[:, 0], STATES.v_teme_m_s[:, 0]

ONE_MICROMETRE = 1e-6
THREE_MILLIMETRES = 3e-3
FOUR_TENTHS_OF_A_MILLIMETRE = 4e-4
ONE_CENTIMETRE = 1e-2
TWO_CENTIMETRES = 2e-2
ONE_NANORADIAN = 1e-9
TWO_MILLIMETRES_PER_SECOND = 2e-3
SURVEILLANCE_RANGE_M = 5e6


def length(vectors: Floats) -> Floats:
    lengths: Floats = np.linalg.norm(vectors, axis=-1)
    return lengths


def test_the_corrected_state_matches_sgp4_at_the_time_when_the_light_left() -> None:
    """Positions match SGP4 at t - d to 3 mm within 5,000 km and to 2 cm anywhere, velocities to 2 mm/s, at any site.

    SGP4's velocity is not exactly the derivative of its position; ``test_skyfield`` tests the formula without that error.
    """
    r_then_m, v_then_m_s, delay_s = light_time_corrected(R_M, V_M_S, SITE_TEME_M)
    satrecs = [elements.satrec for elements in CATALOG]
    jd, fraction = julian_date(np.array(NOW_NS))
    states = [
        satrec.sgp4(float(jd), float(fraction) - delay / 86_400.0)
        for satrec, delay in zip(satrecs, delay_s.tolist(), strict=True)
    ]
    off_m = length(r_then_m - np.array([r for _, r, _ in states]) * 1e3)
    off_m_s = length(v_then_m_s - np.array([v for _, _, v in states]) * 1e3)
    close = delay_s * SPEED_OF_LIGHT_M_S < SURVEILLANCE_RANGE_M
    assert np.count_nonzero(close) > 20
    assert off_m[close].max() < THREE_MILLIMETRES
    assert off_m.max() < TWO_CENTIMETRES
    assert off_m_s.max() < TWO_MILLIMETRES_PER_SECOND
    assert length(r_then_m - R_M).max() > 100.0  # the motion of a geostationary object in its light time


def test_the_delay_is_the_corrected_distance_divided_by_the_speed_of_light() -> None:
    """They agree to a micrometre of distance."""
    r_then_m, _, delay_s = light_time_corrected(R_M, V_M_S, SITE_TEME_M)
    np.testing.assert_allclose(
        length(r_then_m - SITE_TEME_M), delay_s * SPEED_OF_LIGHT_M_S, rtol=0, atol=ONE_MICROMETRE
    )


def test_a_radars_range_is_half_the_round_trip_of_its_pulse() -> None:
    """With the site's positions at transmission and reception, range_m is half the path to 0.4 mm within 40,000 km."""
    r_then_m, _, back_s = light_time_corrected(R_M, V_M_S, SITE_TEME_M)
    sent_before_s = 2.0 * back_s
    for _ in range(4):
        sent_from_m = site_in_teme(SITE_FIXED_M, SIDEREAL_RAD - EARTH_ROTATION_RAD_S * sent_before_s)
        sent_before_s = back_s + length(r_then_m - sent_from_m) / SPEED_OF_LIGHT_M_S
    range_m = radar_measurement(SITE_FIXED_M, HORIZONS, R_M, V_M_S, SIDEREAL_RAD).range_m
    within = range_m < 4e7
    assert np.count_nonzero(within) > 350
    half_way_m = sent_before_s / 2.0 * SPEED_OF_LIGHT_M_S
    np.testing.assert_allclose(range_m[within], half_way_m[within], rtol=0, atol=FOUR_TENTHS_OF_A_MILLIMETRE)
    assert np.abs(half_way_m - back_s * SPEED_OF_LIGHT_M_S)[within].max() > 10.0  # the way back alone differs


def test_a_telescope_measures_the_corrected_direction() -> None:
    """The direction is that of the corrected position from the site at t, not that of the position at t."""
    measured = telescope_measurement(SITE_FIXED_M, R_M, V_M_S, SIDEREAL_RAD, TO_J2000)
    r_then_m, _, _ = light_time_corrected(R_M, V_M_S, SITE_TEME_M)
    np.testing.assert_array_equal(measured, direction_j2000_many(SITE_FIXED_M, r_then_m, SIDEREAL_RAD, TO_J2000))
    naive = direction_j2000_many(SITE_FIXED_M, R_M, SIDEREAL_RAD, TO_J2000)
    assert erfa.seps(*measured, *naive).max() > np.deg2rad(2.0 / 3600)


def test_many_rows_give_the_same_results_as_single_rows() -> None:
    """400 objects from 400 sites in one call equal 400 calls with one object and one site."""
    many = look_many(SITE_FIXED_M, HORIZONS, R_M, V_M_S, SIDEREAL_RAD)
    directions = direction_j2000_many(SITE_FIXED_M, R_M, SIDEREAL_RAD, np.broadcast_to(TO_J2000, (400, 3, 3)))
    for row, site in enumerate(SITES):
        one = look(site, R_M[row], V_M_S[row], SIDEREAL_RAD[row])
        np.testing.assert_allclose([column[row] for column in many], one, rtol=1e-12, atol=1e-9)
        direction = direction_j2000(site, R_M[row], SIDEREAL_RAD[row], TO_J2000)
        np.testing.assert_allclose([column[row] for column in directions], direction, rtol=1e-12)


def test_positions_are_recovered_from_azimuth_elevation_and_range() -> None:
    """They are recovered to 1 cm; a radar measurement gives the position at the bounce."""
    seen = look_many(SITE_FIXED_M, HORIZONS, R_M, V_M_S, SIDEREAL_RAD)
    back_m = teme_from_look(SITE_FIXED_M, HORIZONS, *seen[:3], SIDEREAL_RAD)
    np.testing.assert_allclose(back_m, R_M, rtol=0, atol=ONE_CENTIMETRE)
    measured = radar_measurement(SITE_FIXED_M, HORIZONS, R_M, V_M_S, SIDEREAL_RAD)
    bounce_rad = SIDEREAL_RAD - EARTH_ROTATION_RAD_S * measured.range_m / SPEED_OF_LIGHT_M_S
    r_then_m, _, _ = light_time_corrected(R_M, V_M_S, SITE_TEME_M)
    bounced_m = teme_from_look(SITE_FIXED_M, HORIZONS, *measured[:3], bounce_rad)
    np.testing.assert_allclose(bounced_m, r_then_m, rtol=0, atol=ONE_CENTIMETRE)


def test_lines_of_sight_point_at_the_object() -> None:
    """The unit vector in TEME points from site to object, from azimuth and elevation and from J2000 angles."""
    expected = (R_M - SITE_TEME_M) / length(R_M - SITE_TEME_M)[:, np.newaxis]
    seen: Look = look_many(SITE_FIXED_M, HORIZONS, R_M, V_M_S, SIDEREAL_RAD)
    from_look = line_of_sight_teme(HORIZONS, seen.azimuth_rad, seen.elevation_rad, SIDEREAL_RAD)
    np.testing.assert_allclose(from_look, expected, rtol=0, atol=ONE_NANORADIAN)
    ra_rad, dec_rad = direction_j2000_many(SITE_FIXED_M, R_M, SIDEREAL_RAD, TO_J2000)
    for matrix in (TO_J2000, np.broadcast_to(TO_J2000, (400, 3, 3))):
        from_j2000 = line_of_sight_teme_from_j2000(ra_rad, dec_rad, matrix)
        np.testing.assert_allclose(from_j2000, expected, rtol=0, atol=ONE_NANORADIAN)


def test_azimuth_and_elevation_match_erfas_test_case_for_hour_angle_and_declination() -> None:
    """Hour angle 1.1, declination 1.2 at latitude 0.3: ERFA's test of ``hd2ae`` (t_erfa_c), to 10 nanoradians."""
    site = Site("test case", 0.3, 0.0, 0.0)
    sidereal_rad = np.array(2.0)
    far_m = 1e15 * erfa.s2c(2.0 - 1.1, 1.2)
    seen = look(site, far_m, np.zeros(3), sidereal_rad)
    # ERFA has no site position, so the object is put so far away that the position does not matter.
    assert float(seen.azimuth_rad) == pytest.approx(5.916889243730066194, abs=10 * ONE_NANORADIAN)
    assert float(seen.elevation_rad) == pytest.approx(0.4472186304990486228, abs=10 * ONE_NANORADIAN)


@given(st.floats(0.0, 1.0), st.sampled_from([1.0, -1.0]))
def test_angles_are_in_the_half_open_interval_from_0_to_2_pi(tiny: float, sign: float) -> None:
    """Right ascensions and azimuths are in [0, 2 pi), also for tiny negative angles."""
    y_m = sign * tiny * 1e-12
    origin = np.zeros(3)
    ra_rad, _ = direction_j2000_many(origin, np.array([1e7, y_m, 0.0]), np.array(0.0), np.eye(3))
    seen = look_many(origin, np.eye(3), np.array([y_m, 1e7, 0.0]), origin, np.array(0.0))
    assert 0.0 <= ra_rad < 2.0 * np.pi
    assert 0.0 <= seen.azimuth_rad < 2.0 * np.pi
