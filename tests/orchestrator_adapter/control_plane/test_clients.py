"""Many clients, greedy clients and hostile clients of the control plane."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from contextlib import ExitStack, suppress
from datetime import timedelta
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator_adapter import (
    FlowPolicy,
    GraphStatus,
    OperatorGraph,
    Reject,
    RestartPolicy,
    WiredEnds,
    map_items,
    sift,
)
from orchestrator_adapter.control_plane import ControlPlane, graph_document
from orchestrator_adapter.control_plane.server import ControlPlaneServer
from orchestrator_adapter.supervision import events
from tests.helpers.control_plane import connect, fetch, is_closed, served, server_connections, value, waiting
from tests.helpers.running import eventually


async def test_the_ledger_balances_in_every_scrape_under_load() -> None:
    """A hundred scrapes while items are repeated, copied, shed, expired, rejected and poison: each one balances by itself."""
    rng = random.Random(2026)

    async def feed(ends: WiredEnds) -> None:
        while not ends.shutdown.is_set:
            await ends.emit(range(rng.randrange(1, 50)))
            await asyncio.sleep(0.001)  # else the loop keeps the interpreter's lock, and the scrapes take minutes

    def fragile(item: int) -> int:
        if rng.random() < 0.002:
            raise OSError("now and then")
        return item

    async def slow(ends: WiredEnds) -> None:
        async for _ in ends.receiver.batches(5):
            for _ in range(rng.randrange(5)):
                await asyncio.sleep(0)

    graph = OperatorGraph("flight")
    source = graph.add_source("feed", feed, endless=True)
    check = graph.add_operator("check", sift(lambda _: Reject("no") if rng.random() < 0.01 else None))
    work = graph.add_operator("work", map_items(fragile), restart_policy=RestartPolicy.always())
    split = graph.add_fan_out("split", restart_policy=RestartPolicy.always())
    graph.connect(source, check, 64)
    graph.connect(check, work, 64)
    graph.connect(work, split, 64)
    graph.connect(split, graph.add_sink("one", slow), 8, policy=FlowPolicy.shed())
    graph.connect(split, graph.add_sink("two", slow), 8, policy=FlowPolicy.timed(timedelta(microseconds=10)))
    built = graph.build()

    pages: list[str] = []

    def scrape(url: str) -> None:
        with httpx.Client(timeout=30) as client:
            pages.extend(client.get(f"{url}/metrics").text for _ in range(100))

    event = await served(built, lambda url: asyncio.to_thread(scrape, url))
    assert isinstance(event, events.ShutDown)
    assert event.figures.ledger_holds
    for page in pages:
        assert value(page, "ledger_balanced") == 1
        terms, dead = ledger_of(page)
        entered = terms["ingested"] + terms["repeated"] + terms["derived"]
        assert entered == sum(terms.values()) - entered
        assert dead == terms["dead_lettered"] + terms["rejected"]
    assert len(set(pages)) == 100
    assert all(terms[name] > 0 for name in ("derived", "written", "rejected", "shed", "dead_lettered"))


def ledger_of(page: str) -> tuple[dict[str, float], float]:
    """The ledger's terms, and the dead letters of all operators and kinds."""
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    terms = {sample.labels["term"]: sample.value for sample in samples if sample.name == "ledger_items"}
    return terms, sum(sample.value for sample in samples if sample.name == "dead_letters_total")


async def test_forty_simultaneous_scrapes_are_all_answered() -> None:
    """Forty at the same time; each gets a complete page."""

    async def during(url: str) -> None:
        answers = await asyncio.gather(*(fetch(f"{url}/metrics") for _ in range(40)))
        assert {answer.status_code for answer in answers} == {200}
        assert {value(answer.text, "ledger_balanced") for answer in answers} == {1}

    await served(waiting(), during)


async def test_requests_within_the_reuse_time_share_one_rendered_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The status is taken once for a page and format; another page, format or moment takes a new one."""
    built = waiting()
    taken: list[float] = []
    take = built.status

    def counted() -> GraphStatus:
        taken.append(time.monotonic())
        return take()

    async def during(url: str) -> None:
        taken.clear()
        first = await fetch(f"{url}/metrics")
        assert [(await fetch(f"{url}/metrics")).text for _ in range(5)] == [first.text] * 5
        assert len(taken) == 1
        assert (await fetch(f"{url}/metrics", "application/json")).json()["metrics"]
        assert len(taken) == 2
        assert (await fetch(f"{url}/health")).status_code == 200
        assert len(taken) == 3

    monkeypatch.setattr(built, "status", counted)
    monkeypatch.setattr(graph_document, "SAMPLE_EVERY_S", 3_600.0)
    await served(built, during, plane=ControlPlane(port=0, reuse_for=timedelta(hours=1)))


async def test_an_answer_is_rendered_again_after_the_reuse_time() -> None:
    """By default 50 ms later: a monitor that asks every second gets figures of this second."""

    async def during(url: str) -> None:
        first = await fetch(f"{url}/metrics")
        deadline = time.monotonic() + 20
        while (await fetch(f"{url}/metrics")).text == first.text:
            assert time.monotonic() < deadline

    await served(waiting(), during, plane=ControlPlane(port=0))


async def test_a_failed_answer_is_not_reused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests, one failure: the second takes the status again."""
    built = waiting()
    take = built.status
    failures = [KeyError("a bug")]

    def fails_once() -> GraphStatus:
        if failures:
            raise failures.pop()
        return take()

    async def during(url: str) -> None:
        monkeypatch.setattr(built, "status", fails_once)
        assert [(await fetch(f"{url}/health")).status_code for _ in range(2)] == [500, 200]

    monkeypatch.setattr(graph_document, "SAMPLE_EVERY_S", 3_600.0)
    await served(built, during, plane=ControlPlane(port=0, reuse_for=timedelta(hours=1)))


# Hostile clients.


@pytest.mark.parametrize("says", [b"", b"GET /health HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 1_000])
async def test_a_request_that_is_incomplete_after_the_timeout_is_closed(says: bytes) -> None:
    """With nothing sent, half a line or half the headers; other requests are answered before that."""
    plane = ControlPlane(port=0, patience=timedelta(milliseconds=50), request_timeout=timedelta(seconds=2))

    async def during(url: str) -> None:
        with connect(url) as sock:
            sock.sendall(says)
            assert (await fetch(f"{url}/health")).status_code == 200
            assert await asyncio.to_thread(is_closed, sock)

    await served(waiting(), during, plane=plane)


async def test_a_connection_whose_client_does_not_read_the_answer_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is kept for ``request_timeout`` and no longer."""
    page = b"x" * 20_000_000  # more than the kernel's buffers hold
    monkeypatch.setattr("orchestrator_adapter.control_plane.exposition.TextFormat.render", lambda *_: page)
    plane = ControlPlane(port=0, patience=timedelta(milliseconds=50), request_timeout=timedelta(seconds=2))

    async def during(url: str) -> None:
        with connect(url) as sock:
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await eventually(lambda: len(server_connections(url)) == 0, "the connection's end")
            assert (await fetch(f"{url}/health")).status_code == 200

    await served(waiting(), during, plane=plane)


async def test_requests_of_clients_that_disconnect_leave_no_task() -> None:
    """Sixty clients send a request and close their connections at once; the next request is answered."""
    plane = ControlPlane(port=0, request_timeout=timedelta(hours=1), reuse_for=timedelta(0))
    with ControlPlaneServer(waiting(), plane) as server:
        assert (await fetch(f"{server.url}/health")).status_code == 200
        assert server._serving is not None
        state = server._serving[1].server_state
        crowd = [connect(server.url) for _ in range(60)]
        for client in crowd:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        for client in crowd:
            client.close()
        await eventually(lambda: not state.tasks and not state.connections, "the end of every request")
        assert (await fetch(f"{server.url}/health")).status_code == 200


async def test_a_closed_connection_leaves_no_timer() -> None:
    """Its timeout, an hour here, does not keep it in memory for an hour."""
    plane = ControlPlane(port=0, request_timeout=timedelta(hours=1))
    with ControlPlaneServer(waiting(), plane) as server:
        for _ in range(5):
            assert (await fetch(f"{server.url}/health")).status_code == 200
        assert server._serving is not None
        loop: Any = server._serving[0]
        await eventually(lambda: all(timer.cancelled() for timer in tuple(loop._scheduled)), "no timer is left")


async def test_connections_above_the_limit_are_closed_until_another_one_ends() -> None:
    """With two allowed, the third is closed without an answer; after the first has ended, the next is answered."""
    plane = ControlPlane(port=0, max_connections=2, request_timeout=timedelta(hours=1))

    async def during(url: str) -> None:
        with ExitStack() as stack:
            first, second = (stack.enter_context(connect(url)) for _ in range(2))
            third = stack.enter_context(connect(url))
            assert await asyncio.to_thread(is_closed, third)
            first.close()
            answer = None
            deadline = time.monotonic() + 20
            while answer is None and time.monotonic() < deadline:
                with suppress(httpx.TransportError):  # the server has not noticed yet that the first is closed
                    answer = await fetch(f"{url}/health")
            assert answer is not None
            assert answer.status_code == 200
            second.close()

    await served(waiting(), during, plane=plane)


@pytest.mark.parametrize(
    "says",
    [b"\x00\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 10_000, b"\r\n" * 99],
)
async def test_input_that_is_not_http_is_not_logged_and_the_next_request_is_answered(
    says: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """A client cannot fill the log."""

    async def during(url: str) -> None:
        with connect(url) as sock:
            with suppress(ConnectionError):
                sock.sendall(says)
            assert (await fetch(f"{url}/health")).status_code == 200

    await served(waiting(), during)
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


async def test_headers_above_16_kib_are_rejected_at_once() -> None:
    """The connection is closed, although an hour of its timeout is left."""
    plane = ControlPlane(port=0, request_timeout=timedelta(hours=1))

    async def during(url: str) -> None:
        with connect(url) as sock:
            with suppress(ConnectionError):
                sock.sendall(b"GET /health HTTP/1.1\r\nX: " + b"y" * 100_000)
            assert await asyncio.to_thread(is_closed, sock)

    await served(waiting(), during, plane=plane)


async def test_a_connection_is_closed_after_one_answer() -> None:
    """A body that is announced and a second request on the same connection are ignored."""

    async def during(url: str) -> None:
        with connect(url) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999999999\r\n\r\nabc")
            answer = await asyncio.to_thread(_all_of, sock)
            assert answer.startswith(b"HTTP/1.1 200 ")
        with connect(url) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2)
            assert (await asyncio.to_thread(_all_of, sock)).count(b"HTTP/1.1 200 ") == 1

    await served(waiting(), during)


def _all_of(sock: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while data := sock.recv(65_536):
            received += data
    return received
