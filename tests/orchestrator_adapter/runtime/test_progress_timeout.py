"""The progress timeout, with a given time."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_adapter import BuiltGraph, OperatorGraph, RestartPolicy, WiredEnds, map_items, source_of
from orchestrator_adapter.primitives.clock import sleep
from orchestrator_adapter.primitives.errors import Stalled
from orchestrator_adapter.supervision import events
from orchestrator_adapter.supervision.progress import ProgressWatch
from orchestrator_adapter.testing import CollectSink, ManualClock, run_graph


def test_an_operator_with_input_that_acknowledges_nothing_stalls_after_its_timeout() -> None:
    """It has stalled ten seconds after the first check at which it had work, and not a moment earlier."""
    watch = ProgressWatch(10.0)
    assert not watch.stalled(0.0, acknowledged=0, has_input=True, waits_for_space=False)
    assert not watch.stalled(9.999, acknowledged=0, has_input=True, waits_for_space=False)
    assert watch.stalled(10.0, acknowledged=0, has_input=True, waits_for_space=False)


@pytest.mark.parametrize(
    ("acknowledged", "has_input", "waits_for_space"), [(1, True, False), (0, False, False), (0, True, True)]
)
def test_an_excuse_starts_the_timeout_again(acknowledged: int, has_input: bool, waits_for_space: bool) -> None:  # noqa: FBT001
    """After an acknowledgement, an empty input or a full output, the whole timeout starts at the next check."""
    watch = ProgressWatch(10.0)
    assert not watch.stalled(0.0, acknowledged=0, has_input=True, waits_for_space=False)
    assert not watch.stalled(9.0, acknowledged=acknowledged, has_input=has_input, waits_for_space=waits_for_space)
    assert not watch.stalled(11.5, acknowledged=acknowledged, has_input=True, waits_for_space=False)
    assert not watch.stalled(21.499, acknowledged=acknowledged, has_input=True, waits_for_space=False)
    assert watch.stalled(21.5, acknowledged=acknowledged, has_input=True, waits_for_space=False)


@given(
    timeout_s=st.integers(1, 20),
    checks=st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.booleans(), st.booleans()), max_size=60),
)
def test_only_an_operator_with_work_at_every_check_for_the_whole_timeout_has_stalled(
    timeout_s: int, checks: list[tuple[int, bool, bool, bool]]
) -> None:
    """Compared with a naive search through every earlier check: it never reports a stall too early."""
    watch, now, acknowledged = ProgressWatch(float(timeout_s)), 0, 0
    history: list[tuple[int, bool]] = []
    for gap, progressed, has_input, waits_for_space in checks:
        now += gap
        acknowledged += progressed
        history.append((now, progressed or not has_input or waits_for_space))
        idle_since = now
        for at, excused in reversed(history):
            if excused:
                break
            idle_since = at
        expected = not history[-1][1] and now - idle_since >= timeout_s
        stalled = watch.stalled(
            float(now), acknowledged=acknowledged, has_input=has_input, waits_for_space=waits_for_space
        )
        assert stalled == expected


async def hangs_at_first(ends: WiredEnds) -> None:
    """The first instance takes an item and waits for ever. The next one works."""
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
    """A hang counts as the error ``Stalled``: one restart, and every item is delivered once."""
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
    """Eight seconds of work are within a timeout of ten, at any moment between two checks."""

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


async def test_a_restarted_instance_has_the_whole_timeout(caplog: pytest.LogCaptureFixture) -> None:
    """After a hang the next instance may take eight of ten seconds. The hang is one log line, with its stack."""
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


async def test_an_operator_that_waits_for_space_is_not_stalled() -> None:
    """Backpressure is not a stall: only the operator that hangs is restarted."""
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


async def test_an_operator_that_hangs_and_ignores_its_abort_tears_the_graph_down() -> None:
    """No instance can be started while the old one uses the ends: it is a straggler, and the budget counts as exhausted."""
    clock, sink = ManualClock(), CollectSink()
    released = asyncio.Event()

    async def ignores_cancellation(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                continue

    async def let_time_pass(built: BuiltGraph) -> None:
        while built.event is None:
            await clock.advance_when_idle(1.0)
        released.set()

    event = await run_graph(graph_with(ignores_cancellation, sink), clock=clock, during=let_time_pass)
    assert isinstance(event, events.BudgetExhausted)
    assert isinstance(event.error, Stalled)
    assert [straggler.operator for straggler in event.figures.stragglers] == ["hangs"]
    assert "released.wait()" in event.figures.stragglers[0].stack
    assert event.figures.ledger.balanced


async def test_a_straggler_that_stops_later_is_neither_restarted_nor_named() -> None:
    """The graph is being torn down already: the late exit is recorded, its items are dead-lettered, and nothing spins."""
    clock, sink = ManualClock(), CollectSink()
    released, cancelled_at = asyncio.Event(), list[float]()

    async def slow_to_stop(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        while not released.is_set():
            try:
                await released.wait()
            except asyncio.CancelledError:
                cancelled_at.append(ends.clock.monotonic())

    async def let_time_pass(built: BuiltGraph) -> None:
        for _ in range(40):  # seconds: the timeout, the patience, and some more in which nothing may spin
            await clock.advance_when_idle(1.0)
        released.set()
        while built.event is None:
            await clock.advance_when_idle(1.0)

    graph = graph_with(slow_to_stop, sink)
    event = await run_graph(graph, clock=clock, during=let_time_pass, grace=timedelta(minutes=1))
    assert isinstance(event, events.BudgetExhausted)
    assert isinstance(event.error, Stalled)
    assert len(cancelled_at) == 1
    assert not event.figures.stragglers
    assert not event.figures.restarts
    assert event.figures.ledger_holds
