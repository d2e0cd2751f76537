"""The simulated optical archive: paging, long polls, outages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest

from sda_ops.simulate.archive import Archive, ArchiveServer
from sda_ops.simulate.config import Endpoint, OutageStyle
from sda_ops.simulate.frames import Batch


def batch(*times_ns: int) -> Batch:
    frames = [json.dumps({"timestamp_ns": time, "n": index}).encode() for index, time in enumerate(times_ns)]
    count = len(times_ns)
    return Batch(np.array(times_ns, dtype=np.int64), frames, ["optical-1"] * count, [1] * count, [None] * count)


@pytest.fixture
def archive() -> Archive:
    return Archive(history=10_000)


@pytest.fixture
async def client(archive: Archive) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(archive.app), base_url="http://archive") as client:
        yield client


async def page(client: httpx.AsyncClient, **params: int) -> list[dict[str, Any]]:
    answer = await client.get("/observations", params=params)
    assert answer.status_code == 200
    entries: list[dict[str, Any]] = answer.json()
    return entries


async def test_since_is_exclusive_and_entries_are_in_time_order(archive: Archive, client: httpx.AsyncClient) -> None:
    """An answer has the entries above `since`, without the one at `since`."""
    await archive.send(batch(10, 20, 30))
    await archive.send(batch(40))
    assert [entry["timestamp_ns"] for entry in await page(client, since=20)] == [30, 40]
    assert [entry["timestamp_ns"] for entry in await page(client)] == [10, 20, 30, 40]
    assert await page(client, since=40) == []


async def test_paging_by_since_loses_nothing_with_repeated_timestamps(
    archive: Archive, client: httpx.AsyncClient
) -> None:
    """Pages of two never separate entries of one timestamp, so that the pages together have each entry once."""
    await archive.send(batch(10, 20, 20, 20, 30, 40, 40))
    since, seen = 0, []
    while entries := await page(client, since=since, limit=2):
        seen += [entry["n"] for entry in entries]
        since = entries[-1]["timestamp_ns"]
    assert seen == [0, 1, 2, 3, 4, 5, 6]


async def test_a_long_poll_is_answered_by_the_next_entry(archive: Archive, client: httpx.AsyncClient) -> None:
    """A waiting request is answered as soon as there is a new entry, not after its waiting time."""
    await archive.send(batch(10))
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(10):
        waiting = tasks.create_task(page(client, since=10, wait_ms=60_000))
        await asyncio.sleep(0)
        await archive.send(batch(20))
    assert [entry["timestamp_ns"] for entry in waiting.result()] == [20]


async def test_a_long_poll_without_new_entries_is_answered_with_an_empty_page(client: httpx.AsyncClient) -> None:
    """After `wait_ms`."""
    assert await page(client, since=0, wait_ms=1) == []


async def test_an_outage_is_503_also_for_waiting_requests(archive: Archive, client: httpx.AsyncClient) -> None:
    """An archive out of service answers 503 at once, waiting requests included."""
    async with asyncio.TaskGroup() as tasks, asyncio.timeout(10):
        waiting = tasks.create_task(client.get("/observations", params={"wait_ms": 60_000}))
        await asyncio.sleep(0)
        archive.in_service = False
        archive.wake()
    assert waiting.result().status_code == 503
    assert (await client.get("/observations")).status_code == 503


@pytest.mark.parametrize("style", ["blackhole", "drip"])
async def test_an_outage_may_accept_requests_and_never_finish_an_answer(archive: Archive, style: OutageStyle) -> None:
    """A black hole sends nothing, a drip sends endlessly, both until the client disconnects; both requests are counted."""
    archive.outage_style = style
    server = ArchiveServer(archive, Endpoint("127.0.0.1", 0))
    await server.up()
    archive.in_service = False
    reader, writer = await asyncio.open_connection("127.0.0.1", server.endpoint.port)
    writer.write(b"GET /observations HTTP/1.1\r\nHost: archive\r\n\r\n")
    if style == "drip":
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert await reader.readuntil(b" \r\n")
        assert await reader.readuntil(b" \r\n")
    else:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
    writer.close()
    await server.down()
    assert (archive.requests, archive.requests_in_outage) == (1, 1)


async def test_an_invalid_parameter_is_400(client: httpx.AsyncClient) -> None:
    """Here a `since` that is not an integer."""
    assert (await client.get("/observations", params={"since": "yesterday"})).status_code == 400


async def test_the_history_is_bounded_and_unserved_entries_are_counted() -> None:
    """Of 100,000 entries a history of 1,000 keeps the newest, and `unserved` counts those that were in no answer."""
    archive = Archive(history=1_000)
    for start in range(0, 100_000, 1_000):
        await archive.send(batch(*range(start + 1, start + 1_001)))
    assert archive.unserved == 100_000
    async with httpx.AsyncClient(transport=httpx.ASGITransport(archive.app), base_url="http://archive") as client:
        kept = await page(client, since=0, limit=10**6)
        assert 1_000 <= len(kept) < 10_000
        assert kept[-1]["timestamp_ns"] == 100_000
    assert archive.unserved == 0


async def test_a_server_stops_and_starts_again_on_its_port(archive: Archive) -> None:
    """After `down` connections fail; after `up` the same port serves what was observed in between."""
    server = ArchiveServer(archive, Endpoint("127.0.0.1", 0))
    await server.up()
    url = f"http://127.0.0.1:{server.endpoint.port}/observations"
    async with asyncio.timeout(30), httpx.AsyncClient() as client:
        assert (await client.get(url)).json() == []
        await server.down()
        await archive.send(batch(10))
        with pytest.raises(httpx.ConnectError):
            await client.get(url)
        await server.up()
        assert len((await client.get(url)).json()) == 1
        await server.down()
