"""The bulkhead's transport compared with pyzmq and CURVE: round trips, and how soon a lost worker is noticed.

Each rig calls the same handler in a worker process on this machine; the rigs take turns. The pyzmq rigs are the data path only:
one socket per worker, so that a monitor's event names its worker; any CURVE key is accepted; received arrays are read-only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from itertools import product
from multiprocessing import get_context
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from orchestrator_adapter import RestartPolicy
from orchestrator_adapter.bulkhead import Arrays, Bulkhead, LocalProcesses, Network
from orchestrator_adapter.bulkhead.transport.wire import Header, encode
from orchestrator_adapter.bulkhead.worker import lower_priority

Rig = tuple[Callable[[str, Arrays], Awaitable[Any]], int, asyncio.Event]  # call; the worker's pid; set when it is lost


class Handler:  # returns what it was sent, or 2 MiB
    def handle(self, method: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
        return dict(arrays) if method == "small" else {"x": np.zeros(2 << 20, np.uint8)}


@asynccontextmanager
async def bulkhead(network: Network | None) -> AsyncIterator[Rig]:
    lost = asyncio.Event()
    limits: dict[str, Any] = {"answer_within": timedelta(minutes=1), "drain_within": timedelta(seconds=0.3)}
    limits |= {"rebuilds": RestartPolicy.always(backoff=None), "launcher": LocalProcesses(network=network)}
    lost_hooks: dict[str, Callable[[], Any]] = {"worker_lost": lost.set}
    limits["on_event"] = lambda event: lost_hooks.get(event.decision, bool)()
    async with Bulkhead("bench", "bench.bulkhead_transport:Handler", **limits) as pool:
        yield pool.call, pool.statistics().pids[1], lost


@asynccontextmanager
async def pyzmq(address: str, *, curve: bool) -> AsyncIterator[Rig]:
    import zmq.asyncio  # noqa: PLC0415 - optional
    from zmq.auth.asyncio import AsyncioAuthenticator  # noqa: PLC0415 - optional
    from zmq.utils.monitor import parse_monitor_message  # noqa: PLC0415 - optional

    context, connected, lost = zmq.asyncio.Context(), asyncio.Event(), asyncio.Event()
    sock, authenticator = context.socket(zmq.DEALER), AsyncioAuthenticator(context)
    sock.heartbeat_ivl, sock.heartbeat_timeout = 200, 600  # milliseconds
    keys = (zmq.curve_keypair(), zmq.curve_keypair()) if curve else None
    if keys:
        authenticator.start()
        authenticator.configure_curve(location="*")
        sock.curve_server, (sock.curve_publickey, sock.curve_secretkey) = True, keys[0]
    monitor = sock.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)

    async def watch() -> None:
        while True:
            event = parse_monitor_message(await monitor.recv_multipart())["event"]
            (lost if event == zmq.EVENT_DISCONNECTED else connected).set()

    async def call(method: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
        await sock.send_multipart(encode("call", ticket=1, name=method, arrays=arrays).buffers, copy=False)
        while True:
            with suppress(zmq.Again):  # with heartbeats and CURVE, a socket may be readable without a message
                return decode(await sock.recv_multipart(copy=False))[1]

    with tempfile.TemporaryDirectory() as folder:
        sock.bind(address.format(folder=folder))
        watching = asyncio.create_task(watch())
        (
            worker := get_context("spawn").Process(target=pyzmq_worker, args=(sock.last_endpoint, keys), daemon=True)
        ).start()
        await connected.wait()
        yield call, worker.pid or 0, lost
        worker.kill()
        watching.cancel()
        authenticator.stop()
        context.destroy(linger=0)


def pyzmq_worker(endpoint: bytes, keys: Any) -> None:
    import zmq  # noqa: PLC0415 - optional

    lower_priority()
    handler, sock = Handler(), zmq.Context().socket(zmq.DEALER)
    if keys:
        sock.curve_serverkey, (sock.curve_publickey, sock.curve_secretkey) = keys[0][0], keys[1]
    sock.connect(endpoint.decode())
    while True:
        header, arrays = decode(sock.recv_multipart(copy=False))
        sock.send_multipart(encode("answer", arrays=handler.handle(header.name, arrays)).buffers, copy=False)


def decode(frames: list[Any]) -> tuple[Header, dict[str, NDArray[Any]]]:
    header = msgspec.msgpack.decode(frames[0].buffer[16:], type=Header)  # after the prefix, which pyzmq does not need
    pairs = zip(header.arrays, frames[1:], strict=True)
    return header, {of.name: np.frombuffer(frame.buffer, of.dtype).reshape(of.shape) for of, frame in pairs}


RIGS: dict[str, Callable[[], AbstractAsyncContextManager[Rig]]] = {
    "bulkhead, Unix socket": partial(bulkhead, None),
    "pyzmq, ipc": partial(pyzmq, "ipc://{folder}/socket", curve=False),
    "pyzmq, ipc, CURVE": partial(pyzmq, "ipc://{folder}/socket", curve=True),
    "bulkhead, TLS": partial(bulkhead, Network("127.0.0.1")),
    "pyzmq, tcp, CURVE": partial(pyzmq, "tcp://127.0.0.1:*", curve=True),
}
REQUESTS = {"16 KiB and back": ("small", {"x": np.zeros((256, 64), np.uint8)}, 1), "2 MiB back": ("large", {}, 10)}
LOSSES = {"kill -9 noticed": signal.SIGKILL, "SIGSTOP noticed": signal.SIGSTOP}


async def measure(rig: AbstractAsyncContextManager[Rig], calls: int, loss: str, ms: dict[str, list[float]]) -> None:
    async with rig as (call, pid, lost):
        for what, (method, arrays, fewer) in REQUESTS.items():
            for _ in range(calls // fewer):
                begun = time.perf_counter()
                await call(method, arrays)
                ms[what].append(1e3 * (time.perf_counter() - begun))
        begun = time.perf_counter()
        os.kill(pid, LOSSES[loss])
        with suppress(TimeoutError):  # the bulkhead notices a stopped process only when an answer is late
            await asyncio.wait_for(lost.wait(), 1.0)
            ms[loss].append(1e3 * (time.perf_counter() - begun))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, epilog="Needs pyzmq, which the project does not install.")
    for option, default in (("--rounds", 8), ("--calls", 300)):
        parser.add_argument(option, type=int, default=default)
    args = parser.parse_args()
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _, name, loss in product(range(args.rounds), RIGS, LOSSES):
        asyncio.run(measure(RIGS[name](), args.calls, loss, figures[name]))
    print(f"{'p50 / p99, ms':24}" + "".join(f"{what:>20}" for what in (*REQUESTS, *LOSSES)))
    for name, ms in figures.items():
        cells = (" / ".join(f"{np.percentile(ms[w], q):.2f}" for q in (50, 99) if ms[w]) for w in (*REQUESTS, *LOSSES))
        print(f"{name:24}" + "".join(f"{cell or 'no':>20}" for cell in cells))
