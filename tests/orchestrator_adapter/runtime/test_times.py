"""What operators do with their time, and pressure of edges, in virtual time: every figure is exact."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator_adapter import (
    Backoff,
    BreakerPolicy,
    BuiltGraph,
    Factory,
    FlowPolicy,
    OperatorGraph,
    RestartPolicy,
    SupervisionPolicy,
    WiredEnds,
    for_each,
    map_items,
)
from orchestrator_adapter.primitives.clock import sleep
from orchestrator_adapter.runtime.status import OperatorStatus, OperatorTimes
from orchestrator_adapter.testing import Fail, ListSource, ManualClock, Pause, UntilShutdown, chain, run_graph, settle

EDGE = "source -> sink"
BREAKER = BreakerPolicy()


def seconds(number: float) -> timedelta:
    return timedelta(seconds=number)


def takes(item_s: float, clock: ManualClock) -> Factory:
    """A sink that needs so long for each item."""
    return for_each(lambda _: sleep(clock, item_s))


async def finished(graph: OperatorGraph, clock: ManualClock) -> BuiltGraph:
    """The graph after its run."""
    kept: list[BuiltGraph] = []

    async def during(built: BuiltGraph) -> None:
        kept.append(built)

    await run_graph(graph, clock=clock, during=during)
    return kept[0]


async def end(built: BuiltGraph, clock: ManualClock) -> None:
    built.request_shutdown("seen")
    built.request_shutdown("at once")
    await clock.advance_when_idle(1)


def operator(built: BuiltGraph, name: str) -> OperatorStatus:
    return next(status for status in built.status().operators if status.name == name)


def times(built: BuiltGraph, name: str) -> OperatorTimes:
    return operator(built, name).times


async def test_an_operator_is_busy_while_it_works_and_idle_while_it_waits_for_input() -> None:
    """Two items of one second each, in the eight seconds of their source: two seconds busy, six idle."""
    clock = ManualClock(autojump=True)
    source = ListSource([1], Pause(seconds(5)), [2], Pause(seconds(3)))
    built = await finished(chain(source, takes(1, clock)), clock)
    assert times(built, "sink") == OperatorTimes(alive_s=8, idle_s=6, blocked_s=0)
    assert times(built, "sink").busy_s == 2
    assert times(built, "source") == OperatorTimes(alive_s=8)
    assert times(built, "source").busy_s == 8
    assert built.status().edges[EDGE].pressure_s == 0


async def test_a_slow_reader_blocks_its_writer_and_its_edge_has_pressure() -> None:
    """Ten items of two seconds each: the last one fits into the edge of one item after 18 seconds."""
    clock = ManualClock(autojump=True)
    built = await finished(chain(ListSource(range(10)), takes(2, clock), capacity=1), clock)
    assert times(built, "source") == OperatorTimes(alive_s=18, blocked_s=18)
    assert times(built, "sink") == OperatorTimes(alive_s=20)
    assert built.status().edges[EDGE].pressure_s == 18


async def test_the_present_wait_is_in_the_figures() -> None:
    """After three of five seconds of waiting, three seconds are counted."""
    clock = ManualClock()

    async def hangs(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        await ends.shutdown.wait()

    async def during(built: BuiltGraph) -> None:
        await clock.advance_when_idle(3)
        assert times(built, "source") == OperatorTimes(alive_s=3, blocked_s=3)
        assert times(built, "op-1") == OperatorTimes(alive_s=3, blocked_s=3)
        assert times(built, "sink") == OperatorTimes(alive_s=3)
        assert [edge.pressure_s for edge in built.status().edges.values()] == [3, 3]
        await clock.advance_when_idle(2)
        assert times(built, "source").blocked_s == 5
        await end(built, clock)

    graph = chain(ListSource(range(10)), map_items(lambda item: item), hangs, capacity=1)
    await run_graph(graph, clock=clock, during=during)


async def test_only_the_edge_that_is_full_has_pressure() -> None:
    """A fan-out waits for its slow branch. The other branch holds nothing up."""
    clock = ManualClock(autojump=True)
    graph = OperatorGraph("branches")
    split = graph.add_fan_out("split")
    graph.connect(graph.add_source("source", ListSource(range(10))), split, 1)
    graph.connect(split, graph.add_sink("slow", takes(1, clock)), 1)
    graph.connect(split, graph.add_sink("fast", takes(0, clock)), 1)
    built = await finished(graph, clock)
    edges = built.status().edges
    assert edges["split -> slow"].pressure_s == 9
    assert edges["split -> fast"].pressure_s == 0
    assert times(built, "split").blocked_s == 9


async def test_time_alive_is_that_of_all_instances_without_the_backoff() -> None:
    """Two seconds, a backoff of three, and four seconds: six alive of nine."""
    clock = ManualClock(autojump=True)
    graph = OperatorGraph("restarts")
    steps = ListSource(Pause(seconds(2)), Fail(OSError("cable")), Pause(seconds(4)))
    restart = RestartPolicy.bounded(3, seconds(60), backoff=Backoff(seconds(3), seconds(3)))
    source = graph.add_source("source", steps, restart_policy=restart)
    graph.connect(source, graph.add_sink("sink", takes(0, clock)), 4)
    built = await finished(graph, clock)
    assert times(built, "source") == OperatorTimes(alive_s=6)
    assert times(built, "sink") == OperatorTimes(alive_s=9, idle_s=9)


async def test_what_an_ended_source_still_delivers_counts_as_blocked() -> None:
    """In a drain, its outbox waits for the slow sink: for the time until the last item fits, and not longer."""
    clock = ManualClock(autojump=True)

    async def offers_and_fails(ends: WiredEnds) -> None:
        ends.ingest(range(4))
        await ends.shutdown.wait()
        raise OSError("at the end")

    async def during(built: BuiltGraph) -> None:
        kept.append(built)
        await settle()
        built.request_shutdown("enough")

    kept: list[BuiltGraph] = []
    graph = chain(offers_and_fails, takes(1, clock), capacity=1)
    await run_graph(graph, clock=clock, during=during, policy=SupervisionPolicy(grace=seconds(60)))
    (built,) = kept
    assert times(built, "source") == OperatorTimes(alive_s=3, blocked_s=3)
    assert times(built, "sink") == OperatorTimes(alive_s=4)


@pytest.mark.parametrize("policy", [FlowPolicy.shed(), FlowPolicy.timed(seconds(1))], ids=["shed", "timed"])
async def test_an_edge_that_drops_has_pressure_from_a_drop_to_the_next_acknowledgement(policy: FlowPolicy) -> None:
    """The sink takes ten seconds for an item. Items are dropped at the 4th second, and it acknowledges at the 10th."""
    clock = ManualClock()

    async def two_at_once(ends: WiredEnds) -> None:
        await ends.emit([0])
        await sleep(clock, 3 if policy.name == "timed" else 4)
        await ends.emit([1, 2])
        await ends.shutdown.wait()

    async def during(built: BuiltGraph) -> None:
        def pressure_s() -> float:
            return built.status().edges[EDGE].pressure_s

        for _ in range(4):
            await clock.advance_when_idle(1)
        assert pressure_s() == (1 if policy.name == "timed" else 0)  # a full timed edge makes its writer wait as well
        for _ in range(5):
            await clock.advance_when_idle(1)
        assert pressure_s() == (6 if policy.name == "timed" else 5)
        await clock.advance_when_idle(1)
        assert pressure_s() == (7 if policy.name == "timed" else 6)
        await clock.advance_when_idle(9)
        assert pressure_s() == (7 if policy.name == "timed" else 6)
        await end(built, clock)

    graph = OperatorGraph("drops")
    source = graph.add_source("source", two_at_once)
    graph.connect(source, graph.add_sink("sink", takes(10, clock)), 1, policy=policy)
    await run_graph(graph, clock=clock, during=during)


async def test_an_edge_has_pressure_while_it_has_items_on_disk(tmp_path: Path) -> None:
    """Its writer does not wait. Of five items, four go to disk; the last one leaves it when the fourth was acknowledged."""
    clock = ManualClock(autojump=True)
    graph = OperatorGraph("spills")
    source = graph.add_source("source", ListSource(range(5), Pause(seconds(20))))
    graph.connect(source, graph.add_sink("sink", takes(2, clock)), 1, policy=FlowPolicy.spill(tmp_path))
    built = await finished(graph, clock)
    assert built.status().edges[EDGE].pressure_s == 8
    assert times(built, "source") == OperatorTimes(alive_s=20)
    assert times(built, "sink") == OperatorTimes(alive_s=20, idle_s=10)


# Failures.


async def test_failures_are_counted_by_type_and_the_last_one_is_kept() -> None:
    """A budget of five, three of which are used up; and the time of the last failure."""
    clock = ManualClock()
    restart = RestartPolicy.bounded(5, seconds(60), backoff=Backoff(seconds(2), seconds(2)))
    steps = ListSource(
        Fail(OSError("cable")), Fail(OSError("again")), Pause(seconds(1)), Fail(TimeoutError()), UntilShutdown()
    )
    graph = OperatorGraph("fails")
    source = graph.add_source("source", steps, restart_policy=restart)
    graph.connect(source, graph.add_sink("sink", takes(0, clock)), 4)

    async def during(built: BuiltGraph) -> None:
        start_ns = clock.now_ns()
        await clock.advance_when_idle(1)
        source = operator(built, "source")
        assert source.errors == {"OSError": 1}
        assert source.last_error is not None
        assert (source.last_error.kind, source.last_error.message) == ("OSError", "cable")
        assert source.restart_in_s == 1
        assert (source.budget.left, source.budget.of, source.budget.window_s) == (4, 5, 60)
        for _ in range(8):
            await clock.advance_when_idle(1)
        source = operator(built, "source")
        assert source.errors == {"OSError": 2, "TimeoutError": 1}
        assert source.last_error is not None
        assert (source.last_error.kind, source.last_error.message) == ("TimeoutError", "TimeoutError")
        assert source.last_error.time_ns == start_ns + 5 * 10**9
        assert (source.budget.left, source.restart_in_s) == (2, None)
        await clock.advance_when_idle(60)
        assert operator(built, "source").budget.left == 5
        sink = operator(built, "sink")
        assert (sink.errors, sink.last_error, sink.budget.left, sink.budget.of) == ({}, None, 0, 0)
        await end(built, clock)

    await run_graph(graph, clock=clock, during=during)


async def test_at_most_twenty_types_of_failures_are_counted() -> None:
    """The others count together, so that a metric has a bounded number of labels."""
    clock = ManualClock(autojump=True)
    kinds = [type(f"Error{number}", (OSError,), {}) for number in range(25)]
    graph = OperatorGraph("kinds")
    steps = [Fail(kind()) for kind in (*kinds, kinds[0])]
    source = graph.add_source("source", ListSource(*steps), restart_policy=RestartPolicy.always())
    graph.connect(source, graph.add_sink("sink", takes(0, clock)), 4)
    built = await finished(graph, clock)
    errors = operator(built, "source").errors
    assert len(errors) == 21
    assert errors["other"] == 5
    assert errors["Error0"] == 2


def _rejects(ends: WiredEnds, item: int) -> None:
    ends.reject(item, f"{item} is not wanted")


async def test_the_last_error_is_the_later_one_of_failures_and_dead_letters() -> None:
    """A rejected item is an error of its operator, too."""
    clock = ManualClock(autojump=True)

    async def check(ends: WiredEnds) -> None:
        async for item in ends.receiver:
            if item == 1:
                raise OSError("one")
            ends.breaker("partner", BREAKER)
            _rejects(ends, item)
            ends.commit([], acknowledge=1)

    graph = OperatorGraph("rejects")
    op = graph.add_operator("check", check, max_deliveries=1, restart_policy=RestartPolicy.always())
    graph.connect(graph.add_source("source", ListSource([0, 1], Pause(seconds(30)), [2])), op, 4)
    graph.connect(op, graph.add_sink("sink", takes(0, clock)), 4)
    built = await finished(graph, clock)
    found = operator(built, "check")
    assert found.last_error is not None
    assert (found.last_error.kind, found.last_error.message) == ("ValidationFailed", "2 is not wanted")
    assert found.errors == {"OSError": 1}
    assert found.breakers == ("partner",)
