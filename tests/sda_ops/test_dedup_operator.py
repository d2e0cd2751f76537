"""The ``deduplicate`` operator in running graphs: duplicates, restarts, dead letters and shutdown."""

from __future__ import annotations

from datetime import timedelta
from itertools import cycle

import pytest

from orchestrator_adapter import (
    BuiltGraph,
    DeadLetterKind,
    DeadLetterList,
    source_of,
)
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import (
    CollectSink,
    FailAt,
    ListSource,
    ManualClock,
    Pause,
    chain,
    run_graph,
    settle,
)
from sda_ops.dedup import deduplicate, observation_key
from tests.helpers.running import GatedSink, counter, eventually, observations
from tests.scenes.restarts import away, itself, restarted_chain

MINUTE = timedelta(minutes=1)


async def test_each_observation_passes_once_and_in_order() -> None:
    """Of twenty observations, half of which repeat at once and all of which repeat later, twenty arrive."""
    batch, sink = observations(20), CollectSink()
    again = observations(20)  # equal ids, other objects
    event = await run_graph(chain(source_of([*batch[:10], *again[:10], *batch[10:], *again]), deduplicate(), sink))
    assert isinstance(event, events.AllOk)
    assert event.figures.ledger_holds
    assert sink.items == batch
    assert event.figures.ledger.duplicates == 30
    assert event.figures.counters["op-1"] == {"remembered": 20, "evicted_early": 0}


def test_the_key_of_an_observation_is_its_id() -> None:
    """It is the integer of the id; no other field counts."""
    one, other = observations(2)
    assert observation_key(one) == one.observation_id.int
    assert observation_key(one) != observation_key(other)


async def test_its_metrics_are_zero_before_the_first_item() -> None:
    """For a stream without items both are zero, not absent."""
    event = await run_graph(chain(source_of(()), deduplicate(), CollectSink()))
    assert event.figures.counters["op-1"] == {"remembered": 0, "evicted_early": 0}


async def test_it_is_suspended_by_backpressure() -> None:
    """With a blocked sink and edges of four, it takes two batches of four, of a thousand items, and waits."""
    sink, remembered = GatedSink(), []

    async def record_and_open(built: BuiltGraph) -> None:
        await settle()
        remembered.append(counter(built, "remembered", "op-1"))
        sink.gate.set()

    event = await run_graph(
        chain(source_of(range(1_000)), deduplicate(key=itself), sink, capacity=4), during=record_and_open
    )
    assert remembered == [8]
    assert sink.items == list(range(1_000))
    assert event.figures.ledger_holds


async def test_ages_are_measured_on_the_monotonic_clock() -> None:
    """A wall clock that jumps by years between any two readings changes nothing."""

    jumps = cycle((0, 2**62, 1, 2**61))

    class Jumping(ManualClock):
        def now_ns(self) -> int:
            return next(jumps)

    clock, sink = Jumping(), CollectSink()
    source = ListSource(["a"], Pause(timedelta(seconds=59)), ["a", "b"], Pause(MINUTE), ["a", "b"])

    async def let_time_pass(built: BuiltGraph) -> None:
        while built.event is None:
            await clock.advance_when_idle(1.0)

    event = await run_graph(
        chain(source, deduplicate(max_age=MINUTE, key=itself), sink), clock=clock, during=let_time_pass
    )
    assert sink.items == ["a", "b", "a", "b"]
    assert event.figures.ledger.duplicates == 1
    assert event.figures.ledger_holds


async def test_an_item_that_was_evicted_early_passes_again_and_is_counted() -> None:
    """With room for two of three ids, each has been evicted before it repeats."""
    sink = CollectSink()
    event = await run_graph(chain(source_of("abcabc"), deduplicate(max_items=2, key=itself), sink))
    assert sink.items == list("abcabc")
    assert event.figures.ledger.duplicates == 0
    assert event.figures.counters["op-1"] == {"remembered": 2, "evicted_early": 4}


@pytest.mark.parametrize(
    ("keep", "arrive", "duplicates", "counters"),
    [
        (True, ["a", "b", "c"], 2, {"remembered": 3, "evicted_early": 0}),
        (False, ["a", "b", "c", "a"], 1, {"remembered": 2, "evicted_early": 0}),
    ],
)
async def test_keep_across_restarts_decides_whether_a_restart_clears_the_window(
    keep: bool,  # noqa: FBT001 - a parameter of the test
    arrive: list[str],
    duplicates: int,
    counters: dict[str, int],
) -> None:
    """An id that was sent before the restart is a duplicate after it, or, without keeping, is sent a second time."""
    sink, failing = CollectSink(), FailAt({3: away()})
    source = ListSource(["a", "b", "c", "c", "a"])  # the operator fails at the first "c"
    event = await run_graph(chain(source, deduplicate(key=failing, keep_across_restarts=keep), sink))
    assert event.figures.restarts["op-1"].total == 1
    assert event.figures.ledger_holds
    assert sink.items == arrive
    assert event.figures.ledger.duplicates == duplicates
    assert event.figures.counters["op-1"] == counters


async def test_evicted_early_is_counted_over_all_instances() -> None:
    """A restart that clears the window does not reset the counter."""
    failing = FailAt({4: away()})
    operator = deduplicate(max_items=1, key=failing, keep_across_restarts=False)
    event = await run_graph(chain(source_of("abcdef"), operator, CollectSink()))
    assert event.figures.restarts["op-1"].total == 1
    assert event.figures.counters["op-1"] == {"remembered": 1, "evicted_early": 2 + 2}


@pytest.mark.parametrize("call", range(1, 8))
async def test_a_redelivered_item_is_not_a_duplicate_of_itself(call: int) -> None:
    """At any position in a batch where the key fails, each id arrives once, and only the repeats count as duplicates."""
    sink, failing = CollectSink(), FailAt({call: away()})
    event = await run_graph(chain(source_of("abacab"), deduplicate(key=failing), sink))
    assert ("op-1" in event.figures.restarts) is (call <= 6)
    assert event.figures.ledger_holds
    assert sink.items == list("abc")
    assert event.figures.ledger.duplicates == 3
    assert event.figures.ledger.repeated == 0


async def test_only_a_poison_pill_is_dead_lettered_and_a_later_repeat_of_it_passes() -> None:
    """An item that was not sent is not known, so it passes when it repeats and its key function succeeds."""
    letters, sink, calls = DeadLetterList(), CollectSink(), []

    def key(item: str) -> str:
        calls.append(item)
        if item == "b" and calls.count("b") <= 2:
            raise away()
        return item

    event = await run_graph(chain(source_of("abcbb"), deduplicate(key=key), sink), dead_letters=letters)
    assert [(letter.payload, letter.kind) for letter in letters.letters] == [("b", DeadLetterKind.POISON_PILL)]
    assert sink.items == ["a", "c", "b"]
    assert event.figures.ledger.duplicates == 1
    assert event.figures.ledger_holds


async def test_after_a_panic_of_the_key_only_unprocessed_items_are_dead_lettered() -> None:
    """Items of the batch before the panic arrive, that item and later ones are dead letters, and the ledger holds."""
    letters, sink = DeadLetterList(), CollectSink()
    event = await run_graph(
        chain(source_of("aabcd"), deduplicate(key=FailAt({4: KeyError("a bug")})), sink), dead_letters=letters
    )
    assert isinstance(event, events.Panicked)
    assert sink.items == ["a", "b"]
    assert [letter.payload for letter in letters.letters] == ["c", "d"]
    assert event.figures.ledger.duplicates == 1
    assert event.figures.ledger_holds


async def test_items_that_cannot_be_delivered_at_shutdown_are_dead_lettered_not_duplicates() -> None:
    """If it is aborted while it waits for space, the items in its outbox are dead-lettered."""
    letters, sink, clock = DeadLetterList(), GatedSink(), ManualClock()
    source = ListSource(list("aabbccdd"))

    async def stop_twice(built: BuiltGraph) -> None:
        await eventually(lambda: counter(built, "remembered", "op-1") == 4, "all items are processed")
        built.request_shutdown("once")
        built.request_shutdown("at once")

    event = await run_graph(
        restarted_chain(source, deduplicate(key=itself), sink, capacity=8),
        clock=clock,
        dead_letters=letters,
        during=stop_twice,
    )
    assert isinstance(event, events.ShutDown)
    assert event.figures.ledger.duplicates == 4
    assert sorted([*sink.items, *(letter.payload for letter in letters.letters)]) == list("abcd")
    assert event.figures.ledger_holds


async def test_two_operators_of_one_factory_share_nothing() -> None:
    """Items known to one are new to the other, and to the next run of a graph."""
    operator, first, second = deduplicate(key=itself), CollectSink(), CollectSink()
    event = await run_graph(chain(source_of("aab"), operator, operator, first))
    assert first.items == ["a", "b"]
    assert event.figures.ledger.duplicates == 1
    await run_graph(chain(source_of("abb"), operator, second))
    assert second.items == ["a", "b"]
