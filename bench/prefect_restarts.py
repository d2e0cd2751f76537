"""Measurements (a), (b) and (e) of ``bench.prefect_cost``: start, memory over many restarts, latency of a restart."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from statistics import median
from unittest.mock import patch
from uuid import UUID

import numpy as np
from prefect import get_client

from bench.prefect_scene import (
    PATIENT,
    count_task_runs,
    peak_mib,
    resident_mib,
    run,
    same,
    spread,
    spread_ms,
    taking_all,
    waiting,
)
from orchestrator_adapter import BuiltGraph, Factory, OperatorGraph, RestartPolicy, WiredEnds, map_items
from orchestrator_adapter.prefect_flow import Reporting
from orchestrator_adapter.prefect_flow.reporting.reporter import Reporter
from orchestrator_adapter.testing import chain
from tests.helpers.prefect_server import PrefectServer

OPERATORS = 100
RESTARTS_PER_S = 50
SAMPLES = 10  # of the memory, along the restarts
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


# (a) Many operators start.


@dataclass
class Start:
    """The steps of a start, in ``perf_counter`` seconds."""

    called: float = 0.0
    built: float = 0.0
    last_runs: float = 0.0
    all_shown: float | None = None
    asked: float = 0.0
    over: float = 0.0


async def bench_start(rounds: int) -> None:
    """(a) 100 operators, from ``on_built`` until the last one runs, and until the server shows all of them Running."""
    with_prefect: list[Start] = []
    without: list[Start] = []
    for _ in range(rounds):
        without.append(await start_many(None))
        with_prefect.append(await start_many(PATIENT))
    shown = [start.all_shown - start.built for start in with_prefect if start.all_shown is not None]
    print(f"(a) {OPERATORS} operators start, {rounds} rounds  (wanted: under 2 s)")
    print(
        f"  until the last one runs: {spread_ms([start.last_runs - start.built for start in with_prefect])} under Prefect"
    )
    print(f"                           {spread_ms([start.last_runs - start.built for start in without])} without")
    print(f"  until the server shows all of them Running: {spread_ms(shown)}")
    print(
        f"  from the call of the flow to the graph, built: {spread_ms([start.built - start.called for start in with_prefect])}"
    )
    ends = [start.over - start.asked for start in with_prefect]
    print(f"  from the request to stop until the flow has returned, everything reported: {spread_ms(ends)}")


async def start_many(reporting: Reporting | None) -> Start:
    """Start all operators once."""
    start, running = Start(), [0]
    all_run = asyncio.Event()

    def noting(factory: Factory) -> Factory:
        async def run(ends: WiredEnds) -> None:
            running[0] += 1
            if running[0] == OPERATORS:
                start.last_runs = time.perf_counter()
                all_run.set()
            await factory(ends)

        return run

    async def wait(ends: WiredEnds) -> None:
        await ends.shutdown.wait()

    async def during(built: BuiltGraph, flow_run_id: UUID | None) -> None:
        await all_run.wait()
        if flow_run_id is not None:
            async with get_client() as client:
                while await count_task_runs(client, flow_run_id, "RUNNING") < OPERATORS:  # noqa: ASYNC110 - a server
                    await asyncio.sleep(0.02)
            start.all_shown = time.perf_counter()
        start.asked = time.perf_counter()
        built.request_shutdown("seen")

    def mark() -> None:
        start.built = time.perf_counter()

    maps = [noting(map_items(same)) for _ in range(OPERATORS - 2)]
    graph = chain(noting(wait), *maps, noting(taking_all()), name="hundred")
    start.called = time.perf_counter()
    await run(graph, reporting=reporting, during=during, on_built=mark)
    start.over = time.perf_counter()
    return start


# (b) One operator restarts for long.


def bench_restarts(server: PrefectServer, restarts: int, *, trace: bool) -> None:
    """(b) resident memory during many restarts of one operator, with Prefect and without, each in its own process."""
    print(f"(b) one operator restarted {restarts:,} times, about {RESTARTS_PER_S} a second")
    for how in ("plain", "prefect"):
        command = [sys.executable, "-m", "bench.prefect_cost", "--child", how, "--restarts", str(restarts)]
        sys.stdout.flush()
        subprocess.run(command + ["--trace"] * trace, env=dict(server.environment), check=True)


async def restart_often(restarts: int, *, reporting: Reporting | None, trace: bool) -> None:
    """In a separate process: fail so often; print the memory, and what the server shows."""
    memory: list[tuple[int, float, str]] = []
    before: list[tracemalloc.Snapshot] = []
    every = max(1, restarts // SAMPLES)
    done = asyncio.Event()
    flow_run: list[UUID | None] = []
    reporters: list[Reporter] = []
    start = Reporter.start

    def collecting_start(reporter: Reporter, built: BuiltGraph) -> None:
        reporters.append(reporter)
        start(reporter, built)

    async def flaky(ends: WiredEnds) -> None:
        failed = ends.instance - 1
        if failed % every == 0:
            memory.append((failed, resident_mib(), holdings(reporters)))
        if trace and failed == restarts // 2:
            before.append(tracemalloc.take_snapshot())
        if failed == restarts:
            done.set()
            await taking_all()(ends)
            return
        await asyncio.sleep(1 / RESTARTS_PER_S)
        raise ConnectionError(f"no {failed}: the partner hung up")

    async def during(built: BuiltGraph, flow_run_id: UUID | None) -> None:
        flow_run.append(flow_run_id)
        await done.wait()
        if trace:
            after = tracemalloc.take_snapshot().filter_traces(
                [tracemalloc.Filter(inclusive=False, filename_pattern="*tracemalloc*")]
            )
            print(f"  grown since restart {restarts // 2:,}:")
            for line in after.compare_to(before[0], "lineno")[:15]:
                print(f"    {line}")
        built.request_shutdown("enough")

    graph = OperatorGraph("flaky")
    source = graph.add_source("source", waiting())
    operator = graph.add_operator("flaky", flaky, restart_policy=RestartPolicy.always(backoff=None))
    sink = graph.add_sink("sink", taking_all())
    graph.connect(source, operator, 64)
    graph.connect(operator, sink, 64)
    pauses: list[float] = []

    def collecting(phase: str, info: dict[str, int]) -> None:
        if info["generation"] == 2:
            pauses.append(time.perf_counter() if phase == "start" else time.perf_counter() - pauses.pop())

    if trace:
        tracemalloc.start(1)
    started = time.perf_counter()
    with patch.object(Reporter, "start", collecting_start):
        outcome = await run(graph, reporting=reporting, during=during, on_built=lambda: gc.callbacks.append(collecting))
    elapsed_s = time.perf_counter() - started
    at, mib = np.array([(at, mib) for at, mib, _ in memory if at >= restarts / 2]).T
    slope = float(np.polyfit(at, mib, 1)[0]) * 2**10
    print(
        f"  {'under Prefect' if reporting is not None else 'without Prefect'}: {elapsed_s:.1f} s, CPU {time.process_time():.1f} s"
    )
    for failed, mib_now, held in memory:
        print(f"    after {failed:>6,} restarts {mib_now:7.1f} MiB  {held}")
    gc.callbacks.remove(collecting)
    figures = outcome.event.figures
    print(
        f"    {len(pauses)} full garbage collections, the longest {max(pauses, default=0.0) * 1e3:.0f} ms, in which nothing else runs;"
        f" the loop was late by {figures.max_loop_lag_s * 1e3:.0f} ms at most"
    )
    gc.collect()
    print(f"    over, all collected     {resident_mib():7.1f} MiB  (peak {peak_mib():.1f})  {holdings(reporters)}")
    print(f"    slope over the second half: {slope:+.2f} KiB a restart")
    if (flow_run_id := flow_run[0]) is not None:
        async with get_client() as client:
            shown = {
                state: await count_task_runs(client, flow_run_id, state) for state in (*FINAL, "RUNNING", "PENDING")
            }
        print(f"    the server shows {', '.join(f'{count:,} {state}' for state, count in shown.items() if count)}")


def holdings(reporters: Sequence[Reporter]) -> str:
    """What the reporter has in memory now, if there is one."""
    if not reporters:
        return ""
    reporter = reporters[0]
    boxes, task_runs = reporter._delivery._outboxes, reporter._delivery._task_runs
    held = ", ".join(
        f"{kind}s {len(box)} waiting {len(box._recent)} kept {box.delivered} sent {box.dropped} dropped"
        for kind, box in boxes.items()
    )
    return f"inbox {len(reporter._inbox)}, {len(task_runs._ended)} ended not yet shown ({task_runs.evicted} evicted), {held}"


# (e) From a failure to the next instance.


async def bench_restart_latency(server: PrefectServer, rounds: int, *, restarts: int) -> None:
    """(e) from the exception to the next instance's first step: without Prefect, with reporting, with the server killed."""
    latencies: dict[str, list[list[float]]] = {"without Prefect": [], "reporting": [], "server killed": []}
    for _ in range(rounds):
        latencies["without Prefect"] += await restart_latencies(None, [restarts], [])
        on, killed = await restart_latencies(
            Reporting(patience_when_stopped=timedelta(seconds=60)), [restarts, restarts], [server.kill, server.start]
        )
        latencies["reporting"].append(on)
        latencies["server killed"].append(killed)
    print(f"(e) from a failure to the next instance's first step, {rounds} rounds of {restarts} restarts, 100 a second")
    base = [median(values) for values in latencies["without Prefect"]]
    for name, rounds_ in latencies.items():
        every = [value * 1e3 for values in rounds_ for value in values]
        ratios = [median(values) / other for values, other in zip(rounds_, base, strict=True)]
        print(
            f"  {name:16} median {median(every):.3f} ms, 99 of 100 below {np.percentile(every, 99):.2f} ms, max {max(every):.1f} ms;"
            f" a round's median over that without: {spread(ratios)}"
        )


async def restart_latencies(
    reporting: Reporting | None, phases: Sequence[int], between: Sequence[Callable[[], None]]
) -> list[list[float]]:
    """So many restarts in each phase. After each phase, with the operator idle, the next of ``between`` is called."""
    measured: list[list[float]] = [[] for _ in phases]
    failed_at: list[float] = []
    phase, left = 0, 0
    go, rest, over = asyncio.Event(), asyncio.Event(), False

    async def flaky(ends: WiredEnds) -> None:
        nonlocal left
        if failed_at:
            measured[phase].append(time.perf_counter() - failed_at.pop())
        if not left:
            rest.set()
            await go.wait()
            go.clear()
        if over:
            return await taking_all()(ends)
        left -= 1
        await asyncio.sleep(0.01)
        failed_at.append(time.perf_counter())
        raise ConnectionError("the partner hung up")

    async def during(built: BuiltGraph, _flow_run_id: UUID | None) -> None:
        nonlocal phase, left, over
        await rest.wait()
        await asyncio.sleep(1.0)  # the reporter has connected
        for number, restarts in enumerate(phases):
            phase, left = number, restarts
            rest.clear()
            go.set()
            await rest.wait()
            if phase < len(between):
                await asyncio.to_thread(between[phase])
        over = True
        go.set()
        built.request_shutdown("measured")

    graph = OperatorGraph("latency")
    source = graph.add_source("source", waiting())
    operator = graph.add_operator("flaky", flaky, restart_policy=RestartPolicy.always(backoff=None))
    sink = graph.add_sink("sink", taking_all())
    graph.connect(source, operator, 64)
    graph.connect(operator, sink, 64)
    await run(graph, reporting=reporting, during=during)
    return measured
