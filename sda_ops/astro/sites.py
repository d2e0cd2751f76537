"""Sensor sites: geodetic WGS-84 coordinates, Earth-fixed and TEME positions, and local horizons."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import erfa
import numpy as np

from sda_ops.astro.frames import EARTH_ROTATION_RAD_S
from sda_ops.astro.time import Floats


@dataclass(frozen=True)
class Site:
    """A place on the ground where a sensor stands.

    Attributes:
        name: For people.
        latitude_rad: Geodetic, north positive.
        longitude_rad: East positive.
        height_m: Above the WGS-84 ellipsoid.
    """

    name: str
    latitude_rad: float
    longitude_rad: float
    height_m: float

    @classmethod
    def from_degrees(cls, name: str, *, latitude_deg: float, longitude_deg: float, height_m: float) -> Site:
        """From degrees, the unit that lists of sites use."""
        return cls(name, float(np.deg2rad(latitude_deg)), float(np.deg2rad(longitude_deg)), height_m)

    @cached_property
    def r_fixed_m(self) -> Floats:
        """Earth-fixed position ``(3,)``; exact to rounding (ERFA ``gd2gc``)."""
        position: Floats = erfa.gd2gc(erfa.WGS84, self.longitude_rad, self.latitude_rad, self.height_m)
        return position

    @cached_property
    def horizon(self) -> Floats:
        """``(3, 3)`` with rows east, north, up (geodetic): ``horizon @ d_fixed`` turns an Earth-fixed difference into it."""
        sin_lat, cos_lat = np.sin(self.latitude_rad), np.cos(self.latitude_rad)
        sin_lon, cos_lon = np.sin(self.longitude_rad), np.cos(self.longitude_rad)
        return np.array(
            [
                [-sin_lon, cos_lon, 0.0],
                [-sin_lat * cos_lon, -sin_lat * sin_lon, cos_lat],
                [cos_lat * cos_lon, cos_lat * sin_lon, sin_lat],
            ]
        )


class TemeSites(NamedTuple):
    """Sites in TEME, each at one time.

    Attributes:
        r_teme_m: Positions ``(n, 3)``.
        v_teme_m_s: Velocities ``(n, 3)`` by the Earth's rotation.
        horizon_teme: ``(n, 3, 3)`` with rows east, north, up.
    """

    r_teme_m: Floats
    v_teme_m_s: Floats
    horizon_teme: Floats


def teme_sites(r_fixed_m: Floats, horizon: Floats, sidereal_rad: Floats) -> TemeSites:
    """Turn Earth-fixed positions ``(3,)`` or ``(n, 3)`` and horizons ``(3, 3)`` or ``(n, 3, 3)`` by sidereal angles ``(n,)``."""
    cos, sin = np.cos(sidereal_rad), np.sin(sidereal_rad)
    r_teme_m = _turned(r_fixed_m, cos, sin)
    v_teme_m_s = np.zeros_like(r_teme_m)
    v_teme_m_s[:, 0] = -EARTH_ROTATION_RAD_S * r_teme_m[:, 1]
    v_teme_m_s[:, 1] = EARTH_ROTATION_RAD_S * r_teme_m[:, 0]
    return TemeSites(r_teme_m, v_teme_m_s, _turned(horizon, cos[:, np.newaxis], sin[:, np.newaxis]))


def _turned(fixed: Floats, cos: Floats, sin: Floats) -> Floats:
    x = cos * fixed[..., 0] - sin * fixed[..., 1]
    y = sin * fixed[..., 0] + cos * fixed[..., 1]
    return np.stack((x, y, np.broadcast_to(fixed[..., 2], x.shape)), axis=-1)
