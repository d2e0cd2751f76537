"""``exchange`` with real sockets: how each result is classified."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import ssl
import tracemalloc
from collections.abc import Callable
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import httpx
import pytest
import trustme

from orchestrator_adapter.primitives.clock import Timeout
from orchestrator_adapter.resilience.http import HttpFailure, classify_error, classify_status, exchange, retry_after
from orchestrator_adapter.resilience.retry import Permanent, Retry, RetryDisposition, RetryOk
from orchestrator_adapter.testing import ManualClock, settle
from tests.helpers.running import eventually
from tests.orchestrator_adapter.resilience.http_peers import (
    Peer,
    answering,
    close_connection,
    http,
    listening,
    reset,
    send_endlessly,
    send_nothing,
)

NOW_NS = ManualClock().now_ns()  # 2026-01-01T00:00:00Z


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


async def get_from(peer: Peer, **options: Any) -> RetryDisposition[Any]:
    async with listening(peer) as port:
        return await get(f"http://127.0.0.1:{port}/page", **options)


def message(disposition: RetryDisposition[Any]) -> str:
    assert isinstance(disposition, (Retry, Permanent))
    assert isinstance(disposition.error, HttpFailure)
    return str(disposition.error)


def test_every_status_has_the_disposition_of_its_class() -> None:
    """2xx is a success, 429 and 500 and above are ``Retry``, every other status is ``Permanent``."""
    for status in range(100, 1_000):
        failed = classify_status("GET here", status, {}, now_ns=NOW_NS)
        if 200 <= status < 300:
            assert failed is None, status
        else:
            assert isinstance(failed, Retry if status == 429 or status >= 500 else Permanent), status
            phrase = f" {HTTPStatus(status).phrase}" if status in set(HTTPStatus) else ""
            assert message(failed) == f"GET here answered {status}{phrase}"


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_retry_after_is_read_only_with_429_and_503(status: int) -> None:
    """A Retry-After with another status is ignored."""
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
def test_retry_after_is_seconds_or_a_date(value: str | None, seconds: float | None) -> None:
    """All three date formats of RFC 9110 are read, a past date is zero, and an invalid value is ignored."""
    assert retry_after(value, now_ns=NOW_NS) == (None if seconds is None else timedelta(seconds=seconds))


async def test_a_successful_response_gives_the_decoded_body() -> None:
    """The disposition has the decoded value of the whole body."""
    assert await get_from(answering(http(b'{"a": 1}'))) == RetryOk({"a": 1})


async def test_gzip_is_requested_and_inflated() -> None:
    """The request has one Accept-Encoding, and a gzip body is decoded."""
    offered = []

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        offered.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(http(gzip.compress(b'{"a": 1}'), "Content-Encoding: GZIP"))
        await writer.drain()

    assert await get_from(peer) == RetryOk({"a": 1})
    assert offered[0].lower().count(b"accept-encoding: gzip\r\n") == 1


async def test_the_callers_request_is_not_changed() -> None:
    """It can be sent again by other means: its headers, and its body, are as before."""
    async with listening(answering(http(b"1"))) as port, httpx.AsyncClient() as client:
        request = client.build_request(
            "POST", f"http://127.0.0.1:{port}/", content=b"body", headers={"Accept-Encoding": "br"}
        )
        before = dict(request.headers)
        for _ in range(2):
            assert await exchange(client, request, decode=json.loads, now_ns=lambda: NOW_NS) == RetryOk(1)
        assert dict(request.headers) == before


async def test_a_body_is_not_inflated_beyond_its_limit() -> None:
    """A small body that would inflate to 64 MiB takes little memory: inflating stops at the limit."""
    async with listening(answering(http(BOMB, "Content-Encoding: gzip"))) as port:
        tracemalloc.start()
        try:
            assert isinstance(await get(f"http://127.0.0.1:{port}/", max_body_bytes=1_000), Permanent)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 8 << 20


async def test_messages_contain_no_secrets_and_the_first_cause() -> None:
    """The message has neither password nor query, but the error of the socket."""
    async with listening(close_connection) as port:
        pass
    text = message(await get(f"http://user:s3cret@127.0.0.1:{port}/page?token=s3cret#s3cret"))
    assert text.startswith(f"GET http://127.0.0.1:{port}/page failed: ConnectError: ")
    assert "Connect call failed" in text


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("/login?token=s3cret", "/login"),
        ("https://user:s3cret@elsewhere/login#s3cret", "https://elsewhere/login"),
        ("//user:s3@cret@elsewhere", "//elsewhere"),
        ("/" + 500 * "x", "/" + 199 * "x"),
    ],
)
def test_a_redirection_shows_its_target_without_secrets(location: str, shown: str) -> None:
    """The new address often has the old one's secrets: only its host and path are shown, and shortened."""
    failed = classify_status("GET here", 308, {"location": location}, now_ns=NOW_NS)
    assert failed is not None
    assert message(failed) == f"GET here answered 308 Permanent Redirect, to {shown!r}"


@pytest.mark.parametrize(("status", "passes"), [("503 Service Unavailable", True), ("407 Authentication", False)])
def test_a_proxy_error_is_classified_by_its_status(status: str, passes: bool) -> None:  # noqa: FBT001 - a table
    """A proxy's 503 is ``Retry`` as a server's is; its 407 is ``Permanent``."""
    assert isinstance(classify_error("GET here", httpx.ProxyError(status)), Retry if passes else Permanent)


async def test_a_503_has_its_retry_after() -> None:
    """The caller gets the header as a duration."""
    disposition = await get_from(answering(http(b"", "Retry-After: 30", status=503)))
    assert isinstance(disposition, Retry)
    assert disposition.retry_after == timedelta(seconds=30)


ERROR_PAGE = (
    b"<!DOCTYPE html>\n<p>GP data has\x07 not updated since your last download of secret-group. " + b"x" * 5_000
)


@pytest.mark.parametrize("compressed", [False, True])
async def test_an_error_answer_shows_the_first_line_of_its_body(compressed: bool) -> None:  # noqa: FBT001 - a table
    """Without tags, control characters and the request's own secrets, shortened; inflated if the server compresses it."""
    response = (
        http(gzip.compress(ERROR_PAGE), "Content-Encoding: gzip", status=403)
        if compressed
        else http(ERROR_PAGE, status=403)
    )
    async with listening(answering(response)) as port:
        disposition = await get(f"http://me:password@127.0.0.1:{port}/page?GROUP=secret-group")
    assert isinstance(disposition, Permanent)
    text = message(disposition)
    assert "answered 403 Forbidden: 'GP data has? not updated since your last download of ***. xxx" in text
    assert len(text) < 300


async def test_an_error_answer_without_an_end_is_an_error() -> None:
    """Its body is not waited for: what has arrived soon is shown."""

    async def half(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 503 x\r\nRetry-After: 7\r\nContent-Length: 99\r\n\r\nclosed today")
        await reader.read()
        writer.close()

    async with await asyncio.start_server(half, "127.0.0.1", 0) as server:
        disposition = await get(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    assert isinstance(disposition, Retry)
    assert disposition.retry_after == timedelta(seconds=7)
    assert message(disposition).endswith("answered 503 Service Unavailable: 'closed today'")


RETRIED = {
    "closed": (close_connection, "RemoteProtocolError: Server disconnected without sending a response."),
    "reset": (reset, "ReadError"),
    "truncated": (answering(http(b"{}")[:-1]), "RemoteProtocolError: peer closed connection"),
    "silent": (send_nothing, "ReadTimeout"),
}


@pytest.mark.parametrize("what", RETRIED)
async def test_a_failed_connection_is_retried(what: str) -> None:
    """A peer that closes, resets or sends nothing gives ``Retry``."""
    peer, expected = RETRIED[what]
    disposition = await get_from(peer, timeout=httpx.Timeout(30.0, read=0.2 if what == "silent" else 30.0))
    assert isinstance(disposition, Retry), disposition
    assert expected in message(disposition)


async def test_a_refused_connection_is_retried() -> None:
    """No process listens at the port."""
    async with listening(close_connection) as port:
        pass
    disposition = await get(f"http://127.0.0.1:{port}/page")
    assert isinstance(disposition, Retry)
    assert message(disposition).startswith(f"GET http://127.0.0.1:{port}/page failed: ConnectError: ")


async def test_a_connection_that_is_not_accepted_is_retried() -> None:
    """The listener's queue is full, so the kernel drops the SYN, and connecting times out."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            other = sockets.enter_context(socket.socket())
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
def test_the_cause_of_a_failed_connection_decides(error: OSError, passes: bool) -> None:  # noqa: FBT001 - a table
    """An unreachable network is ``Retry``; an invalid certificate is ``Permanent``."""
    failed = httpx.ConnectError("connecting failed")
    failed.__cause__ = error
    assert isinstance(classify_error("GET here", failed), Retry if passes else Permanent)


BOMB = gzip.compress(bytes(64 << 20))  # 64 MiB in 64 kB

PERMANENT = {
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
    "endless": (send_endlessly, "answered with more than the 1000 bytes allowed"),
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


@pytest.mark.parametrize("what", PERMANENT)
async def test_an_invalid_response_is_permanent(what: str) -> None:
    """The peer would send the same again. Reading an endless body stops at the limit."""
    peer, expected = PERMANENT[what]
    disposition = await get_from(peer, max_body_bytes=1_000)
    assert isinstance(disposition, Permanent), disposition
    assert expected in message(disposition)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "/no/host"])
async def test_a_url_that_httpx_does_not_support_is_permanent(url: str) -> None:
    """The message says so, and nothing is sent."""
    disposition = await get(url)
    assert isinstance(disposition, Permanent)
    assert "UnsupportedProtocol" in message(disposition)


async def test_a_value_error_of_decode_is_permanent_with_its_text() -> None:
    """It means an invalid body, and is the cause of the failure."""
    complaint = ValueError("expected 'ra_rad', got nothing")

    def decode(_: bytes) -> None:
        raise complaint

    disposition = await get_from(answering(http(b"[{}]")), decode=decode)
    assert isinstance(disposition, Permanent)
    assert message(disposition).endswith("4 bytes that are not what was expected: expected 'ra_rad', got nothing")
    assert disposition.error.__cause__ is complaint


async def test_any_other_exception_of_decode_is_passed_on() -> None:
    """It is a bug, not the peer's fault."""

    def decode(_: bytes) -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        await get_from(answering(http(b"[]")), decode=decode)


async def test_the_callers_timeout_ends_a_slow_response_and_closes_the_connection() -> None:
    """Each byte is in time, so httpx never times out. A timeout of the whole exchange ends it and closes the connection."""
    clock, closed = ManualClock(), asyncio.Event()
    sent = 0

    async def send_slowly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        try:
            while not reader.at_eof():
                writer.write(b" ")
                await writer.drain()
                sent += 1
                await settle(5)
        finally:
            closed.set()

    async def limited(port: int) -> None:
        async with Timeout(clock, 30.0):
            await get(f"http://127.0.0.1:{port}/")

    async with listening(send_slowly) as port:
        exchanging = asyncio.create_task(limited(port))
        await eventually(lambda: sent > 3, "some bytes")
        clock.advance(30.0)
        with pytest.raises(TimeoutError, match="not done within 30 s"):
            await exchanging
        await asyncio.wait_for(closed.wait(), 20.0)


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
    """Also if the authority is a private one."""
    async with listening(answering(http(b"[]")), tls=server_side(authority, "127.0.0.1")) as port:
        assert await get(f"https://127.0.0.1:{port}/", verify=client_side(authority)) == RetryOk([])


@pytest.mark.parametrize("what", ["unknown authority", "another name"])
async def test_a_certificate_that_does_not_verify_is_permanent(authority: trustme.CA, what: str) -> None:
    """The peer is not asked again, and receives nothing."""
    received = []

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.read())

    names = ["127.0.0.1"] if what == "unknown authority" else ["archive.example"]
    trusted: ssl.SSLContext | bool = True if what == "unknown authority" else client_side(authority)
    async with listening(peer, tls=server_side(authority, *names)) as port:
        disposition = await get(f"https://127.0.0.1:{port}/", verify=trusted)
    assert isinstance(disposition, Permanent)
    assert "certificate verify failed" in message(disposition).lower()
    assert not any(received)


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


async def test_a_connection_that_closes_within_the_tls_handshake_is_retried() -> None:
    """The server restarts: for TLS this is a reset connection, and not an invalid certificate."""

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with listening(peer) as port:
        disposition = await get(f"https://127.0.0.1:{port}/")
    assert isinstance(disposition, Retry), disposition
