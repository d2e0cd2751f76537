"""More than ``test_routing_model``: marks in a partition, exact turns, starvation, ends of branched graphs."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from typing import Any
from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.operators.ends import Factory, WiredEnds
from orchestrator_adapter.operators.from_functions import map_items, source_of
from orchestrator_adapter.operators.routers import merge, partition
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.supervision.events import SupervisionHooks
from orchestrator_adapter.testing import CollectSink, LoopClock, run_schedule
from tests.helpers.sizes import examples

pytestmark = pytest.mark.usefixtures("_many_schedules")


SEEDS = st.integers(0, 2**32)
CAPACITIES = st.integers(1, 5)
BATCHES = st.integers(1, 7)


async def routed(router: Factory, items: Sequence[Any], outputs: int, capacity: int) -> list[list[Any]]:
    graph, sinks = OperatorGraph("routed"), [CollectSink() for _ in range(outputs)]
    fan_out = graph.add_fan_out("router", router)
    graph.connect(graph.add_source("source", source_of(items, batch=3)), fan_out, capacity)
    for index, sink in enumerate(sinks):
        graph.connect(fan_out, graph.add_sink(f"sink-{index}", sink), capacity)
    event = await graph.build(clock=LoopClock()).run()
    assert isinstance(event, events.AllOk)
    assert event.figures.ledger_holds
    return [sink.items for sink in sinks]


@settings(max_examples=examples(80))
@given(items=st.lists(st.integers(0, 30)), outputs=st.integers(2, 4), capacity=CAPACITIES, batch=BATCHES, seed=SEEDS)
def test_a_partition_is_a_filter_per_output(
    items: list[int], outputs: int, capacity: int, batch: int, seed: int
) -> None:
    """Output ``w`` gets, in order, the items whose key's checksum is ``w``, and the marks, which go to every output."""

    def is_mark(item: int) -> bool:
        return item % 10 == 0

    router = partition(lambda item: item % 7, everywhere=is_mark, max_batch=batch)
    streams = run_schedule(seed, lambda: routed(router, items, outputs, capacity))
    assert streams == [
        [item for item in items if is_mark(item) or crc32(repr(item % 7).encode()) % outputs == index]
        for index in range(outputs)
    ]


# Fan-in.


async def merged(router: Factory, inputs: Sequence[int], capacity: int) -> list[tuple[int, int]]:
    """Merge inputs that are full before the first item is taken; return the items in the order in which they leave."""
    graph, sink, full = OperatorGraph("merged"), CollectSink(), asyncio.Event()

    async def wait_and_run(ends: WiredEnds) -> None:
        await full.wait()
        await router(ends)

    fan_in = graph.add_fan_in("router", wait_and_run)
    for index, length in enumerate(inputs):
        numbered = [(index, number) for number in range(length)]
        graph.connect(graph.add_source(f"source-{index}", source_of(numbered, batch=capacity)), fan_in, capacity)
    graph.connect(fan_in, graph.add_sink("sink", sink), 1)
    built = graph.build(clock=LoopClock())
    running = asyncio.create_task(built.run())
    await asyncio.sleep(1)
    full.set()
    event = await running
    assert isinstance(event, events.AllOk)
    assert event.figures.ledger_holds
    return sink.items


def served_in_turn(inputs: Sequence[int], batch: int) -> list[tuple[int, int]]:
    """Round robin over queues, ``batch`` items a turn."""
    queues = [deque((index, number) for number in range(length)) for index, length in enumerate(inputs)]
    served: list[tuple[int, int]] = []
    while any(queues):
        for queue in queues:
            served += [queue.popleft() for _ in range(min(batch, len(queue)))]
    return served


@settings(max_examples=examples(80))
@given(inputs=st.lists(st.integers(0, 12), min_size=2, max_size=4), batch=BATCHES, seed=SEEDS)
def test_full_inputs_are_served_in_turn(inputs: list[int], batch: int, seed: int) -> None:
    """If all items of every input are ready, a merge is round robin, item by item."""
    assert run_schedule(seed, lambda: merged(merge(max_batch=batch), inputs, 12)) == served_in_turn(inputs, batch)


def longest_wait(served: Sequence[tuple[int, int]], inputs: Sequence[int]) -> int:
    """The most items of other inputs that left between two items of an input, or before its first, while it had some."""
    longest = 0
    for index in range(len(inputs)):
        last = max((at for at, (from_input, _) in enumerate(served) if from_input == index), default=-1)
        wait = 0
        for from_input, _ in served[: last + 1]:
            wait = 0 if from_input == index else wait + 1
            longest = max(longest, wait)
    return longest


@pytest.mark.parametrize("seed", range(40))
def test_no_input_starves(seed: int) -> None:
    """On any schedule, with narrow edges: while an input has items, each other input gets at most a few turns between."""
    rng = random.Random(seed)
    inputs, batch, capacity = [60] * rng.randint(2, 4), rng.randint(1, 3), rng.randint(1, 3)
    served = run_schedule(seed, lambda: merged(merge(max_batch=batch), inputs, capacity))
    assert sorted(served) == [(index, number) for index, length in enumerate(inputs) for number in range(length)]
    assert all([n for w, n in served if w == index] == list(range(60)) for index in range(len(inputs)))
    # The writer of an input that was just emptied may run last, a few times consecutively.
    assert longest_wait(served, inputs) < 12 * len(inputs)


def test_a_merge_that_starves_an_input_is_detected() -> None:
    """The mutant that serves its first input until it is empty breaks the bound on at least one schedule."""

    async def greedy(ends: WiredEnds) -> None:
        while not all(receiver.ended for receiver in ends.receivers):
            receiver = next((one for one in ends.receivers if not one.ended), ends.receivers[0])
            while batch := await receiver.recv_many(1):
                await ends.sender.send_many(batch)

    served = run_schedule(0, lambda: merged(greedy, [60, 60], 2))
    assert longest_wait(served, [60, 60]) >= 24


# The order in which operators end.


@settings(max_examples=examples(60))
@given(
    layers=st.lists(st.integers(1, 3), min_size=0, max_size=4),
    sources=st.integers(2, 4),
    stopped=st.booleans(),
    seed=SEEDS,
)
def test_operators_end_in_topological_order(
    layers: list[int],
    sources: int,
    stopped: bool,  # noqa: FBT001 - drawn
    seed: int,
) -> None:
    """If the sources end or are stopped, no operator ends before every operator upstream of it, and each ends with Ok."""

    async def scenario() -> None:
        graph = OperatorGraph("order")

        async def endless(ends: WiredEnds) -> None:
            while not ends.shutdown.is_set:
                await ends.emit([0])
                await asyncio.sleep(0)

        ends = [graph.add_source(f"source-{n}", endless if stopped else source_of(range(9))) for n in range(sources)]
        for depth, length in enumerate(layers):
            join = graph.add_fan_in(f"join-{depth}")
            for end in ends:
                graph.connect(end, join, 2)
            split = graph.add_fan_out(f"split-{depth}")
            graph.connect(join, split, 1)
            ends = []
            for branch in range(2):
                last = split
                for number in range(length):
                    operator = graph.add_operator(f"op-{depth}-{branch}-{number}", map_items(lambda item: item))
                    graph.connect(last, operator, 1)
                    last = operator
                ends.append(last)
        for number, end in enumerate(ends):
            graph.connect(end, graph.add_sink(f"sink-{number}", CollectSink()), 1)
        built = graph.build(clock=LoopClock())
        ended: list[str] = []
        if stopped:
            # `run` starts every operator before it waits for the first time.
            asyncio.get_running_loop().call_soon(built.request_shutdown, "at once")
        event = await built.run(hooks=SupervisionHooks(on_exit=lambda exited: ended.append(exited.operator)))
        assert isinstance(event, events.ShutDown if stopped else events.AllOk)
        assert event.figures.ledger_holds
        assert not event.figures.undelivered
        assert set(event.figures.exits.values()) == {task_exit.Ok()}
        for edge in graph.edges:
            assert ended.index(edge.upstream.name) < ended.index(edge.downstream.name)

    run_schedule(seed, scenario)
