"""A generated catalogue with the structure of the real one: constellations, sun-synchronous, geostationary, debris.

None of its objects exists. Orbits follow published figures only roughly (altitude, inclination, number of planes). Phases,
drag terms and debris are drawn from a seeded generator: the same seed and epoch give the same catalogue.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sgp4.api import WGS72, Satrec

from sda_ops.astro.time import NS_PER_DAY, UNIX_EPOCH_JD
from sda_ops.catalog.elements import SGP4_EPOCH_JD, ElementSet

FIRST_CATALOG_NUMBER = 200_001
"""Six digits, because no later stage may assume five. Alpha-5 reaches 339,999."""

MU_KM3_S2 = 398600.8
"""Earth's gravitational parameter of WGS-72, the constants SGP4 is fitted with."""

EARTH_RADIUS_KM = 6378.135
"""Equatorial radius of WGS-72."""


@dataclass(frozen=True, slots=True)
class _Shell:
    """Evenly spaced planes at one altitude and inclination (a Walker pattern)."""

    name: str
    share: float
    altitude_km: float
    inclination_deg: float
    planes: int


@dataclass(frozen=True, slots=True)
class _Cloud:
    """Debris of one break-up: close to its parent in altitude and inclination, spread in node, phase and drag."""

    name: str
    share: float
    altitude_km: float
    inclination_deg: float
    node_deg: float
    node_spread_deg: float


_SHELLS = (
    _Shell("MESH-A", 0.32, 550.0, 53.0, 36),
    _Shell("MESH-B", 0.06, 560.0, 97.6, 6),
    _Shell("MESH-C", 0.12, 1200.0, 87.9, 12),
    _Shell("NAV", 0.02, 20_180.0, 55.0, 6),
)
_SUN_SYNCHRONOUS_SHARE = 0.16
_GEOSTATIONARY_SHARE = 0.06
_CLOUDS = (
    _Cloud("CLOUD-P DEB", 0.11, 790.0, 74.0, 40.0, 60.0),
    _Cloud("CLOUD-Q DEB", 0.06, 780.0, 86.4, 150.0, 40.0),
    _Cloud("CLOUD-R DEB", 0.09, 850.0, 98.8, 260.0, 70.0),
)


@dataclass(frozen=True, slots=True)
class _Orbit:
    """Mean elements without a catalogue number."""

    name: str
    semi_major_axis_km: float
    eccentricity: float
    inclination_deg: float
    node_deg: float
    perigee_deg: float
    anomaly_deg: float
    bstar: float


def synthetic_catalog(*, objects: int = 2000, epoch_ns: int, seed: int = 0) -> tuple[ElementSet, ...]:
    """``objects`` element sets at ``epoch_ns`` (UTC), numbered upwards from 200,001.

    Every kind of orbit has its share, rounded, also of few objects; the last cloud has the remainder.
    """
    rng = np.random.default_rng(seed)
    orbits: list[_Orbit] = []
    for shell in _SHELLS:
        orbits += _shell(shell, round(shell.share * objects), rng)
    orbits += _sun_synchronous(round(_SUN_SYNCHRONOUS_SHARE * objects), rng)
    orbits += _geostationary(round(_GEOSTATIONARY_SHARE * objects), rng)
    for cloud in _CLOUDS[:-1]:
        orbits += _cloud(cloud, round(cloud.share * objects), rng)
    orbits += _cloud(_CLOUDS[-1], max(0, objects - len(orbits)), rng)
    return tuple(
        _element_set(number, orbit, epoch_ns)
        for number, orbit in enumerate(orbits[:objects], start=FIRST_CATALOG_NUMBER)
    )


def _shell(shell: _Shell, count: int, rng: np.random.Generator) -> Iterator[_Orbit]:
    planes = min(shell.planes, count)
    for index in range(count):
        plane = index % planes
        slot, slots = index // planes, -(-count // planes)
        perigee_deg = rng.uniform(0.0, 360.0)
        along_deg = 360.0 * (slot / slots + plane / (planes * slots)) + rng.normal(0.0, 0.1)
        yield _Orbit(
            f"{shell.name}-{index + 1}",
            EARTH_RADIUS_KM + shell.altitude_km + rng.normal(0.0, 0.3),
            abs(rng.normal(1e-4, 3e-5)),
            shell.inclination_deg + rng.normal(0.0, 0.01),
            360.0 * plane / planes,
            perigee_deg,
            along_deg - perigee_deg,  # counted from the node this is the slot, for any argument of perigee
            rng.lognormal(np.log(1e-4), 0.5),
        )


def _sun_synchronous(count: int, rng: np.random.Generator) -> Iterator[_Orbit]:
    for index in range(count):
        altitude_km = rng.uniform(450.0, 900.0)
        a_km = EARTH_RADIUS_KM + altitude_km
        # Node rate of one turn a year: cos i = -(a / 12,352 km)^(7/2) (Vallado, 4th ed., 11.4.1).
        inclination_deg = float(np.rad2deg(np.arccos(-((a_km / 12_352.0) ** 3.5))))
        yield _Orbit(
            f"SUNSYNC-{index + 1}",
            a_km,
            abs(rng.normal(8e-4, 6e-4)),
            inclination_deg + rng.normal(0.0, 0.05),
            rng.uniform(0.0, 360.0),
            rng.uniform(0.0, 360.0),
            rng.uniform(0.0, 360.0),
            rng.lognormal(np.log(8e-5), 0.7),
        )


def _geostationary(count: int, rng: np.random.Generator) -> Iterator[_Orbit]:
    for index in range(count):
        semi_major_axis_km = 42_165.0 + rng.normal(0.0, 3.0)
        eccentricity = abs(rng.normal(2e-4, 1e-4))
        inclination_deg = abs(rng.normal(0.05, 0.03)) if index % 4 else rng.uniform(0.5, 14.0)
        node_deg, perigee_deg = rng.uniform(0.0, 360.0), rng.uniform(0.0, 360.0)
        along_deg = 360.0 * index / count + rng.normal(0.0, 0.5)  # position in the belt, from one direction for all
        yield _Orbit(
            f"GEOBELT-{index + 1}",
            semi_major_axis_km,
            eccentricity,
            inclination_deg,
            node_deg,
            perigee_deg,
            along_deg - node_deg - perigee_deg,
            0.0,
        )


def _cloud(cloud: _Cloud, count: int, rng: np.random.Generator) -> Iterator[_Orbit]:
    for _ in range(count):
        eccentricity = min(0.04, float(rng.gamma(1.5, 0.004)))
        # Fragments pass through the altitude of the break-up: wider orbits go with larger eccentricity.
        widening_km = rng.choice((-0.5, 1.0)) * eccentricity * (EARTH_RADIUS_KM + cloud.altitude_km)
        yield _Orbit(
            cloud.name,
            EARTH_RADIUS_KM + cloud.altitude_km + widening_km + rng.normal(0.0, 10.0),
            eccentricity,
            cloud.inclination_deg + rng.normal(0.0, 0.25),
            cloud.node_deg + rng.normal(0.0, cloud.node_spread_deg),
            rng.uniform(0.0, 360.0),
            rng.uniform(0.0, 360.0),
            rng.lognormal(np.log(4e-4), 1.0),
        )


def _element_set(catalog_number: int, orbit: _Orbit, epoch_ns: int) -> ElementSet:
    satrec = Satrec()
    epoch_days = epoch_ns / NS_PER_DAY + UNIX_EPOCH_JD - SGP4_EPOCH_JD
    satrec.sgp4init(
        WGS72,
        "i",
        catalog_number,
        epoch_days,
        orbit.bstar,
        0.0,
        0.0,
        orbit.eccentricity,
        np.deg2rad(orbit.perigee_deg % 360.0),
        np.deg2rad(orbit.inclination_deg),
        np.deg2rad(orbit.anomaly_deg % 360.0),
        60.0 * np.sqrt(MU_KM3_S2 / orbit.semi_major_axis_km**3),
        np.deg2rad(orbit.node_deg % 360.0),
    )
    return ElementSet(catalog_number, orbit.name, satrec, epoch_days)
