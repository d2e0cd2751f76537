"""An HTTP archive for tests of the optical source: entries, scripted answers, and a feed that polls it."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from orchestrator_adapter import (
    BreakerPolicy,
    BuiltGraph,
    RestartPolicy,
    RetryPolicy,
)
from orchestrator_adapter.testing import CollectSink, ManualClock
from sda_ops.sources.optical import OpticalFeed
from tests.helpers.running import GatedSink, eventually

NOW_NS = ManualClock().now_ns()
ALWAYS = RestartPolicy.always()


def entry(number: int, *, at_ns: int | None = None, **changes: object) -> dict[str, Any]:
    good = {
        "obs_id": f"o-{number}",
        "timestamp_ns": NOW_NS - 10**9 + number if at_ns is None else at_ns,
        "ra_rad": 1.0,
        "dec_rad": 0.5,
        "sigma_arcsec": 1.0,
        "site_id": "site-1",
    }
    return good | changes


class Archive:
    """An HTTP archive. It first gives its scripted ``answers``, then ``entries`` after ``since``, at most ``limit`` of them.

    A scripted answer is raw HTTP; ``None`` closes the connection without an answer.
    """

    def __init__(self, *entries: dict[str, Any], limit: int = 1_000) -> None:
        self.entries = list(entries)
        self.limit = limit
        self.answers: deque[bytes | None] = deque()
        self.requests: list[dict[str, int]] = []
        self.port = 0
        self.added = asyncio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/observations"

    @asynccontextmanager
    async def serving(self, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Archive]:
        server = await asyncio.start_server(self._answer, "127.0.0.1", self.port, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    def page(self, since: int) -> bytes:
        later = [
            each
            for each in self.entries
            if not isinstance(each.get("timestamp_ns"), int) or each["timestamp_ns"] > since
        ]
        return json.dumps(later[: self.limit]).encode()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
            query = parse_qs(urlsplit(request.split()[1].decode()).query)
            query_values = {name: int(values[0]) for name, values in query.items()}
            self.requests.append(query_values)
            if self.answers:
                answer = self.answers.popleft()
            else:
                if "wait_ms" in query_values and self.page(query_values["since"]) == b"[]":
                    self.added.clear()
                    await self.added.wait()
                answer = http(200, self.page(query_values["since"]))
            if answer is not None:
                writer.write(answer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the poller closed the connection
        finally:
            writer.close()


def http(status: int, body: bytes, *headers: str) -> bytes:
    head = [f"HTTP/1.1 {status} Scripted", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


def feed(archive: Archive, **options: Any) -> OpticalFeed:
    defaults: dict[str, Any] = {
        "poll_interval": timedelta(milliseconds=1),
        "lookback": timedelta(seconds=60),
        "retry": RetryPolicy(timedelta(milliseconds=1), timedelta(milliseconds=5), max_attempts=None),
        "breaker": BreakerPolicy(min_calls=1_000),
    }
    return OpticalFeed(archive.url, **(defaults | options))


def ids(sink: CollectSink | GatedSink) -> list[str]:
    return [item.track_id for item in sink.items]


async def when(built: BuiltGraph, clock: ManualClock, condition: Callable[[], object], what: str) -> None:
    """Advance the clock by one poll interval a turn until ``condition`` holds; then request the shutdown."""

    def holds() -> bool:
        clock.advance(0.001)
        return bool(condition())

    await eventually(holds, what)
    built.request_shutdown("test")
