"""Accepts connections of workers, and admits those that have an invitation. Unauthenticated peers cannot affect admitted workers.

On one machine it is a Unix socket for this user only. On Linux its name is in no file system (unix(7), "abstract"), so that no
cleaner of temporary files removes it, no ``TMPDIR`` is too long for it, and nothing is left over; the kernel reports the user
of each peer. Elsewhere the socket is in a private folder. For other machines it is TCP with TLS and certificates on both sides.

The number of pending handshakes is bounded, and so is the time for each. When there are too many, the oldest is closed, and not
the newest: a worker needs milliseconds, and one whose handshake was closed tries again (``worker.serve``).
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import ssl
import struct
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator_adapter.bulkhead.errors import PeerRejected, Rejection
from orchestrator_adapter.bulkhead.transport.connection import Connection
from orchestrator_adapter.bulkhead.transport.invitation import Credentials
from orchestrator_adapter.bulkhead.transport.network import Network
from orchestrator_adapter.primitives.clock import Clock, Timeout, sleep
from orchestrator_adapter.primitives.forked_children import close_in_forked_children
from orchestrator_adapter.primitives.listening import listen_tcp

_HANDSHAKE_WITHIN_S = 10.0
_MAX_PENDING_HANDSHAKES = 128  # one holds a file descriptor, and with TLS some 50 KiB
_BACKLOG = 64
_PAUSE_AFTER_ERROR_S = 1.0  # after accept() has failed, for example because the process has no free file descriptor
_SOCKET_BUFFER = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Address:
    """Where workers connect, with the fields of ``Invitation``."""

    path: str = ""
    host: str = ""
    port: int = 0
    credentials: Credentials | None = None


class Listener:
    """Listens between ``open`` and ``close``.

    ``key_of`` returns the key of an unused invitation by its token. ``on_admitted`` is called with each authenticated
    connection and its token, ``on_rejected`` with the kind and the reason for each rejected one.
    """

    def __init__(
        self,
        *,
        network: Network | None,
        clock: Clock,
        max_bytes: int,
        key_of: Callable[[bytes], bytes | None],
        on_admitted: Callable[[Connection, bytes], object],
        on_rejected: Callable[[Rejection, str], object],
    ) -> None:
        self._network = network
        self._clock = clock
        self._new_connection = partial(Connection, key_of=key_of, on_admitted=on_admitted, max_bytes=max_bytes)
        self._on_rejected = on_rejected
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._socket: socket.socket | None = None
        self._tls: ssl.SSLContext | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._pending: dict[asyncio.Task[None], None] = {}  # oldest first
        self._closing = False

    async def open(self) -> Address:
        """Listen. Raises ``OSError``, whose text is one plain line."""
        address = self._listen_unix() if self._network is None else self._listen_tcp(self._network)
        assert self._socket is not None
        close_in_forked_children(self._socket)
        self._accepting = asyncio.create_task(self._accept(), name="bulkhead-listener")
        return address

    async def close(self) -> None:
        """Stop listening and cancel pending handshakes. Admitted connections stay open."""
        self._closing = True
        tasks = [task for task in (self._accepting, *self._pending) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._socket is not None:
            self._socket.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _listen_unix(self) -> Address:
        if sys.platform == "linux":
            path = f"\0bulkhead-{secrets.token_hex(16)}"
        else:
            self._folder = tempfile.TemporaryDirectory(prefix="bulkhead-")  # mode 0700
            path = str(Path(self._folder.name, "socket"))
        self._socket = listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.setblocking(False)  # noqa: FBT003 - the standard library's signature
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        try:
            listening.bind(path)
        except OSError as error:  # on other systems a socket's path has at most 104 bytes
            raise OSError(f"cannot listen on {path}: {error}; TMPDIR must name a folder with a short path") from error
        listening.listen(_BACKLOG)
        return Address(path=path)

    def _listen_tcp(self, network: Network) -> Address:
        # Importing cryptography takes a tenth of a second, and only TLS needs it.
        from orchestrator_adapter.bulkhead.transport.certificates import issue, listener_context  # noqa: PLC0415

        ours, theirs = issue(network.host)
        self._tls = listener_context(ours)
        bind = network.bind if network.bind is not None else network.host
        try:
            self._socket = listening = listen_tcp(bind, network.port, backlog=_BACKLOG)
        except OSError as error:
            raise OSError(
                f"cannot listen on {bind!r}, port {network.port}: {error.strerror} (Network.bind is the address to listen on, "
                "by default Network.host, and Network.port the port)"
            ) from error
        listening.setblocking(False)  # noqa: FBT003 - the standard library's signature
        return Address(host=network.host, port=listening.getsockname()[1], credentials=theirs)

    async def _accept(self) -> None:
        assert self._socket is not None
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._socket)
            except OSError as error:
                self._on_rejected(Rejection.NOT_ACCEPTED, f"a connection could not be accepted: {error}")
                await sleep(self._clock, _PAUSE_AFTER_ERROR_S)
                continue
            close_in_forked_children(sock)  # the worker ends when it loses its connection
            if not self._may_connect(sock):
                sock.close()
                self._on_rejected(Rejection.OTHER_USER, "a process of another user tried to connect")
                continue
            if len(self._pending) >= _MAX_PENDING_HANDSHAKES:
                oldest = next(iter(self._pending))
                del self._pending[oldest]
                oldest.cancel()
            task = asyncio.create_task(self._authenticate(sock), name="bulkhead-handshake")
            self._pending[task] = None
            task.add_done_callback(lambda done: self._pending.pop(done, None))
            await asyncio.sleep(0)  # sock_accept does not suspend while connections are queued

    def _may_connect(self, sock: socket.socket) -> bool:
        """Whether a peer on this machine is of this user. Other peers prove by certificate and key that they may connect."""
        if self._network is not None or sys.platform != "linux":
            return True
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
        return bool(uid == os.geteuid())

    async def _authenticate(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        connection: Connection | None = None
        if self._network is not None:  # asyncio sets it only on sockets created as IPPROTO_TCP, not on accepted ones
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with Timeout(self._clock, _HANDSHAKE_WITHIN_S):
                _, connection = await loop.connect_accepted_socket(self._new_connection, sock, ssl=self._tls)
                await asyncio.shield(connection.admitted)
        except TimeoutError:
            self._on_rejected(Rejection.TIMED_OUT, f"it did not authenticate within {_HANDSHAKE_WITHIN_S:g} s")
        except ssl.SSLError as error:
            self._on_rejected(Rejection.NO_CERTIFICATE, str(error))
        except (OSError, PeerRejected) as error:
            self._on_rejected(Rejection.NOT_AUTHENTICATED, str(error) or type(error).__name__)
        except asyncio.CancelledError:
            if not self._closing and not (connection is not None and connection.admitted.done()):
                self._on_rejected(
                    Rejection.DISPLACED, f"it was the oldest of {_MAX_PENDING_HANDSHAKES} pending handshakes"
                )
            raise
        finally:
            if connection is None:
                sock.close()
            elif not connection.admitted.done() or connection.admitted.exception() is not None:
                connection.close("it did not authenticate in time")
