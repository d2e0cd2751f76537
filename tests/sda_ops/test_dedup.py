from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from itertools import cycle
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_adapter import (
    BuiltGraph,
    DeadLetterKind,
    DeadLetterList,
    Factory,
    OperatorError,
    OperatorGraph,
    RestartPolicy,
    SupervisionPolicy,
    SupervisorEvent,
    WiredEnds,
    map_items,
    source_of,
)
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import (
    CollectSink,
    FailAt,
    ListSource,
    LoopClock,
    ManualClock,
    Pause,
    chain,
    run_every_schedule,
    run_graph,
    run_schedule,
    settle,
)
from sda_ops import dedup
from sda_ops.dedup import SeenSet, deduplicate, observation_key
from tests.helpers.running import Fault, GatedSink, counter, eventually, observations
from tests.helpers.sizes import examples, small_and_long

MINUTE = timedelta(minutes=1)


def itself(item: Any) -> Any:
    return item


def away() -> OperatorError:
    """A new one each time: an exception keeps the frames of every place that it was raised in."""
    return OperatorError("away")


def restarted_chain(source: Factory, *rest: Factory, capacity: int = 64, max_deliveries: int = 2) -> OperatorGraph:
    """As ``chain``, but its operators are restarted however often it takes."""
    graph = OperatorGraph("dedup")
    last = graph.add_source("source", source, restart_policy=RestartPolicy.always())
    for number, factory in enumerate(rest[:-1], 1):
        operator = graph.add_operator(
            f"op-{number}", factory, restart_policy=RestartPolicy.always(), max_deliveries=max_deliveries
        )
        graph.connect(last, operator, capacity)
        last = operator
    sink = graph.add_sink("sink", rest[-1], restart_policy=RestartPolicy.always(), max_deliveries=max_deliveries)
    graph.connect(last, sink, capacity)
    return graph


# The window.


def test_a_key_is_known_until_it_is_exactly_as_old_as_the_window() -> None:
    """Within a minute it was met; a minute later to the tick it was not."""
    seen = SeenSet(MINUTE, 10)
    assert not seen.check_and_add("a", 100.0)
    assert not seen.check_and_add("b", 100.0)
    assert seen.check_and_add("a", 159.999)
    assert not seen.check_and_add("b", 160.0)


def test_meeting_a_key_again_renews_it() -> None:
    """Met every 40 s it stays known for ever, although the window is a minute."""
    seen = SeenSet(MINUTE, 10)
    assert [seen.check_and_add("a", now) for now in (0.0, 40.0, 80.0, 120.0, 180.0)] == [False, True, True, True, False]


def test_the_key_that_was_met_longest_ago_makes_room_and_is_counted() -> None:
    """With room for two, the third pushes out the one that was not renewed; room is all that it wants."""
    seen = SeenSet(MINUTE, 2)
    for key, now in (("a", 0.0), ("b", 1.0), ("a", 2.0), ("c", 3.0)):
        seen.check_and_add(key, now)
    assert seen.evicted_early == 1
    assert seen.check_and_add("a", 4.0)
    assert not seen.check_and_add("b", 5.0)
    assert (len(seen), seen.evicted_early) == (2, 2)


@pytest.mark.parametrize(("now", "early"), [(60.0, 1), (60.999, 1), (61.0, 0), (999.0, 0)])
def test_what_makes_room_when_its_time_is_up_is_not_counted(now: float, early: int) -> None:
    """A window that is full of what is too old, all of it renewed once, has lost nothing by letting go of it."""
    seen = SeenSet(MINUTE, 300)  # more than one meeting lets go of, so that there is no room yet
    for met_at in (0.0, 1.0):
        for key in range(300):
            seen.check_and_add(key, met_at)
    assert not seen.check_and_add("new", now)
    assert (len(seen), seen.evicted_early) == (300, early)


def test_of_keys_that_keep_coming_the_one_met_longest_ago_makes_room() -> None:
    """Whichever was met first of all, after any number of renewals it is the last meeting that counts."""
    for renewals in range(12):
        seen, keys = SeenSet(MINUTE, 2), cycle("ab")
        for turn in range(2 + renewals):
            seen.check_and_add(next(keys), float(turn))
        longest_ago, last = next(keys), next(keys)
        seen.check_and_add("c", 20.0)
        assert seen.check_and_add(last, 21.0)
        assert not seen.check_and_add(longest_ago, 22.0)


def test_of_keys_met_in_one_moment_the_first_one_met_makes_room() -> None:
    """A batch is one moment: to come twice in it renews nothing, also where the first time is forgotten already."""
    seen = SeenSet(MINUTE, 2)
    assert [seen.check_and_add(key, 0.0) for key in "abacad"] == [False, False, True, False, False, False]
    assert seen.check_and_add("a", 1.0)
    assert not seen.check_and_add("c", 1.0)


STEPS = (0.0, 0.0, 0.0, 0.1, 1.0, 2.5, 5.0, 4.999999999999999, 12.0)
"""Between two meetings: often none, and exactly the window, and a hair less."""


@settings(max_examples=examples(1_000))
@given(
    st.integers(1, 7).flatmap(
        lambda keys: st.lists(st.tuples(st.integers(0, keys), st.sampled_from(STEPS)), min_size=5, max_size=40)
    ),
    st.sampled_from([0.0, 0.1, 86_400.3]),
    st.integers(1, 6),
    st.sampled_from([1, 2, 256]),
)
def test_the_window_is_what_a_list_of_keys_and_times_says(
    meetings: list[tuple[int, float]], now: float, max_items: int, swept_at_once: int
) -> None:
    """Answers and count are those of an oracle that looks through everything; what is held is bounded as promised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dedup, "_SWEPT_AT_ONCE", swept_at_once)
        seen = SeenSet(timedelta(seconds=5), max_items)
        last_met: list[tuple[int, float]] = []  # in that order; of one moment, in the order of the first meetings in it
        early = 0
        for key, step in meetings:
            now += step
            last_met = [(other, at) for other, at in last_met if now - at < 5.0]
            known = key in [other for other, _ in last_met]
            assert seen.check_and_add(key, now) is known
            if (key, now) not in last_met:
                last_met = [(other, at) for other, at in last_met if other != key]
                early += len(last_met) == max_items
                last_met = [*last_met, (key, now)][-max_items:]
            assert seen.evicted_early == early
            assert len(last_met) <= len(seen) <= max_items
            assert len(seen._keys) == len(seen._times) <= 2 * max_items
            if swept_at_once == 256:
                assert len(seen) == len(last_met)


def test_a_key_that_keeps_coming_takes_no_more_room_than_two() -> None:
    """A sensor that is stuck on one frame for an hour costs nothing."""
    seen = SeenSet(timedelta(hours=1), 1_000)
    for turn in range(10_000):
        seen.check_and_add("stuck", turn / 10)
    assert (len(seen), len(seen._keys), len(seen._times)) == (1, 2, 2)


def test_a_burst_that_grows_old_is_let_go_while_others_come_and_never_all_at_once() -> None:
    """Of 1,000 keys that nobody asks for again none is left after four other meetings; one meeting lets go of 256."""
    seen = SeenSet(MINUTE, 1_000_000)
    for key in range(1_000):
        seen.check_and_add(key, 0.0)
    held = []
    for turn in range(4):
        seen.check_and_add(f"other {turn}", 60.0)
        held.append(len(seen))
    assert held == [1_000 - 256 + 1, 1_000 - 512 + 2, 1_000 - 768 + 3, 4]


def test_a_key_that_cannot_be_looked_up_was_not_met() -> None:
    """What its hash or comparison raises is raised, nothing is remembered, and nothing has to go for it."""

    class Grumpy:
        good_humoured = False

        def __hash__(self) -> int:
            return hash("a")

        def __eq__(self, other: object) -> bool:
            if not self.good_humoured:
                raise away()
            return self is other

    seen, grumpy = SeenSet(MINUTE, 1), Grumpy()
    seen.check_and_add("a", 0.0)
    with pytest.raises(OperatorError):
        seen.check_and_add(grumpy, 1.0)
    with pytest.raises(TypeError):
        seen.check_and_add(cast("Any", ["unhashable"]), 1.0)
    assert (len(seen), seen.evicted_early) == (1, 0)
    grumpy.good_humoured = True
    assert not seen.check_and_add(grumpy, 1.0)


@pytest.mark.parametrize(
    "make", [SeenSet, lambda max_age, max_items: deduplicate(max_age=max_age, max_items=max_items)]
)
def test_bad_bounds_are_named_all_at_once_and_where_they_are_written(make: Callable[[timedelta, int], object]) -> None:
    """Both of them, with what was expected and what came, and before anything runs."""
    with pytest.raises(ValueError, match="SeenSet") as raised:
        make(timedelta(0), 0)
    assert str(raised.value) == (
        "SeenSet: max_age must be > 0, got datetime.timedelta(0); SeenSet: max_items must be >= 1, got 0"
    )


# The operator.


async def test_each_observation_passes_once_and_in_order() -> None:
    """Of twenty detections, half of them repeated on the spot and all of them later, the log gets twenty."""
    batch, sink = observations(20), CollectSink()
    again = observations(20)  # equal ids, other objects
    event = await run_graph(chain(source_of([*batch[:10], *again[:10], *batch[10:], *again]), deduplicate(), sink))
    assert isinstance(event, events.AllOk)
    assert event.figures.ledger_holds
    assert sink.items == batch
    assert event.figures.ledger.duplicates == 30
    assert event.figures.counters["op-1"] == {"remembered": 20, "evicted_early": 0}


def test_an_observation_is_recognised_by_its_id_alone() -> None:
    """The key is the id's own number, whatever else two observations have in common."""
    one, other = observations(2)
    assert observation_key(one) == one.observation_id.int
    assert observation_key(one) != observation_key(other)


async def test_its_figures_are_told_before_anything_comes() -> None:
    """Of a stream without items both are zero, and not absent."""
    event = await run_graph(chain(source_of(()), deduplicate(), CollectSink()))
    assert event.figures.counters["op-1"] == {"remembered": 0, "evicted_early": 0}


async def test_it_does_not_run_ahead_of_what_is_behind_it() -> None:
    """With a sink that takes nothing and edges of four, it judges two batches of four of a thousand and waits."""
    sink, judged = GatedSink(), []

    async def look_and_open(built: BuiltGraph) -> None:
        await settle()
        judged.append(counter(built, "remembered", "op-1"))
        sink.gate.set()

    event = await run_graph(
        chain(source_of(range(1_000)), deduplicate(key=itself), sink, capacity=4), during=look_and_open
    )
    assert judged == [8]
    assert sink.items == list(range(1_000))
    assert event.figures.ledger_holds


async def test_time_runs_on_the_monotonic_clock_whatever_the_wall_clock_does() -> None:
    """A wall clock that jumps years ahead and back between any two looks makes nothing old, and nothing young."""

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


async def test_what_is_forgotten_for_want_of_room_passes_again_and_is_counted() -> None:
    """With room for two of three ids, each has gone by the time it comes again."""
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
async def test_a_restart_forgets_what_is_not_kept(
    keep: bool,  # noqa: FBT001 - a parameter of the test
    arrive: list[str],
    duplicates: int,
    counters: dict[str, int],
) -> None:
    """Kept, an id that left before the restart is a duplicate behind it; not kept, it passes a second time."""
    sink, failing = CollectSink(), FailAt({3: away()})
    source = ListSource(["a", "b", "c", "c", "a"])  # the operator fails at the first "c"
    event = await run_graph(chain(source, deduplicate(key=failing, keep_across_restarts=keep), sink))
    assert event.figures.restarts["op-1"].total == 1
    assert event.figures.ledger_holds
    assert sink.items == arrive
    assert event.figures.ledger.duplicates == duplicates
    assert event.figures.counters["op-1"] == counters


async def test_what_was_forgotten_early_is_counted_over_all_instances() -> None:
    """A restart that forgets the window does not forget that it was too small."""
    failing = FailAt({4: away()})
    operator = deduplicate(max_items=1, key=failing, keep_across_restarts=False)
    event = await run_graph(chain(source_of("abcdef"), operator, CollectSink()))
    assert event.figures.restarts["op-1"].total == 1
    assert event.figures.counters["op-1"] == {"remembered": 1, "evicted_early": 2 + 2}


@pytest.mark.parametrize("call", range(1, 8))
async def test_an_item_that_is_redelivered_is_not_its_own_duplicate(call: int) -> None:
    """Wherever in a batch the key fails, each id arrives once, and exactly the repeats are booked as such."""
    sink, failing = CollectSink(), FailAt({call: away()})
    event = await run_graph(chain(source_of("abacab"), deduplicate(key=failing), sink))
    assert ("op-1" in event.figures.restarts) is (call <= 6)
    assert event.figures.ledger_holds
    assert sink.items == list("abc")
    assert event.figures.ledger.duplicates == 3
    assert event.figures.ledger.repeated == 0


async def test_a_poison_pill_is_buried_alone_and_is_no_original_of_what_comes_after_it() -> None:
    """What never left is not known: when it comes again and its key can be told, it passes."""
    letters, sink, looks = DeadLetterList(), CollectSink(), []

    def key(item: str) -> str:
        looks.append(item)
        if item == "b" and looks.count("b") <= 2:
            raise away()
        return item

    event = await run_graph(chain(source_of("abcbb"), deduplicate(key=key), sink), dead_letters=letters)
    assert [(letter.payload, letter.kind) for letter in letters.letters] == [("b", DeadLetterKind.POISON_PILL)]
    assert sink.items == ["a", "c", "b"]
    assert event.figures.ledger.duplicates == 1
    assert event.figures.ledger_holds


async def test_a_bug_in_the_key_buries_what_was_not_judged_and_nothing_else() -> None:
    """A panic in mid-batch: what came before it arrives, it and what came after it are dead letters, and all is booked."""
    letters, sink = DeadLetterList(), CollectSink()
    event = await run_graph(
        chain(source_of("aabcd"), deduplicate(key=FailAt({4: KeyError("a bug")})), sink), dead_letters=letters
    )
    assert isinstance(event, events.Panicked)
    assert sink.items == ["a", "b"]
    assert [letter.payload for letter in letters.letters] == ["c", "d"]
    assert event.figures.ledger.duplicates == 1
    assert event.figures.ledger_holds


async def test_what_cannot_be_delivered_in_the_end_is_buried_and_is_no_duplicate() -> None:
    """Aborted while it waits for room, it loses nothing of what it has judged: the outbox goes to the dead letters."""
    letters, sink, clock = DeadLetterList(), GatedSink(), ManualClock()
    source = ListSource(list("aabbccdd"))

    async def stop_twice(built: BuiltGraph) -> None:
        await eventually(lambda: counter(built, "remembered", "op-1") == 4, "all are judged")
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
    """What one of them has seen is news to the other, and to the next run of the same graph."""
    operator, first, second = deduplicate(key=itself), CollectSink(), CollectSink()
    event = await run_graph(chain(source_of("aab"), operator, operator, first))
    assert first.items == ["a", "b"]
    assert event.figures.ledger.duplicates == 1
    await run_graph(chain(source_of("abb"), operator, second))
    assert second.items == ["a", "b"]


# On every schedule.


@pytest.fixture
def _no_decisions_kept() -> Iterator[None]:
    """Of thousands of runs pytest would keep every line, with the frames of every traceback in it."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Scripted:
    """A source that emits its steps in turn and fails in between, and knows what it has let in."""

    def __init__(self, *steps: str) -> None:
        self.entered: list[str] = []
        self._steps = list(steps)

    async def __call__(self, ends: WiredEnds) -> None:
        while self._steps and not ends.shutdown.is_set:
            step = self._steps.pop(0)
            if step == "!":
                raise away()
            self.entered += step
            await ends.emit(step)


def hasty(failing: FailAt) -> Factory:
    """A relay that fails, if it does, when the item has left and is not acknowledged: it leaves again."""

    async def run(ends: WiredEnds) -> None:
        async for item in ends.receiver:
            await ends.sender.send(item)
            failing(item)

    return run


class FlakySink:
    """Collects one at a time, and fails, if it does, before it has done so."""

    def __init__(self, failing: FailAt) -> None:
        self.items: list[str] = []
        self._failing = failing

    async def __call__(self, ends: WiredEnds) -> None:
        async for item in ends.receiver:
            await asyncio.sleep(0)
            self._failing(item)
            self.items.append(item)


class Mishaps:
    """One run of ``source -> hasty -> dedup -> map -> sink`` in which everything fails now and then, drawn from a seed."""

    def __init__(self, seed: int, *, keep: bool) -> None:
        self._rng = rng = random.Random(seed)
        pool = "abcdefghij"[: rng.randint(1, 10)]
        steps = [
            "!" if rng.random() < 0.2 else "".join(rng.choices(pool, k=rng.randint(1, 6)))
            for _ in range(rng.randint(1, 8))
        ]
        self.source = Scripted(*steps)
        self.sink = FlakySink(self._fails())
        self.letters = DeadLetterList()
        self.dedup = Fault(deduplicate(key=self._fails(), keep_across_restarts=keep))
        graph = restarted_chain(
            self.source,
            hasty(self._fails()),
            self.dedup,
            map_items(self._fails()),
            self.sink,
            capacity=rng.randint(1, 4),
            max_deliveries=1_000,
        )
        self.built = graph.build(clock=LoopClock(), rng=rng, dead_letters=self.letters)

    def _fails(self) -> FailAt:
        share = self._rng.choice([0.0, 0.1, 0.4])
        return FailAt({call: away() for call in range(1, 60) if self._rng.random() < share})

    async def run(self, *, stops: int) -> SupervisorEvent:
        running = asyncio.create_task(self.built.run(SupervisionPolicy(grace=timedelta(hours=1))))
        moves: list[Callable[[], object]] = [self.dedup.strike] * self._rng.randint(0, 5)
        moves += [lambda: self.built.request_shutdown("asked")] * stops
        self._rng.shuffle(moves)
        for move in moves:
            for _ in range(self._rng.randint(1, 30)):
                await asyncio.sleep(0)
            move()
        return await running

    @property
    def buried(self) -> list[str]:
        return [letter.payload for letter in self.letters.letters]


@pytest.mark.usefixtures("_many_schedules", "_no_decisions_kept")
@small_and_long("seeds", 80, 400)
def test_whatever_fails_around_it_every_id_arrives_once_and_every_repeat_is_booked(seeds: int) -> None:
    """Sources, relays, keys, sinks fail and it is struck itself: in order, and to the item."""
    restarts = repeated = 0
    for seed in range(seeds):
        mishaps = Mishaps(seed, keep=True)
        event = run_schedule(seed, partial(mishaps.run, stops=0))
        figures, ledger = event.figures, event.figures.ledger
        assert isinstance(event, events.AllOk), seed
        assert figures.ledger_holds, seed
        assert mishaps.sink.items == list(dict.fromkeys(mishaps.source.entered)), seed
        assert ledger.duplicates == ledger.ingested + ledger.repeated - len(mishaps.sink.items), seed
        assert not mishaps.buried, seed
        restarts += figures.restarts["op-2"].total if "op-2" in figures.restarts else 0
        repeated += ledger.repeated
    assert restarts > seeds  # so that a scenario in which nothing happens does not pass for proven
    assert repeated > seeds


@pytest.mark.usefixtures("_many_schedules", "_no_decisions_kept")
@pytest.mark.parametrize("stops", [1, 2])
@small_and_long("seeds", 80, 400)
def test_stopped_at_any_moment_no_id_is_taken_for_a_duplicate_that_never_left(stops: int, seeds: int) -> None:
    """Drained or aborted: what came in arrives or is a dead letter, and nothing arrives twice."""
    buried = 0
    for seed in range(seeds):
        mishaps = Mishaps(seed, keep=True)
        event = run_schedule(seed, partial(mishaps.run, stops=stops))
        assert event.figures.ledger_holds, seed
        assert not event.figures.stragglers, seed
        assert {*mishaps.sink.items, *mishaps.buried} == set(mishaps.source.entered), seed
        assert len(set(mishaps.sink.items)) == len(mishaps.sink.items), seed
        buried += len(mishaps.buried)
    assert (buried > seeds) if stops == 2 else (buried == 0)  # a drain delivers everything


@pytest.mark.usefixtures("_many_schedules", "_no_decisions_kept")
@small_and_long("seeds", 80, 400)
def test_without_keeping_every_id_arrives_and_some_arrive_again(seeds: int) -> None:
    """At least once; what arrives and what is booked as a duplicate are together what came."""
    again = 0
    for seed in range(seeds):
        mishaps = Mishaps(seed, keep=False)
        event = run_schedule(seed, partial(mishaps.run, stops=0))
        ledger = event.figures.ledger
        assert event.figures.ledger_holds, seed
        assert set(mishaps.sink.items) == set(mishaps.source.entered), seed
        assert ledger.duplicates + len(mishaps.sink.items) == ledger.ingested + ledger.repeated, seed
        again += len(mishaps.sink.items) - len(set(mishaps.sink.items))
    assert again > seeds // 4


@pytest.mark.usefixtures("_many_schedules", "_no_decisions_kept")
@pytest.mark.parametrize("call", [1, 2, 3])
def test_on_every_schedule_a_key_that_fails_once_costs_neither_an_item_nor_a_repeat(call: int) -> None:
    """Over edges of one item, struck at any moment and failing at this call: a, b, and one duplicate."""

    async def scenario() -> None:
        sink, struck = CollectSink(), Fault(deduplicate(key=FailAt({call: away()})))
        built = restarted_chain(source_of("aab"), struck, sink, capacity=1, max_deliveries=9).build(clock=LoopClock())
        asyncio.get_running_loop().call_soon(struck.strike)
        event = await built.run()
        assert event.figures.ledger_holds
        assert sink.items == ["a", "b"]
        assert event.figures.ledger.duplicates == 1

    assert run_every_schedule(scenario, preemptions=2) > 100
