"""A subscriber over real HTTP that misbehaves as a script says. In the test's own loop, or as a process of its own::

    python -m tests.helpers.faulty_subscriber --table FILE [--script ok,lose]

A script is a list of behaviours, one for each request, from the beginning again after the last:

- ``ok``: store and answer 200; ``slow``: the same after 50 ms
- ``lose``: store, then cut the connection without an answer; ``cut``: cut it without storing
- ``hang``: store, never answer; ``drip``: store, then an answer whose header comes one byte at a time
- ``endless``: store, then 200 with a body without an end; ``dripping-body``: the same, one byte at a time
- ``huge-header``: an answer whose header has no end
- ``redirect``: 307 to an address that stores
- ``503:2``: the status 503 with ``Retry-After: 2``; any other number: that status

``PUT /script`` replaces the script; ``PUT /reject`` with a status and keys gives these keys that answer, always.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import signal
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from sda_ops.alerts.subscriber.table import ReceivedAlert, SubscriberTable

_BYTE_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Request:
    """One delivery as it was received.

    Attributes:
        at_s: When its header had come, monotonic.
        key: Its idempotency key.
        behaviour: How it was answered.
        headers: In lower case.
        body: The body.
    """

    at_s: float
    key: str
    behaviour: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class FaultySubscriber:
    """``async with FaultySubscriber(table) as subscriber`` listens on any free port.

    Attributes:
        requests: All that were received.
        rejected: The status that a key is always answered with.
        on_stage: Called with ``received``, ``stored`` or ``answered``, and the number of the request, counted from 1.
    """

    def __init__(
        self,
        table: SubscriberTable,
        script: str = "ok",
        *,
        monotonic: Callable[[], float] = time.monotonic,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._tls = tls
        self.table = table
        self.requests: list[Request] = []
        self.rejected: dict[str, str] = {}
        self.url = ""
        self.follow(script)
        self.on_stage: Callable[[str, int], object] = lambda stage, number: None
        self._monotonic = monotonic
        self._connections: set[asyncio.Task[None]] = set()

    def follow(self, script: str) -> None:
        """Replace the script."""
        self._script: Iterator[str] = itertools.cycle(script.split(","))

    @property
    def keys(self) -> list[str]:
        """The keys of all requests, in order."""
        return [request.key for request in self.requests]

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        scheme = "http" if self._tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/alerts"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client, or the test, has closed the connection
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer one request. Returns whether the connection stays."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if method != "POST":
            return await self._control(path, body, writer)
        key = headers["idempotency-key"]
        behaviour = "ok" if path == "/elsewhere" else self.rejected.get(key) or next(self._script)
        self.requests.append(Request(self._monotonic(), key, behaviour, headers, body))
        number = len(self.requests)
        self.on_stage("received", number)
        stays = await self._answer(behaviour, headers, body, writer)
        self.on_stage("answered", number)
        return stays

    async def _control(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> bool:
        if path == "/script":
            self.follow(body.decode())
        elif path == "/reject":
            status, *keys = body.decode().split(",")
            self.rejected = dict.fromkeys(keys, status)
        listed = [[request.at_s, request.key, request.behaviour] for request in self.requests]
        await _write(writer, 200, body=json.dumps(listed).encode())
        return True

    async def _answer(self, behaviour: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> bool:
        status, _, retry_after = behaviour.partition(":")
        if status.isdecimal():
            await _write(writer, int(status), headers={"Retry-After": retry_after} if retry_after else None)
            return True
        if behaviour == "redirect":
            await _write(writer, 307, headers={"Location": "/elsewhere"})
            return True
        if behaviour == "slow":
            await asyncio.sleep(_BYTE_EVERY_S)
        if behaviour not in ("cut", "huge-header"):
            self._store(headers, body)
        match behaviour:
            case "ok" | "slow":
                await _write(writer, 200)
                return True
            case "lose" | "cut":
                return False
            case "hang":
                await asyncio.Event().wait()
            case "drip":
                await _drip(writer, b"HTTP/1.1 200 OK\r\n" + b"X-Long: 1\r\n" * 10_000)
            case "dripping-body":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                await _drip(writer, b"x" * 1_000_000)
            case "endless":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n")
                await _flood(writer)
            case "huge-header":
                writer.write(b"HTTP/1.1 200 OK\r\nX-Huge: ")
                await _flood(writer)
            case _:
                raise ValueError(f"no such behaviour: {behaviour}")
        return False

    def _store(self, headers: dict[str, str], body: bytes) -> None:
        received = ReceivedAlert.from_key(
            headers["idempotency-key"],
            content_type=headers.get("content-type", ""),
            body=body,
            received_ns=time.time_ns(),
        )
        self.table.store(received)
        self.on_stage("stored", len(self.requests))


async def _write(
    writer: asyncio.StreamWriter, status: int, body: bytes = b"{}", headers: dict[str, str] | None = None
) -> None:
    lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in (headers or {}).items())]
    lines.append(f"Content-Length: {len(body)}")
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
    await writer.drain()


async def _drip(writer: asyncio.StreamWriter, data: bytes) -> None:
    for number in range(len(data)):
        writer.write(data[number : number + 1])
        await writer.drain()
        await asyncio.sleep(_BYTE_EVERY_S)


async def _flood(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"x" * 65_536)
        await writer.drain()


async def _main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--script", default="ok")
    args = parser.parse_args()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with FaultySubscriber(SubscriberTable(args.table), args.script) as subscriber:
        print(subscriber.url, flush=True)
        await stop.wait()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(_main())
