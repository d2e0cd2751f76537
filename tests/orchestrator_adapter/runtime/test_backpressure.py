"""Backpressure through every ready-made operator, and different flow policies in one graph."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import pytest

from orchestrator_adapter import (
    BuiltGraph,
    DeadLetterList,
    Factory,
    FlowPolicy,
    OperatorGraph,
    WiredEnds,
    broadcast,
    filter_items,
    flat_map_items,
    map_batches,
    map_items,
    merge,
    partition,
    sift,
    source_of,
)
from orchestrator_adapter.primitives.clock import sleep
from orchestrator_adapter.testing import CollectSink, ManualClock, run_graph, settle


async def hangs(ends: WiredEnds) -> None:
    """Takes one item, and then waits for ever."""
    await ends.receiver.recv_many(1)
    await asyncio.Event().wait()


async def end_it(built: BuiltGraph) -> None:
    built.request_shutdown("enough")
    built.request_shutdown("at once")


ENDLESS = 10_000
MIDDLES: dict[str, Callable[[], Factory]] = {
    "map": lambda: map_items(lambda item: item),
    "map_batches": lambda: map_batches(lambda batch: batch),
    "flat_map": lambda: flat_map_items(lambda item: [item]),
    "sift": lambda: sift(lambda _: None),
    "filter": lambda: filter_items(lambda _: True),
    "merge": lambda: merge(max_batch=2),
    "broadcast": lambda: broadcast(max_batch=2),
    "partition": lambda: partition(lambda _: 0, max_batch=2),
}


@pytest.mark.parametrize("kind", MIDDLES)
async def test_no_ready_made_operator_takes_more_than_its_edges_can_contain(kind: str) -> None:
    """With a reader that takes no more items, ten thousand items stay in the source: no operator buffers them."""
    graph = OperatorGraph("pressure")
    source = graph.add_source("source", source_of(range(ENDLESS), batch=1))
    sinks = [graph.add_sink("sink", hangs)]
    match kind:
        case "merge":
            middle = graph.add_fan_in("middle", MIDDLES[kind]())
            graph.connect(graph.add_source("other", source_of(range(ENDLESS), batch=1)), middle, 2)
        case "broadcast" | "partition":
            middle = graph.add_fan_out("middle", MIDDLES[kind]())
            sinks.append(graph.add_sink("other", hangs))
        case _:
            middle = graph.add_operator("middle", MIDDLES[kind](), expanding=kind == "flat_map")
    graph.connect(source, middle, 2)
    for sink in sinks:
        graph.connect(middle, sink, 2)

    async def check(built: BuiltGraph) -> None:
        await settle(2_000)
        assert built.ledger().ingested <= 20
        assert built.ledger().in_flight <= 20
        await end_it(built)

    event = await run_graph(graph, clock=ManualClock(), during=check)
    assert event.figures.ledger_holds


async def test_every_item_on_a_timed_edge_waits_for_its_own_deadline() -> None:
    """Four items for a reader that hangs, on an edge of one: one times out every ten seconds, not all at once."""
    clock, letters, seen = ManualClock(), DeadLetterList(), list[int]()

    async def one_by_one(ends: WiredEnds) -> None:
        for number in range(5):
            await ends.emit([number])

    graph = OperatorGraph("timed")
    source, sink = graph.add_source("source", one_by_one), graph.add_sink("sink", hangs)
    graph.connect(source, sink, 1, policy=FlowPolicy.timed(timedelta(seconds=10)))

    async def check(built: BuiltGraph) -> None:
        await settle()
        for _ in range(5):
            seen.append(letters.total)
            await clock.advance_when_idle(10)
        await end_it(built)

    await run_graph(graph, clock=clock, during=check, dead_letters=letters)
    assert seen == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("nudged", [False, True])
async def test_a_timed_branch_times_out_beside_a_branch_that_waits_for_ever(nudged: bool) -> None:  # noqa: FBT001
    """Each branch of a broadcast has its own policy, also if the other branch moves at half the time."""
    clock, letters = ManualClock(), DeadLetterList()

    async def patient(ends: WiredEnds) -> None:
        await ends.receiver.recv_many(1)
        if nudged:
            await sleep(ends.clock, 0.5)
            await ends.receiver.recv_many(1)
        await asyncio.Event().wait()

    graph = OperatorGraph("branches")
    split = graph.add_fan_out("split", broadcast(max_batch=1))
    graph.connect(graph.add_source("source", source_of(range(5), batch=1)), split, 1)
    graph.connect(split, graph.add_sink("patient", patient), 1)
    graph.connect(split, graph.add_sink("hasty", hangs), 1, policy=FlowPolicy.timed(timedelta(seconds=1)))

    async def check(built: BuiltGraph) -> None:
        await clock.advance_when_idle(0.5)
        await clock.advance_when_idle(0.499)
        assert letters.total == 0
        await clock.advance_when_idle(0.001)
        assert letters.total == 1
        await end_it(built)

    event = await run_graph(graph, clock=clock, during=check, dead_letters=letters)
    assert event.figures.ledger_holds


async def test_two_edges_between_the_same_routers_have_different_ids() -> None:
    """A fan-in distinguishes its inputs by their edges, even if both come from one fan-out."""
    graph, edges = OperatorGraph("twins"), list[str]()

    async def record_and_merge(ends: WiredEnds) -> None:
        edges.extend(receiver.edge for receiver in ends.receivers)
        await merge()(ends)

    split, join, sink = graph.add_fan_out("split"), graph.add_fan_in("join", record_and_merge), CollectSink()
    graph.connect(graph.add_source("source", source_of(range(3))), split, 4)
    connected = [graph.connect(split, join, 4), graph.connect(split, join, 4)]
    graph.connect(join, graph.add_sink("sink", sink), 4)
    event = await run_graph(graph)
    assert edges == connected == ["split -> join", "split -> join (2)"]
    assert sorted(sink.items) == [0, 0, 1, 1, 2, 2]
    assert event.figures.ledger_holds
