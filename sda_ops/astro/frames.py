"""Rotations between TEME (SGP4's frame), the rotating Earth, and J2000 (the frame of telescopes).

After Vallado, Crawford, Hujsak and Kelso, "Revisiting Spacetrack Report #3", AIAA 2006-6753, App. C; the series are
ERFA's (IAU 1976 precession, IAU 1980 nutation, IAU 1982 sidereal time, IAU 1994 equation of the equinoxes).

Two simplifications, and the errors they cause:

- UT1 is taken to be UTC unless `sidereal_angle` is given ``ut1_minus_utc_s`` (IERS Bulletin A). They differ by 0.9 s at
  most, about 0.1 s or less since 2022: the Earth's rotation is off by up to 1.5 arcseconds, which moves a site on the
  equator by up to 47 m (420 m at the bound).
- Polar motion is zero: up to 0.4 arcseconds, 15 m at the Earth's surface.

J2000 here is the mean equator and equinox of J2000.0 (FK5), with no IERS corrections: within 0.1 arcsecond of GCRS.
"""

from __future__ import annotations

import erfa
import numpy as np

from sda_ops.astro.time import SECONDS_PER_DAY, TT_MINUS_UTC_DAYS, Floats

EARTH_ROTATION_RAD_S = 7.292115146706979e-5
"""Earth's rate of rotation, rad/s (Vallado, 4th ed., 3-75, without the excess length of day)."""


def sidereal_angle(jd: Floats, fraction: Floats, *, ut1_minus_utc_s: float = 0.0) -> Floats:
    """Greenwich mean sidereal time (IAU 1982), radians in [0, 2 pi), at a UTC Julian date pair of any shape.

    Error: 7.3e-5 rad (15 arcseconds) for each second of error in ``ut1_minus_utc_s``; otherwise a nanoradian (ERFA).
    """
    angle: Floats = erfa.gmst82(jd, np.asarray(fraction) + ut1_minus_utc_s / SECONDS_PER_DAY)
    return angle


def teme_to_earth_fixed(r_teme_m: Floats, v_teme_m_s: Floats, sidereal_rad: Floats) -> tuple[Floats, Floats]:
    """States ``(..., 3)`` in TEME, transformed to the rotating Earth; ``sidereal_rad`` has the leading shape.

    The result is in the pseudo-Earth-fixed frame: Earth-fixed without polar motion. The velocity is relative to the
    rotating frame: a point at rest on the ground has zero velocity.
    """
    cos, sin = np.cos(sidereal_rad), np.sin(sidereal_rad)
    r_fixed_m = np.empty_like(r_teme_m)
    v_fixed_m_s = np.empty_like(v_teme_m_s)
    for fixed, teme in ((r_fixed_m, r_teme_m), (v_fixed_m_s, v_teme_m_s)):
        fixed[..., 0] = cos * teme[..., 0] + sin * teme[..., 1]
        fixed[..., 1] = cos * teme[..., 1] - sin * teme[..., 0]
        fixed[..., 2] = teme[..., 2]
    v_fixed_m_s[..., 0] += EARTH_ROTATION_RAD_S * r_fixed_m[..., 1]
    v_fixed_m_s[..., 1] -= EARTH_ROTATION_RAD_S * r_fixed_m[..., 0]
    return r_fixed_m, v_fixed_m_s


def earth_fixed_to_teme(r_fixed_m: Floats, v_fixed_m_s: Floats, sidereal_rad: Floats) -> tuple[Floats, Floats]:
    """The inverse of `teme_to_earth_fixed`. Shapes broadcast: one site ``(3,)`` at many sidereal angles."""
    cos, sin = np.cos(sidereal_rad), np.sin(sidereal_rad)
    x_m, y_m, z_m = r_fixed_m[..., 0], r_fixed_m[..., 1], r_fixed_m[..., 2]
    vx_m_s = v_fixed_m_s[..., 0] - EARTH_ROTATION_RAD_S * y_m
    vy_m_s = v_fixed_m_s[..., 1] + EARTH_ROTATION_RAD_S * x_m
    vz_m_s = v_fixed_m_s[..., 2]
    zero = np.zeros_like(cos)
    r_teme_m = np.stack((cos * x_m - sin * y_m, sin * x_m + cos * y_m, z_m + zero), axis=-1)
    v_teme_m_s = np.stack((cos * vx_m_s - sin * vy_m_s, sin * vx_m_s + cos * vy_m_s, vz_m_s + zero), axis=-1)
    return r_teme_m, v_teme_m_s


def teme_to_j2000_matrix(jd: Floats, fraction: Floats) -> Floats:
    """Rotations ``(..., 3, 3)`` from TEME of a UTC Julian date pair to J2000: ``r_j2000 = matrix @ r_teme``.

    TEME's x axis lies on the true equator and differs from the true equinox by the equation of the equinoxes. Nutation
    and precession then lead to J2000. The matrix changes by 0.2 arcseconds a day, so one matrix serves a short batch.
    """
    tt_fraction = np.asarray(fraction) + TT_MINUS_UTC_DAYS
    equinoxes_rad = erfa.eqeq94(jd, tt_fraction)
    true_of_date_to_j2000 = np.swapaxes(erfa.pnm80(jd, tt_fraction), -1, -2)
    teme_to_true_of_date = erfa.rz(-equinoxes_rad, np.eye(3))
    matrix: Floats = true_of_date_to_j2000 @ teme_to_true_of_date
    return matrix
