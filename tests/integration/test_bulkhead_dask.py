"""A bulkhead's workers on a Dask cluster of two processes, which connect over TLS, as task runs on a Prefect server."""

from __future__ import annotations

import asyncio
import os
import signal
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest
from distributed import LocalCluster
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.context import FlowRunContext

from orchestrator_adapter.bulkhead import BulkheadStatistics, Network
from orchestrator_adapter.prefect_flow.workers import dask_launcher
from tests.helpers.running import eventually
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import at, bulkhead

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


async def until(flow_run_id: UUID, *wanted: tuple[str, str]) -> None:
    """Wait until task runs with these names have these states."""
    async with get_client() as client:

        async def look() -> set[tuple[str, str]]:
            runs = await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))
            return {(run.name, run.state.type.value) for run in runs if run.state is not None}

        await eventually(look, f"task runs {wanted}", holds={*wanted}.issubset)


async def test_workers_on_a_dask_cluster_survive_a_kill_and_a_hang_and_are_task_runs(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    """Two Dask processes answer; one is killed and one hangs. No call is lost, and the lost worker's task run has crashed."""
    ended: list[tuple[UUID, BulkheadStatistics]] = []

    @flow(persist_result=False)
    async def remote() -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        launcher = dask_launcher(cluster.scheduler_address, network=Network("127.0.0.1"))
        async with bulkhead(workers=2, launcher=launcher, answer_within=timedelta(seconds=15)) as pool:
            pids = pool.statistics().pids
            assert set(pids.values()) == {worker.pid for worker in cluster.workers.values()}
            await until(context.flow_run.id, ("toy worker-1", "RUNNING"), ("toy worker-2", "RUNNING"))
            sent = np.arange(100_000.0)
            calls = [asyncio.create_task(pool.call("double", {"x": sent * n})) for n in range(20)]
            await asyncio.sleep(0)
            os.kill(pids[1], signal.SIGKILL)
            answers = await asyncio.gather(*calls)
            assert all(np.array_equal(answer["x"], 2 * sent * n) for n, answer in enumerate(answers))
            assert (await pool.call("hang once", at(tmp_path / "hung")))["survived"]
            ended.append((context.flow_run.id, pool.statistics()))

    await remote()
    ((flow_run_id, figures),) = ended
    assert figures.balanced
    assert (figures.hung, figures.lost, figures.answered) == (1, 0, 21)
    await until(flow_run_id, ("toy worker-1", "CRASHED"))
