"""Helpers for tests of the audit: graphs that write one, records, and readers of the dataset."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import timedelta
from operator import attrgetter
from pathlib import Path
from typing import Any
from uuid import UUID

import duckdb
import pyarrow.dataset as ds
import pytest
from msgspec.structs import replace

from orchestrator_adapter.testing import chain
from sda_ops.records.conjunction import ConjunctionUpdate
from sda_ops.records.correlation import Contribution, Correlation, CrossSensorUpdate, Residuals
from sda_ops.records.observation import Observation
from sda_ops.sinks import parquet_store
from sda_ops.sinks.audit import Audit, audit_sink
from sda_ops.sinks.parquet_tables import TABLES, AuditRecord
from tests.helpers.running import NOON_NS, observations

AT_ONCE = timedelta(0)
SECOND_NS = 10**9
HOUR_NS = 3_600 * SECOND_NS


def audited(directory: Path, source: Any, *, capacity: int = 64, every: timedelta = AT_ONCE, **options: Any) -> Any:
    sink = audit_sink(Audit(directory=directory, commit_every=every, **options))
    return chain(source, sink, capacity=capacity)


def parts(directory: Path, table: str = "observations") -> list[Path]:
    return sorted(directory.glob(f"{table}/**/*.parquet"))


def kept_ids(directory: Path, table: str = "observations") -> list[UUID]:
    """The ids that a reader finds in the dataset; empty if there is no dataset yet."""
    if not (directory / table).exists():
        return []
    rows = ds.dataset(directory / table, format="parquet", partitioning="hive").to_table()
    return [UUID(text) for text in rows[rows.schema.names[0]].to_pylist()]


def queried(statement: str) -> list[Any]:
    with duckdb.connect() as connection:
        return connection.execute(statement).fetchall()


def drafts(directory: Path) -> list[str]:
    return [path.name for path in (directory / ".staging").glob("*.part")]


def ids_of(items: Sequence[Any]) -> list[UUID]:
    return [_ID_OF.get(type(item), attrgetter("observation_id"))(item) for item in items]


_ID_OF: dict[Any, Any] = {CrossSensorUpdate: attrgetter("update_id"), ConjunctionUpdate: attrgetter("conjunction_id")}


def correlation(observation: Observation) -> Correlation:
    return Correlation(
        observation.observation_id,
        observation.source_id,
        observation.source_kind,
        observation.sensor_timestamp,
        observation.ingest_timestamp,
        observation.ingest_timestamp + 5,
        "correlated",
        catalog_number=25_544,
        candidates=(25_544, 49_044),
        components=1,
        residuals=Residuals(range_m=-12.5),
    )


def update(one: Observation, other: Observation) -> CrossSensorUpdate:
    return CrossSensorUpdate(
        UUID(int=one.observation_id.int ^ other.observation_id.int),
        25_544,
        NOON_NS,
        NOON_NS + SECOND_NS,
        tuple(
            Contribution(each.observation_id, each.source_id, each.sensor_timestamp, Residuals(range_m=3.0))
            for each in (one, other)
        ),
        one.ingest_timestamp,
    )


def conjunction(observation: Observation) -> ConjunctionUpdate:
    return ConjunctionUpdate(
        conjunction_id=observation.observation_id,
        revision=2,
        sequence=7,
        status="active",
        screened_timestamp=observation.ingest_timestamp,
        catalog_number_first=25_544,
        catalog_number_second=49_044,
        name_first="ISS (ZARYA)",
        tca_timestamp=NOON_NS + HOUR_NS,
        miss_m=812.5,
        miss_radial_m=-100.0,
        miss_in_track_m=500.0,
        miss_cross_track_m=632.6,
        relative_speed_m_s=14_000.0,
        max_probability=1.5e-6,
        dilution_m=None,
        epoch_first_timestamp=NOON_NS - HOUR_NS,
        epoch_second_timestamp=NOON_NS + 2 * HOUR_NS,
        age_first_s=7_200.0,
        age_second_s=-3_600.0,
        radius_first_m=50.0,
        radius_second_m=1.0,
        orbit_class_first="low",
        orbit_class_second="low",
    )


def of_two_hours(count: int) -> list[AuditRecord]:
    """Observations alternately of this hour and the next, a correlation for each, an update and a conjunction for each pair."""
    seen = [replace(item, ingest_timestamp=NOON_NS + n % 2 * HOUR_NS) for n, item in enumerate(observations(count))]
    mixed: list[AuditRecord] = []
    for number, (one, other) in enumerate(zip(seen[::2], seen[1::2], strict=True)):
        pair = (one, other) if number % 2 else (other, one)
        mixed += [one, correlation(one), other, correlation(other), update(*pair), conjunction(pair[0])]
    return mixed


class SlowDisk:
    """Blocks the first commit until ``release`` is set: its rows are on the disk, and no reader sees them yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.syncing = threading.Event()
        self.release = threading.Event()
        write, disk = parquet_store._write_durably, self

        def slow(path: Path, data: Any) -> None:
            write(path, data)
            disk.syncing.set()
            assert disk.release.wait(20)

        monkeypatch.setattr(parquet_store, "_write_durably", slow)


def part_of(items: Sequence[Observation], *, first_ns: int = NOON_NS) -> parquet_store.Part:
    table = TABLES[Observation]
    return parquet_store.Part(table.name, first_ns, table.rows(items), table.repeating)
