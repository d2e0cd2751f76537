"""Operators that end before their input does: what counts as written, undelivered or at fault."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest

from orchestrator_adapter import (
    DeadLetterKind,
    DeadLetterLimits,
    DeadLetterList,
    OperatorGraph,
    WiredEnds,
    sift,
    source_of,
)
from orchestrator_adapter.operators.from_functions import Reject
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import (
    CollectSink,
    chain,
    run_graph,
)

pytestmark = pytest.mark.usefixtures("_many_schedules")

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


# Returning early.


@pytest.mark.parametrize(("acknowledged", "written"), [(0, 0), (2, 2), (5, 5)])
async def test_a_sink_that_returns_in_the_middle_of_a_batch_has_written_what_it_acknowledged(
    acknowledged: int, written: int
) -> None:
    """The rest of the batch is undelivered, not written."""

    async def leaves(ends: WiredEnds) -> None:
        async for _ in ends.receiver.batches(5):
            ends.receiver.acknowledge(acknowledged)
            return

    letters = DeadLetterList()
    event = await run_graph(chain(source_of(range(5)), leaves), dead_letters=letters)
    assert isinstance(event, events.AllOk)
    assert event.figures.ledger.written == written
    assert [letter.payload for letter in letters.letters] == list(range(written, 5))
    assert all(letter.kind is DeadLetterKind.UNDELIVERED for letter in letters.letters)
    assert event.figures.ledger_holds


async def test_an_operator_that_returns_in_the_middle_of_a_batch_has_processed_what_it_passed_on() -> None:
    """Two of five passed on and none acknowledged: two are written, three undelivered, and the account balances."""

    async def leaves(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(5):
            await ends.sender.send_many(batch[:2])
            return

    sink, letters = CollectSink(), DeadLetterList()
    event = await run_graph(chain(source_of(range(5)), leaves, sink), dead_letters=letters)
    assert sink.items == [0, 1]
    assert [letter.payload for letter in letters.letters] == [2, 3, 4]
    assert event.figures.ledger_holds


async def test_the_single_leased_item_of_a_sink_that_returns_is_written() -> None:
    """A sink that reads item by item, and returns, has written its last item."""
    taken = list[int]()

    async def leaves(ends: WiredEnds) -> None:
        taken.append(await ends.receiver.recv())

    event = await run_graph(chain(source_of([1]), leaves))
    assert (taken, event.figures.ledger.written, event.figures.ledger.dead_lettered) == ([1], 1, 0)


# Items are not at fault when a reader has ended.


async def test_items_for_a_reader_that_has_ended_are_undelivered_and_not_poison_pills() -> None:
    """Even with ``max_deliveries=1`` the items are dead-lettered as undelivered."""

    async def gone(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        raise KeyError("bug")

    async def passes_on(ends: WiredEnds) -> None:
        async for item in ends.receiver:
            await ends.sender.send(item)

    letters = DeadLetterList()
    graph = OperatorGraph("dead end")
    middle = graph.add_operator("middle", passes_on, max_deliveries=1)
    graph.connect(graph.add_source("source", source_of(itertools.count(), batch=1)), middle, 1)
    graph.connect(middle, graph.add_sink("gone", gone), 1)
    event = await run_graph(graph, dead_letters=letters)
    assert isinstance(event, events.Panicked)
    assert {letter.kind for letter in letters.letters if letter.operator == "middle"} == {DeadLetterKind.UNDELIVERED}
    assert event.figures.ledger_holds


# A panic and a limit in the same batch.


async def test_a_panic_is_not_hidden_by_a_limit_that_is_exceeded_in_the_same_batch() -> None:
    """A bug directly after the reject that exceeds the limit: Panicked, with the leased items of the bug."""

    def judge(item: int) -> Reject | None:
        if item < 3:
            return Reject("no good")
        raise KeyError("bug")

    letters = DeadLetterList()
    graph = OperatorGraph("masked")
    operator = graph.add_operator("judge", sift(judge), dead_letter_limits=DeadLetterLimits(max_consecutive=1))
    graph.connect(graph.add_source("source", source_of(range(5))), operator, 8)
    graph.connect(operator, graph.add_sink("sink", CollectSink()), 8)
    event = await run_graph(graph, dead_letters=letters)
    assert isinstance(event, events.Panicked)
    assert event.leased == ("3", "4")
    kinds = [letter.kind for letter in letters.letters]
    assert kinds == [DeadLetterKind.VALIDATION_FAILED] * 3 + [DeadLetterKind.PROCESSING_EXCEPTION] * 2


async def test_the_limits_of_a_source_are_checked_at_each_emit() -> None:
    """Three consecutive rejects exceed the limit of two: the budget is exhausted at once."""

    async def garbled(ends: WiredEnds) -> None:
        for number in range(100):
            ends.reject(number, "garbled")
            await ends.emit([])

    graph = OperatorGraph("garbled")
    source = graph.add_source("source", garbled, dead_letter_limits=DeadLetterLimits(max_consecutive=2))
    graph.connect(source, graph.add_sink("sink", CollectSink()), 8)
    event = await run_graph(graph)
    assert isinstance(event, events.BudgetExhausted)
    assert event.figures.ledger.rejected == 3
