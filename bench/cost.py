"""What orchestration costs: against a plain loop, against itself uninstrumented, along a growing chain, and in memory.

It prints figures and asserts nothing. Times are CPU time of this process (all threads, user and system), which other load
disturbs less than wall-clock time. Ratios are medians over rounds in which the candidates alternate, A B A B …, with the
range of those rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import TypeVar
from unittest.mock import patch

import msgspec
import numpy as np
import psutil

from orchestrator_adapter import (
    BuiltGraph,
    DeadLetter,
    DeadLetterKind,
    DeadLetterList,
    Factory,
    OperatorGraph,
    Reject,
    WiredEnds,
    map_items,
    merge,
    sift,
    source_of,
)
from orchestrator_adapter.channels import make_edge
from orchestrator_adapter.channels.channel import Channel
from orchestrator_adapter.channels.ledger import OperatorAccount, Outcome
from orchestrator_adapter.operators.from_functions import Verdict
from orchestrator_adapter.primitives.metrics import LatencyHistogram
from orchestrator_adapter.runtime import wiring
from orchestrator_adapter.storage.jsonl import RotatingJsonLines
from orchestrator_adapter.testing import chain
from sda_ops.dedup import SeenSet, deduplicate, observation_key
from sda_ops.normalize import Normalizer
from sda_ops.records.ids import observation_ids
from sda_ops.records.observation import Observation
from sda_ops.validate import ValidationLimits, validate
from sda_ops.wire import radar

T = TypeVar("T")

SOURCES = 3
REPEATED, IMPOSSIBLE = 0.02, 0.005  # shares of the records that dedup and validate reject
SEEN = 100_000  # ids that dedup remembers
WINDOW = timedelta(minutes=10)  # for so long
DRAIN = 512  # records that share an ingest time, as the datagrams of one drain do
WRITE_BATCH = 1_024  # lines that the plain loop gathers for a write; 256 cost it the same
NOON_NS = 1_767_268_800_000_000_000  # 2026-01-01T12:00:00Z
LIMITS = ValidationLimits()


def main() -> None:
    logging.disable(logging.CRITICAL)  # the runtime's decisions: rejects are part of the work here
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=200_000, help="in the pipeline (default: 200000)")
    parser.add_argument("--rounds", type=int, default=9, help="in which candidates take turns (default: 9)")
    parser.add_argument("--items", type=int, default=10_000_000, help="for the memory figure (default: 10000000)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        bench_pipeline([records(args.records // SOURCES, seed) for seed in range(SOURCES)], args.rounds, Path(name))
    bench_chains(args.rounds)
    bench_edge()
    bench_memory(args.items)


# The records, and the work on them.


def records(count: int, seed: int = 0) -> list[Observation]:
    """One source's radar detections as received, some repeated, some impossible."""
    rng = np.random.default_rng(seed)
    frames = np.zeros(count, dtype=radar.FRAME_DTYPE)
    frames["array_id"] = rng.integers(1, 5, count)
    frames["target_track_id"] = rng.integers(1, 20_000, count)
    frames["timestamp_ns"] = NOON_NS + np.arange(count) * 3_333
    frames["range_m"] = rng.uniform(300e3, 2_000e3, count)
    frames["range_rate_m_s"] = rng.uniform(-7e3, 7e3, count)
    frames["azimuth_rad"] = rng.uniform(-0.3, 6.2, count)  # one in twenty is for normalize to wrap
    frames["elevation_rad"] = rng.uniform(0.05, 1.5, count)
    frames["sigma_range_m"], frames["sigma_rate_m_s"] = 15.0, 0.1
    frames["range_m"][rng.random(count) < IMPOSSIBLE] = -1.0
    repeated = np.flatnonzero(rng.random(count) < REPEATED)
    frames[repeated] = frames[np.maximum(repeated - 100, 0)]
    datagrams = [frame.tobytes() for frame in frames]
    return [
        observation
        for at in range(0, count, DRAIN)
        for observation in radar.decode_many(datagrams[at : at + DRAIN], ingest_timestamp=NOON_NS + at * 3_333)[0]
    ]


def plain_loop(observations: Iterable[Observation], writer: RotatingJsonLines, *, batch: int) -> int:
    """The same work in a plain loop, one record at a time; lines are collected for a write. Returns how many were written."""
    normalize, seen, letters = Normalizer(), SeenSet(WINDOW, SEEN), DeadLetterList()
    now = time.monotonic()
    encode = msgspec.json.Encoder().encode
    lines: list[bytes] = []
    for raw in observations:
        observation = normalize(raw)
        rejection = validate(observation, reference_time_ns=observation.ingest_timestamp, limits=LIMITS)
        if rejection is not None:
            letters.append([_letter(observation, f"{rejection.reason}: {rejection.message}")])
            continue
        if seen.check_and_add(observation_key(observation), now):
            continue
        lines.append(encode(observation))
        if len(lines) >= batch:
            lines.append(b"")
            writer.write_lines(b"\n".join(lines), len(lines) - 1)
            lines.clear()
            now = time.monotonic()
    if lines:
        lines.append(b"")
        writer.write_lines(b"\n".join(lines), len(lines) - 1)
    return writer.lines_written


def batching_loop(observations: Iterable[Observation], writer: RotatingJsonLines) -> int:
    """As ``plain_loop``, but records are collected and encoded together: the fastest plain loop."""
    normalize, seen, letters = Normalizer(), SeenSet(WINDOW, SEEN), DeadLetterList()
    now = time.monotonic()
    encode_lines = msgspec.json.Encoder().encode_lines
    pending: list[Observation] = []
    for raw in observations:
        observation = normalize(raw)
        rejection = validate(observation, reference_time_ns=observation.ingest_timestamp, limits=LIMITS)
        if rejection is not None:
            letters.append([_letter(observation, f"{rejection.reason}: {rejection.message}")])
            continue
        if seen.check_and_add(observation_key(observation), now):
            continue
        pending.append(observation)
        if len(pending) >= WRITE_BATCH:
            writer.write_lines(encode_lines(pending), len(pending))
            pending.clear()
            now = time.monotonic()
    writer.write_lines(encode_lines(pending), len(pending))
    return writer.lines_written


def pipeline(sources: Sequence[Iterable[Observation]], sink: Factory) -> OperatorGraph:
    """The same work as a graph, with the edges of ``sda-ingest``."""

    def judge(observation: Observation) -> Verdict:
        rejection = validate(observation, reference_time_ns=observation.ingest_timestamp, limits=LIMITS)
        return None if rejection is None else Reject(f"{rejection.reason}: {rejection.message}")

    graph = OperatorGraph("cost")
    merged = graph.add_fan_in("merge", merge())
    for number, source in enumerate(sources, 1):
        graph.connect(graph.add_source(f"source-{number}", source_of(source)), merged, 4_096)
    normalize = graph.add_operator("normalize", map_items(Normalizer()))
    check = graph.add_operator("validate", sift(judge))
    dedup = graph.add_operator("dedup", deduplicate(max_age=WINDOW, max_items=SEEN), stateful=True)
    log = graph.add_sink("log", sink)
    graph.connect(merged, normalize, 1_024)
    graph.connect(normalize, check, 1_024)
    graph.connect(check, dedup, 1_024)
    graph.connect(dedup, log, 16_384)
    return graph


def log_sink(write: Callable[[bytes, int], None]) -> Factory:
    """The event log's work, without its thread and its fsync, which the plain loop does not have."""
    encode_lines = msgspec.json.Encoder().encode_lines

    async def run(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(4_096):
            write(encode_lines(batch), len(batch))
            now_ns = ends.clock.now_ns()
            for ingested_ns, count in Counter([observation.ingest_timestamp for observation in batch]).items():
                ends.latency.record(now_ns - ingested_ns, count)

    return run


def _letter(observation: Observation, reason: str) -> DeadLetter:
    return DeadLetter(
        time_ns=time.time_ns(),
        operator="loop",
        kind=DeadLetterKind.VALIDATION_FAILED,
        message=reason,
        attempts=1,
        payload=observation,
    )


# The pipeline without its instruments: nothing is booked, leased or timed.


class BareChannel(Channel[T]):
    """A bounded queue without leases: a received item is removed at once."""

    __slots__ = ()

    def push(self, items: Sequence[T]) -> int:
        accepted = min(len(items), self.room)
        self._buffer += items[:accepted] if accepted < len(items) else items
        return accepted

    def take(self, max_items: int) -> list[T]:
        items = self._buffer[:max_items]
        del self._buffer[:max_items]
        return items

    def acknowledge(self, count: int) -> int:
        return 0


class NoBooks(OperatorAccount):
    """Counts nothing."""

    def emit(self, count: int) -> None:
        pass

    def declare(self, outcome: Outcome, count: int) -> None:
        pass

    def acknowledge(self, count: int, *, still_leased: int = 0) -> None:
        pass


class NoLatency(LatencyHistogram):
    """Records nothing."""

    def record(self, latency_ns: int, count: int = 1) -> None:
        pass


def uninstrumented(graph: OperatorGraph) -> BuiltGraph:
    """The graph, built with the stand-ins above."""
    with (
        patch.object(make_edge, "Channel", BareChannel),
        patch.object(wiring, "OperatorAccount", NoBooks),
        patch.object(wiring, "LatencyHistogram", NoLatency),
    ):
        return graph.build()


# The measurements.


def bench_pipeline(parts: Sequence[list[Observation]], rounds: int, folder: Path) -> None:
    """(a) against the plain loop, (b) against itself without instruments."""
    observations = [observation for part in parts for observation in part]

    def writing(work: Callable[[RotatingJsonLines], float]) -> Callable[[], float]:
        def run() -> float:
            with (
                tempfile.TemporaryDirectory(dir=folder) as name,
                RotatingJsonLines(Path(name), stem="log", max_bytes=1 << 40) as writer,
            ):
                cost_s = work(writer)
                written.add(writer.lines_written)
                return cost_s

        return run

    def looped(loop: Callable[[RotatingJsonLines], object]) -> Callable[[], float]:
        def work(writer: RotatingJsonLines) -> float:
            started = time.process_time()
            loop(writer)
            return time.process_time() - started

        return writing(work)

    def graphed(build: Callable[[OperatorGraph], BuiltGraph]) -> Callable[[], float]:
        return writing(lambda writer: _cost_s(build(pipeline(parts, log_sink(writer.write_lines)))))

    written: set[int] = set()
    figures = in_turn(
        rounds,
        {
            "loop": looped(lambda writer: plain_loop(observations, writer, batch=WRITE_BATCH)),
            "graph": graphed(OperatorGraph.build),
            "bare": graphed(uninstrumented),
            "loop, batch encoding": looped(lambda writer: batching_loop(observations, writer)),
            "loop, a write a record": looped(lambda writer: plain_loop(observations, writer, batch=1)),
        },
    )
    print(
        f"{SOURCES} in-memory sources -> merge -> normalize -> validate -> dedup -> JSON Lines; {len(observations):,} records,"
        f" lines written {sorted(written)} (all alike if one), {rounds} rounds, CPU time"
    )
    for name, costs in figures.items():
        each_us = median(costs) / len(observations) * 1e6
        print(f"  {name:24} {each_us:.2f} us a record, {1e3 / each_us:,.0f} thousand records/s")
    print(f"  (a) throughput of graph / loop: {ratio(figures, 'loop', 'graph')}  (at least 0.9, aim 0.95)")
    for name in ("loop, batch encoding", "loop, a write a record"):
        print(f"      of graph / {name}: {ratio(figures, name, 'graph')}")
    overhead = [with_ / without - 1 for with_, without in zip(figures["graph"], figures["bare"], strict=True)]
    print(
        f"  (b) ledger, leases, latency: {median(overhead):+.1%}  [{min(overhead):+.1%} … {max(overhead):+.1%}]"
        "  (at most 5 %, aim 2 %)"
    )


def bench_chains(rounds: int, sizes: Sequence[int] = (5, 50, 500), hops_in_all: int = 25_000_000) -> None:
    """(c) what one item costs at one hop, in chains of map operators.

    Every chain does the same work, counted in hops, so that what comes once in so much of it (a full garbage collection)
    comes as often in each: a short chain takes more items than a long one.
    """

    def identity(item: object) -> object:
        return item

    pool = list(range(100_000))

    def chained(operators: int) -> Callable[[], float]:
        def run() -> float:
            hops = operators + 1
            items = hops_in_all // hops
            work = islice(cycle(pool), items)
            graph = chain(source_of(work), *[map_items(identity)] * operators, counting_sink(), capacity=1_024)
            return _cost_s(graph.build()) / (items * hops) * 1e6

        return run

    figures = in_turn(rounds, {str(size): chained(size) for size in sizes})
    print(f"(c) chains of map_items(identity), {hops_in_all:,} hops of items in each, {rounds} rounds")
    for name, costs in figures.items():
        print(
            f"  {name:>4} operators: {median(costs):.4f} us an item and hop,"
            f" {ratio(figures, name, str(sizes[0]))} times the first"
        )


def bench_edge(items: int = 2_000_000) -> None:
    """(e) one bounded edge, for orientation."""

    async def one_by_one(ends: WiredEnds) -> None:
        for item in range(items):
            await ends.sender.send(item)

    async def each(ends: WiredEnds) -> None:
        async for _ in ends.receiver:
            pass

    batched = min(_cost_s(chain(source_of(range(items)), counting_sink(), capacity=1_024).build()) for _ in range(3))
    single = min(_cost_s(chain(one_by_one, each, capacity=1_024).build()) for _ in range(3))
    print(
        f"(e) one edge, best of 3: {items / batched / 1e6:.1f} million items/s in batches of up to 256,"
        f" {items / single / 1e6:.2f} million with an await an item at both ends"
    )


def bench_memory(items: int) -> None:
    """(d) resident memory during a run of the whole pipeline, with records generated during the run."""
    samples: list[tuple[int, float]] = []

    def sampled(numbers: Iterable[Observation], period: int) -> Iterator[Observation]:
        for number, item in enumerate(numbers):
            if number % period == 0:
                samples.append((number * SOURCES, _resident_mib()))
            yield item

    pool = records(10_000)
    share = items // SOURCES
    sources = [fresh(pool, share, seed) for seed in range(SOURCES)]
    sources[0] = sampled(sources[0], max(1, share // 100))
    before = _resident_mib()
    started = time.perf_counter()
    cost_s = _cost_s(pipeline(sources, log_sink(lambda _data, _lines: None)).build())
    elapsed_s = time.perf_counter() - started
    # The first tenth fills what is bounded: seen ids, buffers, dead letters, the allocator's pools.
    at, mib = np.array([sample for sample in samples if sample[0] >= items / 10]).T
    slope = float(np.polyfit(at, mib, 1)[0]) * 2**20
    print(
        f"(d) {items:,} items in {elapsed_s:.0f} s ({cost_s:.0f} s CPU): resident {before:.1f} MiB before,"
        f" {mib[0]:.1f} after a tenth, {mib.max():.1f} at most after that, {mib[-1]:.1f} at the end;"
        f" slope {slope:+.3f} bytes an item"
    )


def fresh(pool: Sequence[Observation], count: int, seed: int) -> Iterator[Observation]:
    """``count`` observations like those of the pool, each with its own id, generated lazily."""
    rng = random.Random(seed)
    for at in range(0, count, DRAIN):
        size = min(DRAIN, count - at)
        ids = observation_ids("radar", [rng.randbytes(16) for _ in range(size)])
        start = rng.randrange(len(pool) - size)
        for observation_id, like in zip(ids, pool[start : start + size], strict=True):
            yield msgspec.structs.replace(like, observation_id=observation_id)


def counting_sink() -> Factory:
    """A sink that discards everything."""

    async def run(ends: WiredEnds) -> None:
        async for _ in ends.receiver.batches():
            pass

    return run


# How it is measured.


def in_turn(rounds: int, candidates: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """The cost of each candidate in each round. The order is reversed in every other round; the first round is warm-up."""
    figures: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name in list(candidates)[:: -1 if number % 2 else 1]:
            gc.collect()
            cost = candidates[name]()
            if number:
                figures[name].append(cost)
    return figures


def ratio(figures: Mapping[str, Sequence[float]], over: str, under: str) -> str:
    """The median of the rounds' cost ratios, and their range."""
    ratios = [a / b for a, b in zip(figures[over], figures[under], strict=True)]
    return f"{median(ratios):.3f}  [{min(ratios):.3f} … {max(ratios):.3f}]"


def _cost_s(built: BuiltGraph) -> float:
    """CPU seconds from the first task's start to the end of the last."""

    async def run() -> float:
        started = time.process_time()
        await built.run()
        return time.process_time() - started

    return asyncio.run(run())


def _resident_mib() -> float:
    return float(psutil.Process().memory_info().rss) / 2**20


if __name__ == "__main__":
    main()
