"""What requests cost a running graph: its throughput while one client sends 10,000 GET, half ``/graph`` and half ``/metrics``.

The graph is a chain of five operators that is never idle, so the client and the answers compete with it for the interpreter.
The client is another process that sends one request after the other, as fast as it is answered. It prints figures and asserts
nothing. Items per second of processor time of this process are what other load disturbs least.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import logging
import sys
import time
from collections.abc import Awaitable
from itertools import count
from urllib.parse import urlsplit

from bench.cost import counting_sink
from orchestrator_adapter import BuiltGraph, map_items, source_of
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.control_plane.server import ControlPlaneServer
from orchestrator_adapter.testing import chain


def main() -> None:
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--alone", type=float, default=10.0, help="seconds without requests, before and after them")
    parser.add_argument("--client", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client is None:
        asyncio.run(measure(args.requests, args.alone))
    else:
        send(args.client, args.requests)


async def measure(requests: int, alone_s: float) -> None:
    def identity(item: object) -> object:
        return item

    graph = chain(source_of(count()), *[map_items(identity)] * 5, counting_sink(), capacity=1_024)
    built = graph.build()
    with ControlPlaneServer(built, ControlPlane(port=0)) as server:
        running = asyncio.create_task(built.run())
        await asyncio.sleep(1.0)
        before = await rates(built, asyncio.sleep(alone_s))
        began = time.monotonic()
        during = await rates(built, client(server.url, requests))
        took_s = time.monotonic() - began
        after = await rates(built, asyncio.sleep(alone_s))
        built.request_shutdown("measured")
        await running
    print(f"{requests:,} requests in {took_s:.1f} s: {requests / took_s:,.0f} per second")
    for what, now, one, other in zip(("second", "CPU second"), during, before, after, strict=True):
        usual = (one + other) / 2
        print(f"items per {what}: {usual:,.0f} alone, {now:,.0f} with the requests: {now / usual:.2f} of it")


async def rates(built: BuiltGraph, during: Awaitable[object]) -> tuple[float, float]:
    """Items per second, and per second of processor time, until ``during`` has ended."""
    items, at, cpu = built.ledger().written, time.monotonic(), time.process_time()
    await during
    done = built.ledger().written - items
    return done / (time.monotonic() - at), done / (time.process_time() - cpu)


async def client(url: str, requests: int) -> None:
    arguments = ("-m", "bench.requests_cost", "--client", url, "--requests", str(requests))
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments)
    if await process.wait():
        raise SystemExit("the client has failed")


def send(url: str, requests: int) -> None:
    address = urlsplit(url).netloc
    for number in range(requests):
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request("GET", "/metrics" if number % 2 else "/graph")
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise SystemExit(f"status {answer.status}")
        connection.close()


if __name__ == "__main__":
    main()
