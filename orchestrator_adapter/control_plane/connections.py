"""The connections of the control plane: how many there may be, how long each may take, and TLS.

It accepts connections itself, because uvicorn limits neither their number nor their time. A connection counts from its
acceptance on, so the handshake of TLS is limited as well.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from orchestrator_adapter.control_plane.config import ControlPlane
from orchestrator_adapter.primitives.errors import OrchestratorError

BACKLOG = 64
"""Connections in the kernel's queue."""
_MAX_HEADER_BYTES = 16 * 1024
_LAST_ANSWERS_S = 0.25  # after a stop request, for the requests that are being answered
_ACCEPT_AGAIN_S = 0.5  # after a failed accept, for example because no file descriptor is free
_CONNECTION = "connection"  # the key of the connection in a request's state


class CannotUseCertificate(OrchestratorError, OSError):
    """The control plane's certificate or key is missing, unreadable or invalid, or the key belongs to another certificate."""


def tls_context(settings: ControlPlane) -> ssl.SSLContext | None:
    """What ``settings.tls`` says; ``None``: plain HTTP. Reads the files once. Raises ``CannotUseCertificate``."""
    if settings.tls is None:
        return None
    certificate, key = settings.tls
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    for what, path in (("certificate", certificate), ("key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise CannotUseCertificate(f"control plane: cannot read the {what} {path}: {error.strerror}") from error
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")  # else an encrypted key asks at the terminal
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).lower().replace("_", " ")
        raise CannotUseCertificate(
            f"control plane: cannot use the certificate {certificate} with the key {key}: {reason} "
            "(both must be PEM, the key without a password, and the key of that certificate)"
        ) from error
    return context


class Server(uvicorn.Server):
    """Serves until ``stop_requested`` is set, and then stops at once."""

    def __init__(
        self, app: ASGIApp, settings: ControlPlane, tls: ssl.SSLContext | None, *, on_stop: Callable[[], None]
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=H11Protocol,
                ws="none",
                lifespan="off",
                proxy_headers=False,
                server_header=False,
                access_log=False,
                log_config=None,  # leave the process's logging as it is
                log_level="error",  # of uvicorn's loggers: a client that sends garbage must not fill the log
                h11_max_incomplete_event_size=_MAX_HEADER_BYTES,
            )
        )
        self.stop_requested = asyncio.Event()
        self._settings = settings
        self._tls = tls
        self._timeout_s = settings.request_timeout.total_seconds()
        self._on_stop = on_stop
        self._open: set[object] = set()  # one for each connection, from its acceptance to its end
        self._starting: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections of the one socket in ``sockets``."""
        assert sockets is not None
        (listening,) = sockets
        listening.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._accepting = asyncio.create_task(self._accept(listening))
        self.started = True

    async def main_loop(self) -> None:
        """Wait for the stop request; uvicorn's own loop polls ten times a second."""
        await self.stop_requested.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the socket, give the requests a moment to end, and close the connections."""
        assert self._accepting is not None
        self._accepting.cancel()
        with suppress(asyncio.CancelledError):
            await self._accepting
        for each in sockets or ():
            each.close()
        self._on_stop()
        for starting in self._starting:
            starting.cancel()
        tasks = self.server_state.tasks
        if tasks:
            await asyncio.wait(tasks, timeout=_LAST_ANSWERS_S)
        for connection in tuple(self.server_state.connections):
            connection.transport.abort()
        await asyncio.sleep(0)  # for their `connection_lost`, after which their requests end
        if pending := {*tasks, *self._starting}:
            await asyncio.wait(pending, timeout=_LAST_ANSWERS_S)

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError:  # no file descriptor is free, or the client has disconnected already
                await asyncio.sleep(_ACCEPT_AGAIN_S)
                continue
            if len(self._open) >= self._settings.max_connections:
                accepted.close()
            else:
                self._open.add(ticket := object())
                starting = loop.create_task(self._start(accepted, ticket))
                self._starting.add(starting)
                starting.add_done_callback(self._starting.discard)
            await asyncio.sleep(0)  # a waiting connection is accepted without a suspension: others must run as well

    async def _start(self, accepted: socket.socket, ticket: object) -> None:
        connection = partial(
            _Connection,
            self.config,
            self.server_state,
            timeout_s=self._timeout_s,
            on_end=partial(self._open.discard, ticket),
        )
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                connection,
                accepted,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else self._timeout_s,
            )
        except OSError:  # includes SSLError and the timeout: a client that does not speak TLS, or that has disconnected
            self._open.discard(ticket)
        except BaseException:
            self._open.discard(ticket)
            raise


class _Connection(H11Protocol):
    """An HTTP connection with one timeout for all of it, unless its answer is a stream: then for each part of the answer."""

    def __init__(
        self, config: uvicorn.Config, state: ServerState, *, timeout_s: float, on_end: Callable[[], None]
    ) -> None:
        super().__init__(config, state, {_CONNECTION: self})
        self._timeout_s = timeout_s
        self._on_end = on_end
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        super().connection_made(transport)
        self.extend()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._on_end()
        super().connection_lost(exc)

    def extend(self) -> None:
        """The timeout begins anew, unless the connection closes already: TLS may wait for the client then."""
        if self.transport.is_closing():
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = self.loop.call_later(self._timeout_s, self.transport.abort)

    def limit_send_buffer(self, size: int) -> None:
        """Let the kernel keep about ``size`` bytes that the client has not read, instead of megabytes."""
        raw: Any = self.transport.get_extra_info("socket")
        with suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


def connection_of(scope: Scope) -> _Connection:
    """The connection on which this request came."""
    connection: _Connection = scope["state"][_CONNECTION]
    return connection
