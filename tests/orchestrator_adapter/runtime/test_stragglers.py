"""Stragglers, failures of the supervision, and what remains after a run."""

from __future__ import annotations

import asyncio
import threading
from datetime import timedelta
from unittest.mock import patch

import pytest

from orchestrator_adapter import (
    BuiltGraph,
    DeadLetterList,
    OperatorError,
    OperatorGraph,
    SupervisionPolicy,
    WiredEnds,
    map_items,
    source_of,
)
from orchestrator_adapter.primitives.clock import sleep
from orchestrator_adapter.supervision import task_exit
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
from tests.orchestrator_adapter.runtime.scenes import let_time_pass

pytestmark = pytest.mark.usefixtures("_many_schedules")

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)


# Stragglers, and failures of the supervision.


async def ignore_cancellation_until(ends: WiredEnds, released: asyncio.Event) -> None:
    while not released.is_set():
        try:
            await released.wait()
        except asyncio.CancelledError:
            ends.count("cancellations")


async def test_the_kept_resources_of_a_straggler_are_not_closed() -> None:
    """It may still use them: they stay open, and the run reports it."""
    clock, released, closed, closed_while_it_ran = ManualClock(), asyncio.Event(), list[str](), list[str]()

    async def ignores_cancellation(ends: WiredEnds) -> None:
        ends.keep("file", lambda: "file", closed.append)
        await ignore_cancellation_until(ends, released)

    async def stop(built: BuiltGraph) -> None:
        await settle()
        built.request_shutdown("asked")
        await let_time_pass(built, clock)
        closed_while_it_ran.extend(closed)
        released.set()

    event = await run_graph(chain(source_of([1]), ignores_cancellation), clock=clock, during=stop)
    assert closed_while_it_ran == []
    assert event.figures.problems == ("what 'sink' kept was not closed: it has not stopped",)


async def test_the_ledger_balances_with_a_straggler_that_sent_an_unacknowledged_item() -> None:
    """The item is written downstream and dead-lettered with the straggler: it counts as repeated."""
    clock, released = ManualClock(), asyncio.Event()

    async def ignores_cancellation(ends: WiredEnds) -> None:
        await ends.sender.send(await ends.receiver.recv())
        await ignore_cancellation_until(ends, released)

    async def stop(built: BuiltGraph) -> None:
        await settle()
        built.request_shutdown("asked")
        await let_time_pass(built, clock)
        released.set()

    event = await run_graph(chain(source_of([1]), ignores_cancellation, CollectSink()), clock=clock, during=stop)
    assert event.figures.ledger_holds
    assert (event.figures.ledger.repeated, event.figures.ledger.in_flight) == (1, 0)
    assert [straggler.operator for straggler in event.figures.stragglers] == ["op-1"]


async def test_an_outbox_for_a_straggler_does_not_make_its_writer_a_straggler() -> None:
    """An aborted source with a sink that does not stop ends at once, and its outbox is dead-lettered."""
    clock, released, letters = ManualClock(), asyncio.Event(), DeadLetterList()

    async def ignores_cancellation(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        await ignore_cancellation_until(ends, released)

    async def stop(built: BuiltGraph) -> None:
        await settle()
        built.request_shutdown("asked")
        built.request_shutdown("at once")
        await settle()
        state = {status.name: status.state for status in built.status().operators}
        await let_time_pass(built, clock)
        released.set()
        assert state == {"source": "aborted", "sink": "running"}

    graph = chain(source_of(range(10)), ignores_cancellation, capacity=2)
    event = await run_graph(graph, clock=clock, during=stop, dead_letters=letters)
    assert [straggler.operator for straggler in event.figures.stragglers] == ["sink"]
    assert sorted(letter.payload for letter in letters.letters) == list(range(10))
    assert event.figures.ledger_holds


async def test_an_aborted_operator_is_not_aborted_again_for_making_no_progress() -> None:
    """An operator that is slow to stop at the abort is cancelled once, and counts as Aborted, not as Stalled."""
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
        await let_time_pass(built, clock, 0.5)

    policy = SupervisionPolicy(patience=20 * SECOND)
    event = await run_graph(graph, clock=clock, during=stop, policy=policy)
    assert cancelled == [0.0]
    assert event.figures.exits["sink"] == task_exit.Aborted("asked")


def test_no_task_is_leaked_when_the_supervision_fails() -> None:
    """A bug of the supervisor is raised after every operator was aborted and has ended."""

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
    """The threads for blocking functions end with the run."""

    async def blocking(ends: WiredEnds) -> None:
        async for item in ends.receiver:
            await ends.run_blocking(str, item)

    await run_graph(chain(source_of([1, 2]), blocking, name="pool-of-this-test"))
    left = [thread for thread in threading.enumerate() if thread.name.startswith("pool-of-this-test")]
    for thread in left:
        thread.join(20)
    assert not any(thread.is_alive() for thread in left)


async def test_the_status_has_the_time_since_the_last_item_of_a_source() -> None:
    """Seven seconds after the last item its idle time is seven seconds. A sink has no idle time."""
    clock = ManualClock()

    async def check(built: BuiltGraph) -> None:
        await clock.advance_when_idle(7)
        source, sink = built.status().operators
        assert (source.idle_s, sink.idle_s) == (7, None)
        built.request_shutdown("enough")

    await run_graph(chain(ListSource([1], UntilShutdown()), CollectSink()), clock=clock, during=check)
