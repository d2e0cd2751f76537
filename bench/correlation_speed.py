"""The cost of correlation: observations per second and core, growth with the catalogue, and the overhead of the pool.

It only prints figures. The correlator is measured in CPU time of this process, which has one thread. The pool is measured in
wall time, because it uses two processes. Cases alternate, A B A B …. Figures are medians of the rounds, ratios are medians of
the rounds' ratios, printed with their range.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from statistics import fmean, median

import numpy as np
import psutil
from sgp4.api import SatrecArray

from bench.cost import counting_sink, in_turn, ratio
from orchestrator_adapter import RestartPolicy
from orchestrator_adapter.bulkhead import Bulkhead
from orchestrator_adapter.operators.from_functions import source_of
from orchestrator_adapter.testing import chain
from sda_ops.astro.propagation import Propagator
from sda_ops.astro.time import NS_PER_DAY, NS_PER_S, julian_date
from sda_ops.catalog import ElementColumns, ElementSet
from sda_ops.correlate.associate import Associator
from sda_ops.correlate.operator import correlate
from sda_ops.propagation.interval import STEP_NS, Placed
from sda_ops.propagation.operator import Prediction, propagate
from sda_ops.propagation.pool import InlinePropagator, PropagatorPool
from sda_ops.propagation.uncertainty import ElementSetErrors
from sda_ops.simulate.world import World
from tests.scenes.truth import (
    BATCH,
    REAL_EPOCH_NS,
    SENSORS,
    Rates,
    Seen,
    Snapshots,
    catalog,
    observe,
)

ERRORS = ElementSetErrors()
START_NS = (REAL_EPOCH_NS + NS_PER_DAY // 2) // STEP_NS * STEP_NS
LENGTH_S = STEP_NS / NS_PER_S  # one interval
MIXED = Rates(radar_hz=1_600.0, optical_hz=160.0, isl_hz=240.0)  # 80, 8 and 12 %
SIZES = (1_000, 2_000, 5_000, 10_000, 14_683, 30_000, 60_000)
TIMES = (8, 32, 128)


def measure(path: Path, *, rounds: int, seed: int) -> None:
    logging.disable(logging.CRITICAL)  # the inline propagator stalls the loop, which the runtime logs
    element_sets, which = catalog(path)
    print(f"catalogue: {which}; {rounds} rounds")
    bench_correlator(element_sets, rounds, seed)
    bench_growth(element_sets, rounds, seed)
    asyncio.run(bench_pool(element_sets, rounds, seed))


# The correlator.


@dataclass(frozen=True, slots=True)
class Load:
    """Observations within one interval, with element sets without errors."""

    seen: Sequence[Seen]
    snapshots: Snapshots
    associator: Associator

    @classmethod
    def of(cls, element_sets: Sequence[ElementSet], rates: Rates, seed: int) -> Load:
        rng = np.random.default_rng(seed)
        seen = observe(World(element_sets), rates, start_ns=START_NS, length_s=LENGTH_S, rng=rng)
        return cls(seen, Snapshots(element_sets, ERRORS), Associator(SENSORS))

    def warm(self) -> float:
        """CPU microseconds per observation, in batches, with the interval's indices already built."""
        return self._cpu_s(self.seen) / len(self.seen) * 1e6

    def once(self) -> float:
        """CPU milliseconds per interval: one propagation of the catalogue, its indices, and every site's views of the sky."""
        some = self.seen[::20]  # includes every site and view of the sky
        self.snapshots.as_new()
        started = time.process_time()
        self.snapshots.at(START_NS)
        propagated_s = time.process_time() - started
        return (propagated_s + self._cpu_s(some) - self._cpu_s(some)) * 1e3

    def _cpu_s(self, seen: Sequence[Seen]) -> float:
        placed = [Placed(one.observation, self.snapshots.at(one.observation.sensor_timestamp)) for one in seen]
        started = time.process_time()
        for start in range(0, len(placed), BATCH):
            self.associator.correlate(placed[start : start + BATCH], now_ns=0)
        return time.process_time() - started


def bench_correlator(element_sets: Sequence[ElementSet], rounds: int, seed: int) -> None:
    """(a) each kind, all kinds, and all kinds with the cost of each interval."""
    half = MIXED.radar_hz / 2.0
    loads = {
        "all kinds": Load.of(element_sets, MIXED, seed),
        "radar": Load.of(element_sets, Rates(half, 0.0, 0.0), seed),
        "optical": Load.of(element_sets, Rates(0.0, half, 0.0), seed),
        "isl": Load.of(element_sets, Rates(0.0, 0.0, half), seed),
    }
    mixed = loads["all kinds"]
    _progress("correlator")
    gc.freeze()  # so that no collection scans the observations in every round
    figures = in_turn(
        rounds,
        {name: load.warm for name, load in loads.items()}
        | {
            "once": mixed.once,
            "operators": lambda: _operators(mixed, element_sets),
        },
    )
    gc.unfreeze()
    print(f"(a) the correlator, {len(element_sets):,} objects, batches of {BATCH}; CPU time of one thread")
    for name in loads:
        each_us = median(figures[name])
        print(f"  {name:10} {each_us:6.1f} us an observation, {1e6 / each_us:>8,.0f} observations/s and core")
    once_ms = median(figures["once"])
    print(
        f"  once in {LENGTH_S:g} s of observations (propagation, indices, {len(SENSORS)} sites' skies): {once_ms:.0f} ms"
    )
    for rate_hz in (500, 2_000, 10_000):
        each_us = median(figures["all kinds"]) + once_ms / (rate_hz * LENGTH_S) * 1e3
        print(
            f"    shared out at {rate_hz:>6,}/s: {each_us:.1f} us an observation, {1e6 / each_us:,.0f} observations/s and core"
        )
    each_us = median(figures["operators"])
    print(
        f"  as a graph, source -> propagate (inline) -> correlate -> sink, without cached intervals, {len(mixed.seen):,} observations:"
        f" {each_us:.1f} us an observation, {1e6 / each_us:,.0f} observations/s and core"
    )


def bench_growth(element_sets: Sequence[ElementSet], rounds: int, seed: int) -> None:
    """(b) the same number of observations with more and more objects."""
    loads = {}
    for objects in SIZES:
        _progress(f"{objects:,} objects")
        loads[objects] = Load.of(resized(element_sets, objects, seed), MIXED, seed)
    gc.freeze()
    warm = in_turn(rounds, {str(objects): load.warm for objects, load in loads.items()})
    once = in_turn(rounds, {str(objects): load.once for objects, load in loads.items()})
    gc.unfreeze()
    first = str(SIZES[0])
    print(f"(b) growth with the catalogue, all kinds; ratios to {SIZES[0]:,} objects within each round")
    for name in map(str, SIZES):
        print(
            f"  {int(name):>6,} objects: {median(warm[name]):5.1f} us an observation, {ratio(warm, name, first)} times;"
            f" once an interval {median(once[name]):4.0f} ms"
        )


def resized(element_sets: Sequence[ElementSet], objects: int, seed: int) -> tuple[ElementSet, ...]:
    """A random part of the catalogue, or the catalogue with copies that have other anomalies and numbers."""
    rng = np.random.default_rng(seed)
    if objects <= len(element_sets):
        return tuple(
            element_sets[row] for row in np.sort(rng.choice(len(element_sets), objects, replace=False)).tolist()
        )
    columns = ElementColumns.of(element_sets)
    more = list(element_sets)
    for copy in range(1, -(-objects // len(element_sets))):
        moved = replace(
            columns,
            catalog_number=columns.catalog_number + copy * 1_000_000,
            mo=(columns.mo + rng.uniform(0.0, 2.0 * np.pi, len(columns))) % (2.0 * np.pi),
        )
        more += map(ElementSet, moved.catalog_number.tolist(), [one.name for one in element_sets], moved.satrecs())
    return tuple(more[:objects])


class _OneCatalog:
    """A `CatalogSource` with one version, which is itself."""

    number = 1

    def __init__(self, element_sets: Sequence[ElementSet]) -> None:
        self.columns = ElementColumns.of(element_sets)

    @property
    def current(self) -> _OneCatalog:
        return self

    async def load(self) -> None:
        pass


def _operators(load: Load, element_sets: Sequence[ElementSet]) -> float:
    graph = chain(
        source_of([one.observation for one in load.seen]),
        propagate(_OneCatalog(element_sets), InlinePropagator(), Prediction(errors=ERRORS)),
        correlate(load.associator),
        counting_sink(),
        capacity=1_024,
    )

    async def run() -> float:
        built = graph.build()
        started = time.process_time()
        await built.run()
        return time.process_time() - started

    return asyncio.run(run()) / len(load.seen) * 1e6


# The pool.


async def bench_pool(element_sets: Sequence[ElementSet], rounds: int, seed: int) -> None:
    """(c) `PropagatorPool` with a bulkhead of one worker, compared with ``SatrecArray`` in this process, for several sizes."""
    print("(c) the pool, one worker, compared with SatrecArray.sgp4 directly; wall time, ratios within each round")
    cases = [(len(element_sets), times) for times in TIMES]
    cases += [(objects, 32) for objects in (1_000, 5_000, 60_000)]
    for objects, times in cases:
        _progress(f"{objects:,} objects at {times} times")
        await _against_direct(resized(element_sets, objects, seed), times, rounds)


async def _against_direct(element_sets: Sequence[ElementSet], times: int, rounds: int) -> None:
    columns = ElementColumns.of(element_sets)
    satrecs = columns.satrecs()
    array, propagator = SatrecArray(satrecs), Propagator(satrecs, engine="sgp4")
    timestamp_ns = START_NS + np.arange(times) * STEP_NS
    direct_cpu_s: list[float] = []
    own_cpu_s: list[float] = []

    async def direct() -> None:
        started = time.process_time()
        array.sgp4(*julian_date(timestamp_ns))
        direct_cpu_s.append(time.process_time() - started)

    async def checked() -> None:
        propagator.propagate(timestamp_ns)

    async with Bulkhead(
        "bench",
        "sda_ops.propagation.worker:PropagationWorker",
        answer_within=timedelta(minutes=1),
        rebuilds=RestartPolicy.never(),
    ) as bulkhead:
        pool = PropagatorPool(bulkhead, engine="sgp4")
        await pool.use_catalog(columns)

        async def pooled() -> None:
            started = time.process_time()
            await pool.propagate(None, timestamp_ns)
            own_cpu_s.append(time.process_time() - started)

        (worker,) = bulkhead.statistics().pids.values()
        before_s = _cpu_s(worker)
        figures = await _on_the_wall(rounds, {"direct": direct, "checked": checked, "pool": pooled})
        worker_s = (_cpu_s(worker) - before_s) / (rounds + 1)
    states = len(columns) * times
    per_state_ns = {name: median(costs_s) / states * 1e9 for name, costs_s in figures.items()}
    print(
        f"  {len(columns):>6,} x {times:>3}: direct {per_state_ns['direct']:.0f} ns a state, pool {per_state_ns['pool']:.0f} ns,"
        f" pool / direct {ratio(figures, 'pool', 'direct')};"
        f" pool / direct with units and checks {ratio(figures, 'pool', 'checked')};"
        f" CPU: direct {fmean(direct_cpu_s) / states * 1e9:.0f} ns a state,"
        f" the pool's worker {worker_s / states * 1e9:.0f} and this process {fmean(own_cpu_s) / states * 1e9:.0f}"
    )


def _cpu_s(pid: int) -> float:
    """CPU time of all threads of a process, to a hundredth of a second."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


async def _on_the_wall(rounds: int, candidates: Mapping[str, Callable[[], Awaitable[None]]]) -> dict[str, list[float]]:
    """As `in_turn`, for coroutines and wall time."""
    figures: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name in list(candidates)[:: -1 if number % 2 else 1]:
            started = time.perf_counter()
            await candidates[name]()
            if number:
                figures[name].append(time.perf_counter() - started)
    return figures


def _progress(text: str) -> None:
    print(f"… {text}", file=sys.stderr, flush=True)
