"""What tests of running graphs share: bounded waits, sinks with a gate, faults on demand, observations to send."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from orchestrator_adapter import (
    BuiltGraph,
    DeadLetter,
    DeadLetterList,
    Factory,
    OperatorGraph,
    RestartPolicy,
    WiredEnds,
)
from orchestrator_adapter.supervision.restart import SOURCE_DEFAULT
from sda_ops.records.observation import Observation
from sda_ops.wire import radar

NOON_NS = 1_767_268_800_000_000_000  # 2026-01-01T12:00:00Z


async def eventually(condition: Callable[[], object], what: str, *, limit_s: float = 60.0) -> None:
    """Let the loop run until ``condition`` holds; after ``limit_s`` of real time it is taken for never."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {limit_s:g} s in vain: {what}")
        await asyncio.sleep(0.001)  # the kernel's and other threads' turn, not a guess at how long they take


def counter(built: BuiltGraph, name: str, operator: str = "source") -> int | None:
    """One of an operator's own figures; ``None`` while it has none."""
    return next(status for status in built.status().operators if status.name == operator).counters.get(name)


async def port_of(built: BuiltGraph) -> int:
    """The port the source listens on, as soon as it does."""
    await eventually(lambda: counter(built, "port"), "the source names its port")
    port = counter(built, "port")
    assert port is not None
    return port


def fed_by(
    source: Factory, sink: Factory, *, policy: RestartPolicy = SOURCE_DEFAULT, capacity: int = 64
) -> OperatorGraph:
    """``source`` straight into ``sink``."""
    graph = OperatorGraph("fed")
    vertex = graph.add_source("source", source, restart_policy=policy)
    graph.connect(vertex, graph.add_sink("sink", sink), capacity)
    return graph


class GatedSink:
    """Collects what comes once ``gate`` is open, and holds on to its first item until then."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.gate = asyncio.Event()

    async def __call__(self, ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches():
            await self.gate.wait()
            self.items.extend(batch)


class Fault:
    """Fails the running instance of ``factory`` with an ``OSError`` whenever ``strike`` is called."""

    def __init__(self, factory: Factory) -> None:
        self.factory = factory
        self.instances = 0
        self._strike = asyncio.Event()

    def strike(self) -> None:
        self._strike.set()

    async def __call__(self, ends: WiredEnds) -> None:
        self.instances += 1
        self._strike.clear()
        working = asyncio.ensure_future(self.factory(ends))
        striking = asyncio.ensure_future(self._strike.wait())
        try:
            await asyncio.wait({working, striking}, return_when=asyncio.FIRST_COMPLETED)
            if striking.done():
                raise OSError("a fault, injected")
            await working
        finally:
            for task in (working, striking):
                task.cancel()
            await asyncio.gather(working, striking, return_exceptions=True)


class FailingStore(DeadLetterList):
    """A dead-letter store that refuses the first ``failures`` letters, as a full disk would."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def append(self, letters: Sequence[DeadLetter]) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError(28, "No space left on device")
        super().append(letters)


def datagram(number: int) -> bytes:
    """A radar detection, told apart by its track number."""
    return radar.encode(
        array_id=1, target_track_id=number, timestamp_ns=NOON_NS + number, range_m=1e6, sigma_range_m=10.0
    )


def observations(count: int) -> list[Observation]:
    """What a radar source makes of ``count`` detections."""
    return radar.decode_many([datagram(number) for number in range(count)], ingest_timestamp=NOON_NS)[0]


def tracks(items: Sequence[Observation]) -> list[int]:
    """The numbers that ``datagram`` gave them."""
    return [int(item.track_id or -1) for item in items]
