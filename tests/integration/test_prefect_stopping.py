"""Every way to stop a run: two phases, the state that Prefect then shows, and the exit code; real processes and signals."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State, StateType
from prefect.states import Completed, Crashed, Failed, Paused, Scheduled

from tests.helpers.outages import decided, ingesting
from tests.helpers.prefect_runs import log_of, newest_run_id, until, until_over
from tests.helpers.prefect_server import PrefectServer
from tests.helpers.support import ROOT, Addresses, flows_process, report_of, send_detections, wait_until
from tests.integration.toy_flow import give

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(300)]

CANCELLING: State[None] = State(type=StateType.CANCELLING, name="Cancelling")


async def test_ctrl_c_drains_ingest_and_completes_the_run(
    shared_prefect_server: PrefectServer, client: PrefectClient, tmp_path: Path
) -> None:
    """SIGINT: exit code 0, what was sent is in the log, flow run and task runs are Completed, with the reason."""
    addresses = Addresses.free(radars=1)
    others = {run.id for run in await client.read_flow_runs(limit=200)}
    with ingesting(shared_prefect_server, addresses, tmp_path) as process:
        run_id = await newest_run_id(client, "sda-ingest", other_than=others)
        await until(client, run_id, lambda seen: "event-log" in seen.states, "it runs")
        send_detections(addresses.radars[0], 50)
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 120) == 0
    over = await until_over(client, run_id, partial(decided, tmp_path / "stderr"))
    assert over.state == "COMPLETED"
    assert over.message.startswith("ShutDown: SIGINT; ingested 50 ")
    assert {state for name, state in over.states.items() if not name.startswith("optical")} == {"COMPLETED"}
    assert report_of(tmp_path)["ledger"]["written"] == 50
    assert over.decisions == decided(tmp_path / "stderr")


async def test_the_second_ctrl_c_starts_the_second_phase(
    shared_prefect_server: PrefectServer, client: PrefectClient, tmp_path: Path
) -> None:
    """An operator that would drain for an hour is aborted at once: its task run Cancelled, the flow run Completed, exit code 0."""
    folder = tmp_path / "toy"
    async with running_toy(shared_prefect_server, client, folder, grace_s=3_600) as (process, run_id):
        give(folder, "hang")
        wait_until(lambda: not (folder / "order").exists(), "the order is taken")
        process.send_signal(signal.SIGINT)
        wait_until(
            lambda: decided(folder / "decisions.jsonl")["clean_exit", "numbers", 1] == 1, "the source has stopped"
        )
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 120) == 0
    over = await until_over(client, run_id, partial(decided, folder / "decisions.jsonl"))
    assert over.state == "COMPLETED"
    assert over.states["work"] == "CANCELLED"
    assert over.states["numbers"] == "COMPLETED"
    assert over.decisions == decided(folder / "decisions.jsonl")
    assert over.decisions["abort", "work", 1] == 1
    assert report_of(folder)["ledger_holds"]


@pytest.mark.long
async def test_a_run_that_blocks_its_loop_is_ended_by_a_signal_and_reconciled(
    shared_prefect_server: PrefectServer, client: PrefectClient, tmp_path: Path
) -> None:
    """Exit code 5; its report and its record say so on disk; `reconcile` sets the run Failed and its task runs Crashed."""
    folder = tmp_path / "toy"
    async with running_toy(shared_prefect_server, client, folder, grace_s=0.5) as (process, run_id):
        give(folder, "spin")
        wait_until(lambda: not (folder / "order").exists(), "the order is taken")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 120) == 5
    assert [straggler["operator"] for straggler in report_of(folder)["stragglers"]] == ["work"]
    assert report_of(folder)["ledger_holds"]
    (record,) = [json.loads(path.read_text()) for path in (folder / "prefect").glob("*.json")]
    assert (record["state_type"], record["exit_code"]) == ("FAILED", 5)
    reconcile = flows_process(
        ["reconcile", "--folder", str(folder / "prefect")],
        {},
        extra=shared_prefect_server.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await asyncio.to_thread(reconcile.communicate, timeout=120)
    assert reconcile.returncode == 0, errors
    assert b": Failed; " in output
    over = await until(client, run_id, lambda seen: seen.over, "it has ended")
    assert over.state == "FAILED"
    assert over.states["work"] == "CRASHED"


async def test_a_run_without_a_runner_notices_its_cancellation(
    shared_prefect_server: PrefectServer, client: PrefectClient, tmp_path: Path
) -> None:
    """A run started by hand and set to Cancelling drains and ends Cancelled, with exit code 0 and no signal."""
    folder = tmp_path / "toy"
    async with running_toy(shared_prefect_server, client, folder) as (process, run_id):
        await client.set_flow_run_state(run_id, CANCELLING)
        assert await asyncio.to_thread(process.wait, 120) == 0
    over = await until_over(client, run_id, partial(decided, folder / "decisions.jsonl"))
    assert (over.state, set(over.states.values())) == ("CANCELLED", {"COMPLETED"})
    assert over.message.startswith("ShutDown: cancelled in Prefect")
    assert over.decisions == decided(folder / "decisions.jsonl")


async def test_states_that_do_not_stop_a_run_are_set_back_to_running(
    shared_prefect_server: PrefectServer, client: PrefectClient, tmp_path: Path
) -> None:
    """Paused, rescheduled or set to an end by hand, the pipeline streams on, is shown as Running, and can be cancelled."""
    folder = tmp_path / "toy"
    failed: State[Any] = Failed(message="by hand")
    by_hand: list[State[Any]] = [Paused(), Scheduled(name="Resuming"), Completed(), failed, Crashed()]
    async with running_toy(shared_prefect_server, client, folder) as (process, run_id):
        for state in by_hand:
            await client.set_flow_run_state(run_id, state, force=True)
            seen = await until(client, run_id, lambda seen: seen.state == "RUNNING", f"{state.name} is set back")
            assert seen.message.endswith("cancel the run to stop it")
            assert seen.flow_run.run_count == 1
        assert process.poll() is None
        await client.set_flow_run_state(run_id, CANCELLING)
        assert await asyncio.to_thread(process.wait, 120) == 0
    over = await until(client, run_id, lambda seen: seen.over, "it has ended")
    assert (over.state, set(over.states.values())) == ("CANCELLED", {"COMPLETED"})
    warnings = [line.message for line in await log_of(client, run_id) if line.level == logging.WARNING]
    assert [line.split(" in Prefect")[0] for line in warnings] == [f"the run was set {state.name}" for state in by_hand]
    assert "(by hand)" in warnings[3]


async def test_reconcile_rejects_a_folder_in_use_and_names_the_run(
    shared_prefect_server: PrefectServer, client: PrefectClient, tmp_path: Path
) -> None:
    """Exit code 1 and a line with pipeline, process and flow run; the run continues."""
    folder = tmp_path / "toy"
    async with running_toy(shared_prefect_server, client, folder) as (process, run_id):
        reconcile = flows_process(
            ["reconcile", "--folder", str(folder / "prefect")],
            {},
            extra=shared_prefect_server.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, errors = await asyncio.to_thread(reconcile.communicate, timeout=60)
        assert (reconcile.returncode, output) == (1, b"")
        assert f"is in use by pipeline 'toy', pid {process.pid}, flow run " in errors.decode()
        assert str(run_id) in errors.decode()
        give(folder, "end")
        assert await asyncio.to_thread(process.wait, 120) == 0
    assert (await until_over(client, run_id)).state == "COMPLETED"


def toy_process(server: PrefectServer, settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    """A process that runs the toy as a flow run, without a worker."""
    command = [sys.executable, "-m", "tests.integration.toy_flow", json.dumps(settings)]
    return subprocess.Popen(command, env=dict(server.environment), cwd=ROOT, stderr=subprocess.DEVNULL)


@asynccontextmanager
async def running_toy(
    server: PrefectServer, client: PrefectClient, folder: Path, **settings: Any
) -> AsyncIterator[tuple[subprocess.Popen[bytes], UUID]]:
    """The process and its flow run, once every operator runs. The process is killed at the end."""
    others = {run.id for run in await client.read_flow_runs(limit=200)}
    # No one waits for this process to end, so it may report for a long time.
    process = toy_process(server, {"folder": str(folder), "patience_when_stopped_s": 60, **settings})
    try:
        run_id = await newest_run_id(client, "toy-stream", other_than=others)
        await until(client, run_id, lambda seen: set(seen.states.values()) == {"RUNNING"}, "it runs")
        yield process, run_id
    finally:
        process.kill()
        process.wait()
