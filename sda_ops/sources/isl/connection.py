"""One beacon's TCP connection: reads bytes, cuts them into frames, and closes when a limit or a deadline is exceeded.

Nothing is ever sent to a beacon. Plain sockets are therefore enough, without asyncio's transports: a connection is open
from its acceptance to its close, with no state between, and a rejected one costs almost nothing.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import termios
from collections.abc import Sequence
from enum import StrEnum
from fcntl import ioctl
from typing import Protocol

from sda_ops.sources.isl.feed import IslFeed
from sda_ops.wire import isl
from sda_ops.wire.isl import Assembled, FrameAssembler, FramingLost
from sda_ops.wire.malformed import MalformedFrame

_READ_BYTES = 16 * 1024  # of one connection a turn: 256 connections then add at most 4 MiB to a full inbox


class ConnectionFault(StrEnum):
    """What the listener counts and logs: stable codes."""

    SLOW = "closed_slow"
    SILENT = "closed_silent"
    MALFORMED = "closed_malformed"
    FRAMING_LOST = "closed_framing_lost"
    REJECTED = "rejected_connections"
    ACCEPT = "accept_failures"


class ConnectionOwner(Protocol):
    """What a connection needs of the listener that accepted it."""

    feed: IslFeed

    @property
    def reading_s(self) -> float:
        """The time that deadlines run on."""

    def receive(self, frames: Sequence[Assembled]) -> None:
        """Take frames into the inbox."""

    def on_closed(self, connection: BeaconConnection) -> None:
        """Forget a closed connection."""

    def record(self, fault: ConnectionFault, reason: str, peer: str) -> None:
        """Count and log a fault."""


class BeaconConnection:
    """One beacon's connection. It is not read before ``resume``.

    Attributes:
        origin: What the limit per peer counts: the remote address, or the IPv6 network of it.
        peer: The remote address and port, for log lines.
        received_bytes: All that was read from it.
    """

    def __init__(self, owner: ConnectionOwner, sock: socket.socket, origin: str, peer: str) -> None:
        self.origin = origin
        self.peer = peer
        self.received_bytes = 0
        self._owner = owner
        self._feed = owner.feed
        self._loop = asyncio.get_running_loop()
        self._socket = sock
        self._socket.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._assembler = FrameAssembler(max_frame_bytes=self._feed.max_frame_bytes)
        self._malformed_frames = 0
        self._last_data_s = self._frame_began_s = owner.reading_s

    @property
    def unread_bytes(self) -> int:
        """What the kernel has received and this process has not read (tcp(7): FIONREAD)."""
        return int(struct.unpack("i", ioctl(self._socket, termios.FIONREAD, bytes(4)))[0])

    @property
    def silent_s(self) -> float:
        """Seconds since the last data, or since the acceptance; on the owner's ``reading_s``."""
        return self._owner.reading_s - self._last_data_s

    def resume(self) -> None:
        """Read from this peer."""
        self._loop.add_reader(self._socket, self._read)

    def pause(self) -> None:
        """Stop reading from this peer."""
        self._loop.remove_reader(self._socket)

    def close(self) -> None:
        """Close the connection. An incomplete frame was never accepted, and its beacon can detect that."""
        self.pause()
        self._socket.close()
        self._owner.on_closed(self)

    def _read(self) -> None:
        """Read once for each turn of the event loop, so that every connection is read equally often."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # reset by the peer, or ended by keep-alive
            data = b""
        if data:
            self._receive(data)
        else:
            size = self._assembler.pending_bytes
            self._enqueue_torn_frame(f"isl stream: the connection ended within a frame, after {size} bytes of it")
            self.close()

    def _receive(self, data: bytes) -> None:
        self.received_bytes += len(data)
        torn = self._assembler.pending
        frames = self._assembler.feed(data)
        self._last_data_s = self._owner.reading_s
        if frames or not torn:
            self._frame_began_s = self._last_data_s  # a new frame has begun; more bytes of the same one change nothing
        limit = self._feed.max_malformed_frames
        allowance = limit - self._malformed_frames
        malformed = sum(isinstance(frame, MalformedFrame) for frame in frames)
        self._malformed_frames += malformed
        if malformed > allowance:
            frames = _merge_after_limit(frames, allowance, torn + data)
        if frames:
            self._owner.receive(frames)
        if frames and isinstance(frames[-1], FramingLost):
            self._close_for(ConnectionFault.FRAMING_LOST, frames[-1].reason)
        elif malformed > allowance:
            reason = f"isl stream: expected at most {limit} malformed frames, got one more"
            self._close_for(ConnectionFault.MALFORMED, reason)

    def next_deadline(self) -> tuple[float, ConnectionFault]:
        """When the next deadline passes, in the owner's ``reading_s``, and the fault that it then is."""
        silent = (self._last_data_s + self._feed.silence_deadline.total_seconds(), ConnectionFault.SILENT)
        if not self._assembler.pending_bytes:
            return silent
        return min(silent, (self._frame_began_s + self._feed.frame_deadline.total_seconds(), ConnectionFault.SLOW))

    def expire(self, fault: ConnectionFault) -> None:
        """Close because a deadline has passed. The bytes of an incomplete frame are dead-lettered."""
        if fault is ConnectionFault.SLOW:
            limit_s, size = self._feed.frame_deadline.total_seconds(), self._assembler.pending_bytes
            reason = f"isl stream: expected a whole frame within {limit_s:g} s, got {size} bytes of it"
        else:
            limit_s = self._feed.silence_deadline.total_seconds()
            reason = f"isl stream: expected data within {limit_s:g} s, got none"
        self._enqueue_torn_frame(reason)
        self._close_for(fault, reason)

    def _enqueue_torn_frame(self, reason: str) -> None:
        if torn := self._assembler.pending:
            self._owner.receive([MalformedFrame(reason, torn)])

    def _close_for(self, fault: ConnectionFault, reason: str) -> None:
        self._owner.record(fault, reason, self.peer)
        self.close()


def _merge_after_limit(frames: list[Assembled], allowance: int, stream: bytes) -> list[Assembled]:
    """``frames`` up to the first malformed one above ``allowance``, and the rest of ``stream`` as one malformed frame.

    Without this, a peer could cause one dead letter for every four bytes. No byte that was read is lost.
    """
    end = 0
    for number, frame in enumerate(frames, 1):
        if isinstance(frame, MalformedFrame):
            allowance -= 1
            end += isl.PREFIX_SIZE + len(frame.frame)
        else:
            end += isl.PREFIX_SIZE + len(frame)
        if allowance < 0 and end < len(stream):
            reason = f"isl stream: {len(stream) - end} bytes after the last malformed frame that is allowed"
            return [*frames[:number], MalformedFrame(reason, stream[end:])]
    return frames
