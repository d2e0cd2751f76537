from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from datetime import timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_adapter.channels.flow_policy import FlowPolicy
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.operators.ends import WiredEnds
from orchestrator_adapter.operators.from_functions import for_each, map_items, source_of
from orchestrator_adapter.primitives.errors import OperatorError
from orchestrator_adapter.storage.dead_letter import DeadLetter, DeadLetterList
from orchestrator_adapter.supervision import events
from orchestrator_adapter.supervision.restart import RestartPolicy
from orchestrator_adapter.testing import CollectSink, FailAt, ManualClock, run_graph, settle
from tests.helpers.sizes import examples
from tests.orchestrator_adapter.runtime.scenes import AWAY, holds, three


class BrokenStore:
    """A store that is falsy, and fails at every call."""

    def __init__(self) -> None:
        self.calls = 0

    def __len__(self) -> int:
        return 0

    def append(self, letters: Sequence[DeadLetter]) -> None:
        self.calls += 1
        raise RuntimeError("not a database")

    def close(self) -> None:
        pass


async def test_a_dead_letter_store_that_fails_is_a_reported_problem() -> None:
    """The problem has the number of items and the error. The run ends as usual, and the ledger balances."""
    store = BrokenStore()
    event = await run_graph(
        three(source_of(range(3)), map_items(FailAt({2: AWAY, 3: AWAY})), CollectSink()), dead_letters=store
    )
    assert isinstance(event, events.AllOk)
    assert event.figures.problems == (
        "1 items of 'op' could not be kept as dead letters: RuntimeError: not a database",
    )
    assert store.calls == 1
    assert holds(event)


async def test_an_operator_that_drops_an_item_is_a_named_violation() -> None:
    """A conserving operator that drops one item of three is a ledger violation, with its name and both numbers."""

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
    """At every turn of the loop the ledger balances and no edge exceeds its capacity."""
    failing = map_items(FailAt({5: AWAY, 20: AWAY, 21: AWAY}))
    graph = three(source_of(range(60)), failing, CollectSink(), capacity=3, policy=RestartPolicy.always(backoff=None))
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
    """With any faults and any stops, the ledger balances at every moment, and every id is accounted for."""

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
