"""The progress timeout, decided with given time."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_adapter import BuiltGraph, OperatorGraph, RestartPolicy, WiredEnds, map_items, source_of
from orchestrator_adapter.graph.plan import GraphError
from orchestrator_adapter.primitives.clock import sleep
from orchestrator_adapter.primitives.errors import Stalled
from orchestrator_adapter.supervision import events
from orchestrator_adapter.supervision.progress import ProgressWatch
from orchestrator_adapter.testing import CollectSink, ManualClock, run_graph


def test_an_operator_with_input_that_acknowledges_nothing_stalls_after_its_timeout() -> None:
    """Ten seconds from the first look at which it had work, a moment less is no stall."""
    watch = ProgressWatch(10.0)
    assert not watch.stalled(0.0, acknowledged=0, has_input=True, waits_for_room=False)
    assert not watch.stalled(9.999, acknowledged=0, has_input=True, waits_for_room=False)
    assert watch.stalled(10.0, acknowledged=0, has_input=True, waits_for_room=False)


@pytest.mark.parametrize(
    ("acknowledged", "has_input", "waits_for_room"), [(1, True, False), (0, False, False), (0, True, True)]
)
def test_an_excuse_starts_the_time_over(acknowledged: int, has_input: bool, waits_for_room: bool) -> None:  # noqa: FBT001
    """An acknowledgement, an empty input or a full output: each gives the whole timeout anew, from the look behind it."""
    watch = ProgressWatch(10.0)
    assert not watch.stalled(0.0, acknowledged=0, has_input=True, waits_for_room=False)
    assert not watch.stalled(9.0, acknowledged=acknowledged, has_input=has_input, waits_for_room=waits_for_room)
    assert not watch.stalled(11.5, acknowledged=acknowledged, has_input=True, waits_for_room=False)
    assert not watch.stalled(21.499, acknowledged=acknowledged, has_input=True, waits_for_room=False)
    assert watch.stalled(21.5, acknowledged=acknowledged, has_input=True, waits_for_room=False)


@given(
    timeout_s=st.integers(1, 20),
    looks=st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans(), st.booleans()), max_size=60),
)
def test_only_what_had_work_at_every_look_for_the_whole_timeout_has_stalled(
    timeout_s: int, looks: list[tuple[int, bool, bool, bool]]
) -> None:
    """Against a naive search back through every look: never early, whatever happened between two of them."""
    watch, now, acknowledged = ProgressWatch(float(timeout_s)), 0, 0
    history: list[tuple[int, bool]] = []
    for gap, progressed, has_input, waits_for_room in looks:
        now += gap
        acknowledged += progressed
        history.append((now, progressed or not has_input or waits_for_room))
        idle_since = now
        for at, excused in reversed(history):
            if excused:
                break
            idle_since = at
        expected = not history[-1][1] and now - idle_since >= timeout_s
        told = watch.stalled(float(now), acknowledged=acknowledged, has_input=has_input, waits_for_room=waits_for_room)
        assert told == expected


async def hangs_at_first(ends: WiredEnds) -> None:
    """Takes an item and waits for ever, in its first instance; works in the next."""
    async for batch in ends.receiver.batches():
        if ends.instance == 1:
            await asyncio.Event().wait()
        ends.commit(batch, acknowledge=len(batch))
        await ends.flush()


def graph_with(hanging: object, sink: CollectSink, *, policy: RestartPolicy | None = None) -> OperatorGraph:
    graph = OperatorGraph("hangs")
    source = graph.add_source("source", source_of(range(5)))
    operator = graph.add_operator(
        "hangs",
        hanging,  # type: ignore[arg-type] # any factory
        progress_timeout=timedelta(seconds=10),
        restart_policy=policy,
    )
    graph.connect(source, operator, 8)
    graph.connect(operator, graph.add_sink("sink", sink), 8)
    return graph


async def test_an_operator_that_hangs_is_aborted_restarted_and_nothing_is_lost() -> None:
    """A hang counts as an error called Stalled: one restart, every item delivered once."""
    clock, sink = ManualClock(), CollectSink()

    async def let_time_pass(built: BuiltGraph) -> None:
        while not sink.items:
            await clock.advance_when_idle(1.0)

    event = await run_graph(graph_with(hangs_at_first, sink), clock=clock, during=let_time_pass)
    assert isinstance(event, events.AllOk)
    assert sink.items == [0, 1, 2, 3, 4]
    (restart,) = event.figures.restarts["hangs"].recent
    assert restart.cause == "Stalled: no progress for 10 s with input waiting"
    assert event.figures.ledger_holds


async def test_an_item_that_takes_a_little_less_than_the_timeout_is_never_a_stall() -> None:
    """At whatever moment it comes between two looks, eight seconds of work are within ten."""

    async def eight_seconds(ends: WiredEnds) -> None:
        async for item in ends.receiver:
            await sleep(ends.clock, 8)
            await ends.sender.send(item)

    for tenths in range(30):
        clock, sink = ManualClock(), CollectSink()

        async def come_late(ends: WiredEnds, after_s: float = tenths / 10) -> None:
            await sleep(ends.clock, after_s)
            await ends.emit(["late"])

        graph = OperatorGraph("late")
        slow = graph.add_operator("slow", eight_seconds, progress_timeout=timedelta(seconds=10))
        graph.connect(graph.add_source("source", come_late), slow, 8)
        graph.connect(slow, graph.add_sink("sink", sink), 8)

        async def let_time_pass(built: BuiltGraph, clock: ManualClock = clock) -> None:
            while built.event is None:
                await clock.advance_when_idle(0.5)

        event = await run_graph(graph, clock=clock, during=let_time_pass)
        assert not event.figures.restarts
        assert sink.items == ["late"]


async def test_a_restarted_instance_has_all_its_time_before_it(caplog: pytest.LogCaptureFixture) -> None:
    """After a hang the next instance may take eight of its ten seconds; the hang is one line, with its stack."""
    clock, sink = ManualClock(), CollectSink()

    async def hangs_then_slow(ends: WiredEnds) -> None:
        async for item in ends.receiver:
            if ends.instance == 1:
                await asyncio.Event().wait()
            await sleep(ends.clock, 8)
            await ends.sender.send(item)

    async def let_time_pass(built: BuiltGraph) -> None:
        while built.event is None:
            await clock.advance_when_idle(1.0)

    graph = graph_with(hangs_then_slow, sink)
    with caplog.at_level(logging.DEBUG, "orchestrator_adapter"):
        event = await run_graph(graph, clock=clock, during=let_time_pass)
    assert event.figures.restarts["hangs"].total == 1
    assert sink.items == [0, 1, 2, 3, 4]
    (line,) = [line for record in caplog.records if (line := json.loads(record.getMessage()))["event"] == "stalled"]
    assert (line["operator"], line["instance"]) == ("hangs", 1)
    assert "hangs_then_slow" in line["stack"]


async def test_an_operator_behind_a_full_edge_is_not_blamed_for_the_one_that_hangs() -> None:
    """Backpressure is no stall: only the operator that really hangs is restarted."""
    clock, sink = ManualClock(), CollectSink()
    graph = OperatorGraph("pressure")
    source = graph.add_source("source", source_of(range(50)))
    before = graph.add_operator("before", map_items(lambda n: n), progress_timeout=timedelta(seconds=10))
    hangs = graph.add_operator("hangs", hangs_at_first, progress_timeout=timedelta(seconds=30))
    graph.connect(source, before, 2)
    graph.connect(before, hangs, 2)
    graph.connect(hangs, graph.add_sink("sink", sink), 2)

    async def let_time_pass(built: BuiltGraph) -> None:
        while not sink.items:
            await clock.advance_when_idle(1.0)

    event = await run_graph(graph, clock=clock, during=let_time_pass)
    assert set(event.figures.restarts) == {"hangs"}
    assert sink.items == list(range(50))


async def test_an_operator_that_hangs_and_will_not_stop_brings_the_graph_down_by_name() -> None:
    """Nothing can be restarted on ends that somebody still holds: it is a straggler, and the budget counts as spent."""
    clock, sink = ManualClock(), CollectSink()
    let_go = asyncio.Event()

    async def stubborn(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                continue

    async def let_time_pass(built: BuiltGraph) -> None:
        while built.event is None:
            await clock.advance_when_idle(1.0)
        let_go.set()

    event = await run_graph(graph_with(stubborn, sink), clock=clock, during=let_time_pass)
    assert isinstance(event, events.BudgetExhausted)
    assert isinstance(event.error, Stalled)
    assert [straggler.operator for straggler in event.figures.stragglers] == ["hangs"]
    assert "let_go.wait()" in event.figures.stragglers[0].stack
    assert event.figures.ledger.balanced


async def test_a_straggler_that_stops_after_all_is_neither_restarted_nor_called_one() -> None:
    """The graph comes down for its sake already: its late end is recorded, its items are buried, and nothing spins."""
    clock, sink = ManualClock(), CollectSink()
    let_go, told_to_stop = asyncio.Event(), list[float]()

    async def slow_to_obey(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        while not let_go.is_set():
            try:
                await let_go.wait()
            except asyncio.CancelledError:
                told_to_stop.append(ends.clock.monotonic())

    async def let_time_pass(built: BuiltGraph) -> None:
        for _ in range(40):  # seconds: the timeout, the patience, and some in which nothing may spin
            await clock.advance_when_idle(1.0)
        let_go.set()
        while built.event is None:
            await clock.advance_when_idle(1.0)

    graph = graph_with(slow_to_obey, sink)
    event = await run_graph(graph, clock=clock, during=let_time_pass, grace=timedelta(minutes=1))
    assert isinstance(event, events.BudgetExhausted)
    assert isinstance(event.error, Stalled)
    assert len(told_to_stop) == 1
    assert not event.figures.stragglers
    assert not event.figures.restarts
    assert event.figures.ledger_holds


def test_a_progress_timeout_of_nothing_is_refused() -> None:
    """Zero would abort everything at once; the message says how to have no limit."""
    graph = OperatorGraph("zero")
    source = graph.add_source("source", source_of([]))
    sink = graph.add_sink("sink", CollectSink(), progress_timeout=timedelta(0))
    graph.connect(source, sink, 1)
    with pytest.raises(GraphError, match="progress_timeout must be > 0, got 0:00:00; leave it out for no limit"):
        graph.validate()
