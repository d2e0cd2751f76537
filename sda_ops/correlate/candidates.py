"""Which objects an observation may belong to: candidates from the spatial index of the interval, each with its score.

Observations are processed in groups: all of a group are of one kind and lie in one interval. Nothing here decides which
candidate is the right one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, TypeAlias, assert_never

import numpy as np

from sda_ops.astro.frames import EARTH_ROTATION_RAD_S, sidereal_angle
from sda_ops.astro.sites import Site
from sda_ops.astro.time import NS_PER_S, Floats, Nanoseconds, julian_date
from sda_ops.astro.topocentric import SPEED_OF_LIGHT_M_S, line_of_sight_teme_from_j2000, teme_from_look
from sda_ops.correlate.measure import (
    OpticalRows,
    RadarRows,
    Scores,
    StateRows,
    score_optical,
    score_radar,
    score_states,
)
from sda_ops.correlate.sensors import DEFAULT_SIGMA, Sensor, Sensors
from sda_ops.propagation.interval import CatalogInterval, Pairs, Placed
from sda_ops.propagation.uncertainty import Objects
from sda_ops.records.observation import Observation, OpticalTarget, RadarTarget, StateTarget, Uncertainty

Kind: TypeAlias = Literal["state", "optical", "radar", "range"]
"""How observations are compared: ``radar`` has both angles, ``range`` has not."""


class Group(NamedTuple):
    """Observations of one kind in one interval.

    Attributes:
        interval: The catalogue at their times.
        kind: ``None`` if nothing can be predicted: unknown site, or no usable object.
        indices: Their positions in the batch.
    """

    interval: CatalogInterval
    kind: Kind | None
    indices: list[int]


class Matches(NamedTuple):
    """The candidates of a group.

    Attributes:
        pairs: Observations of the group and their candidates.
        scores: One for each pair.
        components: ``(observations,)``: how many numbers each observation has.
        kind: Of the group.
    """

    pairs: Pairs
    scores: Scores
    components: Objects
    kind: Kind


def groups(placed: Sequence[Placed], sensors: Sensors) -> Iterator[Group]:
    """Group a batch by interval and kind."""
    indices: dict[tuple[int, Kind | None], list[int]] = {}
    for index, (observation, interval) in enumerate(placed):
        indices.setdefault((id(interval), _kind(observation, interval, sensors)), []).append(index)
    for (_, kind), of_group in indices.items():
        yield Group(placed[of_group[0]].interval, kind, of_group)


def find_candidates(
    kind: Kind,
    observations: list[Observation],
    sensors: Sensors,
    interval: CatalogInterval,
    gate_sigmas: float,
    clock_s: float,
) -> Matches:
    """Score every object that may lie within ``gate_sigmas`` standard deviations of an observation.

    ``clock_s`` is one standard deviation of the sensors' clocks, seconds.
    """
    of_each = [sensors.get(observation.source_id, _UNKNOWN) for observation in observations]
    match kind:
        case "state":
            return _states(observations, of_each, interval, gate_sigmas, clock_s)
        case "optical":
            return _optical(observations, of_each, interval, gate_sigmas, clock_s)
        case "radar" | "range":
            return _radar(observations, of_each, interval, gate_sigmas, clock_s, kind)
        case _:
            assert_never(kind)


_UNKNOWN = Sensor(None)

_Find: TypeAlias = Callable[[Site, Objects], Pairs]
"""Finds candidates for these observations of one site."""


def _kind(observation: Observation, interval: CatalogInterval, sensors: Sensors) -> Kind | None:
    target = observation.target
    if not interval.usable.size:
        return None
    if type(target) is StateTarget:
        return "state"
    sensor = sensors.get(observation.source_id)
    if sensor is None or sensor.site is None:
        return None
    if type(target) is OpticalTarget:
        return "optical"
    assert type(target) is RadarTarget
    return "range" if target.azimuth_rad is None or target.elevation_rad is None else "radar"


def _states(
    observations: list[Observation],
    sensors: list[Sensor],
    interval: CatalogInterval,
    gate_sigmas: float,
    clock_s: float,
) -> Matches:
    targets = [_state_target(observation) for observation in observations]
    sigma = _sigmas(observations, sensors, ("sigma_position_m", "sigma_velocity_m_s"))
    rows = StateRows(
        _times(observations),
        np.array([target.r_teme_m for target in targets]),
        np.array([target.v_teme_m_s for target in targets]),
        sigma,
        clock_s,
    )
    pairs = interval.near(rows.r_teme_m, rows.timestamp_ns, gate_sigmas, sigma[:, 0], clock_s=clock_s)
    return Matches(pairs, score_states(rows, pairs, interval), np.full(len(targets), 6), "state")


def _optical(
    observations: list[Observation],
    sensors: list[Sensor],
    interval: CatalogInterval,
    gate_sigmas: float,
    clock_s: float,
) -> Matches:
    directions = np.array(
        [(target.right_ascension_rad, target.declination_rad) for target in map(_optical_target, observations)]
    )
    cos = np.cos(directions[:, 1])
    sight_j2000 = np.stack(
        (cos * np.cos(directions[:, 0]), cos * np.sin(directions[:, 0]), np.sin(directions[:, 1])), axis=1
    )
    timestamp_ns = _times(observations)
    sigma_rad = _sigmas(observations, sensors, ("sigma_angle_rad",))[:, 0]
    sites = [_site(sensor) for sensor in sensors]
    rows = OpticalRows(
        timestamp_ns,
        sidereal_angle(*julian_date(timestamp_ns)),
        np.array([site.r_fixed_m for site in sites]),
        sight_j2000,
        sigma_rad,
        clock_s,
    )
    sight_teme = line_of_sight_teme_from_j2000(directions[:, 0], directions[:, 1], interval.teme_to_j2000)
    pairs = _by_site(
        sites,
        lambda site, where: interval.towards(
            site,
            sight_teme[where],
            timestamp_ns[where],
            gate_sigmas * sigma_rad[where],
            gate_sigmas,
            clock_s=clock_s,
        ),
    )
    return Matches(pairs, score_optical(rows, pairs, interval), np.full(len(sites), 2), "optical")


def _radar(
    observations: list[Observation],
    sensors: list[Sensor],
    interval: CatalogInterval,
    gate_sigmas: float,
    clock_s: float,
    kind: Literal["radar", "range"],
) -> Matches:
    measured = np.array(
        [
            (target.range_m, target.range_rate_m_s, target.azimuth_rad, target.elevation_rad)
            for target in map(_radar_target, observations)
        ],
        dtype=np.float64,  # None becomes NaN
    )
    if kind == "range":
        measured[:, 2:] = np.nan  # a single angle is not used
    timestamp_ns = _times(observations)
    sigma = _sigmas(observations, sensors, ("sigma_range_m", "sigma_range_rate_m_s", "sigma_angle_rad"))
    sites = [_site(sensor) for sensor in sensors]
    rows = RadarRows(
        timestamp_ns,
        sidereal_angle(*julian_date(timestamp_ns)),
        np.array([site.r_fixed_m for site in sites]),
        np.array([site.horizon for site in sites]),
        measured,
        sigma,
        clock_s,
    )
    range_m = measured[:, 0]
    if kind == "radar":
        delay_s = range_m / SPEED_OF_LIGHT_M_S  # the measured position is that of the bounce
        bounce_rad = rows.sidereal_rad - EARTH_ROTATION_RAD_S * delay_s
        r_teme_m = teme_from_look(rows.r_fixed_m, rows.horizon, measured[:, 2], measured[:, 3], range_m, bounce_rad)
        bounce_ns = timestamp_ns - np.rint(delay_s * NS_PER_S).astype(np.int64)
        sigma_m = np.hypot(sigma[:, 0], range_m * sigma[:, 2])
        pairs = interval.near(r_teme_m, bounce_ns, gate_sigmas, sigma_m, clock_s=clock_s)
    else:
        pairs = _by_site(
            sites,
            lambda site, where: interval.at_range(
                site,
                range_m[where],
                timestamp_ns[where],
                gate_sigmas * sigma[where, 0],
                gate_sigmas,
                clock_s=clock_s,
            ),
        )
    return Matches(pairs, score_radar(rows, pairs, interval), np.sum(~np.isnan(measured), axis=1), kind)


def _by_site(sites: list[Site], find: _Find) -> Pairs:
    """The candidates of all observations, searched site by site."""
    of_site: dict[Site, list[int]] = {}
    for index, site in enumerate(sites):
        of_site.setdefault(site, []).append(index)
    rows, objects = [], []
    for site, where in of_site.items():
        numbers = np.array(where)
        pairs = find(site, numbers)
        rows.append(numbers[pairs.row])
        objects.append(pairs.object)
    row = np.concatenate(rows)
    order = np.argsort(row, kind="stable")
    return Pairs(row[order], np.concatenate(objects)[order])


def _sigmas(observations: list[Observation], sensors: list[Sensor], names: tuple[str, ...]) -> Floats:
    """One standard deviation ``(n, names)``: the observation's own, else the sensor's, else the default."""
    return np.array(
        [
            [_sigma(name, observation.uncertainty, sensor) for name in names]
            for observation, sensor in zip(observations, sensors, strict=True)
        ]
    )


def _sigma(name: str, stated: Uncertainty, sensor: Sensor) -> float:
    for source in (stated, sensor.sigma, DEFAULT_SIGMA):
        if (sigma := getattr(source, name)) is not None:
            return float(sigma)
    raise AssertionError(f"DEFAULT_SIGMA has no {name}")


def _times(observations: list[Observation]) -> Nanoseconds:
    return np.array([observation.sensor_timestamp for observation in observations], dtype=np.int64)


def _state_target(observation: Observation) -> StateTarget:
    assert type(observation.target) is StateTarget
    return observation.target


def _optical_target(observation: Observation) -> OpticalTarget:
    assert type(observation.target) is OpticalTarget
    return observation.target


def _radar_target(observation: Observation) -> RadarTarget:
    assert type(observation.target) is RadarTarget
    return observation.target


def _site(sensor: Sensor) -> Site:
    assert sensor.site is not None
    return sensor.site
