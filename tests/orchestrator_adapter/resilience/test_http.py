from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import ssl
import struct
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from http import HTTPStatus
from typing import Any, TypeAlias

import httpx
import pytest
import trustme

from orchestrator_adapter.primitives.clock import Timeout
from orchestrator_adapter.resilience.http import HttpFailure, classify_error, classify_status, exchange, retry_after
from orchestrator_adapter.resilience.retry import Permanent, Retry, RetryDisposition, RetryOk
from orchestrator_adapter.testing import ManualClock, settle
from tests.helpers.running import eventually

NOW_NS = ManualClock().now_ns()  # 2026-01-01T00:00:00Z

Peer: TypeAlias = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def answering(raw: bytes) -> Peer:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()

    return peer


def http(body: bytes, *headers: str, status: int = 200) -> bytes:
    head = [f"HTTP/1.1 {status} Scripted", f"Content-Length: {len(body)}", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode() + body


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends RST
    writer.transport.abort()


async def stay_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def send_for_ever(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"400\r\n" + b" " * 1024 + b"\r\n")
        await writer.drain()


@asynccontextmanager
async def listening(peer: Peer, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await peer(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def get(
    url: str, *, decode: Callable[[bytes], Any] = json.loads, max_body_bytes: int = 1 << 20, **client: Any
) -> RetryDisposition[Any]:
    async with httpx.AsyncClient(**({"timeout": 10.0} | client)) as connection:
        return await exchange(
            connection,
            connection.build_request("GET", url),
            decode=decode,
            now_ns=lambda: NOW_NS,
            max_body_bytes=max_body_bytes,
        )


async def got_from(peer: Peer, **options: Any) -> RetryDisposition[Any]:
    async with listening(peer) as port:
        return await get(f"http://127.0.0.1:{port}/page", **options)


def message(disposition: RetryDisposition[Any]) -> str:
    assert isinstance(disposition, (Retry, Permanent))
    assert isinstance(disposition.error, HttpFailure)
    return str(disposition.error)


def test_every_status_has_the_disposition_of_its_class() -> None:
    """2xx is success, 429 and 5xx (and what is beyond) may pass, everything else will not."""
    for status in range(100, 1_000):
        failed = classify_status("GET here", status, {}, now_ns=NOW_NS)
        if 200 <= status < 300:
            assert failed is None, status
        else:
            assert isinstance(failed, Retry if status == 429 or status >= 500 else Permanent), status
            phrase = f" {HTTPStatus(status).phrase}" if status in set(HTTPStatus) else ""
            assert message(failed) == f"GET here answered {status}{phrase}"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_only_429_and_503_say_when_to_come_back(status: int) -> None:
    """A Retry-After that comes with another status is not heeded."""
    failed = classify_status("GET here", status, {"retry-after": "7"}, now_ns=NOW_NS)
    wanted = timedelta(seconds=7) if status in {429, 503} else None
    assert getattr(failed, "retry_after", None) == wanted


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("120", 120.0),
        (" 120 ", 120.0),
        ("Thu, 01 Jan 2026 00:00:30 GMT", 30.0),
        ("Thu, 01 Jan 2026 01:00:30 +0100", 30.0),
        ("Thursday, 01-Jan-26 00:00:30 GMT", 30.0),
        ("Thu Jan  1 00:00:30 2026", 30.0),
        ("Wed, 31 Dec 2025 23:59:59 GMT", 0.0),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("", None),
        ("9" * 400, None),
        ("Thu, 99 Jan 2026 00:00:30 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_or_nothing(value: str | None, seconds: float | None) -> None:
    """All three forms of date of RFC 9110 are read, the past is now, and nonsense is as if it were not there."""
    assert retry_after(value, now_ns=NOW_NS) == (None if seconds is None else timedelta(seconds=seconds))


async def test_a_good_answer_is_what_decode_makes_of_its_body() -> None:
    """The body arrives whole, decompressed by httpx, and its value is the disposition's."""
    assert await got_from(answering(http(b'{"a": 1}'))) == RetryOk({"a": 1})


async def test_a_compressed_answer_is_asked_for_and_inflated() -> None:
    """gzip is offered, once, and its body is as good as any."""
    offered = []

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        offered.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(http(gzip.compress(b'{"a": 1}'), "Content-Encoding: GZIP"))
        await writer.drain()

    assert await got_from(peer) == RetryOk({"a": 1})
    assert offered[0].lower().count(b"accept-encoding: gzip\r\n") == 1


async def test_no_more_of_a_body_is_made_than_is_allowed() -> None:
    """A kilobyte that would inflate to 64 MiB takes no such memory: it is left where the limit is."""
    async with listening(answering(http(BOMB, "Content-Encoding: gzip"))) as port:
        tracemalloc.start()
        try:
            assert isinstance(await get(f"http://127.0.0.1:{port}/", max_body_bytes=1_000), Permanent)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 8 << 20


async def test_messages_keep_secrets_and_name_the_first_cause() -> None:
    """Neither password nor query is told; what the socket said is."""
    async with listening(hang_up) as port:
        pass
    told = message(await get(f"http://user:s3cret@127.0.0.1:{port}/page?token=s3cret#s3cret"))
    assert told.startswith(f"GET http://127.0.0.1:{port}/page failed: ConnectError: ")
    assert "Connect call failed" in told


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("/login?token=s3cret", "/login"),
        ("https://user:s3cret@elsewhere/login#s3cret", "https://elsewhere/login"),
        ("//user:s3@cret@elsewhere", "//elsewhere"),
        ("/" + 500 * "x", "/" + 199 * "x"),
    ],
)
def test_a_redirection_says_where_to_and_no_secret(location: str, told: str) -> None:
    """What the old address carried is often in the new one: only its host and path are told, and not without end."""
    failed = classify_status("GET here", 308, {"location": location}, now_ns=NOW_NS)
    assert failed is not None
    assert message(failed) == f"GET here answered 308 Permanent Redirect, to {told!r}"


@pytest.mark.parametrize(("status", "passes"), [("503 Service Unavailable", True), ("407 Authentication", False)])
def test_a_proxy_that_refuses_is_judged_by_its_status(status: str, passes: bool) -> None:  # noqa: FBT001 - a table
    """A proxy's 503 may pass as a server's may, its 407 will not."""
    assert isinstance(classify_error("GET here", httpx.ProxyError(status)), Retry if passes else Permanent)


async def test_a_503_is_told_with_its_retry_after() -> None:
    """What the header says reaches the caller as a duration."""
    disposition = await got_from(answering(http(b"", "Retry-After: 30", status=503)))
    assert isinstance(disposition, Retry)
    assert disposition.retry_after == timedelta(seconds=30)


MAY_PASS = {
    "hung up": (hang_up, "RemoteProtocolError: Server disconnected without sending a response."),
    "reset": (reset, "ReadError"),
    "cut short": (answering(http(b"{}")[:-1]), "RemoteProtocolError: peer closed connection"),
    "silent": (stay_silent, "ReadTimeout"),
}


@pytest.mark.parametrize("what", MAY_PASS)
async def test_a_connection_that_fails_may_work_the_next_time(what: str) -> None:
    """Whoever hangs up, resets or says nothing is asked again."""
    peer, told = MAY_PASS[what]
    disposition = await got_from(peer, timeout=httpx.Timeout(30.0, read=0.2 if what == "silent" else 30.0))
    assert isinstance(disposition, Retry), disposition
    assert told in message(disposition)


async def test_a_refused_connection_may_work_the_next_time() -> None:
    """Nobody listens there now."""
    async with listening(hang_up) as port:
        pass
    disposition = await get(f"http://127.0.0.1:{port}/page")
    assert isinstance(disposition, Retry)
    assert message(disposition).startswith(f"GET http://127.0.0.1:{port}/page failed: ConnectError: ")


async def test_a_connection_that_nobody_accepts_may_work_the_next_time() -> None:
    """A black hole: the listener's queue is full, so the kernel drops our SYN, and connecting times out."""
    with contextlib.ExitStack() as held:
        listener = held.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            other = held.enter_context(socket.socket())
            other.setblocking(False)  # noqa: FBT003 - the standard library's signature
            other.connect_ex(listener.getsockname())
        disposition = await get(f"http://127.0.0.1:{listener.getsockname()[1]}/", timeout=0.2)
    assert isinstance(disposition, Retry)
    assert "ConnectTimeout" in message(disposition)


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"), True),
        (OSError(101, "Network is unreachable"), True),
        (ssl.SSLCertVerificationError("self-signed certificate"), False),
        (ssl.SSLEOFError("EOF occurred in violation of protocol"), True),
        (ssl.SSLZeroReturnError("closed"), True),
        (ssl.SSLError("wrong version number"), False),
    ],
)
def test_what_is_below_a_failed_connection_decides(error: OSError, passes: bool) -> None:  # noqa: FBT001 - a table
    """A network that is not there may come back; a certificate that is wrong stays wrong."""
    failed = httpx.ConnectError("connecting failed")
    failed.__cause__ = error
    assert isinstance(classify_error("GET here", failed), Retry if passes else Permanent)


BOMB = gzip.compress(bytes(64 << 20))  # 64 MiB in 64 kB

WILL_NOT_PASS = {
    "no HTTP": (answering(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), "RemoteProtocolError: illegal status line"),
    "bad gzip": (answering(http(b"not gzip", "Content-Encoding: gzip")), "while decompressing data"),
    "half a gzip": (answering(http(gzip.compress(b"[]")[:-4], "Content-Encoding: gzip")), "that is truncated"),
    "gzip and more": (answering(http(gzip.compress(b"[]") + b"x", "Content-Encoding: gzip")), "goes on after its end"),
    "inflating": (
        answering(http(gzip.compress(b" " * 2_000), "Content-Encoding: gzip")),
        "more than the 1000 bytes allowed",
    ),
    "bomb": (answering(http(BOMB, "Content-Encoding: gzip")), "more than the 1000 bytes allowed"),
    "double bomb": (
        answering(http(gzip.compress(BOMB), "Content-Encoding: gzip, gzip")),
        "answered with Content-Encoding 'gzip, gzip', which was not requested",
    ),
    "brotli": (answering(http(b"[]", "Content-Encoding: br")), "Content-Encoding 'br', which was not requested"),
    "bad JSON": (answering(http(b"<html>")), "answered with 6 bytes that are not what was expected"),
    "empty": (answering(http(b"")), "answered with 0 bytes that are not what was expected"),
    "too large": (answering(http(b" " * 2_000)), "answered with more than the 1000 bytes allowed"),
    "endless": (send_for_ever, "answered with more than the 1000 bytes allowed"),
    "redirect": (answering(http(b"", "Location: /x", status=307)), "answered 307 Temporary Redirect, to '/x'"),
    "redirect to no URL": (
        answering(http(b"", "Location: login:portal", status=302)),
        "a redirection to an invalid URL",
    ),
    "redirect to a mailbox": (
        answering(http(b"", "Location: mailto:x@y", status=302)),
        "a redirection to an invalid URL",
    ),
    "redirect with backslashes": (
        answering(http(b"", "Location: http:\\\\evil\\x", status=302)),
        "a redirection to an invalid URL",
    ),
    "redirect to no port": (answering(http(b"", "Location: http://x:999999/", status=302)), "302"),
}


@pytest.mark.parametrize("what", WILL_NOT_PASS)
async def test_an_answer_that_is_wrong_will_be_wrong_again(what: str) -> None:
    """What the peer said, and will say again, is permanent; an endless body is left where the limit is."""
    peer, told = WILL_NOT_PASS[what]
    disposition = await got_from(peer, max_body_bytes=1_000)
    assert isinstance(disposition, Permanent), disposition
    assert told in message(disposition)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "/no/host"])
async def test_a_url_that_httpx_cannot_ask_is_permanent(url: str) -> None:
    """A wrong address is told as one, and nothing is sent."""
    disposition = await get(url)
    assert isinstance(disposition, Permanent)
    assert "UnsupportedProtocol" in message(disposition)


async def test_a_schema_that_is_wrong_is_permanent_with_the_decoders_words() -> None:
    """A ValueError of decode is the body's fault, and is the failure's cause."""
    complaint = ValueError("expected 'ra_rad', got nothing")

    def decode(_: bytes) -> None:
        raise complaint

    disposition = await got_from(answering(http(b"[{}]")), decode=decode)
    assert isinstance(disposition, Permanent)
    assert message(disposition).endswith("4 bytes that are not what was expected: expected 'ra_rad', got nothing")
    assert disposition.error.__cause__ is complaint


async def test_a_decoder_with_a_bug_is_not_the_peers_fault() -> None:
    """Anything but a ValueError is passed on as it is."""

    def decode(_: bytes) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        await got_from(answering(http(b"[]")), decode=decode)


async def test_a_slow_drip_is_cut_off_by_the_callers_limit_and_the_connection_closed() -> None:
    """Each byte is in time, so httpx waits for ever; a limit on the whole exchange ends it and hangs up."""
    clock, hung_up = ManualClock(), asyncio.Event()
    dripped = 0

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal dripped
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        try:
            while not reader.at_eof():
                writer.write(b" ")
                await writer.drain()
                dripped += 1
                await settle(5)
        finally:
            hung_up.set()

    async def limited(port: int) -> None:
        async with Timeout(clock, 30.0):
            await get(f"http://127.0.0.1:{port}/")

    async with listening(drip) as port:
        asking = asyncio.create_task(limited(port))
        await eventually(lambda: dripped > 3, "some bytes")
        clock.advance(30.0)
        with pytest.raises(TimeoutError, match="not done within 30 s"):
            await asking
        await asyncio.wait_for(hung_up.wait(), 20.0)


# TLS.


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def server_side(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def client_side(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def test_a_certificate_of_a_trusted_authority_is_accepted(authority: trustme.CA) -> None:
    """TLS with an authority of one's own works."""
    async with listening(answering(http(b"[]")), tls=server_side(authority, "127.0.0.1")) as port:
        assert await get(f"https://127.0.0.1:{port}/", verify=client_side(authority)) == RetryOk([])


@pytest.mark.parametrize("what", ["unknown authority", "another name"])
async def test_a_certificate_that_does_not_verify_is_permanent(authority: trustme.CA, what: str) -> None:
    """Who is not who they should be is not asked again, and is sent nothing."""
    asked = []

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.read())

    names = ["127.0.0.1"] if what == "unknown authority" else ["archive.example"]
    trusted: ssl.SSLContext | bool = True if what == "unknown authority" else client_side(authority)
    async with listening(peer, tls=server_side(authority, *names)) as port:
        disposition = await get(f"https://127.0.0.1:{port}/", verify=trusted)
    assert isinstance(disposition, Permanent)
    assert "certificate verify failed" in message(disposition).lower()
    assert not any(asked)


async def test_a_server_that_does_not_speak_tls_is_permanent() -> None:
    """https on a port that speaks plain HTTP is a wrong address."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()

    async with listening(peer) as port:
        disposition = await get(f"https://127.0.0.1:{port}/")
    assert isinstance(disposition, Permanent)
    assert "SSL" in message(disposition)


async def test_a_server_that_hangs_up_within_the_handshake_may_work_the_next_time() -> None:
    """A restart of the server, seen by TLS, is a reset connection and no wrong certificate."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with listening(peer) as port:
        disposition = await get(f"https://127.0.0.1:{port}/")
    assert isinstance(disposition, Retry), disposition
