"""The control plane while the graph's event loop is stalled, and the snapshots that it answers with."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

from orchestrator_adapter import (
    BuiltGraph,
    GraphStatus,
    SupervisionPolicy,
    map_items,
)
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.control_plane.snapshot import Snapshots
from orchestrator_adapter.testing import CollectSink, ListSource, UntilShutdown, chain
from tests.helpers.control_plane import fetch, get, served, value, waiting
from tests.helpers.running import eventually
from tests.helpers.support import wait_until


class Blockade:
    """An operator that blocks the event loop at item 2 until the test lifts the blockade; half a minute at most."""

    def __init__(self) -> None:
        self.blocks = threading.Event()
        self.lifted = threading.Event()

    def __call__(self, item: int) -> int:
        if item == 2:
            self.blocks.set()
            deadline = time.monotonic() + 30
            while not self.lifted.is_set() and time.monotonic() < deadline:
                time.sleep(0.001)  # the subject of these tests: an operator that blocks
        return item


def blocked(blockade: Blockade) -> BuiltGraph:
    return chain(ListSource([1], [2], [3], UntilShutdown()), map_items(blockade), CollectSink(), name="blocked").build()


async def test_while_an_operator_blocks_the_loop_health_names_it_and_metrics_answer() -> None:
    """Health is 503 with the operator; metrics are 200 with the last figures and a live lag; afterwards both recover."""
    blockade = Blockade()
    built = blocked(blockade)

    def ask(url: str) -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        assert blockade.blocks.wait(30)
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
        assert reason.endswith(" s; op-1 #1 blocks it")
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
    plane = ControlPlane(port=0, patience=timedelta(milliseconds=100), reuse_for=timedelta(0))
    await served(built, during, policy=policy, plane=plane)


async def settles(url: str, page: str, holds: Callable[[httpx.Response], object]) -> None:
    """Return once ``holds`` is true of an answer of ``page``. The loop may answer a little after it is free again."""
    await eventually(lambda: fetch(url + page), f"{page} settles", holds=holds)


async def test_without_a_watchdog_the_lag_is_the_time_without_an_answer() -> None:
    """Health is 503 and names no operator."""
    blockade = Blockade()

    def ask(url: str) -> tuple[httpx.Response, httpx.Response]:
        assert blockade.blocks.wait(30)
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


async def test_a_silence_below_the_watchdogs_threshold_is_not_a_stall() -> None:
    """With a threshold of ten minutes, health stays 200; the figures say how old they are."""
    blockade = Blockade()

    def ask(url: str) -> tuple[httpx.Response, httpx.Response]:
        assert blockade.blocks.wait(30)
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


async def test_requests_during_a_stall_share_one_query(monkeypatch: pytest.MonkeyPatch) -> None:
    """For twenty requests the loop takes one status when it continues; without requests it takes none."""
    blockade = Blockade()
    built = blocked(blockade)
    taken: list[float] = []
    take = built.status

    def counted() -> Any:
        taken.append(time.monotonic())
        return take()

    monkeypatch.setattr(built, "status", counted)

    def ask(url: str) -> list[int]:
        assert blockade.blocks.wait(30)
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
        assert len(taken) == 2  # one at the start, one for all requests

    plane = ControlPlane(port=0, patience=timedelta(milliseconds=50), reuse_for=timedelta(0))
    await served(built, during, policy=SupervisionPolicy(loop_stall=None), plane=plane)


async def test_a_request_that_comes_while_the_status_is_taken_gets_a_later_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A query that the loop has begun to answer is not shared any more: no view is older than its request."""
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
    shared.begun = True  # as the graph's thread does before it takes the status
    third = asyncio.create_task(snapshots.view())
    views = await asyncio.gather(first, second, third)
    assert begun == [True, True]
    assert views[0].status is views[1].status
    assert views[2].status is not views[0].status
    assert not snapshots._open


async def test_a_graph_whose_loop_is_closed_counts_as_silent() -> None:
    """A request gets the last status after ``patience``, without an error."""
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
