"""Scenes for tests of the correlator: catalogues in motion, and the exact observations of sensors.

Observations are computed with `sda_ops.astro.topocentric` alone, not with the code under test.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count
from uuid import UUID

import numpy as np

from sda_ops.astro.frames import sidereal_angle, teme_to_j2000_matrix
from sda_ops.astro.propagation import Propagator, States
from sda_ops.astro.sites import Site
from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds, julian_date
from sda_ops.astro.topocentric import look_many, radar_measurement, telescope_measurement
from sda_ops.catalog import ElementColumns, ElementSet, synthetic_catalog
from sda_ops.propagation.interval import STEP_NS, CatalogFacts, CatalogInterval, Pairs, knots_of
from sda_ops.propagation.uncertainty import CatalogErrors, ElementSetErrors, Objects
from sda_ops.records.observation import (
    Observation,
    OpticalTarget,
    RadarTarget,
    SourceKind,
    StateTarget,
    Target,
    Uncertainty,
)
from sda_ops.simulate.places import RADAR_SITES, TELESCOPE_SITES
from tests.helpers.running import NOON_NS

TROMSO, TEIDE = RADAR_SITES[0], TELESCOPE_SITES[0]
MINUTES_PER_S = 1.0 / 60.0
SIGMA = Uncertainty(
    sigma_range_m=30.0,
    sigma_range_rate_m_s=0.5,
    sigma_angle_rad=5e-4,
    sigma_position_m=50.0,
    sigma_velocity_m_s=0.1,
)
_numbers = count(1)


@cache
def sky(objects: int = 600, *, seed: int = 0) -> tuple[ElementSet, ...]:
    """A catalogue with every kind of orbit; the epochs are at noon."""
    return synthetic_catalog(objects=objects, epoch_ns=NOON_NS, seed=seed)


def facts_of(columns: ElementColumns, errors: ElementSetErrors | None = None, *, version: int = 1) -> CatalogFacts:
    known = CatalogErrors(
        errors or ElementSetErrors(),
        epoch_ns=columns.epoch_ns,
        mean_motion_rad_s=columns.no_kozai * MINUTES_PER_S,
    )
    return CatalogFacts(version, columns.catalog_number, columns.epoch_ns, known)


def knots_at(element_sets: Sequence[ElementSet], timestamp_ns: int) -> list[States]:
    """The four knots of the interval at this time, computed by sgp4."""
    propagator = Propagator([element_set.satrec for element_set in element_sets], engine="sgp4")
    return [propagator.propagate(np.array([knot * STEP_NS])) for knot in knots_of(timestamp_ns)]


def interval_at(
    element_sets: Sequence[ElementSet],
    timestamp_ns: int = NOON_NS,
    *,
    errors: ElementSetErrors | None = None,
    kind: type[CatalogInterval] = CatalogInterval,
) -> CatalogInterval:
    """The interval at this time, of class ``kind``."""
    facts = facts_of(ElementColumns.of(element_sets), errors)
    return kind(facts, timestamp_ns // STEP_NS * STEP_NS, knots_at(element_sets, timestamp_ns))


@cache
def noon(objects: int = 600) -> CatalogInterval:
    """The first interval of `sky`."""
    return interval_at(sky(objects))


def flying_straight(
    r_m: Floats,
    v_m_s: Floats,
    *,
    at_ns: int = NOON_NS,
    ages_ns: int | Nanoseconds = 0,
    errors: ElementSetErrors | None = None,
) -> CatalogInterval:
    """Objects with these states ``(n, 3)`` at ``at_ns``, numbered from 1, with epochs ``ages_ns`` earlier. They fly in
    straight lines, which cubic interpolation reproduces exactly."""
    knots = []
    for knot in knots_of(at_ns):
        r_then_m = r_m + v_m_s * (knot * STEP_NS - at_ns) / NS_PER_S
        knots.append(
            States(r_then_m[:, np.newaxis], v_m_s[:, np.newaxis], np.zeros((len(r_m), 1), dtype=np.uint8)),
        )
    epoch_ns: Nanoseconds = np.full(len(r_m), at_ns) - np.asarray(ages_ns)
    mean_motion_rad_s = np.linalg.norm(v_m_s, axis=1) / np.linalg.norm(r_m, axis=1)
    known = CatalogErrors(errors or ElementSetErrors(), epoch_ns=epoch_ns, mean_motion_rad_s=mean_motion_rad_s)
    facts = CatalogFacts(1, np.arange(1, len(r_m) + 1), epoch_ns, known)
    return CatalogInterval(facts, at_ns // STEP_NS * STEP_NS, knots)


def elevations_rad(site: Site, interval: CatalogInterval, timestamp_ns: int) -> Floats:
    """The elevation of every object at that time; NaN where it has no state."""
    objects = np.arange(interval.facts.catalog_number.size)
    times_ns = np.full(objects.size, timestamp_ns)
    r_m, v_m_s = interval.states(objects, times_ns)
    return look_many(site.r_fixed_m, site.horizon, r_m, v_m_s, sidereal_angle(*julian_date(times_ns))).elevation_rad


def risen(site: Site, interval: CatalogInterval, timestamp_ns: int, *, above_deg: float = 10.0) -> Objects:
    rows: Objects = np.flatnonzero(elevations_rad(site, interval, timestamp_ns) > np.deg2rad(above_deg))
    return rows


class Exhaustive(CatalogInterval):
    """Returns every object above the horizon as a candidate: the reference for the spatial index."""

    def near(
        self,
        r_teme_m: Floats,
        timestamp_ns: Nanoseconds,
        gate_sigmas: float,
        sigma_m: Floats,
        *,
        clock_s: float = 0.0,
    ) -> Pairs:
        return _all_pairs([self.usable] * timestamp_ns.size)

    def towards(
        self,
        site: Site,
        line_of_sight_teme: Floats,
        timestamp_ns: Nanoseconds,
        gate_rad: Floats,
        gate_sigmas: float,
        *,
        clock_s: float = 0.0,
    ) -> Pairs:
        return _all_pairs([risen(site, self, time_ns, above_deg=0.0) for time_ns in timestamp_ns.tolist()])

    def at_range(
        self,
        site: Site,
        range_m: Floats,
        timestamp_ns: Nanoseconds,
        gate_m: Floats,
        gate_sigmas: float,
        *,
        clock_s: float = 0.0,
    ) -> Pairs:
        return _all_pairs([risen(site, self, time_ns, above_deg=0.0) for time_ns in timestamp_ns.tolist()])


def _all_pairs(of_row: list[Objects]) -> Pairs:
    return Pairs(np.repeat(np.arange(len(of_row)), [found.size for found in of_row]), np.concatenate(of_row))


@dataclass(frozen=True, slots=True)
class Moment:
    """The state of one object at the time of an observation.

    Attributes:
        timestamp_ns: When the signal arrives at the sensor.
        r_m: TEME ``(3,)``.
        v_m_s: TEME ``(3,)``.
    """

    timestamp_ns: int
    r_m: Floats
    v_m_s: Floats

    @classmethod
    def of(cls, interval: CatalogInterval, row: int, timestamp_ns: int) -> Moment:
        r_m, v_m_s = interval.states(np.array([row]), np.array([timestamp_ns]))
        return cls(timestamp_ns, r_m[0], v_m_s[0])

    @property
    def axes(self) -> Floats:
        """Rows radial, in-track, cross-track."""
        return orbit_axes(self.r_m, self.v_m_s)

    def moved(self, offsets_m: Floats, offsets_m_s: Floats | None = None) -> Moment:
        """Moved by these offsets along radial, in-track, cross-track."""
        change_m_s = np.zeros(3) if offsets_m_s is None else offsets_m_s
        return Moment(self.timestamp_ns, self.r_m + offsets_m @ self.axes, self.v_m_s + change_m_s @ self.axes)


def orbit_axes(r_m: Floats, v_m_s: Floats) -> Floats:
    """Rows radial, in-track, cross-track ``(..., 3, 3)``, of states ``(..., 3)``."""
    normal = np.cross(r_m, v_m_s)
    axes = np.stack((r_m, np.cross(normal, r_m), normal), axis=-2)
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    return axes


def echo_of(site: Site, moment: Moment) -> Floats:
    """Range, range-rate, azimuth and elevation ``(4,)`` that a radar reports."""
    angle_rad = sidereal_angle(*julian_date(np.array([moment.timestamp_ns])))
    seen = radar_measurement(site.r_fixed_m, site.horizon, moment.r_m[np.newaxis], moment.v_m_s[np.newaxis], angle_rad)
    return np.concatenate((seen.range_m, seen.range_rate_m_s, seen.azimuth_rad, seen.elevation_rad))


def direction_of(site: Site, moment: Moment) -> Floats:
    """Right ascension and declination ``(2,)`` that a telescope reports."""
    date = julian_date(np.array(moment.timestamp_ns))
    states = moment.r_m[np.newaxis], moment.v_m_s[np.newaxis]
    angle_rad = np.atleast_1d(sidereal_angle(*date))
    return np.concatenate(telescope_measurement(site.r_fixed_m, *states, angle_rad, teme_to_j2000_matrix(*date)))


def observation(
    kind: SourceKind, source_id: str, timestamp_ns: int, target: Target, sigma: Uncertainty = SIGMA
) -> Observation:
    """An observation with a unique id."""
    number = next(_numbers)
    return Observation(
        UUID(int=number),
        source_id,
        kind,
        timestamp_ns,
        timestamp_ns + number,
        target,
        sigma,
        track_id=f"track-{number}",
    )


def echo(
    site: Site,
    moment: Moment,
    *,
    noise: Floats | None = None,
    source_id: str = "radar-1",
    sigma: Uncertainty = SIGMA,
    only: Sequence[str] = ("range_m", "range_rate_m_s", "azimuth_rad", "elevation_rad"),
) -> Observation:
    """A radar's report of ``only`` these components."""
    names = ("range_m", "range_rate_m_s", "azimuth_rad", "elevation_rad")
    values = echo_of(site, moment) + (np.zeros(4) if noise is None else noise)
    measured = {name: value for name, value in zip(names, values.tolist(), strict=True) if name in only}
    return observation("radar", source_id, moment.timestamp_ns, RadarTarget(**measured), sigma)


def sighting(
    site: Site,
    moment: Moment,
    *,
    noise: Floats | None = None,
    source_id: str = "optical-1",
    sigma: Uncertainty = SIGMA,
) -> Observation:
    """A telescope's report."""
    angles = direction_of(site, moment) + (np.zeros(2) if noise is None else noise)
    return observation("optical", source_id, moment.timestamp_ns, OpticalTarget(*angles.tolist()), sigma)


def beacon(moment: Moment, *, source_id: str = "isl-1", sigma: Uncertainty = SIGMA) -> Observation:
    """A satellite's report of its own state."""
    target = StateTarget(tuple(moment.r_m.tolist()), tuple(moment.v_m_s.tolist()))
    return observation("isl", source_id, moment.timestamp_ns, target, sigma)
