"""``GET /events`` at the real socket: what clients receive, how many there may be, and what a bad one costs."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from orchestrator_adapter import SupervisionPolicy, WiredEnds
from orchestrator_adapter.control_plane import document
from orchestrator_adapter.control_plane.graph_document import Documents
from orchestrator_adapter.control_plane.server import ControlPlaneServer
from orchestrator_adapter.testing import CollectSink, chain
from tests.helpers.control_plane import ANY, connect, fetch, served, server_connections, waiting
from tests.helpers.running import eventually

REQUEST = b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def events_of(url: str) -> AsyncGenerator[tuple[str, bytes], None]:
    """The name and the data of each event, until the server ends the stream."""
    async with httpx.AsyncClient(timeout=30) as client, client.stream("GET", f"{url}/events") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        async for line in answer.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                name = value
            elif field == "data":
                yield name, value.encode()


async def test_a_client_receives_documents_and_at_last_how_the_run_ended() -> None:
    """Each is a document of this version; after the end no more follows."""
    built = waiting()
    with ControlPlaneServer(built, ANY) as server:
        running = asyncio.create_task(built.run())
        received: list[tuple[str, bytes]] = []

        async def listen() -> None:
            async for event in events_of(server.url):
                received.append(event)  # noqa: PERF401 - the test reads the list while it grows

        listening = asyncio.create_task(listen())
        await eventually(lambda: len(received) >= 3, "three documents")
        built.request_shutdown("the test is over")
        await running
        began = time.monotonic()
    print(f"the stop with an open stream took {(time.monotonic() - began) * 1e3:.0f} ms")
    await asyncio.wait_for(listening, 30)
    documents = [document.decode(data) for name, data in received[:-1] if name == "graph"]
    assert len(documents) == len(received) - 1
    assert {each.graph for each in documents} == {"chain"}
    assert [each.at for each in documents] == sorted({each.at for each in documents})
    assert {each.state for each in documents[-1].operators} == {"ok"}
    assert documents[-1].timeline[-1].decision == built.timeline.entries()[-1].decision
    name, data = received[-1]
    assert name == "end"
    assert json.loads(data) == {
        "outcome": "ShutDown",
        "text": "the run was asked to stop (the test is over) and has drained",
    }


async def test_the_final_state_of_a_run_that_has_just_failed_is_sent_before_its_end() -> None:
    """Also if the graph's loop answers no more: it goes from the failure to the stop without a suspension."""
    fail = asyncio.Event()

    async def failing(ends: WiredEnds) -> None:
        await fail.wait()
        raise AssertionError("a bug")

    built = chain(failing, CollectSink()).build()
    received: list[tuple[str, bytes]] = []
    listening = threading.Thread(target=lambda: received.extend(_read_to_the_end(server.url)))
    with ControlPlaneServer(built, ANY) as server:
        running = asyncio.create_task(built.run())
        listening.start()
        await eventually(lambda: built.status().operators[0].state == "running", "it runs")
        await eventually(lambda: len(server_connections(server.url)) > 0, "the stream")
        fail.set()
        await running
    listening.join(30)
    assert [name for name, _ in received[-2:]] == ["graph", "end"]
    last = document.decode(received[-2][1])
    assert last.health.status == "failing"
    assert {each.name: each.state for each in last.operators}["source"] == "panicked"
    assert json.loads(received[-1][1])["outcome"] == "Panicked"


def _read_to_the_end(url: str) -> list[tuple[str, bytes]]:
    async def read() -> list[tuple[str, bytes]]:
        return [event async for event in events_of(url)]

    return asyncio.run(read())


async def test_a_decision_is_sent_soon_without_a_request() -> None:
    """A pause is in a document that follows; the time that it took is printed."""
    built = waiting()

    async def during(url: str) -> None:
        async with aclosing(events_of(url)) as events:
            await anext(events)
            began = time.monotonic()
            built.pause_source("source", "by a test")
            async for _, data in events:
                if any(each.decision == "source_paused" for each in document.decode(data).timeline):
                    break
        print(f"shown after {(time.monotonic() - began) * 1e3:.0f} ms")

    await served(built, during)


async def test_documents_are_sent_while_the_loop_is_stalled_and_say_so() -> None:
    """The graph's loop is blocked until a client has received a document that calls it stalled."""
    stalled: list[document.Loop] = []

    async def read_until_stalled(url: str) -> None:
        async for _, data in events_of(url):
            loop = document.decode(data).loop
            if loop.stalled:
                stalled.append(loop)
                return

    async def during(url: str) -> None:
        reading = asyncio.get_running_loop().run_in_executor(None, asyncio.run, read_until_stalled(url))
        await eventually(lambda: len(server_connections(url)) > 0, "the stream")
        deadline = time.monotonic() + 30
        while not stalled and time.monotonic() < deadline:
            time.sleep(0.01)  # noqa: ASYNC251 - it blocks the graph's loop on purpose
        await reading
        assert stalled[0].silent_s > 0

    await served(waiting(), during, policy=SupervisionPolicy(loop_stall=timedelta(milliseconds=100)))


async def test_the_seventeenth_stream_is_a_503_until_another_one_ends() -> None:
    """Sixteen that never read do not keep other pages from being answered, nor the run from stopping."""

    async def during(url: str) -> None:
        with ExitStack() as stack:
            clients = [stack.enter_context(connect(url)) for _ in range(16)]
            for client in clients:
                client.sendall(REQUEST)
                assert (await asyncio.to_thread(client.recv, 15)).startswith(b"HTTP/1.1 200 ")
            rejected = await fetch(f"{url}/events")
            assert rejected.status_code == 503
            assert rejected.json()["error"].startswith("16 clients listen already")
            assert (await fetch(f"{url}/health")).status_code == 200
            clients[0].close()
            async with aclosing(_when_admitted(url)) as events:
                assert (await anext(events))[0] == "graph"

    await served(waiting(), during)


async def _when_admitted(url: str) -> AsyncGenerator[tuple[str, bytes], None]:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            async for event in events_of(url):
                yield event
        except AssertionError:
            continue


async def test_a_stream_outlives_the_timeout_and_a_client_that_does_not_read_is_disconnected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With a timeout of a second: the one that reads still receives documents when the other one is gone."""
    large = b" " * 500_000

    original = Documents.current

    async def current(self: Documents) -> bytes:
        return await original(self) + large  # a new object for each call

    monkeypatch.setattr(Documents, "current", current)
    plane = replace(ANY, patience=timedelta(milliseconds=50), request_timeout=timedelta(seconds=1))

    async def during(url: str) -> None:
        began = time.monotonic()
        with connect(url) as silent:
            silent.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            silent.sendall(REQUEST)
            async with aclosing(events_of(url)) as events:
                async for _ in events:
                    if len(server_connections(url)) == 1 and time.monotonic() > began + 1.5:
                        break
            print(f"disconnected after less than {time.monotonic() - began:.1f} s")

    await served(waiting(), during, plane=plane)


async def test_head_of_the_stream_is_answered_and_ended() -> None:
    """The headers, without a stream."""

    async def during(url: str) -> None:
        answer = await asyncio.to_thread(httpx.head, f"{url}/events", timeout=30)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["content-type"].startswith("text/event-stream")

    await served(waiting(), during)
