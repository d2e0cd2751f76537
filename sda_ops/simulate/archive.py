"""The optical archive: an HTTP server that keeps what the telescopes have observed.

``GET /observations?since=<ns>&wait_ms=<ms>&limit=<n>`` answers a JSON array, in time order, of the entries with a
timestamp above ``since``; with ``wait_ms`` it waits for the first of them. Entries that share a timestamp (faults and
the good entry they follow) are never torn apart by ``limit``, so that ``since`` loses none.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from sda_ops.simulate.config import Endpoint, OutageStyle
from sda_ops.simulate.frames import Batch

DEFAULT_LIMIT = 5000
MAX_WAIT_MS = 60_000
DRIP_EVERY_S = 0.05


class Archive:
    """History and application in one; `ArchiveServer` puts it on a socket.

    Attributes:
        app: The ASGI application.
        in_service: While False, every request meets what ``outage_style`` says.
        outage_style: How it is out of service; a refused connection is the server's business, and is 503 here.
        requests: How many came in.
        requests_in_outage: How many of them while it was out of service.
    """

    def __init__(self, *, history: int) -> None:
        self.app = Starlette(routes=[Route("/observations", self._observations)])
        self.in_service = True
        self.outage_style: OutageStyle = "503"
        self.requests = 0
        self.requests_in_outage = 0
        self._history = history
        self._times_ns: list[int] = []
        self._entries: list[bytes] = []
        self._published = 0
        self._served = 0
        self._news = asyncio.Event()

    @property
    def unserved(self) -> int:
        """Entries that no answer has contained so far."""
        return self._published - self._served

    async def ready(self, ended: asyncio.Event) -> bool:
        """At any time: an archive that cannot be had still fills."""
        return not ended.is_set()

    async def send(self, batch: Batch) -> int:
        """Keep the entries, forget the oldest beyond the history, wake whoever waits."""
        self._times_ns += batch.timestamp_ns.tolist()
        self._entries += batch.frames
        self._published += len(batch.frames)
        # In large steps: taking one from the front of a list costs the whole list.
        if len(self._entries) > self._history + self._history // 4 + DEFAULT_LIMIT:
            del self._times_ns[: -self._history], self._entries[: -self._history]
        self.wake()
        return len(batch.frames)

    async def disconnect(self) -> None:
        """Entries need no connection."""

    def wake(self) -> None:
        """Let every waiting request look again."""
        self._news.set()
        self._news = asyncio.Event()

    async def _observations(self, request: Request) -> Response:
        try:
            since_ns, wait_ms, limit = (
                int(request.query_params.get(name, default))
                for name, default in (("since", "-1"), ("wait_ms", "0"), ("limit", str(DEFAULT_LIMIT)))
            )
        except ValueError:
            return JSONResponse({"error": "since, wait_ms and limit must be integers"}, status_code=400)
        self.requests += 1
        self.requests_in_outage += not self.in_service
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(max(0, wait_ms), MAX_WAIT_MS) / 1000.0):
                while self.in_service and not (self._times_ns and self._times_ns[-1] > since_ns):
                    await self._news.wait()
        if self.in_service:
            return Response(self._page(since_ns, max(1, limit)), media_type="application/json")
        if self.outage_style == "drip":
            return StreamingResponse(_drip(), media_type="application/json")
        if self.outage_style == "blackhole":
            while (await request.receive())["type"] != "http.disconnect":
                pass
        return JSONResponse({"error": "out of service"}, status_code=503)

    def _page(self, since_ns: int, limit: int) -> bytes:
        first = bisect_right(self._times_ns, since_ns)
        last = min(first + limit, len(self._times_ns))
        if last > first:
            last = bisect_right(self._times_ns, self._times_ns[last - 1])
        forgotten = self._published - len(self._times_ns)
        self._served = max(self._served, forgotten + last)
        return b"[" + b",".join(self._entries[first:last]) + b"]"


async def _drip() -> AsyncIterator[bytes]:
    """The white space before a JSON value: each byte promises more, and it never ends."""
    while True:
        yield b" "
        await asyncio.sleep(DRIP_EVERY_S)


class _Server(uvicorn.Server):
    """uvicorn's, without its signal handlers: signals are the process's business."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ArchiveServer:
    """Serves an archive at one address; can go down and come up again there.

    Attributes:
        endpoint: Where it listens, the port that was given to it included.
    """

    def __init__(self, archive: Archive, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._archive = archive
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def up(self) -> None:
        """Listen. Raises ``OSError`` where the address cannot be had."""
        family = socket.getaddrinfo(self.endpoint.host, self.endpoint.port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((self.endpoint.host, self.endpoint.port), family=family)
        self.endpoint = Endpoint(self.endpoint.host, listener.getsockname()[1])
        self._archive.in_service = True
        config = uvicorn.Config(
            self._archive.app,
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        self._server = _Server(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]), name="archive")

    async def down(self) -> None:
        """Answer who is waiting with 503, close every connection, refuse new ones."""
        self._archive.in_service = False
        self._archive.wake()
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
        self._server = self._serving = None
