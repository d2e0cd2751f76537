"""A pipeline whose operator computes in a bulkhead, without Prefect, from start to end."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from orchestrator_adapter import OperatorGraph, WiredEnds, source_of
from orchestrator_adapter.bulkhead import Bulkhead, BulkheadCannotStart
from orchestrator_adapter.process.pipeline import Pipeline, run_pipeline
from orchestrator_adapter.process.report import ExitCode
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import CollectSink
from tests.helpers.running import eventually
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import NeverReady, bulkhead


class Doubles:
    """An operator that has each batch doubled by a worker."""

    def __init__(self, pool: Bulkhead) -> None:
        self.pool = pool

    async def __call__(self, ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches():
            answer = await self.pool.call("double", {"x": np.array(batch)})
            await ends.emit(answer["x"].tolist())


async def paced(items: int, until: asyncio.Event) -> AsyncIterator[int]:
    """At least ``items`` numbers, and more until the event is set."""
    number = 0
    while number < items or not until.is_set():
        yield number
        number += 1
        await asyncio.sleep(0)


def doubling(pool: Bulkhead, source: AsyncIterator[int] | range, sink: CollectSink) -> OperatorGraph:
    graph = OperatorGraph("doubling")
    numbers, double = graph.add_source("numbers", source_of(source)), graph.add_operator("double", Doubles(pool))
    graph.connect(numbers, double, 64)
    graph.connect(double, graph.add_sink("keep", sink), 64)
    return graph


# `long`: test_fusion_workers_killed has the same for the propagator's workers in `make test`.
@pytest.mark.long
async def test_kill_9_at_random_leaves_the_ledger_balanced_and_the_results_complete() -> None:
    """Workers are killed repeatedly: every number arrives once, doubled, in order, and there is no dead letter."""
    pool, sink, enough = bulkhead(workers=2), CollectSink(), asyncio.Event()
    rng = random.Random(6)

    async def kill() -> None:
        while pool.statistics().restarts < 4:
            await eventually(lambda: pool.statistics().alive == 2, "both are ready", limit_s=60)
            answered = pool.statistics().answered
            await eventually(lambda: pool.statistics().answered > answered + rng.randrange(20), "calls go on")  # noqa: B023 - awaited here
            os.kill(rng.choice(list(pool.statistics().pids.values())), signal.SIGKILL)
            await eventually(lambda: pool.statistics().alive < 2, "the loss is detected")
        enough.set()

    killing: list[asyncio.Task[None]] = []
    outcome = await run_pipeline(
        Pipeline(doubling(pool, paced(1_000, enough), sink), bulkheads=(pool,)),
        on_built=lambda _: killing.append(asyncio.create_task(kill())),
    )
    await killing[0]
    assert isinstance(outcome.event, events.AllOk)
    assert outcome.exit_code is ExitCode.OK
    assert outcome.event.figures.ledger_holds
    assert outcome.event.figures.ledger.dead_lettered == 0
    assert sink.items == [2 * number for number in range(len(sink.items))]
    assert len(sink.items) >= 1_000
    assert pool.statistics().balanced


async def test_a_bulkhead_that_cannot_start_raises_before_the_graph_runs(tmp_path: Path) -> None:
    """The OSError names it. No item is read and no report written, and the bulkhead that had started is stopped."""
    good, bad = bulkhead(), bulkhead(name="bad", target=f"{NeverReady.__module__}:NeverReady")
    sink = CollectSink()
    report = tmp_path / "report.json"
    with pytest.raises(BulkheadCannotStart, match=r"bulkhead 'bad': worker-1 did not start: .*no library for that"):
        await run_pipeline(Pipeline(doubling(good, range(5), sink), report=report, bulkheads=(good, bad)))
    assert not sink.items
    assert not await asyncio.to_thread(report.exists)
    assert good.statistics().alive == 0


async def test_workers_run_until_the_graph_has_drained() -> None:
    """After a shutdown request every ingested item is still doubled and written; then all workers have ended."""
    pool, sink = bulkhead(), CollectSink()
    graph = doubling(pool, paced(1, asyncio.Event()), sink)

    async def stop(built: object) -> None:
        await eventually(lambda: len(sink.items) > 50, "items arrive")
        built.request_shutdown("enough")  # type: ignore[attr-defined] # a built graph

    stopping: list[asyncio.Task[None]] = []
    outcome = await run_pipeline(
        Pipeline(graph, bulkheads=(pool,)), on_built=lambda built: stopping.append(asyncio.create_task(stop(built)))
    )
    await stopping[0]
    assert isinstance(outcome.event, events.ShutDown)
    assert outcome.event.figures.ledger_holds
    assert outcome.event.figures.undelivered == 0
    assert sink.items == [2 * number for number in range(len(sink.items))]
    assert pool.statistics().alive == 0
