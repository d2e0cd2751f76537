"""The control plane's thread and its socket: it answers while the graph's loop is stalled.

``pages`` has the answers, ``access`` who gets them, ``connections`` how many clients there may be and what each may cost. No
fault of this thread reaches the graph.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

from orchestrator_adapter.control_plane.access import DenialLog, Guard
from orchestrator_adapter.control_plane.actions import Actions
from orchestrator_adapter.control_plane.answers import Answers
from orchestrator_adapter.control_plane.collectors import Collectors
from orchestrator_adapter.control_plane.config import ControlPlane
from orchestrator_adapter.control_plane.connections import BACKLOG, Server, tls_context
from orchestrator_adapter.control_plane.dead_letters_page import dead_letters_route
from orchestrator_adapter.control_plane.event_stream import EventStreams
from orchestrator_adapter.control_plane.exposition import families
from orchestrator_adapter.control_plane.graph_document import Documents
from orchestrator_adapter.control_plane.links import Links
from orchestrator_adapter.control_plane.pages import application, page_files
from orchestrator_adapter.control_plane.snapshot import Snapshots
from orchestrator_adapter.control_plane.worker_pools import WorkerPool
from orchestrator_adapter.primitives.errors import OrchestratorError
from orchestrator_adapter.primitives.event_log import EventLog
from orchestrator_adapter.primitives.forked_children import close_in_forked_children
from orchestrator_adapter.primitives.listening import listen_tcp
from orchestrator_adapter.runtime.built_graph import BuiltGraph
from orchestrator_adapter.runtime.ending import ending_of

logger = logging.getLogger("orchestrator_adapter.control_plane")

_STOP_S = 3.0  # for the whole stop; it takes milliseconds


class CannotListen(OrchestratorError, OSError):
    """The control plane cannot listen on its address: it is in use, or it is not an address of this machine."""


class ControlPlaneServer:
    """Serves one graph, and the figures of ``pools``, inside ``with``. Enter it on the graph's loop, before the run.

    Entering raises ``CannotListen``, ``CannotUseCertificate`` or ``ClashingMetrics``; nothing has been started then. Exiting takes milliseconds and raises nothing.

    Attributes:
        url: The address with the real port; empty before ``__enter__``.
    """

    def __init__(
        self,
        built: BuiltGraph,
        settings: ControlPlane,
        *,
        pools: Sequence[WorkerPool] = (),
        links: Links | None = None,
    ) -> None:
        self.url = ""
        self._built = built
        self._settings = settings
        self._pools = pools
        self._links = links
        self._log = EventLog(logger, clock=built.clock, run=built.run_id, graph=built.plan.name)
        self._stopping = threading.Event()
        self._serving: tuple[asyncio.AbstractEventLoop, Server] | None = None

    def __enter__(self) -> Self:
        self._graph_loop = asyncio.get_running_loop()
        self._snapshots = Snapshots(self._built, patience=self._settings.patience, pools=self._pools)
        built_in = families(self._built.plan, self._snapshots.latest())
        self._collectors = Collectors(self._settings.collectors, built_in=built_in, log=self._log)
        self._tls = tls_context(self._settings)
        self._page = page_files()
        self._socket = _listen(self._settings)
        self.url = _url(self._settings, self._socket)
        self._thread = threading.Thread(target=self._run, name="control-plane", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._socket.close()
            raise
        self._log("control_plane", url=self.url)
        return self

    def __exit__(self, *_: object) -> None:
        self._snapshots.finish()
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
        documents = Documents(self._built, self._snapshots, self._settings, self._collectors, links=self._links)
        streams = EventStreams(
            documents,
            decisions=lambda: self._built.timeline.recorded,
            ended=lambda: ending_of(self._built.event),
            log=self._log,
        )

        def on_stop() -> None:
            self._snapshots.release()
            documents.expire()
            streams.stop()

        denials = DenialLog(self._log, self._built.clock)
        pages = application(
            self._built.plan,
            Answers(self._snapshots, self._settings.reuse_for),
            self._collectors,
            documents=documents,
            streams=streams,
            page=self._page,
            more=(
                dead_letters_route(self._built.plan, self._built.recent_dead_letters),
                *Actions(self._built, self._graph_loop, self._settings, denials).routes,
            ),
        )
        guarded = Guard(pages, self._settings, denials)
        server = Server(guarded, self._settings, self._tls, on_stop=on_stop)
        self._serving = (asyncio.get_running_loop(), server)
        if self._stopping.is_set():
            server.stop_requested.set()
        sampling = asyncio.create_task(documents.sample(), name="sampling")
        try:
            await server.serve(sockets=[self._socket])
        finally:
            sampling.cancel()


def _listen(settings: ControlPlane) -> socket.socket:
    where = f"{_scheme(settings)}://{_host(settings.host)}:{settings.port}"
    try:
        listening = listen_tcp(settings.host, settings.port, backlog=BACKLOG)
    except OSError as error:
        raise CannotListen(
            f"control plane: cannot listen on {where}: {error.strerror} "
            "(control_plane.host and control_plane.port say where)"
        ) from error
    close_in_forked_children(listening)  # the port must be free when this process ends
    return listening


def _url(settings: ControlPlane, listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"{_scheme(settings)}://{_host(host)}:{port}"


def _scheme(settings: ControlPlane) -> str:
    return "http" if settings.tls is None else "https"


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host
