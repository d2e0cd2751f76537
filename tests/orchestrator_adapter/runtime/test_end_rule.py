"""The end rule: the graph is done when the named sinks have ended, even if the sources have more items."""

from __future__ import annotations

import asyncio
import itertools
import re
from contextlib import suppress
from datetime import timedelta

import pytest

from orchestrator_adapter import (
    DeadLetterKind,
    DeadLetterList,
    Factory,
    OperatorGraph,
    ReaderGone,
    SupervisionPolicy,
    WiredEnds,
    broadcast,
    map_items,
    partition,
    source_of,
)
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import (
    CollectSink,
    LoopClock,
    ManualClock,
    chain,
    run_every_schedule,
    run_schedule,
    settle,
)
from tests.helpers.sizes import small_and_long

pytestmark = pytest.mark.usefixtures("_many_schedules")


def wanting(count: int, taken: list[int]) -> Factory:
    """A sink that returns after this many items."""

    async def run(ends: WiredEnds) -> None:
        async for number in ends.receiver:
            taken.append(number)
            if len(taken) == count:
                return

    return run


def done_when(*sinks: str) -> SupervisionPolicy:
    return SupervisionPolicy(done_when=frozenset(sinks))


async def test_the_graph_is_done_when_the_named_sink_has_ended() -> None:
    """A sink that returns ends an endless graph: AllOk, the source has stopped, and every item is accounted for."""
    first: list[int] = []
    graph = chain(source_of(itertools.count()), map_items(lambda number: number), wanting(3, first), capacity=4)
    event = await graph.build(clock=ManualClock()).run(done_when("sink"))
    assert isinstance(event, events.AllOk)
    assert first == [0, 1, 2]
    assert event.figures.ledger.written == 3
    assert event.figures.ledger_holds
    assert event.figures.undelivered == event.figures.ledger.dead_lettered > 0


async def test_an_end_rule_that_names_no_sink_is_rejected_before_the_start() -> None:
    """With a misspelt sink the graph would never end."""
    built = chain(source_of([1]), CollectSink()).build()
    with pytest.raises(ValueError, match=re.escape("done_when: expected sinks of ['sink'], got ['snik']")):
        await built.run(done_when("snik"))


async def endless(ends: WiredEnds) -> None:
    """A source that emits 0, 1, 2 … until it is asked to stop."""
    for number in itertools.count():
        if ends.shutdown.is_set:
            return
        await ends.emit([number])
        await asyncio.sleep(0)


@small_and_long("seeds", 40, 200)
def test_two_chains_are_done_when_both_sinks_have_ended_in_any_order(seeds: int) -> None:
    """The chain of a sink that is done stops, no budget is exhausted, and the other chain goes on until its own end."""

    async def scenario() -> None:
        few, many = list[int](), list[int]()
        graph = OperatorGraph("two")
        for name, sink in (("few", wanting(2, few)), ("many", wanting(9, many))):
            middle = graph.add_operator(f"map-{name}", map_items(lambda number: number))
            graph.connect(graph.add_source(f"source-{name}", endless), middle, 2)
            graph.connect(middle, graph.add_sink(name, sink), 2)
        letters = DeadLetterList()
        event = await graph.build(clock=LoopClock(), dead_letters=letters).run(done_when("few", "many"))
        assert isinstance(event, events.AllOk)
        assert (few, many) == ([0, 1], list(range(9)))
        assert not event.figures.restarts
        assert event.figures.ledger_holds
        assert event.figures.ledger.written == 11
        assert event.figures.ledger.ingested == 11 + len(letters.letters)

    for seed in range(seeds):
        run_schedule(seed, scenario)
    run_every_schedule(scenario, preemptions=1)


@pytest.mark.parametrize("kind", ["broadcast", "partition", "by hand"])
@small_and_long("seeds", 40, 200)
def test_a_branch_that_is_done_does_not_end_the_others(kind: str, seeds: int) -> None:
    """Items for a sink that is done are dead-lettered with that reason, and the other sink receives all its items."""

    async def by_hand(ends: WiredEnds) -> None:
        async for item in ends.receiver:
            for sender in ends.senders:
                await sender.send(item)

    async def scenario() -> None:
        few, many = list[int](), list[int]()
        graph = OperatorGraph("split")
        routers = {"broadcast": broadcast(), "partition": partition(lambda number: number), "by hand": by_hand}
        split = graph.add_fan_out("split", routers[kind])
        graph.connect(graph.add_source("source", endless), split, 2)
        graph.connect(split, graph.add_sink("few", wanting(2, few)), 2)
        graph.connect(split, graph.add_sink("many", wanting(9, many)), 2)
        letters = DeadLetterList()
        event = await graph.build(clock=LoopClock(), dead_letters=letters).run(done_when("few", "many"))
        assert isinstance(event, events.AllOk)
        assert (len(few), len(many)) == (2, 9)
        if kind != "partition":
            assert (few, many) == ([0, 1], list(range(9)))
        assert event.figures.ledger_holds
        assert all(letter.kind is DeadLetterKind.UNDELIVERED for letter in letters.letters)
        unwanted = [letter for letter in letters.letters if letter.message.endswith("its reader needs no more items")]
        assert {(letter.operator, letter.message) for letter in unwanted} == {
            ("split", "edge 'split -> few': its reader needs no more items")
        }

    for seed in range(seeds):
        run_schedule(seed, scenario)


async def test_a_straggler_dead_letters_nothing_after_the_run_has_ended() -> None:
    """A fan-out that goes on after the end gets ``ReaderGone`` from the branch that was done: the report does not change."""
    clock, released, letters = ManualClock(), asyncio.Event(), DeadLetterList()
    raised: list[type[BaseException]] = []

    async def ignores_cancellation(ends: WiredEnds) -> None:
        for sender in ends.senders:
            await sender.send(await ends.receiver.recv())
        while not released.is_set():
            with suppress(asyncio.CancelledError):
                await released.wait()
        try:
            await ends.senders[0].send(99)
        except ReaderGone as error:
            raised.append(type(error))

    graph = OperatorGraph("after the end")
    split = graph.add_fan_out("split", ignores_cancellation)
    graph.connect(graph.add_source("source", source_of(range(9), batch=1)), split, 2)
    graph.connect(split, graph.add_sink("few", wanting(1, [])), 2)
    graph.connect(split, graph.add_sink("many", CollectSink()), 2)
    built = graph.build(clock=clock, dead_letters=letters)
    running = asyncio.create_task(built.run(done_when("few", "many")))
    await settle()
    built.request_shutdown("asked")
    built.request_shutdown("at once")
    while not running.done():
        await clock.advance_when_idle(1)
    event = await running
    assert [straggler.operator for straggler in event.figures.stragglers] == ["split"]
    before = letters.total
    released.set()
    await settle()
    assert raised == [ReaderGone]
    assert letters.total == before == event.figures.ledger.dead_lettered


async def test_a_sink_that_the_rule_does_not_name_must_not_return_early() -> None:
    """If any other sink returns early, its writer fails with ``ReaderGone``."""
    graph = OperatorGraph("other")
    graph.connect(graph.add_source("endless", endless), graph.add_sink("leaves", wanting(2, [])), 2)
    graph.connect(graph.add_source("also", endless), graph.add_sink("named", CollectSink()), 2)
    event = await graph.build(clock=ManualClock()).run(done_when("named"))
    assert isinstance(event, events.BudgetExhausted)
    assert (event.operator, event.chain) == (
        "endless",
        ("ReaderGone: edge 'endless -> leaves': its reader has ended for good",),
    )


def test_a_first_request_lets_a_drain_that_has_started_by_itself_go_on() -> None:
    """The first request changes nothing, because the graph drains already. Only a second one starts the abort."""

    async def scenario(requests: int) -> None:
        written = list[int]()

        async def slow(ends: WiredEnds) -> None:
            async for number in ends.receiver:
                await asyncio.sleep(0.5)
                written.append(number)

        graph = OperatorGraph("first signal")
        graph.connect(graph.add_source("short", source_of([1])), graph.add_sink("done", CollectSink()), 8)
        graph.connect(graph.add_source("long", source_of(range(4))), graph.add_sink("slow", slow), 8)
        built = graph.build(clock=LoopClock())
        for number in range(requests):
            asyncio.get_running_loop().call_later(0.7 + number / 10, built.request_shutdown, f"signal {number}")
        event = await built.run(SupervisionPolicy(grace=timedelta(seconds=30), done_when=frozenset({"done"})))
        assert isinstance(event, events.AllOk)
        assert event.figures.ledger_holds
        assert written == (list(range(4)) if requests < 2 else [0])

    for requests in range(3):
        run_schedule(0, lambda requests=requests: scenario(requests))  # type: ignore[misc]
