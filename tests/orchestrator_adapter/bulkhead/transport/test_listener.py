from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import stat
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from orchestrator_adapter.bulkhead import (
    BulkheadCannotStart,
    BulkheadEvent,
    Invitation,
    LocalProcesses,
    Network,
    Rejection,
)
from orchestrator_adapter.bulkhead.errors import Malformed, PeerRejected
from orchestrator_adapter.bulkhead.transport.certificates import issue, worker_context
from orchestrator_adapter.bulkhead.transport.connection import Connection
from orchestrator_adapter.bulkhead.transport.handshake import (
    CHALLENGE_BYTES,
    HELLO_BYTES,
    PROOF_BYTES,
    REJECTION,
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
class Observed:
    """A listener, and what it has admitted, rejected and received."""

    listener: Listener
    address: Address
    clock: ManualClock
    admitted: list[Connection]
    rejected: list[tuple[Rejection, str]]
    frames: list[Frame]

    def connect(self) -> socket.socket:
        """A connection that has not authenticated."""
        if self.address.path:
            sock = socket.socket(socket.AF_UNIX)
            sock.connect(self.address.path)
        else:
            sock = socket.create_connection((self.address.host, self.address.port))
        sock.settimeout(20)
        return sock

    def authenticate(self, token: bytes = TOKEN, key: bytes = KEY) -> socket.socket:
        """Connect and authenticate as a worker does. Blocks."""
        sock = self.connect()
        handshake = WorkerHandshake(token, key)
        sock.sendall(handshake.hello(exactly(sock, CHALLENGE_BYTES)))
        handshake.check(exactly(sock, PROOF_BYTES))
        return sock

    async def closed(self, sock: Any) -> None:
        """Wait until the listener has closed the connection."""
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
async def local() -> AsyncIterator[Observed]:
    async for listener in observed(None):
        yield listener


@pytest.fixture
async def networked() -> AsyncIterator[Observed]:
    async for listener in observed(HERE):
        yield listener


async def observed(network: Network | None) -> AsyncIterator[Observed]:
    seen = Observed(None, Address(), ManualClock(), [], [], [])  # type: ignore[arg-type] # the listener needs its lists

    def admitted(connection: Connection, token: bytes) -> None:
        assert token == TOKEN
        connection.on_frame = seen.frames.append
        seen.admitted.append(connection)

    seen.listener = Listener(
        network=network,
        clock=seen.clock,
        max_bytes=1 << 20,
        key_of={TOKEN: KEY}.get,
        on_admitted=admitted,
        on_rejected=lambda kind, reason: seen.rejected.append((kind, reason)),
    )
    seen.address = await seen.listener.open()
    try:
        yield seen
    finally:
        for connection in seen.admitted:
            connection.close("the test is over")
        await seen.listener.close()
        assert not await asyncio.to_thread(Path(seen.address.path or "/nowhere").exists)


async def test_the_unix_socket_is_in_no_file_system(local: Observed, tmp_path: Path) -> None:
    """No cleaner can remove it, a long ``TMPDIR`` does not matter, and every listener has a name of its own."""
    assert re.fullmatch(r"\0bulkhead-[0-9a-f]{32}", local.address.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 120)))
        async for other in observed(None):
            assert other.address.path != local.address.path
            (await asyncio.to_thread(other.authenticate)).close()


async def test_a_process_of_another_user_is_rejected_before_the_handshake(
    local: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is closed without a challenge; a process of this user is admitted."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 4711)
        intruder = local.connect()
        assert await asyncio.to_thread(exactly, intruder, CHALLENGE_BYTES) == b""
        intruder.close()
    assert local.rejected == [(Rejection.OTHER_USER, "a process of another user tried to connect")]
    (await asyncio.to_thread(local.authenticate)).close()


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a system other than Linux."""
    module = "orchestrator_adapter.bulkhead.transport.listener.sys"
    monkeypatch.setattr(module, SimpleNamespace(platform="other"))


@pytest.mark.usefixtures("elsewhere")
async def test_on_other_systems_the_unix_socket_is_in_a_private_folder() -> None:
    """No other user can reach it, and it is removed at the end."""
    async for other in observed(None):
        folder = Path(other.address.path).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        (await asyncio.to_thread(other.authenticate)).close()


@pytest.mark.usefixtures("elsewhere")
async def test_on_other_systems_a_temporary_folder_with_a_long_path_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the path and ``TMPDIR``."""
    (long := tmp_path / ("x" * 120)).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(
        BulkheadCannotStart,
        match=r"^bulkhead 'toy': cannot listen on /.*/socket: AF_UNIX path too long; TMPDIR must name a folder with a short path$",
    ):
        await bulkhead().__aenter__()


async def test_a_peer_with_an_invitation_is_admitted_and_its_frames_arrive(local: Observed) -> None:
    """Its frames also arrive after the time limit for the handshake."""
    sock = await asyncio.to_thread(local.authenticate)
    await local.clock.advance_when_idle(60.0)
    sock.sendall(b"".join(bytes(buffer) for buffer in encode("joined", ticket=7, name="here").buffers))
    await eventually(lambda: local.frames, "the frame has arrived")
    assert (local.frames[0].header.ticket, local.frames[0].header.name) == (7, "here")
    assert not local.rejected
    sock.close()
    assert await local.admitted[0].lost == "its connection ended"


@pytest.mark.parametrize("what", ["garbage", "a wrong key", "nothing", "half a hello"])
async def test_a_peer_without_an_invitation_is_rejected_counted_and_affects_no_other(
    what: str, local: Observed
) -> None:
    """Garbage, a wrong key, and silence before or during the hello, while another peer is admitted and sends a frame."""
    intruder = local.connect()
    challenge = await asyncio.to_thread(exactly, intruder, CHALLENGE_BYTES)
    hello = WorkerHandshake(TOKEN, b"x" * 32).hello(challenge)
    intruder.sendall(
        {"garbage": b"GET / HTTP/1.1\r\n" * 20, "a wrong key": hello, "nothing": b"", "half a hello": hello[:40]}[what]
    )
    worker = await asyncio.to_thread(local.authenticate)
    if what in {"nothing", "half a hello"}:
        await local.clock.advance_when_idle(9.9)
        assert not local.rejected
        await local.clock.advance_when_idle(0.1)
    await local.closed(intruder)
    await eventually(lambda: local.rejected, "it is counted")
    kind = Rejection.TIMED_OUT if what in {"nothing", "half a hello"} else Rejection.NOT_AUTHENTICATED
    assert [kind for kind, _ in local.rejected] == [kind]
    worker.sendall(bytes(encode("joined").buffers[0]))
    await eventually(lambda: local.frames, "the other peer's frame has arrived")
    worker.close()


async def test_pending_handshakes_are_bounded_and_the_oldest_is_displaced(local: Observed) -> None:
    """128 silent peers: a worker is admitted at once, the first peer is closed for it, and the others time out."""
    intruders = []
    for _ in range(128):
        intruders.append(local.connect())
        await asyncio.to_thread(exactly, intruders[-1], CHALLENGE_BYTES)
    (await asyncio.to_thread(local.authenticate)).close()
    await local.closed(intruders[0])
    assert local.rejected == [(Rejection.DISPLACED, "it was the oldest of 128 pending handshakes")]
    await local.clock.advance_when_idle(10.0)
    for intruder in intruders[1:]:
        await local.closed(intruder)
    await eventually(lambda: len(local.rejected) == 128, "all are counted")
    assert {kind for kind, _ in local.rejected[1:]} == {Rejection.TIMED_OUT}


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
async def test_an_admitted_peer_that_sends_an_invalid_frame_is_disconnected(
    data: bytes, reason: str, local: Observed
) -> None:
    """A pickle, and a frame above the limit: the connection is closed with the reason."""
    sock = await asyncio.to_thread(local.authenticate)
    sock.sendall(data[:100_000])
    assert reason in await local.admitted[0].lost
    await local.closed(sock)
    assert not local.frames


async def test_a_connection_that_ends_inside_a_frame_gives_that_as_the_reason(local: Observed) -> None:
    """No frame is delivered."""
    sock = await asyncio.to_thread(local.authenticate)
    sock.sendall(b"BLK1\x00")
    sock.close()
    assert await local.admitted[0].lost == "it ended in the middle of a frame"


async def test_a_frame_handler_may_close_the_connection(local: Observed) -> None:
    """``Malformed`` from ``on_frame`` is the reason, and later frames of the same read are not delivered."""

    def strict(frame: Frame) -> None:
        local.frames.append(frame)
        raise Malformed("not now")

    sock = await asyncio.to_thread(local.authenticate)
    local.admitted[0].on_frame = strict
    sock.sendall(bytes(encode("ready").buffers[0]) * 2)
    assert await local.admitted[0].lost == "not now"
    assert len(local.frames) == 1
    sock.close()


async def test_large_messages_are_written_in_bounded_portions_as_the_peer_reads(local: Observed) -> None:
    """Eight messages of a megabyte to a slow reader: all arrive, and the transport never buffers much of them."""
    sock = await asyncio.to_thread(local.authenticate)
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


def other_authoritys_context() -> ssl.SSLContext:
    """A client with a certificate of another authority with the same name."""
    return worker_context(issue("127.0.0.1")[1])


def without_certificate(address: Address) -> ssl.SSLContext:
    """A client that trusts the listener and has no certificate."""
    assert address.credentials is not None
    context = ssl.create_default_context(cadata=address.credentials.authority)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def with_foreign_certificate(_: Address) -> ssl.SSLContext:
    """A client that checks nothing and has a certificate of another authority."""
    context = other_authoritys_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize("context", [without_certificate, with_foreign_certificate])
async def test_a_client_without_our_certificate_is_rejected(
    context: Callable[[Address], ssl.SSLContext], networked: Observed
) -> None:
    """No certificate, and one of another authority: the TLS handshake fails and is counted, and no byte of ours is sent."""

    def connect() -> bytes:
        with (
            networked.connect() as plain,
            context(networked.address).wrap_socket(plain, server_hostname="127.0.0.1") as tls,
        ):
            return tls.recv(100)

    with suppress(OSError):
        assert await asyncio.to_thread(connect) == b""
    await eventually(lambda: networked.rejected, "it is counted")
    assert networked.rejected[0][0] is Rejection.NO_CERTIFICATE
    assert not networked.admitted


async def test_a_worker_rejects_a_listener_of_another_authority(networked: Observed) -> None:
    """The worker's verification of the certificate fails."""

    def connect() -> None:
        with networked.connect() as plain, other_authoritys_context().wrap_socket(plain, server_hostname="127.0.0.1"):
            pass

    with pytest.raises(ssl.SSLCertVerificationError):
        await asyncio.to_thread(connect)
    await eventually(lambda: networked.rejected, "it is counted")


@pytest.mark.parametrize("sent", [b"GET / HTTP/1.1\r\n\r\n", b""])
async def test_a_peer_that_does_not_speak_tls_is_rejected(sent: bytes, networked: Observed) -> None:
    """Plain bytes are rejected at once, silence after the time limit."""
    intruder = networked.connect()
    intruder.sendall(sent)
    if not sent:
        await settle()
        await networked.clock.advance_when_idle(10.0)
    await networked.closed(intruder)
    await eventually(lambda: networked.rejected, "it is counted")


async def test_a_valid_certificate_without_the_key_is_rejected(networked: Observed) -> None:
    """The key is also checked over TLS; with the key the peer is admitted."""
    credentials = networked.address.credentials
    assert credentials is not None

    def connect(key: bytes) -> bytes:
        with networked.connect() as plain:
            tls = worker_context(credentials).wrap_socket(plain, server_hostname="127.0.0.1")
            handshake = WorkerHandshake(TOKEN, key)
            tls.sendall(handshake.hello(exactly(tls, CHALLENGE_BYTES)))
            return exactly(tls, PROOF_BYTES)

    assert await asyncio.to_thread(connect, b"x" * 32) == REJECTION
    await eventually(
        lambda: networked.rejected == [(Rejection.NOT_AUTHENTICATED, "it has a wrong key")], "it is counted"
    )
    assert len(await asyncio.to_thread(connect, KEY)) == PROOF_BYTES
    assert len(networked.admitted) == 1


async def test_a_bulkhead_works_over_tls(tmp_path: Path) -> None:
    """Small and large arrays in both directions, two workers, shared state and a restart."""
    sent = np.random.default_rng(1).normal(size=300_000)
    async with bulkhead(workers=2, launcher=LocalProcesses(network=HERE)) as pool:
        await pool.share("table", numbers(5))
        answers = await asyncio.gather(*(pool.call("double", {"x": sent * n}) for n in range(6)))
        assert all(np.array_equal(answer["x"], 2 * sent * n) for n, answer in enumerate(answers))
        assert (await pool.call("die once", at(tmp_path / "died")))["survived"]
        assert (await pool.call("recall", {}))["x"] == 5
        assert pool.statistics().rejected_connections == 0


async def test_rejected_connections_are_logged_once_a_second_and_all_counted() -> None:
    """Ten at one moment: one log line, ten in the statistics, and a call is answered."""
    events: list[BulkheadEvent] = []

    class Observing(LocalProcesses):
        path = ""

        def launch(self, invitation: Invitation) -> Any:
            self.path = invitation.path
            return super().launch(invitation)

    launcher = Observing()
    clock = ManualClock()
    async with bulkhead(launcher=launcher, on_event=events.append, clock=clock) as pool:
        for _ in range(10):
            with socket.socket(socket.AF_UNIX) as intruder:
                intruder.connect(launcher.path)
                intruder.sendall(bytes(HELLO_BYTES))
                assert await asyncio.to_thread(until_closed, intruder)
        await eventually(lambda: pool.statistics().rejected_connections == 10, "all are counted")
        assert (await pool.call("double", numbers(1)))["x"] == 2
        lines = [event.fields for event in events if event.decision == "connection_rejected"]
        assert lines == [
            {"kind": "not_authenticated", "cause": "it does not have an unused invitation", "not_logged_since_last": 0}
        ]
        assert pool.statistics().rejected[Rejection.NOT_AUTHENTICATED] == 10


async def test_an_invitation_can_be_used_once() -> None:
    """The second worker that uses it is rejected by the bulkhead, and its ``serve`` raises ``PeerRejected``."""
    invitations: list[Invitation] = []

    class Recording(LocalProcesses):
        def launch(self, invitation: Invitation) -> Any:
            invitations.append(invitation)
            return super().launch(invitation)

    async with bulkhead(launcher=Recording()) as pool:
        with pytest.raises(PeerRejected, match="the bulkhead rejected the invitation: it was used before"):
            await asyncio.to_thread(serve, invitations[0])
        await eventually(lambda: pool.statistics().rejected_connections == 1, "it is counted")
        assert pool.statistics().restarts == 0


async def test_a_worker_rejects_a_listener_that_does_not_know_the_key(tmp_path: Path) -> None:
    """``serve`` raises ``PeerRejected``."""

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bulkhd-1" + bytes(32))
        await reader.readexactly(HELLO_BYTES)
        writer.write(bytes(PROOF_BYTES))
        await writer.drain()
        await reader.read()
        writer.close()

    path = str(tmp_path / "socket")
    async with await asyncio.start_unix_server(impostor, path):
        invitation = Invitation("toy", 1, 1, TOY, TOKEN, KEY, 100, path=path)
        with pytest.raises(PeerRejected, match="not the bulkhead that sent the invitation"):
            await asyncio.to_thread(serve, invitation)
