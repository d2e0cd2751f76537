from __future__ import annotations

import asyncio

from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.operators.from_functions import map_items, source_of
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.testing import CollectSink, ManualClock, chain, run_graph, settle
from tests.orchestrator_adapter.runtime.scenes import double, holds, live, takes_one_batch


async def test_a_stream_that_ends_is_all_ok() -> None:
    """Everything arrives once, in order; every operator exited ``Ok`` and the ledger holds."""
    sink = CollectSink()
    event = await run_graph(chain(source_of(range(1_000)), map_items(double), sink))
    assert isinstance(event, events.AllOk)
    assert sink.items == list(range(0, 2_000, 2))
    assert event.figures.exits == dict.fromkeys(("source", "op-1", "sink"), task_exit.Ok())
    assert event.figures.ledger.written == event.figures.ledger.ingested == 1_000
    assert holds(event)


async def test_backpressure_reaches_the_source() -> None:
    """With a sink that takes no more items, the source has emitted no more than the edges can contain."""
    built = chain(live, map_items(lambda n: n), takes_one_batch, capacity=4).build(clock=ManualClock())
    running = asyncio.create_task(built.run())
    await settle()
    assert built.ledger().ingested <= 4 + 4 + 4 + 1  # two edges, a batch between them, and one item of the source
    built.request_shutdown("enough")
    built.request_shutdown("at once")
    assert holds(await running)


async def test_a_diamond_delivers_every_item_twice_and_counts_the_copies() -> None:
    """A broadcast to two branches that are merged again: two copies of each item, one of them derived."""
    graph, sink = OperatorGraph("diamond"), CollectSink()
    split, join = graph.add_fan_out("split"), graph.add_fan_in("join")
    graph.connect(graph.add_source("source", source_of(range(100))), split, 8)
    for name in ("left", "right"):
        branch = graph.add_operator(name, map_items(lambda n: n))
        graph.connect(split, branch, 3)
        graph.connect(branch, join, 5)
    graph.connect(join, graph.add_sink("sink", sink), 2)
    event = await run_graph(graph)
    assert sorted(sink.items) == sorted([*range(100), *range(100)])
    assert event.figures.ledger.derived == 100
    assert holds(event)
