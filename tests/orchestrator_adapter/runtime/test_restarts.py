from __future__ import annotations

import asyncio
from datetime import timedelta
from itertools import pairwise

from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.operators.ends import WiredEnds
from orchestrator_adapter.operators.from_functions import map_batches, map_items, source_of
from orchestrator_adapter.primitives.errors import OperatorError
from orchestrator_adapter.storage.dead_letter import DeadLetterKind, DeadLetterList
from orchestrator_adapter.supervision import events
from orchestrator_adapter.supervision.restart import Backoff, RestartPolicy
from orchestrator_adapter.testing import CollectSink, FailAt, ManualClock, chain, run_graph
from tests.orchestrator_adapter.runtime.scenes import AWAY, holds, live, shutting_down, three


async def test_after_an_error_the_leased_items_are_delivered_again_in_order_one_at_a_time() -> None:
    """A batch operator that fails once receives the items of its batch again, one by one. Nothing is lost or repeated."""
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


async def test_outputs_sent_before_a_failure_are_counted_as_repeated() -> None:
    """An operator that fails between send and acknowledgement sends again: two items written, one of them repeated."""
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


async def test_a_poison_pill_is_dead_lettered_with_its_history_and_costs_one_restart() -> None:
    """An item that fails twice is dead-lettered, the second restart is not charged, and the other items are written."""

    def work(item: int) -> int:
        if item == 3:
            raise OperatorError("cannot digest 3")
        return item

    sink, letters = CollectSink(), DeadLetterList()
    policy = RestartPolicy.bounded(1, timedelta(seconds=60))
    event = await run_graph(
        three(source_of(range(6)), map_items(work), sink, policy=policy),
        dead_letters=letters,
        clock=ManualClock(autojump=True),
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


async def test_a_pill_that_filled_its_edge_makes_space_for_the_next_item() -> None:
    """On an edge of one, the quarantine of the pill wakes the writer that waits for space, and the stream goes on."""
    sink = CollectSink()
    event = await run_graph(
        three(source_of("abc", batch=1), map_items(FailAt({1: AWAY, 2: AWAY})), sink, capacity=1),
        limit=timedelta(seconds=10),
    )
    assert isinstance(event, events.AllOk)
    assert sink.items == ["b", "c"]
    assert holds(event)


async def test_a_flood_of_poison_pills_exhausts_the_budget() -> None:
    """When every item is a poison pill, a budget of three admits three pills. Then the graph is torn down."""
    graph = three(
        source_of(range(100)),
        map_items(FailAt(dict.fromkeys(range(1, 999), AWAY))),
        CollectSink(),
        policy=RestartPolicy.bounded(3, timedelta(seconds=60)),
    )
    letters = DeadLetterList()
    event = await run_graph(graph, clock=ManualClock(autojump=True), dead_letters=letters)
    assert isinstance(event, events.BudgetExhausted)
    assert sum(letter.kind is DeadLetterKind.POISON_PILL for letter in letters.letters) <= 4
    assert event.figures.ledger.dead_lettered == 100
    assert holds(event)


async def test_an_exhausted_budget_tears_the_graph_down() -> None:
    """The event names the operator, the last error with its causes, and the restarts before it."""

    async def flaky(ends: WiredEnds) -> None:
        raise OperatorError("archive away") from ConnectionRefusedError("111")

    sink = CollectSink()
    event = await run_graph(three(live, flaky, sink), clock=ManualClock(autojump=True))
    assert isinstance(event, events.BudgetExhausted)
    assert event.operator == "op"
    assert event.chain == ("OperatorError: archive away", "ConnectionRefusedError: 111")
    assert event.figures.restarts["op"].total == 5
    assert holds(event)


async def test_a_source_that_fails_at_once_for_a_moment_stays_within_the_default_budget() -> None:
    """Its server is away for 100 ms: the default backoff makes at most three attempts in that time, and the run goes on."""
    clock = ManualClock(autojump=True)

    async def source(ends: WiredEnds) -> None:
        if ends.clock.monotonic() < 0.1:
            raise ConnectionRefusedError(111, "Connection refused")
        await ends.emit(["a"])

    sink = CollectSink()
    event = await run_graph(chain(source, sink), clock=clock)
    assert isinstance(event, events.AllOk)
    assert sink.items == ["a"]
    assert 1 <= event.figures.restarts["source"].total <= 2
    assert holds(event)


async def test_an_operator_that_always_fails_is_restarted_at_most_every_five_seconds_in_the_end() -> None:
    """With ``always()`` the default backoff grows to its cap: an hour of failures is some thousand restarts, not millions."""
    clock, starts = ManualClock(autojump=True), list[float]()
    graph = OperatorGraph("away")

    async def source(ends: WiredEnds) -> None:
        starts.append(ends.clock.monotonic())
        if ends.clock.monotonic() < 3600:
            raise AWAY

    source_id = graph.add_source("source", source, restart_policy=RestartPolicy.always())
    graph.connect(source_id, graph.add_sink("sink", CollectSink()), 1)
    await run_graph(graph, clock=clock)
    pauses = [later - earlier for earlier, later in pairwise(starts)]
    assert min(pauses) >= 0.05
    assert max(pauses[:3]) < 1.35 < max(pauses[5:]) <= 5.0
    assert len(starts) < 3600


async def test_a_backoff_is_measured_on_the_graphs_clock() -> None:
    """With a backoff of one second the second instance starts after one second, not earlier."""
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


async def test_a_shutdown_does_not_wait_for_a_backoff() -> None:
    """An operator with an hour of backoff is restarted at once to drain. A source is not restarted."""
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


async def test_the_outbox_of_a_failed_source_is_delivered_by_its_next_instance() -> None:
    """A source that fails while its edge is full loses nothing: its next instance delivers the outbox first."""

    async def source(ends: WiredEnds) -> None:
        if ends.instance == 1:
            ends.sender.offer(list(range(10)))
            raise AWAY
        await ends.emit(range(10, 20))

    sink = CollectSink()
    event = await run_graph(chain(source, sink, capacity=3))
    assert sink.items == list(range(20))
    assert holds(event)


async def test_kept_resources_outlive_the_instances_and_are_closed_in_reverse_at_the_end() -> None:
    """Three instances use one socket. Socket and file are closed once, the last made first, after every operator ended."""
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
    """The event is the same, and its problems contain the error."""

    def failing(_: str) -> None:
        raise OSError("busy")

    async def source(ends: WiredEnds) -> None:
        ends.keep("socket", lambda: "socket", failing)

    event = await run_graph(chain(source, CollectSink()))
    assert isinstance(event, events.AllOk)
    assert event.figures.problems == ("closing what 'source' kept: OSError: busy",)
