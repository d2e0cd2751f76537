from __future__ import annotations

from pathlib import Path

from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.operators.ends import WiredEnds
from orchestrator_adapter.operators.from_functions import for_each, map_items, source_of
from orchestrator_adapter.storage.dead_letter import DeadLetterKind, DeadLetterList
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.supervision.restart import RestartPolicy
from orchestrator_adapter.testing import CollectSink, FailAt, run_graph
from tests.orchestrator_adapter.runtime.scenes import AWAY, holds, live, three

# Panics.


class Unprintable:
    def __repr__(self) -> str:
        raise ZeroDivisionError


async def test_a_panic_is_never_restarted_and_its_leased_items_are_named() -> None:
    """The first bug tears the graph down. The leased items are dead-lettered, and named in the event."""

    async def buggy(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(2):
            raise KeyError(str(batch))

    letters = DeadLetterList()
    event = await run_graph(
        three(source_of("abcd"), buggy, CollectSink(), policy=RestartPolicy.always()), dead_letters=letters
    )
    assert isinstance(event, events.Panicked)
    assert (event.operator, event.leased) == ("op", ("'a'", "'b'"))
    assert event.chain == ("KeyError: \"['a', 'b']\"",)
    assert Path(__file__).name in event.traceback
    assert event.figures.restarts == {}
    assert [(letter.kind, letter.payload) for letter in letters.letters] == [
        (DeadLetterKind.PROCESSING_EXCEPTION, "a"),
        (DeadLetterKind.PROCESSING_EXCEPTION, "b"),
        (DeadLetterKind.UNDELIVERED, "c"),
        (DeadLetterKind.UNDELIVERED, "d"),
    ]
    assert holds(event)


async def test_an_item_whose_repr_raises_does_not_stop_the_supervisor() -> None:
    """A leased item whose ``repr`` raises is named by its type, and the run ends as any other panic."""

    async def buggy(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        raise KeyError

    event = await run_graph(three(source_of([Unprintable()]), buggy, CollectSink()))
    assert isinstance(event, events.Panicked)
    assert event.leased == ("<Unprintable, whose repr raised ZeroDivisionError>",)
    assert holds(event)


async def test_the_first_teardown_cause_names_the_event() -> None:
    """A panic that follows from the teardown does not replace the failure that caused it."""

    async def flaky(ends: WiredEnds) -> None:
        raise AWAY

    async def sulking(ends: WiredEnds) -> None:
        await ends.receiver.recv_many()
        raise KeyError("sulk")

    event = await run_graph(three(live, flaky, sulking, policy=RestartPolicy.never()))
    assert isinstance(event, events.BudgetExhausted)
    assert isinstance(event.figures.exits["sink"], task_exit.Panicked)


# Readers that end early.


async def test_a_reader_that_ends_early_ends_its_writer_at_once() -> None:
    """A sink that returns before the end of the stream makes its writer fail with ``ReaderGone``, without a restart."""

    async def first_only(ends: WiredEnds) -> None:
        await ends.receiver.recv()

    event = await run_graph(three(live, map_items(lambda n: n), first_only, policy=RestartPolicy.always()))
    assert isinstance(event, events.BudgetExhausted)
    assert event.operator == "op"
    assert event.chain == ("ReaderGone: edge 'op -> sink': its reader has ended for good",)
    assert event.figures.restarts == {}
    assert event.figures.ledger.written == 1
    assert holds(event)


async def test_a_broadcast_to_a_panicked_sink_is_counted_to_the_item() -> None:
    """When one of two branches panics, every copy is written or dead-lettered."""
    graph, good = OperatorGraph("branches"), CollectSink()
    split = graph.add_fan_out("split")
    graph.connect(graph.add_source("source", source_of(range(50))), split, 4)
    graph.connect(split, graph.add_sink("good", good), 4)
    graph.connect(split, graph.add_sink("bad", for_each(FailAt({7: KeyError("bug")}))), 2)
    event = await run_graph(graph)
    assert isinstance(event, events.Panicked)
    assert holds(event)
