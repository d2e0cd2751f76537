"""Measurements (c) and (d) of ``bench.prefect_cost``: throughput, the cost of a hook, requests of an idle pipeline."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import cycle
from statistics import median
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import httpx
import numpy as np
from prefect.client.orchestration import PrefectClient

from bench.prefect_scene import run, same, spread, taking_all, waiting
from orchestrator_adapter import BuiltGraph, OperatorGraph, WiredEnds, map_items, source_of
from orchestrator_adapter.control_plane.snapshot import View
from orchestrator_adapter.prefect_flow import Reporting
from orchestrator_adapter.prefect_flow.reporting.artifact_publisher import ArtifactPublisher
from orchestrator_adapter.prefect_flow.reporting.decisions import decision_event, log_line
from orchestrator_adapter.prefect_flow.reporting.delivery import Delivery
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from orchestrator_adapter.prefect_flow.reporting.reporter import Reporter
from orchestrator_adapter.resilience.retry import RetryDisposition, RetryOk
from orchestrator_adapter.supervision.events import Decided, Exited, Restarted, Spawned
from orchestrator_adapter.supervision.task_exit import Errored
from orchestrator_adapter.testing import chain

OFTEN = Reporting(status_every=timedelta(seconds=1), look_every=timedelta(seconds=1))
SETTLED_S = 5.0  # until artifacts and connections exist, and the start has been reported and read back


# (c) Throughput with reporting over throughput without.


@dataclass
class Flow:
    """Items that reached the sink in an interval, and its seconds: wall clock, CPU, CPU of the loop's thread."""

    items: int
    wall_s: float
    cpu_s: float
    loop_cpu_s: float


async def bench_throughput(rounds: int, *, seconds: float) -> None:
    """(c) the same graph with and without reporting, in turns."""
    candidates = {"off": None, "default options": Reporting(), "every second": OFTEN}
    measured: dict[str, list[Flow]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name in list(candidates)[:: -1 if number % 2 else 1]:
            gc.collect()
            flow = await measure_flow(seconds if number else 1.0, candidates[name])
            if number:
                measured[name].append(flow)
    off = measured.pop("off")
    rate = median(flow.items / flow.wall_s for flow in off)
    print(
        f"(c) source -> 3 maps -> sink, {rate / 1e6:.2f} million items/s without Prefect; {rounds} rounds of {seconds:g} s each way;"
        " throughput with reporting over without  (wanted: at least 0.98)"
    )
    for name, flows in measured.items():
        print(f"  {name}")
        compare(flows, off)
        beside, alone = (median((flow.cpu_s - flow.loop_cpu_s) / flow.wall_s for flow in them) for them in (flows, off))
        print(f"    CPU beside that thread, of a core: {beside:.2%}, without Prefect {alone:.2%}")


async def bench_slices(pairs: int, *, seconds: float) -> None:
    """(c) again, less sensitive to other load: in one flow the reporter pauses in every other slice."""
    refresh, look = ArtifactPublisher.refresh, Reporter._check_flow_run
    silent = False
    slices: dict[bool, list[Flow]] = {False: [], True: []}

    async def refresh_or_not(publisher: ArtifactPublisher, client: PrefectClient, view: View) -> RetryDisposition[Any]:
        return RetryOk(None) if silent else await refresh(publisher, client, view)

    async def look_or_not(reporter: Reporter, client: PrefectClient) -> None:
        if not silent:
            await look(reporter, client)

    async def measure(now: Callable[[], Flow]) -> None:
        nonlocal silent
        for number in range(2 * pairs):
            silent = number % 4 in {1, 2}
            await asyncio.sleep(0.1)  # requests that were sent are answered
            slices[silent].append(await between(now, seconds))

    with (
        patch.object(ArtifactPublisher, "refresh", refresh_or_not),
        patch.object(Reporter, "_check_flow_run", look_or_not),
    ):
        await flowing(OFTEN, measure)
    print(
        f"  the same in one flow, whose reporter pauses in every other slice of {seconds:g} s, {pairs} pairs: every second over paused"
    )
    compare(slices[False], slices[True])


def compare(flows: Sequence[Flow], others: Sequence[Flow]) -> None:
    """Print the ratio of the two throughputs, pair by pair."""
    for what, spent in {
        "items a second": "wall_s",
        "items a CPU second of the process": "cpu_s",
        "items a CPU second of the data plane's thread": "loop_cpu_s",
    }.items():
        ratios = [
            (flow.items / getattr(flow, spent)) / (other.items / getattr(other, spent))
            for flow, other in zip(flows, others, strict=True)
        ]
        low, high = np.percentile(ratios, [25, 75])
        print(f"    {what:46} {spread(ratios)}, half of them {low:.3f} … {high:.3f}")


async def measure_flow(seconds: float, reporting: Reporting | None) -> Flow:
    """Measure the steady state for so many seconds."""
    measured: list[Flow] = []

    async def measure(now: Callable[[], Flow]) -> None:
        measured.append(await between(now, seconds))

    await flowing(reporting, measure)
    return measured[0]


async def between(now: Callable[[], Flow], seconds: float) -> Flow:
    """What flows in the next ``seconds``."""
    before = now()
    await asyncio.sleep(seconds)
    after = now()
    return Flow(
        after.items - before.items,
        after.wall_s - before.wall_s,
        after.cpu_s - before.cpu_s,
        after.loop_cpu_s - before.loop_cpu_s,
    )


async def flowing(
    reporting: Reporting | None, measure: Callable[[Callable[[], Flow]], Coroutine[Any, Any, None]]
) -> None:
    """Run the graph, and ``measure`` in its steady state, with a function that returns the totals."""
    taken = 0

    async def sink(ends: WiredEnds) -> None:
        nonlocal taken
        async for batch in ends.receiver.batches():
            taken += len(batch)

    def now() -> Flow:
        return Flow(taken, time.perf_counter(), time.process_time(), time.thread_time())

    async def during(built: BuiltGraph, _flow_run_id: UUID | None) -> None:
        await asyncio.sleep(SETTLED_S if reporting is not None else 1.0)
        await measure(now)
        built.request_shutdown("measured")

    graph = chain(source_of(cycle(range(100_000))), *[map_items(same)] * 3, sink, capacity=1_024, name="throughput")
    await run(graph, reporting=reporting, during=during)


# (d) What a hook costs the data plane's loop, and an idle pipeline the server.


SPAWNED = Spawned("work", 2, "operator", ("source",), Restarted("work", 2, "ConnectionError: …", 0.0, True, 0.5))  # noqa: FBT003 - as it comes
EXITED = Exited("work", 1, Errored(ConnectionError("the partner hung up")), 0.5)
DECIDED = Decided(
    "restart", {"operator": "work", "instance": 2, "cause": "ConnectionError: …", "charged": True, "backoff_s": 0.5}
)


def identity() -> RunIdentity:
    return RunIdentity("bench", "bench", uuid4(), "brave-bench", uuid4())


def bench_hooks(calls: int) -> None:
    """(d) the cost of a hook on the loop, and of its processing on the reporter's thread."""

    async def hooked(pause_s: float, calls: int, record: Spawned | Exited | Decided) -> list[float]:
        reporter = Reporter(identity(), OperatorGraph("bench"), Reporting(), on_cancel=print)
        there = asyncio.new_event_loop()
        thread = threading.Thread(target=there.run_forever)
        thread.start()
        reporter._loop = there
        hook, costs = reporter._note, []
        for _ in range(calls):
            if pause_s:
                await asyncio.sleep(pause_s)
                reporter._wakeup_sent = False  # the thread has emptied the inbox
            started = time.perf_counter_ns()
            hook(record)
            costs.append((time.perf_counter_ns() - started) / 1e3)
            reporter._inbox.clear()
        there.call_soon_threadsafe(there.stop)
        thread.join()
        there.close()
        return costs

    print(f"(d) a hook on the loop, us (median, and 99 of 100 are below), {calls:,} calls")
    records: dict[str, Spawned | Exited | Decided] = {"spawn": SPAWNED, "exit": EXITED, "decision": DECIDED}
    for name, record in records.items():
        busy = asyncio.run(hooked(0, calls, record))
        single = asyncio.run(hooked(0.002, calls // 20, record))
        print(
            f"  {name:9} to a thread that is awake {median(busy):.1f} ({np.percentile(busy, 99):.1f}),"
            f" one that wakes it {median(single):.1f} ({np.percentile(single, 99):.1f})"
        )
    delivery = Delivery(identity(), queue=1_000, monotonic=time.monotonic)
    at = datetime.now(UTC)
    who = identity()
    event = decision_event(who, DECIDED, at)

    def note_restart() -> None:
        for record in (EXITED, DECIDED, SPAWNED, DECIDED):
            delivery.add(record, time.time_ns())

    made: dict[str, Callable[[], object]] = {
        "a decision's event": lambda: decision_event(who, DECIDED, at),
        "its line in the log": lambda: log_line(who, DECIDED, at),
        "the event as JSON": lambda: json.dumps(event),
        "a restart in all: exit, two decisions, spawn": note_restart,
    }
    delivery.add(Spawned("source", 1, "source", (), None), time.time_ns())
    delivery.add(Spawned("work", 1, "operator", ("source",), None), time.time_ns())
    print("  on the reporter's thread, us each")
    for name, make in made.items():
        costs = []
        for _ in range(calls // 20):
            started = time.perf_counter_ns()
            make()
            costs.append((time.perf_counter_ns() - started) / 1e3)
        print(f"    {name}: {median(costs):.0f}  [{min(costs):.0f} … {np.percentile(costs, 99):.0f}]")


async def bench_idle(seconds: float) -> None:
    """(d) the requests of an idle pipeline."""
    requests: Counter[str] = Counter()
    send: Callable[[httpx.AsyncHTTPTransport, httpx.Request], Awaitable[httpx.Response]]
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def counted(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        path = "/".join(part if len(part) < 32 else "…" for part in request.url.path.split("/"))
        requests[f"{request.method} {path}"] += 1
        return await send(self, request)

    async def during(built: BuiltGraph, _flow_run_id: UUID | None) -> None:
        await asyncio.sleep(8.0)  # the start has been reported, and read back
        requests.clear()
        spent = time.process_time()
        await asyncio.sleep(seconds)
        seen.update(requests)
        cpu.append(time.process_time() - spent)
        built.request_shutdown("counted")

    seen: Counter[str] = Counter()
    cpu: list[float] = []
    graph = chain(waiting(), *[map_items(same)] * 3, taking_all(), name="idle")
    with patch.object(httpx.AsyncHTTPTransport, "handle_async_request", counted):
        await run(graph, reporting=Reporting(), during=during)
    a_minute = {what: number * 60 / seconds for what, number in seen.items()}
    print(
        f"  an idle pipeline of 5 operators, default options: {sum(a_minute.values()):.0f} requests a minute, {cpu[0] / seconds:.2%} of a core"
    )
    for what, number in sorted(a_minute.items(), key=lambda item: -item[1]):
        print(f"    {number:5.1f}  {what}")
