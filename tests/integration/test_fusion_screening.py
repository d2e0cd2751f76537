"""``sda-fusion`` screens its catalogue in real worker processes: table and audit agree, and kills cost repetitions only."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from flows.settings.fusion import FusionSettings
from flows.topologies.fusion import fusion_pipeline
from orchestrator_adapter import BuiltGraph
from orchestrator_adapter.bulkhead import Bulkhead
from orchestrator_adapter.process import Pipeline
from orchestrator_adapter.process.report import ExitCode
from orchestrator_adapter.supervision.events import ShutDown
from sda_ops.catalog.synthetic import synthetic_catalog
from sda_ops.simulate.catalog_file import omm_json
from tests.helpers.fusion import FusionPlace, conducted, fusion_process
from tests.helpers.running import counter, eventually
from tests.helpers.support import wait_until

OBJECTS = 150
Key = tuple[str, int]


def given(place: FusionPlace, **screening: Any) -> dict[str, Any]:
    """A pipeline without traffic that screens two windows of a small catalogue, without compiling anything."""
    return place.settings(
        screening={
            "directory": str(place.folder / "screening"),
            "horizon_s": 3_600.0,
            "window_s": 3_600.0,
            "miss_distance_m": 100_000.0,
            "advanced": {"broad_phase": "scipy", "engine": "sgp4"},
            **screening,
        }
    )


def settings_at(place: FusionPlace, **screening: Any) -> FusionSettings:
    return FusionSettings.model_validate(given(place, **screening))


def write_catalog(place: FusionPlace) -> None:
    place.catalog.write_bytes(omm_json(synthetic_catalog(objects=OBJECTS, epoch_ns=time.time_ns())))


def in_audit(place: FusionPlace) -> Counter[Key]:
    """How often the audit has each id and revision."""
    folder = place.folder / "audit" / "conjunctions" / "conjunctions"
    rows = ds.dataset(folder, partitioning="hive").to_table(columns=["conjunction_id", "revision"]).to_pylist()
    return Counter((row["conjunction_id"], row["revision"]) for row in rows)


def in_table(place: FusionPlace) -> set[Key]:
    with sqlite3.connect(place.folder / "screening" / "conjunctions.sqlite") as db:
        return set(db.execute("SELECT c.id, u.revision FROM updates u JOIN conjunctions c ON c.number = u.conjunction"))


def pool_of(pipeline: Pipeline) -> Bulkhead:
    (pool,) = (bulkhead for bulkhead in pipeline.bulkheads if bulkhead.name == "screening")
    return pool


async def screened(graph: BuiltGraph) -> None:
    """Wait until the first screening is done, and its conjunctions are in the audit."""
    await eventually(lambda: counter(graph, "screenings", "screen"), "a screening")
    await eventually(
        lambda: counter(graph, "rows", "conjunctions") == counter(graph, "conjunction_updates", "screen"), "all rows"
    )


def test_a_killed_screening_worker_costs_a_repetition_and_no_conjunction(tmp_path: Path) -> None:
    """The audit has each revision of the table once."""
    place = FusionPlace.free(tmp_path)
    write_catalog(place)
    pipeline = fusion_pipeline(settings_at(place))
    pool = pool_of(pipeline)

    async def killed_first(graph: BuiltGraph) -> None:
        await eventually(lambda: pool.statistics().in_flight > 0, "a window at work")
        (pid,) = pool.statistics().pids.values()
        os.kill(pid, signal.SIGKILL)
        await screened(graph)

    outcome = asyncio.run(conducted(pipeline, killed_first))
    assert (type(outcome.event), outcome.exit_code, outcome.problems) == (ShutDown, ExitCode.OK, ())
    figures = outcome.event.figures
    assert (figures.ledger_holds, dict(figures.restarts), pool.statistics().restarts) == (True, {}, 1)
    audit = in_audit(place)
    assert len(audit) > 10
    assert audit == Counter(dict.fromkeys(in_table(place), 1))


@pytest.mark.long
def test_a_stop_during_a_screening_drains_within_the_grace_period(tmp_path: Path) -> None:
    place = FusionPlace.free(tmp_path)
    write_catalog(place)
    pipeline = fusion_pipeline(settings_at(place, horizon_s=86_400.0))
    pool = pool_of(pipeline)

    async def stop_at_work(_graph: BuiltGraph) -> None:
        await eventually(lambda: pool.statistics().in_flight > 0, "a window at work")

    outcome = asyncio.run(conducted(pipeline, stop_at_work))
    assert (type(outcome.event), outcome.exit_code) == (ShutDown, ExitCode.OK)
    figures = outcome.event.figures
    assert (figures.ledger_holds, figures.stragglers, figures.counters["screen"]["screenings"]) == (True, (), 0)


@pytest.mark.long
def test_kills_of_the_process_lose_no_revision(tmp_path: Path) -> None:
    """It is killed when it makes the table, when it has screened, and when it delivers. At last the audit has every revision."""
    place = FusionPlace.free(tmp_path)
    write_catalog(place)
    table = place.folder / "screening" / "conjunctions.sqlite"
    audit = place.folder / "audit" / "conjunctions" / "conjunctions"
    for reached in (table.exists, lambda: revisions(table) > 0, audit.exists):
        with fusion_process(
            ["fusion", "--no-api", "--quiet"], given(place), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            wait_until(reached, "the moment of the kill")
            process.kill()

    async def delivered(graph: BuiltGraph) -> None:
        await eventually(lambda: counter(graph, "screenings", "screen"), "a screening")
        await eventually(lambda: set(in_audit(place)) == in_table(place), "every revision")

    outcome = asyncio.run(conducted(fusion_pipeline(settings_at(place)), delivered))
    assert outcome.exit_code is ExitCode.OK
    assert len(in_table(place)) > 10


def revisions(table: Path) -> int:
    """How many the table has; 0 until it is made."""
    if not table.exists():
        return 0
    with sqlite3.connect(table) as db:
        made = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'updates'").fetchone()[0]
        return int(db.execute("SELECT count(*) FROM updates").fetchone()[0]) if made else 0


def test_a_damaged_table_keeps_the_run_from_starting_and_is_named(tmp_path: Path) -> None:
    place = FusionPlace.free(tmp_path)
    write_catalog(place)
    settings = settings_at(place)
    settings.screening.directory.mkdir()
    settings.screening.table.write_bytes(b"no database" * 1_000)

    async def never(_graph: BuiltGraph) -> None:
        raise AssertionError("it started")

    problem = ""
    try:
        asyncio.run(conducted(fusion_pipeline(settings), never))
    except Exception as error:  # noqa: BLE001 - its text is asserted
        problem = str(error)
    assert problem == (
        f"table of conjunctions {settings.screening.table}: the file is damaged (file is not a database); "
        "move it away, and a new one is made"
    )
