"""The pages over real HTTP: what ``/health`` and ``/metrics`` answer while a graph runs."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import httpx
import pytest

from orchestrator_adapter import (
    BuiltGraph,
    OperatorGraph,
    map_items,
)
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import CollectSink, ListSource, UntilShutdown, chain
from tests.helpers.control_plane import fetch, served, value, waiting
from tests.helpers.running import GatedSink, eventually


async def test_the_health_of_a_running_graph_is_200_with_fresh_figures() -> None:
    """``ok`` without reasons, the graph's name, and figures that were taken after the request."""

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


async def test_metrics_come_in_the_format_of_the_accept_header() -> None:
    """Prometheus text, unless the header names JSON or OpenMetrics; each with its content type."""

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


@pytest.mark.parametrize(
    "path",
    [
        "/health/",
        "/metrics/x",
        "/%2e%2e/etc/passwd",
        "/☃",
        "/page/",
        "/page/nothing.js",
        "/page/../server.py",
        "/page/%2e%2e/server.py",
        "/page/..%2fserver.py",
        "/page//etc/passwd",
        "/page/%5c..%5cserver.py",
        "/page/index.html%00.js",
    ],
)
async def test_any_other_path_is_a_404_that_lists_the_pages(path: str) -> None:
    """As JSON."""

    async def during(url: str) -> None:
        answer = await fetch(f"{url}{path}")
        assert answer.status_code == 404
        assert answer.json()["error"] == "Not Found"
        assert {"/", "/health", "/metrics"} <= set(answer.json()["pages"])

    await served(waiting(), during)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "FROBNICATE"])
async def test_any_other_method_is_a_405(method: str) -> None:
    """With the methods that are allowed."""

    async def during(url: str) -> None:
        answer = await asyncio.to_thread(httpx.request, method, f"{url}/health", timeout=30)
        assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, {"GET", "HEAD"})
        assert answer.json()["error"] == "Method Not Allowed"

    await served(waiting(), during)


@pytest.mark.parametrize("page", ["health", "metrics"])
async def test_head_is_get_without_the_body(page: str) -> None:
    """The same status and headers."""

    async def during(url: str) -> None:
        answer = await asyncio.to_thread(httpx.head, f"{url}/{page}", timeout=30)
        assert (answer.status_code, answer.content) == (200, b"")
        assert int(answer.headers["content-length"]) > 50

    await served(waiting(), during)


async def test_a_status_that_cannot_be_taken_is_a_500_and_does_not_affect_the_run(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets the error, the log the traceback; the next request is answered."""

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


async def test_a_source_that_has_ended_unexpectedly_is_a_503_that_names_it() -> None:
    """The run goes on without it."""
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


async def test_a_requested_drain_is_200_and_a_drain_after_a_panic_is_503() -> None:
    """The control plane answers in both cases while the graph drains."""

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


async def test_every_answer_forbids_other_origins_and_inline_scripts() -> None:
    """The page, its files, figures and errors: no script of another origin may run in them, frame them or read them."""

    async def during(url: str) -> None:
        for path in ("/", "/page/index.html", "/health", "/metrics", "/nothing"):
            headers = (await fetch(f"{url}{path}")).headers
            policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
            assert policy["default-src"] == "'self'"
            assert {policy[name] for name in ("frame-ancestors", "base-uri", "object-src")} == {"'none'"}
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["cache-control"] == "no-store"
            assert not [name for name in headers if name.startswith("access-control")]

    await served(waiting(), during)


async def test_the_live_page_is_served_at_the_root() -> None:
    """As HTML; the same file is below /page/."""

    async def during(url: str) -> None:
        page = await fetch(f"{url}/")
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert page.text.startswith("<!doctype html>")
        assert (await fetch(f"{url}/page/index.html")).content == page.content

    await served(waiting(), during)
