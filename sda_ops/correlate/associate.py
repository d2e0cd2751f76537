"""An observation finds its object: candidates from the index, the gate, the nearest, and whether that is for sure.

A candidate passes the gate if its squared Mahalanobis distance is one that the right object exceeds once in
`AssociationRules.gate_miss` cases. Of those that pass, all equally likely before, the one that makes the measurement
likeliest is the object if its share of the likelihood is at least `min_probability`; if not, the observation is ambiguous
and says which objects it could be. If none passes, it is an uncorrelated track.

Pure: no clock but the one time that is passed in. Nothing here knows where intervals come from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from scipy.special import chdtri

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
from sda_ops.correlate.uncertainty import Objects
from sda_ops.propagation.interval import Interval, Pairs
from sda_ops.records.correlation import Association, Correlation, Residuals
from sda_ops.records.observation import Observation, OpticalTarget, RadarTarget, StateTarget, Uncertainty

_MOST_COMPONENTS = 6
_EVEN = 0.5  # below it two candidates could each be the likeliest


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationRules:
    """When an observation is an object's.

    Attributes:
        gate_miss: How often the right object may fall outside the gate: 1e-4 is 3.9 to 5.3 standard deviations, for one
            to six components. Where velocities are measured it is 4 to 13 times as often if element sets err exactly as
            stated: their velocities then follow from their positions, and the gate takes them for independent, so as to
            forgive element sets that err otherwise.
        min_probability: Of the likeliest candidate; below it the observation is ambiguous.
    """

    gate_miss: float = 1e-4
    min_probability: float = 0.99

    def __post_init__(self) -> None:
        problems = [
            f"AssociationRules: {name} must be {bound}, got {value!r}"
            for name, value, good, bound in (
                ("gate_miss", self.gate_miss, 0.0 < self.gate_miss < 1.0, "in (0, 1)"),
                ("min_probability", self.min_probability, _EVEN <= self.min_probability < 1.0, "in [0.5, 1)"),
            )
            if not good
        ]
        if problems:
            raise ValueError("; ".join(problems))


class Placed(NamedTuple):
    """An observation, and the catalogue at its time.

    Attributes:
        observation: As it came.
        interval: That contains its `sensor_timestamp`.
    """

    observation: Observation
    interval: Interval


class Associator:
    """Associates observations of known sensors by fixed rules."""

    def __init__(self, sensors: Sensors, rules: AssociationRules | None = None) -> None:
        rules = rules or AssociationRules()
        self._sensors = sensors
        self._min_probability = rules.min_probability
        # The squared distance that chi-squared with m degrees of freedom exceeds with probability gate_miss.
        self._gate = np.array([0.0, *(chdtri(m, rules.gate_miss) for m in range(1, _MOST_COMPONENTS + 1))])
        self._gate_sigmas = float(np.sqrt(self._gate[-1]))

    def correlate(self, placed: Sequence[Placed], *, now_ns: int) -> list[Correlation]:
        """One correlation for each observation, in order; ``now_ns`` is when it is found, UTC."""
        found: list[Correlation | None] = [None] * len(placed)
        for interval, kind, where in _groups(placed, self._sensors):
            observations = [placed[index].observation for index in where]
            if kind is None:
                for index, observation in zip(where, observations, strict=True):
                    found[index] = _correlation(observation, now_ns, "unpredicted", 0)
                continue
            sensors = [self._sensors.get(observation.source_id, _UNKNOWN) for observation in observations]
            match kind:
                case "state":
                    matched = self._states(observations, sensors, interval)
                case "optical":
                    matched = self._optical(observations, sensors, interval)
                case _:
                    matched = self._radar(observations, sensors, interval, with_angles=kind == "radar")
            for index, correlation in zip(where, self._decided(observations, interval, matched, now_ns), strict=True):
                found[index] = correlation
        return [correlation for correlation in found if correlation is not None]

    def _states(self, observations: list[Observation], sensors: list[Sensor], interval: Interval) -> _Matched:
        targets = [_state(observation) for observation in observations]
        sigma = _sigmas(observations, sensors, ("sigma_position_m", "sigma_velocity_m_s"))
        rows = StateRows(
            _times(observations),
            np.array([target.r_teme_m for target in targets]),
            np.array([target.v_teme_m_s for target in targets]),
            sigma,
        )
        pairs = interval.near(rows.r_teme_m, rows.timestamp_ns, self._gate_sigmas, sigma[:, 0])
        return _Matched(pairs, score_states(rows, pairs, interval), np.full(len(targets), 6), "state")

    def _optical(self, observations: list[Observation], sensors: list[Sensor], interval: Interval) -> _Matched:
        directions = np.array(
            [(target.right_ascension_rad, target.declination_rad) for target in map(_direction, observations)]
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
        )
        sight_teme = line_of_sight_teme_from_j2000(directions[:, 0], directions[:, 1], interval.teme_to_j2000)
        pairs = _of_sites(
            sites,
            lambda site, where: interval.towards(
                site, sight_teme[where], timestamp_ns[where], self._gate_sigmas * sigma_rad[where], self._gate_sigmas
            ),
        )
        return _Matched(pairs, score_optical(rows, pairs, interval), np.full(len(sites), 2), "optical")

    def _radar(
        self, observations: list[Observation], sensors: list[Sensor], interval: Interval, *, with_angles: bool
    ) -> _Matched:
        measured = np.array(
            [
                (target.range_m, target.range_rate_m_s, target.azimuth_rad, target.elevation_rad)
                for target in map(_echo, observations)
            ],
            dtype=np.float64,  # None becomes NaN
        )
        if not with_angles:
            measured[:, 2:] = np.nan  # one angle alone says too little
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
        )
        range_m = measured[:, 0]
        if with_angles:
            delay_s = range_m / SPEED_OF_LIGHT_M_S  # that is where it was at the bounce
            bounce_rad = rows.sidereal_rad - EARTH_ROTATION_RAD_S * delay_s
            r_teme_m = teme_from_look(rows.r_fixed_m, rows.horizon, measured[:, 2], measured[:, 3], range_m, bounce_rad)
            bounce_ns = timestamp_ns - np.rint(delay_s * NS_PER_S).astype(np.int64)
            across_m = np.hypot(sigma[:, 0], range_m * sigma[:, 2])
            pairs = interval.near(r_teme_m, bounce_ns, self._gate_sigmas, across_m)
        else:
            pairs = _of_sites(
                sites,
                lambda site, where: interval.at_range(
                    site, range_m[where], timestamp_ns[where], self._gate_sigmas * sigma[where, 0], self._gate_sigmas
                ),
            )
        return _Matched(pairs, score_radar(rows, pairs, interval), np.sum(~np.isnan(measured), axis=1), "radar")

    def _decided(
        self, observations: list[Observation], interval: Interval, matched: _Matched, now_ns: int
    ) -> Iterator[Correlation]:
        """One correlation for each observation, in order."""
        pairs, scores = matched.pairs, matched.scores
        passes = scores.mahalanobis_squared <= self._gate[matched.components[pairs.row]]
        row, candidate = pairs.row[passes], pairs.object[passes]
        log_likelihood, squared = scores.log_likelihood[passes], scores.mahalanobis_squared[passes]
        order = np.lexsort((candidate, -log_likelihood, row))
        row, candidate, log_likelihood = row[order], candidate[order], log_likelihood[order]
        squared, residuals = squared[order], scores.residuals[passes][order]
        first = np.searchsorted(row, np.arange(len(observations) + 1))
        best = np.zeros(len(observations))
        contested = first[1:] > first[:-1]
        best[contested] = log_likelihood[first[:-1][contested]]
        share = np.exp(log_likelihood - best[row])
        total = np.bincount(row, weights=share, minlength=len(observations))
        facts = interval.facts
        numbers = facts.catalog_number[candidate].tolist()
        epochs_ns = facts.epoch_ns[candidate].tolist()
        bounds = first.tolist()
        for index, observation in enumerate(observations):
            begin, end = bounds[index], bounds[index + 1]
            components = int(matched.components[index])
            if begin == end:
                yield _correlation(observation, now_ns, "uct", components)
                continue
            probability = float(1.0 / total[index])
            sure = probability >= self._min_probability
            yield Correlation(
                observation.observation_id,
                observation.source_id,
                observation.source_kind,
                observation.sensor_timestamp,
                observation.ingest_timestamp,
                now_ns,
                "correlated" if sure else "ambiguous",
                track_id=observation.track_id,
                catalog_number=numbers[begin] if sure else None,
                candidates=tuple(numbers[begin:end]),
                reference_orbit_id=f"{numbers[begin]}@{epochs_ns[begin]}",
                mahalanobis_squared=float(squared[begin]),
                components=components,
                probability=probability,
                residuals=_residuals(matched.kind, residuals[begin].tolist()),
            )


_Kind: TypeAlias = str
"""``state``, ``optical``, ``radar`` with both angles or ``range`` without."""

_Find: TypeAlias = Callable[[Site, Objects], Pairs]
"""Candidates for the rows that one site has observed."""

_UNKNOWN = Sensor(None)


class _Matched(NamedTuple):
    pairs: Pairs
    scores: Scores
    components: Objects
    kind: _Kind


def _groups(placed: Sequence[Placed], sensors: Sensors) -> Iterator[tuple[Interval, _Kind | None, list[int]]]:
    """Observations that are compared with the same interval in the same way; no way at all where nothing can be predicted."""
    groups: dict[tuple[int, _Kind | None], list[int]] = {}
    for index, (observation, interval) in enumerate(placed):
        groups.setdefault((id(interval), _kind(observation, interval, sensors)), []).append(index)
    for (_, kind), where in groups.items():
        yield placed[where[0]].interval, kind, where


def _kind(observation: Observation, interval: Interval, sensors: Sensors) -> _Kind | None:
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


def _of_sites(sites: list[Site], find: _Find) -> Pairs:
    """Candidates, asked of one site after the other."""
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


def _correlation(observation: Observation, now_ns: int, association: Association, components: int) -> Correlation:
    """Of an observation that fits no object."""
    return Correlation(
        observation.observation_id,
        observation.source_id,
        observation.source_kind,
        observation.sensor_timestamp,
        observation.ingest_timestamp,
        now_ns,
        association,
        track_id=observation.track_id,
        components=components,
    )


def _residuals(kind: _Kind, values: list[float]) -> Residuals:
    if kind == "state":
        radial_m, in_track_m, cross_track_m, *velocity = values
        speed_m_s = sum(component**2 for component in velocity) ** 0.5
        return Residuals(radial_m=radial_m, in_track_m=in_track_m, cross_track_m=cross_track_m, speed_m_s=speed_m_s)
    if kind == "optical":
        return Residuals(right_ascension_rad=values[0], declination_rad=values[1])
    return Residuals(*(None if value != value else value for value in values))  # noqa: PLR0124 - NaN: not measured


def _state(observation: Observation) -> StateTarget:
    assert type(observation.target) is StateTarget
    return observation.target


def _direction(observation: Observation) -> OpticalTarget:
    assert type(observation.target) is OpticalTarget
    return observation.target


def _echo(observation: Observation) -> RadarTarget:
    assert type(observation.target) is RadarTarget
    return observation.target


def _site(sensor: Sensor) -> Site:
    assert sensor.site is not None
    return sensor.site
