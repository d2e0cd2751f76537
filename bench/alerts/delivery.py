"""What a delivery costs: from the outbox to a local subscriber's acknowledgement, over real HTTP.

The subscriber is another process, which answers 200 and stores nothing: its own transaction would be the greater part. The processor
time is that of the delivering process. Wall times depend on the disk (each acknowledgement is a transaction that is on the disk) and
on other load.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from orchestrator_adapter import BuiltGraph
from orchestrator_adapter.testing import ListSource, Pause, Step, UntilShutdown, chain, run_graph
from sda_ops.alerts.delivery.sink import alerts_sink
from sda_ops.alerts.delivery.webhook import Webhook
from sda_ops.alerts.formats.json import alert_json
from sda_ops.alerts.outbox.store import AlertOutbox
from sda_ops.alerts.outbox.values import Delivery
from tests.helpers.alerts import outbox_in, risk

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
_DEAD = "http://127.0.0.1:9/"  # a port at which nothing listens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option."""
    parser.add_argument("--backlog", type=int, default=10_000, help="alerts that wait at the start (default: 10000)")
    parser.add_argument("--paced", type=int, default=500, help="alerts that come one by one (default: 500)")
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 2, 4], help="(default: 1 2 4)")
    parser.add_argument("--folder", type=Path, help="a disk to write to (default: where temporary files go)")


def run(args: argparse.Namespace) -> int:
    """Deliver, and print the figures."""
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    with _subscriber() as url:
        for concurrency in args.concurrency:
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                asyncio.run(_backlog(Path(folder), url, args.backlog, concurrency))
        quiet = loaded = 0.0
        for dead in (False, True, False, True):
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                cpu_ms = asyncio.run(_one_by_one(Path(folder), url, args.paced, dead=dead))
            loaded, quiet = (loaded + cpu_ms, quiet) if dead else (loaded, quiet + cpu_ms)
        print(
            f"processor time of the healthy subscriber's run: with a dead one beside it {loaded / quiet:.2f} of without"
        )
    return 0


async def _backlog(folder: Path, url: str, count: int, concurrency: int) -> None:
    outbox = _Timed(folder, "a")
    outbox.open(time.time_ns())
    outbox.record([risk(number) for number in range(count)], time.time_ns())
    outbox.close()
    hook = Webhook(name="a", url=url, body=alert_json, max_per_s=None, concurrency=concurrency)
    wall_s, cpu_s = await _run(outbox, [hook], [], count)
    print(
        f"backlog of {count:,}, {concurrency} at once: {count / wall_s:,.0f} deliveries/s, drained in {wall_s:.1f} s, "
        f"{cpu_s / count * 1e3:.2f} ms of processor time each",
        flush=True,
    )


async def _one_by_one(folder: Path, url: str, count: int, *, dead: bool) -> float:
    """One alert every 10 ms. Returns the processor time of a delivery, with its recording, in milliseconds."""
    names = ["a", "dead"] if dead else ["a"]
    outbox = _Timed(folder, *names)
    hooks = [Webhook(name=name, url=url if name == "a" else _DEAD, body=alert_json, max_per_s=None) for name in names]
    steps: list[Step] = []
    for number in range(count):
        steps += [[risk(number)], Pause(timedelta(milliseconds=10))]
    _, cpu_s = await _run(outbox, hooks, steps, count)
    p50, p99 = np.quantile(outbox.latencies_s, [0.5, 0.99]) * 1e3
    beside = "beside a dead subscriber" if dead else "alone"
    print(
        f"one every 10 ms, {beside}: recorded to acknowledged p50 {p50:.1f} ms, p99 {p99:.1f} ms, "
        f"{cpu_s / count * 1e3:.2f} ms of processor time each, with the recording",
        flush=True,
    )
    return cpu_s / count * 1e3


async def _run(outbox: _Timed, hooks: list[Webhook], steps: list[Step], count: int) -> tuple[float, float]:
    """Run until ``count`` alerts are acknowledged. Returns wall and processor time, seconds."""
    sink = alerts_sink(outbox, hooks)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    took: tuple[float, float] = (0.0, 0.0)

    async def during(built: BuiltGraph) -> None:
        nonlocal took
        await outbox.until_acknowledged(count)
        took = time.perf_counter() - began_s, time.process_time() - began_cpu_s
        built.request_shutdown("measured")

    await run_graph(chain(ListSource(*steps, UntilShutdown()), sink), during=during, limit=timedelta(minutes=10))
    return took


class _Timed(AlertOutbox):
    """Notes how long each acknowledged alert was in the outbox."""

    def __init__(self, folder: Path, *names: str) -> None:
        model = outbox_in(folder, *names)
        super().__init__(model.path, subscribers=model.subscribers)
        self.latencies_s: list[float] = []
        self._on_count: tuple[int, Callable[[], object]] | None = None

    async def until_acknowledged(self, count: int) -> None:
        """Wait until so many alerts are acknowledged."""
        done, loop = asyncio.Event(), asyncio.get_running_loop()
        self._on_count = count, lambda: loop.call_soon_threadsafe(done.set)
        self._check()
        await done.wait()

    def _check(self) -> None:
        if self._on_count is not None and len(self.latencies_s) >= self._on_count[0]:
            self._on_count[1]()
            self._on_count = None

    def acknowledge(self, deliveries: list[Delivery], now_ns: int) -> None:  # type: ignore[override] # as it is called
        super().acknowledge(deliveries, now_ns)
        now_ns = time.time_ns()
        self.latencies_s += [(now_ns - each.alert.recorded_timestamp) / 1e9 for each in deliveries]
        self._check()


@contextmanager
def _subscriber() -> Iterator[str]:
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=_serve, args=(theirs,))
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/alerts"
    finally:
        process.kill()
        process.join()


def _serve(ready: Connection) -> None:
    asyncio.run(_answer_all(ready))


async def _answer_all(ready: Connection) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(_ANSWER)
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    ready.send(server.sockets[0].getsockname()[1])
    await server.serve_forever()
