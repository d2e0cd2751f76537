"""Ways to stop the run of a worker: cancel the run, stop the worker; a suspension does not stop it. Real processes and signals."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.states import Suspended

from tests.helpers.outages import decided
from tests.helpers.prefect_runs import TOY, Installation, start, until, until_over
from tests.helpers.sizes import small_and_long
from tests.helpers.support import report_of, wait_until
from tests.integration.toy_flow import give

pytestmark = [pytest.mark.prefect, pytest.mark.timeout(300)]

CANCELLING: State[None] = State(type=StateType.CANCELLING, name="Cancelling")


async def in_the_ui(installation: Installation, client: PrefectClient, run_id: UUID) -> None:
    """As its button does."""
    await client.set_flow_run_state(run_id, CANCELLING)


async def on_the_command_line(installation: Installation, client: PrefectClient, run_id: UUID) -> None:
    await asyncio.to_thread(installation.prefect, "flow-run", "cancel", str(run_id))


@small_and_long("cancel", on_the_command_line, in_the_ui)
async def test_a_cancelled_run_of_a_worker_drains_and_ends_cancelled(
    cancel: Callable[..., Any], installation: Installation, client: PrefectClient, tmp_path: Path
) -> None:
    """One request starts phase 1 only: every number is written, every operator Completed, the flow run Cancelled."""
    assert installation.worker_lives
    folder = tmp_path / "toy"
    run_id = await start(client, TOY, {"folder": str(folder)})
    await until(client, run_id, lambda seen: set(seen.states.values()) == {"RUNNING"}, "it runs")
    await cancel(installation, client, run_id)
    over = await until_over(client, run_id, partial(decided, folder / "decisions.jsonl"))
    assert (over.state, set(over.states.values())) == ("CANCELLED", {"COMPLETED"})
    # Prefect's runner sets a message, too; the last one remains.
    assert over.message.startswith("ShutDown: ") or over.message == "Flow run was cancelled successfully."
    wait_until((folder / "report.json").exists, "the report")
    assert report_of(folder)["exit_code"] == 0
    assert report_of(folder)["ledger"]["written"] == len((folder / "kept").read_text().splitlines()) > 0
    assert over.decisions == decided(folder / "decisions.jsonl")
    assert over.decisions["shutdown", "", 0] == 1
    assert not any("abort" in decision for decision, _, _ in over.decisions)


async def test_a_stopped_worker_waits_until_its_run_has_drained_and_reported(
    installation: Installation, client: PrefectClient, tmp_path: Path
) -> None:
    """After a SIGTERM the worker ends with 0, after its run, which is Completed and has reported everything."""
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
    assert report_of(folder)["ledger"]["written"] == len((folder / "kept").read_text().splitlines()) > 0


async def test_a_suspended_run_of_a_worker_streams_on_and_ends_as_its_stream_does(
    installation: Installation, client: PrefectClient, tmp_path: Path
) -> None:
    """It is shown as Running again, in the same attempt. Prefect's engine, which knows of the suspension, records the end."""
    folder = tmp_path / "toy"
    run_id = await start(client, TOY, {"folder": str(folder)})
    await until(client, run_id, lambda seen: set(seen.states.values()) == {"RUNNING"}, "it runs")
    suspended: State[None] = Suspended(timeout_seconds=300)
    assert (await client.set_flow_run_state(run_id, suspended)).status is SetStateStatus.ACCEPT
    seen = await until(client, run_id, lambda seen: seen.message.startswith("a stream cannot be paused"), "set back")
    assert (seen.state, seen.flow_run.run_count) == ("RUNNING", 1)
    assert (await client.resume_flow_run(run_id)).status is SetStateStatus.ABORT
    give(folder, "end")
    over = await until(client, run_id, lambda seen: seen.over, "it has ended")
    assert (over.state, set(over.states.values())) == ("COMPLETED", {"COMPLETED"})
    assert over.message.startswith("AllOk; ")
    assert over.flow_run.run_count == 1
