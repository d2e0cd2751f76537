"""Peers for tests of the ISL source: messages, blocking sockets, and access to our side of a connection."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

import pytest

from orchestrator_adapter import BuiltGraph
from orchestrator_adapter.testing import ManualClock
from sda_ops.records.observation import Observation
from sda_ops.sources.isl import IslFeed
from sda_ops.sources.isl.connection import BeaconConnection
from sda_ops.sources.isl.listener import IslListener
from sda_ops.wire import isl
from tests.helpers.running import NOON_NS, counter, eventually, port_of

FEED = IslFeed("127.0.0.1", 0)
ONE_READ = 16 * 1024 // 76 + 1  # frames in one read of a connection, at most
EMPTY_FRAME = struct.pack("<I", 0)


def message(number: int, satellite: int = 1, *, at_ns: int | None = None) -> bytes:
    return isl.encode(
        satellite_id=satellite,
        sequence=number,
        timestamp_ns=NOON_NS + number if at_ns is None else at_ns,
        position_m=(7e6, 0.0, 0.0),
        velocity_m_s=(0.0, 7.5e3, 0.0),
        sigma_position_m=1.0,
        sigma_velocity_m_s=0.1,
    )


def messages(*numbers: int) -> bytes:
    return b"".join(map(message, numbers))


def numbers(items: Sequence[Observation]) -> list[int]:
    return [item.sensor_timestamp - NOON_NS for item in items]


class Beacon:
    """A connected beacon with a blocking socket: when ``send`` returns, the data is in the kernel."""

    def __init__(self, port: int, *, source: str = "127.0.0.1") -> None:
        to = "::1" if ":" in source else "127.0.0.1"
        self.sock = socket.create_connection((to, port), timeout=60, source_address=(source, 0))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    async def closed_by_listener(self) -> bool:
        """Wait until the listener closes the connection; whether it did."""
        self.sock.settimeout(0)
        with suppress(ConnectionError):
            return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.sock, 1), 60) == b""
        return True

    def close(self) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close abruptly: the other side sees a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()


def needs_ipv6() -> None:
    """Skip the test on a machine without IPv6."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError as error:
        pytest.skip(f"no IPv6 loopback here: {error}")


def listener_of(built: BuiltGraph) -> IslListener:
    listener: IslListener = built._runs["source"].services.kept["listener"]
    return listener


class Peers:
    """Opens beacons, and closes all of them at the end of the test."""

    def __init__(self) -> None:
        self._beacons: list[Beacon] = []

    def connect(self, port: int, *, source: str = "127.0.0.1") -> Beacon:
        """A new beacon. Its own kernel has connected it; the listener may not have accepted it yet."""
        self._beacons.append(Beacon(port, source=source))
        return self._beacons[-1]

    async def join(self, built: BuiltGraph, *, source: str = "127.0.0.1") -> tuple[Beacon, BeaconConnection]:
        """A new beacon that the listener has accepted, and the listener's end of its connection."""
        port = await port_of(built)
        beacon, listener = self.connect(port, source=source), listener_of(built)
        await eventually(lambda: _connection_of(listener, beacon), "the connection is accepted")
        connection = _connection_of(listener, beacon)
        assert connection is not None
        return beacon, connection

    def close(self) -> None:
        for beacon in self._beacons:
            beacon.close()


def _connection_of(listener: IslListener, beacon: Beacon) -> BeaconConnection | None:
    address, port = beacon.sock.getsockname()[:2]
    suffix = f"{address}:{port}"  # a dual-stack listener shows an IPv4 address as the end of an IPv6 one
    return next((known for known in listener.connections if known.peer.replace("]", "").endswith(suffix)), None)


async def received_part(connection: BeaconConnection, size: int) -> None:
    """Wait until the connection has so many bytes of an incomplete frame."""
    await eventually(lambda: connection._assembler.pending_bytes == size, f"{size} bytes of a frame")


async def shown(built: BuiltGraph, name: str, value: int) -> None:
    """Wait until the source shows ``value`` as its figure ``name``."""
    await eventually(lambda: counter(built, name) == value, f"{name} is {value}, and not {counter(built, name)}")


def pending_timers(clock: ManualClock) -> int:
    return len(clock.pending_timers)
