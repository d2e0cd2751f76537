from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from flows.local_prefect.api_health import api_health, wait_for_api
from flows.local_prefect.processes import free_ports
from orchestrator_adapter.resilience.retry import RetryOk


@asynccontextmanager
async def api(port: int, status: int = 200) -> AsyncIterator[list[bytes]]:
    """Answers every request with ``status``; yields what was asked."""
    asked: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        writer.write(b"HTTP/1.1 %d Scripted\r\nContent-Length: 4\r\nConnection: close\r\n\r\ntrue" % status)
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", port):
        yield asked


async def test_an_api_that_is_up_is_asked_once() -> None:
    """A server that answers is not waited for, and a slash at the end of its address changes nothing."""
    (port,) = free_ports(1)
    said: list[str] = []
    async with api(port) as asked:
        assert await wait_for_api(f"http://127.0.0.1:{port}/api/", 30.0, said.append) is None
        assert await api_health(f"http://127.0.0.1:{port}/api") == RetryOk(b"true")
    assert asked == [b"GET /api/health HTTP/1.1"] * 2
    assert not said


async def test_an_api_that_comes_up_is_waited_for_and_the_wait_is_told_once() -> None:
    """The first refusal is told; the server that starts then is found."""
    (port,) = free_ports(1)
    said: list[str] = []
    async with AsyncExitStack() as server:
        starting: list[asyncio.Task[list[bytes]]] = []

        def start(why: str) -> None:
            said.append(why)
            starting.append(asyncio.create_task(server.enter_async_context(api(port))))

        assert await wait_for_api(f"http://127.0.0.1:{port}/api", 30.0, start) is None
    assert len(said) == 1
    assert said[0].startswith(f"GET http://127.0.0.1:{port}/api/health failed: ConnectError")


async def test_an_api_that_is_not_there_is_said_to_be_missing_with_the_reason() -> None:
    """Asked once, with no time to wait, the reason is the refused connection."""
    (port,) = free_ports(1)
    why = await wait_for_api(f"http://127.0.0.1:{port}/api", 0.0, lambda _: None)
    assert why is not None
    assert why.startswith(f"no attempts left: HttpFailure: GET http://127.0.0.1:{port}/api/health failed: ConnectError")


async def test_something_else_at_that_address_is_not_waited_for() -> None:
    """A 404 will be one again: the wait is over at once, however long it might be."""
    (port,) = free_ports(1)
    async with api(port, status=404) as asked:
        why = await wait_for_api(f"http://127.0.0.1:{port}/api", 3_600.0, lambda _: None)
    assert why is not None
    assert f"http://127.0.0.1:{port}/api/health answered 404 Not Found (after 1 attempt" in why
    assert len(asked) == 1


async def test_an_api_that_drips_its_answer_is_not_waited_for_longer_than_it_says() -> None:
    """Each byte is in time and the answer never whole: asked once, it is of no use, and the reason says so."""

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
