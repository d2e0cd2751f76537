"""What a site sees of an object: azimuth, elevation, range, range-rate; right ascension and declination.

Geometric directions at one instant: no light time, no refraction, no aberration. In one-way light time an object in low
orbit moves about 25 m (at 1,000 km range), one in geostationary orbit about 370 m. Frames as in `sda_ops.astro.frames`,
with their errors.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sda_ops.astro.frames import earth_fixed_to_teme, teme_to_earth_fixed
from sda_ops.astro.sites import Site
from sda_ops.astro.time import Floats


class Look(NamedTuple):
    """What a radar measures; arrays of one shape.

    Attributes:
        azimuth_rad: Clockwise from true north, in [0, 2 pi).
        elevation_rad: Above the local horizon, negative below it.
        range_m: Slant range.
        range_rate_m_s: Its rate, positive when receding.
    """

    azimuth_rad: Floats
    elevation_rad: Floats
    range_m: Floats
    range_rate_m_s: Floats


def look(site: Site, r_teme_m: Floats, v_teme_m_s: Floats, sidereal_rad: Floats) -> Look:
    """States ``(..., 3)`` in TEME as a radar at ``site`` measures them; ``sidereal_rad`` has the leading shape."""
    r_fixed_m, v_fixed_m_s = teme_to_earth_fixed(r_teme_m, v_teme_m_s, sidereal_rad)
    line_of_sight_m = r_fixed_m - site.r_fixed_m
    range_m = np.sqrt(np.einsum("...i,...i->...", line_of_sight_m, line_of_sight_m))
    local_m = line_of_sight_m @ site.horizon.T
    return Look(
        azimuth_rad=np.arctan2(local_m[..., 0], local_m[..., 1]) % (2.0 * np.pi),
        elevation_rad=np.arcsin(local_m[..., 2] / range_m),
        range_m=range_m,
        range_rate_m_s=np.einsum("...i,...i->...", line_of_sight_m, v_fixed_m_s) / range_m,
    )


def direction_j2000(site: Site, r_teme_m: Floats, sidereal_rad: Floats, teme_to_j2000: Floats) -> tuple[Floats, Floats]:
    """Topocentric right ascension in [0, 2 pi) and declination, radians, of positions ``(..., 3)`` in TEME.

    ``teme_to_j2000`` is one matrix ``(3, 3)`` of `frames.teme_to_j2000_matrix` for a short batch, or one for each.
    """
    site_teme_m, _ = earth_fixed_to_teme(site.r_fixed_m, np.zeros(3), sidereal_rad)
    line_of_sight_m = np.einsum("...ij,...j->...i", teme_to_j2000, r_teme_m - site_teme_m)
    x_m, y_m, z_m = line_of_sight_m[..., 0], line_of_sight_m[..., 1], line_of_sight_m[..., 2]
    return np.arctan2(y_m, x_m) % (2.0 * np.pi), np.arctan2(z_m, np.hypot(x_m, y_m))
