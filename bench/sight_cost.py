"""What sight costs: the figures of the data plane, and a control plane that is watched, against the same graph without them.

Three candidates take turns, A B C C B A …, in one process. The ratios are of CPU time of this process (all threads), which
other load disturbs less than wall-clock time. If ``bare`` differs more from run to run than the bound, the machine is too busy:

``bare``     no time is measured: no wait, no batch, no pressure, no time busy, idle or blocked
``figures``  everything is measured, and no client reads it
``watched``  the same with a control plane: Prometheus scrapes it every 15 s, a client reads ``/events``, it samples itself

It prints figures and asserts nothing. The client is another process. Short runs (`--scale`) overstate ``watched``: its first document
and its first scrape are in each run.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import http.client
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import repeat
from statistics import median
from typing import Any, TypeVar
from unittest.mock import patch
from urllib.parse import urlsplit

from bench.cost import DRAIN, SOURCES, counting_sink, log_sink, pipeline, records
from orchestrator_adapter import BuiltGraph, OperatorGraph, WiredEnds, map_items, source_of
from orchestrator_adapter.channels import edge as edges
from orchestrator_adapter.channels import make_edge
from orchestrator_adapter.channels.channel import Channel
from orchestrator_adapter.channels.edge import Edge
from orchestrator_adapter.channels.pressure import Pressure
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.control_plane.server import ControlPlaneServer
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.stopwatch import Stopwatch
from orchestrator_adapter.primitives.wakeup import Wakeup
from orchestrator_adapter.runtime import wiring
from orchestrator_adapter.testing import chain

T = TypeVar("T")

_SCRAPE_EVERY_S = 15.0


def main() -> None:
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="in which the candidates take turns (default: 9)")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of items (default: 1)")
    parser.add_argument("--only", choices=("a", "b", "c"), help="one of the graphs")
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        watch()
        return
    graphs: dict[str, tuple[str, Callable[[], Callable[[], OperatorGraph]]]] = {
        "a": ("the pipeline of sda-ingest in memory, batches", lambda: ingest(int(600_000 * args.scale))),
        "b": ("single items from hand to hand, an await each", lambda: singles(int(240_000 * args.scale))),
        "c": ("a chain of five operators, batches of up to 256", lambda: batches(int(3_600_000 * args.scale))),
    }
    with client() as watcher:
        for key, (what, make) in graphs.items():
            if args.only in {None, key}:
                compare(f"({key}) {what}", make(), args.rounds, watcher)
        print(f"the client has read {watcher.finished()}")


# The graphs.


def ingest(count: int) -> Callable[[], OperatorGraph]:
    parts = [records(count // SOURCES // DRAIN * DRAIN, seed) for seed in range(SOURCES)]
    return lambda: pipeline(parts, log_sink(lambda _data, _lines: None))


def singles(count: int) -> Callable[[], OperatorGraph]:
    async def send(ends: WiredEnds) -> None:
        for item in repeat(None, count):
            await ends.sender.send(item)

    async def pass_on(ends: WiredEnds) -> None:
        async for item in ends.receiver:
            ends.commit((item,), acknowledge=1)
            await ends.flush()

    async def take(ends: WiredEnds) -> None:
        async for _ in ends.receiver:
            pass

    return lambda: chain(send, pass_on, take, capacity=1_024)


def batches(count: int) -> Callable[[], OperatorGraph]:
    def identity(item: object) -> object:
        return item

    return lambda: chain(source_of(range(count)), *[map_items(identity)] * 5, counting_sink(), capacity=1_024)


# The candidates.


def compare(what: str, make: Callable[[], OperatorGraph], rounds: int, watcher: Client) -> None:
    candidates: Mapping[str, Callable[[], float]] = {
        "bare": lambda: asyncio.run(_cost_s(bare(make()))),
        "figures": lambda: asyncio.run(_cost_s(make().build())),
        "watched": lambda: asyncio.run(_cost_s(make().build(), watcher)),
    }
    costs: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name in list(candidates)[:: -1 if number % 2 else 1]:
            cost = candidates[name]()
            if number:  # the first round is warm-up
                costs[name].append(cost)
    bare_s = costs["bare"]
    noise = f"[{min(bare_s) / median(bare_s) - 1:+.1%} … {max(bare_s) / median(bare_s) - 1:+.1%}] from run to run"
    print(f"{what}; {rounds} rounds, CPU time of a run: {median(bare_s):.2f} s bare, {noise}")
    for name in ("figures", "watched"):
        more = [cost / without - 1 for cost, without in zip(costs[name], costs["bare"], strict=True)]
        least = min(costs[name]) / min(costs["bare"]) - 1  # other load disturbs this figure least
        spread = f"[{min(more):+.1%} … {max(more):+.1%}]; of the least costs {least:+.2%}"
        print(f"  {name:8} {median(more):+.2%} of the CPU time  {spread}  (at most 2 %)", flush=True)


async def _cost_s(built: BuiltGraph, watcher: Client | None = None) -> float:
    """CPU seconds from the first task's start to the end of the last."""
    with ExitStack() as stack:
        if watcher is not None:
            server = stack.enter_context(ControlPlaneServer(built, ControlPlane(port=0)))
            watcher.watch(server.url)
            await asyncio.sleep(0.3)  # until the client is connected: what that costs is no part of the run
        with without_collections():
            started = time.process_time()
            await built.run()
            return time.process_time() - started


@contextmanager
def without_collections() -> Iterator[None]:
    """No garbage collection of the cyclic kind: when it happens, and what it finds, would be noise."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def bare(graph: OperatorGraph) -> BuiltGraph:
    """The graph, built with the stand-ins below."""
    with (
        patch.object(make_edge, "Channel", BareChannel),
        patch.object(make_edge, "Edge", BareEdge),
        patch.object(edges, "Pressure", NoPressure),
        patch.object(edges, "Wakeup", lambda _waiting: Wakeup()),
        patch.object(wiring, "Stopwatch", NoStopwatch),
    ):
        return graph.build()


class BareChannel(Channel[T]):
    """A channel that measures no times."""

    __slots__ = ()

    def __init__(self, edge: str, capacity: int, clock: Clock) -> None:
        super().__init__(edge, capacity)

    def push(self, items: Sequence[T]) -> int:
        accepted = len(items)
        occupancy = len(self._buffer) - self._head - len(self.controls) + accepted
        if occupancy > self.capacity:
            accepted -= occupancy - self.capacity
            items, occupancy = items[:accepted], self.capacity
        self._buffer += items
        self.sent += accepted
        if occupancy > self.high_water_mark:  # noqa: PLR1730 - as in Channel
            self.high_water_mark = occupancy
        return accepted

    def take(self, max_items: int) -> list[T]:
        if max_items < 1:
            raise ValueError
        taken = self._taken
        sequence = self._base + taken
        if self.controls:
            raise NotImplementedError
        if sequence < self._suspects_end:
            raise NotImplementedError
        items = self._buffer[taken : taken + max_items]
        count = len(items)
        self._taken = taken + count
        self.received += count
        return items

    def acknowledge(self, count: int) -> int:
        if not 0 <= count <= self._taken - self._head:
            raise ValueError
        if self._failures:
            raise NotImplementedError
        self._head += count
        signals = self._drop_controls() if self.controls else 0
        self.signals_received += signals
        self._compact()
        return signals


class BareEdge(Edge[T]):
    """An edge that asks for no pressure."""

    __slots__ = ()

    def acknowledge(self, count: int | None = None) -> None:
        channel = self.channel
        if count is None:
            count = channel.leased
        if count:
            signals = channel.acknowledge(count)
            inputs = self.reader.edges
            still_leased = (
                channel.leased_items if len(inputs) == 1 else sum(edge.channel.leased_items for edge in inputs)
            )
            self._reader_account.signals_in += signals
            if count > signals or not still_leased:
                self._reader_account.acknowledge(count - signals, still_leased=still_leased)
            self.space_available.wake()


class NoStopwatch(Stopwatch):
    """Measures nothing."""

    __slots__ = ()

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass


class NoPressure(Pressure):
    """Measures nothing."""

    __slots__ = ()

    def start(self) -> None:
        pass

    def stop(self) -> None:
        pass


# The client: another process.


class Client:
    """Watches one control plane after the other."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def watch(self, url: str) -> None:
        assert self._process.stdin is not None
        print(url, file=self._process.stdin, flush=True)

    def finished(self) -> str:
        """What it has read, in words."""
        said, _ = self._process.communicate(timeout=60)
        return said.strip()


@contextmanager
def client() -> Iterator[Client]:
    command = [sys.executable, "-m", "bench.sight_cost", "--client"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Client(process)
        finally:
            process.kill()


def watch() -> None:
    """Read ``/events`` of each control plane that stdin names, and scrape it when 15 s have passed since the last time."""
    read: dict[str, Any] = {"events": 0, "scrapes": 0, "bytes": 0}
    scraped_at = 0.0
    for line in sys.stdin:
        address = urlsplit(line.strip()).netloc
        stream = threading.Thread(target=_listen, args=(address, read))
        stream.start()
        while stream.is_alive():
            stream.join(0.1)
            if time.monotonic() - scraped_at > _SCRAPE_EVERY_S:
                scraped_at = time.monotonic()
                with suppress(OSError, http.client.HTTPException):
                    connection = http.client.HTTPConnection(address, timeout=10)
                    connection.request("GET", "/metrics")
                    read["bytes"] += len(connection.getresponse().read())
                    read["scrapes"] += 1
    print(f"{read['events']} documents from /events, and {read['bytes']:,} bytes in {read['scrapes']} scrapes")


def _listen(address: str, read: dict[str, Any]) -> None:
    with suppress(OSError, http.client.HTTPException):
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request("GET", "/events")
        for line in connection.getresponse():
            read["events"] += line.startswith(b"event: graph")


if __name__ == "__main__":
    main()
