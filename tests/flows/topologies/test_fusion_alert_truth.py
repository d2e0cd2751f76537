"""Staged conjunctions among the real catalogue are alerted once each, near misses never: every part is a real process."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pyarrow.dataset as ds
import pytest

from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog import ElementSet, newest_of_each, read_catalog, synthetic_catalog
from sda_ops.catalog.reader import without_usable_rows
from tests.helpers.alerting import AlertingPlace, of_time
from tests.scenes.alert_truth import ALL, OBSERVED, TruthRun, figures, screened, truth_run, written_by_alerts
from tests.scenes.truth import REAL_CATALOG

THRESHOLD_M = 1_000.0
LEAST_PROBABILITY = 1e-7  # of the severity medium, the default
TABLES = (
    "observations/observations",
    "correlations/correlations",
    "correlations/cross_sensor_updates",
    "conjunctions/conjunctions",
)


def real_catalog() -> list[ElementSet]:
    if not REAL_CATALOG.is_file():
        pytest.skip(f"real data absent: no {REAL_CATALOG} (set SDA_DATA_DIR)")
    catalog = read_catalog(REAL_CATALOG)
    assert without_usable_rows(catalog) is None
    return of_time(newest_of_each(catalog).element_sets, time.time_ns())


@pytest.mark.long
@pytest.mark.parametrize("name", ["generated", "real"])
def test_every_staged_conjunction_is_alerted_once_and_no_near_miss(name: str, tmp_path: Path) -> None:
    """The other alerts are those of ``python -m flows screen``, the subscribers have each once, and the ledger is exact."""
    element_sets = real_catalog() if name == "real" else list(synthetic_catalog(objects=1_000, epoch_ns=time.time_ns()))
    place = AlertingPlace.free(tmp_path, ALL, OBSERVED)
    run = truth_run(place, element_sets, conjunctions=12, near_misses=12, observe_s=5.0)
    print("\n".join(figures(run)))
    assert_staged_once(run)
    assert_subscribers_have_each_once(run)
    assert_as_screened(run, place)
    assert_ledger(run, place)


def assert_staged_once(run: TruthRun) -> None:
    assert Counter(passage.kind == "conjunction" for passage in run.passages) == {True: 12, False: 12}
    for passage in run.passages:
        for subscriber in (ALL, OBSERVED):
            acknowledged = run.of(passage, subscriber)
            if passage.kind != "conjunction":
                assert not acknowledged, passage
                continue
            assert len({each.conjunction_id for each in acknowledged}) == 1, passage
            estimate = acknowledged[0].risk.estimate
            assert estimate.miss_m == pytest.approx(passage.miss_m, abs=1.0)
            assert abs(estimate.tca_timestamp - passage.tca_timestamp) < NS_PER_S // 100
        if passage.kind == "conjunction":
            first = run.of(passage, OBSERVED)[0]
            assert sum(evidence.observations for evidence in first.risk.evidence) >= 1


def assert_subscribers_have_each_once(run: TruthRun) -> None:
    for subscriber in (ALL, OBSERVED):
        received = Counter((each.conjunction_id, each.revision) for each in run.received[subscriber])
        acknowledged = [each for each in run.alerted[subscriber] if each.state == "acknowledged"]
        assert received == Counter((each.conjunction_id, each.revision) for each in acknowledged)
        assert set(received.values()) == {1}


def assert_as_screened(run: TruthRun, place: AlertingPlace) -> None:
    """Both directions, of conjunctions that lie ahead for the whole run and surely within the horizon."""
    listed = [
        each
        for each in screened(place.fusion.catalog, run.from_ns, THRESHOLD_M / 1e3)
        if each.max_probability >= LEAST_PROBABILITY
    ]
    alerted = {each.conjunction_id: each.risk.estimate for each in run.alerted[ALL] if each.risk.status != "retracted"}
    times: dict[tuple[int, int], list[int]] = {}
    for estimate in alerted.values():
        pair = (estimate.catalog_number_first, estimate.catalog_number_second)
        times.setdefault(pair, []).append(estimate.tca_timestamp)
    sure = range(run.stopped_ns + 60 * NS_PER_S, run.from_ns + 23 * 3_600 * NS_PER_S)
    expected = [each for each in listed if each.tca_ns in sure and THRESHOLD_M - each.miss_m > 1.0]
    assert len(expected) >= 12
    for each in expected:
        assert sum(abs(tca_ns - each.tca_ns) < NS_PER_S for tca_ns in times.get(each.pair, [])) == 1, each
    listed_times = {(each.pair, round(each.tca_ns / NS_PER_S)) for each in listed}
    for pair, tcas_ns in times.items():
        for tca_ns in tcas_ns:
            if tca_ns in sure:
                near = {(pair, round(tca_ns / NS_PER_S) + shift) for shift in (-1, 0, 1)}
                assert near & listed_times, pair


def assert_ledger(run: TruthRun, place: AlertingPlace) -> None:
    """What was written is what the audit has, and what the outbox has recorded or recognised."""
    assert (run.exit_code, run.report["ledger_holds"], run.report["restarts"]) == (0, True, {})
    rows = sum(
        ds.dataset(place.fusion.folder / "audit" / table, partitioning="hive").count_rows()
        for table in TABLES
        if (place.fusion.folder / "audit" / table).exists()
    )
    ledger = run.report["ledger"]
    assert ledger["written"] == rows + written_by_alerts(run)
    assert ledger["dead_lettered"] == ledger["shed"] == ledger["in_flight"] == 0
    assert run.report["counters"]["alerts"]["recorded"] == len(run.alerted[ALL])
