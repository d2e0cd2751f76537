"""Catalogues over HTTP: validators, retries, timeouts, certificates, and what a server can do wrong."""

from __future__ import annotations

import asyncio
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme

from orchestrator_adapter.testing import ManualClock
from sda_ops.catalog.fetch import CatalogUnavailable, CatalogUrl
from sda_ops.catalog.live import (
    CatalogRejected,
    LiveCatalog,
    Refreshed,
    Unchanged,
)
from tests.sda_ops.catalog.catalog_server import ONCE, TWICE, Server, numbers, text_of
from tests.sda_ops.catalog.catalog_texts import OMM, kvn


async def test_a_catalogue_is_loaded_over_http() -> None:
    """From a real server, in any notation. Its source is the URL without the query, which may contain a token."""
    async with Server.serving(kvn([OMM])) as server:
        version = await server.catalog().load()
    assert numbers(version) == [25544]
    assert version.source == server.url.partition("?")[0]


@pytest.mark.parametrize(
    ("header", "value", "condition"),
    [("ETag", '"v1"', "if-none-match"), ("Last-Modified", "Tue, 10 Mar 2026 08:00:00 GMT", "if-modified-since")],
)
async def test_a_refresh_sends_the_servers_validator(header: str, value: str, condition: str) -> None:
    """The validator of the last answer is sent back, and "304 Not Modified" means unchanged."""
    async with Server.serving(text_of(1), headers={header: value}) as server:
        catalog = server.catalog()
        version = await catalog.load()
        server.answers = [b"HTTP/1.1 304 Not Modified\r\n\r\n"]
        assert await catalog.refresh() == Unchanged(version)
        assert condition not in server.requests[0]
        assert server.requests[1][condition] == value
        server.body, server.headers = text_of(2).encode(), {}
        assert isinstance(await catalog.refresh(), Refreshed)
        await catalog.refresh()
        assert condition not in server.requests[3]


async def test_bad_content_that_is_not_modified_stays_rejected() -> None:
    """An outage in between does not change this."""
    async with Server.serving(text_of(1), headers={"ETag": '"good"'}) as server:
        catalog = server.catalog()
        await catalog.load()
        server.body, server.headers = b"bad", {"ETag": '"bad"'}
        first = await catalog.refresh()
        server.answers = [b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"]
        outage = await catalog.refresh()
        again = await catalog.refresh()
        assert isinstance(first, CatalogRejected)
        assert isinstance(outage, CatalogRejected)
        assert isinstance(again, CatalogRejected)
        assert server.requests[-1]["if-none-match"] == '"bad"'
        assert first.reason == again.reason != outage.reason
        server.body, server.headers = text_of(1).encode(), {"ETag": '"good"'}
        assert isinstance(await catalog.refresh(), Unchanged)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "answered 404 Not Found"),
        (b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n", "answered 500 Internal Server Error"),
        (b"HTTP/1.1 304 Not Modified\r\n\r\n", "answered 304 Not Modified"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\nNORAD_CAT_ID,", "peer closed connection"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\n" + b"x" * 2000, "more than the 1000 bytes allowed"),
        (None, "disconnected without sending"),
    ],
)
async def test_a_servers_errors_are_rejected(answer: bytes | None, reason: str) -> None:
    """Errors, torn and oversized answers, and an unexpected 304, leave the old catalogue; the URL's query is not reported."""
    async with Server.serving(text_of(1)) as server:
        catalog = server.catalog(max_body_bytes=1000)
        await catalog.load()
        server.answers = [answer, None]
        outcome = await catalog.refresh()
    assert isinstance(outcome, CatalogRejected)
    assert reason in outcome.reason
    assert server.url.partition("?")[0] in outcome.reason
    assert "secret" not in outcome.reason
    assert numbers(catalog.current) == [1]


async def test_a_failed_request_is_retried() -> None:
    """A server that is too busy for the first request and answers the second loses nothing."""
    async with Server.serving(text_of(1)) as server:
        server.answers = [b'HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nETag: "busy"\r\n\r\n']
        catalog = server.catalog(TWICE)
        assert numbers(await catalog.load()) == [1]
        assert len(server.requests) == 2
        await catalog.refresh()
        assert "if-none-match" not in server.requests[2]  # the tag of the 503 is not the catalogue's


async def test_a_slow_server_is_rejected_after_the_timeout() -> None:
    """An answer that takes longer than the timeout, on the catalogue's clock, is not waited for."""
    clock = ManualClock()
    requested = asyncio.Event()

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2000\r\n\r\nN")
        requested.set()
        await reader.read()
        writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        catalog = LiveCatalog(CatalogUrl(url, timeout=timedelta(seconds=9), retry=ONCE), clock=clock)
        refreshing = asyncio.ensure_future(catalog.refresh())
        await requested.wait()
        clock.advance(9.0)
        outcome = await refreshing
    assert isinstance(outcome, CatalogRejected)
    assert "not done within 9 s" in outcome.reason


async def test_a_certificate_is_verified(tmp_path: Path) -> None:
    """Over TLS a catalogue is loaded only from a server with a certificate of a trusted authority."""
    authority = trustme.CA()
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    async with Server.serving(text_of(1), tls=server_side) as server:
        assert numbers(await server.catalog(ca_file=tmp_path / "ca.pem").load()) == [1]
        with pytest.raises(CatalogUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            await server.catalog().load()


async def test_a_missing_certificate_file_is_reported(tmp_path: Path) -> None:
    """Before any request is made."""
    catalog = LiveCatalog(CatalogUrl("https://127.0.0.1:1/", ca_file=tmp_path / "none.pem"))
    with pytest.raises(CatalogUnavailable, match=r"^https://127\.0\.0\.1:1/: cannot be requested: .*No such file"):
        await catalog.load()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"url": "ftp://x/"}, "url must begin with http:// or https://, got 'ftp://x/'"),
        ({"url": "http://x:y/"}, "'http://x:y/' is not a URL: "),
        ({"url": "http://x/", "timeout": timedelta(0)}, "timeout must be > 0, got"),
        ({"url": "http://x/", "max_body_bytes": 0}, "max_body_bytes must be >= 1, got 0"),
    ],
)
def test_an_invalid_url_is_rejected(options: dict[str, Any], problem: str) -> None:
    """At construction, not at the first request."""
    with pytest.raises(ValueError, match=r".") as raised:
        CatalogUrl(**options)
    assert str(raised.value).startswith(f"CatalogUrl: {problem}")
