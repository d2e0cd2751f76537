"""Where the control plane listens, how it stops, and what happens when it fails."""

from __future__ import annotations

import gc
import socket
import threading
import time
import warnings
from contextlib import ExitStack
from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest

from orchestrator_adapter import (
    OrchestratorError,
    for_each,
    map_items,
)
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.control_plane.server import CannotListen, ControlPlaneServer
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import ListSource, chain
from tests.helpers.control_plane import ANY, connect, fetch, get, is_closed, logged, served, waiting
from tests.helpers.running import eventually
from tests.helpers.support import wait_until


async def test_one_log_line_has_the_address() -> None:
    """The event ``control_plane`` with the port that the system has chosen."""
    built = waiting()
    with logged("orchestrator_adapter.control_plane") as lines, ControlPlaneServer(built, ANY) as server:
        assert lines == [{"event": "control_plane", "graph": "chain", "url": server.url}]
        assert server.url.startswith("http://127.0.0.1:")
        assert not server.url.endswith(":0")
        assert (await fetch(f"{server.url}/health")).status_code == 200


async def test_an_ipv6_address_is_written_in_brackets() -> None:
    """And it answers."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with ControlPlaneServer(waiting(), ControlPlane(host="::1", port=0)) as server:
        assert server.url.startswith("http://[::1]:")
        assert (await fetch(f"{server.url}/health")).status_code == 200


OPEN = ControlPlane(host="::", port=0, token="sixteen-characters", behind_proxy=True)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_two_colons_are_every_ipv4_and_ipv6_address() -> None:
    """One server answers at 127.0.0.1 and at ::1; 0.0.0.0 answers by IPv4 only."""
    with ControlPlaneServer(waiting(), OPEN) as server:
        port = server.url.rpartition(":")[2]
        for address in ("127.0.0.1", "[::1]"):
            assert (await fetch(f"http://{address}:{port}/health")).status_code == 200
    with ControlPlaneServer(waiting(), replace(OPEN, host="0.0.0.0")) as server:
        port = server.url.rpartition(":")[2]
        assert (await fetch(f"http://127.0.0.1:{port}/health")).status_code == 200
        with pytest.raises(httpx.ConnectError):
            await fetch(f"http://[::1]:{port}/health")


@pytest.mark.parametrize("host", ["127.0.0.1", "203.0.113.1", "no.such.host.invalid", "x" * 300])
async def test_an_address_that_cannot_be_bound_is_an_error_that_names_it(host: str) -> None:
    """An ``OSError`` that names the address and the settings; no thread has been started."""
    threads = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen) as raised, ControlPlaneServer(waiting(), replace(OPEN, host=host, port=port)):
            raise AssertionError("it listens")
    assert isinstance(raised.value, OSError)
    assert isinstance(raised.value, OrchestratorError)
    assert str(raised.value).startswith(f"control plane: cannot listen on http://{host}:{port}: ")
    assert "control_plane.port" in str(raised.value)
    assert not set(threading.enumerate()) - threads


@pytest.mark.parametrize(
    "wrong",
    [
        {"host": ""},
        {"port": -1},
        {"port": 65_536},
        {"patience": timedelta(0)},
        {"request_timeout": timedelta(milliseconds=1)},
        {"max_connections": 0},
        {"reuse_for": timedelta(milliseconds=-1)},
    ],
)
def test_each_invalid_setting_is_rejected_by_name(wrong: dict[str, Any]) -> None:
    """A ``ValueError`` with the expected and the given value."""
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^ControlPlane: {name} must be .*, got ") as raised:
        ControlPlane(**wrong)
    assert repr(value) in str(raised.value)


@pytest.mark.filterwarnings("error::ResourceWarning")
async def test_exiting_ends_the_thread_and_frees_the_port() -> None:
    """With clients in every state: no thread, no socket and no warning remains."""
    with warnings.catch_warnings(action="ignore"):
        gc.collect()  # objects of earlier tests may warn
    before = set(threading.enumerate())
    with ExitStack() as stack:
        with ControlPlaneServer(waiting(), ANY) as server:
            assert {thread.name for thread in set(threading.enumerate()) - before} == {"control-plane"}
            clients = [stack.enter_context(connect(server.url)) for _ in range(3)]
            clients[1].sendall(b"GET /health HTTP/1.1\r\n")
            clients[2].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await fetch(f"{server.url}/health")).status_code == 200
        assert "control-plane" not in {thread.name for thread in threading.enumerate()}
        assert all(is_closed(client) for client in clients)
        with pytest.raises(httpx.ConnectError):
            get(f"{server.url}/health")
    gc.collect()  # a socket that is still open would warn now


async def test_exiting_before_the_thread_serves_is_safe() -> None:
    """Twenty times, the thread ends."""
    for _ in range(20):
        with ControlPlaneServer(waiting(), ANY):
            pass
    assert "control-plane" not in {thread.name for thread in threading.enumerate()}


async def test_a_request_that_waits_during_the_stop_gets_the_last_figures() -> None:
    """The stop blocks the graph's loop for a moment. The request does not wait for the loop, nor the stop for the request."""
    plane = ControlPlane(port=0, patience=timedelta(seconds=60), request_timeout=timedelta(seconds=90))
    answers: list[httpx.Response] = []
    with ControlPlaneServer(waiting(), plane) as server:
        asking = threading.Thread(target=lambda: answers.append(get(f"{server.url}/health")))
        asking.start()
        wait_until(lambda: bool(server._snapshots._open), "the query")  # blocks this loop: the query stays open
        began = time.monotonic()
    assert time.monotonic() - began < 20
    asking.join(20)
    assert [answer.status_code for answer in answers] == [200]


@pytest.mark.parametrize("failure", [RuntimeError("no more sockets"), SystemExit(3)])
async def test_a_failure_of_the_control_plane_is_logged_and_the_run_goes_on(
    failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread ends; the graph runs to its end."""

    async def broken(*_: Any, **__: Any) -> None:
        raise failure

    async def during(url: str) -> None:
        await eventually(lambda: built.ledger().written == 3, "three items")
        await eventually(lambda: lines, "the failure's line")

    monkeypatch.setattr("orchestrator_adapter.control_plane.server.Server.serve", broken)
    built = waiting()
    with logged("orchestrator_adapter.control_plane") as lines:
        event = await served(built, during)
    assert isinstance(event, events.ShutDown)
    (line,) = [line for line in lines if line["event"] != "control_plane"]
    assert (line["event"], line["graph"]) == ("control_plane_failed", "chain")
    assert type(failure).__name__ in line["traceback"]


async def test_a_run_with_a_control_plane_gives_the_same_result_as_one_without() -> None:
    """The same items, order and ledger."""
    outcomes = []
    for plane in (False, True):
        seen: list[str] = []
        built = chain(ListSource(list(range(500))), map_items(str), for_each(seen.append)).build()
        with ExitStack() as stack:
            if plane:
                stack.enter_context(ControlPlaneServer(built, ANY))
            event = await built.run()
        outcomes.append((seen, event.figures.ledger))
    assert outcomes[0] == outcomes[1]
