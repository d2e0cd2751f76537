"""An HTTP server for one catalogue, and catalogues of chosen objects."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from orchestrator_adapter import RetryPolicy
from sda_ops.catalog.fetch import CatalogUrl
from sda_ops.catalog.live import (
    CatalogVersion,
    LiveCatalog,
)
from tests.sda_ops.catalog.catalog_texts import OMM, csv_of

ONCE = RetryPolicy(timedelta(milliseconds=1), timedelta(milliseconds=2), max_attempts=1)


TWICE = RetryPolicy(timedelta(milliseconds=1), timedelta(milliseconds=2), max_attempts=2)


def text_of(*numbers: int, **change: object) -> str:
    return csv_of([{**OMM, "NORAD_CAT_ID": number, **change} for number in numbers]) + "\n"


def numbers(version: CatalogVersion) -> list[int]:
    return [int(number) for number in version.columns.catalog_number]


@dataclass(slots=True)
class Server:
    """A real HTTP server for one catalogue. It first sends ``answers``, raw (``None``: nothing), and closes after each."""

    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    answers: list[bytes | None] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                lines = request.decode().split("\r\n")[1:-2]
                headers = {key.lower(): value for key, _, value in (line.partition(": ") for line in lines)}
                self.requests.append(headers)
                scripted = bool(self.answers)
                writer.write((self.answers.pop(0) or b"") if scripted else self._current(headers))
                await writer.drain()
                if scripted:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    def _current(self, request: dict[str, str]) -> bytes:
        headers = "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        if "ETag" in self.headers and request.get("if-none-match") == self.headers["ETag"]:
            return f"HTTP/1.1 304 Not Modified\r\n{headers}\r\n".encode()
        return f"HTTP/1.1 200 OK\r\nContent-Length: {len(self.body)}\r\n{headers}\r\n".encode() + self.body

    @classmethod
    @asynccontextmanager
    async def serving(
        cls, text: str, *, tls: ssl.SSLContext | None = None, headers: dict[str, str] | None = None
    ) -> AsyncIterator[Server]:
        self = cls(text.encode(), headers or {})
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0, ssl=tls)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}/gp.php?secret=1"
        async with server:
            yield self

    def catalog(self, retry: RetryPolicy = ONCE, **options: Any) -> LiveCatalog:
        return LiveCatalog(CatalogUrl(self.url, retry=retry, **options), rng=random.Random(1))
