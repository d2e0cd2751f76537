"""The door: listens for workers, lets in who was invited, and counts who was not. Nobody at the door disturbs who is inside.

On one machine it is a socket in a folder of the user's own, beyond it TCP with TLS and certificates on both sides; on either,
the peer proves within a few seconds that it knows its invitation's key, and only so many may be about to.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from orchestrator_adapter.bulkhead.errors import Refused
from orchestrator_adapter.bulkhead.launchers.launcher import Network
from orchestrator_adapter.bulkhead.transport.connection import Connection
from orchestrator_adapter.bulkhead.transport.invitation import Credentials
from orchestrator_adapter.primitives.clock import Clock, Timeout, sleep

_PROVES_ITSELF_WITHIN_S = 10.0
_AT_THE_DOOR = 32
_BACKLOG = 64
_PAUSE_S = 1.0  # after the process has run out of files, say
_SOCKET_BUFFER = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Address:
    """Where the door is, as an invitation says it."""

    path: str = ""
    host: str = ""
    port: int = 0
    credentials: Credentials | None = None


class Door:
    """Listens between ``open`` and ``close``.

    ``key_of`` knows the key of each open invitation by its token; ``on_admitted`` is given who has come in, and its token;
    ``on_refused`` why somebody has not.
    """

    def __init__(
        self,
        *,
        network: Network | None,
        clock: Clock,
        max_bytes: int,
        key_of: Callable[[bytes], bytes | None],
        on_admitted: Callable[[Connection, bytes], object],
        on_refused: Callable[[str], object],
    ) -> None:
        self._network = network
        self._clock = clock
        self._connection = partial(Connection, key_of=key_of, on_admitted=on_admitted, max_bytes=max_bytes)
        self._on_refused = on_refused
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._listener: socket.socket | None = None
        self._tls: ssl.SSLContext | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._coming: set[asyncio.Task[None]] = set()

    async def open(self) -> Address:
        """Listen. Raises ``OSError``."""
        address = self._listen_here() if self._network is None else self._listen_beyond(self._network)
        self._accepting = asyncio.create_task(self._accept(), name="bulkhead-door")
        return address

    async def close(self) -> None:
        """Let nobody in any more. Who is inside stays."""
        tasks = [task for task in (self._accepting, *self._coming) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
        if self._folder is not None:
            self._folder.cleanup()

    def _listen_here(self) -> Address:
        self._folder = tempfile.TemporaryDirectory(prefix="bulkhead-")  # 0700, and short: a path has 108 bytes at most
        path = str(Path(self._folder.name, "door"))
        self._listener = listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        listener.bind(path)
        listener.listen(_BACKLOG)
        return Address(path=path)

    def _listen_beyond(self, network: Network) -> Address:
        # It takes a tenth of a second to import, and nothing else here needs it.
        from orchestrator_adapter.bulkhead.transport.certificates import door_context, issue  # noqa: PLC0415

        ours, theirs = issue(network.host)
        self._tls = door_context(ours)
        bind = network.bind if network.bind is not None else network.host
        family = socket.getaddrinfo(bind, network.port, type=socket.SOCK_STREAM)[0][0]
        self._listener = listener = socket.create_server((bind, network.port), family=family, backlog=_BACKLOG)
        listener.setblocking(False)  # noqa: FBT003 - the standard library's signature
        return Address(host=network.host, port=listener.getsockname()[1], credentials=theirs)

    async def _accept(self) -> None:
        assert self._listener is not None
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listener)
            except OSError as error:
                self._on_refused(f"a connection could not be accepted: {error}")
                await sleep(self._clock, _PAUSE_S)
                continue
            if len(self._coming) >= _AT_THE_DOOR:
                sock.close()
                self._on_refused(f"{_AT_THE_DOOR} others are at the door")
                continue
            task = asyncio.create_task(self._admit(sock), name="bulkhead-visitor")
            self._coming.add(task)
            task.add_done_callback(self._coming.discard)

    async def _admit(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        connection: Connection | None = None
        if (
            self._network is not None
        ):  # asyncio does so only for sockets that say they are TCP, which accepted ones do not
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            async with Timeout(self._clock, _PROVES_ITSELF_WITHIN_S):
                _, connection = await loop.connect_accepted_socket(self._connection, sock, ssl=self._tls)
                await asyncio.shield(connection.admitted)
        except (OSError, Refused) as error:  # TimeoutError and ssl.SSLError among them
            self._on_refused(str(error) or type(error).__name__)
        finally:
            if connection is None:
                sock.close()
            elif not connection.admitted.done() or connection.admitted.exception() is not None:
                connection.close("it did not prove itself in time")
