from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_adapter.channels.channel import FlowPolicy
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.operators.ends import Factory, WiredEnds
from orchestrator_adapter.operators.from_functions import for_each, map_batches, map_items, source_of
from orchestrator_adapter.primitives.errors import DuplicateRun, OperatorError
from orchestrator_adapter.runtime.built_graph import BuiltGraph, SupervisionPolicy
from orchestrator_adapter.storage.dead_letter import DeadLetter, DeadLetterKind, DeadLetterList
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.supervision.events import SupervisionHooks, SupervisorEvent
from orchestrator_adapter.supervision.restart import Backoff, RestartPolicy
from orchestrator_adapter.testing import CollectSink, FailAt, ManualClock, chain, run_graph, settle
from tests.helpers.log_lines import event_of
from tests.helpers.sizes import examples

AWAY = OperatorError("away")


def three(
    source: Factory,
    operator: Factory,
    sink: Factory,
    *,
    policy: RestartPolicy | None = None,
    capacity: int = 64,
    max_deliveries: int = 2,
    expanding: bool = False,
) -> OperatorGraph:
    """``source -> op -> sink`` with the operator's options in the test's hands."""
    graph = OperatorGraph("three")
    first = graph.add_source("source", source)
    middle = graph.add_operator(
        "op", operator, restart_policy=policy, max_deliveries=max_deliveries, expanding=expanding
    )
    graph.connect(first, middle, capacity)
    graph.connect(middle, graph.add_sink("sink", sink), capacity)
    return graph


def shutting_down(*requests: str) -> Any:
    async def during(built: BuiltGraph) -> None:
        await settle()
        for request in requests:
            built.request_shutdown(request)
            await settle()

    return during


async def live(ends: WiredEnds) -> None:
    """A source that emits 0, 1, 2 … until it is asked to stop."""
    number = 0
    while not ends.shutdown.is_set:
        await ends.emit([number])
        number += 1
        await asyncio.sleep(0)


async def deaf(ends: WiredEnds) -> None:
    """An operator or sink that takes one batch, and then waits for something that never comes."""
    await ends.receiver.recv_many()
    await asyncio.Event().wait()


def double(item: int) -> int:
    return 2 * item


def holds(event: SupervisorEvent) -> bool:
    figures = event.figures
    return figures.ledger_holds and figures.ledger.in_flight == 0


# Ending well.


async def test_a_stream_that_ends_is_all_ok() -> None:
    """Everything arrives once, in order; every operator exited ``Ok`` and the ledger holds."""
    sink = CollectSink()
    event = await run_graph(chain(source_of(range(1_000)), map_items(double), sink))
    assert isinstance(event, events.AllOk)
    assert sink.items == list(range(0, 2_000, 2))
    assert event.figures.exits == dict.fromkeys(("source", "op-1", "sink"), task_exit.Ok())
    assert event.figures.ledger.written == event.figures.ledger.ingested == 1_000
    assert holds(event)


async def test_backpressure_reaches_the_source() -> None:
    """With a sink that takes nothing more, the source has emitted no more than the edges hold."""
    built = chain(live, map_items(lambda n: n), deaf, capacity=4).build(clock=ManualClock())
    running = asyncio.create_task(built.run())
    await settle()
    assert built.ledger().ingested <= 4 + 4 + 4 + 1  # two edges, a batch in hand between them, and one at the source
    built.request_shutdown("enough")
    built.request_shutdown("at once")
    assert holds(await running)


async def test_a_diamond_delivers_everything_twice_and_books_the_copies() -> None:
    """Broadcast over two branches and merged again: two of each, one of them derived."""
    graph, sink = OperatorGraph("diamond"), CollectSink()
    split, join = graph.add_fan_out("split"), graph.add_fan_in("join")
    graph.connect(graph.add_source("source", source_of(range(100))), split, 8)
    for name in ("left", "right"):
        branch = graph.add_operator(name, map_items(lambda n: n))
        graph.connect(split, branch, 3)
        graph.connect(branch, join, 5)
    graph.connect(join, graph.add_sink("sink", sink), 2)
    event = await run_graph(graph)
    assert sorted(sink.items) == sorted([*range(100), *range(100)])
    assert event.figures.ledger.derived == 100
    assert holds(event)


# Restarts.


async def test_after_an_error_the_leased_items_come_again_in_order_one_at_a_time() -> None:
    """A batch operator that fails once is given the whole batch again singly; nothing is lost or written twice."""
    batches: list[list[int]] = []

    def work(batch: list[int]) -> list[int]:
        batches.append(batch)
        if len(batches) == 1:
            raise AWAY
        return batch

    sink = CollectSink()
    event = await run_graph(three(source_of(range(5)), map_batches(work), sink))
    assert isinstance(event, events.AllOk)
    assert batches == [[0, 1, 2, 3, 4], [0], [1], [2], [3], [4]]
    assert sink.items == [0, 1, 2, 3, 4]
    assert event.figures.restarts["op"].total == 1
    assert holds(event)


async def test_outputs_that_left_before_the_failure_are_booked_as_repeated() -> None:
    """An operator that sends and then fails before it acknowledges sends again: two written, one of them repeated."""
    attempts: list[int] = []

    async def hasty(ends: WiredEnds) -> None:
        async for item in ends.receiver:
            await ends.sender.send(item)
            attempts.append(item)
            if len(attempts) == 1:
                raise AWAY

    sink = CollectSink()
    event = await run_graph(three(source_of(["x"]), hasty, sink))
    assert sink.items == ["x", "x"]
    assert (event.figures.ledger.repeated, event.figures.ledger.written) == (1, 2)
    assert holds(event)


async def test_a_poison_pill_is_dead_lettered_with_its_history_for_the_price_of_one_restart() -> None:
    """An item that fails twice goes to the dead letters; the second restart is not charged; the rest goes through."""

    def work(item: int) -> int:
        if item == 3:
            raise OperatorError("cannot digest 3")
        return item

    sink, letters = CollectSink(), DeadLetterList()
    policy = RestartPolicy.bounded(1, timedelta(seconds=60))
    event = await run_graph(
        three(source_of(range(6)), map_items(work), sink, policy=policy), dead_letters=letters, clock=ManualClock()
    )
    assert isinstance(event, events.AllOk)
    assert sink.items == [0, 1, 2, 4, 5]
    assert [restart.charged for restart in event.figures.restarts["op"].recent] == [True, False]
    assert [(letter.operator, letter.kind, letter.payload, letter.attempts) for letter in letters.letters] == [
        ("op", DeadLetterKind.POISON_PILL, 3, 2)
    ]
    assert letters.letters[0].history == ("OperatorError: cannot digest 3",) * 2
    assert event.figures.ledger.dead_lettered == 1
    assert holds(event)


async def test_a_pill_that_filled_its_edge_makes_room_for_the_next_item() -> None:
    """On an edge of one, quarantining the pill wakes the writer that waits for its place: the stream goes on."""
    sink = CollectSink()
    event = await run_graph(
        three(source_of("abc", batch=1), map_items(FailAt({1: AWAY, 2: AWAY})), sink, capacity=1),
        limit=timedelta(seconds=10),
    )
    assert isinstance(event, events.AllOk)
    assert sink.items == ["b", "c"]
    assert holds(event)


async def test_a_flood_of_poison_pills_exhausts_the_budget() -> None:
    """When every item is poison, a budget of three admits three pills and then the graph comes down."""
    graph = three(
        source_of(range(100)),
        map_items(FailAt(dict.fromkeys(range(1, 999), AWAY))),
        CollectSink(),
        policy=RestartPolicy.bounded(3, timedelta(seconds=60)),
    )
    letters = DeadLetterList()
    event = await run_graph(graph, clock=ManualClock(), dead_letters=letters)
    assert isinstance(event, events.BudgetExhausted)
    assert sum(letter.kind is DeadLetterKind.POISON_PILL for letter in letters.letters) <= 4
    assert event.figures.ledger.dead_lettered == 100
    assert holds(event)


async def test_an_exhausted_budget_brings_the_graph_down() -> None:
    """The event names the operator, the last error with its causes, and the restarts before it."""

    async def flaky(ends: WiredEnds) -> None:
        raise OperatorError("archive away") from ConnectionRefusedError("111")

    sink = CollectSink()
    event = await run_graph(three(live, flaky, sink), clock=ManualClock())
    assert isinstance(event, events.BudgetExhausted)
    assert event.operator == "op"
    assert event.chain == ("OperatorError: archive away", "ConnectionRefusedError: 111")
    assert event.figures.restarts["op"].total == 5
    assert holds(event)


async def test_a_backoff_is_waited_out_on_the_graphs_clock() -> None:
    """With a backoff of one second the second instance starts at one second and not before."""
    calls = FailAt({1: AWAY})
    policy = RestartPolicy.always(backoff=Backoff(timedelta(seconds=1), timedelta(seconds=1)))
    clock, sink = ManualClock(), CollectSink()
    built = three(source_of("ab"), map_items(calls), sink, policy=policy).build(clock=clock)
    running = asyncio.create_task(built.run())
    await clock.advance_when_idle(0.999)
    assert {status.name: status.state for status in built.status().operators}["op"] == "restarting"
    assert not running.done()
    await clock.advance_when_idle(0.001)
    assert isinstance(await running, events.AllOk)
    assert sink.items == ["a", "b"]


async def test_a_shutdown_does_not_wait_out_a_backoff() -> None:
    """An operator that waits an hour for its restart is restarted at once to drain; a source stays down."""
    hour = RestartPolicy.always(backoff=Backoff(timedelta(hours=1), timedelta(hours=1)))
    sink = CollectSink()
    event = await run_graph(
        three(source_of("ab"), map_items(FailAt({1: AWAY})), sink, policy=hour),
        clock=ManualClock(),
        during=shutting_down("test"),
    )
    assert isinstance(event, events.ShutDown)
    assert sink.items == ["a", "b"]
    assert holds(event)


async def test_what_a_failed_source_had_in_hand_is_delivered_by_its_next_instance() -> None:
    """A source that fails while its edge is full has lost nothing: its next instance delivers that first."""

    async def source(ends: WiredEnds) -> None:
        if ends.instance == 1:
            ends.sender.offer(list(range(10)))
            raise AWAY
        await ends.emit(range(10, 20))

    sink = CollectSink()
    event = await run_graph(chain(source, sink, capacity=3))
    assert sink.items == list(range(20))
    assert holds(event)


async def test_what_a_source_keeps_outlives_its_instances_and_is_closed_in_reverse_at_the_end() -> None:
    """Three instances use one socket; socket and file are closed once, the last made first, after everything ended."""
    made: list[str] = []
    closed: list[str] = []

    def open_socket() -> str:
        made.append("socket")
        return "socket"

    async def source(ends: WiredEnds) -> None:
        ends.keep("socket", open_socket, closed.append)
        ends.keep("file", lambda: "file", closed.append)
        await ends.emit([ends.instance])
        if ends.instance < 3:
            raise AWAY
        assert closed == []

    sink = CollectSink()
    assert isinstance(await run_graph(chain(source, sink)), events.AllOk)
    assert sink.items == [1, 2, 3]
    assert (made, closed) == (["socket"], ["file", "socket"])


async def test_a_resource_that_cannot_be_closed_is_a_problem_and_no_failure() -> None:
    """The event is what it would have been, and says in words what went wrong."""

    def refuse(_: str) -> None:
        raise OSError("busy")

    async def source(ends: WiredEnds) -> None:
        ends.keep("socket", lambda: "socket", refuse)

    event = await run_graph(chain(source, CollectSink()))
    assert isinstance(event, events.AllOk)
    assert event.figures.problems == ("closing what 'source' kept: OSError: busy",)


# Panics.


class Unprintable:
    def __repr__(self) -> str:
        raise ZeroDivisionError


async def test_a_panic_is_never_restarted_and_its_leased_items_are_named() -> None:
    """The first bug brings the graph down; what was on lease is dead-lettered as its doing and named in the event."""

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


async def test_an_item_that_cannot_be_printed_does_not_bring_the_supervisor_down() -> None:
    """A leased item whose ``repr`` raises is named as far as possible, and the run ends as any other panic."""

    async def buggy(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        raise KeyError

    event = await run_graph(three(source_of([Unprintable()]), buggy, CollectSink()))
    assert isinstance(event, events.Panicked)
    assert event.leased == ("<Unprintable, whose repr raised ZeroDivisionError>",)
    assert holds(event)


async def test_the_first_verdict_stands() -> None:
    """A panic that follows from the teardown does not replace the failure that caused it."""

    async def flaky(ends: WiredEnds) -> None:
        raise AWAY

    async def sulking(ends: WiredEnds) -> None:
        await ends.receiver.recv_many()
        raise KeyError("sulk")

    event = await run_graph(three(live, flaky, sulking, policy=RestartPolicy.never()))
    assert isinstance(event, events.BudgetExhausted)
    assert isinstance(event.figures.exits["sink"], task_exit.Panicked)


# Readers that leave.


async def test_a_reader_that_leaves_early_ends_its_writer_at_once() -> None:
    """A sink that returns while data still comes makes its writer fail by name, without one useless restart."""

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


# Shutting down.


async def test_a_shutdown_drains_everything() -> None:
    """After the request nothing new is taken in, all that was is written, and the event says who asked."""
    sink = CollectSink()
    event = await run_graph(chain(live, map_items(lambda n: n), sink, capacity=4), during=shutting_down("SIGTERM"))
    assert isinstance(event, events.ShutDown)
    assert event.reason == "SIGTERM"
    assert sink.items == list(range(event.figures.ledger.ingested))
    assert event.figures.undelivered == 0
    assert holds(event)


async def test_what_cannot_drain_within_the_grace_period_is_aborted_and_its_items_are_kept() -> None:
    """At the end of the grace period a deaf sink is aborted; everything it held is in the dead letters."""
    clock, letters = ManualClock(), DeadLetterList()
    built = chain(source_of("abcdef"), deaf, capacity=4).build(clock=clock, dead_letters=letters)
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
    """No time passes between the second request and the end; an empty reason is a reason like any other."""
    event = await run_graph(chain(live, deaf, capacity=4), clock=ManualClock(), during=shutting_down("", "again"))
    assert isinstance(event, events.ShutDown)
    assert event.reason == ""
    assert event.figures.exits["sink"] == task_exit.Aborted("")
    assert event.figures.elapsed_s == 0
    assert holds(event)


async def test_a_failure_in_the_very_turn_of_the_abort_is_not_lost() -> None:
    """An operator that panics in the same turn in which the abort falls due is told as a panic, not as shut down."""
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
    # In this order: the supervisor is woken, then `late` raises, then the supervisor runs, then it is told of the exit.
    asyncio.get_running_loop().call_soon(built.request_shutdown, "second")
    release.set()
    event = await running
    assert isinstance(event, events.Panicked)
    assert event.operator == "sink"
    assert holds(event)


async def test_a_straggler_is_named_with_its_stack() -> None:
    """A sink that swallows its cancellation is not called aborted: it is named, with where it hangs, after the patience."""
    release = asyncio.Event()

    async def stubborn(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    clock = ManualClock()
    built = chain(source_of("abc"), stubborn).build(clock=clock)
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


async def test_a_request_before_the_run_takes_nothing_in_and_one_after_it_does_nothing() -> None:
    """Asked to stop before it started, the graph starts and ends, with all its grace; asked after its end, nothing is told."""
    told: list[Any] = []
    clock = ManualClock()
    built = chain(live, CollectSink()).build(clock=clock)
    built.request_shutdown("early")
    clock.advance(3600)
    event = await built.run(
        SupervisionPolicy(grace=timedelta(seconds=60)), hooks=SupervisionHooks(on_shutdown=told.append)
    )
    assert isinstance(event, events.ShutDown)
    assert event.reason == "early"
    assert event.figures.ledger.ingested == 0
    built.request_shutdown("late")
    assert told == [events.ShuttingDown(1, "early", 60.0)]


async def test_cancelling_run_drains_leaves_no_task_and_is_passed_on() -> None:
    """The run ends as it would have, the event is kept, and only then the cancellation goes on."""
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
    """A second cancellation goes to the abort; no task is left behind."""
    before = asyncio.all_tasks()
    built = chain(live, deaf, capacity=4).build(clock=ManualClock())
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
    """A second ``run`` is refused, with the graph's name, while the first runs and after it."""
    built = chain(source_of("a"), CollectSink(), name="once").build()
    running = asyncio.create_task(built.run())
    await asyncio.sleep(0)
    with pytest.raises(DuplicateRun, match=r"^graph 'once' has run already; build\(\) it again$"):
        await built.run()
    assert isinstance(await running, events.AllOk)
    with pytest.raises(DuplicateRun):
        await built.run()


# Hooks and logs.


async def test_hooks_are_told_in_order_and_with_frozen_records() -> None:
    """Spawn, exit, restart, spawn …: the records carry operator, instance and cause."""
    told: list[str] = []
    hooks = SupervisionHooks(
        on_spawn=lambda it: told.append(f"spawn {it.operator} #{it.instance} {it.role} {','.join(it.upstream)}"),
        on_exit=lambda it: told.append(f"exit {it.operator} #{it.instance} {it.exit}"),
        on_restart=lambda it: told.append(f"restart {it.operator} #{it.instance} {it.cause}"),
        on_escalate=lambda it: told.append(f"escalate {it.operator} {it.kind} {it.cause}"),
        on_shutdown=lambda it: told.append(f"shutdown {it.phase} {it.reason} {it.grace_s:g}"),
    )
    graph = chain(source_of("ab"), map_items(FailAt({1: AWAY, 3: KeyError("bug")})), CollectSink())
    await run_graph(graph, hooks=hooks, clock=ManualClock())
    assert told == [
        "spawn source #1 source ",
        "spawn op-1 #1 operator source",
        "spawn sink #1 sink op-1",
        "exit source #1 Ok",
        "exit op-1 #1 Errored(OperatorError: away)",
        "restart op-1 #2 OperatorError: away",
        "spawn op-1 #2 operator source",
        "exit op-1 #2 Panicked(KeyError: 'bug')",
        "escalate op-1 Panicked KeyError: 'bug'",
        "shutdown 1 Panicked: op-1 5",
        "exit sink #1 Ok",
    ]


async def test_hooks_that_raise_change_nothing() -> None:
    """With every hook broken the stream is restarted, drained and balanced as without."""

    def broken(_: object) -> None:
        raise ValueError("hook")

    sink = CollectSink()
    event = await run_graph(
        three(source_of(range(5)), map_items(FailAt({3: AWAY})), sink),
        hooks=SupervisionHooks(broken, broken, broken, broken, broken),
    )
    assert isinstance(event, events.AllOk)
    assert sink.items == list(range(5))
    assert event.figures.restarts["op"].total == 1


async def test_every_decision_is_one_json_line_with_stable_fields(caplog: pytest.LogCaptureFixture) -> None:
    """The lines of a run with a restart, an exhausted budget and an abort parse, and have exactly these fields."""

    async def flaky(ends: WiredEnds) -> None:
        raise AWAY

    graph = three(live, flaky, deaf, policy=RestartPolicy.bounded(1, timedelta(seconds=9)), capacity=2)
    with caplog.at_level(logging.INFO, "orchestrator_adapter.supervisor"):
        await run_graph(graph, clock=ManualClock(), during=_advancing(6))
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    fields = {line["event"]: set(line) - {"event", "graph"} for line in map(event_of, caplog.messages)}
    assert fields == {
        "spawn": {"operator", "instance"},
        "restart": {"operator", "instance", "cause", "charged", "backoff_s"},
        "budget_exhausted": {"operator", "instance", "cause"},
        "shutdown": {"phase", "reason", "grace_s"},
        "exit_while_draining": {"operator", "instance", "exit"},
        "abort": {"operator", "instance", "reason"},
        "aborted": {"operator", "instance", "exit"},
        "dead_letter": {"operator", "kind", "items", "message"},
        "ended": {"outcome", "ledger", "ledger_holds", "undelivered", "problems"},
    }
    assert {line["graph"] for line in lines} == {"three"}
    assert [line["event"] for line in lines].count("budget_exhausted") == 1


async def test_no_line_is_logged_per_observation(caplog: pytest.LogCaptureFixture) -> None:
    """Ten thousand items, and as many timed out ones, leave no more lines than ten would."""

    async def hurried(ends: WiredEnds) -> None:
        for number in range(200):
            await ends.emit([number])

    async def wedged(ends: WiredEnds) -> None:
        await ends.shutdown.wait()

    graph = OperatorGraph("late")
    source, sink = graph.add_source("source", hurried), graph.add_sink("sink", wedged)
    graph.connect(source, sink, 1, policy=FlowPolicy.timed(timedelta(milliseconds=1)))
    clock, letters = ManualClock(), DeadLetterList()
    built = graph.build(clock=clock, dead_letters=letters)
    with caplog.at_level(logging.DEBUG, "orchestrator_adapter"):
        running = asyncio.create_task(built.run())
        for _ in range(200):
            await settle(5)
            clock.advance(0.001)
        await settle()
        built.request_shutdown("test")
        event = await running
    assert event.figures.ledger.dead_lettered == letters.total == 200
    assert holds(event)
    assert len(caplog.records) < 20


# The books.


class BrokenStore:
    """A store that is also falsy, and cannot keep anything."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return 0

    def append(self, letters: Sequence[DeadLetter]) -> None:
        self.asked += 1
        raise RuntimeError("not a database")

    def close(self) -> None:
        pass


async def test_a_dead_letter_store_that_fails_is_a_problem_and_no_hang() -> None:
    """What it could not keep is told in words; the run ends as it would have, and the books are right."""
    store = BrokenStore()
    event = await run_graph(
        three(source_of(range(3)), map_items(FailAt({2: AWAY, 3: AWAY})), CollectSink()), dead_letters=store
    )
    assert isinstance(event, events.AllOk)
    assert event.figures.problems == (
        "1 items of 'op' could not be kept as dead letters: RuntimeError: not a database",
    )
    assert store.asked == 1
    assert holds(event)


async def test_an_operator_that_loses_an_item_is_named() -> None:
    """A conserving operator that swallows one of three is a ledger violation: named, unbalanced, and the run says so."""

    async def leaky(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches():
            ends.commit(batch[1:], acknowledge=len(batch))
            await ends.flush()

    event = await run_graph(three(source_of("abc"), leaky, CollectSink()))
    assert isinstance(event, events.AllOk)
    assert not event.figures.ledger_holds
    assert [str(violation).split(";")[0] for violation in event.figures.violations] == [
        "operator 'op': ledger shortfall: acknowledged 3 items, but emitted or gave a named outcome to 2"
    ]


async def test_an_aggregate_emitted_at_the_end_of_the_stream_is_derived() -> None:
    """A sum over ten items, emitted when the input has ended: ten absorbed, one derived and written."""

    async def total(ends: WiredEnds) -> None:
        result = 0
        async for batch in ends.receiver.batches():
            result += sum(batch)
        await ends.sender.send(result)

    sink = CollectSink()
    event = await run_graph(three(source_of(range(10)), total, sink, expanding=True))
    assert sink.items == [45]
    ledger = event.figures.ledger
    assert (ledger.absorbed, ledger.derived, ledger.written) == (10, 1, 1)
    assert holds(event)


async def test_status_is_consistent_at_every_turn() -> None:
    """Between any two turns of the loop the ledger balances and no edge holds more than its capacity."""
    graph = three(source_of(range(60)), map_items(FailAt({5: AWAY, 20: AWAY, 21: AWAY})), CollectSink(), capacity=3)
    built = graph.build(clock=ManualClock())
    running = asyncio.create_task(built.run())
    while not running.done():
        await asyncio.sleep(0)
        status = built.status()
        assert status.ledger.balanced
        assert all(edge.occupancy <= edge.capacity for edge in status.edges.values())
    assert holds(await running)


FAULTS: dict[str, Callable[[], Exception]] = {
    "errored": lambda: OperatorError("fault"),
    "panic": lambda: KeyError("fault"),
}


@settings(max_examples=examples(120))
@given(
    items=st.integers(0, 40),
    capacity=st.integers(1, 6),
    max_batch=st.integers(1, 6),
    faults=st.dictionaries(st.integers(1, 60), st.sampled_from(sorted(FAULTS)), max_size=5),
    sink_faults=st.dictionaries(st.integers(1, 60), st.just("errored"), max_size=2),
    max_deliveries=st.integers(1, 3),
    policy=st.sampled_from([FlowPolicy.backpressure(), FlowPolicy.shed(), FlowPolicy.timed(timedelta(seconds=1))]),
    moves=st.lists(st.sampled_from(["turn", "turns", "time", "stop", "cancel"]), max_size=12),
)
def test_every_item_is_accounted_for_in_every_outcome(
    items: int,
    capacity: int,
    max_batch: int,
    faults: dict[int, str],
    sink_faults: dict[int, str],
    max_deliveries: int,
    policy: FlowPolicy,
    moves: list[str],
) -> None:
    """Whatever fails, whoever stops it and when: the ledger balances at every move, and every id is found again."""

    async def scenario() -> None:
        written: list[int] = []
        failing = FailAt({call: FAULTS[kind]() for call, kind in faults.items()})
        failing_sink = FailAt({call: FAULTS[kind]() for call, kind in sink_faults.items()})

        def write(item: int) -> None:
            failing_sink(item)
            written.append(item)

        graph, letters, clock = OperatorGraph("any"), DeadLetterList(), ManualClock()
        source = graph.add_source("source", source_of(range(items), batch=max_batch))
        operator = graph.add_operator("op", map_items(failing, max_batch=max_batch), max_deliveries=max_deliveries)
        sink = graph.add_sink("sink", for_each(write), restart_policy=RestartPolicy.always())
        graph.connect(source, operator, capacity, policy=policy)
        graph.connect(operator, sink, capacity, policy=policy)
        built = graph.build(clock=clock, dead_letters=letters)
        before = asyncio.all_tasks()
        running = asyncio.create_task(built.run())
        for move in moves:
            match move:
                case "turn":
                    await settle(1)
                case "turns":
                    await settle(7)
                case "time":
                    clock.advance(1.0)
                case "stop":
                    built.request_shutdown("move")
                case _:
                    await settle(1)
                    running.cancel()
            ledger = built.ledger()
            assert ledger.balanced, ledger
            assert ledger.in_flight >= 0, ledger
        for _ in range(100):
            await settle(20)
            clock.advance(1.0)
            if running.done():
                break
        assert running.done(), built.status()
        await asyncio.gather(running, return_exceptions=True)
        assert built.event is not None
        assert asyncio.all_tasks() == before
        assert holds(built.event), built.event.figures.ledger
        ledger = built.event.figures.ledger
        dead = [letter.payload for letter in letters.letters]
        assert len(dead) == ledger.dead_lettered
        assert len(written) == ledger.written
        assert ledger.repeated == 0
        assert len({*written, *dead}) == ledger.ingested - ledger.shed
        assert written == sorted(written)

    asyncio.run(scenario())


def _advancing(times: int) -> Any:
    async def during(built: BuiltGraph) -> None:
        assert isinstance(built.clock, ManualClock)
        for _ in range(times):
            await built.clock.advance_when_idle(1)

    return during
