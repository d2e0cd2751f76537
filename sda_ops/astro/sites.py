"""A place on Earth: geodetic WGS-84 coordinates, where that is Earth-fixed, and its local horizon."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import erfa
import numpy as np

from sda_ops.astro.time import Floats


@dataclass(frozen=True)
class Site:
    """Where a sensor stands.

    Attributes:
        name: What people call it.
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
        """From degrees, as lists of sites give them."""
        return cls(name, float(np.deg2rad(latitude_deg)), float(np.deg2rad(longitude_deg)), height_m)

    @cached_property
    def r_fixed_m(self) -> Floats:
        """Earth-fixed position ``(3,)``; exact to rounding (ERFA ``gd2gc``)."""
        position: Floats = erfa.gd2gc(erfa.WGS84, self.longitude_rad, self.latitude_rad, self.height_m)
        return position

    @cached_property
    def horizon(self) -> Floats:
        """Rows east, north, up ``(3, 3)``: ``horizon @ d_fixed`` is a difference seen from here; up is geodetic."""
        sin_lat, cos_lat = np.sin(self.latitude_rad), np.cos(self.latitude_rad)
        sin_lon, cos_lon = np.sin(self.longitude_rad), np.cos(self.longitude_rad)
        return np.array(
            [
                [-sin_lon, cos_lon, 0.0],
                [-sin_lat * cos_lon, -sin_lat * sin_lon, cos_lat],
                [cos_lat * cos_lon, cos_lat * sin_lon, sin_lat],
            ]
        )
