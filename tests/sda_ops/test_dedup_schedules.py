"""The ``deduplicate`` operator under random failures, on many schedules of the event loop."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial

import pytest

from orchestrator_adapter import (
    DeadLetterList,
    Factory,
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
    LoopClock,
    run_every_schedule,
    run_schedule,
)
from sda_ops.dedup import deduplicate
from tests.helpers.running import Fault
from tests.helpers.sizes import small_and_long
from tests.scenes.restarts import away, restarted_chain


@pytest.fixture
def _logging_disabled() -> Iterator[None]:
    """pytest would keep every log line of thousands of runs, with the frames of their tracebacks."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


class Scripted:
    """A source that emits its steps in order, fails at each ``!``, and records what it has emitted."""

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


def repeating_relay(failing: FailAt) -> Factory:
    """A relay that may fail after it has sent an item and before it acknowledges it, so that the item is sent again."""

    async def run(ends: WiredEnds) -> None:
        async for item in ends.receiver:
            await ends.sender.send(item)
            failing(item)

    return run


class FlakySink:
    """A sink that may fail before it stores an item."""

    def __init__(self, failing: FailAt) -> None:
        self.items: list[str] = []
        self._failing = failing

    async def __call__(self, ends: WiredEnds) -> None:
        async for item in ends.receiver:
            await asyncio.sleep(0)
            self._failing(item)
            self.items.append(item)


class FaultyRun:
    """One run of ``source -> repeating relay -> dedup -> map -> sink`` with random failures of each, drawn from a seed."""

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
            repeating_relay(self._fails()),
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
    def dead_lettered(self) -> list[str]:
        return [letter.payload for letter in self.letters.letters]


@pytest.mark.usefixtures("_many_schedules", "_logging_disabled")
@small_and_long("seeds", 80, 400)
def test_under_random_failures_every_id_arrives_once_and_every_repeat_is_counted(seeds: int) -> None:
    """Sources, relays, keys, sinks and the operator itself fail; ids arrive in order."""
    restarts = repeated = 0
    for seed in range(seeds):
        faulty = FaultyRun(seed, keep=True)
        event = run_schedule(seed, partial(faulty.run, stops=0))
        figures, ledger = event.figures, event.figures.ledger
        assert isinstance(event, events.AllOk), seed
        assert figures.ledger_holds, seed
        assert faulty.sink.items == list(dict.fromkeys(faulty.source.entered)), seed
        assert ledger.duplicates == ledger.ingested + ledger.repeated - len(faulty.sink.items), seed
        assert not faulty.dead_lettered, seed
        restarts += figures.restarts["op-2"].total if "op-2" in figures.restarts else 0
        repeated += ledger.repeated
    assert restarts > seeds  # otherwise the scenario proves nothing
    assert repeated > seeds


@pytest.mark.usefixtures("_many_schedules", "_logging_disabled")
@pytest.mark.parametrize("stops", [1, 2])
@small_and_long("seeds", 80, 400)
def test_when_stopped_at_any_moment_no_unsent_id_is_taken_for_a_duplicate(stops: int, seeds: int) -> None:
    """Drained or aborted: every id arrives or is a dead letter, and no id arrives twice."""
    dead_lettered = 0
    for seed in range(seeds):
        faulty = FaultyRun(seed, keep=True)
        event = run_schedule(seed, partial(faulty.run, stops=stops))
        assert event.figures.ledger_holds, seed
        assert not event.figures.stragglers, seed
        assert {*faulty.sink.items, *faulty.dead_lettered} == set(faulty.source.entered), seed
        assert len(set(faulty.sink.items)) == len(faulty.sink.items), seed
        dead_lettered += len(faulty.dead_lettered)
    assert (dead_lettered > seeds) if stops == 2 else (dead_lettered == 0)  # a drain delivers everything


@pytest.mark.usefixtures("_many_schedules", "_logging_disabled")
@small_and_long("seeds", 80, 400)
def test_without_keep_across_restarts_every_id_arrives_and_some_arrive_again(seeds: int) -> None:
    """Ids arrive at least once; arrived ids plus duplicates equal what was received."""
    again = 0
    for seed in range(seeds):
        faulty = FaultyRun(seed, keep=False)
        event = run_schedule(seed, partial(faulty.run, stops=0))
        ledger = event.figures.ledger
        assert event.figures.ledger_holds, seed
        assert set(faulty.sink.items) == set(faulty.source.entered), seed
        assert ledger.duplicates + len(faulty.sink.items) == ledger.ingested + ledger.repeated, seed
        again += len(faulty.sink.items) - len(set(faulty.sink.items))
    assert again > seeds // 4


@pytest.mark.usefixtures("_many_schedules", "_logging_disabled")
@pytest.mark.parametrize("call", [1, 2, 3])
def test_on_every_schedule_a_key_that_fails_once_loses_and_repeats_nothing(call: int) -> None:
    """With edges of one item, a fault at any moment and a failing key at this call: a, b, and one duplicate."""

    async def scenario() -> None:
        sink, dedup = CollectSink(), Fault(deduplicate(key=FailAt({call: away()})))
        built = restarted_chain(source_of("aab"), dedup, sink, capacity=1, max_deliveries=9).build(clock=LoopClock())
        asyncio.get_running_loop().call_soon(dedup.strike)
        event = await built.run()
        assert event.figures.ledger_holds
        assert sink.items == ["a", "b"]
        assert event.figures.ledger.duplicates == 1

    assert run_every_schedule(scenario, preemptions=2) > 100
