"""Isolation of the audit from the propagator's load: the p99 latency of its rows at 100 times the load, relative to 1 time.

The whole ``sda-fusion`` runs in this process and receives observations over real sockets from a simulator process. Beside the
graph a task requests the states of the whole catalogue through the same ``PropagatorPool``. The rate is chosen so that 100
times the rate is a given share of the pool's capacity, which is measured first. Phases of 1x and 100x alternate.

A row's latency is the wall clock after its commit (fsynced Parquet that readers see) minus its ``ingest_timestamp``. This is
what the sink records, but here every value is stored. A row counts for the phase of its ingest, without the phase's first
second. The audit commits so often that the time for which rows gather cannot hide a stalled loop.

Further phases: the pool at its capacity; a worker killed at 100x; and, for comparison, the same load with the propagator in the
event loop (``InlinePropagator``), which the pool exists to avoid. It only prints figures.

A full garbage collection stops the interpreter for 40 to 60 ms (90,000 objects of modules, 30,000 of the catalogue),
independent of the propagator. So objects that exist before the first phase are frozen, as ``prefect_flow`` does before its
runs; ``--full-collections`` does not freeze them.

Other load on the machine affects every figure. As root on Linux, ``setsid -w sh -c 'echo -20 > /proc/self/autogroup; exec
python -m bench.isolation'`` gives this process priority over it (sched(7), autogroups).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil

from flows.settings.fusion import FusionSettings
from flows.topologies.from_settings import supervision_policy
from flows.topologies.fusion import Orbits, build_topology, orbits_of
from orchestrator_adapter import BuiltGraph
from orchestrator_adapter.primitives.errors import OperatorError
from orchestrator_adapter.primitives.metrics import LatencyHistogram
from orchestrator_adapter.process import Pipeline, RunOutcome
from orchestrator_adapter.runtime import wiring
from orchestrator_adapter.runtime.status import OperatorStatus
from sda_ops.astro.time import NS_PER_S
from sda_ops.propagation.pool import InlinePropagator, PropagatorPool
from sda_ops.simulate.catalog_file import omm_json
from tests.helpers.fusion import FusionPlace, all_listen, conducted, go
from tests.helpers.running import eventually
from tests.scenes.truth import REAL_CATALOG, REAL_EPOCH_NS, catalog

FACTOR = 100
START_NS = REAL_EPOCH_NS + 12 * 3_600 * NS_PER_S  # half a day after the catalogue's epochs
SETTLE_S = 1.0  # the start of each phase, which is not counted
TAIL_S = 0.5  # after each phase, until its last rows are committed
BEAT_S = 0.005
OUTSTANDING = 8  # the greatest number of unanswered requests of the load


@dataclass(frozen=True, slots=True)
class Phase:
    """One part of a run with one load. Times are UTC nanoseconds; counting begins at ``from_ns``.

    Attributes:
        propagations_per_s: Computed states per second.
        skipped: Requests that were due but not made, because too many were unanswered.
        lags_s: The event loop's lag at each beat.
        longest_collection_s: The longest garbage collection, which stops the interpreter.
        cpu_s: CPU time of this process, and of the workers that exist at the end.
        busy: Used cores of this machine, by all processes.
    """

    name: str
    from_ns: int
    to_ns: int
    propagations_per_s: float
    skipped: int
    lags_s: Sequence[float]
    longest_collection_s: float
    cpu_s: tuple[float, float]
    busy: float


@dataclass(frozen=True, slots=True)
class Figures:
    """Latencies of a phase's rows, and lags of the event loop, in milliseconds."""

    rows: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    lag_p99_ms: float
    lag_max_ms: float


class Recorder(LatencyHistogram):
    """A histogram that also stores every value, with its time."""

    __slots__ = ("recorded",)

    def __init__(self) -> None:
        super().__init__()
        self.recorded: list[tuple[int, int, int]] = []

    def record(self, latency_ns: int, count: int = 1) -> None:
        super().record(latency_ns, count)
        self.recorded.append((time.time_ns(), latency_ns, count))

    def latencies_ms(self, from_ns: int, to_ns: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        """The latency of each row that was ingested between these times."""
        at, latency, count = np.array(self.recorded, dtype=np.int64).reshape(-1, 3).T
        inside = (at - latency >= from_ns) & (at - latency < to_ns)
        return np.repeat(latency[inside], count[inside]) / 1e6


@dataclass(slots=True)
class Load:
    """Requests for the states of the whole catalogue, made beside the graph."""

    propagator: PropagatorPool
    objects: int
    answered: int = 0
    skipped: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    _in_flight: set[asyncio.Task[None]] = field(default_factory=set)
    _requests: int = 0

    async def paced(self, rate_hz: float, seconds: float) -> None:
        """Make ``rate_hz`` requests per second without waiting for answers. A request that is late by a second is dropped."""
        loop = asyncio.get_running_loop()
        due, until = loop.time(), loop.time() + seconds
        while due < until:
            await asyncio.sleep(due - loop.time())
            if len(self._in_flight) < OUTSTANDING:
                self._start()
            else:
                self.skipped += 1
            due = max(due + 1.0 / rate_hz, loop.time() - 1.0)
        await asyncio.sleep(until - loop.time())

    async def saturating(self, seconds: float) -> None:
        """Make a new request for each answered one."""
        until = time.monotonic() + seconds
        while (left_s := until - time.monotonic()) > 0:
            while len(self._in_flight) < OUTSTANDING:
                self._start()
            await asyncio.wait(self._in_flight, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)

    async def end(self) -> None:
        """Wait for the answers of all requests."""
        if self._in_flight:
            await asyncio.wait(self._in_flight)

    def _start(self) -> None:
        task = asyncio.create_task(self._request(START_NS + self._requests * NS_PER_S))
        self._requests += 1
        self._in_flight.add(task)
        task.add_done_callback(self._in_flight.discard)

    async def _request(self, timestamp_ns: int) -> None:
        try:
            states = await self.propagator.propagate(None, np.array([timestamp_ns]))
        except OperatorError as error:
            self.failed[type(error).__name__] += 1
        else:
            self.answered += states.error.size


@dataclass(slots=True)
class Stage:
    """One running graph with its load."""

    graph: BuiltGraph
    orbits: Orbits
    load: Load
    audit: Recorder

    async def phase(
        self, name: str, seconds: float, *, rate_hz: float | None, kill_after_s: float | None = None
    ) -> Phase:
        """Run a load of ``rate_hz`` (or the greatest possible, if ``None``) for ``seconds``, and measure it."""
        _progress(f"{name} for {seconds:g} s …")
        load = self.load
        working = asyncio.create_task(load.saturating(seconds) if rate_hz is None else load.paced(rate_hz, seconds))
        killing = asyncio.create_task(self._kill_one(kill_after_s)) if kill_after_s is not None else None
        await asyncio.sleep(SETTLE_S)
        from_ns, answered, skipped, busy_s = time.time_ns(), load.answered, load.skipped, _busy_s()
        own_s, workers = time.process_time(), self._workers_cpu_s()
        with _collecting() as collections_s:
            async with beating() as lags_s:
                await working
        to_ns = time.time_ns()
        elapsed_s = (to_ns - from_ns) / NS_PER_S
        phase = Phase(
            name,
            from_ns,
            to_ns,
            (load.answered - answered) / elapsed_s,
            load.skipped - skipped,
            lags_s,
            max(collections_s, default=0.0),
            (time.process_time() - own_s, sum((self._workers_cpu_s() - workers).values())),
            (_busy_s() - busy_s) / elapsed_s,
        )
        if killing is not None:
            await killing
        await load.end()
        await asyncio.sleep(TAIL_S)
        return phase

    def of(self, phase: Phase) -> Figures:
        """The latencies of the audit's rows and the lags of the loop in this phase."""
        rows = self.audit.latencies_ms(phase.from_ns, phase.to_ns)
        lags = np.array(phase.lags_s) * 1e3
        p50, p99 = np.quantile(rows, [0.5, 0.99])
        return Figures(rows.size, p50, p99, rows.max(), float(np.quantile(lags, 0.99)), lags.max())

    def operator(self, name: str) -> OperatorStatus:
        """The current status of an operator."""
        return next(status for status in self.graph.status().operators if status.name == name)

    async def _kill_one(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        pid = min(self.orbits.pool.statistics().pids.values())
        os.kill(pid, signal.SIGKILL)

    def _workers_cpu_s(self) -> Counter[int]:
        return Counter({pid: _cpu_s(pid) for pid in self.orbits.pool.statistics().pids.values()})


def main() -> None:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m bench.isolation", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--catalog", type=Path, default=REAL_CATALOG, help="any catalogue file (default: the real one)")
    parser.add_argument(
        "--pairs", type=int, default=6, help="number of pairs of phases, 1x and 100x (default: %(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each phase (default: %(default)s)")
    parser.add_argument(
        "--share",
        type=float,
        default=0.75,
        help="load at 100x as a share of the pool's capacity (default: %(default)s)",
    )
    parser.add_argument("--workers", type=int, default=1, help="workers of the pool (default: %(default)s)")
    parser.add_argument(
        "--nice",
        type=int,
        default=0,
        help="added to the niceness of the workers' computing thread (default: %(default)s)",
    )
    parser.add_argument(
        "--commit-every-ms", type=float, default=10.0, help="commit interval of the audit (default: %(default)s)"
    )
    parser.add_argument(
        "--rate-radar", type=float, default=200.0, help="detections/s of each of 3 arrays (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="a disk to write to (default: where temporary files go)")
    parser.add_argument(
        "--full-collections",
        action="store_true",
        help="let full garbage collections include modules and catalogue",
    )
    parser.add_argument("--no-inline", action="store_true", help="without the comparison in the event loop")
    args = parser.parse_args()
    logging.getLogger("orchestrator_adapter").setLevel(logging.CRITICAL)  # a worker is killed on purpose
    element_sets, which = catalog(args.catalog)
    print(
        f"{os.cpu_count()} cores; catalogue: {which}; {args.workers} worker(s), niceness +{args.nice};"
        f" 3 radar arrays at {args.rate_radar:g}/s, 50 optical and 100 ISL observations/s; the audit commits every"
        f" {args.commit_every_ms:g} ms; phases of {args.seconds:g} s, the first {SETTLE_S:g} s of each not counted"
    )
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        place = FusionPlace.free(Path(name) / "pool")
        place.catalog.write_bytes(omm_json(element_sets))
        rate_hz = asyncio.run(_run(place, args, len(element_sets), inline_hz=None))
        if not args.no_inline:
            place = FusionPlace.free(Path(name) / "inline")
            place.catalog.write_bytes(omm_json(element_sets))
            asyncio.run(_run(place, args, len(element_sets), inline_hz=rate_hz))


async def _run(place: FusionPlace, args: argparse.Namespace, objects: int, *, inline_hz: float | None) -> float:
    """Run the graph once and print its figures; returns the base rate of the load."""
    settings = FusionSettings.model_validate(
        place.settings(
            validation={"replay": True},  # the catalogue's epochs are in the past
            propagator={"workers": args.workers},
            audit={"directory": str(place.folder / "audit"), "commit_every_s": args.commit_every_ms / 1e3},
        )
    )
    orbits = orbits_of(settings)
    if inline_hz is not None:
        orbits = Orbits(orbits.catalog, orbits.pool, InlinePropagator(engine="sgp4"))
    pipeline = Pipeline(
        build_topology(settings, orbits),
        supervision_policy(settings.shutdown),
        bulkheads=() if inline_hz is not None else (orbits.pool,),
    )
    recorders: list[Recorder] = []
    rate_hz = 0.0

    def recorder() -> Recorder:
        recorders.append(Recorder())
        return recorders[-1]

    async def conduct(graph: BuiltGraph) -> None:
        nonlocal rate_hz
        audit = dict(zip([vertex.name for vertex in graph.plan.order], recorders, strict=True))["audit"]
        stage = Stage(graph, orbits, Load(orbits.propagator, objects), audit)
        await all_listen(graph)
        go(simulator)
        await eventually(lambda: stage.operator("correlations").consumed, "the first correlations", limit_s=60.0)
        if not args.full_collections:
            gc.collect()
            gc.freeze()
        for pid in orbits.pool.statistics().pids.values():
            os.setpriority(os.PRIO_PROCESS, pid, args.nice)
        rate_hz = await (_with_pool(stage, args) if inline_hz is None else _inline(stage, args, inline_hz))

    start = datetime.fromtimestamp(START_NS / NS_PER_S, UTC).isoformat()
    with patch.object(wiring, "LatencyHistogram", recorder):
        simulator = place.simulator(
            *("--rate-radar", str(args.rate_radar), "--rate-optical", "50", "--rate-isl", "100", "--start-time", start)
        )
        try:
            outcome = await conducted(pipeline, conduct)
        finally:
            simulator.terminate()
            simulator.wait()
    _print_outcome(outcome)
    return rate_hz


async def _with_pool(stage: Stage, args: argparse.Namespace) -> float:
    """Measure the capacity, then 1x and 100x alternately, then full capacity and a killed worker."""
    await stage.phase("warm-up", args.seconds, rate_hz=None)
    capacity = await stage.phase("capacity", args.seconds, rate_hz=None)
    capacity_hz = capacity.propagations_per_s / stage.load.objects
    rate_hz: float = args.share * capacity_hz / FACTOR
    print(
        f"capacity of the pool beside the graph: {capacity_hz:.1f} catalogues/s, {capacity.propagations_per_s:,.0f} propagations/s;"
        f" 1x is {rate_hz:.3f} catalogues/s, {FACTOR}x {args.share:.0%} of capacity"
    )
    print(_HEADING)
    _row(stage, capacity)
    once, hundredfold = await _in_turn(stage, args, rate_hz)
    full = await stage.phase("100 % of capacity", args.seconds, rate_hz=None)
    _row(stage, full)
    killed = await stage.phase(
        "100x, worker killed", args.seconds, rate_hz=FACTOR * rate_hz, kill_after_s=args.seconds / 2
    )
    _row(stage, killed)
    _ratios(stage, once, hundredfold)
    quiet_ms = median(stage.of(phase).p99_ms for phase in once)
    for phase in (full, killed):
        print(f"  p99 of {phase.name!r} / median of 1x: {stage.of(phase).p99_ms / quiet_ms:.2f}")
    statistics = stage.orbits.pool.statistics()
    print(
        f"  pool: {statistics.calls:,} calls, {statistics.answered:,} answered, {statistics.resubmitted} resubmitted,"
        f" {statistics.lost} lost, {statistics.restarts} restarts; {dict(stage.load.failed) or 'no request failed'}"
    )
    return rate_hz


async def _inline(stage: Stage, args: argparse.Namespace, rate_hz: float) -> float:
    """Measure 1x and 100x with the propagator in the event loop."""
    print(f"\nfor comparison, the propagator in the event loop; 1x is {rate_hz:.3f} catalogues/s as before\n{_HEADING}")
    await stage.phase("warm-up", args.seconds, rate_hz=rate_hz)
    once, hundredfold = await _in_turn(stage, args, rate_hz, pairs=2)
    _ratios(stage, once, hundredfold)
    return rate_hz


async def _in_turn(
    stage: Stage, args: argparse.Namespace, rate_hz: float, *, pairs: int | None = None
) -> tuple[list[Phase], list[Phase]]:
    once, hundredfold = [], []
    for _ in range(pairs or args.pairs):
        once.append(await stage.phase("1x", args.seconds, rate_hz=rate_hz))
        _row(stage, once[-1])
        hundredfold.append(await stage.phase(f"{FACTOR}x", args.seconds, rate_hz=FACTOR * rate_hz))
        _row(stage, hundredfold[-1])
    return once, hundredfold


# The output.

_HEADING = (
    "  phase                   rows  p50 ms  p99 ms  max ms | loop lag p99, max, GC ms | propagations/s  skipped | CPU graph,"
    " workers, machine (cores)"
)


def _row(stage: Stage, phase: Phase) -> None:
    of = stage.of(phase)
    own, workers = (each / ((phase.to_ns - phase.from_ns) / NS_PER_S) for each in phase.cpu_s)
    print(
        f"  {phase.name:20} {of.rows:7,} {of.p50_ms:7.1f} {of.p99_ms:7.1f} {of.max_ms:7.1f} |"
        f" {of.lag_p99_ms:10.1f} {of.lag_max_ms:5.1f} {phase.longest_collection_s * 1e3:6.1f} | {phase.propagations_per_s:14,.0f} {phase.skipped:8,} |"
        f" {own:6.2f} {workers:6.2f} {phase.busy:6.2f}",
        flush=True,
    )


def _ratios(stage: Stage, once: Sequence[Phase], hundredfold: Sequence[Phase]) -> None:
    p99 = [[stage.of(phase).p99_ms for phase in phases] for phases in (once, hundredfold)]
    pooled = [
        float(np.quantile(np.concatenate([stage.audit.latencies_ms(p.from_ns, p.to_ns) for p in phases]), 0.99))
        for phases in (once, hundredfold)
    ]
    of_pairs = [high / low for low, high in zip(*p99, strict=True)]
    print(
        f"  p99 at {FACTOR}x / at 1x: {median(p99[1]) / median(p99[0]):.2f} of the medians ({median(p99[1]):.1f} /"
        f" {median(p99[0]):.1f} ms), {pooled[1] / pooled[0]:.2f} of all rows ({pooled[1]:.1f} / {pooled[0]:.1f} ms); pair by pair"
        f" {median(of_pairs):.2f} [{min(of_pairs):.2f} … {max(of_pairs):.2f}]  (at most 1.25)"
    )


def _print_outcome(outcome: RunOutcome) -> None:
    figures = outcome.event.figures
    print(
        f"  {outcome.event.name}, exit code {outcome.exit_code}; ledger holds: {figures.ledger_holds}; {figures.ledger}"
    )


def _progress(what: str) -> None:
    print(f"\r{what}\033[K", end="\r", file=sys.stderr, flush=True)


# The measurements.


@asynccontextmanager
async def beating() -> AsyncIterator[list[float]]:
    """A list of the loop's lags (how late it wakes a sleeping task), which grows until the end of the block."""
    lags_s: list[float] = []

    async def beat() -> None:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(BEAT_S)
            lags_s.append(time.perf_counter() - before - BEAT_S)

    task = asyncio.create_task(beat())
    try:
        yield lags_s
    finally:
        task.cancel()


@contextmanager
def _collecting() -> Iterator[list[float]]:
    """A list of the durations of garbage collections, which grows until the end of the block."""
    collections_s: list[float] = []
    began = 0.0

    def record(phase: str, _: object) -> None:
        nonlocal began
        if phase == "start":
            began = time.perf_counter()
        else:
            collections_s.append(time.perf_counter() - began)

    gc.callbacks.append(record)
    try:
        yield collections_s
    finally:
        gc.callbacks.remove(record)


def _cpu_s(pid: int) -> float:
    """CPU seconds of a process; 0 once it has ended."""
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _busy_s() -> float:
    """CPU seconds that this machine has used since it started."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


if __name__ == "__main__":
    main()
