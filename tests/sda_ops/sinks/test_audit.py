"""The audit as a sink in a running graph, and as a dataset for readers."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import polars as pl
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from msgspec.structs import replace

from orchestrator_adapter import BuiltGraph, DeadLetterList, OperatorGraph, RestartPolicy, source_of
from orchestrator_adapter.testing import ListSource, ManualClock, Pause, UntilShutdown, run_graph, settle
from sda_ops.sinks.audit import Audit, audit_sink
from sda_ops.sinks.parquet_tables import TABLES
from tests.helpers.running import NOON_NS, counter, eventually, observations
from tests.sda_ops.sinks.audit_dataset import (
    HOUR_NS,
    SECOND_NS,
    SlowDisk,
    audited,
    correlation,
    drafts,
    ids_of,
    kept_ids,
    of_two_hours,
    parts,
    queried,
    update,
)


async def test_every_record_is_in_the_table_of_its_type_and_the_folder_of_its_hour(tmp_path: Path) -> None:
    """Four types of two hours, mixed on one edge, make eight files. Every id is there once, and the ledger counts all."""
    sent = of_two_hours(40)
    event = await run_graph(audited(tmp_path, source_of(sent), capacity=128, every=timedelta(seconds=1)))
    for record, table in TABLES.items():
        mine = [item for item in sent if type(item) is record]
        for hour in (12, 13):
            here = [item for item in mine if item.ingest_timestamp == NOON_NS + (hour - 12) * HOUR_NS]
            folder = tmp_path / table.name / "date=2026-01-01" / f"hour={hour}"
            (file,) = folder.iterdir()
            assert file.name.startswith(f"part-{hour}0000.000000000-")
            assert ids_of(here) == [UUID(text) for text in pl.read_parquet(file).to_series(0)]
    assert event.figures.ledger.written == len(sent)
    assert event.figures.ledger_holds
    assert event.figures.counters["sink"] == {
        "leftovers_removed": 0,
        "files_written": 8,
        "rows": len(sent),
        "bytes_written": sum(file.stat().st_size for table in TABLES.values() for file in parts(tmp_path, table.name)),
    }


async def test_duckdb_polars_and_arrow_read_the_same_dataset(tmp_path: Path) -> None:
    """In every table each reader finds the same rows, ids, residuals and units as were sent."""
    sent = of_two_hours(40)
    await run_graph(audited(tmp_path, source_of(sent), capacity=16))
    for record, table in TABLES.items():
        expected = {str(each) for each in ids_of([item for item in sent if type(item) is record])}
        key = table.schema.names[0]
        files = f"{tmp_path}/{table.name}/**/*.parquet"
        in_duckdb = queried(f"SELECT {key}, hour::INT, date::VARCHAR FROM '{files}'")
        in_polars = pl.scan_parquet(f"{tmp_path}/{table.name}/").select(key, "hour", pl.col("date").cast(str)).collect()
        in_arrow = ds.dataset(tmp_path / table.name, format="parquet", partitioning="hive")
        arrow_rows = in_arrow.to_table(columns=[key, "hour", "date"])
        assert len(in_duckdb) == len(expected)
        assert {row[0] for row in in_duckdb} == expected
        assert sorted(in_duckdb) == sorted(in_polars.rows())
        assert sorted(in_duckdb) == sorted(zip(*arrow_rows.to_pydict().values(), strict=True))
        # The units are the same in each.
        wanted = json.loads(table.schema.metadata[b"fields"])
        statement = f"SELECT DISTINCT value FROM parquet_kv_metadata('{files}') WHERE decode(key) = 'fields'"
        ((by_duckdb,),) = queried(statement)
        assert json.loads(by_duckdb) == wanted
        assert json.loads(pl.read_parquet_metadata(parts(tmp_path, table.name)[0])["fields"]) == wanted
        assert in_arrow.schema.field(key).metadata == table.schema.field(0).metadata
        for field in table.schema:
            assert in_arrow.schema.field(field.name).metadata == field.metadata


async def test_the_queries_of_the_documentation_work(tmp_path: Path) -> None:
    """DuckDB and Polars read the residuals of contributions, and times to the nanosecond."""
    one, other = observations(2)
    await run_graph(audited(tmp_path, source_of([one, other, correlation(one), update(one, other)])))
    unnested = queried(
        f"SELECT update_id, unnest(contributions, recursive := true) FROM '{tmp_path}/cross_sensor_updates/**/*.parquet'"
    )
    exploded = (
        pl.scan_parquet(f"{tmp_path}/cross_sensor_updates/")
        .select("update_id", "contributions")
        .explode("contributions")
        .unnest("contributions")
        .collect()
    )
    assert [row[:3] for row in unnested] == exploded.select("update_id", "observation_id", "source_id").rows()
    assert exploded["residual_range_m"].to_list() == [3.0, 3.0]
    assert exploded["residual_azimuth_rad"].to_list() == [None, None]
    times = queried(f"SELECT epoch_ns(sensor_timestamp) FROM '{tmp_path}/observations/**/*.parquet'")
    assert [time for (time,) in times] == [NOON_NS, NOON_NS + 1]
    joined = queried(
        f"SELECT c.residual_range_m FROM '{tmp_path}/correlations/**/*.parquet' c "
        f"JOIN '{tmp_path}/observations/**/*.parquet' o USING (observation_id)"
    )
    assert joined == [(-12.5,)]


async def test_no_row_counts_as_written_or_is_visible_before_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk works, "written" is zero and readers see no file; afterwards both have all rows."""
    disk = SlowDisk(monkeypatch)

    async def during(built: BuiltGraph) -> None:
        await eventually(disk.syncing.is_set, "the first commit")
        assert drafts(tmp_path) == ["0.part"]
        assert parts(tmp_path) == []
        assert built.ledger().written == 0
        assert built.ledger().balanced
        disk.release.set()

    event = await run_graph(audited(tmp_path, source_of(observations(50))), during=during)
    assert event.figures.ledger.written == len(kept_ids(tmp_path)) == 50
    assert not drafts(tmp_path)


async def test_rows_gather_until_the_first_has_waited_for_commit_every(tmp_path: Path) -> None:
    """After 0.9 s nothing is written; after a second all rows so far are one file, and the next ones another."""
    clock = ManualClock(now_ns=NOON_NS)
    sent = observations(30)
    pause = Pause(timedelta(seconds=0.4))
    source = ListSource(sent[:10], pause, sent[10:20], Pause(timedelta(seconds=2)), sent[20:], UntilShutdown())

    async def during(built: BuiltGraph) -> None:
        await clock.advance_when_idle(0.9)
        assert built.ledger().ingested == 20
        assert built.ledger().written == 0
        await clock.advance_when_idle(0.2)
        await eventually(lambda: built.ledger().written == 20, "the first commit")
        assert len(parts(tmp_path)) == 1
        await clock.advance_when_idle(2.0)
        await clock.advance_when_idle(1.1)
        await eventually(lambda: built.ledger().written == 30, "the second commit")
        assert len(parts(tmp_path)) == 2
        built.request_shutdown("test")

    event = await run_graph(audited(tmp_path, source, every=timedelta(seconds=1)), clock=clock, during=during)
    assert sorted(ids_of(sent)) == sorted(kept_ids(tmp_path))
    assert event.figures.latency is not None
    assert event.figures.latency.count == 30
    assert event.figures.latency.max_ms == 4_200  # all have the ingest time of the clock's start
    assert event.figures.latency.p50_ms == pytest.approx(1_100, rel=0.05)  # two thirds were in the first commit
    assert event.figures.ledger_holds


@pytest.mark.parametrize(("capacity", "max_rows", "expected"), [(64, 20, 20), (32, 65_536, 32)])
async def test_max_rows_or_a_full_edge_commits_at_once(
    tmp_path: Path, capacity: int, max_rows: int, expected: int
) -> None:
    """The commit does not wait for ``commit_every``, and no file has more rows."""
    clock, hour = ManualClock(now_ns=NOON_NS), timedelta(hours=1)
    source = ListSource(observations(expected * 3), UntilShutdown())
    graph = audited(tmp_path, source, capacity=capacity, max_rows=max_rows, every=hour)

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: built.ledger().written >= expected * 2, "two commits without any time passing")
        built.request_shutdown("test")

    event = await run_graph(graph, clock=clock, during=during)
    assert [pl.read_parquet(file).height for file in parts(tmp_path)] == [expected] * 3
    assert event.figures.ledger.written == expected * 3


async def test_a_shutdown_commits_the_gathered_rows_at_once(tmp_path: Path) -> None:
    """It does not wait for ``commit_every``: all rows are written, and no row is undelivered."""
    clock, letters = ManualClock(now_ns=NOON_NS), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: built.ledger().ingested == 10, "the source")
        assert built.ledger().written == 0
        built.request_shutdown("test")

    graph = audited(tmp_path, ListSource(observations(10), UntilShutdown()), every=timedelta(hours=1))
    event = await run_graph(graph, clock=clock, dead_letters=letters, during=during)
    assert event.figures.ledger.written == len(kept_ids(tmp_path)) == 10
    assert letters.total == 0


async def test_no_row_is_leased_while_rows_gather(tmp_path: Path) -> None:
    """If the sink is cancelled while it waits (here for lack of progress), no row is delivered a second time."""
    clock, sent = ManualClock(now_ns=NOON_NS), observations(10)
    graph = OperatorGraph("stopped")
    source = graph.add_source("source", ListSource(sent, UntilShutdown()))
    sink = graph.add_sink(
        "sink",
        audit_sink(Audit(directory=tmp_path, commit_every=timedelta(hours=1))),
        restart_policy=RestartPolicy.bounded(1, timedelta(seconds=60)),
        progress_timeout=timedelta(seconds=40),
    )
    edge = graph.connect(source, sink, 64)

    async def during(built: BuiltGraph) -> None:
        while not built.status().restarts:
            await clock.advance_when_idle(10.0)
        await settle()
        assert built.status().edges[edge].leased == 0
        assert built.status().edges[edge].redelivered == 0
        built.request_shutdown("test")

    event = await run_graph(graph, clock=clock, during=during)
    assert event.figures.ledger.written == 10
    assert kept_ids(tmp_path) == ids_of(sent)
    assert len(parts(tmp_path)) == 1


async def test_files_change_with_the_hour_of_ingest(tmp_path: Path) -> None:
    """Rows from before and after the full hour are in two folders, although one commit wrote both."""
    clock = ManualClock(now_ns=NOON_NS + HOUR_NS - SECOND_NS)
    sent = observations(40)

    async def source(ends: Any) -> None:
        for start in (0, 10, 20, 30):
            await ends.emit([replace(item, ingest_timestamp=ends.clock.now_ns()) for item in sent[start : start + 10]])
            await ends.shutdown.wait_at_most(0.5, ends.clock)

    async def during(built: BuiltGraph) -> None:
        for _ in range(20):
            await clock.advance_when_idle(0.25)

    event = await run_graph(audited(tmp_path, source, every=timedelta(seconds=60)), clock=clock, during=during)
    assert event.figures.ledger.written == 40
    before, after = sorted((tmp_path / "observations" / "date=2026-01-01").iterdir())
    assert (before.name, after.name) == ("hour=12", "hour=13")
    assert kept_ids(tmp_path) == ids_of(sent)
    assert [pl.read_parquet(file).height for file in parts(tmp_path)] == [20, 20]
    assert [file.name[5:21] for file in parts(tmp_path)] == ["125959.000000000", "130000.000000000"]


async def test_a_reader_finds_all_acknowledged_rows_while_the_writer_runs(tmp_path: Path) -> None:
    """Every query of the growing dataset succeeds and finds at least the rows that counted as written before it."""
    files = f"{tmp_path}/observations/**/*.parquet"

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: built.ledger().written, "the first commit")
        seen = 0
        while seen < 4_000:
            written = built.ledger().written
            ((seen,),) = await asyncio.to_thread(queried, f"SELECT count(*) FROM '{files}'")
            assert seen >= written

    event = await run_graph(audited(tmp_path, source_of(observations(4_000)), capacity=50), during=during)
    assert event.figures.ledger.written == 4_000


async def test_a_finished_day_can_be_copied_into_fewer_files(tmp_path: Path) -> None:
    """The documented way keeps all rows and the units, with one file per hour."""
    sent = observations(200)
    await run_graph(audited(tmp_path / "audit", source_of(sent), capacity=16))
    day = ds.dataset(tmp_path / "audit/observations", format="parquet", partitioning="hive")
    ds.write_dataset(
        day.scanner(filter=ds.field("date") == "2026-01-01"),
        tmp_path / "archive/observations",
        format="parquet",
        partitioning=["date", "hour"],
        partitioning_flavor="hive",
    )
    (file,) = parts(tmp_path / "archive")
    assert len(parts(tmp_path / "audit")) > 1
    assert sorted(kept_ids(tmp_path / "archive")) == sorted(ids_of(sent))
    kept = pq.read_schema(file)
    assert kept.field("range_m").metadata[b"unit"] == b"m"
    assert kept.metadata[b"schema_version"] == b"1"


async def test_metrics_of_the_audit_are_available_while_it_runs(tmp_path: Path) -> None:
    """They are rows, files and bytes."""

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: built.ledger().written == 10, "all ten")
        await eventually(lambda: counter(built, "rows", "sink") == 10, "the rows")
        assert counter(built, "files_written", "sink") == len(parts(tmp_path))
        assert counter(built, "bytes_written", "sink") == sum(file.stat().st_size for file in parts(tmp_path))
        built.request_shutdown("test")

    await run_graph(audited(tmp_path, ListSource(observations(10), UntilShutdown())), during=during)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_rows": 0}, "Audit: max_rows must be >= 1, got 0"),
        (
            {"commit_every": timedelta(seconds=-1)},
            "Audit: commit_every must be >= 0, got datetime.timedelta",
        ),
    ],
)
def test_invalid_audit_options_are_rejected_at_once(options: Any, message: str) -> None:
    """They are rejected before a file is opened."""
    with pytest.raises(ValueError, match=message):
        Audit(directory=Path("nowhere"), **options)
