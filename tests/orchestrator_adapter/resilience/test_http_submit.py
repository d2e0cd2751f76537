"""``submit`` with real sockets: the status of the answer says all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from orchestrator_adapter.primitives.clock import SystemClock, Timeout
from orchestrator_adapter.resilience.http import HIDE_PATH, HttpFailure, submit
from orchestrator_adapter.resilience.retry import Permanent, Retry, RetryOk
from tests.orchestrator_adapter.resilience.http_peers import (
    Peer,
    answering,
    close_connection,
    http,
    listening,
    send_endlessly,
    send_nothing,
)


@asynccontextmanager
async def posting_to(peer: Peer) -> AsyncIterator[RetryOk[int] | Retry | Permanent]:
    """The result of a POST to the peer, which runs on during the context."""
    async with listening(peer) as port, httpx.AsyncClient(timeout=10.0) as client:
        request = client.build_request("POST", f"http://127.0.0.1:{port}/alerts", content=b"{}")
        yield await submit(client, request, now_ns=lambda: 0)


@pytest.mark.parametrize("status", [200, 201, 204, 299])
async def test_every_2xx_is_a_success_with_its_status(status: int) -> None:
    async with posting_to(answering(http(b"", status=status))) as result:
        assert result == RetryOk(status)


async def test_a_success_does_not_wait_for_a_body_that_never_ends() -> None:
    async with Timeout(SystemClock(), 20.0), posting_to(send_endlessly) as result:
        assert result == RetryOk(200)


async def test_a_success_does_not_wait_for_a_body_that_does_not_come() -> None:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await answering(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")(reader, writer)
        await send_nothing(reader, writer)

    async with Timeout(SystemClock(), 20.0), posting_to(peer) as result:
        assert result == RetryOk(200)


async def test_a_success_whose_body_is_cut_off_or_no_gzip_stays_one() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 10\r\n\r\nno"
    async with posting_to(answering(head)) as result:
        assert result == RetryOk(200)


@pytest.mark.parametrize(("status", "kind"), [(302, Permanent), (400, Permanent), (401, Permanent), (503, Retry)])
async def test_an_error_answer_has_its_status_in_the_failure(status: int, kind: type[Retry | Permanent]) -> None:
    async with posting_to(answering(http(b"no such table", status=status))) as result:
        assert isinstance(result, kind)
        assert isinstance(result.error, HttpFailure)
        assert result.error.status == status


async def test_without_an_answer_there_is_no_status() -> None:
    async with posting_to(close_connection) as result:
        assert isinstance(result, Retry)
        assert isinstance(result.error, HttpFailure)
        assert result.error.status is None


@pytest.mark.parametrize("status", [302, 404])
async def test_a_path_that_is_secret_is_in_no_message(status: int) -> None:
    """Neither in the address, nor where the server repeats it: in a redirection's target, or in the page of an error."""
    page = b"the requested URL /services/T0000/a-token was not found"
    head = f"HTTP/1.1 {status} x\r\nLocation: https://b.example/services/T0000/a-token\r\nContent-Length: {len(page)}\r\n\r\n"
    async with listening(answering(head.encode() + page)) as port, httpx.AsyncClient(timeout=10.0) as client:
        url = f"http://127.0.0.1:{port}/services/T0000/a-token"
        request = client.build_request("POST", url, extensions={HIDE_PATH: True})
        result = await submit(client, request, now_ns=lambda: 0)
    assert isinstance(result, Permanent)
    assert str(result.error).startswith(f"POST http://127.0.0.1:{port}/… answered {status}")
    assert "token" not in str(result.error)
