"""A bulkhead's workers as task runs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from prefect import flow, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import TaskRun
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import BaseModel

from orchestrator_adapter import OperatorGraph, WiredEnds, source_of
from orchestrator_adapter.bulkhead import Bulkhead, BulkheadCannotStart, Invitation, Network
from orchestrator_adapter.bulkhead.launchers.local import LocalWorker
from orchestrator_adapter.prefect_flow import compile_flow, run_flow
from orchestrator_adapter.prefect_flow.workers import (
    TaskRunnerLauncher,
    TaskRunWorker,
    dask_launcher,
    process_pool,
    processes_of,
    ray_launcher,
)
from orchestrator_adapter.primitives.errors import MissingExtra
from orchestrator_adapter.process.pipeline import Pipeline
from orchestrator_adapter.process.report import ExitCode
from orchestrator_adapter.testing import CollectSink
from tests.helpers.running import eventually
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import TOY, bulkhead, numbers

HERE = Network("127.0.0.1")
INVITATION = Invitation("{toy}", 1, 1, TOY, b"t" * 16, b"k" * 32, 100, path="/nowhere")


async def task_runs(flow_run_id: UUID, *states: tuple[str, str]) -> dict[str, TaskRun]:
    """The task runs of a flow run by name, once those named have these states."""
    async with get_client() as client:

        async def look() -> list[TaskRun]:
            return await client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id])))

        def holds(runs: list[TaskRun]) -> bool:
            return {*states} <= {(run.name, run.state.type.value) for run in runs if run.state is not None}

        runs = await eventually(look, f"task runs in states {states}", holds=holds)
        return {run.name: run for run in runs}


async def in_a_flow_run(body: Callable[[], Awaitable[Any]]) -> Any:
    """Run ``body`` in a flow run, and return its result."""
    returned = []

    @flow(persist_result=False)
    async def toy() -> None:
        returned.append(await body())

    await toy()
    return returned[0]


class NoSettings(BaseModel):
    """Settings without a field."""


class DoublesAndKills:
    """An operator that doubles its items on a bulkhead, and kills the first worker once."""

    def __init__(self, pool: Bulkhead) -> None:
        self.pool = pool
        self.flow_run_id: UUID | None = None

    async def __call__(self, ends: WiredEnds) -> None:
        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        self.flow_run_id = context.flow_run.id
        pid = self.pool.statistics().pids[1]
        await task_runs(self.flow_run_id, ("propagator worker-1", "RUNNING"), ("propagator worker-2", "RUNNING"))
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: self.pool.statistics().pids.get(1, pid) != pid, "another worker is ready", limit_s=60)
        async for batch in ends.receiver.batches():
            answer = await self.pool.call("double", {"x": np.array(batch, dtype=np.float64)})
            await ends.emit(answer["x"].tolist())


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_server")
async def test_each_worker_of_a_compiled_flow_is_a_task_run_and_a_killed_one_gets_a_successor() -> None:
    """Task runs are Running while workers live; a killed one is Crashed with the reason; the others end Completed."""
    pool = bulkhead(name="propagator", workers=2)
    operator, sink = DoublesAndKills(pool), CollectSink()

    def pipeline(_: NoSettings) -> Pipeline:
        graph = OperatorGraph("doubling")
        vertices = (graph.add_source("numbers", source_of(range(5))), graph.add_operator("double", operator))
        graph.connect(*vertices, 4)
        graph.connect(vertices[1], graph.add_sink("keep", sink), 4)
        return Pipeline(graph, bulkheads=(pool,))

    outcome = await run_flow(compile_flow("doubling", NoSettings, pipeline, description="Doubles."), NoSettings())
    assert outcome.exit_code is ExitCode.OK
    assert sorted(sink.items) == [0, 2, 4, 6, 8]
    assert operator.flow_run_id is not None
    runs = await task_runs(
        operator.flow_run_id,
        ("propagator worker-1", "CRASHED"),
        ("propagator worker-1 #2", "COMPLETED"),
        ("propagator worker-2", "COMPLETED"),
    )
    crashed = runs["propagator worker-1"].state
    assert crashed is not None
    assert (crashed.message or "").startswith("the worker was lost: ")
    assert len([name for name in runs if name.startswith("propagator")]) == 3


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_server")
async def test_without_an_api_that_answers_a_worker_is_a_plain_process(caplog: pytest.LogCaptureFixture) -> None:
    """It starts and answers calls, and the log has the reason."""

    async def body() -> float:
        with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
            launcher = TaskRunnerLauncher()
        async with bulkhead(launcher=launcher) as pool:
            return float((await pool.call("double", numbers(4)))["x"][0])

    with caplog.at_level(logging.WARNING, "orchestrator_adapter.prefect"):
        assert await in_a_flow_run(body) == 8
    assert "toy worker-1 runs as a plain process, not as a task run: Prefect's API does not answer: " in caplog.text


class Full(ThreadPoolTaskRunner):  # type: ignore[type-arg] # its results are not used
    """A task runner without free capacity."""

    def submit(self, *args: Any, **options: Any) -> Any:
        raise RuntimeError("no place left")


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_server")
async def test_a_full_task_runner_is_an_error_at_the_start_and_not_afterwards() -> None:
    """The first worker raises ``BulkheadCannotStart`` that names the task runner. A successor runs as a plain process."""
    calls: list[bool] = []

    def pool_then_full() -> Any:
        calls.append(True)
        return process_pool() if len(calls) == 1 else Full()

    async def body() -> str:
        with pytest.raises(BulkheadCannotStart) as raised:
            await bulkhead(launcher=TaskRunnerLauncher(Full)).__aenter__()
        async with bulkhead(launcher=TaskRunnerLauncher(pool_then_full)) as pool:
            before = pool.statistics().pids[1]
            os.kill(before, signal.SIGKILL)
            assert (await pool.call("double", numbers(1)))["x"] == 2
            assert pool.statistics().restarts == 1
        return str(raised.value)

    assert "Full could not place it: no place left" in await in_a_flow_run(body)


async def test_outside_a_flow_run_its_workers_are_plain_processes() -> None:
    """No server is called, and none is started."""
    launcher = TaskRunnerLauncher()
    worker = await asyncio.to_thread(launcher.launch, INVITATION)
    assert isinstance(worker, LocalWorker)
    worker.kill(None)
    worker.stopped("the test is over")
    async with bulkhead(launcher=TaskRunnerLauncher()) as pool:
        assert (await pool.call("double", numbers(1)))["x"] == 2


@pytest.mark.parametrize(("launcher", "extra"), [(dask_launcher, "dask"), (ray_launcher, "ray")])
def test_a_missing_extra_is_named(launcher: Callable[..., object], extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the command that installs it."""
    monkeypatch.setitem(sys.modules, f"prefect_{extra}", None)
    monkeypatch.setitem(sys.modules, f"prefect_{extra}.task_runners", None)
    with pytest.raises(MissingExtra, match=rf"need an extra: pip install 'sda-stream-orchestrator\[{extra}\]'"):
        launcher("127.0.0.1:8786", network=HERE)


def test_the_processes_of_a_process_pools_task_runner_are_found() -> None:
    """The way is not documented by Prefect or Python. Without it, a worker that never connects could not be killed."""
    with process_pool() as runner:
        assert runner._executor is not None
        pid = runner._executor.submit(os.getpid).result()
        assert [process.pid for process in processes_of(runner)] == [pid]
    assert processes_of(ThreadPoolTaskRunner()) == []


def test_a_pool_process_ignores_the_signals_that_stop_the_flow() -> None:
    """SIGTERM and SIGINT are ignored and not only blocked."""
    with process_pool() as runner:
        assert runner._executor is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            assert runner._executor.submit(signal.getsignal, number).result() is signal.SIG_IGN
        blocked = runner._executor.submit(signal.pthread_sigmask, signal.SIG_BLOCK, set()).result()
        assert not blocked & {signal.SIGTERM, signal.SIGINT}


def test_a_future_without_done_counts_as_alive_and_is_not_cancelled() -> None:
    """As on Ray: an object reference has neither ``done`` nor ``cancel``."""

    class Future:
        wrapped_future = object()
        task_run_id = UUID(int=1)

    worker = TaskRunWorker("toy worker-1", ThreadPoolTaskRunner(), Future())  # type: ignore[arg-type] # only the attributes that are used
    assert worker.is_alive()
    worker.kill(None)
