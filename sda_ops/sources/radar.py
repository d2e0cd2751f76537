"""Radar over UDP: drain the socket, decode a batch, pass it on.

The datagrams are drained up to 512 at a wake-up: that, and a large kernel buffer, is what keeps up with bursts. While
the graph pushes back, the source does not read; what the kernel then drops is counted and shown (``kernel_drops``), at
that very time too.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from orchestrator_adapter import DeadLetterKind, Factory, OperatorError, Timer, Wakeup, WiredEnds
from sda_ops.wire import radar

_DRAIN_BATCH = 512  # datagrams; PERFORMANCE: 270-285k datagrams/s with "drain up to 512 per wake"
_FINAL_DRAINS = 40  # at shutdown, what the kernel holds is still taken in, but a sender that never stops must not win
_MAX_DATAGRAM = 65_535  # bytes; the largest UDP payload there is, so that malformed ones are kept whole
_DROPS_PERIOD_S = 1.0
_MAX_PORT = 65_535
_MAX_BUFFER = 2**31 - 1  # bytes; socket(7): SO_RCVBUF is a C int
_SO_MEMINFO, _MEMINFO_DROPS = 55, 8  # Linux, include/uapi/linux/sock_diag.h


@dataclass(frozen=True, slots=True)
class RadarFeed:
    """Where one radar array sends its datagrams.

    Attributes:
        host: The address to bind, IPv4 or IPv6; ``::`` is every address of both.
        port: The UDP port; 0 lets the system choose.
        receive_buffer_bytes: Asked of the kernel, which may grant less; the grant is shown as ``receive_buffer_bytes``.
    """

    host: str
    port: int
    receive_buffer_bytes: int = 4 * 1024 * 1024

    def __post_init__(self) -> None:
        problems = [
            f"RadarFeed: {name} must be {low} to {high}, got {value!r}"
            for name, value, low, high in (
                ("port", self.port, 0, _MAX_PORT),
                ("receive_buffer_bytes", self.receive_buffer_bytes, 1, _MAX_BUFFER),
            )
            if not low <= value <= high
        ]
        if problems:
            raise ValueError("; ".join(problems))


def radar_source(feed: RadarFeed) -> Factory:
    """A source for one radar array. A port that is taken or forbidden is an ``OperatorError`` that names it."""

    async def run(ends: WiredEnds) -> None:
        sock = ends.keep("socket", lambda: _bind(feed), socket.socket.close)
        wakeup = ends.keep("wakeup", lambda: _woken_by_shutdown(ends))
        ends.gauge("port", sock.getsockname()[1])
        ends.gauge("receive_buffer_bytes", sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF))
        with _drops_shown(sock, ends):
            while not ends.shutdown.is_set:
                if datagrams := _drain(sock):
                    await _pass_on(datagrams, ends)
                else:
                    await _readable(sock, wakeup)
            for _ in range(_FINAL_DRAINS):
                if not (datagrams := _drain(sock)):
                    break
                await _pass_on(datagrams, ends)

    return run


def _woken_by_shutdown(ends: WiredEnds) -> Wakeup:
    wakeup = Wakeup()
    ends.shutdown.on_set(wakeup.wake)
    return wakeup


@contextmanager
def _drops_shown(sock: socket.socket, ends: WiredEnds) -> Iterator[None]:
    """Show ``kernel_drops`` now, every second whatever the source waits for, and when it ends, however it does."""
    timer: Timer

    def show() -> None:
        nonlocal timer
        ends.gauge("kernel_drops", kernel_drops(sock))
        timer = ends.clock.call_later(_DROPS_PERIOD_S, show)

    show()
    try:
        yield
    finally:
        timer.cancel()
        ends.gauge("kernel_drops", kernel_drops(sock))


async def _pass_on(datagrams: list[bytes], ends: WiredEnds) -> None:
    observations, malformed = radar.decode_many(datagrams, ingest_timestamp=ends.clock.now_ns())
    for frame in malformed:
        ends.count("decode_errors")
        # The kernel no longer has it: a store that is full may cost neither the good ones nor the count.
        ends.dead_letter(frame.frame, DeadLetterKind.DESERIALIZATION, frame.reason, must_keep=False)
    await ends.emit(observations)
    await asyncio.sleep(0)  # a flood of malformed datagrams fills no edge, and would freeze the loop for everyone


def _drain(sock: socket.socket) -> list[bytes]:
    """What the kernel holds, up to a batch. Never waits."""
    datagrams: list[bytes] = []
    receive, keep = sock.recv, datagrams.append
    try:
        for _ in range(_DRAIN_BATCH):
            keep(receive(_MAX_DATAGRAM))
    except BlockingIOError:
        pass  # drained: the one way a non-blocking socket says so
    except OSError:
        if not datagrams:
            raise
        # What came before the error must not be lost with it; one that lasts is met again at the next call.
    return datagrams


async def _readable(sock: socket.socket, wakeup: Wakeup) -> None:
    """Suspend until a datagram waits, or the wake-up's other causes. Cancelled, it stops watching."""
    loop = asyncio.get_running_loop()
    loop.add_reader(sock, wakeup.wake)
    try:
        await wakeup.wait()
    finally:
        loop.remove_reader(sock)


def _bind(feed: RadarFeed) -> socket.socket:
    try:
        found = socket.getaddrinfo(feed.host or None, feed.port, type=socket.SOCK_DGRAM, flags=socket.AI_PASSIVE)
        # Of a name that has both, the IPv4 address: it is the one that every array can reach.
        family, _, _, _, address = min(found, key=lambda entry: entry[0] != socket.AF_INET)
        return _bound(family, address, feed.receive_buffer_bytes)
    except (OSError, UnicodeError) as error:  # the latter: a host name that IDNA cannot say
        host = f"[{feed.host}]" if ":" in feed.host else feed.host
        raise OperatorError(f"radar feed: cannot receive on udp://{host}:{feed.port}: {error}") from error


def _bound(family: socket.AddressFamily, address: Any, receive_buffer_bytes: int) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
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
    """Datagrams the kernel dropped because this socket's buffer was full, since it was opened (Linux; 0 elsewhere)."""
    try:
        memory = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, 36)
    except OSError:
        return 0
    return int(struct.unpack_from("=I", memory, 4 * _MEMINFO_DROPS)[0])
