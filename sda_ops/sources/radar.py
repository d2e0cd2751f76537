"""Radar over UDP: drain the socket, decode a batch, emit it.

Up to 512 datagrams are drained at each wake-up. With a large kernel buffer, this keeps up with bursts. During
backpressure the source does not read; datagrams that the kernel then drops are counted as ``kernel_drops``, which is
also published at that time.

**Contact.** A drain that has emptied the socket shows that everything that had arrived before it has been emitted. While the
source does not read, and while datagrams come faster than it drains them, there is no contact.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator_adapter import (
    Clock,
    DeadLetterKind,
    Factory,
    Timer,
    Wakeup,
    WiredEnds,
    check_fields,
    close_in_forked_children,
)
from sda_ops.sources.addresses import Binding, bracketed, failures_named, local_address
from sda_ops.wire import radar

_DRAIN_BATCH = 512  # datagrams; PERFORMANCE: 270-285k datagrams/s with "drain up to 512 per wake"
_FINAL_DRAINS = 40  # at shutdown the kernel's buffer is still read; the limit is for a sender that never stops
_MAX_DATAGRAM = 65_535  # bytes: the largest UDP payload, so that malformed datagrams are kept whole
_DROPS_PERIOD_S = 1.0
_CONTACT_PERIOD_S = 1.0  # without datagrams
_MAX_PORT = 65_535
_MAX_BUFFER = 2**31 - 1  # bytes; socket(7): SO_RCVBUF is a C int
_SO_MEMINFO, _MEMINFO_DROPS = 55, 8  # Linux, include/uapi/linux/sock_diag.h


@dataclass(frozen=True, slots=True)
class RadarFeed:
    """Where one radar array sends its datagrams.

    Attributes:
        host: The address to bind, IPv4 or IPv6; ``::`` is every address of both.
        port: The UDP port; 0 lets the system choose.
        receive_buffer_bytes: Requested of the kernel, which may grant less; the figure of this name is what it granted.
    """

    host: str
    port: int
    receive_buffer_bytes: int = 4 * 1024 * 1024

    def __post_init__(self) -> None:
        check_fields(
            "RadarFeed",
            ("port", self.port, 0 <= self.port <= _MAX_PORT, f"0 to {_MAX_PORT}"),
            (
                "receive_buffer_bytes",
                self.receive_buffer_bytes,
                1 <= self.receive_buffer_bytes <= _MAX_BUFFER,
                f"1 to {_MAX_BUFFER}",
            ),
        )


def radar_source(feed: RadarFeed, *, on_contact: Callable[[int], object] | None = None) -> Factory:
    """A source for one radar array. A port that is in use or forbidden is an ``OperatorError`` that names it.

    ``on_contact`` is called with a time (UTC ns) before which all datagrams that had arrived have been emitted: after each
    drain that emptied the socket, and once a second without datagrams.
    """

    async def run(ends: WiredEnds) -> None:
        binding = await ends.run_blocking(_resolve, feed)
        sock = ends.keep("socket", lambda: _bind(feed, *binding), socket.socket.close)
        wakeup = ends.keep("wakeup", lambda: _wakeup_at_shutdown(ends))
        ends.gauge("port", sock.getsockname()[1])
        ends.gauge("receive_buffer_bytes", sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
        with _publishing_drops(sock, ends):
            while not ends.shutdown.is_set:
                await ends.flush()  # suspends while the source is paused: datagrams then stay with the kernel
                before_ns = ends.clock.now_ns()
                datagrams, emptied = _drain(sock)
                if datagrams:
                    await _emit(datagrams, ends)
                if emptied and on_contact is not None:
                    on_contact(before_ns)
                if not datagrams:
                    await _readable(sock, wakeup, within=None if on_contact is None else ends.clock)
            for _ in range(_FINAL_DRAINS):
                datagrams, _emptied = _drain(sock)
                if not datagrams:
                    break
                await _emit(datagrams, ends)

    return run


def _wakeup_at_shutdown(ends: WiredEnds) -> Wakeup:
    wakeup = Wakeup()
    ends.shutdown.on_set(wakeup.wake)
    return wakeup


@contextmanager
def _publishing_drops(sock: socket.socket, ends: WiredEnds) -> Iterator[None]:
    """Publish ``kernel_drops`` now, every second (also while the source waits), and at the end of the instance."""
    timer: Timer

    def publish() -> None:
        nonlocal timer
        ends.gauge("kernel_drops", kernel_drops(sock))
        timer = ends.clock.call_later(_DROPS_PERIOD_S, publish)

    publish()
    try:
        yield
    finally:
        timer.cancel()
        ends.gauge("kernel_drops", kernel_drops(sock))


async def _emit(datagrams: list[bytes], ends: WiredEnds) -> None:
    observations, malformed = radar.decode_many(datagrams, ingest_timestamp=ends.clock.now_ns())
    for frame in malformed:
        ends.count("decode_errors")
        # The kernel has no copy of it. A full store must cost neither the good datagrams nor the count.
        ends.dead_letter(frame.frame, DeadLetterKind.DESERIALIZATION, frame.reason, must_keep=False)
    await ends.emit(observations)
    await asyncio.sleep(0)  # malformed datagrams fill no edge: without this, a flood of them would block the event loop


def _drain(sock: socket.socket) -> tuple[list[bytes], bool]:
    """The datagrams in the kernel's buffer, up to one batch, and whether the buffer is empty now. Never waits."""
    datagrams: list[bytes] = []
    receive, append = sock.recv, datagrams.append
    try:
        for _ in range(_DRAIN_BATCH):
            append(receive(_MAX_DATAGRAM))
    except BlockingIOError:
        return datagrams, True
    except OSError:
        if not datagrams:
            raise
        # The datagrams before the error must not be lost with it. An error that persists is raised by the next call.
    return datagrams, False


async def _readable(sock: socket.socket, wakeup: Wakeup, *, within: Clock | None) -> None:
    """Suspend until a datagram can be read, or something else wakes ``wakeup``; for a second at most by the clock ``within``."""
    loop = asyncio.get_running_loop()
    loop.add_reader(sock, wakeup.wake)
    try:
        if within is None:
            await wakeup.wait()
        else:
            await wakeup.wait_until(within.monotonic() + _CONTACT_PERIOD_S, within)
    finally:
        loop.remove_reader(sock)


def _resolve(feed: RadarFeed) -> Binding:
    """Blocks, because a name server may take long."""
    with failures_named(_cannot_receive(feed)):
        return local_address(feed.host, feed.port, socket.SOCK_DGRAM)


def _bind(feed: RadarFeed, family: socket.AddressFamily, address: Any) -> socket.socket:
    with failures_named(_cannot_receive(feed)):
        return _bound(family, address, feed.receive_buffer_bytes)


def _cannot_receive(feed: RadarFeed) -> str:
    return f"radar feed: cannot receive on udp://{bracketed(feed.host)}:{feed.port}"


def _bound(family: socket.AddressFamily, address: Any, receive_buffer_bytes: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    close_in_forked_children(sock)  # the port must be free when this process ends
    try:
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        if family == socket.AF_INET6 and socket.has_dualstack_ipv6():
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


def kernel_drops(sock: socket.socket) -> int:
    """Datagrams that the kernel dropped because this socket's buffer was full, since its creation (Linux; 0 elsewhere)."""
    try:
        memory = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36)
    except OSError:
        return 0
    return int(struct.unpack_from("=I", memory, 4 * _MEMINFO_DROPS)[0])
