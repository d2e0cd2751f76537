"""Ten topologies with an operator that is too slow, and which one it is. They run on any clock, until their shutdown."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from itertools import count, islice
from pathlib import Path
from typing import Any, TypeAlias

from orchestrator_adapter import Factory, FlowPolicy, OperatorGraph, VertexId, WiredEnds, partition
from orchestrator_adapter.primitives.clock import sleep

SLOW_S = 0.01
"""What the slow operator needs for an item; the others need a hundredth of it."""

CAPACITY = 32

Work: TypeAlias = Callable[[WiredEnds, float], Any]
"""Awaited to work for some seconds."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A topology.

    Attributes:
        name: What it is.
        truth: The operators that limit it.
        build: Makes its graph anew, from a folder for spilled items and the seconds that the slow operator needs for an item.
        in_threads: The slow operator works in a thread, so it needs a real clock.
    """

    name: str
    truth: frozenset[str]
    build: Callable[[Path, float], OperatorGraph]
    in_threads: bool = False

    def graph(self, folder: Path, *, slow_s: float = SLOW_S) -> OperatorGraph:
        """The graph."""
        return self.build(folder, slow_s)


async def wait(ends: WiredEnds, seconds: float) -> None:
    """Work as an operator does that waits for something else."""
    await sleep(ends.clock, seconds)


async def in_a_thread(ends: WiredEnds, seconds: float) -> None:
    """Work in a thread."""
    await ends.run_blocking(time.sleep, seconds)


def feed(*, batch: int = 8, rate_per_s: float | None = None) -> Factory:
    """A source that never ends: of so many items per second, or of as many as are taken."""

    async def run(ends: WiredEnds) -> None:
        numbers = ends.keep("numbers", count)
        while not ends.shutdown.is_set:
            await ends.emit(list(islice(numbers, batch)))
            if rate_per_s is not None:
                await ends.unless_shutdown(sleep(ends.clock, batch / rate_per_s))

    return run


def station(seconds: float, *, batch: int = 8, work: Work = wait) -> Factory:
    """An operator or a sink that works so long for each item, a batch at a time."""

    async def run(ends: WiredEnds) -> None:
        async for items in ends.receiver.batches(batch):
            if seconds:
                await work(ends, seconds * len(items))
            if ends.senders:
                ends.commit(items, acknowledge=len(items))
                await ends.flush()

    return run


class _Drawn:
    """A graph that is drawn from left to right."""

    def __init__(self, name: str, slow_s: float) -> None:
        self.graph = OperatorGraph(name)
        self.slow_s = slow_s
        self.fast_s = slow_s / 100

    def source(self, name: str, *, per_slow: float | None = None) -> VertexId:
        """A source of so many items in the time that the slow operator needs for one; ``None``: it emits what is taken."""
        rate = None if per_slow is None else per_slow / self.slow_s
        return self.graph.add_source(name, feed(rate_per_s=rate))

    def operator(
        self, name: str, upstream: VertexId, *, slow: bool = False, policy: FlowPolicy | None = None
    ) -> VertexId:
        """An operator behind ``upstream``."""
        operator = self.graph.add_operator(name, station(self.slow_s if slow else self.fast_s))
        self.graph.connect(upstream, operator, CAPACITY, policy=policy)
        return operator

    def sink(
        self,
        name: str,
        upstream: VertexId,
        *,
        slow: bool = False,
        policy: FlowPolicy | None = None,
        work: Work = wait,
    ) -> VertexId:
        """A sink behind ``upstream``."""
        sink = self.graph.add_sink(name, station(self.slow_s if slow else self.fast_s, work=work))
        self.graph.connect(upstream, sink, CAPACITY, policy=policy)
        return sink

    def fan_out(self, name: str, upstream: VertexId, factory: Factory | None = None) -> VertexId:
        """A fan-out behind ``upstream``."""
        fan_out = self.graph.add_fan_out(name, factory)
        self.graph.connect(upstream, fan_out, CAPACITY)
        return fan_out

    def fan_in(self, name: str, *upstream: VertexId) -> VertexId:
        """A fan-in of ``upstream``."""
        fan_in = self.graph.add_fan_in(name)
        for each in upstream:
            self.graph.connect(each, fan_in, CAPACITY)
        return fan_in


def _chain(_: Path, slow_s: float) -> OperatorGraph:
    it = _Drawn("chain", slow_s)
    correlate = it.operator("correlate", it.operator("normalize", it.source("radar")), slow=True)
    it.sink("log", correlate)
    return it.graph


def _fan_out(_: Path, slow_s: float) -> OperatorGraph:
    it = _Drawn("fan-out", slow_s)
    tee = it.fan_out("tee", it.source("radar"))
    it.sink("log", it.operator("normalize", tee))
    it.sink("alerts", it.operator("screen", tee, slow=True))
    it.sink("audit", tee)
    return it.graph


def _fan_in(_: Path, slow_s: float) -> OperatorGraph:
    it = _Drawn("fan-in", slow_s)
    merge = it.fan_in("merge", it.source("radar"), it.source("optical"))
    it.sink("log", it.operator("correlate", merge, slow=True))
    return it.graph


def _diamond(_: Path, slow_s: float) -> OperatorGraph:
    it = _Drawn("diamond", slow_s)
    tee = it.fan_out("tee", it.operator("normalize", it.source("radar")))
    it.sink("log", it.fan_in("join", it.operator("predict", tee, slow=True), it.operator("measure", tee)))
    return it.graph


def _two_sources(_: Path, slow_s: float) -> OperatorGraph:
    it = _Drawn("two sources", slow_s)
    radar = it.operator("decode radar", it.source("radar"), slow=True)
    optical = it.operator("decode optical", it.source("optical", per_slow=4))
    it.sink("log", it.fan_in("merge", radar, optical))
    return it.graph


def _router_by_key(_: Path, slow_s: float) -> OperatorGraph:
    it = _Drawn("router by key", slow_s)
    router = it.fan_out("router", it.source("radar"), partition(lambda number: number))
    shards = (it.operator(f"shard {number}", router, slow=number == 1) for number in range(3))
    it.sink("log", it.fan_in("merge", *shards))
    return it.graph


def _shed_branch(_: Path, slow_s: float) -> OperatorGraph:
    it = _Drawn("shed branch", slow_s)
    tee = it.fan_out("tee", it.source("radar", per_slow=4))
    it.sink("log", it.operator("normalize", tee))
    it.sink("preview", tee, slow=True, policy=FlowPolicy.shed())
    return it.graph


def _timed_edge(_: Path, slow_s: float) -> OperatorGraph:
    it = _Drawn("timed edge", slow_s)
    tee = it.fan_out("tee", it.source("radar", per_slow=4))
    it.sink("log", tee)
    deadline = timedelta(seconds=slow_s * CAPACITY / 8)
    it.sink("alerts", it.operator("screen", tee, slow=True, policy=FlowPolicy.timed(deadline)))
    return it.graph


def _spilling_edge(folder: Path, slow_s: float) -> OperatorGraph:
    it = _Drawn("spilling edge", slow_s)
    tee = it.fan_out("tee", it.source("radar", per_slow=4))
    it.sink("log", tee)
    it.sink("archive", tee, slow=True, policy=FlowPolicy.spill(folder))
    return it.graph


def _blocking_sink(_: Path, slow_s: float) -> OperatorGraph:
    it = _Drawn("blocking sink", slow_s)
    it.sink("store", it.operator("normalize", it.source("radar")), slow=True, work=in_a_thread)
    return it.graph


def scenes() -> tuple[Scene, ...]:
    """The ten topologies."""

    return (
        Scene("chain", frozenset({"correlate"}), _chain),
        Scene("fan-out", frozenset({"screen"}), _fan_out),
        Scene("fan-in", frozenset({"correlate"}), _fan_in),
        Scene("diamond", frozenset({"predict"}), _diamond),
        Scene("two sources", frozenset({"decode radar"}), _two_sources),
        Scene("router by key", frozenset({"shard 1"}), _router_by_key),
        Scene("shed branch", frozenset({"preview"}), _shed_branch),
        Scene("timed edge", frozenset({"screen"}), _timed_edge),
        Scene("spilling edge", frozenset({"archive"}), _spilling_edge),
        Scene("blocking sink", frozenset({"store"}), _blocking_sink, in_threads=True),
    )
