"""``GET /events``: the run's document as server-sent events, one rendering for all clients.

=================  =============================================================================
``event: graph``   the document: every 0.5 s, 0.1 to 0.2 s after a decision of the supervisor, and at the end of the run
``event: end``     the last event of a run: ``{"outcome": "ShutDown", "text": "…"}``
=================  =============================================================================

Each client gets the newest document: a slow one skips those in between, so nothing is queued for it. One that takes nothing
for the request timeout is disconnected. While no client listens, nothing runs here.

The format: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from orchestrator_adapter.control_plane.answers import as_json, headers
from orchestrator_adapter.control_plane.connections import connection_of
from orchestrator_adapter.primitives.clock import SystemClock
from orchestrator_adapter.primitives.event_log import EventLog, RateLimiter

MAX_STREAMS = 16
_EVERY_S = 0.5
_LOOK_EVERY_S = 0.1  # for new decisions
_SEND_BUFFER = 128 * 1024  # bytes that the kernel keeps for one client that does not read; Linux doubles it
_TYPE = "text/event-stream"
_RECONNECT = b"retry: 1000\n\n"  # ms, after which a browser connects again


class Renders(Protocol):
    """Where the documents come from."""

    async def current(self) -> bytes:
        """The document now, or a recent one: then it is the same object as before."""


class EventStreams:
    """The streams of one server.

    ``decisions`` is a number that changes with every decision of the supervisor, and ``ended`` says how the run has ended:
    the outcome and a sentence. Both are called on the control plane's thread.

    Attributes:
        clients: How many clients listen.
    """

    def __init__(
        self,
        documents: Renders,
        *,
        decisions: Callable[[], int],
        ended: Callable[[], tuple[str, str]],
        log: EventLog,
    ) -> None:
        self.clients = 0
        self._documents = documents
        self._decisions = decisions
        self._ended = ended
        self._log = log
        self._failures = RateLimiter(SystemClock(), period_s=60.0)
        self._latest: bytes | None = None  # the newest event; a new object for each
        self._published = asyncio.Event()  # set, and replaced, with each event
        self._stopped = asyncio.Event()
        self._publishing: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """End every stream. Each one sends the document of this moment, and how the run has ended."""
        self._stopped.set()
        self._published.set()

    async def answer(self, request: Request) -> Response:
        """A stream, or 503 if there are enough of them."""
        if self.clients >= MAX_STREAMS:
            message = f"{MAX_STREAMS} clients listen already; close one of them, or read /graph"
            return as_json({"error": message}, 503, {"Retry-After": "10"})
        if request.method == "HEAD":
            return Response(None, 200, headers(), _TYPE)
        return _Stream(self, self._events(request.scope), headers=headers(), media_type=_TYPE)

    def joined(self) -> None:
        """One client more."""
        self.clients += 1
        if self._publishing is None or self._publishing.done():
            self._latest = None  # of an earlier client
            self._publishing = asyncio.create_task(self._publish())

    def left(self) -> None:
        """One client fewer."""
        self.clients -= 1

    async def _events(self, scope: Scope) -> AsyncIterator[bytes]:
        connection = connection_of(scope)
        connection.limit_send_buffer(_SEND_BUFFER)
        yield _RECONNECT
        sent: bytes | None = None
        while not self._stopped.is_set():
            if (event := self._latest) is not None and event is not sent:
                connection.extend()  # the client has the timeout to take this event
                yield event
                sent = event
            else:
                await self._published.wait()
        connection.extend()
        if (last := await self._rendered()) is not None:
            yield _event("graph", last)
        yield _event("end", json.dumps(dict(zip(("outcome", "text"), self._ended(), strict=True))).encode())

    async def _publish(self) -> None:
        """Until no client listens any more."""
        loop = asyncio.get_running_loop()
        document, decisions, due = None, -1, loop.time()
        while self.clients and not self._stopped.is_set():
            now_decided = self._decisions()
            if now_decided != decisions or loop.time() >= due:
                newest = await self._rendered()
                if newest is not None and newest is not document:
                    document, decisions, due = newest, now_decided, loop.time() + _EVERY_S
                    self._latest = _event("graph", document)
                    self._published.set()
                    self._published = asyncio.Event()
            try:
                await asyncio.wait_for(self._stopped.wait(), _LOOK_EVERY_S)
            except TimeoutError:
                continue

    async def _rendered(self) -> bytes | None:
        """The document; ``None`` if it cannot be made, which is logged."""
        try:
            return await self._documents.current()
        except Exception as error:  # noqa: BLE001 - logged; the streams go on, and the next document may succeed
            if self._failures.admit(type(error).__name__) is not None:
                self._log("document_failed", level=logging.ERROR, exc=error)
            return None


class _Stream(StreamingResponse):
    """The answer to one client. It counts as a client from its first to its last byte."""

    def __init__(
        self, streams: EventStreams, content: AsyncIterator[bytes], *, headers: dict[str, str], media_type: str
    ) -> None:
        super().__init__(content, 200, headers, media_type)
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        self._streams.joined()
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.left()


def _event(name: str, data: bytes) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), data)
