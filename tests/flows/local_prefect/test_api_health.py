from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from flows.local_prefect.api_health import api_health, wait_for_api
from flows.local_prefect.processes import free_ports
from orchestrator_adapter.resilience.retry import RetryOk


@asynccontextmanager
async def api(port: int, status: int = 200) -> AsyncIterator[list[bytes]]:
    """Answers every request with ``status``; yields the request lines."""
    requests: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        requests.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        writer.write(b"HTTP/1.1 %d Scripted\r\nContent-Length: 4\r\nConnection: close\r\n\r\ntrue" % status)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        yield requests


async def test_one_request_is_enough_for_an_api_that_is_up() -> None:
    """A slash at the end of its address changes nothing."""
    (port,) = free_ports(1)
    reasons: list[str] = []
    async with api(port) as requests:
        assert await wait_for_api(f"http://127.0.0.1:{port}/api/", 30.0, reasons.append) is None
        assert await api_health(f"http://127.0.0.1:{port}/api") == RetryOk(b"true")
    assert requests == [b"GET /api/health HTTP/1.1"] * 2
    assert not reasons


async def test_waiting_for_an_api_that_starts_is_reported_once() -> None:
    """The first failure is reported; the server that starts then is found."""
    (port,) = free_ports(1)
    reasons: list[str] = []
    async with AsyncExitStack() as server:
        starting: list[asyncio.Task[list[bytes]]] = []

        def start(why: str) -> None:
            reasons.append(why)
            starting.append(asyncio.create_task(server.enter_async_context(api(port))))

        assert await wait_for_api(f"http://127.0.0.1:{port}/api", 30.0, start) is None
    assert len(reasons) == 1
    assert reasons[0].startswith(f"GET http://127.0.0.1:{port}/api/health failed: ConnectError")


async def test_an_api_that_does_not_run_is_an_error_with_the_reason() -> None:
    """With no time to wait there is one request; the reason is the refused connection."""
    (port,) = free_ports(1)
    why = await wait_for_api(f"http://127.0.0.1:{port}/api", 0.0, lambda _: None)
    assert why is not None
    assert why.startswith(f"no attempts left: HttpFailure: GET http://127.0.0.1:{port}/api/health failed: ConnectError")


async def test_another_server_at_that_address_ends_the_wait() -> None:
    """A 404 is permanent: the wait ends at once."""
    (port,) = free_ports(1)
    async with api(port, status=404) as requests:
        why = await wait_for_api(f"http://127.0.0.1:{port}/api", 3_600.0, lambda _: None)
    assert why is not None
    assert f"http://127.0.0.1:{port}/api/health answered 404 Not Found: " in why
    assert len(requests) == 1


async def test_an_answer_that_is_never_complete_times_out() -> None:
    """Each byte is in time, but the answer never ends; the reason says so."""

    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        try:
            while not reader.at_eof():
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.05)
        finally:
            writer.close()

    async with await asyncio.start_server(drip, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        why = await asyncio.wait_for(wait_for_api(f"http://127.0.0.1:{port}/api", 0.0, lambda _: None), 60.0)
    assert why is not None
    assert f"http://127.0.0.1:{port}/api/health was not answered within 2 s" in why
