"""``up`` and ``down``: one cycle of a real Prefect server, worker and run, from a checkout with a space in its path."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import Worker, WorkPool
from prefect.client.schemas.responses import DeploymentResponse

from flows.local_prefect.processes import default_worker_name, free_ports, marked_processes
from tests.helpers.support import ROOT, Addresses, environment, listens, wait_until

pytestmark = [pytest.mark.prefect, pytest.mark.long]  # a minute of processor time for one cycle


def flows(checkout: Path, *arguments: str, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "flows", *arguments],
        cwd=checkout,
        env=environment({}),
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == expect, f"{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


async def look(api_url: str) -> tuple[WorkPool, DeploymentResponse, list[Worker]]:
    async with PrefectClient(api_url) as client:
        return (
            await client.read_work_pool("sda"),
            await client.read_deployment_by_name("sda-ingest/sda-ingest"),
            await client.read_workers_for_work_pool("sda"),
        )


async def start_run(api_url: str, settings: dict[str, Any]) -> None:
    async with PrefectClient(api_url) as client:
        deployment = await client.read_deployment_by_name("sda-ingest/sda-ingest")
        await client.create_flow_run_from_deployment(deployment.id, parameters={"settings": settings})


def checkout_in(folder: Path) -> Path:
    """A copy of this checkout."""
    folder.mkdir(parents=True)
    for name in ("flows", "sda_ops", "orchestrator_adapter"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("prefect.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.mark.timeout(400)  # measured: 40 s; the start of a server alone may take 120
def test_up_starts_everything_once_and_down_waits_for_runs_to_drain_and_leaves_no_process(tmp_path: Path) -> None:
    """From any path: pool, deployment and worker are there, a second `up` changes nothing, `down` ends with a report."""
    checkout = checkout_in(tmp_path / "a checkout")
    folder = tmp_path / "installation"
    where = ("--folder", str(folder))
    (port,) = free_ports(1)
    api_url = f"http://127.0.0.1:{port}/api"
    try:
        output = flows(checkout, "up", *where, "--port", str(port))
        pool, deployment, workers = asyncio.run(look(api_url))
        assert pool.type == "process"
        assert deployment.entrypoint == "flows/ingest.py:sda_ingest"
        assert deployment.pull_steps == [
            {"prefect.deployments.steps.set_working_directory": {"directory": str(checkout)}}
        ]
        assert deployment.tags == ["sda", "streaming"]
        assert deployment.global_concurrency_limit is None
        assert deployment.job_variables["env"]["PREFECT_EVENTS_WORKER_MAX_QUEUE_SIZE"] == "10000"
        assert [(worker.name, worker.status.value) for worker in workers] == [(default_worker_name(), "ONLINE")]
        assert f"http://127.0.0.1:{port}/deployments/deployment/{deployment.id}" in output
        assert f"export PREFECT_API_URL={api_url}" in output

        first = {process.pid for process in marked_processes(folder)}
        up = json.loads((folder / "up.json").read_text())
        assert {up["server"]["pid"], up["worker"]["pid"]} < first
        assert "runs already" in flows(checkout, "up", *where)
        assert {process.pid for process in marked_processes(folder)} == first
        assert asyncio.run(look(api_url))[1].id == deployment.id
        assert f"runs on port {port}, not 1;" in flows(checkout, "up", *where, "--port", "1", expect=1)

        addresses, data = Addresses.free(), tmp_path / "data"
        asyncio.run(start_run(api_url, addresses.settings(data)))
        wait_until(lambda: listens(addresses.isl), "the run listens", limit_s=180)
    finally:
        output = flows(checkout, "down", *where)
    assert marked_processes(folder) == []
    assert next(line for line in output.splitlines() if "ended after" in line).startswith("down: the worker")
    report = json.loads((data / "report.json").read_text())
    assert (report["event"], report["cause"], report["exit_code"]) == ("ShutDown", "SIGTERM", 0)
    assert "Completed('ShutDown: SIGTERM" in (folder / "worker.log").read_text()
    assert "nothing was running" in flows(checkout, "down", *where)
