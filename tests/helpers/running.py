"""For tests of running graphs: bounded waits, sinks with a gate, faults on demand, observations to send."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar, overload

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

T = TypeVar("T")

NOON_NS = 1_767_268_800_000_000_000  # 2026-01-01T12:00:00Z


@overload
async def eventually(
    look: Callable[[], Awaitable[T]], what: str, *, holds: Callable[[T], object] = ..., limit_s: float = ...
) -> T: ...
@overload
async def eventually(
    look: Callable[[], T], what: str, *, holds: Callable[[T], object] = ..., limit_s: float = ...
) -> T: ...
async def eventually(
    look: Callable[[], Any], what: str, *, holds: Callable[[Any], object] = bool, limit_s: float = 120.0
) -> Any:
    """Repeat ``look``, a function or a coroutine function, until what it returns ``holds``, and return that.

    After ``limit_s`` of real time it fails, with what it saw last. Between two looks the loop runs for three times as long
    as a look took, so that polling a server leaves it most of the processor.
    """
    deadline = time.monotonic() + limit_s
    while True:
        began = time.monotonic()
        seen = look()
        if inspect.isawaitable(seen):
            seen = await seen
        if holds(seen):
            return seen
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {limit_s:g} s in vain: {what}; last seen: {seen}")
        await asyncio.sleep(max(0.001, 3 * (time.monotonic() - began)))


def counter(built: BuiltGraph, name: str, operator: str = "source") -> int | None:
    """One of an operator's own counters; ``None`` until it is set."""
    return next(status for status in built.status().operators if status.name == operator).counters.get(name)


async def port_of(built: BuiltGraph) -> int:
    """The port of the source, once it listens."""
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
    """Collects items while ``gate`` is open. Until then it waits with its first batch."""

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
    """A dead-letter store that rejects the first ``failures`` letters, as a full disk would."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    def append(self, letters: Sequence[DeadLetter]) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError(28, "No space left on device")
        super().append(letters)


def datagram(number: int) -> bytes:
    """A radar detection with its own track number."""
    return radar.encode(
        array_id=1, target_track_id=number, timestamp_ns=NOON_NS + number, range_m=1e6, sigma_range_m=10.0
    )


def observations(count: int) -> list[Observation]:
    """``count`` detections, as a radar source decodes them."""
    return radar.decode_many([datagram(number) for number in range(count)], ingest_timestamp=NOON_NS)[0]


def tracks(items: Sequence[Observation]) -> list[int]:
    """Their track numbers, as ``datagram`` set them."""
    return [int(item.track_id or -1) for item in items]
