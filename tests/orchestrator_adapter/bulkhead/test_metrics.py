"""A bulkhead's figures on the control plane of the run that it belongs to."""

from __future__ import annotations

import asyncio
import os
import signal

from orchestrator_adapter.bulkhead import Rejection
from orchestrator_adapter.process import Pipeline, run_pipeline
from orchestrator_adapter.runtime.built_graph import BuiltGraph
from orchestrator_adapter.testing import CollectSink, ListSource, UntilShutdown, chain
from tests.helpers.control_plane import ANY, fetch, logged, value
from tests.helpers.running import eventually
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import bulkhead, numbers
from tests.orchestrator_adapter.bulkhead.waiting import in_flight, until_replaced


async def test_workers_calls_and_restarts_are_metrics() -> None:
    """One worker of two was killed, two calls were made, and one of them still runs. Every kind of rejection starts at 0."""
    pool = bulkhead(workers=2)
    built: list[BuiltGraph] = []
    pipeline = Pipeline(chain(ListSource([1], UntilShutdown()), CollectSink()), bulkheads=(pool,), control_plane=ANY)
    with logged("orchestrator_adapter.control_plane") as lines:
        running = asyncio.create_task(run_pipeline(pipeline, on_built=built.append))
        await eventually(lambda: lines, "the control plane listens")
        killed = pool.statistics().pids[1]
        os.kill(killed, signal.SIGKILL)
        await until_replaced(pool, killed)
        await pool.call("double", numbers(1))
        call = asyncio.create_task(pool.call("hang", {}))
        await eventually(in_flight(pool, 1), "a worker has the call")
        metrics = (await fetch(f"{lines[0]['url']}/metrics")).text
        call.cancel()
        built[0].request_shutdown("seen")
        await running

    def figure(name: str, **labels: str) -> float:
        return value(metrics, f"bulkhead_{name}", bulkhead="toy", **labels)

    assert (figure("workers"), figure("workers_ready"), figure("exhausted")) == (2, 2, 0)
    assert (figure("calls_waiting"), figure("calls_in_flight"), figure("calls_total")) == (0, 1, 2)
    assert (figure("calls_lost_total"), figure("worker_restarts_total"), figure("workers_hung_total")) == (0, 1, 0)
    assert {kind: figure("rejected_connections_total", kind=kind) for kind in Rejection} == dict.fromkeys(Rejection, 0)
