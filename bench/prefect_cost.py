"""What it costs to tell a real Prefect server: starting, restarting for long, throughput, a hook's price, a server that dies.

Prints and judges nothing. The server runs on this machine and takes its share of the same cores, as it would under
``make up``; figures with it against figures without are ratios of runs that took turns in one process, medians with the
range beside them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid4

import httpx
import numpy as np
import psutil
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.context import FlowRunContext
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, PREFECT_LOGGING_LEVEL, temporary_settings
from pydantic import BaseModel

from flows.local_prefect.processes import free_ports
from orchestrator_adapter import BuiltGraph, Factory, OperatorGraph, RestartPolicy, WiredEnds, map_items, source_of
from orchestrator_adapter.control_plane.snapshot import View
from orchestrator_adapter.prefect_flow import Reporting, compile_flow, run_flow
from orchestrator_adapter.prefect_flow.reporting.artifact_publisher import ArtifactPublisher
from orchestrator_adapter.prefect_flow.reporting.decisions import decision_event, log_line
from orchestrator_adapter.prefect_flow.reporting.delivery import Delivery
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from orchestrator_adapter.prefect_flow.reporting.reporter import Reporter
from orchestrator_adapter.process import Pipeline, RunOutcome, run_pipeline
from orchestrator_adapter.resilience.retry import RetryDisposition, RetryOk
from orchestrator_adapter.supervision.events import Decided, Exited, Restarted, Spawned
from orchestrator_adapter.supervision.task_exit import Errored
from orchestrator_adapter.testing import chain
from tests.helpers.prefect_server import PrefectServer

OPERATORS = 100
RESTARTS_PER_S = 50
SAMPLES = 10  # of the memory, along the restarts
OFTEN = Reporting(status_every=timedelta(seconds=1), look_every=timedelta(seconds=1))
PATIENT = Reporting(patience_when_stopped=timedelta(seconds=60))
SETTLED_S = 5.0  # artifacts are made, connections are open, the start is told and read back
FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few and short rounds, to see that it works")
    parser.add_argument("--only", default="abcde", help="letters of the measurements (default: abcde)")
    parser.add_argument("--restarts", type=int, help="of (b) (default: 1000)")
    parser.add_argument("--rounds", type=int, help="rounds of (c) (default: 8)")
    parser.add_argument("--trace", action="store_true", help="in (b), the lines that hold what has grown (tracemalloc)")
    parser.add_argument(
        "--recorder-batch",
        type=int,
        default=100,
        help="task runs that the server records together (default: 100, as `make up` sets it; Prefect's own: 1)",
    )
    parser.add_argument("--child", choices=["plain", "prefect"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    quick = args.quick
    restarts = args.restarts or (200 if quick else 1_000)
    logging.getLogger("orchestrator_adapter").setLevel(logging.ERROR)
    logging.getLogger("orchestrator_adapter.supervisor").setLevel(logging.CRITICAL)
    if args.child is not None:
        asyncio.run(restart_often(restarts, reporting=PATIENT if args.child == "prefect" else None, trace=args.trace))
        return
    with a_server(args.recorder_batch) as server:
        print(f"cores: {os.cpu_count()}, shared by the pipeline, the Prefect server and whatever else runs here")
        if "a" in args.only:
            asyncio.run(bench_start(3 if quick else 7))
        if "b" in args.only:
            bench_restarts(server, restarts, trace=args.trace)
        if "c" in args.only:
            asyncio.run(bench_throughput(args.rounds or (2 if quick else 8), seconds=1.0 if quick else 3.0))
            asyncio.run(bench_slices(4 if quick else 40, seconds=2.0))
        if "d" in args.only:
            bench_hooks(2_000 if quick else 20_000)
            asyncio.run(bench_idle(30.0 if quick else 60.0))
        if "e" in args.only:
            asyncio.run(bench_restart_latency(server, 1 if quick else 5, restarts=50 if quick else 200))


@contextmanager
def a_server(recorder_batch: int) -> Iterator[PrefectServer]:
    """A server in a folder of its own, and this process pointed at it."""
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
    """Run it as a flow, or as it is if there is no ``reporting``; ``during`` runs beside it and is told the flow run."""
    beside: list[asyncio.Task[None]] = []

    def built(graph: BuiltGraph) -> None:
        context = FlowRunContext.get()
        flow_run = context.flow_run if context is not None else None
        beside.append(asyncio.create_task(during(graph, flow_run.id if flow_run is not None else None)))
        on_built()

    pipeline = Pipeline(graph)
    if reporting is None:
        outcome = await run_pipeline(pipeline, on_built=built, handle_signals=False)
    else:
        options = reporting
        flow = compile_flow("bench", Nothing, lambda _: pipeline, description="Bench.", reporting=lambda _: options)
        outcome = await run_flow(flow, Nothing(), on_built=built)
    await beside[0]
    return outcome


async def count_task_runs(client: PrefectClient, flow_run_id: UUID, *states: str) -> int:
    """How many of its task runs the server shows in these states."""
    asked = {"flow_run_id": {"any_": [str(flow_run_id)]}, "state": {"type": {"any_": states}}}
    return int((await client.request("POST", "/task_runs/count", json={"task_runs": asked})).json())


# (a) Many operators start.


@dataclass
class Start:
    """When what came about, in ``perf_counter`` seconds."""

    called: float = 0.0
    built: float = 0.0
    last_runs: float = 0.0
    all_shown: float | None = None
    asked: float = 0.0
    over: float = 0.0


async def bench_start(rounds: int) -> None:
    """(a) 100 operators, from ``on_built`` until the last one runs, and until the server shows all of them Running."""
    told: list[Start] = []
    untold: list[Start] = []
    for _ in range(rounds):
        untold.append(await start_many(None))
        told.append(await start_many(PATIENT))
    shown = [start.all_shown - start.built for start in told if start.all_shown is not None]
    print(f"(a) {OPERATORS} operators start, {rounds} rounds  (wanted: under 2 s)")
    print(f"  until the last one runs: {spread_ms([start.last_runs - start.built for start in told])} under Prefect")
    print(f"                           {spread_ms([start.last_runs - start.built for start in untold])} without")
    print(f"  until the server shows all of them Running: {spread_ms(shown)}")
    print(
        f"  from the call of the flow to the graph, built: {spread_ms([start.built - start.called for start in told])}"
    )
    ends = [start.over - start.asked for start in told]
    print(f"  from the request to stop until the flow has returned, all told: {spread_ms(ends)}")


async def start_many(reporting: Reporting | None) -> Start:
    """One start of them all."""
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
    """(b) resident memory along the restarts of one operator, each way in a process of its own."""
    print(f"(b) one operator restarted {restarts:,} times, about {RESTARTS_PER_S} a second")
    for how in ("plain", "prefect"):
        command = [sys.executable, "-m", "bench.prefect_cost", "--child", how, "--restarts", str(restarts)]
        sys.stdout.flush()
        subprocess.run(command + ["--trace"] * trace, env=dict(server.environment), check=True)


async def restart_often(restarts: int, *, reporting: Reporting | None, trace: bool) -> None:
    """In a process of its own: fail so often, and print what that did to the memory and what the server says."""
    memory: list[tuple[int, float, str]] = []
    before: list[tracemalloc.Snapshot] = []
    every = max(1, restarts // SAMPLES)
    done = asyncio.Event()
    flow_run: list[UUID | None] = []
    links: list[Reporter] = []
    start = Reporter.start

    def noticed(link: Reporter, built: BuiltGraph) -> None:
        links.append(link)
        start(link, built)

    async def flaky(ends: WiredEnds) -> None:
        failed = ends.instance - 1
        if failed % every == 0:
            memory.append((failed, resident_mib(), holdings(links)))
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
    operator = graph.add_operator("flaky", flaky, restart_policy=RestartPolicy.always())
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
    with patch.object(Reporter, "start", noticed):
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
        f"    {len(pauses)} full garbage collections, the longest {max(pauses, default=0.0) * 1e3:.0f} ms: nothing else runs meanwhile;"
        f" the loop was late by {figures.max_loop_lag_s * 1e3:.0f} ms at most"
    )
    gc.collect()
    print(f"    over, all collected     {resident_mib():7.1f} MiB  (peak {peak_mib():.1f})  {holdings(links)}")
    print(f"    slope over the second half: {slope:+.2f} KiB a restart")
    if (flow_run_id := flow_run[0]) is not None:
        async with get_client() as client:
            shown = {
                state: await count_task_runs(client, flow_run_id, state) for state in (*FINAL, "RUNNING", "PENDING")
            }
        print(f"    the server shows {', '.join(f'{count:,} {state}' for state, count in shown.items() if count)}")


def holdings(links: Sequence[Reporter]) -> str:
    """What the link to Prefect holds now, if there is one."""
    if not links:
        return ""
    link = links[0]
    boxes, book = link._delivery._outboxes, link._delivery._task_runs
    held = ", ".join(
        f"{kind}s {len(box)} waiting {len(box._recent)} kept {box.delivered} sent {box.dropped} dropped"
        for kind, box in boxes.items()
    )
    return f"inbox {len(link._inbox)}, {len(book._ended)} ended not yet shown ({book.evicted} given up), {held}"


# (c) Throughput with reporting over throughput without.


@dataclass
class Flow:
    """What passed the sink between two moments, and the seconds that took: on the clock, of CPU, of the loop's thread's."""

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
    """(c) once more, less at the mercy of whatever else runs here: one flow, whose link is silent in every other slice."""
    refresh, look = ArtifactPublisher.refresh, Reporter._check_flow_run
    silent = False
    slices: dict[bool, list[Flow]] = {False: [], True: []}

    async def refresh_or_not(display: ArtifactPublisher, client: PrefectClient, view: View) -> RetryDisposition[Any]:
        return RetryOk(None) if silent else await refresh(display, client, view)

    async def look_or_not(link: Reporter, client: PrefectClient) -> None:
        if not silent:
            await look(link, client)

    async def measure(now: Callable[[], Flow]) -> None:
        nonlocal silent
        for number in range(2 * pairs):
            silent = number % 4 in {1, 2}
            await asyncio.sleep(0.1)  # what is under way comes to its end
            slices[silent].append(await between(now, seconds))

    with (
        patch.object(ArtifactPublisher, "refresh", refresh_or_not),
        patch.object(Reporter, "_check_flow_run", look_or_not),
    ):
        await flowing(OFTEN, measure)
    print(
        f"  the same in one flow, whose link is silent in every other slice of {seconds:g} s, {pairs} pairs: every second over silent"
    )
    compare(slices[False], slices[True])


def compare(flows: Sequence[Flow], others: Sequence[Flow]) -> None:
    """Print the throughput of these over that of the others, pair by pair."""
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
    """The steady state, for so long."""
    measured: list[Flow] = []

    async def measure(now: Callable[[], Flow]) -> None:
        measured.append(await between(now, seconds))

    await flowing(reporting, measure)
    return measured[0]


async def between(now: Callable[[], Flow], seconds: float) -> Flow:
    """What flows in so many seconds from now."""
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
    """Run the graph, and ``measure`` beside it once it is under way; it can ask for the totals."""
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
    """(d) a hook on the loop, and what the thread makes of it."""

    async def hooked(pause_s: float, calls: int, record: Spawned | Exited | Decided) -> list[float]:
        link = Reporter(identity(), OperatorGraph("bench"), Reporting(), on_cancel=print)
        there = asyncio.new_event_loop()
        thread = threading.Thread(target=there.run_forever)
        thread.start()
        link._loop = there
        hook, costs = link._note, []
        for _ in range(calls):
            if pause_s:
                await asyncio.sleep(pause_s)
                link._wakeup_sent = False  # the thread has emptied the inbox
            started = time.perf_counter_ns()
            hook(record)
            costs.append((time.perf_counter_ns() - started) / 1e3)
            link._inbox.clear()
        there.call_soon_threadsafe(there.stop)
        thread.join()
        there.close()
        return costs

    print(f"(d) a hook on the loop, us (median, and 99 of 100 are below), {calls:,} calls")
    records: dict[str, Spawned | Exited | Decided] = {"spawn": SPAWNED, "exit": EXITED, "decision": DECIDED}
    for name, record in records.items():
        row = asyncio.run(hooked(0, calls, record))
        single = asyncio.run(hooked(0.002, calls // 20, record))
        print(
            f"  {name:9} to a thread that is awake {median(row):.1f} ({np.percentile(row, 99):.1f}),"
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
    print("  on the link's thread, us each")
    for name, make in made.items():
        costs = []
        for _ in range(calls // 20):
            started = time.perf_counter_ns()
            make()
            costs.append((time.perf_counter_ns() - started) / 1e3)
        print(f"    {name}: {median(costs):.0f}  [{min(costs):.0f} … {np.percentile(costs, 99):.0f}]")


async def bench_idle(seconds: float) -> None:
    """(d) the requests that a pipeline makes in which nothing happens."""
    requests: Counter[str] = Counter()
    send: Callable[[httpx.AsyncHTTPTransport, httpx.Request], Awaitable[httpx.Response]]
    send = httpx.AsyncHTTPTransport.handle_async_request

    async def counted(self: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
        path = "/".join(part if len(part) < 32 else "…" for part in request.url.path.split("/"))
        requests[f"{request.method} {path}"] += 1
        return await send(self, request)

    async def during(built: BuiltGraph, _flow_run_id: UUID | None) -> None:
        await asyncio.sleep(8.0)  # what the start has to tell is told, and read back
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


# (e) From a failure to the next instance.


async def bench_restart_latency(server: PrefectServer, rounds: int, *, restarts: int) -> None:
    """(e) from the exception to the next instance's first step: told, not told, and with the server killed."""
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
    """So many restarts in each phase, and after each phase what is ``between``, with the operator at rest."""
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
        await asyncio.sleep(1.0)  # the link has come up
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
    operator = graph.add_operator("flaky", flaky, restart_policy=RestartPolicy.always())
    sink = graph.add_sink("sink", taking_all())
    graph.connect(source, operator, 64)
    graph.connect(operator, sink, 64)
    await run(graph, reporting=reporting, during=during)
    return measured


# Operators, and how figures are told.


def same(item: object) -> object:
    return item


def waiting() -> Factory:
    """A source that has nothing."""

    async def run(ends: WiredEnds) -> None:
        await ends.shutdown.wait()

    return run


def taking_all() -> Factory:
    """Takes everything and keeps nothing."""

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


if __name__ == "__main__":
    main()
