"""The toolkit, and the examples in its documentation."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator_adapter import Backoff, BuiltGraph, OperatorGraph, RestartPolicy, SupervisionPolicy, WiredEnds
from orchestrator_adapter.primitives.clock import sleep
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
    """The first example of docs/testing.md, as it is written there."""
    example: Callable[[], Awaitable[None]] = documented(0)["test_a_lost_cable_costs_one_restart_and_no_item"]
    await example()


def test_the_documented_schedules_pass() -> None:
    """The second example."""
    documented(1)["test_the_order_is_kept_on_every_schedule"]()


def test_the_documented_search_of_every_schedule_passes() -> None:
    """The third example."""
    documented(2)["test_a_shutdown_at_any_moment_loses_nothing"]()


def documented(number: int) -> dict[str, Any]:
    block = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "testing.md").read_text(), re.DOTALL)[number]
    names: dict[str, Any] = {}
    exec(compile(block, "docs/testing.md", "exec"), names)
    return names


async def test_the_example_of_the_readme_runs() -> None:
    """It ends with ``AllOk``, and prints the ledger."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    body = "\n".join(f"    {line}" for line in block.splitlines())
    names: dict[str, Any] = {}
    exec(compile(f"async def example():\n{body}\n    return event", "README.md", "exec"), names)
    event = await names["example"]()
    assert isinstance(event, events.AllOk)
    assert str(event.figures.ledger).startswith("ingested 10 + ")


async def test_a_list_source_takes_each_step_once_across_restarts() -> None:
    """It raises the error, and the next instance continues after it."""
    sink = CollectSink()
    event = await run_graph(chain(ListSource([1, 2], Fail(OSError("cable")), [3]), sink))
    assert sink.items == [1, 2, 3]
    assert event.figures.restarts["source"].total == 1


async def test_a_list_source_pauses_on_the_graphs_clock() -> None:
    """The next item comes at the end of the pause, not earlier."""
    clock, sink = ManualClock(), CollectSink()

    async def observe(built: BuiltGraph) -> None:
        await clock.advance_when_idle(3599.0)
        assert sink.items == ["before"]
        await clock.advance_when_idle(1.0)
        assert sink.items == ["before", "after"]

    await run_graph(
        chain(ListSource(["before"], Pause(timedelta(hours=1)), ["after"]), sink), clock=clock, during=observe
    )


async def test_a_list_source_that_panics_does_not_continue() -> None:
    """A bug in the script brings the graph down; the next items are not emitted."""
    sink = CollectSink()
    event = await run_graph(chain(ListSource([1], Fail(KeyError("bug")), [2]), sink))
    assert isinstance(event, events.Panicked)
    assert sink.items == [1]


async def test_until_shutdown_waits_for_the_shutdown() -> None:
    """The items after it are not emitted."""
    sink = CollectSink()

    async def stop(built: BuiltGraph) -> None:
        await settle()
        built.request_shutdown("enough")

    event = await run_graph(chain(ListSource([1], UntilShutdown(), [2]), sink), during=stop)
    assert isinstance(event, events.ShutDown)
    assert sink.items == [1]


async def test_a_shutdown_ends_a_pause() -> None:
    """A pause of an hour takes no time then."""
    sink = CollectSink()

    async def stop(built: BuiltGraph) -> None:
        await settle()
        built.request_shutdown("enough")

    event = await run_graph(
        chain(ListSource([1], Pause(timedelta(hours=1)), [2]), sink), clock=ManualClock(), during=stop
    )
    assert sink.items == [1]
    assert event.figures.elapsed_s == 0


async def stuck(ends: WiredEnds) -> None:
    """Never acknowledges and never ends."""
    await ends.receiver.recv_many()
    await asyncio.Event().wait()


@pytest.mark.parametrize("clock", [None, ManualClock()], ids=["real", "manual"])
async def test_a_run_that_hangs_raises_timeout_error_on_any_clock(clock: ManualClock | None) -> None:
    """After the limit, which is real time; no task is left."""
    before = asyncio.all_tasks()
    graph = chain(ListSource([1], UntilShutdown()), stuck)
    with pytest.raises(TimeoutError):
        await run_graph(graph, clock=clock, limit=timedelta(milliseconds=50), grace=timedelta(seconds=60))
    assert asyncio.all_tasks() == before


async def test_an_assertion_in_during_fails_the_test_and_does_not_hang_it() -> None:
    """``run_graph`` raises it, although the test no longer moves the clock."""
    before = asyncio.all_tasks()

    async def check(built: BuiltGraph) -> None:
        await settle()
        assert built.ledger().ingested == 2, "this is what the test is about"

    with pytest.raises(AssertionError, match="this is what the test is about"):
        await run_graph(chain(ListSource([1], UntilShutdown()), stuck), clock=ManualClock(), during=check)
    assert asyncio.all_tasks() == before


async def test_a_run_is_watched_by_the_given_policy() -> None:
    """Its end rule applies; a grace together with a policy is an error."""

    async def one(ends: WiredEnds) -> None:
        await ends.receiver.recv()

    policy = SupervisionPolicy(done_when=frozenset({"sink"}))
    graph = chain(ListSource([1], UntilShutdown()), one)
    assert isinstance(await run_graph(graph, policy=policy), events.AllOk)
    with pytest.raises(ValueError, match="expected a policy or a grace, got both"):
        await run_graph(graph, policy=policy, grace=timedelta(seconds=1))


async def test_runs_have_the_same_random_source_by_default() -> None:
    """Two runs draw the same backoff."""
    delays = []
    for _ in range(2):
        clock = ManualClock()

        async def let_time_pass(built: BuiltGraph, clock: ManualClock = clock) -> None:
            while built.event is None:
                await clock.advance_when_idle(1.0)

        graph = OperatorGraph("same")
        policy = RestartPolicy.always(backoff=Backoff(timedelta(seconds=1), timedelta(seconds=99)))
        source = graph.add_source("source", ListSource(Fail(OSError("cable")), [1]), restart_policy=policy)
        graph.connect(source, graph.add_sink("sink", CollectSink()), 1)
        event = await run_graph(graph, clock=clock, during=let_time_pass)
        delays.append(event.figures.restarts["source"].recent[0].backoff_s)
    assert delays[0] == delays[1]


def test_timers_fire_in_order_and_at_their_own_time() -> None:
    """Timers of the same time fire in the order of their creation; a cancelled timer never fires."""
    clock, fired = ManualClock(), list[tuple[str, float]]()
    clock.call_later(3.0, lambda: fired.append(("late", clock.monotonic())))
    clock.call_later(1.0, lambda: fired.append(("early", clock.monotonic())))
    clock.call_later(1.0, lambda: fired.append(("tie", clock.monotonic())))
    clock.call_later(2.0, lambda: fired.append(("never", clock.monotonic()))).cancel()
    clock.advance(5.0)
    assert fired == [("early", 1.0), ("tie", 1.0), ("late", 3.0)]
    assert (clock.monotonic(), clock.now_ns() % 10**9) == (5.0, 0)


def test_a_chain_of_a_source_only_is_an_error() -> None:
    """It needs a sink."""
    with pytest.raises(ValueError, match="got the source only"):
        chain(ListSource())


# A clock that jumps.


async def test_an_autojump_clock_jumps_to_each_timer_in_order() -> None:
    """Two tasks sleep for hours without real time; each wakes at its own time, and the clock stands still afterwards."""
    clock, woke = ManualClock(autojump=True), list[tuple[str, float]]()

    async def sleeper(name: str, seconds: float) -> None:
        for _ in range(2):
            await sleep(clock, seconds)
            woke.append((name, clock.monotonic()))

    async with asyncio.timeout(20):
        await asyncio.gather(sleeper("slow", 7_000.0), sleeper("fast", 3_000.0))
    assert woke == [("fast", 3_000.0), ("fast", 6_000.0), ("slow", 7_000.0), ("slow", 14_000.0)]
    await settle()
    assert clock.monotonic() == 14_000.0


async def test_an_autojump_clock_waits_while_a_task_can_run() -> None:
    """A task that is ready for a thousand turns keeps the time where it is."""
    clock, fired = ManualClock(autojump=True), list[float]()
    clock.call_later(1.0, lambda: fired.append(clock.monotonic()))
    for _ in range(1_000):
        await asyncio.sleep(0)
        assert not fired
    await asyncio.sleep(0.01)  # no task is ready now
    assert fired == [1.0]
    assert clock.pending_timers == []


async def test_an_autojump_clock_ignores_cancelled_timers() -> None:
    """It stands still when only cancelled timers are left, and jumps again for the next timer."""
    clock, fired = ManualClock(autojump=True), list[float]()
    clock.call_later(1.0, lambda: fired.append(clock.monotonic())).cancel()
    await asyncio.sleep(0.01)
    assert (clock.monotonic(), fired) == (0.0, [])
    clock.call_later(5.0, lambda: fired.append(clock.monotonic()))
    await asyncio.sleep(0.01)
    assert fired == [5.0]


async def test_two_autojump_clocks_in_one_loop_do_not_hold_each_other_up() -> None:
    """Each sees that the other one only waits for an idle loop, and jumps."""
    clocks = [ManualClock(autojump=True), ManualClock(autojump=True)]
    async with asyncio.timeout(20):
        await asyncio.gather(*(sleep(clock, 3600.0 * hours) for hours, clock in enumerate(clocks, 1)))
    assert [clock.monotonic() for clock in clocks] == [3600.0, 7200.0]


async def test_a_graph_on_an_autojump_clock_needs_no_help() -> None:
    """A source that fails after an hour is restarted; the test does not move the clock."""
    sink = CollectSink()
    source = ListSource([1], Pause(timedelta(hours=1)), Fail(OSError("cable")), [2])
    event = await run_graph(chain(source, sink), clock=ManualClock(autojump=True))
    assert sink.items == [1, 2]
    assert 3600.05 <= event.figures.elapsed_s <= 3600.15  # the backoff
