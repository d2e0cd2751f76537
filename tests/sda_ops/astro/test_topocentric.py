"""Directions, ranges and rates compared with ERFA, finite differences and real observations."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import erfa
import numpy as np
import pytest
from sgp4.api import Satrec, SatrecArray

from sda_ops.astro.frames import EARTH_ROTATION_RAD_S, earth_fixed_to_teme, sidereal_angle, teme_to_j2000_matrix
from sda_ops.astro.propagation import sgp4_states
from sda_ops.astro.sites import Site
from sda_ops.astro.time import Floats, Nanoseconds, julian_date
from sda_ops.astro.topocentric import Look, direction_j2000, look, radar_measurement
from sda_ops.catalog import read_catalog, synthetic_catalog

SPEED_OF_LIGHT_M_S = 299_792_458.0
NOW_NS = 1_790_000_000_000_000_000
SITE = Site.from_degrees("Tromsø", latitude_deg=69.586, longitude_deg=19.227, height_m=86.0)

ONE_NANORADIAN = 1e-9
TWO_CENTIMETRES = 0.02
ONE_MILLIMETRE_PER_SECOND = 1e-3


def data(path: str) -> Path:
    root = Path(os.environ.get("SDA_DATA_DIR", Path(__file__).parents[3] / "../shared/data"))
    if not (root / path).exists():
        pytest.skip(f"real data absent: no {root / path} (set SDA_DATA_DIR)")
    return root / path


def utc_ns(text: str) -> int:
    moment = datetime.fromisoformat(text).replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return (moment.days * 86_400 + moment.seconds) * 10**9 + moment.microseconds * 1000


def seen(satrec: Satrec, site: Site, time_ns: Nanoseconds) -> Look:
    states = sgp4_states(SatrecArray([satrec]), time_ns)
    return look(site, states.r_teme_m[0], states.v_teme_m_s[0], sidereal_angle(*julian_date(time_ns)))


def line_of_sight(time_ns: Nanoseconds) -> tuple[Floats, Floats, Floats]:
    satrecs = SatrecArray([elements.satrec for elements in synthetic_catalog(objects=50, epoch_ns=NOW_NS)])
    r_m = sgp4_states(satrecs, time_ns).r_teme_m[:, 0]
    angle = sidereal_angle(*julian_date(time_ns))
    site_m, _ = earth_fixed_to_teme(SITE.r_fixed_m, np.zeros(3), angle)
    return r_m, r_m - site_m, angle


def test_azimuth_and_elevation_match_erfas_from_hour_angles() -> None:
    """They equal those that ERFA computes from hour angle, declination and latitude."""
    r_m, sight_m, angle = line_of_sight(np.array([NOW_NS]))
    ra_rad = np.arctan2(sight_m[:, 1], sight_m[:, 0])
    dec_rad = np.arcsin(sight_m[:, 2] / np.linalg.norm(sight_m, axis=1))
    azimuth_rad, elevation_rad = erfa.hd2ae(angle + SITE.longitude_rad - ra_rad, dec_rad, SITE.latitude_rad)
    ours = look(SITE, r_m, np.zeros_like(r_m), np.broadcast_to(angle, 50))
    np.testing.assert_allclose(ours.elevation_rad, elevation_rad, atol=ONE_NANORADIAN)
    np.testing.assert_allclose(ours.azimuth_rad, azimuth_rad, atol=ONE_NANORADIAN)
    np.testing.assert_allclose(ours.range_m, np.linalg.norm(sight_m, axis=1), rtol=1e-12)


def test_range_rate_is_the_derivative_of_range() -> None:
    """It equals the central difference of range while object and Earth move; receding is positive."""
    satrecs = SatrecArray([elements.satrec for elements in synthetic_catalog(objects=200, epoch_ns=NOW_NS)])
    states = sgp4_states(satrecs, np.array([NOW_NS]))
    r_m, v_m_s = states.r_teme_m[:, 0], states.v_teme_m_s[:, 0]
    step_s = 0.05
    # Along a straight line, because SGP4's velocity differs from the derivative of its position by about 1 cm/s.
    before_m, after_m = (
        look(SITE, r_m + v_m_s * dt_s, v_m_s, np.full(200, 1.0 + EARTH_ROTATION_RAD_S * dt_s)).range_m
        for dt_s in (-step_s, step_s)
    )
    rate_m_s = look(SITE, r_m, v_m_s, np.full(200, 1.0)).range_rate_m_s
    np.testing.assert_allclose(rate_m_s, (after_m - before_m) / (2 * step_s), atol=ONE_MILLIMETRE_PER_SECOND)


def test_right_ascension_and_declination_are_rotated_to_j2000() -> None:
    """They are the TEME lines of sight, rotated by one matrix for all rows or by one for each."""
    r_m, sight_m, angle = line_of_sight(np.array([NOW_NS]))
    matrix = teme_to_j2000_matrix(*julian_date(np.array(NOW_NS)))
    ra_rad, dec_rad = direction_j2000(SITE, r_m, np.broadcast_to(angle, 50), matrix)
    np.testing.assert_allclose(
        erfa.s2c(ra_rad, dec_rad),
        sight_m @ matrix.T / np.linalg.norm(sight_m, axis=1)[:, np.newaxis],
        atol=ONE_NANORADIAN,
    )
    each = direction_j2000(SITE, r_m, np.broadcast_to(angle, 50), np.broadcast_to(matrix, (50, 3, 3)))
    np.testing.assert_allclose(each, (ra_rad, dec_rad), rtol=0, atol=1e-15)


def test_the_real_eiscat_track_of_envisat_matches_sgp4() -> None:
    """913 real ranges of ENVISAT differ from SGP4 by less than 500 m, the range-rates by less than 100 m/s."""
    track = data("eiscat_envisat_2016-09-06/2002-009A-2016-09-06_08-27-08.tdm").read_text().splitlines()
    rows = {
        name: [line.split()[2:] for line in track if line.split()[:1] == [name]]
        for name in ("RANGE", "DOPPLER_INSTANTANEOUS")
    }
    two_way_s = np.array([float(value) for _, value in rows["RANGE"]])
    # Time tags are those of transmission; the pulse meets the object half the round trip later.
    bounce_ns = np.array([utc_ns(time) for time, _ in rows["RANGE"]]) + (two_way_s / 2 * 1e9).astype(np.int64)
    site = Site.from_degrees("EISCAT UHF", latitude_deg=69.58649229, longitude_deg=19.22592538, height_m=85.554)
    element_sets = [
        e for e in read_catalog(data("eiscat_envisat_2016-09-06/tles.txt")).element_sets if e.catalog_number == 27386
    ]
    nearest = min(
        element_sets,
        key=lambda e: abs(e.satrec.jdsatepoch + e.satrec.jdsatepochF - julian_date(bounce_ns)[0][0] - 0.35),
    )
    ours = seen(nearest.satrec, site, bounce_ns)
    range_residual_m = two_way_s * SPEED_OF_LIGHT_M_S / 2 - ours.range_m
    rate_residual_m_s = (
        -1e3 * np.array([float(value) for _, value in rows["DOPPLER_INSTANTANEOUS"]]) - ours.range_rate_m_s
    )
    assert two_way_s.size == 913
    assert np.abs(range_residual_m).max() < 500.0
    assert np.abs(rate_residual_m_s).max() < 100.0
    # The same with `radar_measurement` from the states at arrival. The bounce above is computed from the measured range, so
    # a residual of 500 m moves it by 1.5 microseconds.
    arrival_ns = bounce_ns + (two_way_s / 2 * 1e9).astype(np.int64)
    states = sgp4_states(SatrecArray([nearest.satrec]), arrival_ns)
    angle_rad = sidereal_angle(*julian_date(arrival_ns))
    measured = radar_measurement(site.r_fixed_m, site.horizon, states.r_teme_m[0], states.v_teme_m_s[0], angle_rad)
    np.testing.assert_allclose(measured.range_m, ours.range_m, rtol=0, atol=TWO_CENTIMETRES)
    np.testing.assert_allclose(measured.range_rate_m_s, ours.range_rate_m_s, rtol=0, atol=ONE_MILLIMETRE_PER_SECOND)


def test_real_telescope_positions_of_noss_match_its_element_set() -> None:
    """The four real positions of NOSS 3-5 (A) on the first night are within 0.02 degrees of its element set."""
    lines = data("optical_noss_2019/tlegen_37386.dat").read_text().splitlines()[:4]
    line1, line2 = data("optical_noss_2019/tlegen_37386.txt").read_text().splitlines()[1:3]
    satrecs = SatrecArray([Satrec.twoline2rv(line1, line2)])
    leo_barhorst = Site.from_degrees("4172", latitude_deg=52.3713, longitude_deg=5.2580, height_m=-3.0)
    for line in lines:
        stamp, angles = line[23:40], line[47:61]
        time_ns = np.array(
            [utc_ns(f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}T{stamp[8:10]}:{stamp[10:12]}:{stamp[12:14]}.{stamp[14:]}")]
        )
        # Angle format 2, epoch code 5: HHMMmmm+DDMMmm, J2000.
        ra_rad = np.deg2rad(15.0 * (int(angles[:2]) + int(angles[2:7]) / 60e3))
        dec_rad = np.deg2rad(int(angles[8:10]) + int(angles[10:14]) / 6e3) * (-1 if angles[7] == "-" else 1)
        jd, fraction = julian_date(time_ns)
        r_m = sgp4_states(satrecs, time_ns).r_teme_m[0]
        ra, dec = direction_j2000(leo_barhorst, r_m, sidereal_angle(jd, fraction), teme_to_j2000_matrix(jd, fraction))
        assert np.rad2deg(erfa.seps(ra_rad, dec_rad, ra, dec)) < 0.02
