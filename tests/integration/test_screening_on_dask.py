"""A screening in windows on a Dask cluster: two processes that connect back over TLS, one of which is killed."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from distributed import LocalCluster
from prefect import flow

from orchestrator_adapter.bulkhead import BulkheadStatistics, Network
from orchestrator_adapter.prefect_flow.workers import dask_launcher
from sda_ops.screening.approaches import Screening
from sda_ops.screening.geometry.screen import screen
from sda_ops.screening.workers.windows import screen_in_windows, screening_bulkhead
from tests.sda_ops.screening.made_up import assert_same_screening
from tests.sda_ops.screening.small_catalog import HORIZON, MISS_M, OPTIONS, START_NS, WINDOW, small_catalog

# `long`: test_bulkhead_dask has the kill of a cluster's process in `make test`, and test_windows the same call without a cluster.
pytestmark = [pytest.mark.prefect, pytest.mark.long, pytest.mark.usefixtures("prefect_server")]


async def test_the_list_from_a_cluster_is_that_of_one_process_although_a_worker_is_killed(
    cluster: LocalCluster,
) -> None:
    """The same call with a launcher: both Dask processes are the pool's workers, and one is killed after the first window."""
    objects = small_catalog()
    ended: list[tuple[Screening, set[int], BulkheadStatistics]] = []

    @flow(persist_result=False)
    async def remote() -> None:
        loop = asyncio.get_running_loop()
        launcher = dask_launcher(cluster.scheduler_address, network=Network("127.0.0.1"))
        async with screening_bulkhead(launcher=launcher) as pool:
            pids = set(pool.statistics().pids.values())
            listed = await screen_in_windows(
                pool,
                objects,
                START_NS,
                HORIZON,
                MISS_M,
                options=OPTIONS,
                window=WINDOW,
                on_progress=lambda done, *_: loop.call_soon(os.kill, min(pids), signal.SIGKILL) if done == 1 else None,
            )
            ended.append((listed, pids, pool.statistics()))

    started = {worker.pid for worker in cluster.workers.values()}
    await remote()
    ((listed, pids, figures),) = ended
    assert pids == started
    expected = screen(objects, START_NS, HORIZON, MISS_M, options=OPTIONS)
    assert_same_screening(listed, expected, statistics=False)
    assert (figures.calls, figures.answered, figures.lost) == (3, 3, 0)
