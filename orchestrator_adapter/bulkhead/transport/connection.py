"""One worker's connection, on the event loop: who it is, then frames in and messages out.

What comes is received straight into the arrays' memory, and what goes is written from it, both in bounded portions: an answer
of many megabytes does not hold up whoever else runs on the loop. Knows neither calls nor workers.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

from orchestrator_adapter.bulkhead.errors import Malformed, Refused
from orchestrator_adapter.bulkhead.transport.handshake import HELLO_BYTES, DoorHandshake
from orchestrator_adapter.bulkhead.transport.wire import AT_ONCE, Frame, FrameReader, Message

_WRITTEN_PER_WAKE_UP = 4 * AT_ONCE


class Connection(asyncio.BufferedProtocol):
    """One accepted connection. Everything is called on the loop.

    ``on_admitted`` is called once, with the token of its invitation, when the peer has proved itself, and sets ``on_frame``.

    Attributes:
        admitted: Done when the peer has proved itself; an exception if the connection ended before.
        lost: Done, with the reason, when the connection is gone.
        on_frame: Is given every frame. May raise ``Malformed``, which ends the connection.
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
        self._handshake: DoorHandshake | None = DoorHandshake()
        self._hello = memoryview(bytearray(HELLO_BYTES))
        self._heard = 0
        self._reader = FrameReader(max_bytes=max_bytes)
        self._transport: asyncio.Transport | None = None
        self._outbox: deque[memoryview] = deque()
        self._paused = False
        self._continuing = False
        self._reason = ""

    def send(self, message: Message) -> None:
        """Send it after what was sent before; its arrays must not change until it is answered. After the end, nothing happens."""
        if self._reason or self.lost.done():
            return
        self._outbox.extend(memoryview(piece) for piece in message.pieces)
        if not self._continuing:
            self._write()

    def close(self, reason: str) -> None:
        """End it now; what has not been sent is not."""
        self._reason = self._reason or reason
        self._outbox.clear()
        if self._transport is not None:
            self._transport.abort()

    # For the event loop.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert self._handshake is not None
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=AT_ONCE)
        self._transport.write(self._handshake.challenge)

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - any buffer will do
        return self._reader.room() if self._handshake is None else self._hello[self._heard :]

    def buffer_updated(self, nbytes: int) -> None:
        try:
            if self._handshake is not None:
                self._hear(self._handshake, nbytes)
                return
            for frame in self._reader.took(nbytes):
                if self.on_frame is not None and not self._reason:
                    self.on_frame(frame)
        except (Malformed, Refused) as error:
            self.close(str(error))

    def eof_received(self) -> bool:
        if self._reader.inside:
            self._reason = self._reason or "it ended in the middle of a frame"
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._outbox.clear()
        reason = self._reason or (f"{type(exc).__name__}: {exc}" if exc is not None else "its connection ended")
        if not self.admitted.done():
            self.admitted.set_exception(Refused(reason))
            self.admitted.exception()  # whoever lets in looks at it, unless it has gone
        if not self.lost.done():
            self.lost.set_result(reason)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if not self._continuing:
            self._write()

    def _hear(self, handshake: DoorHandshake, count: int) -> None:
        self._heard += count
        if self._heard < HELLO_BYTES:
            return
        token, verdict = handshake.judge(bytes(self._hello), self._key_of)
        assert self._transport is not None
        self._transport.write(verdict)
        self._handshake = None
        self.admitted.set_result(None)
        self._on_admitted(self, token)

    def _write(self) -> None:
        """Write until the kernel has enough, or others have to have their turn."""
        self._continuing = False
        assert self._transport is not None
        budget = _WRITTEN_PER_WAKE_UP
        while self._outbox and not self._paused:
            if budget <= 0:
                self._continuing = True
                self._loop.call_soon(self._write)
                return
            piece = self._outbox.popleft()
            if len(piece) > AT_ONCE:
                self._outbox.appendleft(piece[AT_ONCE:])
                piece = piece[:AT_ONCE]
            budget -= len(piece)
            self._transport.write(piece)
