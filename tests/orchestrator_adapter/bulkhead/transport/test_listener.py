from __future__ import annotations

import asyncio
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from orchestrator_adapter.bulkhead import BulkheadEvent, Invitation, LocalProcesses, Network
from orchestrator_adapter.bulkhead.errors import Malformed, PeerRejected
from orchestrator_adapter.bulkhead.transport.certificates import issue, worker_context
from orchestrator_adapter.bulkhead.transport.connection import Connection
from orchestrator_adapter.bulkhead.transport.handshake import (
    CHALLENGE_BYTES,
    HELLO_BYTES,
    PROOF_BYTES,
    WorkerHandshake,
)
from orchestrator_adapter.bulkhead.transport.listener import Address, Listener
from orchestrator_adapter.bulkhead.transport.wire import Frame, FrameReader, encode
from orchestrator_adapter.bulkhead.worker import serve
from orchestrator_adapter.testing import ManualClock, settle
from tests.helpers.running import eventually
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import TOY, at, bulkhead, numbers

TOKEN, KEY = b"t" * 16, b"k" * 32
HERE = Network("127.0.0.1")


@dataclass
class Watched:
    """A door, and what came of who came."""

    door: Listener
    address: Address
    clock: ManualClock
    admitted: list[Connection]
    refused: list[str]
    frames: list[Frame]

    def visit(self) -> socket.socket:
        """A plain connection to it."""
        if self.address.path:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(self.address.path)
        else:
            sock = socket.create_connection((self.address.host, self.address.port))
        sock.settimeout(20)
        return sock

    def enter(self, token: bytes = TOKEN, key: bytes = KEY) -> socket.socket:
        """Come in as a worker does. Blocks."""
        sock = self.visit()
        handshake = WorkerHandshake(token, key)
        sock.sendall(handshake.hello(exactly(sock, CHALLENGE_BYTES)))
        handshake.check(exactly(sock, PROOF_BYTES))
        return sock

    async def turned_away(self, sock: Any) -> None:
        """Its connection ends."""
        assert await asyncio.to_thread(until_closed, sock)
        sock.close()


def exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := sock.recv(count - len(data))):
        data += more
    return data


def until_closed(sock: socket.socket) -> bool:
    try:
        while sock.recv(65_536):
            pass
    except (ConnectionError, ssl.SSLError):
        pass
    return True


@pytest.fixture
async def local() -> AsyncIterator[Watched]:
    async for door in watched(None):
        yield door


@pytest.fixture
async def networked() -> AsyncIterator[Watched]:
    async for door in watched(HERE):
        yield door


async def watched(network: Network | None) -> AsyncIterator[Watched]:
    seen = Watched(None, Address(), ManualClock(), [], [], [])  # type: ignore[arg-type] # the door needs its lists

    def admitted(connection: Connection, token: bytes) -> None:
        assert token == TOKEN
        connection.on_frame = seen.frames.append
        seen.admitted.append(connection)

    seen.door = Listener(
        network=network,
        clock=seen.clock,
        max_bytes=1 << 20,
        key_of={TOKEN: KEY}.get,
        on_admitted=admitted,
        on_rejected=seen.refused.append,
    )
    seen.address = await seen.door.open()
    try:
        yield seen
    finally:
        for connection in seen.admitted:
            connection.close("the test is over")
        await seen.door.close()
        assert not await asyncio.to_thread(Path(seen.address.path or "/nowhere").exists)


async def test_the_socket_on_this_machine_is_in_a_folder_of_its_own(local: Watched) -> None:
    """Nobody else can reach it, and it is removed in the end."""
    folder = Path(local.address.path).parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


async def test_who_has_an_invitation_comes_in_and_is_heard(local: Watched) -> None:
    """Its frames arrive, also after the time in which it had to prove itself."""
    sock = await asyncio.to_thread(local.enter)
    await local.clock.advance_when_idle(60.0)
    sock.sendall(b"".join(bytes(piece) for piece in encode("joined", ticket=7, name="here").buffers))
    await eventually(lambda: local.frames, "the frame has come")
    assert (local.frames[0].header.ticket, local.frames[0].header.name) == (7, "here")
    assert not local.refused
    sock.close()
    assert await local.admitted[0].lost == "its connection ended"


@pytest.mark.parametrize("what", ["garbage", "a wrong key", "nothing", "half a hello"])
async def test_who_has_none_is_turned_away_counted_and_disturbs_nobody(what: str, local: Watched) -> None:
    """Garbage, a wrong key, and a caller that says nothing, or half of it, and stays: while another comes in and is heard."""
    intruder = local.visit()
    challenge = await asyncio.to_thread(exactly, intruder, CHALLENGE_BYTES)
    hello = WorkerHandshake(TOKEN, b"x" * 32).hello(challenge)
    intruder.sendall(
        {"garbage": b"GET / HTTP/1.1\r\n" * 20, "a wrong key": hello, "nothing": b"", "half a hello": hello[:40]}[what]
    )
    worker = await asyncio.to_thread(local.enter)
    if what in {"nothing", "half a hello"}:
        await local.clock.advance_when_idle(9.9)
        assert not local.refused
        await local.clock.advance_when_idle(0.1)
    await local.turned_away(intruder)
    await eventually(lambda: local.refused, "it is counted")
    assert len(local.refused) == 1
    worker.sendall(bytes(encode("joined").buffers[0]))
    await eventually(lambda: local.frames, "the other is heard")
    worker.close()


async def test_only_so_many_may_be_at_the_door(local: Watched) -> None:
    """The 33rd that has not proved itself is turned away at once; when the others have been, a worker comes in."""
    intruders = [local.visit() for _ in range(32)]
    for intruder in intruders:
        await asyncio.to_thread(exactly, intruder, CHALLENGE_BYTES)
    await local.turned_away(local.visit())
    assert local.refused == ["there are 32 other pending handshakes"]
    await local.clock.advance_when_idle(10.0)
    for intruder in intruders:
        await local.turned_away(intruder)
    await eventually(lambda: len(local.refused) == 33, "all are counted")
    (await asyncio.to_thread(local.enter)).close()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\x80\x04K\x01.", "expected a frame, got bytes that begin with"),
        (
            b"".join(bytes(p) for p in encode("answer", arrays={"a": np.zeros(200_000)}).buffers),
            "at most 1048576 bytes",
        ),
    ],
)
async def test_who_is_inside_and_sends_what_is_no_frame_is_cut_off(data: bytes, reason: str, local: Watched) -> None:
    """A pickle, and more than the limit: the connection ends, and says why."""
    sock = await asyncio.to_thread(local.enter)
    sock.sendall(data[:100_000])
    assert reason in await local.admitted[0].lost
    await local.turned_away(sock)
    assert not local.frames


async def test_a_frame_that_ends_in_the_middle_is_no_frame(local: Watched) -> None:
    """The reason says so."""
    sock = await asyncio.to_thread(local.enter)
    sock.sendall(b"BLK1\x00")
    sock.close()
    assert await local.admitted[0].lost == "it ended in the middle of a frame"


async def test_what_handles_a_frame_may_end_the_connection(local: Watched) -> None:
    """``Malformed`` from above is the reason, and what came with it is not handled any more."""

    def strict(frame: Frame) -> None:
        local.frames.append(frame)
        raise Malformed("not now")

    sock = await asyncio.to_thread(local.enter)
    local.admitted[0].on_frame = strict
    sock.sendall(bytes(encode("ready").buffers[0]) * 2)
    assert await local.admitted[0].lost == "not now"
    assert len(local.frames) == 1
    sock.close()


async def test_megabytes_are_written_as_fast_as_they_are_read_and_the_loop_goes_on(local: Watched) -> None:
    """Eight times a megabyte to a reader that waits: all of it arrives, and nothing like it was queued in one turn."""
    sock = await asyncio.to_thread(local.enter)
    sent = np.arange(131_072, dtype=np.float64)
    connection = local.admitted[0]
    for ticket in range(8):
        connection.send(encode("call", ticket=ticket, arrays={"a": sent}))
    await settle()
    transport = connection._transport
    assert transport is not None
    assert transport.get_write_buffer_size() <= 2 * 256 * 1024

    def receive() -> list[Frame]:
        reader, frames = FrameReader(), list[Frame]()
        while len(frames) < 8:
            frames += reader.received(sock.recv_into(reader.buffer()))
        return frames

    frames = await asyncio.to_thread(receive)
    assert [frame.header.ticket for frame in frames] == list(range(8))
    assert all(np.array_equal(frame.arrays["a"], sent) for frame in frames)
    sock.close()


def strangers_context() -> ssl.SSLContext:
    """A client with certificates of an authority that looks the same."""
    return worker_context(issue("127.0.0.1")[1])


def without_certificate(address: Address) -> ssl.SSLContext:
    """One that trusts the door, and shows nothing."""
    assert address.credentials is not None
    context = ssl.create_default_context(cadata=address.credentials.authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def indifferent(_: Address) -> ssl.SSLContext:
    """One that trusts anybody, with a foreign certificate."""
    context = strangers_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize("context", [without_certificate, indifferent])
async def test_a_client_without_our_certificate_is_turned_away(
    context: Callable[[Address], ssl.SSLContext], networked: Watched
) -> None:
    """None, and one of another authority: the handshake fails on our side, is counted, and not a byte of ours is told."""

    def visit() -> bytes:
        with (
            networked.visit() as plain,
            context(networked.address).wrap_socket(plain, server_hostname="127.0.0.1") as tls,
        ):
            return tls.recv(100)

    with suppress(OSError):
        assert await asyncio.to_thread(visit) == b""
    await eventually(lambda: networked.refused, "it is counted")
    assert not networked.admitted


async def test_a_worker_does_not_talk_to_a_door_of_another_authority(networked: Watched) -> None:
    """The stranger's certificate is refused by the worker."""

    def visit() -> None:
        with networked.visit() as plain, strangers_context().wrap_socket(plain, server_hostname="127.0.0.1"):
            pass

    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.to_thread(visit)
    await eventually(lambda: networked.refused, "it is counted")


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b""])
async def test_plain_bytes_and_silence_at_the_tls_door_are_turned_away(said: bytes, networked: Watched) -> None:
    """What is no TLS at once; what says nothing when its time is over."""
    intruder = networked.visit()
    intruder.sendall(said)
    if not said:
        await settle()
        await networked.clock.advance_when_idle(10.0)
    await networked.turned_away(intruder)
    await eventually(lambda: networked.refused, "it is counted")


async def test_the_right_certificate_alone_does_not_do(networked: Watched) -> None:
    """Over TLS, too, the key is asked for; with it, one comes in."""
    credentials = networked.address.credentials
    assert credentials is not None

    def visit(key: bytes) -> bytes:
        with networked.visit() as plain:
            tls = worker_context(credentials).wrap_socket(plain, server_hostname="127.0.0.1")
            handshake = WorkerHandshake(TOKEN, key)
            tls.sendall(handshake.hello(exactly(tls, CHALLENGE_BYTES)))
            return exactly(tls, PROOF_BYTES)

    assert await asyncio.to_thread(visit, b"x" * 32) == b""
    await eventually(lambda: networked.refused == ["it has a wrong key"], "it is counted")
    assert len(await asyncio.to_thread(visit, KEY)) == PROOF_BYTES
    assert len(networked.admitted) == 1


async def test_a_bulkhead_over_tls_answers_as_one_on_this_machine_does(tmp_path: Path) -> None:
    """Small and large, in both directions, two workers, shared state and a restart."""
    sent = np.random.default_rng(1).normal(size=300_000)
    async with bulkhead(workers=2, launcher=LocalProcesses(network=HERE)) as pool:
        await pool.share("table", numbers(5))
        answers = await asyncio.gather(*(pool.call("double", {"x": sent * n}) for n in range(6)))
        assert all(np.array_equal(answer["x"], 2 * sent * n) for n, answer in enumerate(answers))
        assert (await pool.call("die once", at(tmp_path / "died")))["survived"]
        assert (await pool.call("recall", {}))["x"] == 5
        assert pool.statistics().rejected_connections == 0


async def test_intruders_at_a_running_bulkhead_are_told_once_a_second_and_counted_all() -> None:
    """Ten of them within a turn: one line, ten in the figures, and every call answered."""
    told: list[BulkheadEvent] = []

    class Watching(LocalProcesses):
        path = ""

        def launch(self, invitation: Invitation) -> Any:
            self.path = invitation.path
            return super().launch(invitation)

    launcher = Watching()
    clock = ManualClock()
    async with bulkhead(launcher=launcher, on_event=told.append, clock=clock) as pool:
        for _ in range(10):
            with socket.socket(socket.AF_UNIX) as intruder:
                intruder.connect(launcher.path)
                intruder.sendall(bytes(HELLO_BYTES))
                assert await asyncio.to_thread(until_closed, intruder)
        await eventually(lambda: pool.statistics().rejected_connections == 10, "all are counted")
        assert (await pool.call("double", numbers(1)))["x"] == 2
        lines = [event.fields for event in told if event.decision == "connection_rejected"]
        assert lines == [{"cause": "it does not have an unused invitation", "not_logged_since_last": 0}]


async def test_an_invitation_is_good_for_one() -> None:
    """Whoever finds it later is refused by the bulkhead itself: the second to use it ends with ``PeerRejected``."""
    kept: list[Invitation] = []

    class Keeping(LocalProcesses):
        def launch(self, invitation: Invitation) -> Any:
            kept.append(invitation)
            return super().launch(invitation)

    async with bulkhead(launcher=Keeping()) as pool:
        with pytest.raises(PeerRejected, match="closed the connection during the handshake"):
            await asyncio.to_thread(serve, kept[0])
        await eventually(lambda: pool.statistics().rejected_connections == 1, "it is counted")
        assert pool.statistics().restarts == 0


async def test_a_worker_finds_out_an_impostor(tmp_path: Path) -> None:
    """Who listens at the path and does not know the key is refused by the worker."""

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bulkhd-1" + bytes(32))
        await reader.readexactly(HELLO_BYTES)
        writer.write(bytes(PROOF_BYTES))
        await writer.drain()
        await reader.read()
        writer.close()

    path = str(tmp_path / "door")
    async with await asyncio.start_unix_server(impostor, path):
        invitation = Invitation("toy", 1, 1, TOY, TOKEN, KEY, 100, path=path)
        with pytest.raises(PeerRejected, match="not the bulkhead that sent the invitation"):
            await asyncio.to_thread(serve, invitation)
