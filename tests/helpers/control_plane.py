"""For tests of the control plane: graphs to serve, HTTP requests, raw connections, the log."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from orchestrator_adapter import (
    BuiltGraph,
    SupervisionPolicy,
    map_items,
)
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.control_plane.server import ControlPlaneServer
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import CollectSink, ListSource, UntilShutdown, chain
from tests.helpers.log_lines import event_of

ANY = ControlPlane(port=0, reuse_for=timedelta(0))
"""On any free port; every answer is new."""


def waiting() -> BuiltGraph:
    """A graph that takes in three items and then waits for a shutdown request."""
    return chain(ListSource([1, 2, 3], UntilShutdown()), map_items(lambda item: item), CollectSink()).build()


def get(url: str, accept: str = "*/*") -> httpx.Response:
    """One request on a new connection. Call it in a thread, or while the loop is stalled on purpose."""
    return httpx.get(url, headers={"Accept": accept}, timeout=30)


async def fetch(url: str, accept: str = "*/*") -> httpx.Response:
    return await asyncio.to_thread(get, url, accept)


def value(metrics: str, name: str, **labels: str) -> float:
    """The one sample with that name and those labels."""
    (found,) = (
        sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    )
    return float(found)


async def served(
    built: BuiltGraph,
    during: Callable[[str], Any],
    *,
    policy: SupervisionPolicy | None = None,
    plane: ControlPlane = ANY,
) -> events.SupervisorEvent:
    """Run ``built`` with a control plane; await ``during(url)``; then stop the run."""
    with ControlPlaneServer(built, plane) as server:
        running = asyncio.create_task(built.run(policy))
        try:
            await during(server.url)
        finally:
            built.request_shutdown("the test is over")
            await running
    return running.result()


@contextmanager
def logged(name: str) -> Iterator[list[dict[str, Any]]]:
    """The JSON lines of one logger, at level INFO and above."""
    lines: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with suppress(ValueError):
                lines.append(event_of(record.getMessage()))

    logger, handler = logging.getLogger(name), Keep()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def is_closed(sock: socket.socket) -> bool:
    """Wait until the other end closes; after 20 s it is taken for never (and that is a ``TimeoutError``)."""
    try:
        while sock.recv(65_536):
            pass
    except ConnectionError:
        pass
    return True


def server_connections(url: str) -> list[str]:
    """Established connections to the control plane, as the kernel lists them."""
    port = int(url.rsplit(":", 1)[1])
    connections = [
        connection for connection in psutil.Process().net_connections("tcp4") if connection.laddr.port == port
    ]
    return [str(each.raddr) for each in connections if each.status == psutil.CONN_ESTABLISHED]
