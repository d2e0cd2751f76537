"""What a person may do to a running graph: pause and resume a source, force a circuit breaker, drain."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest

from orchestrator_adapter import (
    BreakerPolicy,
    BuiltGraph,
    OperatorError,
    OperatorGraph,
    RestartPolicy,
    WiredEnds,
    map_items,
)
from orchestrator_adapter.control_plane import HealthStatus, health_of
from orchestrator_adapter.runtime.interventions import CannotIntervene, UnknownName
from orchestrator_adapter.runtime.status import OperatorStatus
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import CollectSink, ListSource, UntilShutdown, chain
from tests.helpers.control_plane import logged
from tests.helpers.running import eventually


def counting(failure: asyncio.Event | None = None) -> tuple[BuiltGraph, CollectSink, list[int]]:
    """A source that emits 0, 1, 2, … as fast as it may, and remembers what it has made; its first instance may fail."""
    made: list[int] = []

    async def fail(when: asyncio.Event) -> None:
        await when.wait()
        raise OperatorError("once")

    async def source(ends: WiredEnds) -> None:
        if failure is not None and ends.instance == 1:
            ends.start(fail(failure), name="fails")
        numbers: Iterator[int] = iter(range(len(made), 10**9))
        while not ends.shutdown.is_set:
            await ends.flush()
            made.append(next(numbers))
            await ends.emit([made[-1]])
            await asyncio.sleep(0)

    graph = OperatorGraph("counting")
    feed = graph.add_source("feed", source, restart_policy=RestartPolicy.always(), endless=True)
    other = graph.add_source("other", ListSource([-1], UntilShutdown()), endless=True)
    sink = CollectSink()
    graph.connect(feed, join := graph.add_fan_in("join"), 4)
    graph.connect(other, join, 4)
    graph.connect(join, graph.add_sink("sink", sink), 4)
    return graph.build(), sink, made


def source_of(built: BuiltGraph, name: str = "feed") -> OperatorStatus:
    return next(each for each in built.status().operators if each.name == name)


async def test_a_paused_source_ingests_nothing_until_it_is_resumed_and_no_item_is_lost() -> None:
    """What it had made arrives during the pause; afterwards it goes on where it was."""
    built, sink, made = counting()
    running = asyncio.create_task(built.run())
    await eventually(lambda: len(sink.items) > 5, "some items")
    assert built.pause_source("feed", "by a test")
    assert not built.pause_source("feed", "again")
    await eventually(lambda: len(sink.items) == len(made) + 1, "what was made")
    stopped_at = len(made)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(made) == stopped_at
    assert (source_of(built).state, source_of(built).paused) == ("paused", "by a test")
    health = health_of(built.status())
    assert health.status is HealthStatus.DEGRADED
    assert health.reasons == ("source 'feed' is paused (by a test) and ingests nothing until it is resumed",)
    assert source_of(built, "other").state == "running"

    assert built.resume_source("feed", "by a test")
    assert not built.resume_source("feed", "again")
    await eventually(lambda: len(made) > stopped_at + 5, "more items")
    assert health_of(built.status()).status is HealthStatus.OK
    built.request_shutdown("the test is over")
    event = await running
    assert isinstance(event, events.ShutDown)
    assert event.figures.ledger_holds
    assert sorted(sink.items) == [-1, *made]


async def test_a_shutdown_ends_a_pause_and_drains() -> None:
    """The run ends, and the ledger balances."""
    built, sink, made = counting()
    with logged("orchestrator_adapter.supervisor") as lines:
        running = asyncio.create_task(built.run())
        await eventually(lambda: len(sink.items) > 5, "some items")
        built.pause_source("feed", "by a test")
        await eventually(lambda: len(sink.items) == len(made) + 1, "what was made")
        assert built.drain("enough")
        assert not built.drain("again")
        with pytest.raises(CannotIntervene, match="the graph drains"):
            built.pause_source("feed", "too late")
        event = await asyncio.wait_for(running, 20)
    assert isinstance(event, events.ShutDown)
    assert (event.reason, event.figures.ledger_holds, event.figures.stragglers) == ("enough", True, ())
    assert sorted(sink.items) == [-1, *made]
    assert [line["event"] for line in lines].count("source_paused") == 1
    assert "shutdown_again" not in [line["event"] for line in lines]


async def test_a_restart_of_a_paused_source_stays_paused() -> None:
    """The next instance runs, and ingests nothing."""
    failure = asyncio.Event()
    built, sink, made = counting(failure)
    running = asyncio.create_task(built.run())
    await eventually(lambda: len(made) > 3, "some items")
    built.pause_source("feed", "by a test")
    failure.set()
    await eventually(lambda: source_of(built).instance == 2 and source_of(built).state == "paused", "the next instance")
    made_before = len(made)
    for _ in range(100):
        await asyncio.sleep(0)
    assert len(made) == made_before
    built.request_shutdown("the test is over")
    assert (await running).figures.ledger_holds
    assert sorted(sink.items) == [-1, *made]


async def test_a_wrong_name_is_an_error_that_lists_the_names() -> None:
    """Of sources, for an operator as well; and of circuit breakers."""

    async def source(ends: WiredEnds) -> None:
        ends.breaker("archive", BreakerPolicy(cooldown=timedelta(seconds=5)))
        await ends.shutdown.wait()

    built = chain(source, map_items(lambda item: item), CollectSink()).build()
    running = asyncio.create_task(built.run())
    await eventually(lambda: bool(built.status().breakers), "the breaker")
    for name in ("sink", "sauce"):
        with pytest.raises(UnknownName, match=rf"^there is no source '{name}'; there are: source$"):
            built.pause_source(name, "")
    with pytest.raises(UnknownName, match=r"^there is no circuit breaker 'x'; there are: archive$"):
        built.force_breaker("x", "open", "")
    built.force_breaker("archive", "open", "by a test")
    assert built.status().breakers["archive"].forced
    built.force_breaker("archive", "auto", "by a test")
    assert (built.status().breakers["archive"].forced, built.status().breakers["archive"].state.label) == (
        False,
        "half-open",
    )
    built.request_shutdown("the test is over")
    await running
    assert not built.drain("too late")
