"""Rotations between TEME, Earth-fixed and J2000, compared with published examples and ERFA; and sites."""

from __future__ import annotations

import erfa
import numpy as np
import pytest

from sda_ops.astro.frames import earth_fixed_to_teme, sidereal_angle, teme_to_earth_fixed, teme_to_j2000_matrix
from sda_ops.astro.sites import Site

# AIAA 2006-6753, App. C (also Vallado, Fundamentals of Astrodynamics, 4th ed., example 3-15):
# 2004-04-06 07:51:28.386009 UTC, UT1 - UTC = -0.4399619 s.
JD = np.array(2453101.5)
UTC_FRACTION = np.array((7 * 3600 + 51 * 60 + 28.386009) / 86_400.0)
UT1_MINUS_UTC_S = -0.4399619
UT1_FRACTION = UTC_FRACTION + UT1_MINUS_UTC_S / 86_400.0
R_TEME_M = np.array([5094.18016210, 6127.64465950, 6380.34453270]) * 1e3
V_TEME_M_S = np.array([-4.7461314870, 0.7858180410, 5.5319312880]) * 1e3
R_PEF_M = np.array([-1033.4750312960, 7901.3055856, 6380.3445327]) * 1e3
V_PEF_M_S = np.array([-3.2256327470, -2.8724425110, 5.5319312880]) * 1e3
R_J2000_M = np.array([5102.5096, 6123.01152, 6378.1363]) * 1e3
R_GCRF_M = np.array([5102.50895790, 6123.01140070, 6378.13692820]) * 1e3

TWO_CENTIMETRES = 0.02  # the printed Julian date is accurate to about 20 microseconds of the Earth's rotation
TWO_MILLIMETRES_PER_SECOND = 0.002
ONE_METRE = 1.0
ONE_NANORADIAN = 1e-9


def test_sidereal_time_matches_vallado() -> None:
    """Greenwich was at 152.578787886 degrees on 1992-08-20 12:14 UT1 (Vallado, 4th ed., example 3-5)."""
    assert np.rad2deg(sidereal_angle(np.array(2448854.5), np.array(734 / 1440))) == pytest.approx(
        152.578787886, abs=5e-7
    )


def test_the_sidereal_angle_accepts_ut1_minus_utc() -> None:
    """With the published UT1 - UTC it equals the angle of UT1; without it the angle is 6.6 arcseconds too large."""
    angle = sidereal_angle(JD, UTC_FRACTION, ut1_minus_utc_s=UT1_MINUS_UTC_S)
    assert angle == pytest.approx(sidereal_angle(JD, UT1_FRACTION), abs=ONE_NANORADIAN)
    ahead_rad = sidereal_angle(JD, UTC_FRACTION) - angle
    assert np.rad2deg(ahead_rad) * 3600 == pytest.approx(0.4399619 * 15.041, rel=1e-3)


def test_teme_to_earth_fixed_reproduces_the_published_state() -> None:
    """TEME to pseudo-Earth-fixed matches AIAA 2006-6753 to 2 cm and 2 mm/s."""
    r_m, v_m_s = teme_to_earth_fixed(R_TEME_M, V_TEME_M_S, sidereal_angle(JD, UT1_FRACTION))
    np.testing.assert_allclose(r_m, R_PEF_M, rtol=0, atol=TWO_CENTIMETRES)
    np.testing.assert_allclose(v_m_s, V_PEF_M_S, rtol=0, atol=TWO_MILLIMETRES_PER_SECOND)


def test_earth_fixed_to_teme_is_the_inverse() -> None:
    """It reverses TEME to Earth-fixed, for positions and velocities."""
    angle = sidereal_angle(JD, UT1_FRACTION)
    r_m, v_m_s = earth_fixed_to_teme(*teme_to_earth_fixed(R_TEME_M, V_TEME_M_S, angle), angle)
    np.testing.assert_allclose(r_m, R_TEME_M, rtol=1e-15)
    np.testing.assert_allclose(v_m_s, V_TEME_M_S, rtol=1e-13)


def test_teme_to_j2000_reproduces_the_published_state() -> None:
    """It matches the published state without IERS corrections to 2 cm, and the one with them to 1 m."""
    r_m = teme_to_j2000_matrix(JD, UTC_FRACTION) @ R_TEME_M
    np.testing.assert_allclose(r_m, R_J2000_M, rtol=0, atol=TWO_CENTIMETRES)
    np.testing.assert_allclose(r_m, R_GCRF_M, rtol=0, atol=ONE_METRE)


def test_j2000_agrees_with_the_modern_models() -> None:
    """The models of 1976/1980/1982 agree with IAU 2006/2000A to a tenth of an arcsecond in 2026."""
    jd, fraction = np.array(2461000.5), np.linspace(0.0, 1.0, 7, endpoint=False)
    old = np.einsum("nij,j->ni", teme_to_j2000_matrix(jd, fraction), R_TEME_M)
    fixed, _ = teme_to_earth_fixed(np.tile(R_TEME_M, (7, 1)), np.zeros((7, 3)), sidereal_angle(jd, fraction))
    terrestrial = erfa.c2t06a(jd, fraction + 69.184 / 86_400.0, jd, fraction, 0.0, 0.0)
    modern = np.einsum("nji,nj->ni", terrestrial, fixed)
    assert np.max(np.linalg.norm(old - modern, axis=1)) / np.linalg.norm(R_TEME_M) < np.deg2rad(0.1 / 3600)


def test_a_site_at_rest_moves_with_the_ground() -> None:
    """A site on the equator moves east at 465 m/s in TEME."""
    site = Site.from_degrees("equator", latitude_deg=0.0, longitude_deg=0.0, height_m=0.0)
    r_m, v_m_s = earth_fixed_to_teme(site.r_fixed_m, np.zeros(3), np.array(0.0))
    np.testing.assert_allclose(r_m, [6_378_137.0, 0.0, 0.0], atol=1e-6)
    np.testing.assert_allclose(v_m_s, [0.0, 465.1, 0.0], atol=0.01)


def test_a_sites_earth_fixed_position_matches_erfas_test_case() -> None:
    """Longitude 3.1, latitude -0.5, height 2,500 m on WGS-84: ERFA's test of ``gd2gc`` (t_erfa_c)."""
    site = Site("test case", latitude_rad=-0.5, longitude_rad=3.1, height_m=2500.0)
    expected_m = [-5599000.5577049947, 233011.67223479203, -3040909.4706983363]
    np.testing.assert_allclose(site.r_fixed_m, expected_m, rtol=0, atol=1e-7)


def test_a_sites_horizon_is_a_rotation_with_geodetic_up() -> None:
    """East, north and up are orthonormal, and one kilometre more height is one kilometre along up."""
    low = Site.from_degrees("low", latitude_deg=69.586, longitude_deg=19.227, height_m=0.0)
    high = Site.from_degrees("high", latitude_deg=69.586, longitude_deg=19.227, height_m=1000.0)
    np.testing.assert_allclose(low.horizon @ low.horizon.T, np.eye(3), atol=ONE_NANORADIAN)
    np.testing.assert_allclose(low.horizon @ (high.r_fixed_m - low.r_fixed_m), [0.0, 0.0, 1000.0], atol=1e-6)
