"""Routing and the order of a shutdown compared with naive oracles: any items, capacities and schedules."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_adapter import OperatorGraph, broadcast, map_items, merge, partition, source_of
from orchestrator_adapter.supervision import events
from orchestrator_adapter.supervision.events import Exited, SupervisionHooks, SupervisorEvent
from orchestrator_adapter.testing import CollectSink, LoopClock, run_schedule
from tests.helpers.sizes import examples

SEEDS = st.integers(0, 2**32)
CAPACITIES = st.integers(1, 9)
BATCHES = st.integers(1, 9)

pytestmark = pytest.mark.usefixtures("_many_schedules")


def run(seed: int, graph: OperatorGraph, hooks: SupervisionHooks | None = None) -> SupervisorEvent:
    event: SupervisorEvent = run_schedule(seed, lambda: graph.build(clock=LoopClock()).run(hooks=hooks))
    assert event.figures.ledger_holds
    return event


@settings(max_examples=examples(150))
@given(SEEDS, st.lists(st.integers(0, 40), max_size=60), st.integers(2, 4), CAPACITIES, BATCHES)
def test_partition_is_the_naive_split_by_checksum(
    seed: int, items: list[int], outputs: int, capacity: int, batch: int
) -> None:
    """Each output gets exactly the items whose key's checksum selects it, in order."""
    graph, sinks = OperatorGraph("partition"), [CollectSink() for _ in range(outputs)]
    split = graph.add_fan_out("split", partition(lambda item: item % 7, max_batch=batch))
    graph.connect(graph.add_source("source", source_of(items)), split, capacity)
    for output, sink in enumerate(sinks):
        graph.connect(split, graph.add_sink(f"sink-{output}", sink), capacity)
    run(seed, graph)
    oracle: dict[int, list[int]] = defaultdict(list)
    for item in items:
        oracle[crc32(repr(item % 7).encode()) % outputs].append(item)
    assert [sink.items for sink in sinks] == [oracle[output] for output in range(outputs)]


@settings(max_examples=examples(150))
@given(SEEDS, st.lists(st.integers(0, 40), max_size=60), st.integers(2, 4), CAPACITIES, BATCHES)
def test_broadcast_is_the_same_stream_everywhere(
    seed: int, items: list[int], outputs: int, capacity: int, batch: int
) -> None:
    """Every output gets every item, in order."""
    graph, sinks = OperatorGraph("broadcast"), [CollectSink() for _ in range(outputs)]
    split = graph.add_fan_out("split", broadcast(max_batch=batch))
    graph.connect(graph.add_source("source", source_of(items)), split, capacity)
    for output, sink in enumerate(sinks):
        graph.connect(split, graph.add_sink(f"sink-{output}", sink), capacity)
    run(seed, graph)
    assert [sink.items for sink in sinks] == [items] * outputs


@settings(max_examples=examples(150))
@given(SEEDS, st.lists(st.integers(0, 50), min_size=2, max_size=4), CAPACITIES, BATCHES)
def test_merge_keeps_the_order_of_every_input_and_loses_none(
    seed: int, lengths: list[int], capacity: int, batch: int
) -> None:
    """With any interleaving, the merged stream separated by input equals the inputs."""
    graph, sink = OperatorGraph("merge"), CollectSink()
    merged = graph.add_fan_in("merge", merge(max_batch=batch))
    inputs = [[(source, number) for number in range(length)] for source, length in enumerate(lengths)]
    for source, items in enumerate(inputs):
        graph.connect(graph.add_source(f"source-{source}", source_of(items)), merged, capacity)
    graph.connect(merged, graph.add_sink("sink", sink), capacity)
    run(seed, graph)
    assert [[item for item in sink.items if item[0] == source] for source in range(len(inputs))] == inputs


@settings(max_examples=examples(100))
@given(SEEDS, st.integers(2, 4), BATCHES)
def test_merge_starves_no_input(seed: int, sources: int, batch: int) -> None:
    """While every input has items, none gets a second turn before each of the others had one."""
    graph, sink = OperatorGraph("fair"), CollectSink()
    merged = graph.add_fan_in("merge", merge(max_batch=batch))
    for source in range(sources):
        graph.connect(graph.add_source(f"source-{source}", source_of([source] * 400)), merged, 400)
    graph.connect(merged, graph.add_sink("sink", sink), 8)
    run(seed, graph)
    began = max(sink.items.index(source) for source in range(sources))
    total = Counter(sink.items[:began])
    turns = Counter[int]()
    for item in sink.items[began:]:
        total[item] += 1
        if total[item] > 400 - batch:
            break  # from here on this input may be empty
        turns[item] += 1
    assert max(turns.values()) - min(turns[source] for source in range(sources)) <= 2 * batch


@settings(max_examples=examples(100))
@given(SEEDS, st.integers(1, 5), st.booleans())
def test_a_shutdown_ends_the_graph_from_its_sources_on(seed: int, length: int, stop: bool) -> None:  # noqa: FBT001
    """No operator ends before everything upstream of it has: end of stream travels in topological order."""
    graph, ended = OperatorGraph("run down"), list[str]()
    merged = graph.add_fan_in("merge")
    names: list[tuple[Any, ...]] = [("source-0", "source-1"), ("merge",)]
    for source in range(2):
        graph.connect(graph.add_source(f"source-{source}", source_of(range(30))), merged, 3)
    last = merged
    for number in range(length):
        operator = graph.add_operator(f"op-{number}", map_items(lambda item: item))
        graph.connect(last, operator, 2)
        names.append((f"op-{number}",))
        last = operator
    graph.connect(last, graph.add_sink("sink", CollectSink()), 2)
    names.append(("sink",))

    def note(record: Exited) -> None:
        ended.append(record.operator)

    async def scenario() -> SupervisorEvent:
        built = graph.build(clock=LoopClock())
        if stop:
            asyncio.get_running_loop().call_soon(built.request_shutdown, "at once")  # `run` starts every operator first
        return await built.run(hooks=SupervisionHooks(on_exit=note))

    event = run_schedule(seed, scenario)
    assert isinstance(event, events.ShutDown if stop else events.AllOk)
    assert [name for level in names for name in sorted(level)] == sorted(ended[:2]) + ended[2:]
