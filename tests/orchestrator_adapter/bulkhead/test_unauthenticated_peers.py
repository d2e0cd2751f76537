"""Peers without an invitation, and workers that are kept from connecting for a time."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator_adapter.bulkhead import (
    BulkheadEvent,
    BulkheadExhausted,
    Invitation,
    LocalProcesses,
    Network,
    Rejection,
)
from orchestrator_adapter.bulkhead.transport.handshake import HELLO_BYTES, ListenerHandshake
from orchestrator_adapter.bulkhead.transport.wire import encode
from orchestrator_adapter.bulkhead.worker import serve
from orchestrator_adapter.supervision.restart import RestartPolicy
from orchestrator_adapter.testing import ManualClock
from tests.helpers.running import eventually
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import TOY, bulkhead, numbers

ONE = RestartPolicy.bounded(1, timedelta(minutes=5), backoff=None)
TOKEN, KEY = b"t" * 16, b"k" * 32


class Recording(LocalProcesses):
    """Local processes; keeps the invitations."""

    def __init__(self, *, network: Network | None = None) -> None:
        super().__init__(network=network)
        self.invitations: list[Invitation] = []

    def launch(self, invitation: Invitation) -> Any:
        self.invitations.append(invitation)
        return super().launch(invitation)


async def idle_peer(port: int) -> None:
    """Connect, send nothing, and connect again when the connection is closed."""
    while True:
        with suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                await reader.read()
            finally:
                writer.close()
        await asyncio.sleep(0.02)


async def test_a_crowd_of_idle_peers_does_not_cost_a_rebuild() -> None:
    """150 TCP connections without a certificate, while the worker is killed: one restart, and the call is answered."""
    launcher = Recording(network=Network("127.0.0.1"))
    async with bulkhead(launcher=launcher, rebuilds=ONE) as pool:
        crowd = [asyncio.create_task(idle_peer(launcher.invitations[0].port)) for _ in range(150)]
        await eventually(lambda: pool.statistics().rejected_connections, "the bound of pending handshakes is reached")
        os.kill(pool.statistics().pids[1], signal.SIGKILL)
        assert (await pool.call("double", numbers(2)))["x"] == 4
        figures = pool.statistics()
        for peer in crowd:
            peer.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
    assert figures.restarts == 1
    assert figures.rejected[Rejection.DISPLACED] > 0


class NeverConnects:
    """A worker that runs and cannot connect."""

    def is_alive(self) -> bool:
        return True

    def kill(self, pid: int | None) -> None:
        """Nothing to kill."""

    def stopped(self, crashed: str | None) -> None:
        """Nothing to reap."""


class SecondNeverConnects(Recording):
    """The second worker cannot connect; the others are real."""

    def launch(self, invitation: Invitation) -> Any:
        if len(self.invitations) == 1:
            self.invitations.append(invitation)
            return NeverConnects()
        return super().launch(invitation)


@pytest.mark.parametrize("displaced", [2, 0])
async def test_only_a_worker_that_other_peers_kept_out_is_not_charged(displaced: int) -> None:
    """It is not ready in time. With displaced handshakes the restart is not charged; without them the budget is used up."""
    clock, events = ManualClock(), list[BulkheadEvent]()
    launcher = SecondNeverConnects()
    async with bulkhead(launcher=launcher, rebuilds=ONE, clock=clock, on_event=events.append) as pool:
        os.kill(pool.statistics().pids[1], signal.SIGKILL)
        await eventually(lambda: sum(e.decision == "worker_launched" for e in events) == 2, "the second is launched")
        peers = []
        for _ in range(128 + displaced if displaced else 0):
            peers.append(socket.socket(socket.AF_UNIX))
            peers[-1].connect(launcher.invitations[0].path)
            await asyncio.sleep(0)
        await eventually(
            lambda: pool.statistics().rejected[Rejection.DISPLACED] == displaced, "the oldest are displaced"
        )
        await clock.advance_when_idle(61.0)
        if displaced:
            assert (await pool.call("double", numbers(2)))["x"] == 4
            lost = [event.fields["cause"] for event in events if event.decision == "worker_lost"]
            assert lost[1] == "it was not ready within 60 s: 2 pending handshakes were displaced by other connections"
            assert pool.statistics().restarts == 2
        else:
            with pytest.raises(BulkheadExhausted, match=r"worker-1 was lost: it was not ready within 60 s$"):
                await pool.call("double", numbers(2))
        for peer in peers:
            peer.close()


def invitation(path: Path, *, start_within_s: float) -> Invitation:
    return Invitation("toy", 1, 1, TOY, TOKEN, KEY, 1000, path=str(path), start_within_s=start_within_s)


async def test_a_worker_whose_handshake_is_closed_tries_again(tmp_path: Path) -> None:
    """Closed before the challenge, and again instead of an answer; the third time it is admitted and serves."""
    connections = 0

    async def listener(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        handshake = ListenerHandshake()
        if connections > 1:
            writer.write(handshake.challenge)
            hello = await reader.readexactly(HELLO_BYTES)
            if connections > 2:
                writer.write(handshake.verify(hello, {TOKEN: KEY}.get)[1])
                writer.writelines(bytes(buffer) for buffer in encode("stop").buffers)
                await reader.read()
        writer.close()

    async with await asyncio.start_unix_server(listener, tmp_path / "socket"):
        await asyncio.to_thread(serve, invitation(tmp_path / "socket", start_within_s=60.0))
    assert connections == 3


async def test_a_worker_gives_up_after_its_start_timeout(tmp_path: Path) -> None:
    """Every connection is closed at once: ``serve`` raises ``ConnectionError`` with the last reason."""
    async with await asyncio.start_unix_server(lambda _, writer: writer.close(), tmp_path / "socket"):
        with pytest.raises(ConnectionError, match=r"did not admit this worker within 0\.2 s: .*closed the connection"):
            await asyncio.to_thread(serve, invitation(tmp_path / "socket", start_within_s=0.2))


async def test_a_worker_does_not_wait_for_a_bulkhead_that_has_ended(tmp_path: Path) -> None:
    """Nothing listens at its address: ``serve`` raises at once, long before its start timeout."""
    with socket.socket(socket.AF_UNIX) as ended:
        ended.bind(str(tmp_path / "socket"))
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(serve, invitation(tmp_path / "socket", start_within_s=3600.0))
