"""Association: the decision which catalogued object an observation belongs to.

A candidate passes the gate if its squared Mahalanobis distance is below the bound that the right object exceeds with
probability `AssociationRules.gate_miss`. All candidates that pass are equally likely a priori. The one with the greatest
likelihood is chosen if its share of the total likelihood is at least `min_probability`; otherwise the observation is
ambiguous and lists them all. If no candidate passes, the observation is an uncorrelated track (UCT).

Pure: the only time is the one that is passed in. Nothing here knows how intervals are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import assert_never

import numpy as np
from scipy.special import chdtri

from orchestrator_adapter import check_fields
from sda_ops.correlate.candidates import Kind, Matches, find_candidates, groups
from sda_ops.correlate.sensors import Sensors
from sda_ops.propagation.interval import CatalogInterval, Placed
from sda_ops.records.correlation import Association, Correlation, Residuals
from sda_ops.records.observation import Observation, SourceKind

_MAX_COMPONENTS = 6
_SOURCE_KINDS: Mapping[Kind, SourceKind] = {"radar": "radar", "range": "radar", "optical": "optical", "state": "isl"}
_EVEN = 0.5
"""Below this share two candidates could both be the most likely one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssociationRules:
    """The bounds of an association.

    Attributes:
        gate_miss: The probability that the right object falls outside the gate: 1e-4 is 3.9 to 5.3 standard deviations,
            for one to six components. With measured velocities it is 4 to 13 times as high, if element sets err exactly as
            assumed: their velocity errors then follow from their position errors, but the gate treats them as independent,
            because real element sets may err differently.
        min_probability: The required probability of the most likely candidate; below it the observation is ambiguous.
        clock_error_s: The largest error of the sensors' clocks, by kind of sensor, seconds; a kind that is absent has none. It
            widens the gate along the object's motion.
    """

    gate_miss: float = 1e-4
    min_probability: float = 0.99
    clock_error_s: Mapping[SourceKind, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(
            "AssociationRules",
            ("gate_miss", self.gate_miss, 0.0 < self.gate_miss < 1.0, "in (0, 1)"),
            ("min_probability", self.min_probability, _EVEN <= self.min_probability < 1.0, "in [0.5, 1)"),
            ("clock_error_s", self.clock_error_s, all(each >= 0.0 for each in self.clock_error_s.values()), ">= 0"),
        )


class Associator:
    """Associates observations of known sensors by fixed rules."""

    def __init__(self, sensors: Sensors, rules: AssociationRules | None = None) -> None:
        rules = rules or AssociationRules()
        self._sensors = sensors
        self._min_probability = rules.min_probability
        # The squared distance that chi-squared with m degrees of freedom exceeds with probability gate_miss.
        self._gate = np.array([0.0, *(chdtri(m, rules.gate_miss) for m in range(1, _MAX_COMPONENTS + 1))])
        self._gate_sigmas = float(np.sqrt(self._gate[-1]))
        # One standard deviation, seconds, if all errors up to the largest are equally probable.
        self._clock_s = {kind: error_s / math.sqrt(3.0) for kind, error_s in rules.clock_error_s.items()}

    def knows_site_of(self, source_id: str) -> bool:
        """Whether the sensor has a position; without one its observations are unpredicted."""
        sensor = self._sensors.get(source_id)
        return sensor is not None and sensor.site is not None

    def correlate(self, placed: Sequence[Placed], *, now_ns: int) -> list[Correlation]:
        """One correlation for each observation, in order; ``now_ns`` is the UTC time of the correlation."""
        found: list[Correlation | None] = [None] * len(placed)
        for interval, kind, indices in groups(placed, self._sensors):
            observations = [placed[index].observation for index in indices]
            if kind is None:
                for index, observation in zip(indices, observations, strict=True):
                    found[index] = _without_object(observation, now_ns, "unpredicted", 0)
                continue
            clock_s = self._clock_s.get(_SOURCE_KINDS[kind], 0.0)
            matches = find_candidates(kind, observations, self._sensors, interval, self._gate_sigmas, clock_s)
            decided = self._decided(observations, interval, matches, now_ns)
            for index, correlation in zip(indices, decided, strict=True):
                found[index] = correlation
        return [correlation for correlation in found if correlation is not None]

    def _decided(
        self, observations: list[Observation], interval: CatalogInterval, matches: Matches, now_ns: int
    ) -> Iterator[Correlation]:
        """One correlation for each observation, in order."""
        pairs, scores = matches.pairs, matches.scores
        passes = scores.mahalanobis_squared <= self._gate[matches.components[pairs.row]]
        row, candidate = pairs.row[passes], pairs.object[passes]
        log_likelihood, squared = scores.log_likelihood[passes], scores.mahalanobis_squared[passes]
        order = np.lexsort((candidate, -log_likelihood, row))
        row, candidate, log_likelihood = row[order], candidate[order], log_likelihood[order]
        squared, residuals = squared[order], scores.residuals[passes][order]
        first = np.searchsorted(row, np.arange(len(observations) + 1))
        best = np.zeros(len(observations))
        has_candidates = first[1:] > first[:-1]
        best[has_candidates] = log_likelihood[first[:-1][has_candidates]]
        share = np.exp(log_likelihood - best[row])
        total = np.bincount(row, weights=share, minlength=len(observations))
        facts = interval.facts
        numbers = facts.catalog_number[candidate].tolist()
        epochs_ns = facts.epoch_ns[candidate].tolist()
        bounds = first.tolist()
        for index, observation in enumerate(observations):
            begin, end = bounds[index], bounds[index + 1]
            components = int(matches.components[index])
            if begin == end:
                yield _without_object(observation, now_ns, "uct", components)
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
                residuals=_residuals(matches.kind, residuals[begin].tolist()),
            )


def _without_object(observation: Observation, now_ns: int, association: Association, components: int) -> Correlation:
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


def _residuals(kind: Kind, values: list[float]) -> Residuals:
    match kind:
        case "state":
            radial_m, in_track_m, cross_track_m, *velocity = values
            speed_m_s = sum(component**2 for component in velocity) ** 0.5
            return Residuals(radial_m=radial_m, in_track_m=in_track_m, cross_track_m=cross_track_m, speed_m_s=speed_m_s)
        case "optical":
            return Residuals(right_ascension_rad=values[0], declination_rad=values[1])
        case "radar" | "range":
            return Residuals(*(None if value != value else value for value in values))  # noqa: PLR0124 - NaN: not measured
        case _:
            assert_never(kind)
