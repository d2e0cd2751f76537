"""Every way to stop a run: two phases, the state that Prefect then shows, and the exit code; real processes and signals."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State, StateType

from bench.prefect_outage import decided, ingesting
from tests.helpers.prefect_runs import TOY, Installation, newest_run_id, start, until, until_over
from tests.helpers.prefect_server import PrefectServer
from tests.helpers.support import ROOT, Addresses, flows_process, send_detections, wait_until
from tests.integration.toy_flow import give

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(300)]

CANCELLING: State[None] = State(type=StateType.CANCELLING, name="Cancelling")


def report(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return loaded


async def in_the_ui(installation: Installation, client: PrefectClient, run_id: UUID) -> None:
    """What its button does."""
    await client.set_flow_run_state(run_id, CANCELLING)


async def on_the_command_line(installation: Installation, client: PrefectClient, run_id: UUID) -> None:
    await asyncio.to_thread(installation.prefect, "flow-run", "cancel", str(run_id))


@pytest.mark.parametrize("cancel", [in_the_ui, on_the_command_line])
async def test_a_cancelled_run_of_a_worker_drains_and_ends_cancelled(
    cancel: Callable[..., Any], installation: Installation, client: PrefectClient, tmp_path: Path
) -> None:
    """One request, phase 1 only: every number it had is kept, every operator Completed, the flow run Cancelled."""
    assert installation.worker_lives
    folder = tmp_path / "toy"
    run_id = await start(client, TOY, {"folder": str(folder)})
    await until(client, run_id, lambda seen: set(seen.states.values()) == {"RUNNING"}, "it runs")
    await cancel(installation, client, run_id)
    over = await until_over(client, run_id, partial(decided, folder / "decisions.jsonl"))
    assert (over.state, set(over.states.values())) == ("CANCELLED", {"COMPLETED"})
    # Prefect's runner has a word for it, too; whose comes last is the one that stays.
    assert over.message.startswith("ShutDown: ") or over.message == "Flow run was cancelled successfully."
    wait_until((folder / "report.json").exists, "the report")
    assert report(folder)["exit_code"] == 0
    assert report(folder)["ledger"]["written"] == len((folder / "kept").read_text().splitlines()) > 0
    assert over.decisions == decided(folder / "decisions.jsonl")
    assert over.decisions["shutdown", "", 0] == 1
    assert not any("abort" in decision for decision, _, _ in over.decisions)


async def test_a_worker_that_is_told_to_stop_lets_its_run_drain_and_tell(
    installation: Installation, client: PrefectClient, tmp_path: Path
) -> None:
    """SIGTERM to the worker: it ends with 0, after its run, which is Completed and has told everything."""
    folder = tmp_path / "toy"
    run_id = await start(client, TOY, {"folder": str(folder)})
    await until(client, run_id, lambda seen: set(seen.states.values()) == {"RUNNING"}, "it runs")
    try:
        assert await asyncio.to_thread(installation.stop_worker) == 0
    finally:
        installation.start_worker()
    over = await until_over(client, run_id, partial(decided, folder / "decisions.jsonl"))
    assert (over.state, set(over.states.values())) == ("COMPLETED", {"COMPLETED"})
    assert over.message.startswith("ShutDown: SIGTERM; ")
    assert over.decisions == decided(folder / "decisions.jsonl")
    assert report(folder)["ledger"]["written"] == len((folder / "kept").read_text().splitlines()) > 0


async def test_ctrl_c_drains_ingest_and_completes_the_run(
    shared_prefect_server: PrefectServer, client: PrefectClient, tmp_path: Path
) -> None:
    """SIGINT: exit code 0, what was sent is in the log, the flow run Completed with the reason, every task run, too."""
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
    assert report(tmp_path)["ledger"]["written"] == 50
    assert over.decisions == decided(tmp_path / "stderr")


async def test_the_second_ctrl_c_goes_to_the_second_phase(
    shared_prefect_server: PrefectServer, client: PrefectClient, tmp_path: Path
) -> None:
    """An operator that would drain for an hour is aborted at once: its task run Cancelled, the flow run Completed, exit code 0."""
    folder = tmp_path / "toy"
    async with running_toy(shared_prefect_server, client, folder, grace_s=3_600) as (process, run_id):
        give(folder, "hang")
        wait_until(lambda: not (folder / "order").exists(), "the order is taken")
        process.send_signal(signal.SIGINT)
        wait_until(lambda: decided(folder / "decisions.jsonl")["shutdown", "", 0] == 1, "the first phase")
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(process.wait, 120) == 0
    over = await until_over(client, run_id, partial(decided, folder / "decisions.jsonl"))
    assert over.state == "COMPLETED"
    assert over.states["work"] == "CANCELLED"
    assert over.states["numbers"] == "COMPLETED"
    assert over.decisions == decided(folder / "decisions.jsonl")
    assert over.decisions["abort", "work", 1] == 1
    assert report(folder)["ledger_holds"]


async def test_a_run_that_no_runner_owns_sees_by_itself_that_it_is_cancelled(
    shared_prefect_server: PrefectServer, client: PrefectClient, tmp_path: Path
) -> None:
    """Set to Cancelling, a run started by hand drains and ends Cancelled, with exit code 0 and no signal."""
    folder = tmp_path / "toy"
    async with running_toy(shared_prefect_server, client, folder) as (process, run_id):
        await client.set_flow_run_state(run_id, CANCELLING)
        assert await asyncio.to_thread(process.wait, 120) == 0
    over = await until_over(client, run_id, partial(decided, folder / "decisions.jsonl"))
    assert (over.state, set(over.states.values())) == ("CANCELLED", {"COMPLETED"})
    assert over.message.startswith("ShutDown: cancelled in Prefect")
    assert over.decisions == decided(folder / "decisions.jsonl")


async def test_reconcile_is_refused_a_folder_that_a_run_has_and_names_the_run(
    shared_prefect_server: PrefectServer, client: PrefectClient, tmp_path: Path
) -> None:
    """Exit code 1 and a line with pipeline, process and flow run; the run goes on."""
    folder = tmp_path / "toy"
    async with running_toy(shared_prefect_server, client, folder) as (process, run_id):
        reconcile = flows_process(
            ["reconcile", "--folder", str(folder / "prefect")],
            {},
            extra=shared_prefect_server.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        said, why = await asyncio.to_thread(reconcile.communicate, timeout=60)
        assert (reconcile.returncode, said) == (1, b"")
        assert f"is in use by pipeline 'toy', pid {process.pid}, flow run " in why.decode()
        assert str(run_id) in why.decode()
        give(folder, "end")
        assert await asyncio.to_thread(process.wait, 120) == 0
    assert (await until_over(client, run_id)).state == "COMPLETED"


def toy_process(server: PrefectServer, settings: dict[str, Any]) -> subprocess.Popen[bytes]:
    """The toy as a flow run of this process, without a worker."""
    command = [sys.executable, "-m", "tests.integration.toy_flow", json.dumps(settings)]
    return subprocess.Popen(command, env=dict(server.environment), cwd=ROOT, stderr=subprocess.DEVNULL)


@asynccontextmanager
async def running_toy(
    server: PrefectServer, client: PrefectClient, folder: Path, **settings: Any
) -> AsyncIterator[tuple[subprocess.Popen[bytes], UUID]]:
    """The process and the flow run, once it runs; killed at the end if it still does."""
    others = {run.id for run in await client.read_flow_runs(limit=200)}
    # It may take its time to tell: nobody waits to end it.
    process = toy_process(server, {"folder": str(folder), "patience_when_stopped_s": 60, **settings})
    try:
        run_id = await newest_run_id(client, "toy-stream", other_than=others)
        await until(client, run_id, lambda seen: set(seen.states.values()) == {"RUNNING"}, "it runs")
        yield process, run_id
    finally:
        process.kill()
        process.wait()
