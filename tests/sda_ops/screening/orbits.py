"""Element sets of orbits by their shape, for screening tests that need no data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from sgp4.api import WGS72, Satrec

from sda_ops.astro.time import NS_PER_S, julian_date
from sda_ops.catalog.elements import SGP4_EPOCH_JD, ElementSet
from sda_ops.screening.objects import ScreenedObjects

EPOCH_NS = 1_773_100_800 * NS_PER_S  # 2026-03-10T00:00:00Z
HOUR_NS = 3600 * NS_PER_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Orbit:
    """Mean elements at `EPOCH_NS`; the perigee's altitude stands for the semi-major axis."""

    perigee_km: float
    eccentricity: float = 1e-4
    inclination_deg: float = 53.0
    node_deg: float = 0.0
    argument_deg: float = 0.0
    anomaly_deg: float = 0.0
    bstar: float = 1e-5


TWO_DOCKED = (Orbit(perigee_km=420.0, inclination_deg=51.6, node_deg=10.0),) * 2
"""Two objects in one place."""

_LEADER = Orbit(perigee_km=515.0, inclination_deg=97.4, node_deg=80.0)
TWO_IN_FORMATION = (_LEADER, replace(_LEADER, anomaly_deg=0.01, node_deg=80.002))
"""Two objects that stay near each other."""

DECAYING_ORBIT = Orbit(perigee_km=115.0, bstar=5e-3, node_deg=200.0)
"""It decays within the hour."""


def screened(orbits: Sequence[Orbit]) -> ScreenedObjects:
    return ScreenedObjects.of([_element_set(700_001 + index, orbit) for index, orbit in enumerate(orbits)])


def random_orbits(count: int, seed: int) -> list[Orbit]:
    """Low, sun-synchronous, geosynchronous and eccentric orbits."""
    rng = np.random.default_rng(seed)
    orbits = []
    for index in range(count):
        kind = index % 4
        angles = dict(
            zip(("node_deg", "argument_deg", "anomaly_deg"), rng.uniform(0.0, 360.0, 3).tolist(), strict=True)
        )
        if kind == 0:
            orbits.append(Orbit(perigee_km=550.0 + rng.normal(0.0, 3.0), **angles))
        elif kind == 1:
            orbits.append(Orbit(perigee_km=rng.uniform(500.0, 800.0), inclination_deg=98.0, **angles))
        elif kind == 2:
            orbits.append(Orbit(perigee_km=35_780.0 + rng.normal(0.0, 5.0), inclination_deg=0.1, **angles))
        else:
            eccentricity = float(rng.choice([0.03, 0.09, 0.3, 0.6, 0.73]))
            inclination_deg = float(rng.choice([28.0, 63.4]))
            orbits.append(Orbit(perigee_km=550.0, eccentricity=eccentricity, inclination_deg=inclination_deg, **angles))
    return orbits


def _element_set(number: int, orbit: Orbit) -> ElementSet:
    jd, fraction = (float(part[0]) for part in julian_date(np.array([EPOCH_NS])))
    epoch_days = (jd - SGP4_EPOCH_JD) + fraction
    axis_km = (6378.135 + orbit.perigee_km) / (1.0 - orbit.eccentricity)
    angles = (orbit.argument_deg, orbit.inclination_deg, orbit.anomaly_deg)
    satrec = Satrec()
    satrec.sgp4init(
        WGS72,
        "i",
        0,
        epoch_days,
        orbit.bstar,
        0.0,
        0.0,
        orbit.eccentricity,
        *np.deg2rad(angles).tolist(),
        60.0 * float(np.sqrt(398600.8 / axis_km**3)),
        float(np.deg2rad(orbit.node_deg)),
    )
    return ElementSet(number, f"OBJECT {number}", satrec, epoch_days)
