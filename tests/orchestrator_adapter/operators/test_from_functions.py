from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator_adapter.channels.flow_policy import FlowPolicy
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.operators.ends import Factory
from orchestrator_adapter.operators.from_functions import (
    DeadLetterAs,
    Discard,
    Duplicate,
    Reject,
    Verdict,
    filter_items,
    flat_map_items,
    for_each,
    for_each_batch,
    map_batches,
    map_items,
    sift,
    source_of,
)
from orchestrator_adapter.operators.routers import broadcast, partition
from orchestrator_adapter.primitives.errors import OperatorError
from orchestrator_adapter.runtime.built_graph import BuiltGraph
from orchestrator_adapter.storage.dead_letter import DeadLetterKind, DeadLetterList
from orchestrator_adapter.supervision import events
from orchestrator_adapter.supervision.restart import RestartPolicy
from orchestrator_adapter.testing import CollectSink, FailAt, ManualClock, chain, run_graph, settle

AWAY = OperatorError("away")


async def through(operator: Factory, items: list[Any], *, expanding: bool = False) -> tuple[list[Any], Any]:
    """The outputs of ``operator``, and the figures of the run. The ledger must balance, and nothing may be repeated."""
    graph, sink = OperatorGraph("through"), CollectSink()
    middle = graph.add_operator("op", operator, expanding=expanding)
    graph.connect(graph.add_source("source", source_of(items)), middle, 64)
    graph.connect(middle, graph.add_sink("sink", sink), 64)
    event = await run_graph(graph, clock=ManualClock(autojump=True))
    assert isinstance(event, events.AllOk)
    assert event.figures.ledger_holds
    assert event.figures.ledger.in_flight == event.figures.ledger.repeated == 0
    return sink.items, event.figures


# source_of


async def test_source_of_emits_every_item_of_an_iterable_or_async_iterable() -> None:
    """Both kinds of iterable give every item, in order."""

    async def stream() -> AsyncIterator[int]:
        for number in range(300):
            yield number

    for items in (range(300), stream()):
        sink = CollectSink()
        assert isinstance(await run_graph(chain(source_of(items), sink)), events.AllOk)
        assert sink.items == list(range(300))


class Hiccup:
    """An iterator that raises once, after two items, and continues at the next call."""

    def __init__(self) -> None:
        self.number = -1

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.number += 1
        if self.number == 2:
            raise AWAY
        if self.number > 4:
            raise StopIteration
        return self.number


async def test_source_of_continues_where_it_was_after_a_failure() -> None:
    """Items taken before the iterator raised are delivered, and no item is taken twice."""
    sink = CollectSink()
    event = await run_graph(chain(source_of(Hiccup()), sink), clock=ManualClock(autojump=True))
    assert isinstance(event, events.AllOk)
    assert sink.items == [0, 1, 3, 4]
    assert event.figures.ledger_holds


async def test_a_generator_that_raised_is_not_the_end_of_the_stream() -> None:
    """A generator that raised cannot continue: its error exhausts the budget, and the run does not end as AllOk."""

    def broken() -> Iterator[int]:
        yield 0
        raise AWAY

    async def broken_stream() -> AsyncIterator[int]:
        yield 0
        raise AWAY

    for items in (broken(), broken_stream()):
        sink = CollectSink()
        event = await run_graph(chain(source_of(items), sink), clock=ManualClock(autojump=True))
        assert isinstance(event, events.BudgetExhausted)
        assert event.error is AWAY
        assert sink.items == [0]


async def test_source_of_stops_at_a_shutdown_even_while_it_waits() -> None:
    """An async iterable that never yields an item does not delay the drain."""

    async def silent() -> AsyncIterator[int]:
        await asyncio.Event().wait()
        yield 0

    async def stop(built: BuiltGraph) -> None:
        await settle()
        built.request_shutdown("test")

    event = await run_graph(chain(source_of(silent()), CollectSink()), clock=ManualClock(), during=stop)
    assert isinstance(event, events.ShutDown)


@pytest.mark.parametrize("turns", range(25))
async def test_source_of_keeps_an_item_taken_in_the_turn_of_its_abort(turns: int) -> None:
    """Aborted at any turn, every item that the stream yielded is written or dead-lettered, and counted."""
    taken: list[int] = []

    class Ready(AsyncIterator[int]):
        async def __anext__(self) -> int:
            await asyncio.sleep(0)
            taken.append(len(taken))
            return taken[-1]

    sink, letters = CollectSink(), DeadLetterList()
    built = chain(source_of(Ready()), sink).build(clock=ManualClock(), dead_letters=letters)
    running = asyncio.create_task(built.run())
    await settle(turns)
    built.request_shutdown("test")
    built.request_shutdown("at once")
    event = await running
    assert sink.items + [letter.payload for letter in letters.letters] == taken
    assert event.figures.ledger.ingested == len(taken)


async def test_source_of_keeps_the_items_taken_before_the_iterator_raised_a_cancellation() -> None:
    """A ``BaseException`` loses nothing either: the graph panics, and the items taken before are delivered."""

    def cancelled() -> Iterator[int]:
        yield from range(3)
        raise asyncio.CancelledError

    sink = CollectSink()
    event = await run_graph(chain(source_of(cancelled()), sink), clock=ManualClock(autojump=True))
    assert isinstance(event, events.Panicked)
    assert sink.items == [0, 1, 2]
    assert event.figures.ledger.ingested == 3


# map_items


async def test_map_items_maps_each_item() -> None:
    """One out for each in, in order."""
    items, _ = await through(map_items(str), [1, 2, 3])
    assert items == ["1", "2", "3"]


async def test_map_items_that_fails_in_the_middle_repeats_nothing_and_loses_nothing() -> None:
    """The items before the one at fault are acknowledged. The others are redelivered, and each arrives once."""
    seen: list[int] = []
    failing = FailAt({4: AWAY})

    def work(item: int) -> int:
        seen.append(item)
        return int(failing(item))

    items, figures = await through(map_items(work), list(range(8)))
    assert items == list(range(8))
    assert seen == [0, 1, 2, 3, 3, 4, 5, 6, 7]
    assert figures.restarts["op"].total == 1


# map_batches


async def test_map_batches_maps_each_batch() -> None:
    """The function sees batches of at most ``max_batch``, and their results arrive in order."""
    sizes: list[int] = []

    def work(batch: list[int]) -> list[int]:
        sizes.append(len(batch))
        return [-item for item in batch]

    items, _ = await through(map_batches(work, max_batch=3), list(range(8)))
    assert items == [-item for item in range(8)]
    assert max(sizes) == 3


async def test_map_batches_is_all_or_nothing() -> None:
    """A failed batch emits nothing: each of its items is redelivered alone, and arrives once."""
    batches: list[list[int]] = []

    def work(batch: list[int]) -> list[int]:
        batches.append(batch)
        if len(batches) == 1:
            raise AWAY
        return batch

    items, _ = await through(map_batches(work), [1, 2, 3])
    assert items == [1, 2, 3]
    assert batches == [[1, 2, 3], [1], [2], [3]]


# flat_map_items


async def test_flat_map_items_expands_each_item() -> None:
    """Zero, one or many outputs for each item. The ledger has what was derived and absorbed."""

    def repeat(item: int) -> list[int]:
        return [item] * item

    items, figures = await through(flat_map_items(repeat), [0, 1, 3], expanding=True)
    assert items == [1, 3, 3, 3]
    assert figures.ledger.derived - figures.ledger.absorbed == 1


async def test_flat_map_items_emits_nothing_of_a_half_expanded_item() -> None:
    """A generator that raises after its first result: that result is not passed on until the item succeeds."""
    attempts: list[int] = []

    def expand(item: int) -> Iterator[tuple[int, str]]:
        attempts.append(item)
        yield item, "first"
        if attempts.count(2) == 1 and item == 2:
            raise AWAY
        yield item, "second"

    items, _ = await through(flat_map_items(expand), [1, 2, 3], expanding=True)
    assert items == [(item, which) for item in (1, 2, 3) for which in ("first", "second")]


# sift and filter_items


async def test_sift_gives_every_item_the_outcome_its_judge_names() -> None:
    """One item for each verdict: passed, rejected, discarded, duplicate, dead-lettered. Each is counted as such."""
    verdicts: dict[str, Verdict] = {
        "good": None,
        "bad": Reject("out of range"),
        "dull": Discard(),
        "again": Duplicate(),
        "odd": DeadLetterAs(DeadLetterKind.SCHEMA_MISMATCH, "no such field"),
    }
    letters, sink = DeadLetterList(), CollectSink()
    event = await run_graph(chain(source_of(verdicts), sift(verdicts.__getitem__), sink), dead_letters=letters)
    assert sink.items == ["good"]
    ledger = event.figures.ledger
    assert (ledger.written, ledger.rejected, ledger.discarded, ledger.duplicates, ledger.dead_lettered) == (1,) * 5
    assert event.figures.ledger_holds
    assert [(letter.payload, letter.kind, letter.message) for letter in letters.letters] == [
        ("bad", DeadLetterKind.VALIDATION_FAILED, "out of range"),
        ("odd", DeadLetterKind.SCHEMA_MISMATCH, "no such field"),
    ]


async def test_sift_that_fails_in_the_middle_counts_no_outcome_twice() -> None:
    """Verdicts from before the failure stay, and none is given twice."""
    failing = FailAt({4: AWAY})

    def judge(item: int) -> Verdict:
        failing(item)
        return Discard() if item % 2 else None

    items, figures = await through(sift(judge), list(range(8)))
    assert items == [0, 2, 4, 6]
    assert figures.ledger.discarded == 4


async def test_sift_rejects_an_unknown_verdict() -> None:
    """A judge that returns ``True`` is a bug: the graph panics, and no item is lost."""
    judge: Callable[[Any], Any] = lambda _: True  # noqa: E731 - wrong on purpose, and typed so that mypy accepts it
    event = await run_graph(chain(source_of("a"), sift(judge), CollectSink()))
    assert isinstance(event, events.Panicked)
    assert event.figures.ledger_holds


async def test_filter_items_passes_the_wanted_items_and_counts_the_rest_as_discarded() -> None:
    """Five of ten pass, five are discarded."""

    def even(item: int) -> bool:
        return item % 2 == 0

    items, figures = await through(filter_items(even), list(range(10)))
    assert items == [0, 2, 4, 6, 8]
    assert figures.ledger.discarded == 5


# for_each and for_each_batch


@pytest.mark.parametrize("is_async", [False, True])
async def test_for_each_writes_each_item_once(is_async: bool) -> None:  # noqa: FBT001 - a parameter
    """A plain and an async function are called for each item, in order; a failure repeats only the item at fault."""
    written: list[int] = []
    failing = FailAt({3: AWAY})

    def write(item: int) -> None:
        failing(item)
        written.append(item)

    async def write_async(item: int) -> None:
        await asyncio.sleep(0)
        write(item)

    graph = OperatorGraph("writing")
    sink = graph.add_sink("sink", for_each(write_async if is_async else write), restart_policy=RestartPolicy.always())
    graph.connect(graph.add_source("source", source_of(range(6))), sink, 8)
    event = await run_graph(graph)
    assert isinstance(event, events.AllOk)
    assert written == list(range(6))
    assert event.figures.ledger.written == 6


@pytest.mark.parametrize("is_async", [False, True])
async def test_for_each_batch_writes_each_batch_whole(is_async: bool) -> None:  # noqa: FBT001 - a parameter
    """Batches of at most ``max_batch``; the ledger counts items."""
    batches: list[list[int]] = []

    async def write_async(batch: list[int]) -> None:
        batches.append(batch)

    sink = for_each_batch(write_async if is_async else batches.append, max_batch=4)
    event = await run_graph(chain(source_of(range(10)), sink))
    assert [item for batch in batches for item in batch] == list(range(10))
    assert max(map(len, batches)) == 4
    assert event.figures.ledger.written == 10


# Routers


async def fan_out(router: Factory, items: list[Any], ways: int, policies: dict[int, FlowPolicy]) -> tuple[Any, ...]:
    graph, sinks = OperatorGraph("fan-out"), [CollectSink() for _ in range(ways)]
    split = graph.add_fan_out("split", router)
    graph.connect(graph.add_source("source", source_of(items)), split, 8)
    for index, sink in enumerate(sinks):
        graph.connect(split, graph.add_sink(f"sink-{index}", sink), 8, policy=policies.get(index))
    event = await run_graph(graph)
    assert event.figures.ledger_holds
    return *(sink.items for sink in sinks), event.figures.ledger


async def test_broadcast_gives_every_output_every_item() -> None:
    """Three outputs get the same stream, in order; two copies of each are derived."""
    *streams, ledger = await fan_out(broadcast(), list(range(40)), 3, {})
    assert streams == [list(range(40))] * 3
    assert ledger.derived == 80


async def test_partition_sends_equal_keys_to_the_same_output_in_order() -> None:
    """Every item goes to exactly one output, items with one key to the same output, in order. Nothing is derived."""
    items = [(f"sat-{number % 7}", number) for number in range(70)]
    *streams, ledger = await fan_out(partition(lambda item: str(item[0])), items, 3, {})
    assert sorted(item for stream in streams for item in stream) == sorted(items)
    keys = [{key for key, _ in stream} for stream in streams]
    assert sum(map(len, keys)) == 7
    assert all([number for _, number in stream] == sorted(number for _, number in stream) for stream in streams)
    assert ledger.derived == ledger.absorbed == 0


async def test_partition_chooses_the_same_output_in_every_process() -> None:
    """The output of a known key is fixed: it must not depend on ``hash``, which differs between processes."""
    *streams, _ = await fan_out(partition(str), ["iss", "hst", "envisat", "vanguard-1"], 2, {})
    assert streams == [["vanguard-1"], ["iss", "hst", "envisat"]]


async def test_partition_sends_a_watermark_to_every_output_in_order() -> None:
    """A watermark reaches each output after exactly the items that came before it."""
    items: list[Any] = [f"item-{number}" for number in range(30)]
    items[10:10] = [Watermark(1)]
    items.append(Watermark(2))
    router = partition(str, everywhere=lambda item: isinstance(item, Watermark))
    *streams, ledger = await fan_out(router, items, 2, {})
    early = set(items[:10])
    for stream in streams:
        at = stream.index(Watermark(1))
        assert set(stream[:at]) <= early
        assert not early & set(stream[at:])
        assert stream[-1] == Watermark(2)
    assert ledger.derived == 2


async def test_merge_passes_on_unknown_items_in_order() -> None:
    """Items are opaque to a fan-in: a watermark keeps its place within its input."""
    graph, sink = OperatorGraph("marks"), CollectSink()
    merged = graph.add_fan_in("merge")
    inputs = {name: [(name, 1), Watermark(name), (name, 2)] for name in ("radar", "optical")}
    for name, items in inputs.items():
        graph.connect(graph.add_source(name, source_of(items)), merged, 2)
    graph.connect(merged, graph.add_sink("sink", sink), 2)
    await run_graph(graph)
    for name, items in inputs.items():
        assert [item for item in sink.items if name in (getattr(item, "mark", None), *_pair(item))] == items


@dataclass(frozen=True)
class Watermark:
    """An item of a type that no router knows."""

    mark: object


def _pair(item: object) -> tuple[object, ...]:
    return item if isinstance(item, tuple) else ()
