"""The pages, served by uvicorn on a thread and an event loop of their own: they answer while the graph's loop is stalled.

Slow, silent and greedy clients cost little: connections are limited, each has one timeout and one request, and a rendered
answer is reused for a moment. No fault of this module reaches the graph.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from email.utils import formatdate
from typing import Any, Self

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from orchestrator_adapter.control_plane.collectors import Collectors
from orchestrator_adapter.control_plane.config import ControlPlane
from orchestrator_adapter.control_plane.exposition import JSON, as_json, families, text_format, wants_json
from orchestrator_adapter.control_plane.health import health_of
from orchestrator_adapter.control_plane.snapshot import Snapshots, View
from orchestrator_adapter.control_plane.worker_pools import WorkerPool
from orchestrator_adapter.graph.plan import Plan
from orchestrator_adapter.primitives.errors import OrchestratorError
from orchestrator_adapter.primitives.event_log import EventLog
from orchestrator_adapter.primitives.forked_children import close_in_forked_children
from orchestrator_adapter.primitives.listening import listen_tcp
from orchestrator_adapter.runtime.built_graph import BuiltGraph

logger = logging.getLogger("orchestrator_adapter.control_plane")

_BACKLOG = 64  # connections in the kernel's queue
_MAX_HEADER_BYTES = 16 * 1024
_LAST_ANSWERS_S = 0.25  # after a stop request, for the requests that are being answered
_STOP_S = 3.0  # for the whole stop; it takes milliseconds


class CannotListen(OrchestratorError, OSError):
    """The control plane cannot listen on its address: it is in use, or it is not an address of this machine."""


class ControlPlaneServer:
    """Serves one graph, and the figures of ``pools``, inside ``with``. Enter it on the graph's loop, before the run.

    Entering raises ``CannotListen`` or ``ClashingMetrics``; nothing has been started then. Exiting takes milliseconds and raises nothing.

    Attributes:
        url: The address with the real port; empty before ``__enter__``.
    """

    def __init__(self, built: BuiltGraph, settings: ControlPlane, *, pools: Sequence[WorkerPool] = ()) -> None:
        self.url = ""
        self._built = built
        self._settings = settings
        self._pools = pools
        self._log = EventLog(logger, clock=built.clock, run=built.run_id, graph=built.plan.name)
        self._stopping = threading.Event()
        self._serving: tuple[asyncio.AbstractEventLoop, _Server] | None = None

    def __enter__(self) -> Self:
        self._snapshots = Snapshots(self._built, patience=self._settings.patience, pools=self._pools)
        built_in = families(self._built.plan, self._snapshots.latest())
        self._collectors = Collectors(self._settings.collectors, built_in=built_in, log=self._log)
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
        if self._serving is not None:  # else the thread has not got there yet and checks `_stopping` itself
            loop, server = self._serving
            with suppress(RuntimeError):  # its loop is closed: the thread has failed
                loop.call_soon_threadsafe(server.stop_requested.set)
        self._thread.join(_STOP_S)
        self._socket.close()
        if self._thread.is_alive():  # a daemon thread without resources: the process can end
            self._log("control_plane_straggler", level=logging.ERROR)

    def _run(self) -> None:
        """The thread. A failure is logged; the run goes on."""
        try:
            asyncio.run(self._serve())
        except (Exception, SystemExit) as error:  # noqa: BLE001 - logged; uvicorn raises SystemExit when it cannot start
            self._log("control_plane_failed", level=logging.ERROR, exc=error)
        finally:
            self._socket.close()

    async def _serve(self) -> None:
        pages = application(self._built.plan, _Answers(self._snapshots, self._settings.reuse_for), self._collectors)
        server = _Server(pages, self._settings, on_stop=self._snapshots.release)
        self._serving = (asyncio.get_running_loop(), server)
        if self._stopping.is_set():
            server.stop_requested.set()
        await server.serve(sockets=[self._socket])


# The pages.


class _Answers:
    """Rendered answers, each reused for a moment: a crowd of clients costs the graph one rendering, and not one each."""

    def __init__(self, snapshots: Snapshots, reuse_for: timedelta) -> None:
        self._snapshots = snapshots
        self._reuse_for_s = reuse_for.total_seconds()
        self._rendered: dict[
            str, tuple[float, Response]
        ] = {}  # by kind of answer: when it was rendered, and the answer

    async def get(self, kind: str, render: Callable[[View], Response]) -> Response:
        """The answer of this kind: a recent one, or a new one that ``render`` makes."""
        if (recent := self._recent(kind)) is not None:
            return recent
        view = await self._snapshots.view()
        if (recent := self._recent(kind)) is not None:  # another request has rendered it during the wait
            return recent
        answer = render(view)
        now = asyncio.get_running_loop().time()
        self._rendered = {kind: each for kind, each in self._rendered.items() if now - each[0] < self._reuse_for_s}
        self._rendered[kind] = (now, answer)
        return answer

    def _recent(self, kind: str) -> Response | None:
        rendered_at, answer = self._rendered.get(kind, (float("-inf"), None))
        return answer if asyncio.get_running_loop().time() - rendered_at < self._reuse_for_s else None


def application(plan: Plan, answers: _Answers, collectors: Collectors) -> Starlette:
    """Every page there is."""

    def health_page(view: View) -> Response:
        health = health_of(
            view.status, silent_s=view.silent_s, threshold_s=view.threshold_s, blocked_by=view.blocked_by
        )
        body = {
            "status": health.status.value,
            "reasons": list(health.reasons),
            "graph": plan.name,
            "event_loop_lag_s": view.lag_s,
            "snapshot_age_s": view.age_s,
        }
        return _json(body, 200 if health.ok else 503)

    async def health(_: Request) -> Response:
        return await answers.get("health", health_page)

    async def metrics(request: Request) -> Response:
        accept = ",".join(request.headers.getlist("accept"))
        if wants_json(accept):
            return await answers.get(JSON, lambda view: _json(as_json(plan, view, collectors)))
        text = text_format(accept)
        return await answers.get(
            text.content_type, lambda view: _answer(text.render(plan, view, collectors), text.content_type)
        )

    pages = [Route("/health", health), Route("/metrics", metrics)]

    async def rejected(_: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        body = {"error": error.detail, "pages": [page.path for page in pages]}
        return _json(body, error.status_code, error.headers)

    async def failed(_: Request, error: Exception) -> Response:
        return _json({"error": f"{type(error).__name__}: {error}"}, 500)

    app = Starlette(routes=pages, exception_handlers={HTTPException: rejected, Exception: failed})
    app.router.redirect_slashes = False  # /health/ is no page: 404
    return app


def _json(body: dict[str, Any], status: int = 200, headers: Any = None) -> Response:
    return _answer(json.dumps(body).encode(), JSON, status, headers)


def _answer(body: bytes, content_type: str, status: int = 200, headers: Any = None) -> Response:
    ours = {"Connection": "close", "Cache-Control": "no-store", "Date": formatdate(usegmt=True)}
    return Response(body, status, {**(headers or {}), **ours}, media_type=content_type)


# The connections and the thread's loop.


class _Server(uvicorn.Server):
    """Stops at once when ``stop_requested`` is set; uvicorn's own server polls ten times a second for that."""

    def __init__(self, app: Starlette, settings: ControlPlane, *, on_stop: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=_connection(settings),
                ws="none",
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                access_log=False,
                log_config=None,  # leave the process's logging as it is
                log_level="error",  # of uvicorn's loggers: a client that sends garbage must not fill the log
                h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
                backlog=_BACKLOG,
            )
        )
        self.stop_requested = asyncio.Event()
        self._on_stop = on_stop

    async def main_loop(self) -> None:
        await self.stop_requested.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:  # noqa: ARG002 - uvicorn's signature
        for server in self.servers:
            server.close()  # closes the sockets as well
        self._on_stop()
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_LAST_ANSWERS_S)
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # for their `connection_lost`, after which their requests end
        if self.server_state.tasks:
            await asyncio.wait(self.server_state.tasks, timeout=_LAST_ANSWERS_S)


def _connection(settings: ControlPlane) -> type[H11Protocol]:
    """An HTTP connection with a timeout for all of it, and a limit on their number. Uvicorn has neither.

    Uvicorn's ``limit_concurrency`` answers 503, which is the answer of a failing graph, and leaves idle connections open.
    """
    timeout_s = settings.request_timeout.total_seconds()

    class Connection(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
            super().connection_made(transport)
            self._timeout = self.loop.call_later(timeout_s, transport.abort)
            if len(self.connections) > settings.max_connections:
                transport.abort()

        def connection_lost(self, exc: Exception | None) -> None:
            self._timeout.cancel()
            super().connection_lost(exc)

    return Connection


def _listen(settings: ControlPlane) -> socket.socket:
    where = f"http://{_host(settings.host)}:{settings.port}"
    try:
        listening = listen_tcp(settings.host, settings.port, backlog=_BACKLOG)
    except OSError as error:
        raise CannotListen(
            f"control plane: cannot listen on {where}: {error.strerror} "
            "(control_plane.host and control_plane.port say where)"
        ) from error
    close_in_forked_children(listening)  # the port must be free when this process ends
    return listening


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{_host(host)}:{port}"


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
