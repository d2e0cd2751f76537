"""A drain: outboxes are delivered, and backoffs are cut short."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta

import pytest

from orchestrator_adapter import (
    Backoff,
    BuiltGraph,
    DeadLetterList,
    OperatorGraph,
    RestartPolicy,
    SupervisionHooks,
    SupervisionPolicy,
    WiredEnds,
    source_of,
)
from orchestrator_adapter.primitives.clock import sleep
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.testing import (
    CollectSink,
    LoopClock,
    ManualClock,
    chain,
    run_graph,
    run_schedule,
    settle,
)
from tests.orchestrator_adapter.runtime.scenes import let_time_pass

pytestmark = pytest.mark.usefixtures("_many_schedules")

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


# The outbox of an operator that has ended is delivered.


class Cable(Iterator[int]):
    """Yields 0 … 99, then raises at every call."""

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
def test_the_outbox_of_a_source_that_has_ended_for_good_is_delivered(policy: RestartPolicy, outcome: type) -> None:
    """A source that will not run again has a hundred items for an edge of sixteen: all hundred are written."""

    async def scenario() -> None:
        sink = CollectSink()
        graph = OperatorGraph("outboxes")
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


def test_what_cannot_be_delivered_before_the_abort_is_dead_lettered() -> None:
    """If the reader takes nothing, the delivery ends with the grace period, and every item is dead-lettered."""

    async def hangs(ends: WiredEnds) -> None:
        await ends.receiver.recv_many()
        await asyncio.Event().wait()

    async def scenario() -> None:
        letters = DeadLetterList()
        graph = OperatorGraph("hangs")
        source = graph.add_source("source", source_of(Cable()), restart_policy=RestartPolicy.never())
        graph.connect(source, graph.add_sink("sink", hangs), 16)
        event = await graph.build(clock=LoopClock(), dead_letters=letters).run()
        assert isinstance(event, events.BudgetExhausted)
        assert sorted(letter.payload for letter in letters.letters) == list(range(100))
        assert not event.figures.stragglers
        assert event.figures.ledger_holds

    for seed in range(50):
        run_schedule(seed, scenario)


async def test_a_reader_that_ends_does_not_end_the_delivery_to_another() -> None:
    """A fan-out has ended with items for two readers in its outboxes: one panics, and the other receives all its items."""

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


async def test_offered_items_are_delivered_without_a_flush() -> None:
    """An operator offers ten items to an edge of one and returns: all arrive before the end of the stream."""

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


async def test_the_outbox_of_an_earlier_instance_is_delivered_before_the_next_one_starts() -> None:
    """The next instance of a source emits nothing yet: the outbox of the first one is delivered."""
    sink, clock = CollectSink(), ManualClock()

    async def source(ends: WiredEnds) -> None:
        if ends.instance == 1:
            ends.sender.offer(range(10))
            raise OSError("cable")
        await ends.shutdown.wait()

    async def check(built: BuiltGraph) -> None:
        await clock.advance_when_idle(1)
        assert sink.items == list(range(10))
        built.request_shutdown("enough")

    await run_graph(chain(source, sink, capacity=3), clock=clock, during=check)


# Backoffs in a drain.


async def test_a_source_that_waits_for_its_restart_is_not_restarted_in_a_drain() -> None:
    """It is not restarted, even if the drain takes longer than the backoff."""
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
        await let_time_pass(built, clock)

    event = await run_graph(
        graph,
        clock=clock,
        during=stop,
        policy=SupervisionPolicy(grace=HOUR),
        hooks=SupervisionHooks(on_spawn=lambda record: spawned.append(record.operator)),
    )
    assert spawned == ["source", "sink"]
    assert event.figures.ledger.written == 3


async def test_a_request_in_a_restart_hook_works() -> None:
    """A source whose restart was just decided is not restarted, and the run does not wait for it."""
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


async def test_a_failure_in_the_drain_is_retried_after_a_short_backoff() -> None:
    """With a backoff of an hour and ten seconds of grace, ten attempts are made, one per second."""
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
        await let_time_pass(built, clock, 0.25)

    event = await run_graph(graph, clock=clock, during=stop, policy=SupervisionPolicy(grace=10 * SECOND))
    assert tries == [float(second) for second in range(len(tries))]
    assert 10 <= len(tries) <= 11
    assert event.figures.ledger.dead_lettered == 1


async def test_no_restart_follows_the_abort() -> None:
    """An operator that waits for its restart when the grace period ends is not restarted: its items are dead-lettered."""
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
        await let_time_pass(built, clock, 0.1)

    event = await run_graph(graph, clock=clock, during=stop)
    assert event.figures.elapsed_s < 7
    assert event.figures.ledger.dead_lettered == 3
    assert event.figures.restarts["sink"].total == 1


async def test_the_backoff_starts_over_after_a_healthy_run() -> None:
    """The supervisor receives the uptime of the instance: after a healthy hour the second backoff is as short as a first."""
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
    event = await run_graph(graph, clock=clock, during=lambda built: let_time_pass(built, clock, 60.0))
    delays = [restart.backoff_s for restart in event.figures.restarts["source"].recent]
    assert len(delays) == 2
    assert all(1.0 <= delay <= 3.0 for delay in delays)
