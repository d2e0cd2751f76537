"""The test kit is product: its own promises, and the example in its documentation."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator_adapter import Backoff, BuiltGraph, OperatorGraph, RestartPolicy, SupervisionPolicy, WiredEnds
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import (
    CollectSink,
    Fail,
    ListSource,
    ManualClock,
    Pause,
    UntilShutdown,
    chain,
    run_graph,
    settle,
)

ROOT = Path(__file__).parents[3]


async def test_the_documented_example_passes() -> None:
    """What docs/testing.md shows is a test that runs as it stands."""
    example: Callable[[], Awaitable[None]] = documented(0)["test_a_lost_cable_costs_a_restart_and_no_item"]
    await example()


def test_the_documented_schedules_pass() -> None:
    """So is what it shows of schedules."""
    documented(1)["test_the_order_is_kept_on_every_schedule"]()


def test_the_documented_search_of_every_schedule_passes() -> None:
    """And what it shows of searching them all."""
    documented(2)["test_a_shutdown_at_any_moment_loses_nothing"]()


def documented(number: int) -> dict[str, Any]:
    block = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL)[number]
    names: dict[str, Any] = {}
    exec(compile(block, "docs/testing.md", "exec"), names)
    return names


async def test_the_readmes_example_prints_what_it_says() -> None:
    """The library's example in the README runs and balances."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    body = "\n".join(f"    {line}" for line in block.splitlines())
    names: dict[str, Any] = {}
    exec(compile(f"async def example():\n{body}\n    return event", "README.md", "exec"), names)
    event = await names["example"]()
    assert isinstance(event, events.AllOk)
    assert str(event.figures.ledger).startswith("ingested 10 + ")


async def test_a_list_source_plays_its_script_once_across_restarts() -> None:
    """An error is raised where the script says, and the next instance goes on behind it."""
    sink = CollectSink()
    event = await run_graph(chain(ListSource([1, 2], Fail(OSError("cable")), [3]), sink))
    assert sink.items == [1, 2, 3]
    assert event.figures.restarts["source"].total == 1


async def test_a_list_source_pauses_on_the_graphs_clock() -> None:
    """Nothing behind a pause comes before its time, to the moment."""
    clock, sink = ManualClock(), CollectSink()

    async def look(built: BuiltGraph) -> None:
        await clock.advance_when_idle(3599.0)
        assert sink.items == ["before"]
        await clock.advance_when_idle(1.0)
        assert sink.items == ["before", "behind"]

    await run_graph(
        chain(ListSource(["before"], Pause(timedelta(hours=1)), ["behind"]), sink), clock=clock, during=look
    )


async def test_a_list_source_panics_and_is_not_played_on() -> None:
    """A bug in the script brings the graph down; what comes behind it is never emitted."""
    sink = CollectSink()
    event = await run_graph(chain(ListSource([1], Fail(KeyError("bug")), [2]), sink))
    assert isinstance(event, events.Panicked)
    assert sink.items == [1]


async def test_a_list_source_that_stays_ends_at_shutdown() -> None:
    """It waits like a live source and heeds the token."""
    sink = CollectSink()

    async def stop(built: BuiltGraph) -> None:
        await settle()
        built.request_shutdown("enough")

    event = await run_graph(chain(ListSource([1], UntilShutdown(), [2]), sink), during=stop)
    assert isinstance(event, events.ShutDown)
    assert sink.items == [1]


async def test_a_pause_is_cut_short_by_a_shutdown() -> None:
    """A script that pauses for an hour does not hold up the end."""
    sink = CollectSink()

    async def stop(built: BuiltGraph) -> None:
        await settle()
        built.request_shutdown("enough")

    event = await run_graph(
        chain(ListSource([1], Pause(timedelta(hours=1)), [2]), sink), clock=ManualClock(), during=stop
    )
    assert sink.items == [1]
    assert event.figures.elapsed_s == 0


async def deaf(ends: WiredEnds) -> None:
    """Never acknowledges, and waits for ever."""
    await ends.receiver.recv_many()
    await asyncio.Event().wait()


@pytest.mark.parametrize("clock", [None, ManualClock()], ids=["real", "manual"])
async def test_a_run_that_hangs_is_told_as_such_on_any_clock(clock: ManualClock | None) -> None:
    """Past the limit, which is real time, ``TimeoutError`` is raised, and nothing is left running."""
    before = asyncio.all_tasks()
    graph = chain(ListSource([1], UntilShutdown()), deaf)
    with pytest.raises(TimeoutError):
        await run_graph(graph, clock=clock, limit=timedelta(milliseconds=50), grace=timedelta(seconds=60))
    assert asyncio.all_tasks() == before


async def test_what_fails_beside_a_run_fails_the_test_and_does_not_hang_it() -> None:
    """An assertion in ``during`` comes out as itself, although nobody moves the clock any more."""
    before = asyncio.all_tasks()

    async def check(built: BuiltGraph) -> None:
        await settle()
        assert built.ledger().ingested == 2, "this is what the test is about"

    with pytest.raises(AssertionError, match="this is what the test is about"):
        await run_graph(chain(ListSource([1], UntilShutdown()), deaf), clock=ManualClock(), during=check)
    assert asyncio.all_tasks() == before


async def test_a_run_is_watched_by_the_policy_that_is_given() -> None:
    """An end rule is obeyed; a grace beside a policy would be ignored, and is refused."""

    async def one(ends: WiredEnds) -> None:
        await ends.receiver.recv()

    policy = SupervisionPolicy(done_when=frozenset({"sink"}))
    graph = chain(ListSource([1], UntilShutdown()), one)
    assert isinstance(await run_graph(graph, policy=policy), events.AllOk)
    with pytest.raises(ValueError, match="expected a policy or a grace, got both"):
        await run_graph(graph, policy=policy, grace=timedelta(seconds=1))


async def test_runs_draw_the_same_chances_unless_told_otherwise() -> None:
    """Without a random source of the test's own, two runs back off alike."""
    delays = []
    for _ in range(2):
        clock = ManualClock()

        async def let_time_pass(built: BuiltGraph, clock: ManualClock = clock) -> None:
            while built.event is None:
                await clock.advance_when_idle(1.0)

        graph = OperatorGraph("alike")
        policy = RestartPolicy.always(backoff=Backoff(timedelta(seconds=1), timedelta(seconds=99)))
        source = graph.add_source("source", ListSource(Fail(OSError("cable")), [1]), restart_policy=policy)
        graph.connect(source, graph.add_sink("sink", CollectSink()), 1)
        event = await run_graph(graph, clock=clock, during=let_time_pass)
        delays.append(event.figures.restarts["source"].recent[0].backoff_s)
    assert delays[0] == delays[1]


def test_timers_fire_in_the_order_of_their_time_and_see_it() -> None:
    """Advancing past several timers fires each at its own time, a tie in the order of making, a cancelled one never."""
    clock, fired = ManualClock(), list[tuple[str, float]]()
    clock.call_later(3.0, lambda: fired.append(("late", clock.monotonic())))
    clock.call_later(1.0, lambda: fired.append(("early", clock.monotonic())))
    clock.call_later(1.0, lambda: fired.append(("tie", clock.monotonic())))
    clock.call_later(2.0, lambda: fired.append(("never", clock.monotonic()))).cancel()
    clock.advance(5.0)
    assert fired == [("early", 1.0), ("tie", 1.0), ("late", 3.0)]
    assert (clock.monotonic(), clock.now_ns() % 10**9) == (5.0, 0)


def test_a_chain_of_nothing_is_refused() -> None:
    """A source alone is no graph."""
    with pytest.raises(ValueError, match="got the source only"):
        chain(ListSource())
