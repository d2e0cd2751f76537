"""The optical archive: an HTTP server that stores the telescopes' observations.

``GET /observations?since=<ns>&wait_ms=<ms>&limit=<n>`` answers with a JSON array, in time order, of the entries with a
timestamp above ``since``; with ``wait_ms`` it waits for the first of them. Entries with the same timestamp (faults and the
good entry before them) are never separated by ``limit``, so that ``since`` skips none.
"""

from __future__ import annotations

import asyncio
import contextlib
from bisect import bisect_right
from collections.abc import AsyncIterator, Iterator

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from orchestrator_adapter import listen_tcp
from sda_ops.simulate.config import Endpoint, OutageStyle
from sda_ops.simulate.frames import Batch

_BACKLOG = 100

DEFAULT_LIMIT = 5000
MAX_WAIT_MS = 60_000
DRIP_EVERY_S = 0.05


class Archive:
    """The stored entries and the application that serves them; `ArchiveServer` puts it on a socket.

    Attributes:
        app: The ASGI application.
        in_service: While False, every request is answered according to ``outage_style``.
        outage_style: What happens in an outage. `ArchiveServer` handles "refuse"; here it is a 503.
        requests: Requests received.
        requests_in_outage: Requests received during outages.
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
        self._changed = asyncio.Event()

    @property
    def unserved(self) -> int:
        """Entries that have been in no answer so far."""
        return self._published - self._served

    async def ready(self, ended: asyncio.Event) -> bool:
        """At any time: an archive that is out of service still stores entries."""
        return not ended.is_set()

    async def send(self, batch: Batch) -> int:
        """Store the entries, drop the oldest beyond the history, wake waiting requests."""
        self._times_ns += batch.timestamp_ns.tolist()
        self._entries += batch.frames
        self._published += len(batch.frames)
        # In large steps: removing an item from the front of a list copies the whole list.
        if len(self._entries) > self._history + self._history // 4 + DEFAULT_LIMIT:
            del self._times_ns[: -self._history], self._entries[: -self._history]
        self.wake()
        return len(batch.frames)

    async def disconnect(self) -> None:
        """Entries need no connection."""

    def wake(self) -> None:
        """Let every waiting request check again."""
        self._changed.set()
        self._changed = asyncio.Event()

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
                    await self._changed.wait()
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
        dropped = self._published - len(self._times_ns)
        self._served = max(self._served, dropped + last)
        return b"[" + b",".join(self._entries[first:last]) + b"]"


async def _drip() -> AsyncIterator[bytes]:
    """Endless white space, as before a JSON value."""
    while True:
        yield b" "
        await asyncio.sleep(DRIP_EVERY_S)


class _UvicornServer(uvicorn.Server):
    """uvicorn's server without its signal handlers: the process handles signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class ArchiveServer:
    """Serves an archive at one address, and can stop and start again there.

    Attributes:
        endpoint: The address and the actual port.
    """

    def __init__(self, archive: Archive, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._archive = archive
        self._server: _UvicornServer | None = None
        self._serving: asyncio.Task[None] | None = None

    async def up(self) -> None:
        """Listen. Raises ``OSError``, which names the address, if it is not available."""
        try:
            listener = listen_tcp(self.endpoint.host, self.endpoint.port, backlog=_BACKLOG)
        except OSError as error:
            raise OSError(f"an archive cannot listen on {self.endpoint} (--archive): {error.strerror}") from error
        self.endpoint = Endpoint(self.endpoint.host, listener.getsockname()[1])
        self._archive.in_service = True
        config = uvicorn.Config(
            self._archive.app,
            lifespan="off",
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        self._server = _UvicornServer(config)
        self._serving = asyncio.create_task(self._server.serve(sockets=[listener]), name="archive")

    async def down(self) -> None:
        """Answer waiting requests with 503, close every connection, and stop listening."""
        self._archive.in_service = False
        self._archive.wake()
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
        self._server = self._serving = None
