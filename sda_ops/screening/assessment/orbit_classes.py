"""The class of an orbit, from mean elements: low, sun-synchronous, medium, geosynchronous, transfer, Molniya, eccentric.

The limits are those of the orbit categories that CCSDS orbit messages use (SANA registry "Orbit Categories", for CCSDS
502.0-B-3; ESA's Annual Space Environment Report has the same table). ``SSO`` and ``MOLNIYA`` are not categories there: their
limits are those of J. McDowell's General Catalog of Artificial Space Objects (GCAT), "Orbital Categories".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from sda_ops.astro.time import Floats
from sda_ops.catalog.columns import MU_WGS72_KM3_S2, ElementColumns

EARTH_RADIUS_KM = 6378.135
"""Equatorial, WGS-72, to which SGP4's mean elements refer (AIAA 2006-6753)."""

OrbitCodes = npt.NDArray[np.int8]
"""Values of `OrbitClass`."""


class OrbitClass(IntEnum):
    """Classes of orbits. ``hp`` and ``ha`` are the heights of perigee and apogee above the equatorial radius."""

    OTHER = 0
    """None of the others, such as orbits wholly above the geosynchronous ones."""
    LEO = 1
    """``hp`` and ``ha`` below 2,000 km."""
    SSO = 2
    """A low orbit with an inclination of 95 to 104 degrees, where it can be sun-synchronous."""
    MEO = 3
    """``hp`` and ``ha`` from 2,000 to 31,570 km: navigation satellites among them."""
    GEO = 4
    """Geosynchronous of any inclination: semi-major axis from 37,948 to 46,380 km, eccentricity below 0.25."""
    GTO = 5
    """Transfer to a geosynchronous orbit: ``hp`` below 2,000 km, ``ha`` from 31,570 to 40,002 km, inclination below 90 degrees."""
    MOLNIYA = 6
    """Period 11:30 to 12:30 hours, inclination 62 to 64 degrees, eccentricity 0.5 to 0.77."""
    HEO = 7
    """Highly eccentric: ``hp`` below 31,570 km, ``ha`` above 40,002 km."""
    LMO = 8
    """Crosses from low to medium heights: ``hp`` below 2,000 km, ``ha`` from 2,000 to 31,570 km."""


Range = tuple[float, float]
"""From the first, up to but without the second."""

_ANY: Range = (-np.inf, np.inf)
_LOW: Range = (-np.inf, 2_000.0)
_MEDIUM: Range = (2_000.0, 31_570.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limits:
    """The orbits of one class: every quantity is in its range."""

    orbit_class: OrbitClass
    perigee_km: Range = _ANY
    apogee_km: Range = _ANY
    axis_km: Range = _ANY
    eccentricity: Range = _ANY
    inclination_deg: Range = _ANY
    period_h: Range = _ANY


_CLASSES = (
    _Limits(
        orbit_class=OrbitClass.MOLNIYA, period_h=(11.5, 12.5), inclination_deg=(62.0, 64.0), eccentricity=(0.5, 0.77)
    ),
    _Limits(orbit_class=OrbitClass.GEO, axis_km=(37_948.0, 46_380.0), eccentricity=(0.0, 0.25)),
    _Limits(orbit_class=OrbitClass.SSO, perigee_km=_LOW, apogee_km=_LOW, inclination_deg=(95.0, 104.0)),
    _Limits(orbit_class=OrbitClass.LEO, perigee_km=_LOW, apogee_km=_LOW),
    _Limits(orbit_class=OrbitClass.LMO, perigee_km=_LOW, apogee_km=_MEDIUM),
    _Limits(orbit_class=OrbitClass.GTO, perigee_km=_LOW, apogee_km=(31_570.0, 40_002.0), inclination_deg=(0.0, 90.0)),
    _Limits(orbit_class=OrbitClass.MEO, perigee_km=_MEDIUM, apogee_km=_MEDIUM),
    _Limits(orbit_class=OrbitClass.HEO, perigee_km=(-np.inf, 31_570.0), apogee_km=(40_002.0, np.inf)),
)
"""An orbit is of the first class that fits."""


def orbit_classes(columns: ElementColumns) -> OrbitCodes:
    """The class of each object's orbit, ``(objects,)``, from its mean elements. Kozai's mean motion gives the semi-major axis."""
    mean_motion_rad_s = columns.no_kozai / 60.0
    axis_km = np.cbrt(MU_WGS72_KM3_S2 / mean_motion_rad_s**2)
    quantities: dict[str, Floats] = {
        "perigee_km": axis_km * (1.0 - columns.ecco) - EARTH_RADIUS_KM,
        "apogee_km": axis_km * (1.0 + columns.ecco) - EARTH_RADIUS_KM,
        "axis_km": axis_km,
        "eccentricity": columns.ecco,
        "inclination_deg": np.degrees(columns.inclo),
        "period_h": 2.0 * np.pi / mean_motion_rad_s / 3_600.0,
    }
    codes = np.full(len(columns), OrbitClass.OTHER.value, dtype=np.int8)
    for limits in reversed(_CLASSES):
        inside = np.ones(len(columns), dtype=np.bool_)
        for name, values in quantities.items():
            low, high = getattr(limits, name)
            inside &= (values >= low) & (values < high)
        codes[inside] = limits.orbit_class.value
    return codes
