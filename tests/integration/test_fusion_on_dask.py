"""``sda-fusion`` with orbits computed on a Dask cluster: two processes that connect back over TLS, one of which is killed."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest
from distributed import LocalCluster

from flows.settings.fusion import FusionSettings
from flows.topologies.fusion import fusion_pipeline
from orchestrator_adapter import BuiltGraph
from orchestrator_adapter.prefect_flow import compile_flow, run_flow
from orchestrator_adapter.process.pipeline import Pipeline
from orchestrator_adapter.supervision.events import ShutDown
from tests.helpers.fusion import FusionPlace, conducted_run
from tests.helpers.running import eventually

# `long`: test_bulkhead_dask has the kill of a cluster's process in `make test`.
pytestmark = [
    pytest.mark.prefect,
    pytest.mark.long,
    pytest.mark.usefixtures("prefect_server"),
    pytest.mark.timeout(300),
]


async def test_correlations_are_complete_although_a_process_of_the_cluster_is_killed(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    """The propagator runs there by settings alone; every observation of the track has one correlation in the audit."""
    place = FusionPlace.free(tmp_path)
    options, tracked = place.prepare_a_busy_worker(seed=7)
    options["propagator"] = {
        "workers": 2,
        "cluster": {"kind": "dask", "address": cluster.scheduler_address, "host": "127.0.0.1"},
    }
    pipelines: list[Pipeline] = []

    def fusion(settings: FusionSettings) -> Pipeline:
        pipelines.append(fusion_pipeline(settings))
        return pipelines[0]

    async def conduct(graph: BuiltGraph) -> None:
        (pool,) = pipelines[0].bulkheads
        await eventually(lambda: pool.statistics().answered > 0, "orbits from the cluster")
        pids = set(pool.statistics().pids.values())
        assert pids == {worker.pid for worker in cluster.workers.values()}
        os.kill(min(pids), signal.SIGKILL)
        await eventually(lambda: pool.statistics().restarts == 1 and pool.statistics().alive == 2, "its replacement")
        await eventually(lambda: graph.ledger().ingested == tracked, "the whole track")

    flow = compile_flow("sda-fusion", FusionSettings, fusion, description="sda-fusion, with access to its pipeline")
    outcome = await conducted_run(partial(run_flow, flow, FusionSettings.model_validate(options)), conduct)
    assert isinstance(outcome.event, ShutDown)
    assert (outcome.event.figures.ledger_holds, dict(outcome.event.figures.restarts)) == (True, {})
    assert (pipelines[0].bulkheads[0].statistics().lost, place.observed().total()) == (0, tracked)
    assert place.correlated() == place.observed()
