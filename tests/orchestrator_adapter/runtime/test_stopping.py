from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from orchestrator_adapter.operators.ends import WiredEnds
from orchestrator_adapter.operators.from_functions import map_items, source_of
from orchestrator_adapter.primitives.errors import DuplicateRun
from orchestrator_adapter.runtime.built_graph import SupervisionPolicy
from orchestrator_adapter.storage.dead_letter import DeadLetterList
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.supervision.events import SupervisionHooks
from orchestrator_adapter.testing import CollectSink, ManualClock, chain, run_graph, settle
from tests.orchestrator_adapter.runtime.scenes import holds, live, shutting_down, takes_one_batch


async def test_a_shutdown_drains_everything() -> None:
    """After the request nothing new is ingested, every ingested item is written, and the event has the reason."""
    sink = CollectSink()
    event = await run_graph(chain(live, map_items(lambda n: n), sink, capacity=4), during=shutting_down("SIGTERM"))
    assert isinstance(event, events.ShutDown)
    assert event.reason == "SIGTERM"
    assert sink.items == list(range(event.figures.ledger.ingested))
    assert event.figures.undelivered == 0
    assert holds(event)


async def test_what_cannot_drain_within_the_grace_period_is_aborted_and_dead_lettered() -> None:
    """At the end of the grace period a sink that hangs is aborted, and all its items are dead-lettered."""
    clock, letters = ManualClock(), DeadLetterList()
    built = chain(source_of("abcdef"), takes_one_batch, capacity=4).build(clock=clock, dead_letters=letters)
    running = asyncio.create_task(built.run(SupervisionPolicy(grace=timedelta(seconds=5))))
    await settle()
    built.request_shutdown("test")
    await clock.advance_when_idle(4.999)
    assert not running.done()
    await clock.advance_when_idle(0.001)
    event = await running
    assert isinstance(event, events.ShutDown)
    assert event.figures.exits["sink"] == task_exit.Aborted("test")
    assert event.figures.stragglers == ()
    assert sorted(letter.payload for letter in letters.letters) == list("abcdef")
    assert event.figures.undelivered == 6
    assert holds(event)


async def test_a_second_request_aborts_at_once() -> None:
    """No time passes between the second request and the end. An empty reason is valid."""
    event = await run_graph(
        chain(live, takes_one_batch, capacity=4), clock=ManualClock(), during=shutting_down("", "again")
    )
    assert isinstance(event, events.ShutDown)
    assert event.reason == ""
    assert event.figures.exits["sink"] == task_exit.Aborted("")
    assert event.figures.elapsed_s == 0
    assert holds(event)


async def test_a_panic_in_the_turn_of_the_abort_is_not_lost() -> None:
    """If an operator panics in the turn in which the abort is due, the event is a panic, not a shutdown."""
    release = asyncio.Event()

    async def late(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        await release.wait()
        raise KeyError("late")

    built = chain(source_of("a"), late).build(clock=ManualClock())
    running = asyncio.create_task(built.run())
    await settle()
    built.request_shutdown("first")
    await settle()
    # In this order: the supervisor is woken, `late` raises, the supervisor runs, its exit callback is called.
    asyncio.get_running_loop().call_soon(built.request_shutdown, "second")
    release.set()
    event = await running
    assert isinstance(event, events.Panicked)
    assert event.operator == "sink"
    assert holds(event)


async def test_a_straggler_is_named_with_its_stack() -> None:
    """A sink that swallows its cancellation does not count as aborted: after the patience it is named with its stack."""
    release = asyncio.Event()

    async def ignores_cancellation(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    clock = ManualClock()
    built = chain(source_of("abc"), ignores_cancellation).build(clock=clock)
    running = asyncio.create_task(built.run())
    await settle()
    built.request_shutdown("test")
    await clock.advance_when_idle(5)
    await clock.advance_when_idle(0.999)
    assert not running.done()
    await clock.advance_when_idle(0.001)
    event = await running
    assert isinstance(event, events.ShutDown)
    assert [(straggler.operator, straggler.instance) for straggler in event.figures.stragglers] == [("sink", 1)]
    assert "await release.wait()" in event.figures.stragglers[0].stack
    assert "sink" not in event.figures.exits
    assert event.figures.undelivered == 3
    assert holds(event)
    release.set()
    await settle()


async def test_a_request_before_the_run_ingests_nothing_and_one_after_it_has_no_effect() -> None:
    """With a request before the run, the graph starts, and drains with its whole grace. After the end no hook is called."""
    seen: list[Any] = []
    clock = ManualClock()
    built = chain(live, CollectSink()).build(clock=clock)
    built.request_shutdown("early")
    clock.advance(3600)
    event = await built.run(
        SupervisionPolicy(grace=timedelta(seconds=60)), hooks=SupervisionHooks(on_shutdown=seen.append)
    )
    assert isinstance(event, events.ShutDown)
    assert event.reason == "early"
    assert event.figures.ledger.ingested == 0
    built.request_shutdown("late")
    assert seen == [events.ShuttingDown(1, "early", 60.0)]


async def test_cancelling_run_drains_leaks_no_task_and_is_raised() -> None:
    """The run ends as after a request, the event is set, and only then the cancellation is raised."""
    before = asyncio.all_tasks()
    sink = CollectSink()
    built = chain(live, map_items(lambda n: n), sink, capacity=4).build()
    running = asyncio.create_task(built.run())
    await settle()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert asyncio.all_tasks() == before
    assert isinstance(built.event, events.ShutDown)
    assert sink.items == list(range(built.event.figures.ledger.ingested))
    assert holds(built.event)


async def test_cancelling_run_twice_aborts() -> None:
    """A second cancellation starts the abort. No task is leaked."""
    before = asyncio.all_tasks()
    built = chain(live, takes_one_batch, capacity=4).build(clock=ManualClock())
    running = asyncio.create_task(built.run())
    for _ in range(2):
        await settle()
        running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert asyncio.all_tasks() == before
    assert built.event is not None
    assert holds(built.event)


async def test_a_graph_runs_once() -> None:
    """A second ``run`` raises, with the graph's name, while the first one runs and after it."""
    built = chain(source_of("a"), CollectSink(), name="once").build()
    running = asyncio.create_task(built.run())
    await asyncio.sleep(0)
    with pytest.raises(DuplicateRun, match=r"^graph 'once' has run already; build\(\) it again$"):
        await built.run()
    assert isinstance(await running, events.AllOk)
    with pytest.raises(DuplicateRun):
        await built.run()
