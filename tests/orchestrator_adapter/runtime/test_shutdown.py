"""Drains and ends: what is still delivered, who is not started again, what is not counted as done, what is left running."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from datetime import timedelta
from unittest.mock import patch

import pytest

from orchestrator_adapter import (
    Backoff,
    BuiltGraph,
    DeadLetterKind,
    DeadLetterLimits,
    DeadLetterList,
    OperatorError,
    OperatorGraph,
    RestartPolicy,
    SupervisionHooks,
    SupervisionPolicy,
    WiredEnds,
    map_items,
    sift,
    source_of,
)
from orchestrator_adapter.operators.from_functions import Reject
from orchestrator_adapter.primitives.clock import sleep
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.supervision.supervisor import Supervisor
from orchestrator_adapter.testing import (
    CollectSink,
    FailAt,
    ListSource,
    LoopClock,
    ManualClock,
    UntilShutdown,
    chain,
    run_graph,
    run_schedule,
    settle,
)

pytestmark = pytest.mark.usefixtures("_many_schedules")

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


async def let_pass(built: BuiltGraph, clock: ManualClock, step_s: float = 1.0) -> None:
    while built.event is None:
        await clock.advance_when_idle(step_s)


# What a source had taken in when it stopped is delivered like everything else.


class Cable(Iterator[int]):
    """Gives 0 … 99, then fails for ever."""

    def __init__(self) -> None:
        self.number = -1

    def __next__(self) -> int:
        self.number += 1
        if self.number >= 100:
            raise OSError("cable")
        return self.number


@pytest.mark.parametrize(
    ("policy", "outcome"),
    [
        (RestartPolicy.always(backoff=Backoff(HOUR, HOUR)), events.ShutDown),
        (RestartPolicy.never(), events.BudgetExhausted),
    ],
)
def test_what_a_source_has_in_hand_when_it_ends_for_good_is_delivered(policy: RestartPolicy, outcome: type) -> None:
    """A hundred items behind an edge of sixteen, and a source that will not run again: all hundred are written."""

    async def scenario() -> None:
        sink = CollectSink()
        graph = OperatorGraph("in hand")
        source = graph.add_source("source", source_of(Cable()), restart_policy=policy)
        graph.connect(source, graph.add_sink("sink", sink), 16)
        built = graph.build(clock=LoopClock())
        asyncio.get_running_loop().call_later(0.02, built.request_shutdown, "asked")
        event = await built.run()
        assert isinstance(event, outcome)
        assert sink.items == list(range(100))
        assert isinstance(event.figures.exits["source"], task_exit.Errored)
        assert event.figures.ledger_holds

    for seed in range(50):
        run_schedule(seed, scenario)


def test_what_cannot_be_delivered_before_the_abort_is_buried() -> None:
    """Where the reader takes nothing, the grace period ends the delivery, and everything is in the dead letters."""

    async def deaf(ends: WiredEnds) -> None:
        await ends.receiver.recv_many()
        await asyncio.Event().wait()

    async def scenario() -> None:
        letters = DeadLetterList()
        graph = OperatorGraph("deaf")
        source = graph.add_source("source", source_of(Cable()), restart_policy=RestartPolicy.never())
        graph.connect(source, graph.add_sink("sink", deaf), 16)
        event = await graph.build(clock=LoopClock(), dead_letters=letters).run()
        assert isinstance(event, events.BudgetExhausted)
        assert sorted(letter.payload for letter in letters.letters) == list(range(100))
        assert not event.figures.stragglers
        assert event.figures.ledger_holds

    for seed in range(50):
        run_schedule(seed, scenario)


async def test_a_reader_that_goes_meanwhile_does_not_end_the_delivery_to_another() -> None:
    """A fan-out that has ended with items in hand for two readers: one of them panics, and the other gets all of its own."""

    async def fails_at_once(ends: WiredEnds) -> None:
        batch = await ends.receiver.recv_many()
        for sender in ends.senders:
            sender.offer(batch)
        ends.receiver.acknowledge()
        raise OSError("disk")

    async def panics_later(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        for _ in range(5):
            await asyncio.sleep(0)
        raise KeyError("bug")

    async def slow(ends: WiredEnds) -> None:
        async for item in ends.receiver:
            for _ in range(10):
                await asyncio.sleep(0)
            written.append(item)

    written, letters = list[int](), DeadLetterList()
    graph = OperatorGraph("two readers")
    split = graph.add_fan_out("split", fails_at_once, restart_policy=RestartPolicy.never())
    graph.connect(graph.add_source("source", source_of(range(8))), split, 8)
    graph.connect(split, graph.add_sink("slow", slow), 1)
    graph.connect(split, graph.add_sink("panics", panics_later), 1)
    event = await run_graph(graph, clock=ManualClock(), dead_letters=letters)
    assert isinstance(event, events.BudgetExhausted)
    assert written == list(range(8))
    assert sorted(letter.payload for letter in letters.letters) == list(range(8))
    assert event.figures.ledger_holds


async def test_what_an_instance_offers_and_does_not_flush_is_delivered() -> None:
    """Ten items offered to an edge of one, and a return: they all arrive before the end of the stream does."""

    async def hasty(ends: WiredEnds) -> None:
        batch = await ends.receiver.recv_many()
        ends.commit(batch, acknowledge=len(batch))

    graph, sink = OperatorGraph("hasty"), CollectSink()
    operator = graph.add_operator("hasty", hasty)
    graph.connect(graph.add_source("source", source_of(range(10))), operator, 10)
    graph.connect(operator, graph.add_sink("sink", sink), 1)
    event = await run_graph(graph)
    assert isinstance(event, events.AllOk)
    assert sink.items == list(range(10))


async def test_what_an_earlier_instance_offered_arrives_before_the_next_one_does_anything() -> None:
    """A source whose next instance has nothing to say yet: what the first had in hand arrives meanwhile."""
    sink = CollectSink()

    async def source(ends: WiredEnds) -> None:
        if ends.instance == 1:
            ends.sender.offer(range(10))
            raise OSError("cable")
        await ends.shutdown.wait()

    async def look(built: BuiltGraph) -> None:
        await settle()
        assert sink.items == list(range(10))
        built.request_shutdown("enough")

    await run_graph(chain(source, sink, capacity=3), clock=ManualClock(), during=look)


# Backoffs in a drain.


async def test_a_source_that_waits_for_its_restart_is_not_started_for_a_drain() -> None:
    """However long the drain takes, its backoff never comes to an end."""
    clock, spawned = ManualClock(), list[str]()

    async def failing(ends: WiredEnds) -> None:
        await ends.emit([1, 2, 3])
        raise OSError("cable")

    async def slow(ends: WiredEnds) -> None:
        async for _ in ends.receiver:
            await sleep(ends.clock, 10)

    graph = OperatorGraph("long drain")
    policy = RestartPolicy.always(backoff=Backoff(10 * SECOND, 10 * SECOND))
    graph.connect(graph.add_source("source", failing, restart_policy=policy), graph.add_sink("sink", slow), 8)

    async def stop(built: BuiltGraph) -> None:
        await clock.advance_when_idle(1)
        built.request_shutdown("asked")
        await let_pass(built, clock)

    event = await run_graph(
        graph,
        clock=clock,
        during=stop,
        policy=SupervisionPolicy(grace=HOUR),
        hooks=SupervisionHooks(on_spawn=lambda told: spawned.append(told.operator)),
    )
    assert spawned == ["source", "sink"]
    assert event.figures.ledger.written == 3


async def test_a_request_out_of_a_restart_hook_is_like_any_other() -> None:
    """A source whose restart was just decided is not started again either, and nobody waits for it."""
    sink = CollectSink()
    graph = OperatorGraph("hook")
    policy = RestartPolicy.always(backoff=Backoff(HOUR, HOUR))
    graph.connect(
        graph.add_source("source", source_of(Cable()), restart_policy=policy), graph.add_sink("sink", sink), 16
    )
    built = graph.build(clock=ManualClock())
    hooks = SupervisionHooks(on_restart=lambda _: built.request_shutdown("by the hook"))
    event = await built.run(hooks=hooks)
    assert isinstance(event, events.ShutDown)
    assert sink.items == list(range(100))
    assert event.figures.elapsed_s == 0


async def test_a_failure_in_the_drain_is_tried_again_soon_but_does_not_spin() -> None:
    """With a backoff of an hour and ten seconds of grace, ten tries are made, a second apart."""
    clock, tries = ManualClock(), list[float]()

    async def failing(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        await ends.shutdown.wait()
        tries.append(ends.clock.monotonic())
        raise OSError("disk")

    graph = OperatorGraph("persistent")
    sink = graph.add_sink(
        "sink", failing, restart_policy=RestartPolicy.always(backoff=Backoff(HOUR, HOUR)), max_deliveries=99
    )
    graph.connect(graph.add_source("source", source_of([1])), sink, 8)

    async def stop(built: BuiltGraph) -> None:
        await settle()
        built.request_shutdown("asked")
        await let_pass(built, clock, 0.25)

    event = await run_graph(graph, clock=clock, during=stop, policy=SupervisionPolicy(grace=10 * SECOND))
    assert tries == [float(second) for second in range(len(tries))]
    assert 10 <= len(tries) <= 11
    assert event.figures.ledger.dead_lettered == 1


async def test_a_restart_that_is_due_after_the_abort_never_comes() -> None:
    """An operator that waits for its restart when the grace period ends is not waited for, and its items are buried."""
    clock = ManualClock()

    async def fails_when_asked(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        await ends.shutdown.wait()
        await sleep(ends.clock, 4.9)
        raise OSError("disk")

    policy = RestartPolicy.always(backoff=Backoff(HOUR, HOUR))
    graph = OperatorGraph("late")
    sink = graph.add_sink("sink", fails_when_asked, restart_policy=policy)
    graph.connect(graph.add_source("source", source_of([1, 2, 3])), sink, 8)

    async def stop(built: BuiltGraph) -> None:
        await clock.advance_when_idle(1)
        built.request_shutdown("asked")
        await let_pass(built, clock, 0.1)

    event = await run_graph(graph, clock=clock, during=stop)
    assert event.figures.elapsed_s < 7
    assert event.figures.ledger.dead_lettered == 3
    assert event.figures.restarts["sink"].total == 1


async def test_a_healthy_spell_starts_the_row_of_backoffs_over() -> None:
    """The runtime tells the supervisor how long the instance ran: after a healthy hour the second backoff is a first one."""
    clock = ManualClock()

    async def fails_hourly(ends: WiredEnds) -> None:
        if ends.instance < 3:
            await sleep(ends.clock, 3600)
            raise OSError("hourly")

    policy = RestartPolicy.always(backoff=Backoff(SECOND, HOUR, healthy_after=timedelta(minutes=1)))
    graph = OperatorGraph("hourly")
    graph.connect(
        graph.add_source("source", fails_hourly, restart_policy=policy), graph.add_sink("sink", CollectSink()), 1
    )
    event = await run_graph(graph, clock=clock, during=lambda built: let_pass(built, clock, 60.0))
    delays = [restart.backoff_s for restart in event.figures.restarts["source"].recent]
    assert len(delays) == 2
    assert all(1.0 <= delay <= 3.0 for delay in delays)


# Returning early.


@pytest.mark.parametrize(("acknowledged", "written"), [(0, 0), (2, 2), (5, 5)])
async def test_a_sink_that_returns_in_the_middle_of_a_batch_has_written_what_it_acknowledged(
    acknowledged: int, written: int
) -> None:
    """The rest of the batch is undelivered, not taken for written."""

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


async def test_an_operator_that_returns_in_the_middle_of_a_batch_is_done_with_what_it_has_passed_on() -> None:
    """Two of five passed on and none acknowledged: two are written, three undelivered, and the books close."""

    async def leaves(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(5):
            await ends.sender.send_many(batch[:2])
            return

    sink, letters = CollectSink(), DeadLetterList()
    event = await run_graph(chain(source_of(range(5)), leaves, sink), dead_letters=letters)
    assert sink.items == [0, 1]
    assert [letter.payload for letter in letters.letters] == [2, 3, 4]
    assert event.figures.ledger_holds


async def test_the_one_item_in_the_hands_of_a_sink_that_returns_is_written() -> None:
    """Item by item, a sink that has taken its last one and returns has written it."""
    taken = list[int]()

    async def leaves(ends: WiredEnds) -> None:
        taken.append(await ends.receiver.recv())

    event = await run_graph(chain(source_of([1]), leaves))
    assert (taken, event.figures.ledger.written, event.figures.ledger.dead_lettered) == ([1], 1, 0)


# A gone reader is not the items' fault.


async def test_items_of_a_writer_whose_reader_has_gone_are_undelivered_and_no_pills() -> None:
    """Even where one delivery makes a pill, what a dead end stops is told as undelivered."""

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


# A panic is told as one, whatever else happens in that moment.


async def test_a_panic_is_not_hidden_by_a_limit_that_is_exceeded_in_the_same_batch() -> None:
    """A bug right after the reject that is one too many: Panicked, and the culprit is what the bug held."""

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


async def test_a_sources_limits_are_looked_at_whenever_it_emits() -> None:
    """Three rejected in a row are more than the two that it may: the budget is exhausted at once."""

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


# Stragglers, and our own failures.


async def stubborn_until(ends: WiredEnds, released: asyncio.Event) -> None:
    while not released.is_set():
        try:
            await released.wait()
        except asyncio.CancelledError:
            ends.count("cancellations")


async def test_what_a_straggler_keeps_is_not_closed_under_it() -> None:
    """It may still use it: the resource stays open, and the run says so."""
    clock, released, closed, closed_while_it_ran = ManualClock(), asyncio.Event(), list[str](), list[str]()

    async def stubborn(ends: WiredEnds) -> None:
        ends.keep("file", lambda: "file", closed.append)
        await stubborn_until(ends, released)

    async def stop(built: BuiltGraph) -> None:
        await settle()
        built.request_shutdown("asked")
        await let_pass(built, clock)
        closed_while_it_ran.extend(closed)
        released.set()

    event = await run_graph(chain(source_of([1]), stubborn), clock=clock, during=stop)
    assert closed_while_it_ran == []
    assert event.figures.problems == ("what 'sink' kept was not closed: it has not stopped",)


async def test_the_books_balance_although_a_straggler_has_passed_on_what_it_never_acknowledged() -> None:
    """The item is written downstream and buried with the straggler: repeated, and told so."""
    clock, released = ManualClock(), asyncio.Event()

    async def stubborn(ends: WiredEnds) -> None:
        await ends.sender.send(await ends.receiver.recv())
        await stubborn_until(ends, released)

    async def stop(built: BuiltGraph) -> None:
        await settle()
        built.request_shutdown("asked")
        await let_pass(built, clock)
        released.set()

    event = await run_graph(chain(source_of([1]), stubborn, CollectSink()), clock=clock, during=stop)
    assert event.figures.ledger_holds
    assert (event.figures.ledger.repeated, event.figures.ledger.in_flight) == (1, 0)
    assert [straggler.operator for straggler in event.figures.stragglers] == ["op-1"]


async def test_nobody_is_a_straggler_for_having_something_in_hand_for_one() -> None:
    """A source that is aborted before a sink that will not stop is done at once: what it had in hand is buried."""
    clock, released, letters = ManualClock(), asyncio.Event(), DeadLetterList()

    async def stubborn(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        await stubborn_until(ends, released)

    async def stop(built: BuiltGraph) -> None:
        await settle()
        built.request_shutdown("asked")
        built.request_shutdown("at once")
        await settle()
        state = {status.name: status.state for status in built.status().operators}
        await let_pass(built, clock)
        released.set()
        assert state == {"source": "aborted", "sink": "running"}

    graph = chain(source_of(range(10)), stubborn, capacity=2)
    event = await run_graph(graph, clock=clock, during=stop, dead_letters=letters)
    assert [straggler.operator for straggler in event.figures.stragglers] == ["sink"]
    assert sorted(letter.payload for letter in letters.letters) == list(range(10))
    assert event.figures.ledger_holds


async def test_what_is_told_to_stop_is_not_told_again_for_making_no_progress() -> None:
    """Aborted for the shutdown, an operator that is slow to stop is cancelled once, and is Aborted, not Stalled."""
    clock, cancelled = ManualClock(), list[float]()

    async def slow_to_stop(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(ends.clock.monotonic())
            await sleep(ends.clock, 8)
            raise

    graph = OperatorGraph("slow to stop")
    sink = graph.add_sink("sink", slow_to_stop, progress_timeout=3 * SECOND)
    graph.connect(graph.add_source("source", source_of([1])), sink, 8)

    async def stop(built: BuiltGraph) -> None:
        await settle()
        built.request_shutdown("asked")
        built.request_shutdown("at once")
        await let_pass(built, clock, 0.5)

    policy = SupervisionPolicy(patience=20 * SECOND)
    event = await run_graph(graph, clock=clock, during=stop, policy=policy)
    assert cancelled == [0.0]
    assert event.figures.exits["sink"] == task_exit.Aborted("asked")


def test_nothing_is_left_running_when_the_supervision_itself_fails() -> None:
    """A bug of ours is raised, after every operator has been told to stop and has."""

    def bug(*_: object, **__: object) -> None:
        raise RuntimeError("a bug of ours")

    async def scenario() -> None:
        live = ListSource([1], UntilShutdown())
        with patch.object(Supervisor, "decide", bug), pytest.raises(RuntimeError, match="a bug of ours"):
            await (
                chain(live, map_items(FailAt({1: OperatorError("away")})), CollectSink()).build(clock=LoopClock()).run()
            )

    run_schedule(0, scenario)  # raises LeakedTasks if a task still runs


async def test_no_thread_of_the_pool_outlives_the_run() -> None:
    """The blocking functions' threads end with it."""

    async def blocking(ends: WiredEnds) -> None:
        async for item in ends.receiver:
            await ends.run_blocking(str, item)

    await run_graph(chain(source_of([1, 2]), blocking, name="pool-of-this-test"))
    left = [thread for thread in threading.enumerate() if thread.name.startswith("pool-of-this-test")]
    for thread in left:
        thread.join(20)
    assert not any(thread.is_alive() for thread in left)


async def test_a_source_tells_how_long_ago_its_last_item_came() -> None:
    """Seven seconds after the last item its idle time is seven seconds; a sink has none."""
    clock = ManualClock()

    async def look(built: BuiltGraph) -> None:
        await clock.advance_when_idle(7)
        source, sink = built.status().operators
        assert (source.idle_s, sink.idle_s) == (7, None)
        built.request_shutdown("enough")

    await run_graph(chain(ListSource([1], UntilShutdown()), CollectSink()), clock=clock, during=look)
