"""Control items in random graphs, in virtual time: every sink sees each of them once, in its place, although operators fail."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator_adapter import (
    BuiltGraph,
    Control,
    DeadLetterList,
    Discard,
    Factory,
    FlowPolicy,
    OperatorError,
    OperatorGraph,
    RestartPolicy,
    SignalsSnapshot,
    SupervisionHooks,
    VertexId,
    WiredEnds,
    broadcast,
    events,
    filter_items,
    flat_map_items,
    frozen_heap,
    map_batches,
    map_items,
    merge,
    partition,
    sift,
    source_of,
)
from orchestrator_adapter.testing import CollectSink, FailAt, LoopClock, ManualClock, run_graph, run_schedule
from tests.helpers.sizes import small_and_long


@dataclass(frozen=True, slots=True)
class Mark(Control):
    """Sent by ``source`` after it has sent ``after`` items; ``number`` is unique."""

    source: str
    number: int
    after: int


Item = tuple[str, int]  # its source, and its number there, from 0


@pytest.fixture(autouse=True)
def _no_decisions_kept() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


# The scripts of the sources, and the operators that a random graph is made of.


def script(rng: random.Random, source: str) -> list[Item | Mark]:
    """Some items with control items between them, at random places: in front, at the end, several without items between them."""
    items = [(source, number) for number in range(rng.randrange(0, 30))]
    script: list[Item | Mark] = list(items)
    for number in range(rng.randrange(0, 8)):
        at = rng.randrange(len(script) + 1)
        script.insert(at, Mark(source, number, 0))
    sent = 0
    for at, entry in enumerate(script):
        if isinstance(entry, Mark):
            script[at] = Mark(source, entry.number, sent)
        else:
            sent += 1
    return script


def checked(item: Any) -> Any:
    """What functions of the user get: never a control item."""
    assert not isinstance(item, Control)
    return item


async def one_by_one(ends: WiredEnds) -> None:
    """Written by hand, and it knows nothing of control items."""
    async for item in ends.receiver:
        await asyncio.sleep(0)
        await ends.sender.send(checked(item))


async def commits_and_flushes(ends: WiredEnds) -> None:
    while batch := await ends.receiver.recv_many(3):
        ends.commit([checked(item) for item in batch], acknowledge=len(batch))
        await ends.flush()


def acts_on_control_items(failures: int) -> Factory:
    """Reads control items, and fails so often with one leased: it must get that one again, in its place."""
    left = [failures]

    async def run(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(4, controls=True):
            if isinstance(batch, Control):
                if left[0]:
                    left[0] -= 1
                    raise OperatorError("failed at a control item")
                await asyncio.sleep(0)
            else:
                ends.commit([checked(item) for item in batch], acknowledge=len(batch))
                await ends.flush()

    return run


async def merges_by_hand(ends: WiredEnds) -> None:
    while True:
        moved = False
        for receiver in ends.receivers:
            if batch := receiver.try_recv_many(2):
                moved = True
                ends.sender.offer([checked(item) for item in batch])
                await ends.flush()
        if not moved:
            await ends.wait_for_items()
            if all(receiver.ended for receiver in ends.receivers):
                return


def failing(rng: random.Random) -> Callable[[Any], Any]:
    fails = FailAt({rng.randrange(1, 20): OperatorError("away") for _ in range(rng.randrange(3))})
    return lambda item: fails(checked(item))


def always_fails_at(number: int) -> Callable[[Any], Any]:
    def function(item: Any) -> Any:
        if checked(item)[1] == number:
            raise OperatorError("poison")
        return item

    return function


def operator(rng: random.Random) -> tuple[Factory, bool]:
    """Any operator, and whether it is expanding."""
    made: Sequence[tuple[Callable[[], Factory], bool]] = (
        (lambda: map_items(failing(rng), max_batch=rng.randrange(1, 6)), False),
        (lambda: map_items(always_fails_at(rng.randrange(10))), False),
        (lambda: map_batches(lambda batch: [checked(item) for item in batch]), False),
        (lambda: flat_map_items(lambda item: [checked(item)] * 2), True),
        (lambda: filter_items(lambda item: bool(checked(item)[1] % 3)), False),
        (lambda: sift(lambda item: Discard() if checked(item)[1] % 4 == 0 else None), False),
        (lambda: one_by_one, False),
        (lambda: commits_and_flushes, False),
        (lambda: acts_on_control_items(rng.randrange(3)), False),
    )
    make, expanding = rng.choice(made)
    return make(), expanding


@dataclass
class RandomGraph:
    """A random graph in which each source has one path to each sink at most, so that the place of a control item is one."""

    rng: random.Random
    folder: Path
    graph: OperatorGraph = field(default_factory=lambda: OperatorGraph("random"))
    scripts: dict[str, list[Item | Mark]] = field(default_factory=dict)
    sinks: dict[str, tuple[CollectSink, frozenset[str]]] = field(default_factory=dict)
    open_ends: list[tuple[VertexId, frozenset[str]]] = field(default_factory=list)
    made: int = 0

    def __post_init__(self) -> None:
        rng = self.rng
        for number in range(rng.randrange(1, 4)):
            name = f"source-{number}"
            self.scripts[name] = script(rng, name)
            source = self.graph.add_source(name, source_of(self.scripts[name], batch=rng.randrange(1, 9)))
            self.open_ends.append((source, frozenset({name})))
        for _ in range(rng.randrange(6)):
            rng.choice((self._operator, self._operator, self._fan_out, self._fan_in))()
        while len(self.open_ends) > 1 and rng.random() < 0.5:
            if not self._fan_in():
                break
        for vertex, sources in self.open_ends:
            sink, name = CollectSink(controls=True), self._name("sink")
            self.sinks[name] = (sink, sources)
            self._connect(vertex, self.graph.add_sink(name, sink))

    def _name(self, kind: str) -> str:
        self.made += 1
        return f"{kind}-{self.made}"

    def _connect(self, up: VertexId, down: VertexId) -> None:
        policy = self.rng.choice(
            (
                FlowPolicy.backpressure(),
                FlowPolicy.backpressure(),
                FlowPolicy.shed(),
                FlowPolicy.timed(timedelta(seconds=1)),
                FlowPolicy.spill(self.folder, max_bytes=self.rng.choice((300, 100_000))),
            )
        )
        self.graph.connect(up, down, self.rng.choice((1, 1, 2, 5, 64)), policy=policy)

    def _take(self) -> tuple[VertexId, frozenset[str]]:
        return self.open_ends.pop(self.rng.randrange(len(self.open_ends)))

    def _operator(self) -> bool:
        vertex, sources = self._take()
        factory, expanding = operator(self.rng)
        always = RestartPolicy.always(backoff=None)
        down = self.graph.add_operator(self._name("operator"), factory, expanding=expanding, restart_policy=always)
        self._connect(vertex, down)
        self.open_ends.append((down, sources))
        return True

    def _fan_out(self) -> bool:
        vertex, sources = self._take()
        factory = broadcast(max_batch=3) if self.rng.random() < 0.5 else partition(lambda item: checked(item)[1])
        down = self.graph.add_fan_out(self._name("fan-out"), factory)
        self._connect(vertex, down)
        self.open_ends += [(down, sources)] * self.rng.randrange(2, 4)
        return True

    def _fan_in(self) -> bool:
        """Join two ends without a common source, if there are such two."""
        (first, its), *others = self.rng.sample(self.open_ends, len(self.open_ends))
        disjoint = [(other, sources) for other, sources in others if not its & sources]
        if not disjoint:
            return False
        second, sources = disjoint[0]
        self.open_ends.remove((first, its))
        self.open_ends.remove((second, sources))
        factory = self.rng.choice((merge(max_batch=self.rng.randrange(1, 5)), merges_by_hand))
        down = self.graph.add_fan_in(self._name("fan-in"), factory)
        self._connect(first, down)
        self._connect(second, down)
        self.open_ends.append((down, its | sources))
        return True

    def check(self, built: BuiltGraph, figures: events.RunFigures) -> None:
        """Every sink has every control item of its sources once, behind the items before it and in front of the others."""
        for name, (sink, sources) in self.sinks.items():
            for source in sources:
                seen = [
                    entry for entry in sink.items if (entry.source if isinstance(entry, Mark) else entry[0]) == source
                ]
                marks = [entry for entry in self.scripts[source] if isinstance(entry, Mark)]
                assert [entry for entry in seen if isinstance(entry, Mark)] == marks, name
                passed = 0
                for entry in seen:
                    if isinstance(entry, Mark):
                        passed = entry.after
                    else:
                        assert entry[1] >= passed, (name, source, seen)
                for at, entry in enumerate(seen):
                    if isinstance(entry, Mark):
                        assert all(isinstance(before, Mark) or before[1] < entry.after for before in seen[:at]), name
        assert figures.ledger_holds, figures.ledger
        assert not figures.ledger.in_flight
        signals = figures.signals
        assert signals.balanced
        assert (signals.in_flight, signals.undelivered) == (0, 0)
        edges = built.status().edges
        assert signals.sent == sum(edge.signals_sent for edge in edges.values())
        assert signals.received == sum(edge.signals_received for edge in edges.values())
        data = sum(isinstance(entry, tuple) for script in self.scripts.values() for entry in script)
        assert figures.ledger.ingested == data
        assert all(edge.high_water_mark <= edge.capacity for edge in edges.values())


def run_random_graph(seed: int, folder: Path) -> None:
    random_graph = RandomGraph(random.Random(seed), folder)
    letters = DeadLetterList()

    async def scenario() -> None:
        built = random_graph.graph.build(clock=LoopClock(), dead_letters=letters, rng=random.Random(seed))
        running = asyncio.create_task(built.run())
        for _ in range(random_graph.rng.randrange(500)):
            await asyncio.sleep(0)
            assert built.ledger().balanced, built.ledger()
            assert built.signals().balanced, built.signals()
        event = await running
        assert isinstance(event, events.AllOk), event
        random_graph.check(built, event.figures)
        assert not any(isinstance(letter.payload, Control) for letter in letters.letters)

    run_schedule(seed, scenario)


def stop_random_graph(seed: int, folder: Path) -> None:
    """A shutdown, or a cancellation of the run, in the middle."""
    random_graph = RandomGraph(random.Random(seed), folder)
    letters = DeadLetterList()

    async def scenario() -> None:
        built = random_graph.graph.build(clock=LoopClock(), dead_letters=letters, rng=random.Random(seed))
        started = asyncio.Event()
        running = asyncio.create_task(built.run(hooks=SupervisionHooks(on_spawn=lambda _: started.set())))
        await started.wait()  # a run that is cancelled before its first step does not begin
        for _ in range(random_graph.rng.randrange(200)):
            await asyncio.sleep(0)
        if random_graph.rng.random() < 0.3:
            running.cancel()
            await asyncio.sleep(0)
            running.cancel()
        else:
            built.request_shutdown("asked")
        await asyncio.wait({running})
        event = built.event
        assert event is not None
        assert event.figures.ledger_holds
        assert (event.figures.ledger.in_flight, event.figures.signals.in_flight) == (0, 0)
        assert not any(isinstance(letter.payload, Control) for letter in letters.letters)
        for sink, sources in random_graph.sinks.values():
            for source in sources:
                marks = [entry for entry in random_graph.scripts[source] if isinstance(entry, Mark)]
                seen = [entry for entry in sink.items if isinstance(entry, Mark) and entry.source == source]
                assert seen == marks[: len(seen)]

    run_schedule(seed, scenario)


async def test_control_items_that_are_processed_are_progress() -> None:
    """A sink that works 3 s on each of ten control items is not stalled after 5 s."""
    clock = ManualClock(autojump=True)

    async def slow(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(controls=True):
            assert isinstance(batch, Mark)
            await ends.shutdown.wait_at_most(3, ends.clock)

    graph = OperatorGraph("slow")
    sink = graph.add_sink("sink", slow, progress_timeout=timedelta(seconds=5))
    graph.connect(graph.add_source("source", source_of([Mark("source", n, 0) for n in range(10)])), sink, 16)
    event = await run_graph(graph, clock=clock)
    assert isinstance(event, events.AllOk)
    assert dict(event.figures.restarts) == {}
    assert event.figures.signals == SignalsSnapshot(sent=10, received=10)
    assert event.figures.ledger.entered == 0


@small_and_long("seeds", range(40), range(40, 2_000))
def test_a_graph_that_is_stopped_accounts_for_every_control_item(seeds: range, tmp_path: Path) -> None:
    """After a shutdown or an abort at any moment: received or undelivered, no dead letter, and those that arrived in order."""
    with frozen_heap():
        for seed in seeds:
            try:
                stop_random_graph(seed, tmp_path / str(seed))
            except BaseException as error:
                error.add_note(f"stop_random_graph({seed})")
                raise


@small_and_long("seeds", range(25), range(25, 4_000))
def test_every_sink_sees_every_control_item_once_in_its_place(seeds: range, tmp_path: Path) -> None:
    """In graphs of any operators, policies and failures, each control item keeps its place on each path."""
    with frozen_heap():
        for seed in seeds:
            try:
                run_random_graph(seed, tmp_path / str(seed))
            except BaseException as error:
                error.add_note(f"run_random_graph({seed})")
                raise
