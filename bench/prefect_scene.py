"""What the measurements of ``bench.prefect_cost`` share: a server, a run under Prefect or without, operators, spreads."""

from __future__ import annotations

import asyncio
import logging
import resource
import tempfile
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any
from uuid import UUID

import psutil
from prefect.client.orchestration import PrefectClient
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_LOGGING_LEVEL, temporary_settings
from pydantic import BaseModel

from flows.local_prefect.processes import free_ports
from orchestrator_adapter import BuiltGraph, Factory, OperatorGraph, WiredEnds
from orchestrator_adapter.prefect_flow import Reporting, compile_flow, run_flow
from orchestrator_adapter.process import Pipeline, RunOutcome, StopRequests, run_pipeline
from tests.helpers.prefect_server import PrefectServer

PATIENT = Reporting(patience_when_stopped=timedelta(seconds=60))


@contextmanager
def a_server(recorder_batch: int) -> Iterator[PrefectServer]:
    """A server with its own folder, which this process uses."""
    settings = {
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": str(recorder_batch),
        "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",
    }
    with tempfile.TemporaryDirectory() as name:
        server = PrefectServer(Path(name), free_ports(1)[0], settings)
        server.start()
        here = {PREFECT_API_URL: server.api_url, PREFECT_HOME: Path(name), PREFECT_LOGGING_LEVEL: "ERROR"}
        try:
            with temporary_settings(here):
                logging.getLogger("prefect").setLevel(logging.ERROR)
                yield server
        finally:
            server.stop()


class Nothing(BaseModel):
    """The settings of a pipeline that has none."""


async def run(
    graph: OperatorGraph,
    *,
    reporting: Reporting | None,
    during: Callable[[BuiltGraph, UUID | None], Coroutine[Any, Any, None]],
    on_built: Callable[[], object] = lambda: None,
) -> RunOutcome:
    """Run it as a flow, or without Prefect if ``reporting`` is None; ``during`` runs concurrently and gets the flow run's id."""
    beside: list[asyncio.Task[None]] = []

    def built(graph: BuiltGraph) -> None:
        context = FlowRunContext.get()
        flow_run = context.flow_run if context is not None else None
        beside.append(asyncio.create_task(during(graph, flow_run.id if flow_run is not None else None)))
        on_built()

    pipeline = Pipeline(graph)
    if reporting is None:
        outcome = await run_pipeline(pipeline, on_built=built, stop=StopRequests())
    else:
        options = reporting
        flow = compile_flow("bench", Nothing, lambda _: pipeline, description="Bench.", reporting=lambda _: options)
        outcome = await run_flow(flow, Nothing(), on_built=built)
    await beside[0]
    return outcome


async def count_task_runs(client: PrefectClient, flow_run_id: UUID, *states: str) -> int:
    """How many task runs of the flow run the server shows in these states."""
    asked = {"flow_run_id": {"any_": [str(flow_run_id)]}, "state": {"type": {"any_": states}}}
    return int((await client.request("POST", "/task_runs/count", json={"task_runs": asked})).json())


# Operators, and how figures are reported.


def same(item: object) -> object:
    return item


def waiting() -> Factory:
    """A source without items."""

    async def run(ends: WiredEnds) -> None:
        await ends.shutdown.wait()

    return run


def taking_all() -> Factory:
    """A sink that discards everything."""

    async def run(ends: WiredEnds) -> None:
        async for _ in ends.receiver.batches():
            pass

    return run


def spread(values: Sequence[float]) -> str:
    return f"{median(values):.3f}  [{min(values):.3f} … {max(values):.3f}]"


def spread_ms(values: Sequence[float]) -> str:
    return f"{median(values) * 1e3:,.0f} ms  [{min(values) * 1e3:,.0f} … {max(values) * 1e3:,.0f}]"


def resident_mib() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
