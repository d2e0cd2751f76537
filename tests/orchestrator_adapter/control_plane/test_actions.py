"""Drain, pause, resume and force over HTTP: who may, what happens, and what is logged."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
from dataclasses import replace
from datetime import timedelta

import httpx
import pytest

from orchestrator_adapter import BreakerPolicy, BuiltGraph, SupervisionPolicy, WiredEnds, map_items
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.control_plane.server import ControlPlaneServer
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import CollectSink, chain
from tests.helpers.acting import ACTING, TOKEN, act
from tests.helpers.control_plane import ANY, fetch, logged, served, value, waiting
from tests.helpers.running import eventually


def with_a_breaker() -> BuiltGraph:
    """A source that has a breaker, and waits for the shutdown."""

    async def source(ends: WiredEnds) -> None:
        ends.breaker("archive", BreakerPolicy())
        await ends.emit([1])
        await ends.shutdown.wait()

    return chain(source, map_items(lambda item: item), CollectSink()).build()


async def test_a_source_is_paused_and_resumed_over_http() -> None:
    """The metric and the health show it, and each request is logged with who, what and its result."""
    built = waiting()

    async def during(url: str) -> None:
        assert (await act(url, "pause?source=source")).json() == {"result": "source 'source' is paused"}
        assert (await act(url, "pause?source=source")).json() == {"result": "source 'source' is paused already"}
        metrics = (await fetch(f"{url}/metrics")).text
        assert value(metrics, "source_paused", source="source") == 1
        assert value(metrics, "operator_up", operator="source") == 1
        health = await fetch(f"{url}/health")
        assert (health.status_code, health.json()["status"]) == (200, "degraded")
        assert (await act(url, "resume?source=source")).json() == {"result": "source 'source' is resumed"}
        assert (await fetch(f"{url}/health")).json()["status"] == "ok"

    with logged("orchestrator_adapter.supervisor") as lines:
        await served(built, during, plane=ACTING)
    requested = [(line["who"], line["action"], line["result"]) for line in lines if line["event"] == "action"]
    assert requested == [
        ("127.0.0.1", "pause source=source", "source 'source' is paused"),
        ("127.0.0.1", "pause source=source", "source 'source' is paused already"),
        ("127.0.0.1", "resume source=source", "source 'source' is resumed"),
    ]
    assert TOKEN not in str(lines)


async def test_a_circuit_breaker_is_forced_and_released_over_http() -> None:
    """Open, closed, and auto."""
    built = with_a_breaker()

    async def during(url: str) -> None:
        await eventually(lambda: bool(built.status().breakers), "the breaker")
        states = []
        for state in ("open", "closed", "auto"):
            assert (await act(url, f"breaker?name=archive&state={state}")).status_code == 200
            figures = built.status().breakers["archive"]
            states.append((figures.state.label, figures.forced))
        assert states == [("open", True), ("closed", True), ("closed", False)]

    await served(built, during, plane=ACTING)


async def test_a_drain_is_requested_once_and_a_second_request_does_not_abort() -> None:
    """The second one is a 409. An operator that needs a while for its last item is not cancelled."""
    finish = asyncio.Event()

    async def slow(ends: WiredEnds) -> None:
        async for _ in ends.receiver.batches(5):
            await finish.wait()

    async def source(ends: WiredEnds) -> None:
        await ends.emit([1])
        await ends.shutdown.wait()

    built = chain(source, map_items(lambda item: item), slow).build()
    with ControlPlaneServer(built, ACTING) as server:
        running = asyncio.create_task(built.run(SupervisionPolicy(grace=timedelta(seconds=60))))
        first = await act(server.url, "drain")
        second = await act(server.url, "drain")
        late = await act(server.url, "pause?source=source")
        finish.set()
        event = await running
    assert (first.status_code, first.json()) == (200, {"result": "the graph drains"})
    assert (second.status_code, late.status_code) == (409, 409)
    assert "drains already" in second.json()["error"]
    assert isinstance(event, events.ShutDown)
    assert (event.reason, event.figures.ledger.dead_lettered) == ("requested by 127.0.0.1", 0)
    assert event.figures.ledger_holds


@pytest.mark.parametrize(
    ("action", "status", "message"),
    [
        ("pause?source=absent", 404, "there is no source 'absent'; there are: source"),
        ("resume?source=sink", 404, "there is no source 'sink'; there are: source"),
        ("breaker?name=x&state=open", 404, "there is no circuit breaker 'x'; there are: none"),
        ("breaker?name=x&state=opened", 400, "state: expected open, closed, auto, got 'opened'"),
        ("pause", 400, "expected one source in the query, ?source=…, got 0"),
        ("pause?source=a&source=b", 400, "expected one source in the query, ?source=…, got 2"),
    ],
)
async def test_a_wrong_name_or_state_is_an_error_that_says_what_there_is(
    action: str, status: int, message: str
) -> None:
    """As JSON."""

    async def during(url: str) -> None:
        answer = await act(url, action)
        assert (answer.status_code, answer.json()) == (status, {"error": message})

    await served(waiting(), during, plane=ACTING)


async def test_without_the_setting_every_action_is_a_403_that_says_how_to_enable_it() -> None:
    """Also with a token; nothing happens."""
    built = waiting()

    async def during(url: str) -> None:
        for action in ("drain", "pause?source=source", "resume?source=source", "breaker?name=x&state=open"):
            answer = await act(url, action)
            assert answer.status_code == 403
            assert "settings actions and token" in answer.json()["error"]
        assert built.status().shutting_down is None

    await served(built, during, plane=replace(ANY, token=TOKEN))


BASIC = "Basic " + base64.b64encode(f"user:{TOKEN}".encode()).decode()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": ""}, 401),
        ({"Authorization": f"Bearer {TOKEN}x"}, 401),
        ({"Authorization": f"Bearer {TOKEN[:-1]}"}, 401),
        ({"Authorization": BASIC}, 401),  # a browser adds it to a form of another page
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "text/plain; application/json"}, 415),
        ({"Host": "evil.example"}, 421),
    ],
)
async def test_an_action_without_the_token_or_from_a_form_is_rejected(headers: dict[str, str], status: int) -> None:
    """And nothing happens. A browser is not asked for a password, and other origins get no permission."""
    built = waiting()

    async def during(url: str) -> None:
        answer = await act(url, "drain", **{"Origin": "http://evil.example", **headers})
        assert answer.status_code == status
        assert answer.headers.get("www-authenticate", "Bearer") == "Bearer"
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert built.status().shutting_down is None

    await served(built, during, plane=ACTING)


async def test_a_preflight_of_another_origin_gets_no_permission() -> None:
    """``OPTIONS`` is a 405 without a header of CORS; ``GET`` drains nothing."""
    built = waiting()

    async def during(url: str) -> None:
        asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
        answer = await asyncio.to_thread(httpx.options, f"{url}/actions/drain", headers=asked, timeout=30)
        assert answer.status_code == 405
        assert not [name for name in answer.headers if name.startswith("access-control")]
        assert (await fetch(f"{url}/actions/drain")).status_code == 405
        assert built.status().shutting_down is None

    await served(built, during, plane=ACTING)


async def test_guesses_of_the_token_are_logged_at_most_once_a_second() -> None:
    """A hundred guesses; no line has the guess."""

    async def during(url: str) -> None:
        for number in range(100):
            assert (await act(url, "drain", token=f"guess-number-{number:03}")).status_code == 401

    began = time.monotonic()
    with logged("orchestrator_adapter.control_plane") as lines:
        await served(waiting(), during, plane=ACTING)
    denied = [line for line in lines if line["event"] == "access_denied"]
    assert 1 <= len(denied) <= 1 + (time.monotonic() - began)
    assert (denied[0]["client"], denied[0]["path"], denied[0]["status"]) == ("127.0.0.1", "/actions/drain", 401)
    assert "guess-number" not in str(lines)


async def test_an_action_while_the_loop_is_stalled_is_withdrawn() -> None:
    """A 503, and the drain does not happen when the loop turns again."""
    plane: ControlPlane = replace(ACTING, patience=timedelta(milliseconds=50))
    built = waiting()
    answers: list[httpx.Response] = []
    asked = threading.Event()

    async def during(url: str) -> None:
        def ask() -> None:
            answers.append(asyncio.run(act(url, "drain")))
            asked.set()

        thread = threading.Thread(target=ask)
        thread.start()
        assert asked.wait(30)  # blocks this loop, which is the graph's
        thread.join()
        await asyncio.sleep(0)
        assert built.status().shutting_down is None

    with logged("orchestrator_adapter.supervisor") as lines:
        await served(built, during, plane=plane)
    (answer,) = answers
    assert answer.status_code == 503
    assert answer.json() == {"error": "the event loop has not answered for 0.05 s; nothing was done"}
    assert [line["result"] for line in lines if line["event"] == "action"] == [answer.json()["error"]]
