"""The pages, served by uvicorn on a thread and an event loop of their own, so that they answer while the graph's stands still.

A scraper that is slow, silent or greedy costs next to nothing: there are so many connections and no more, one request
each, with a time limit on all of it, and so many requests a second. Nothing that goes wrong here reaches the graph.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from email.utils import formatdate
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from orchestrator_adapter.control_plane.config import ControlPlane
from orchestrator_adapter.control_plane.exposition import JSON, as_json, text, wants_json
from orchestrator_adapter.control_plane.health import judge
from orchestrator_adapter.control_plane.snapshot import Snapshots
from orchestrator_adapter.graph.plan import Plan
from orchestrator_adapter.primitives.errors import OrchestratorError
from orchestrator_adapter.primitives.event_log import EventLog
from orchestrator_adapter.runtime.built_graph import BuiltGraph

logger = logging.getLogger("orchestrator_adapter.control_plane")

_BACKLOG = 64  # connections in the kernel's queue
_MAX_HEADER_BYTES = 16 * 1024
_LAST_ANSWERS_S = 0.25  # for the requests under way when it is told to stop, those in line included
_STOP_S = 3.0  # for all of the stop; it takes milliseconds


class CannotListen(OrchestratorError, OSError):
    """The control plane's address cannot be had: somebody else has it, or it is none of this machine's."""


class ControlPlaneServer:
    """Serves one graph while inside ``with``, which is entered on the graph's loop, before the run.

    Entering raises ``CannotListen``, and nothing has been started then. Leaving takes milliseconds and raises nothing.

    Attributes:
        url: Where it is served, with the port it really has; empty before.
    """

    def __init__(self, built: BuiltGraph, settings: ControlPlane) -> None:
        self.url = ""
        self._built = built
        self._settings = settings
        self._log = EventLog(logger, clock=built.clock, run=built.run_id, graph=built.plan.name)
        self._stopping = threading.Event()
        self._serving: tuple[asyncio.AbstractEventLoop, _Server] | None = None

    def __enter__(self) -> Self:
        self._snapshots = Snapshots(self._built, patience=self._settings.patience)
        self._socket = _listen(self._settings)
        self.url = _url(self._socket)
        self._thread = threading.Thread(target=self._run, name="control-plane", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._socket.close()
            raise
        self._log("control_plane", url=self.url)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._serving is not None:  # else the thread has not come that far, and will see for itself
            loop, server = self._serving
            with suppress(RuntimeError):  # its loop is closed: it has failed
                loop.call_soon_threadsafe(server.told_to_stop.set)
        self._thread.join(_STOP_S)
        self._socket.close()
        if self._thread.is_alive():  # it holds nothing that matters, and does not keep the process from ending
            self._log("control_plane_straggler", level=logging.ERROR)

    def _run(self) -> None:
        """The thread. The run must not notice what becomes of it."""
        try:
            asyncio.run(self._serve())
        except (Exception, SystemExit) as error:  # noqa: BLE001 - logged, and the run goes on; uvicorn gives up by SystemExit
            self._log("control_plane_failed", level=logging.ERROR, exc=error)
        finally:
            self._socket.close()

    async def _serve(self) -> None:
        pages = application(self._built.plan, self._snapshots)
        server = _Server(pages, self._settings, on_stop=self._snapshots.release)
        self._serving = (asyncio.get_running_loop(), server)
        if self._stopping.is_set():
            server.told_to_stop.set()
        await server.serve(sockets=[self._socket])


# The pages.


def application(plan: Plan, snapshots: Snapshots) -> Starlette:
    """Every page there is."""

    async def health(_: Request) -> Response:
        view = await snapshots.view()
        verdict = judge(view.status, silent_s=view.silent_s, threshold_s=view.threshold_s, held_by=view.held_by)
        body = {
            "status": verdict.status.value,
            "reasons": list(verdict.reasons),
            "graph": plan.name,
            "event_loop_lag_s": view.lag_s,
            "snapshot_age_s": view.age_s,
        }
        return _json(body, 200 if verdict.ok else 503)

    async def metrics(request: Request) -> Response:
        view = await snapshots.view()
        accept = ",".join(request.headers.getlist("accept"))
        if wants_json(accept):
            return _json(as_json(plan, view))
        return _answer(*text(plan, view, accept))

    pages = [Route("/health", health), Route("/metrics", metrics)]

    async def refused(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        body = {"error": error.detail, "pages": [page.path for page in pages]}
        return _json(body, error.status_code, error.headers)

    async def failed(_: Request, error: Exception) -> Response:
        return _json({"error": f"{type(error).__name__}: {error}"}, 500)

    app = Starlette(routes=pages, exception_handlers={HTTPException: refused, Exception: failed})
    app.router.redirect_slashes = False  # what is not a page is none, with or without
    return app


def _json(body: dict[str, Any], status: int = 200, headers: Any = None) -> Response:
    return _answer(json.dumps(body).encode(), JSON, status, headers)


def _answer(body: bytes, content_type: str, status: int = 200, headers: Any = None) -> Response:
    ours = {"Connection": "close", "Cache-Control": "no-store", "Date": formatdate(usegmt=True)}
    return Response(body, status, {**(headers or {}), **ours}, media_type=content_type)


# The connections and the thread's loop.


def paced(app: ASGIApp, per_s: float) -> ASGIApp:
    """``app``, called ``per_s`` times a second and no more, after a burst of as many; who comes too soon waits in line.

    Whoever hangs up (the future ``scope["state"]["gone"]`` is done) leaves the line at once and takes nobody's turn: the
    line is never longer than there are connections. ASGI's own way, ``receive``, would read a greedy client's whole body.
    """
    gap_s, free_at = 1.0 / per_s, float("-inf")
    head_of_line = asyncio.Lock()  # first come, first served

    async def turn() -> None:
        nonlocal free_at
        async with head_of_line:
            now = asyncio.get_running_loop().time()
            due = max(free_at, now - 1.0) + gap_s
            if due > now:
                await asyncio.sleep(due - now)
            free_at = due  # only now: who leaves while waiting has taken nothing

    async def in_turn(scope: Scope, receive: Receive, send: Send) -> None:
        gone: asyncio.Future[None] = scope["state"]["gone"]
        if gone.done():
            return
        my_turn = asyncio.create_task(turn())
        try:
            await asyncio.wait((my_turn, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            my_turn.cancel()
        if not gone.done():
            await app(scope, receive, send)

    return in_turn


class _Server(uvicorn.Server):
    """Stops when it is told to, at once, and does not wake up ten times a second to see whether it was told."""

    def __init__(self, app: Starlette, settings: ControlPlane, *, on_stop: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                paced(app, settings.max_requests_per_s),
                loop="asyncio",
                http=_limited(settings),
                ws="none",
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                access_log=False,
                log_config=None,  # the process's logging is not ours to arrange
                log_level="error",  # of uvicorn's loggers: what a stranger sends is worth no line each time
                h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
                backlog=_BACKLOG,
            )
        )
        self.told_to_stop = asyncio.Event()
        self._on_stop = on_stop

    async def main_loop(self) -> None:
        await self.told_to_stop.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's signature
        for server in self.servers:
            server.close()  # and the sockets with it
        self._on_stop()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_LAST_ANSWERS_S)
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # their last callbacks
        if self.server_state.tasks:  # those who stood in line leave it
            await asyncio.wait(self.server_state.tasks, timeout=_LAST_ANSWERS_S)


def _limited(settings: ControlPlane) -> type[H11Protocol]:
    """An HTTP connection of uvicorn, within limits: it has one for the time between requests, and none for a request's.

    Its requests can tell, without reading on, whether the client is still there: see ``paced``.
    """
    limit_s = settings.request_limit.total_seconds()

    class Limited(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
            super().connection_made(transport)
            self._limit = self.loop.call_later(limit_s, transport.abort)
            self._gone: asyncio.Future[None] = self.loop.create_future()
            self.app_state = {**self.app_state, "gone": self._gone}  # uvicorn makes it each request's scope["state"]
            if len(self.connections) > settings.max_connections:
                transport.abort()  # uvicorn's way would be a 503, and that is what an ill graph is told by

        def connection_lost(self, exc: Exception | None) -> None:
            self._limit.cancel()
            self._gone.set_result(None)
            super().connection_lost(exc)

    return Limited


def _listen(settings: ControlPlane) -> socket.socket:
    where = f"http://{_host(settings.host)}:{settings.port}"
    try:
        family, _, _, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        raise CannotListen(
            f"control plane: cannot listen on {where}: {error}; "
            "control_plane.host and control_plane.port say where, and port 0 takes any that is free"
        ) from error


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{_host(host)}:{port}"


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
