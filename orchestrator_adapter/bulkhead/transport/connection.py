"""One worker's connection on the event loop: the listener's side of the handshake, then frames in and messages out.

Bytes are received straight into the arrays' memory and written from it, both in bounded portions: an answer of many megabytes
does not block other tasks on the loop. It knows nothing of calls.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

from orchestrator_adapter.bulkhead.errors import Malformed, PeerRejected
from orchestrator_adapter.bulkhead.transport.handshake import HELLO_BYTES, REJECTION, ListenerHandshake
from orchestrator_adapter.bulkhead.transport.wire import AT_ONCE, Frame, FrameReader, Message

_WRITTEN_PER_WAKE_UP = 4 * AT_ONCE


class Connection(asyncio.BufferedProtocol):
    """One accepted connection. All methods are called on the loop.

    When the peer has authenticated, ``on_admitted`` is called once with the token of its invitation, and sets ``on_frame``.

    Attributes:
        admitted: Done when the peer has authenticated; an exception if the connection ended before.
        lost: Done when the connection has ended; the result is the reason.
        on_frame: Called with every frame. If it raises ``Malformed``, the connection is closed.
    """

    def __init__(
        self,
        *,
        key_of: Callable[[bytes], bytes | None],
        on_admitted: Callable[[Connection, bytes], object],
        max_bytes: int,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.admitted: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[str] = loop.create_future()
        self.on_frame: Callable[[Frame], object] | None = None
        self._loop = loop
        self._key_of = key_of
        self._on_admitted = on_admitted
        self._handshake: ListenerHandshake | None = ListenerHandshake()
        self._hello = memoryview(bytearray(HELLO_BYTES))
        self._hello_received = 0
        self._reader = FrameReader(max_bytes=max_bytes)
        self._transport: asyncio.Transport | None = None
        self._outbox: deque[memoryview] = deque()
        self._paused = False
        self._write_scheduled = False
        self._reason = ""

    def send(self, message: Message) -> None:
        """Send it, after earlier messages. Its arrays must not change until it is answered. Does nothing when closed."""
        if self._reason or self.lost.done():
            return
        self._outbox.extend(memoryview(buffer) for buffer in message.buffers)
        if not self._write_scheduled:
            self._write()

    def close(self, reason: str) -> None:
        """Close it at once and drop unsent messages. The first ``reason`` counts."""
        self._reason = self._reason or reason
        self._outbox.clear()
        if self._transport is not None:
            self._transport.abort()

    # Called by the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert self._handshake is not None
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=AT_ONCE)
        self._transport.write(self._handshake.challenge)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - the reader knows the size
        return self._reader.buffer() if self._handshake is None else self._hello[self._hello_received :]

    def buffer_updated(self, nbytes: int) -> None:
        try:
            if self._handshake is not None:
                self._on_hello_bytes(self._handshake, nbytes)
                return
            for frame in self._reader.received(nbytes):
                if self.on_frame is not None and not self._reason:
                    self.on_frame(frame)
        except (Malformed, PeerRejected) as error:
            self.close(str(error))

    def eof_received(self) -> bool:
        if self._reader.inside_frame:
            self._reason = self._reason or "it ended in the middle of a frame"
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._outbox.clear()
        reason = self._reason or (f"{type(exc).__name__}: {exc}" if exc is not None else "its connection ended")
        if not self.admitted.done():
            self.admitted.set_exception(PeerRejected(reason))
            self.admitted.exception()  # marked as retrieved: the listener may have timed out and not await it
        if not self.lost.done():
            self.lost.set_result(reason)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if not self._write_scheduled:
            self._write()

    def _on_hello_bytes(self, handshake: ListenerHandshake, count: int) -> None:
        self._hello_received += count
        if self._hello_received < HELLO_BYTES:
            return
        assert self._transport is not None
        try:
            token, proof = handshake.verify(bytes(self._hello), self._key_of)
        except PeerRejected:
            self._transport.write(REJECTION)
            raise
        self._transport.write(proof)
        self._handshake = None
        self.admitted.set_result(None)
        self._on_admitted(self, token)

    def _write(self) -> None:
        """Write until the kernel's buffer is full; after ``_WRITTEN_PER_WAKE_UP`` bytes other tasks run first."""
        self._write_scheduled = False
        assert self._transport is not None
        budget = _WRITTEN_PER_WAKE_UP
        while self._outbox and not self._paused:
            if budget <= 0:
                self._write_scheduled = True
                self._loop.call_soon(self._write)
                return
            buffer = self._outbox.popleft()
            if len(buffer) > AT_ONCE:
                self._outbox.appendleft(buffer[AT_ONCE:])
                buffer = buffer[:AT_ONCE]
            budget -= len(buffer)
            self._transport.write(buffer)
