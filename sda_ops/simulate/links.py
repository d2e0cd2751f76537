"""Links that send frames: UDP datagrams and TCP connections. The third is the archive (`sda_ops.simulate.archive`)."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from sda_ops.simulate.config import Endpoint
from sda_ops.simulate.frames import Batch
from sda_ops.simulate.isl import FRAMING_LOST_PREFIX

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 5.0
CLOSE_TIMEOUT_S = 2.0
"""How long a closing connection waits until its peer has read everything."""


class Link(Protocol):
    """Sends a sensor's frames. One task uses it."""

    async def ready(self, ended: asyncio.Event) -> bool:
        """Suspend until frames can be sent; False if ``ended`` was set first."""

    async def send(self, batch: Batch) -> int:
        """Send the frames in order; returns how many were sent. If not all, `ready` has to be awaited again."""

    async def disconnect(self) -> None:
        """Close the connection after all sent frames have arrived. `ready` opens it again."""


class UdpLink:
    """Datagrams to one address, with or without a receiver there. Lost datagrams are not detected."""

    def __init__(self, target: Endpoint) -> None:
        """Raises ``OSError``, which names the target, if its name cannot be resolved."""
        try:
            family, _, _, _, address = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_DGRAM)[0]
        except OSError as error:
            raise OSError(f"a radar cannot send to {target} (--radar): {error.strerror}") from error
        self._address = address
        self._socket = socket.socket(family, socket.SOCK_DGRAM)
        self._socket.settimeout(0.0)

    async def ready(self, ended: asyncio.Event) -> bool:
        """At any time."""
        return not ended.is_set()

    async def send(self, batch: Batch) -> int:
        """Send each frame as a datagram. Suspends while the kernel's buffer is full."""
        sendto, address = self._socket.sendto, self._address
        for frame in batch.frames:
            while True:
                try:
                    sendto(frame, address)
                except BlockingIOError:
                    await asyncio.sleep(0.001)
                else:
                    break
        return len(batch.frames)

    async def disconnect(self) -> None:
        """Close the socket permanently."""
        self._socket.close()


class TcpLink:
    """One connection to a listener. It is opened again when it breaks, after a delay with decorrelated jitter."""

    def __init__(self, target: Endpoint, rng: random.Random) -> None:
        self._target = target
        self._rng = rng
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None

    async def ready(self, ended: asyncio.Event) -> bool:
        """Connect, repeatedly until it succeeds."""
        if self._reader is not None and self._reader.at_eof():
            self._abandon()
        delay_s = FIRST_BACKOFF_S
        while self._writer is None and not ended.is_set():
            try:
                self._reader, self._writer = await asyncio.open_connection(self._target.host, self._target.port)
            except OSError:
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), delay_s)
                delay_s = min(MAX_BACKOFF_S, self._rng.uniform(FIRST_BACKOFF_S, 3.0 * delay_s))
            else:
                # With this, `drain` waits until the kernel has every byte: only such frames count as sent.
                self._writer.transport.set_write_buffer_limits(high=0)
        return not ended.is_set()

    async def send(self, batch: Batch) -> int:
        """Write the frames to the stream; suspends while the peer does not read.

        Frames count as sent when the kernel has them. If the connection breaks, this call's frames count as not sent,
        although some may have arrived, and those of earlier calls as sent, although the peer may not have read them. After
        a frame that makes the receiver lose its framing, the connection is closed, as the receiver has to.
        """
        assert self._writer is not None
        lost = _first_framing_lost(batch.frames)
        frames = batch.frames if lost is None else batch.frames[: lost + 1]
        try:
            self._writer.write(b"".join(frames))
            await self._writer.drain()
        except OSError:
            self._abandon()
            return 0
        if lost is not None:
            await self.disconnect()
        return len(frames)

    async def disconnect(self) -> None:
        """End the stream, and wait, with a timeout, until the peer has read it and closed the connection."""
        if self._writer is None or self._reader is None:
            return
        with suppress(OSError, TimeoutError):
            self._writer.write_eof()
            await asyncio.wait_for(self._reader.read(), CLOSE_TIMEOUT_S)
        self._abandon()

    def _abandon(self) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer = self._reader = None


def _first_framing_lost(frames: Sequence[bytes]) -> int | None:
    return next((index for index, frame in enumerate(frames) if frame.startswith(FRAMING_LOST_PREFIX)), None)
