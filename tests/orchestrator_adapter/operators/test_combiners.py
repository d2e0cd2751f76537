from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_adapter import (
    Aligned,
    Combiner,
    Control,
    Head,
    InputEnded,
    LeastOfInputs,
    OperatorError,
    OperatorGraph,
    RestartPolicy,
    WiredEnds,
    events,
    map_items,
    merge,
    source_of,
)
from orchestrator_adapter.testing import CollectSink, LoopClock, run_schedule, settle
from tests.helpers.sizes import examples
from tests.orchestrator_adapter.operators.bench import Bench, cancel

pytestmark = pytest.mark.usefixtures("_many_schedules")


@dataclass(frozen=True, slots=True)
class Mark(Control):
    at: int | None


@dataclass(frozen=True, slots=True)
class Barrier(Control):
    number: int
    of: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Canary(Control):
    name: str


LEAST = LeastOfInputs(lambda mark: mark.at)
ALIGNED = Aligned(
    lambda barrier: barrier.number,
    lambda barriers: Barrier(barriers[0].number, tuple(name for barrier in barriers for name in barrier.of)),
)
ENDED = InputEnded()


def sent(combiner: Combiner, *steps: tuple[int, Head], inputs: int) -> list[list[Control]]:
    """What a combiner sends after each step (an input and its new head). It must take every control item."""
    heads: list[Head] = [None] * inputs
    state: Any = None
    after: list[list[Control]] = []
    for at, head in steps:
        heads[at] = head
        after.append([])
        while True:
            combined = combiner.combine(state, heads)
            state = combined.state
            after[-1] += combined.send
            for taken in combined.take:
                heads[taken] = None
            if not combined.take and not combined.send:
                break
    return after


# The least of the inputs.


def test_the_least_of_the_inputs_is_sent_when_it_advances() -> None:
    """Nothing before every input has had one; then the minimum, each time that it has become greater."""
    trace = [(0, 100), (1, 90), (2, 80), (0, 110), (2, 95), (1, 105), (2, 120)]
    after = sent(LEAST, *((at, Mark(time)) for at, time in trace), inputs=3)
    assert after == [[], [], [Mark(80)], [], [Mark(90)], [Mark(95)], [Mark(105)]]


def test_an_input_that_ends_leaves_the_minimum() -> None:
    """Also if it has never had one. When all have ended the greatest is sent, in any order of ends."""
    steps = ((0, Mark(100)), (1, ENDED), (2, Mark(50)), (2, ENDED))
    assert sent(LEAST, *steps, inputs=3) == [[], [], [Mark(50)], [Mark(100)]]
    assert sent(LEAST, (0, Mark(9)), (1, Mark(4)), (0, ENDED), (1, ENDED), inputs=2)[1:] == [[Mark(4)], [], [Mark(9)]]
    assert sent(LEAST, (0, Mark(9)), (1, Mark(4)), (1, ENDED), (0, ENDED), inputs=2)[1:] == [[Mark(4)], [Mark(9)], []]


def test_an_idle_input_leaves_the_minimum_until_its_next_one() -> None:
    """It cannot move the output back when it is live again. If all are idle, so is the output; then it goes on where it was."""
    idle = Mark(None)
    steps = ((0, Mark(10)), (1, idle), (0, Mark(20)), (1, Mark(15)), (0, Mark(30)), (1, Mark(25)))
    assert sent(LEAST, *steps, inputs=2) == [[], [Mark(10)], [Mark(20)], [], [], [Mark(25)]]
    steps = ((0, Mark(10)), (1, Mark(12)), (0, idle), (1, idle), (0, Mark(11)), (0, Mark(13)))
    assert sent(LEAST, *steps, inputs=2) == [[], [Mark(10)], [Mark(12)], [idle], [Mark(12)], [Mark(13)]]


def test_a_control_item_that_goes_back_is_ignored() -> None:
    """Of one input the latest one counts unless it is less than the one before."""
    steps = ((0, Mark(10)), (1, Mark(20)), (0, Mark(5)), (0, Mark(15)))
    assert sent(LEAST, *steps, inputs=2) == [[], [Mark(10)], [], [Mark(15)]]
    assert sent(LEAST, (0, Mark(10)), (0, Mark(5)), (1, Mark(20)), inputs=2) == [[], [], [Mark(10)]]


# Alignment.


def test_a_barrier_is_sent_once_when_every_input_has_it() -> None:
    """The barriers are joined, in the order of the inputs."""
    after = sent(ALIGNED, (1, Barrier(1, ("b",))), (0, Barrier(1, ("a",))), inputs=2)
    assert after == [[], [Barrier(1, ("a", "b"))]]


def test_an_input_that_has_ended_or_skipped_a_barrier_is_not_waited_for() -> None:
    """The least number is sent when every input has ended or is at this barrier or a later one."""
    assert sent(ALIGNED, (0, Barrier(1, ("a",))), (1, ENDED), inputs=2) == [[], [Barrier(1, ("a",))]]
    heads: Sequence[Head] = (Barrier(1, ("a",)), Barrier(2, ("b",)))
    combined = ALIGNED.combine(None, heads)
    assert (combined.take, combined.send) == (frozenset({0}), (Barrier(1, ("a",)),))


def test_a_held_input_is_not_taken() -> None:
    """Until the others have come, nothing is taken."""
    combined = ALIGNED.combine(None, (Barrier(1), None))
    assert not combined.take
    assert not combined.send


# In a graph.


async def test_a_merge_delivers_what_it_has_combined_although_nothing_more_arrives() -> None:
    """It waits for space for a combined control item, and then delivers it."""
    bench = Bench(inputs=2)
    bench.output.channel.max_signals = 1
    for feed in bench.feeds:
        feed.offer_control(Mark(1))
        feed.offer_control(Mark(2))
    merging = asyncio.create_task(merge(combine={Mark: LEAST})(bench.ends))
    for time in (1, 2):
        await settle()
        assert bench.drain.try_recv_many(controls=True) == Mark(time)
        bench.drain.acknowledge()
    await cancel(merging)


Entry = tuple[str, int]


def feed(rng: Random, name: str) -> list[Entry | Control]:
    """Items of ascending times, watermarks that keep their promise, the barriers 1 to 3, and canaries."""
    entries: list[Entry | Control] = []
    time, barrier = 0, 1
    for _ in range(rng.randrange(25)):
        time += rng.randrange(3)
        match rng.randrange(6):
            case 0:
                entries.append(Mark(time))
            case 1 if barrier < 4:
                entries.append(Barrier(barrier, (name,)))
                barrier += 1
            case 2:
                entries.append(Canary(f"{name} {time} {len(entries)}"))
            case _:
                entries.append((name, time))
    entries += [Barrier(number, (name,)) for number in range(barrier, 4)]
    return entries


@settings(max_examples=examples(200))
@given(seed=st.integers(0, 2**32), inputs=st.integers(2, 4), capacity=st.integers(1, 4), fails=st.integers(0, 3))
def test_a_merge_combines_watermarks_and_barriers_and_forwards_the_rest(
    seed: int, inputs: int, capacity: int, fails: int
) -> None:
    """No item is older than a watermark in front of it; a barrier is between what was before and behind it in every input."""
    rng = Random(seed)
    feeds = {f"in-{number}": feed(rng, f"in-{number}") for number in range(inputs)}
    sink = CollectSink(controls=True)
    left = [fails]
    merging = merge(combine={Mark: LEAST, Barrier: ALIGNED}, max_batch=rng.randrange(1, 4))

    async def fails_sometimes(ends: WiredEnds) -> None:
        """Each instance but the last fails at one of its flushes."""
        if left[0]:
            left[0] -= 1
            limit = rng.randrange(1, 30)
            flush, ends.flush = ends.flush, counted(ends, limit)  # type: ignore[method-assign]
            try:
                await merging(ends)
            finally:
                ends.flush = flush  # type: ignore[method-assign]
        else:
            await merging(ends)

    def counted(ends: WiredEnds, limit: int) -> Any:
        flush, calls = ends.flush, [0]

        async def flush_or_fail() -> None:
            calls[0] += 1
            if calls[0] == limit:
                raise OperatorError("away")
            await flush()

        return flush_or_fail

    async def scenario() -> None:
        graph = OperatorGraph("combined")
        policy = RestartPolicy.always()
        down = graph.add_fan_in("merge", fails_sometimes, restart_policy=policy)
        for name, entries in feeds.items():
            graph.connect(graph.add_source(name, source_of(entries, batch=rng.randrange(1, 5))), down, capacity)
        after = graph.add_operator("same", map_items(lambda item: item))
        graph.connect(down, after, capacity)
        graph.connect(after, graph.add_sink("sink", sink), capacity)
        event = await graph.build(clock=LoopClock(), rng=Random(seed)).run()
        assert isinstance(event, events.AllOk), event
        assert event.figures.ledger_holds
        assert event.figures.signals.in_flight == 0

    run_schedule(seed, scenario)
    check(feeds, sink.items)


def check(feeds: dict[str, list[Entry | Control]], seen: list[Any]) -> None:
    for name, entries in feeds.items():
        of_it = [entry for entry in entries if isinstance(entry, tuple | Canary)]
        assert [e for e in seen if e in of_it and (not isinstance(e, tuple) or e[0] == name)] == of_it
    times = [entry.at for entry in seen if isinstance(entry, Mark) and entry.at is not None]
    assert times == sorted(set(times)), "each watermark is greater than the one before"
    promised = -1
    for entry in seen:
        if isinstance(entry, Mark):
            assert entry.at is not None
            promised = entry.at
        elif isinstance(entry, tuple):
            assert entry[1] >= promised, (entry, promised, seen)
    marks = [entry.at or 0 for entries in feeds.values() for entry in entries if isinstance(entry, Mark)]
    assert max(times, default=-1) == max(marks, default=-1), "the last watermark comes when all have ended"
    barriers = [entry for entry in seen if isinstance(entry, Barrier)]
    assert barriers == [Barrier(number, tuple(feeds)) for number in (1, 2, 3)]
    for barrier in barriers:
        at = seen.index(barrier)
        for name, entries in feeds.items():
            its = entries.index(Barrier(barrier.number, (name,)))
            before = [entry for entry in entries[:its] if isinstance(entry, tuple)]
            assert [entry for entry in seen[:at] if isinstance(entry, tuple) and entry[0] == name] == before
