"""The control plane over real HTTP on the loopback: while the graph runs, while its loop stands still, and at the end."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from orchestrator_adapter import (
    BuiltGraph,
    FlowPolicy,
    GraphStatus,
    OperatorGraph,
    OrchestratorError,
    Reject,
    RestartPolicy,
    SupervisionPolicy,
    WiredEnds,
    for_each,
    map_items,
    sift,
)
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.control_plane.server import CannotListen, ControlPlaneServer, paced
from orchestrator_adapter.control_plane.snapshot import Snapshots
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import CollectSink, ListSource, UntilShutdown, chain, run_schedule
from tests.helpers.log_lines import event_of
from tests.helpers.running import GatedSink, eventually
from tests.helpers.support import wait_until

ANY = ControlPlane(port=0, max_requests_per_s=1e6)
"""On a port that is free, for tests, which are greedy."""


def waiting() -> BuiltGraph:
    """A graph that takes in three items and waits to be stopped."""
    return chain(ListSource([1, 2, 3], UntilShutdown()), map_items(lambda item: item), CollectSink()).build()


def get(url: str, accept: str = "*/*") -> httpx.Response:
    """In a thread of its own, or while the loop stands still; a client that reuses nothing."""
    return httpx.get(url, headers={"Accept": accept}, timeout=30)


async def fetch(url: str, accept: str = "*/*") -> httpx.Response:
    return await asyncio.to_thread(get, url, accept)


def value(metrics: str, name: str, **labels: str) -> float:
    """The one sample of that name and labels."""
    (found,) = (
        sample.value
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    )
    return float(found)


async def served(
    built: BuiltGraph,
    during: Callable[[str], Any],
    *,
    policy: SupervisionPolicy | None = None,
    plane: ControlPlane = ANY,
) -> events.SupervisorEvent:
    """Run ``built`` with a control plane, await ``during`` with its address beside it, then stop."""
    with ControlPlaneServer(built, plane) as server:
        running = asyncio.create_task(built.run(policy))
        try:
            await during(server.url)
        finally:
            built.request_shutdown("the test is over")
            await running
    return running.result()


@contextmanager
def logged(name: str) -> Iterator[list[dict[str, Any]]]:
    """The JSON lines of one logger, whatever its level was."""
    lines: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with suppress(ValueError):
                lines.append(event_of(record.getMessage()))

    logger, handler = logging.getLogger(name), Keep()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


# The pages.


async def test_health_of_a_graph_that_runs_is_200_and_fresh() -> None:
    """``ok`` without reasons, the graph's name, and figures that are younger than the request."""

    async def during(url: str) -> None:
        asked = time.monotonic()
        answer = await fetch(f"{url}/health")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/json"
        body = answer.json()
        assert (body["status"], body["reasons"], body["graph"]) == ("ok", [], "chain")
        assert body["snapshot_age_s"] <= time.monotonic() - asked
        assert set(body) == {"status", "reasons", "graph", "snapshot_age_s", "event_loop_lag_s"}

    await served(waiting(), during)


async def test_metrics_are_text_or_json_as_the_client_asks() -> None:
    """Prometheus text unless JSON or OpenMetrics is named; each with its content type."""

    async def during(url: str) -> None:
        await eventually(lambda: built.ledger().written == 3, "three items")
        plain = await fetch(f"{url}/metrics")
        assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert value(plain.text, "operator_items_total", operator="sink", direction="consumed") == 3
        open_ = await fetch(f"{url}/metrics", "application/openmetrics-text; version=1.0.0")
        assert open_.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
        assert open_.text.endswith("# EOF\n")
        json_ = await fetch(f"{url}/metrics", "application/json")
        assert json_.headers["content-type"] == "application/json"
        families = {family["name"]: family for family in json_.json()["metrics"]}
        assert families["ledger_balanced"]["samples"] == [{"name": "ledger_balanced", "labels": {}, "value": 1}]
        assert [answer.status_code for answer in (plain, open_, json_)] == [200] * 3

    built = waiting()
    await served(built, during)


@pytest.mark.parametrize("path", ["/", "/graph", "/health/", "/metrics/x", "/%2e%2e/etc/passwd", "/☃"])
async def test_there_are_no_other_pages_and_it_says_which_there_are(path: str) -> None:
    """404, as JSON."""

    async def during(url: str) -> None:
        answer = await fetch(f"{url}{path}")
        assert answer.status_code == 404
        assert answer.json() == {"error": "Not Found", "pages": ["/health", "/metrics"]}

    await served(waiting(), during)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "FROBNICATE"])
async def test_nothing_can_be_done_but_look(method: str) -> None:
    """405, with what is allowed."""

    async def during(url: str) -> None:
        answer = await asyncio.to_thread(httpx.request, method, f"{url}/health", timeout=30)
        assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, {"GET", "HEAD"})
        assert answer.json()["error"] == "Method Not Allowed"

    await served(waiting(), during)


@pytest.mark.parametrize("page", ["health", "metrics"])
async def test_head_is_get_without_the_body(page: str) -> None:
    """The same status and headers, and nothing behind them."""

    async def during(url: str) -> None:
        answer = await asyncio.to_thread(httpx.head, f"{url}/{page}", timeout=30)
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["content-length"]) > 50

    await served(waiting(), during)


async def test_a_status_that_cannot_be_taken_is_a_500_and_no_problem_of_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A bug of ours is told to who asked, and the next who asks is answered again; the graph never knows."""

    def broken() -> Any:
        raise KeyError("a bug")

    async def during(url: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(built, "status", broken)
            answer = await fetch(f"{url}/health")
            assert answer.status_code == 500
            assert answer.json() == {"error": "RuntimeError: the graph's status could not be taken"}
        assert (await fetch(f"{url}/health")).status_code == 200

    built = waiting()
    event = await served(built, during)
    assert isinstance(event, events.ShutDown)
    assert event.figures.problems == ()
    assert "KeyError: 'a bug'" in caplog.text


# How it is.


async def test_a_source_that_has_ended_unexpectedly_is_a_503_that_names_it() -> None:
    """The run goes on without it, and only the control plane tells."""
    graph = OperatorGraph("two")
    gone = graph.add_source("gone", ListSource([1]), endless=True)
    stays = graph.add_source("stays", ListSource(UntilShutdown()), endless=True)
    merge = graph.add_fan_in("merge")
    for source in (gone, stays):
        graph.connect(source, merge, 4)
    graph.connect(merge, graph.add_sink("sink", CollectSink()), 4)
    built = graph.build()

    async def during(url: str) -> None:
        await eventually(lambda: built.status().operators[0].ended_for_good, "the source's end")
        answer = await fetch(f"{url}/health")
        assert answer.status_code == 503
        assert answer.json()["status"] == "failing"
        assert answer.json()["reasons"] == ["source 'gone' has ended unexpectedly: Ok, and was declared endless"]
        assert (await fetch(f"{url}/metrics")).status_code == 200

    await served(built, during)


async def test_a_drain_that_was_asked_for_is_200_and_a_panics_is_503() -> None:
    """Both answer while the graph drains; only one of them is somebody's emergency."""

    def fails(item: int) -> int:
        if item == 3:
            raise KeyError("x")
        return item

    for panics in (False, True):
        sink = GatedSink()
        items = [1, 2, 3] if panics else [1, 2]
        built = chain(ListSource(items, UntilShutdown()), map_items(fails), sink).build()

        async def during(url: str, built: BuiltGraph = built, sink: GatedSink = sink, panics: bool = panics) -> None:  # noqa: FBT001
            await eventually(lambda: built.ledger().ingested >= 2, "its items")
            if panics:
                await eventually(lambda: built.status().verdict is not None, "the panic")
            else:
                built.request_shutdown("SIGTERM")
            answer = await fetch(f"{url}/health")
            said = (answer.status_code, answer.json()["status"], answer.json()["reasons"])
            sink.gate.set()
            assert said == (
                (503, "failing", ["operator 'op-1' brings the graph down (Panicked): KeyError: 'x'"])
                if panics
                else (200, "draining", ["shutting down: SIGTERM"])
            )

        event = await served(built, during)
        assert isinstance(event, events.Panicked if panics else events.ShutDown)


# A loop that stands still.


class Blockade:
    """An operator that, at item 2, really holds the event loop until it is lifted; half a minute at most."""

    def __init__(self) -> None:
        self.holds = threading.Event()
        self.lifted = threading.Event()

    def __call__(self, item: int) -> int:
        if item == 2:
            self.holds.set()
            deadline = time.monotonic() + 30
            while not self.lifted.is_set() and time.monotonic() < deadline:
                time.sleep(0.001)  # the subject of these tests: an operator that blocks
        return item


def blocked(blockade: Blockade) -> BuiltGraph:
    return chain(ListSource([1], [2], [3], UntilShutdown()), map_items(blockade), CollectSink(), name="held").build()


async def test_while_an_operator_holds_the_loop_health_names_it_and_metrics_answer() -> None:
    """503 with the operator, and 200 with the last figures and a live lag; when it lets go, both are as ever."""
    blockade = Blockade()
    built = blocked(blockade)

    def ask(url: str) -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        assert blockade.holds.wait(30)
        try:
            wait_until(lambda: "op-1" in get(f"{url}/health").text, "the operator's name", limit_s=20)
            health, first = get(f"{url}/health"), get(f"{url}/metrics")
            return health, first, get(f"{url}/metrics")
        finally:
            blockade.lifted.set()

    async def during(url: str) -> None:
        health, first, second = await asyncio.to_thread(ask, url)
        assert health.status_code == 503
        (reason,) = health.json()["reasons"]
        assert reason.startswith("event loop has not answered for ")
        assert reason.endswith(" s; op-1 #1 holds it")
        assert (first.status_code, second.status_code) == (200, 200)
        for name in ("snapshot_age_seconds", "event_loop_lag_seconds"):
            assert value(second.text, name) > value(first.text, name) > 0.1
        assert value(first.text, "event_loop_stalls_total") >= 1
        assert value(first.text, "ledger_balanced") == 1
        assert value(first.text, "operator_items_total", operator="sink", direction="consumed") < 3
        await eventually(lambda: built.ledger().written == 3, "the rest of the items")
        await settles(url, "/health", lambda answer: (answer.status_code, answer.json()["reasons"]) == (200, []))
        metrics = (await fetch(f"{url}/metrics")).text
        assert value(metrics, "operator_items_total", operator="sink", direction="consumed") == 3
        assert value(metrics, "snapshot_age_seconds") < value(first.text, "snapshot_age_seconds")

    policy = SupervisionPolicy(loop_stall=timedelta(milliseconds=100))
    await served(built, during, policy=policy, plane=ControlPlane(port=0, patience=timedelta(milliseconds=100)))


async def settles(url: str, page: str, holds: Callable[[httpx.Response], object]) -> None:
    """Return when an answer of ``page`` is as it is to be: the loop, free again, may have its next turn late."""
    async with asyncio.timeout(20):
        while not holds(await fetch(url + page)):
            pass


async def test_without_a_watchdog_the_silence_itself_is_the_lag() -> None:
    """503 without a name, and the lag is for how long the loop has not answered."""
    blockade = Blockade()

    def ask(url: str) -> tuple[httpx.Response, httpx.Response]:
        assert blockade.holds.wait(30)
        try:
            return get(f"{url}/health"), get(f"{url}/metrics")
        finally:
            blockade.lifted.set()

    async def during(url: str) -> None:
        health, metrics = await asyncio.to_thread(ask, url)
        assert health.status_code == 503
        assert health.json()["reasons"][0].endswith(" s")
        assert health.json()["event_loop_lag_s"] >= 0.05
        assert value(metrics.text, "event_loop_lag_seconds") >= 0.05
        assert value(metrics.text, "event_loop_stalls_total") == 0
        await settles(url, "/metrics", lambda answer: value(answer.text, "event_loop_lag_seconds") == 0)

    await served(
        blocked(blockade),
        during,
        policy=SupervisionPolicy(loop_stall=None),
        plane=ControlPlane(port=0, patience=timedelta(milliseconds=50)),
    )


async def test_a_silence_within_the_watchdogs_threshold_is_no_stall() -> None:
    """Whoever allows the loop ten minutes is not told after fifty milliseconds; the figures say how old they are."""
    blockade = Blockade()

    def ask(url: str) -> tuple[httpx.Response, httpx.Response]:
        assert blockade.holds.wait(30)
        try:
            return get(f"{url}/health"), get(f"{url}/metrics")
        finally:
            blockade.lifted.set()

    async def during(url: str) -> None:
        health, metrics = await asyncio.to_thread(ask, url)
        assert (health.status_code, health.json()["reasons"]) == (200, [])
        assert value(metrics.text, "snapshot_age_seconds") >= 0.05

    policy = SupervisionPolicy(loop_stall=timedelta(minutes=10))
    plane = ControlPlane(port=0, patience=timedelta(milliseconds=50))
    await served(blocked(blockade), during, policy=policy, plane=plane)


async def test_all_who_ask_while_the_loop_stands_still_put_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there were, the loop takes one status when it is back; and none while nobody asks."""
    blockade = Blockade()
    built = blocked(blockade)
    taken: list[float] = []
    take = built.status

    def counted() -> Any:
        taken.append(time.monotonic())
        return take()

    monkeypatch.setattr(built, "status", counted)

    def ask(url: str) -> list[int]:
        assert blockade.holds.wait(30)
        try:
            codes: list[int] = []
            threads = [
                threading.Thread(target=lambda: codes.append(get(f"{url}/health").status_code)) for _ in range(20)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return codes
        finally:
            blockade.lifted.set()

    async def during(url: str) -> None:
        assert await asyncio.to_thread(ask, url) == [503] * 20
        await eventually(lambda: built.ledger().written == 3, "the rest of the items")
        assert len(taken) == 2  # one at the start, one for all of them

    plane = ControlPlane(port=0, patience=timedelta(milliseconds=50), max_requests_per_s=1e6)
    await served(built, during, policy=SupervisionPolicy(loop_stall=None), plane=plane)


async def test_who_asks_while_the_status_is_being_taken_gets_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer is from before its question: a question that is being answered is not shared any more."""
    built = waiting()
    snapshots = Snapshots(built, patience=timedelta(seconds=20))
    take, begun = built.status, list[bool]()

    def watched() -> Any:
        begun.append(snapshots._open[0].begun)
        return take()

    monkeypatch.setattr(built, "status", watched)
    first, second = asyncio.create_task(snapshots.view()), asyncio.create_task(snapshots.view())
    await asyncio.sleep(0)
    (shared,) = snapshots._open
    shared.begun = True  # as the graph's thread would, a moment before it looks
    third = asyncio.create_task(snapshots.view())
    views = await asyncio.gather(first, second, third)
    assert begun == [True, True]
    assert views[0].status is views[1].status
    assert views[2].status is not views[0].status
    assert not snapshots._open


async def test_a_graph_whose_loop_is_closed_is_told_as_silent() -> None:
    """Whoever still asks gets, after his patience and without an error, what was seen last."""
    seen: list[tuple[Snapshots, GraphStatus]] = []

    async def elsewhere() -> None:
        snapshots = Snapshots(waiting(), patience=timedelta(seconds=20))
        seen.append((snapshots, (await snapshots.view()).status))
        snapshots._patience_s = 0.02

    await asyncio.to_thread(asyncio.run, elsewhere())
    ((snapshots, last),) = seen
    view = await snapshots.view()
    assert view.silent_s >= view.threshold_s == 0.02
    assert view.age_s >= view.silent_s
    assert view.status is last


# Under load.


async def test_the_ledger_balances_in_every_scrape_of_a_graph_in_full_flight() -> None:
    """A hundred scrapes while items are repeated, copied, shed, timed out, rejected and poison: each one adds up by itself."""
    rng = random.Random(2026)

    async def feed(ends: WiredEnds) -> None:
        while not ends.shutdown.is_set:
            await ends.emit(range(rng.randrange(1, 50)))
            await asyncio.sleep(
                0.001
            )  # or the loop would never let go of the interpreter's lock: minutes for the scrapes

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


async def test_many_scrapers_at_once_are_all_answered() -> None:
    """Forty at the same time, each with a whole page."""

    async def during(url: str) -> None:
        answers = await asyncio.gather(*(fetch(f"{url}/metrics") for _ in range(40)))
        assert {answer.status_code for answer in answers} == {200}
        assert {value(answer.text, "ledger_balanced") for answer in answers} == {1}

    await served(waiting(), during)


def test_who_asks_too_often_waits_in_line() -> None:
    """At 5 a second, the first five pass at once, and every further one a fifth of a second later; a pause makes up for it."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        passed: list[float] = []

        async def page(scope: Any, receive: Any, send: Any) -> None:
            passed.append(loop.time() - began)

        app = paced(page, 5)
        began = loop.time()
        await asyncio.gather(*(app(*request()) for _ in range(8)))
        assert sorted(passed) == pytest.approx([0, 0, 0, 0, 0, 0.2, 0.4, 0.6], abs=0.03)
        await asyncio.sleep(60)
        began, passed[:] = loop.time(), []
        await asyncio.gather(*(app(*request()) for _ in range(6)))
        assert sorted(passed) == pytest.approx([0, 0, 0, 0, 0, 0.2], abs=0.03)

    run_schedule(0, scenario)


def request(gone: asyncio.Future[None] | None = None) -> tuple[Any, Any, Any]:
    """What ``paced`` is called with, for a client that stays, or hangs up when ``gone`` is done."""
    return {"state": {"gone": gone or asyncio.get_running_loop().create_future()}}, None, None


def test_who_hangs_up_while_waiting_in_line_costs_nobody_a_turn() -> None:
    """Of a crowd of 600 that leaves at once no task is left, and who stays passes at the next turn, whatever the order."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        passed: list[tuple[str, float]] = []

        async def page(scope: Any, receive: Any, send: Any) -> None:
            passed.append((scope["state"].get("who", "crowd"), loop.time() - began))

        def honest(who: str) -> asyncio.Task[None]:
            scope, *rest = request()
            scope["state"]["who"] = who
            return asyncio.ensure_future(app(scope, *rest))

        app: Any = paced(page, 5)
        ours = asyncio.all_tasks()
        began = loop.time()
        await asyncio.gather(*(app(*request()) for _ in range(5)))  # the burst
        before = loop.create_future()
        before.set_result(None)
        hang_ups = [loop.create_future() for _ in range(600)]
        crowd = [asyncio.ensure_future(app(*request(gone))) for gone in (before, *hang_ups)]
        await asyncio.sleep(0.05)  # all of them are in line
        first = honest("first")
        for gone in hang_ups:
            gone.set_result(None)
        second = honest("second")
        await asyncio.wait(crowd)
        assert len(passed) == 5
        await asyncio.gather(first, second)
        assert {who for who, _ in passed[5:]} == {"first", "second"}
        assert [at for _, at in passed[5:]] == pytest.approx([0.2, 0.4], abs=0.03)
        assert asyncio.all_tasks() == ours

    for seed in range(20):
        run_schedule(seed, scenario)


# Bad company.


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def is_hung_up_on(sock: socket.socket) -> bool:
    """Wait until the other end closes; after 20 s it is taken for never (and that is a ``TimeoutError``)."""
    try:
        while sock.recv(65_536):
            pass
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("says", [b"", b"GET /health HTTP/1.1\r\n", b"GET /metrics HTTP/1.1\r\nX: " + b"y" * 1_000])
async def test_a_client_that_does_not_come_to_the_point_is_hung_up_on(says: bytes) -> None:
    """After ``request_limit``, whatever it has said until then; others are answered meanwhile."""
    plane = ControlPlane(port=0, patience=timedelta(milliseconds=50), request_limit=timedelta(seconds=2))

    async def during(url: str) -> None:
        with connect(url) as sock:
            sock.sendall(says)
            assert (await fetch(f"{url}/health")).status_code == 200
            assert await asyncio.to_thread(is_hung_up_on, sock)

    await served(waiting(), during, plane=plane)


async def test_a_client_that_does_not_read_its_answer_is_hung_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page that nobody takes is held for ``request_limit`` and no longer."""
    page = b"x" * 20_000_000  # more than the kernel's buffers hold
    monkeypatch.setattr("orchestrator_adapter.control_plane.server.text", lambda *_: (page, "text/plain"))
    plane = ControlPlane(port=0, patience=timedelta(milliseconds=50), request_limit=timedelta(seconds=2))

    async def during(url: str) -> None:
        with connect(url) as sock:
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            await eventually(lambda: len(server_connections(url)) == 0, "the connection's end")
            assert (await fetch(f"{url}/health")).status_code == 200

    await served(waiting(), during, plane=plane)


def server_connections(url: str) -> list[str]:
    """Established connections whose near end is the control plane, as Linux tells them."""
    port = f":{int(url.rsplit(':', 1)[1]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
    return [row[2] for row in rows if row[1].endswith(port) and row[3] == "01"]


async def test_a_crowd_that_hangs_up_at_once_leaves_nothing_for_others_to_wait_for() -> None:
    """At one answer a second, sixty requests hung up on are gone long before sixty answers, and the next is answered."""
    plane = ControlPlane(port=0, max_requests_per_s=1, request_limit=timedelta(hours=1))
    with ControlPlaneServer(waiting(), plane) as server:
        assert (await fetch(f"{server.url}/health")).status_code == 200
        assert server._serving is not None
        state = server._serving[1].server_state
        crowd = [connect(server.url) for _ in range(60)]
        for client in crowd:
            client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: len(state.tasks) > 40, "the line")
        for client in crowd:
            client.close()
        await eventually(lambda: not state.tasks, "the line's end")
        assert (await fetch(f"{server.url}/health")).status_code == 200


async def test_a_connection_that_has_ended_leaves_no_timer_behind() -> None:
    """Its limit, an hour here, does not keep it in memory for an hour."""
    plane = ControlPlane(port=0, request_limit=timedelta(hours=1))
    with ControlPlaneServer(waiting(), plane) as server:
        for _ in range(5):
            assert (await fetch(f"{server.url}/health")).status_code == 200
        assert server._serving is not None
        loop: Any = server._serving[0]
        await eventually(lambda: all(timer.cancelled() for timer in tuple(loop._scheduled)), "no timer is left")


async def test_a_connection_too_many_is_hung_up_on_and_room_is_made_again() -> None:
    """With two allowed, the third is closed at once without a word; when one has gone, the next is answered."""
    plane = ControlPlane(port=0, max_connections=2, request_limit=timedelta(hours=1))

    async def during(url: str) -> None:
        with ExitStack() as stack:
            first, second = (stack.enter_context(connect(url)) for _ in range(2))
            third = stack.enter_context(connect(url))
            assert await asyncio.to_thread(is_hung_up_on, third)
            first.close()
            answer = None
            deadline = time.monotonic() + 20
            while answer is None and time.monotonic() < deadline:
                with suppress(httpx.TransportError):  # the server has not seen yet that the first has gone
                    answer = await fetch(f"{url}/health")
            assert answer is not None
            assert answer.status_code == 200
            second.close()

    await served(waiting(), during, plane=plane)


@pytest.mark.parametrize(
    "says",
    [b"\x00\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /health HTTP/1.1\r\n" + b"X: y\r\n" * 10_000, b"\r\n" * 99],
)
async def test_what_is_no_http_harms_nobody_and_is_worth_no_line_in_the_log(
    says: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """The next one is answered; a stranger cannot fill the log."""

    async def during(url: str) -> None:
        with connect(url) as sock:
            with suppress(ConnectionError):
                sock.sendall(says)
            assert (await fetch(f"{url}/health")).status_code == 200

    await served(waiting(), during)
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


async def test_a_request_that_does_not_come_to_an_end_is_not_kept() -> None:
    """Headers of more than 16 KiB are refused at once, with an hour left to send them."""
    plane = ControlPlane(port=0, request_limit=timedelta(hours=1))

    async def during(url: str) -> None:
        with connect(url) as sock:
            with suppress(ConnectionError):
                sock.sendall(b"GET /health HTTP/1.1\r\nX: " + b"y" * 100_000)
            assert await asyncio.to_thread(is_hung_up_on, sock)

    await served(waiting(), during, plane=plane)


async def test_a_body_and_a_second_request_on_the_same_connection_are_not_waited_for() -> None:
    """One request a connection: it is answered, then closed, whatever else was sent."""

    async def during(url: str) -> None:
        with connect(url) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\nabc")
            answer = await asyncio.to_thread(_all_of, sock)
            assert answer.startswith(b"HTTP/1.1 200 ")
        with connect(url) as sock:
            sock.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 2)
            assert (await asyncio.to_thread(_all_of, sock)).count(b"HTTP/1.1 200 ") == 1

    await served(waiting(), during)


def _all_of(sock: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionResetError):
        while data := sock.recv(65_536):
            received += data
    return received


# Where it is served, and until when.


async def test_the_address_is_told_in_one_line_of_the_log() -> None:
    """``control_plane`` with the port that the system has chosen."""
    built = waiting()
    with logged("orchestrator_adapter.control_plane") as lines, ControlPlaneServer(built, ANY) as server:
        assert lines == [{"event": "control_plane", "graph": "chain", "url": server.url}]
        assert server.url.startswith("http://127.0.0.1:")
        assert not server.url.endswith(":0")
        assert (await fetch(f"{server.url}/health")).status_code == 200


async def test_an_ipv6_address_is_written_as_one() -> None:
    """In brackets, and it answers."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with ControlPlaneServer(waiting(), ControlPlane(host="::1", port=0)) as server:
        assert server.url.startswith("http://[::1]:")
        assert (await fetch(f"{server.url}/health")).status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "203.0.113.1", "no.such.host.invalid", "x" * 300])
async def test_an_address_that_cannot_be_had_is_one_clear_error(host: str) -> None:
    """It is an ``OSError`` that names the address and the settings, and no thread is left behind."""
    threads = set(threading.enumerate())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CannotListen) as raised, ControlPlaneServer(waiting(), ControlPlane(host=host, port=port)):
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
        {"request_limit": timedelta(milliseconds=1)},
        {"max_connections": 0},
        {"max_requests_per_s": 0.5},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong: dict[str, Any]) -> None:
    """A ``ValueError`` that says what was expected and what came."""
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=rf"^ControlPlane: {name} must be .*, got ") as raised:
        ControlPlane(**wrong)
    assert repr(value) in str(raised.value)


@pytest.mark.filterwarnings("error::ResourceWarning")
async def test_leaving_ends_the_thread_and_frees_the_port() -> None:
    """With clients in every state, the end takes no thread, no socket and no warning into what comes after."""
    with warnings.catch_warnings(action="ignore"):
        gc.collect()  # what others have left open is not ours
    before = set(threading.enumerate())
    with ExitStack() as stack:
        with ControlPlaneServer(waiting(), ANY) as server:
            assert {thread.name for thread in set(threading.enumerate()) - before} == {"control-plane"}
            clients = [stack.enter_context(connect(server.url)) for _ in range(3)]
            clients[1].sendall(b"GET /health HTTP/1.1\r\n")
            clients[2].sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await fetch(f"{server.url}/health")).status_code == 200
        assert "control-plane" not in {thread.name for thread in threading.enumerate()}
        assert all(is_hung_up_on(client) for client in clients)
        with pytest.raises(httpx.ConnectError):
            get(f"{server.url}/health")
    gc.collect()  # what was left open would be told now


async def test_leaving_at_once_is_leaving() -> None:
    """Also before the thread has come to serving anything."""
    for _ in range(20):
        with ControlPlaneServer(waiting(), ANY):
            pass
    assert "control-plane" not in {thread.name for thread in threading.enumerate()}


async def test_who_waits_for_the_graphs_loop_when_it_ends_is_answered() -> None:
    """The stop holds that loop for a moment: who asks then gets the last figures, and neither waits for the other."""
    plane = ControlPlane(port=0, patience=timedelta(seconds=60), request_limit=timedelta(seconds=90))
    answers: list[httpx.Response] = []
    with ControlPlaneServer(waiting(), plane) as server:
        asking = threading.Thread(target=lambda: answers.append(get(f"{server.url}/health")))
        asking.start()
        wait_until(lambda: bool(server._snapshots._open), "the question")  # holds this loop: it stays open
        began = time.monotonic()
    assert time.monotonic() - began < 20
    asking.join(20)
    assert [answer.status_code for answer in answers] == [200]


@pytest.mark.parametrize("failure", [RuntimeError("no more sockets"), SystemExit(3)])
async def test_a_control_plane_that_fails_is_logged_and_the_run_goes_on(
    failure: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever becomes of its thread, the graph runs to its end."""

    async def broken(*_: Any, **__: Any) -> None:
        raise failure

    async def during(url: str) -> None:
        await eventually(lambda: built.ledger().written == 3, "three items")
        await eventually(lambda: lines, "the failure's line")

    monkeypatch.setattr("orchestrator_adapter.control_plane.server._Server.serve", broken)
    built = waiting()
    with logged("orchestrator_adapter.control_plane") as lines:
        event = await served(built, during)
    assert isinstance(event, events.ShutDown)
    (line,) = [line for line in lines if line["event"] != "control_plane"]
    assert (line["event"], line["graph"]) == ("control_plane_failed", "chain")
    assert type(failure).__name__ in line["traceback"]


async def test_a_run_is_the_same_with_a_control_plane_as_without() -> None:
    """Items, order and ledger."""
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
