"""``sda-fusion`` with a catalogue in which conjunctions and near misses appear while it runs, and two subscribers.

Every part is a process of its own. The pipeline has its own settings, except for places, ports and the interval at which it reads
its catalogue. The simulated sensors fly the staged objects from the start. The pipeline knows them only when its catalogue is
replaced, after the first screening: then it screens them, and their observations, until then uncorrelated, are associated.

The subscriber ``all`` gets every alert; ``observed`` gets a conjunction only when one of its objects was observed.
"""

from __future__ import annotations

import csv
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog.elements import ElementSet
from sda_ops.records.risk import RiskCause
from sda_ops.simulate.catalog_file import omm_json
from sda_ops.simulate.staged import StagedPassage
from tests.helpers.alerting import Alerted, AlertingPlace, Received, ended, stop
from tests.helpers.fusion import go
from tests.helpers.support import flows_process, wait_until

ALL, OBSERVED = "all", "observed"
SCREENINGS = 'operator_figure{name="screenings",operator="screen"}'


class Screened(NamedTuple):
    """A conjunction in the list of ``python -m flows screen``."""

    pair: tuple[int, int]
    tca_ns: int
    miss_m: float
    max_probability: float


@dataclass(frozen=True, slots=True)
class TruthRun:
    """What happened.

    Attributes:
        passages: The staged passages.
        alerted: The revisions in the outbox, by subscriber.
        received: What each subscriber has acted on.
        report: The report of the run.
        exit_code: Of the pipeline.
        from_ns: When the staged objects were in the catalogue, UTC.
        stopped_ns: When the pipeline was asked to stop, UTC.
    """

    passages: list[StagedPassage]
    alerted: dict[str, list[Alerted]]
    received: dict[str, list[Received]]
    report: dict[str, Any]
    exit_code: int
    from_ns: int
    stopped_ns: int

    def of(self, passage: StagedPassage, subscriber: str) -> list[Alerted]:
        """The acknowledged alerts about a staged passage."""
        return [each for each in self.alerted[subscriber] if each.is_of(passage) and each.state == "acknowledged"]

    def latencies_s(self, *causes: RiskCause) -> list[float]:
        """Of each first alert at ``observed`` with one of these causes: from the arrival of its evidence to the acknowledgement."""
        seen: set[str] = set()
        latencies: list[float] = []
        for each in self.alerted[OBSERVED]:
            if each.state == "acknowledged" and each.conjunction_id not in seen:
                seen.add(each.conjunction_id)
                if each.risk.cause in causes:
                    latencies.append(each.latency_s)
        return latencies

    def after_observation_s(self) -> list[float]:
        """Of each staged conjunction: from the first observation of the made-up object as a known object to the acknowledgement."""
        found: list[float] = []
        for passage in self.passages:
            for each in self.of(passage, OBSERVED)[:1]:
                (evidence,) = (one for one in each.risk.evidence if one.catalog_number == passage.staged)
                if evidence.first_observation_timestamp is not None:
                    found.append((each.changed_ns - evidence.first_observation_timestamp) / NS_PER_S)
        return found


def truth_run(
    place: AlertingPlace,
    element_sets: Sequence[ElementSet],
    *,
    conjunctions: int,
    near_misses: int,
    observe_s: float,
    settings: dict[str, Any] | None = None,
    say: Callable[[str], object] = print,
) -> TruthRun:
    """Run until every staged conjunction is acknowledged by both subscribers, and for ``observe_s`` more; then stop."""
    place.fusion.catalog.write_bytes(omm_json(element_sets))
    staged_catalog = place.fusion.folder / "staged-catalog.json"
    given = place.settings(rules={OBSERVED: {"min_observations": 1}}, **(settings or {}))
    sensors = ["--rate-radar", "100", "--rate-optical", "20", "--rate-isl", "100"]
    beacons = ["--isl-satellites", str(2 * (conjunctions + near_misses) + 16)]
    staging = ["--stage", f"{conjunctions}:{near_misses}", "--stage-into", str(staged_catalog)]
    with place.subscriber(ALL), place.subscriber(OBSERVED), place.pipeline(given) as pipeline:
        simulator = place.fusion.simulator(*sensors, *beacons, *staging, "--stage-truth", str(place.staged))
        with ended(simulator):
            go(simulator)
            began = time.monotonic()
            wait_until(lambda: _of(place, pipeline).get(SCREENINGS, 0) >= 1, "the first screening", limit_s=900.0)
            say(f"first screening {time.monotonic() - began:.0f} s after the first observation")
            wait_until(staged_catalog.exists, "the staged objects")
            staged_catalog.replace(place.fusion.catalog)
            from_ns = time.time_ns()
            expected = [each for each in place.passages() if each.kind == "conjunction"]

            def all_acknowledged() -> bool:
                assert pipeline.poll() is None, "the pipeline has ended"
                return all(
                    any(each.is_of(passage) and each.state == "acknowledged" for each in alerted)
                    for alerted in (place.alerted(ALL), place.alerted(OBSERVED))
                    for passage in expected
                )

            wait_until(all_acknowledged, "the alerts about the staged conjunctions", limit_s=300.0)
            say(f"all staged conjunctions are acknowledged after {(time.time_ns() - from_ns) / NS_PER_S:.1f} s")
            time.sleep(observe_s)
            wait_until(lambda: not _pending(place), "no pending delivery", limit_s=300.0)
        stopped_ns = time.time_ns()
        exit_code = stop(pipeline)
    return TruthRun(
        place.passages(),
        {name: place.alerted(name) for name in (ALL, OBSERVED)},
        {name: place.received(name) for name in (ALL, OBSERVED)},
        place.report(),
        exit_code,
        from_ns,
        stopped_ns,
    )


def screened(catalog: Path, at_ns: int, miss_km: float) -> list[Screened]:
    """The list of ``python -m flows screen``, for 27 hours from an hour before this time on."""
    out = catalog.with_name("screened.csv")
    start = datetime.fromtimestamp(at_ns // NS_PER_S - 3_600, UTC)
    arguments = ["screen", str(catalog), "--start", f"{start:%Y-%m-%dT%H:%M:%SZ}", "--horizon", "27h"]
    process = flows_process(
        [*arguments, "--miss", f"{miss_km:g}km", "--out", str(out), "--quiet"], {}, stdout=subprocess.DEVNULL
    )
    assert process.wait(900) == 0
    with out.open(newline="", encoding="utf-8") as file:
        return [
            Screened(
                _pair(row["NORAD_CAT_ID_1"], row["NORAD_CAT_ID_2"]),
                _utc_ns(row["TCA"]),
                float(row["MISS_M"]),
                float(row["MAX_PROB"]),
            )
            for row in csv.DictReader(file)
        ]


def written_by_alerts(run: TruthRun) -> int:
    """What the alerts sink has acknowledged, by its own figures: each risk is recorded, a repeat, stale or below."""
    counters = run.report["counters"]["alerts"]
    return sum(counters[name] for name in ("recorded", "repeats", "stale", "below"))


def _pair(first: str, second: str) -> tuple[int, int]:
    small, great = sorted((int(first), int(second)))
    return small, great


def _utc_ns(text: str) -> int:
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp()) * NS_PER_S + moment.microsecond * 1_000


def _of(place: AlertingPlace, pipeline: subprocess.Popen[bytes]) -> dict[str, float]:
    assert pipeline.poll() is None, "the pipeline has ended"
    return place.metrics()


def _pending(place: AlertingPlace) -> bool:
    return any(each.state == "pending" for name in (ALL, OBSERVED) for each in place.alerted(name))


def figures(run: TruthRun) -> list[str]:
    """Latencies, for people."""
    every = [each.latency_s for each in run.alerted[ALL] if each.state == "acknowledged"]
    lines: list[str] = []
    for name, values in (
        ("staged: first observation to acknowledged alert", run.after_observation_s()),
        ("first alert, its cause an observation", run.latencies_s("observed")),
        ("first alert, its cause a screening", run.latencies_s("screened")),
        ("every acknowledged alert, from its evidence", every),
    ):
        if values:
            p50, p99 = np.quantile(values, [0.5, 0.99])
            lines.append(f"{name:48} n {len(values):5}  p50 {p50:6.2f} s  p99 {p99:6.2f} s  max {max(values):6.2f} s")
    return lines
