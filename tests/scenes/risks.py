"""Observations of many objects by several sensors, and updates of their conjunctions, as a set and in any order of arrival.

The expected statements are computed from the set, without windows, watermarks or order.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeAlias
from uuid import UUID, uuid5

import msgspec

from orchestrator_adapter import Factory, OperatorGraph, merge
from orchestrator_adapter.testing import CollectSink, ListSource, Pause, Step
from sda_ops.alerts.risk.assessor import AssessorLimits
from sda_ops.alerts.risk.evidence import EvidenceLimits
from sda_ops.event_time.watermark import Watermark, least_watermark
from sda_ops.records.conjunction import ConjunctionEstimate, ConjunctionUpdate
from sda_ops.records.correlation import Correlation
from sda_ops.records.risk import MAX_OBSERVATION_IDS, ConjunctionRisk, ObjectEvidence

S = 1_000_000_000
START_NS = 1_767_268_800 * S  # 2026-01-01T12:00:00Z
EPOCH_NS = START_NS - 6 * 3_600 * S
NEAR_M = 1_000.0

_IDS = UUID("6f1c1a52-6f0b-5c39-9f43-000000000000")
_TICK_NS = S // 2

SENSORS = {
    **{f"radar-{n}": ("radar", S // 2) for n in range(3)},
    **{f"optical-{n}": ("optical", 30 * S) for n in range(2)},
    **{f"isl-{n}": ("isl", 10 * S) for n in range(2)},
}
"""Kind, and how late an observation of it arrives at most."""

LIMITS = AssessorLimits(evidence=EvidenceLimits(gap_ns=10 * S + 1, longest_ns=40 * S, allowed_lateness_ns=5 * S))
"""A gap of one nanosecond more than a multiple of the times' step: observations at the end of a window are frequent."""


def near(estimate: ConjunctionEstimate) -> bool:
    """The threshold of these tests."""
    return estimate.miss_m <= NEAR_M


def observed(
    number: int,
    seconds: float,
    *,
    sensor: str = "radar-0",
    name: str = "",
    epoch_ns: int = EPOCH_NS,
    squared: float = 2.0,
    components: int = 3,
    delay_s: float = 0.0,
) -> Correlation:
    """An observation of an object, so many seconds after the start."""
    time_ns = START_NS + round(seconds * S)
    return Correlation(
        uuid5(_IDS, f"{number} {time_ns} {sensor} {name}"),
        sensor,
        SENSORS[sensor][0],  # type: ignore[arg-type] # the kinds of the table above
        time_ns,
        time_ns + round(delay_s * S),
        time_ns + round(delay_s * S),
        "correlated",
        catalog_number=number,
        reference_orbit_id=f"{number}@{epoch_ns}",
        mahalanobis_squared=squared,
        components=components,
    )


def screened(
    pair: tuple[int, int],
    revision: int = 1,
    *,
    at_s: float = 0.0,
    tca_s: float = 7_200.0,
    miss_m: float = 500.0,
    status: str = "active",
    epochs_ns: tuple[int, int] = (EPOCH_NS, EPOCH_NS),
    name: str = "",
) -> ConjunctionUpdate:
    """An update of the conjunction of a pair."""
    first, second = pair
    return ConjunctionUpdate(
        catalog_number_first=first,
        catalog_number_second=second,
        tca_timestamp=START_NS + round(tca_s * S),
        miss_m=miss_m,
        miss_radial_m=miss_m,
        miss_in_track_m=0.0,
        miss_cross_track_m=0.0,
        relative_speed_m_s=12_000.0,
        max_probability=1e-5,
        dilution_m=miss_m / 2**0.5,
        epoch_first_timestamp=epochs_ns[0],
        epoch_second_timestamp=epochs_ns[1],
        age_first_s=0.0,
        age_second_s=0.0,
        radius_first_m=5.0,
        radius_second_m=5.0,
        orbit_class_first="LEO",
        orbit_class_second="LEO",
        conjunction_id=uuid5(_IDS, f"{first} {second} {name}"),
        revision=revision,
        sequence=0,
        status=status,  # type: ignore[arg-type] # a status
        screened_timestamp=START_NS + round(at_s * S),
    )


Effective: TypeAlias = tuple[Any, ...]


def effective(risks: Iterable[ConjunctionRisk]) -> dict[UUID, Effective]:
    """The content of the last statement about each conjunction that is not retracted, without causes and processing times."""
    last = {risk.conjunction_id: risk for risk in risks}
    return {
        key: (risk.estimate, risk.status, risk.evidence) for key, risk in last.items() if risk.status != "retracted"
    }


@dataclass(frozen=True, slots=True)
class Scene:
    """A set of events: what was observed, and each conjunction's updates in the order of their revisions."""

    observations: tuple[Correlation, ...]
    updates: tuple[ConjunctionUpdate, ...]
    seconds: float

    @classmethod
    def of(cls, events: int, seed: int) -> Scene:
        """About ``events`` events of one object for each fifty of them: at least 200 are updates.

        Some conjunctions come with several revisions, from newer element sets, some are withdrawn, a few return after that, some are
        over before the end, and some are beyond the threshold for a time or always.
        """
        rng = random.Random(seed)
        seconds = 140.0 if events <= 1_000 else 600.0
        numbers = [40_000 + n for n in range(max(60, min(400, events // 10)))]
        updates: list[ConjunctionUpdate] = []
        pairs = 0
        while len(updates) < max(events // 20, 200):
            pairs += 1
            updates += _of_one_pair(
                rng, (rng.randrange(len(numbers)), rng.randrange(len(numbers))), numbers, seconds, pairs
            )
        passes = [(number, _grid(rng.uniform(0, seconds))) for number in numbers for _ in range(3)]
        observations: dict[UUID, Correlation] = {}
        while len(observations) + len(updates) < events:
            number, middle = rng.choice(passes)
            at_s = min(max(_grid(rng.gauss(middle, 8.0)), 0.0), seconds)
            correlation = observed(
                number,
                at_s,
                sensor=rng.choice(list(SENSORS)),
                name=str(rng.randrange(1_000)),
                epoch_ns=EPOCH_NS + (3_600 * S if rng.random() < at_s / seconds else 0),
                squared=rng.expovariate(1 / 3),
            )
            observations[correlation.observation_id] = correlation
        return cls(tuple(observations.values()), tuple(updates), seconds)

    def expected(self, limits: AssessorLimits = LIMITS) -> dict[UUID, Effective]:
        """The effective statements, by their definition."""
        del limits
        by_number: defaultdict[int, list[Correlation]] = defaultdict(list)
        for correlation in self.observations:
            assert correlation.catalog_number is not None
            by_number[correlation.catalog_number].append(correlation)
        state: dict[UUID, Effective] = {}
        concerned: set[UUID] = set()
        for update in self.updates:
            key = update.conjunction_id
            if update.status == "active" and (near(update) or key in concerned):
                concerned.add(key)
                state[key] = (update, "final", _evidence(update, by_number))
            elif update.status == "withdrawn":
                state.pop(key, None)
        return state


def _grid(seconds: float) -> float:
    return round(2 * seconds) / 2


def _of_one_pair(
    rng: random.Random, at: tuple[int, int], numbers: Sequence[int], seconds: float, name: int
) -> list[ConjunctionUpdate]:
    if at[0] == at[1]:
        return []
    first, second = sorted((numbers[at[0]], numbers[at[1]]))
    over = rng.random() < 0.2
    tca_s = _grid(rng.uniform(0.5, 0.9) * seconds) if over else 7_200.0 + rng.uniform(0, 3_600)
    statuses = rng.choice(
        [["active"], ["active", "active"], ["active", "withdrawn"], ["active", "withdrawn", "active"], ["active"] * 4]
    )
    times = sorted(rng.uniform(0, min(tca_s - 45, 0.9 * seconds)) for _ in statuses)
    updates = []
    for revision, (status, at_s) in enumerate(zip(statuses, times, strict=True), 1):
        epoch_ns = EPOCH_NS + (3_600 * S if at_s > seconds / 2 else 0)
        updates.append(
            screened(
                (first, second),
                revision,
                at_s=at_s,
                tca_s=tca_s + (0.0 if over else rng.gauss(0, 1.0)),
                miss_m=rng.choice([200.0, 700.0, 900.0, 3_000.0]),
                status=status,
                epochs_ns=(epoch_ns, EPOCH_NS),
                name=str(name),
            )
        )
    if over and rng.random() < 0.5:
        last = updates[-1]
        if last.status == "active":
            updates.append(
                msgspec.structs.replace(
                    last, revision=last.revision + 1, status="passed", screened_timestamp=last.tca_timestamp + S
                )
            )
    return updates


def _evidence(
    update: ConjunctionUpdate, by_number: dict[int, list[Correlation]]
) -> tuple[ObjectEvidence, ObjectEvidence]:
    first, second = (
        _evidence_of(
            number,
            epoch_ns,
            [
                each
                for each in by_number.get(number, ())
                if each.sensor_timestamp < update.tca_timestamp
                and each.reference_orbit_id is not None
                and int(each.reference_orbit_id.partition("@")[2]) >= epoch_ns
            ],
        )
        for number, epoch_ns in (
            (update.catalog_number_first, update.epoch_first_timestamp),
            (update.catalog_number_second, update.epoch_second_timestamp),
        )
    )
    return first, second


def _evidence_of(number: int, epoch_ns: int, seen: list[Correlation]) -> ObjectEvidence:
    seen.sort(key=lambda each: (each.sensor_timestamp, each.observation_id))
    if not seen:
        return ObjectEvidence(catalog_number=number, epoch_timestamp=epoch_ns)
    squared = sum(round((each.mahalanobis_squared or 0.0) * 2**32) for each in seen)
    return ObjectEvidence(
        catalog_number=number,
        epoch_timestamp=epoch_ns,
        observations=len(seen),
        observation_ids=tuple(each.observation_id for each in seen[-MAX_OBSERVATION_IDS:]),
        sensors=tuple(sorted({each.source_id for each in seen})),
        first_observation_timestamp=seen[0].sensor_timestamp,
        last_observation_timestamp=seen[-1].sensor_timestamp,
        mean_square_residual=squared / 2**32 / sum(each.components for each in seen),
    )


# Orders of arrival.


@dataclass(frozen=True, slots=True)
class ArrivalOrder:
    """One order of arrival: for each source its items with the time at which they arrive, seconds after the start."""

    of_sensor: dict[str, list[tuple[float, Correlation]]]
    updates: list[tuple[float, ConjunctionUpdate]]
    seconds: float

    @classmethod
    def of(cls, scene: Scene, seed: int, *, beyond: float = 0.0) -> ArrivalOrder:
        """Every observation within its sensor's lateness, and a share ``beyond`` up to 60 s later than that; updates within 30 s."""
        rng = random.Random(seed)
        of_sensor: dict[str, list[tuple[float, Correlation]]] = {name: [] for name in SENSORS}
        for each in scene.observations:
            lateness_s = SENSORS[each.source_id][1] / S
            delay_s = rng.choice([0.0, rng.uniform(0, lateness_s), lateness_s])
            if rng.random() < beyond:
                delay_s = lateness_s + rng.uniform(0, 60)
            of_sensor[each.source_id].append(((each.sensor_timestamp - START_NS) / S + delay_s, each))
        for each_sensor in of_sensor.values():
            rng.shuffle(each_sensor)  # also those that arrive in one step
        last_s: dict[UUID, float] = {}
        updates = []
        for update in scene.updates:
            at_s = (update.screened_timestamp - START_NS) / S + rng.uniform(0, 30)
            at_s = last_s[update.conjunction_id] = max(at_s, last_s.get(update.conjunction_id, 0.0))
            updates.append((at_s, update))
        return cls(of_sensor, updates, scene.seconds + 95)

    def between(self, begin_s: float, end_s: float) -> ArrivalOrder:
        """Those that arrive in ``[begin_s, end_s)``."""
        return replace(
            self,
            of_sensor={
                name: [each for each in items if begin_s <= each[0] < end_s] for name, items in self.of_sensor.items()
            },
            updates=[each for each in self.updates if begin_s <= each[0] < end_s],
            seconds=min(self.seconds, end_s),
        )

    def sources(self) -> dict[str, ListSource]:
        """A source for each sensor, with marks: at each step it promises what its lateness allows."""
        return {
            name: ListSource(*_steps(items, self.seconds, Watermark, name, SENSORS[name][1]))
            for name, items in self.of_sensor.items()
        }

    def screenings(self) -> ListSource:
        """The source of the updates, without marks."""
        return ListSource(*_steps(self.updates, self.seconds))


def _steps(
    items: Sequence[tuple[float, Any]],
    seconds: float,
    mark: type[Watermark] | None = None,
    name: str = "",
    lateness_ns: int = 0,
) -> Iterable[Step]:
    """In steps of half a second; what arrives within a step comes at its end. The last mark does not pass what follows."""
    by_step: defaultdict[int, list[Any]] = defaultdict(list)
    for at_s, item in sorted(items, key=lambda each: each[0]):
        by_step[-(-round(at_s * S) // _TICK_NS)].append(item)
    for step in range(round(seconds * S) // _TICK_NS + 1):
        batch = by_step[step]
        if mark is not None:
            batch = [*batch, mark(START_NS + step * _TICK_NS - lateness_ns, name)]
        yield batch
        yield Pause(timedelta(microseconds=_TICK_NS // 1_000))


def risk_graph(order: ArrivalOrder, risk: Factory, sink: Factory | None = None) -> tuple[OperatorGraph, CollectSink]:
    """Sources, fan-ins, the operator and a sink, as ``sda-fusion`` has them."""
    graph, collected = OperatorGraph("risks"), CollectSink(controls=True)
    streams = graph.add_fan_in("merge", merge(combine={Watermark: least_watermark()}))
    for name, source in order.sources().items():
        graph.connect(graph.add_source(name, source), streams, 1_024)
    evidence = graph.add_fan_in("evidence", merge())
    graph.connect(streams, evidence, 1_024)
    graph.connect(graph.add_source("screen", order.screenings()), evidence, 1_024)
    assess = graph.add_operator("risk", risk, expanding=True, stateful=True)
    graph.connect(evidence, assess, 1_024)
    graph.connect(assess, graph.add_sink("alerts", sink or collected), 1_024)
    return graph, collected
