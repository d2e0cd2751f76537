"""Simulations with staged passages: what the sensors see, and which files a pipeline and a reader get."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from flows.__main__ import main
from sda_ops.catalog.reader import read_catalog
from sda_ops.simulate import ConfigurationError, Endpoint, SimulatorConfig, Staged, StagingPlan, simulate
from sda_ops.simulate.places import RADAR_SITES
from sda_ops.simulate.staged import read_staged

LOCAL = "127.0.0.1"


async def test_each_made_up_object_sends_beacons(tmp_path: Path) -> None:
    """Also before the catalogue of the pipeline has it."""

    async def read_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    truth, staged = tmp_path / "truth.jsonl", tmp_path / "staged.jsonl"
    server = await asyncio.start_server(read_all, LOCAL, 0)
    async with asyncio.timeout(60), server:
        config = SimulatorConfig(
            radar_rate_hz=0.0,
            optical_rate_hz=0.0,
            isl_targets=(Endpoint(LOCAL, server.sockets[0].getsockname()[1]),),
            isl_rate_hz=500.0,
            isl_connections=2,
            isl_satellites=10,
            objects=200,
            count=100,
            truth=truth,
            staged=Staged(plan=StagingPlan(conjunctions=2, near_misses=1), truth=staged),
        )
        await simulate(config, stop=asyncio.Event())
    seen = {json.loads(line)["catalog_number"] for line in truth.read_text().splitlines()}
    passages = read_staged(staged)
    assert len(passages) == 3
    assert {passage.staged for passage in passages} < seen
    assert len(seen) == 10


def test_the_catalogue_of_the_pipeline_gets_the_made_up_objects_later(tmp_path: Path) -> None:
    """The file is replaced while the sensors send; its other objects stay."""
    into, truth = tmp_path / "catalog.json", tmp_path / "staged.jsonl"
    into.write_text("before")
    quiet = ["--rate-optical", "0", "--rate-isl", "0", "--objects", "50"]
    staged = ["--stage", "1:1", "--stage-into", str(into), "--stage-truth", str(truth)]
    assert main(["simulate", *quiet, *staged, "--duration", "0.05", "--stage-after", "60"]) == 0
    assert into.read_text() == "before"
    assert main(["simulate", *quiet, *staged, "--duration", "1.0"]) == 0
    numbers = [each.catalog_number for each in read_catalog(into).element_sets]
    assert len(numbers) == 52
    assert {passage.staged for passage in read_staged(truth)} == set(numbers[-2:])


async def test_no_sensor_sees_the_targets_at_the_start(tmp_path: Path) -> None:
    """So the beacons of the made-up objects are the first observations of the passages."""
    truth, staged = tmp_path / "truth.jsonl", tmp_path / "staged.jsonl"
    config = SimulatorConfig(
        radar_targets=tuple(Endpoint(LOCAL, 9) for _ in RADAR_SITES),
        radar_rate_hz=2_000.0,
        optical_rate_hz=0.0,
        isl_rate_hz=0.0,
        objects=400,
        count=3_000,
        truth=truth,
        staged=Staged(plan=StagingPlan(conjunctions=10, near_misses=0), truth=staged),
    )
    async with asyncio.timeout(60):
        await simulate(config, stop=asyncio.Event())
    seen = {json.loads(line)["catalog_number"] for line in truth.read_text().splitlines()}
    assert len(seen) > 20
    assert not seen & {passage.catalog_number_first for passage in read_staged(staged)}


def test_impossible_passages_are_reported_together() -> None:
    """No passage, a threshold of nothing, a passage before the start, and an endless wait."""
    plan = StagingPlan(conjunctions=0, near_misses=0, threshold_m=0.0, first_after_s=9.0, last_after_s=8.0)
    with pytest.raises(ConfigurationError) as raised:
        SimulatorConfig(staged=Staged(plan=plan, after_s=float("inf")))
    assert raised.value.problems == (
        "staged: expected at least one passage, got 0 and 0 near misses",
        "staged: threshold_m must be in [1, 5000], got 0",
        "staged: 0 <= first_after_s <= last_after_s <= 86400 expected, got 9, 8",
        "staged: after_s must be >= 0, got inf",
    )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--stage", "1"], "--stage: expected N:M, got '1'"),
        (["--stage", "1:x"], "--stage: expected two whole numbers N:M, got '1:x'"),
        (["--stage", "1:1", "--stage-passages", "soon"], "--stage: --stage-passages: expected FROM_S:TO_S, got 'soon'"),
        (["--stage-into", "catalog.json"], "--stage-into and --stage-truth need --stage N:M"),
        (
            ["--stage", "9:9", "--objects", "5"],
            "staged: staging 18 passages needs as many objects in low orbit, got 5; stage fewer, or take a larger catalogue",
        ),
    ],
)
def test_a_mistake_in_the_options_is_one_plain_line(
    options: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """On standard error, with exit code 2."""
    assert main(["simulate", *options, "--duration", "0.1"]) == 2
    assert capsys.readouterr().err == f"simulate: {problem}\n"
