"""Small graphs under every schedule, or every schedule with a few preemptions. Nothing is random."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import pytest

from orchestrator_adapter import (
    Aligned,
    BuiltGraph,
    Control,
    DeadLetterList,
    Factory,
    FlowPolicy,
    OperatorError,
    OperatorGraph,
    Receiver,
    RestartPolicy,
    SignalsSnapshot,
    SupervisorEvent,
    WiredEnds,
    broadcast,
    filter_items,
    flat_map_items,
    map_items,
    merge,
    partition,
    source_of,
)
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import (
    CollectSink,
    Deadlock,
    FailAt,
    LoopClock,
    chain,
    run_every_schedule,
    run_schedule,
)
from tests.chaos.mutants import (
    lease_drops_an_item,
    lease_is_returned_reversed,
    room_wakes_no_writer,
    the_end_wakes_no_reader,
)

pytestmark = pytest.mark.usefixtures("_many_schedules")


@pytest.fixture(autouse=True)
def _no_decisions_kept() -> Iterator[None]:
    """For thousands of runs pytest would keep every log line, and the frames of every traceback."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def away() -> OperatorError:
    """A new one each time: an exception keeps the frames of every place that raised it."""
    return OperatorError("away")


class Scene:
    """One run of a graph with sources of 0, 1, 2 …, and its result."""

    def __init__(self, graph: OperatorGraph, *sinks: CollectSink) -> None:
        self.letters = DeadLetterList()
        self.built: BuiltGraph = graph.build(clock=LoopClock(), dead_letters=self.letters)
        self.sinks = sinks

    @property
    def written(self) -> list[Any]:
        return [item for sink in self.sinks for item in sink.items]

    async def run(self, *interventions: Callable[[BuiltGraph], object]) -> SupervisorEvent:
        """Run it. Each intervention is called once, at a turn that the schedule chooses."""
        running = asyncio.create_task(self.built.run(), name="run")
        loop = asyncio.get_running_loop()
        for intervention in interventions:
            loop.call_soon(intervention, self.built)
        event = await running
        figures = event.figures
        assert figures.ledger_holds
        assert not figures.violations
        assert not figures.ledger.in_flight
        assert not figures.stragglers
        return event

    def every_item_is_somewhere(self, event: SupervisorEvent) -> None:
        """Every ingested item is written once, or dead-lettered with a reason. Items of one source are written in order."""
        dead = [letter.payload for letter in self.letters.letters]
        assert all(letter.message for letter in self.letters.letters)
        assert len({*self.written, *dead}) == len(self.written) + len(dead) == event.figures.ledger.ingested
        for sink in self.sinks:
            assert sink.items == sorted(sink.items)


def ask_to_stop(built: BuiltGraph) -> None:
    built.request_shutdown("asked")


def cancel_the_run(_: BuiltGraph) -> None:
    next(task for task in asyncio.all_tasks() if task.get_name() == "run").cancel()


async def one_by_one(ends: WiredEnds) -> None:
    """Hand-written: one await for each item at both ends, and a turn of the loop between them."""
    async for item in ends.receiver:
        await asyncio.sleep(0)
        await ends.sender.send(item)


class Every(Protocol):
    """Runs a scenario under every schedule of at most so many preemptions, which must be at least so many schedules.

    The minimum shows that the scenario has choices in it. Of each pair the first is for ``make test``, the second for
    ``make test-long``.
    """

    def __call__(
        self,
        scenario: Callable[[], Coroutine[Any, Any, None]],
        *,
        preemptions: tuple[int, int],
        at_least: tuple[int, int],
    ) -> None: ...


@pytest.fixture(params=[0, pytest.param(1, marks=pytest.mark.long)], ids=["small", "long"])
def every(request: pytest.FixtureRequest) -> Every:
    size: int = request.param

    def run(
        scenario: Callable[[], Coroutine[Any, Any, None]],
        *,
        preemptions: tuple[int, int],
        at_least: tuple[int, int],
    ) -> None:
        ran = run_every_schedule(scenario, preemptions=preemptions[size])
        assert ran >= at_least[size]

    return run


# Streams without an intervention.


@pytest.mark.parametrize(
    ("operator", "preemptions", "at_least"),
    [
        (lambda: map_items(FailAt({2: away()})), 5, (300, 500)),
        (lambda: map_items(FailAt({1: away(), 3: away(), 5: away()})), 5, (500, 1_000)),
        (lambda: one_by_one, 6, (1_000, 1_500)),
    ],
    ids=["fails once", "fails often", "item by item"],
)
def test_a_stream_arrives_complete_and_in_order(
    operator: Callable[[], Factory], preemptions: int, at_least: tuple[int, int], every: Every
) -> None:
    """Over edges of one item, with an operator that fails and is restarted, each item arrives once, in order."""

    async def scenario() -> None:
        sink = CollectSink()
        scene = Scene(chain(source_of(range(3)), operator(), sink, capacity=1), sink)
        assert isinstance(await scene.run(), events.AllOk)
        assert sink.items == [0, 1, 2]

    every(scenario, preemptions=(preemptions - 1, preemptions), at_least=at_least)


@dataclass(frozen=True, slots=True)
class Mark(Control):
    number: int


def test_control_items_keep_their_place(every: Every) -> None:
    """Over edges of one item, with an operator that fails and is restarted, each control item arrives once, in its place."""
    stream = [Mark(0), 0, Mark(1), Mark(2), 1, Mark(3)]

    async def scenario() -> None:
        sink = CollectSink(controls=True)
        scene = Scene(chain(source_of(stream, batch=4), map_items(FailAt({2: away()})), sink, capacity=1), sink)
        event = await scene.run()
        assert isinstance(event, events.AllOk)
        assert sink.items == stream
        assert event.figures.signals == SignalsSnapshot(sent=8, received=8)

    every(scenario, preemptions=(3, 5), at_least=(50, 200))


def test_a_barrier_is_aligned(every: Every) -> None:
    """What is in front of a barrier in any input is sent before it, what is behind it in any input after it."""

    async def scenario() -> None:
        graph, sink = OperatorGraph("join"), CollectSink(controls=True)
        join = graph.add_fan_in("join", merge(combine={Mark: Aligned(lambda mark: mark.number)}, max_batch=1))
        for tens in (0, 10):
            source = graph.add_source(f"source-{tens}", source_of([tens, Mark(1), tens + 1], batch=1))
            graph.connect(source, join, 1)
        graph.connect(join, graph.add_sink("sink", sink), 1)
        assert isinstance(await Scene(graph, sink).run(), events.AllOk)
        at = sink.items.index(Mark(1))
        assert (set(sink.items[:at]), set(sink.items[at + 1 :])) == ({0, 10}, {1, 11})

    every(scenario, preemptions=(2, 3), at_least=(50, 200))


def test_a_failure_after_sending_repeats_and_counts_what_it_repeats(every: Every) -> None:
    """An operator that fails between its send and its acknowledgement repeats that item, and the ledger counts it."""

    async def scenario() -> None:
        sink, failing = CollectSink(), FailAt({2: away()})

        async def sends_and_fails(ends: WiredEnds) -> None:
            async for item in ends.receiver:
                await ends.sender.send(item)
                failing(item)

        scene = Scene(chain(source_of(range(3)), sends_and_fails, sink, capacity=1), sink)
        event = await scene.run()
        assert sink.items == [0, 1, 1, 2]
        assert event.figures.ledger.repeated == 1

    every(scenario, preemptions=(4, 5), at_least=(450, 800))


def test_a_fan_in_takes_every_item_from_every_input(every: Every) -> None:
    """Two sources into a merge: both streams arrive complete, each in its own order."""

    async def scenario() -> None:
        graph, sink = OperatorGraph("join"), CollectSink()
        join = graph.add_fan_in("join", merge(max_batch=1))
        for tens in (0, 10):
            graph.connect(graph.add_source(f"source-{tens}", source_of([tens, tens + 1], batch=1)), join, 1)
        graph.connect(join, graph.add_sink("sink", sink), 1)
        assert isinstance(await Scene(graph, sink).run(), events.AllOk)
        assert [item for item in sink.items if item < 10] == [0, 1]
        assert [item for item in sink.items if item >= 10] == [10, 11]

    every(scenario, preemptions=(2, 3), at_least=(200, 1_000))


@pytest.mark.parametrize("router", [broadcast, lambda: partition(lambda item: item, everywhere=lambda _: True)])
def test_a_fan_out_delivers_every_item_to_every_reader(router: Callable[[], Factory], every: Every) -> None:
    """Two readers, of which one fails and is restarted: both receive every item, in order."""

    async def scenario() -> None:
        graph, sinks = OperatorGraph("split"), [CollectSink(), CollectSink()]
        split = graph.add_fan_out("split", router())
        graph.connect(graph.add_source("source", source_of(range(3), batch=1)), split, 1)
        failing = graph.add_operator(
            "failing", map_items(FailAt({2: away()})), restart_policy=RestartPolicy.always(backoff=None)
        )
        graph.connect(split, failing, 1)
        graph.connect(failing, graph.add_sink("sink-0", sinks[0]), 1)
        graph.connect(split, graph.add_sink("sink-1", sinks[1]), 2)
        event = await Scene(graph, *sinks).run()
        assert isinstance(event, events.AllOk)
        assert [sink.items for sink in sinks] == [[0, 1, 2]] * 2
        assert event.figures.ledger.derived == 3

    every(scenario, preemptions=(2, 3), at_least=(700, 5_000))


@pytest.mark.parametrize(
    "policy",
    [
        FlowPolicy.shed(),
        FlowPolicy.timed(timedelta(milliseconds=1)),
        FlowPolicy.timed(timedelta(seconds=1)),
        FlowPolicy.spill("unused"),
    ],
)
def test_an_edge_counts_what_it_drops(policy: FlowPolicy, tmp_path: Path) -> None:
    """At a full edge an item waits, is shed or is dead-lettered, as the policy says. No item is dropped uncounted."""

    async def scenario() -> None:
        sink, letters = CollectSink(), DeadLetterList()

        async def slow(ends: WiredEnds) -> None:
            async for item in ends.receiver:
                await asyncio.sleep(0.01)
                sink.items.append(item)

        graph = OperatorGraph("full")
        source = graph.add_source("source", source_of(range(4), batch=1))
        here = FlowPolicy.spill(tmp_path) if policy.name == "spill" else policy
        graph.connect(source, graph.add_sink("sink", slow), 1, policy=here)
        event = await graph.build(clock=LoopClock(), dead_letters=letters).run()
        ledger = event.figures.ledger
        assert event.figures.ledger_holds
        assert ledger.written == len(sink.items)
        assert ledger.ingested == 4 == len(sink.items) + ledger.shed + len(letters.letters)
        if policy in {FlowPolicy.timed(timedelta(seconds=1)), FlowPolicy.spill("unused")}:
            assert sink.items == [0, 1, 2, 3]
        else:
            assert sink.items[0] == 0
            assert len(sink.items) < 4
            assert bool(ledger.shed) is (policy == FlowPolicy.shed())

    assert run_every_schedule(scenario) >= 2


def test_a_poison_pill_is_removed_and_the_other_items_arrive(every: Every) -> None:
    """An item that always fails is dead-lettered after two deliveries. The items leased with it arrive, in order."""

    async def scenario() -> None:
        sink, seen = CollectSink(), list[int]()

        def swallow(item: int) -> int:
            seen.append(item)
            if item == 1:
                raise away()
            return item

        once = RestartPolicy.bounded(1, timedelta(seconds=60), backoff=None)
        graph = OperatorGraph("pill")
        operator = graph.add_operator("operator", map_items(swallow), restart_policy=once)
        graph.connect(graph.add_source("source", source_of(range(4), batch=2)), operator, 2)
        graph.connect(operator, graph.add_sink("sink", sink), 1)
        scene = Scene(graph, sink)
        event = await scene.run()
        assert isinstance(event, events.AllOk)
        assert sink.items == [0, 2, 3]
        assert seen.count(1) == 2
        assert [(letter.payload, letter.attempts) for letter in scene.letters.letters] == [(1, 2)]

    every(scenario, preemptions=(3, 4), at_least=(300, 800))


# Runs that are ended, at every possible moment.


@pytest.mark.parametrize(
    ("interventions", "outcome"),
    [
        ((ask_to_stop,), events.ShutDown),
        ((ask_to_stop, ask_to_stop), events.ShutDown),
    ],
    ids=["drained", "aborted"],
)
def test_a_shutdown_at_any_moment_loses_nothing(
    interventions: tuple[Callable[[BuiltGraph], object], ...], outcome: type[SupervisorEvent], every: Every
) -> None:
    """With one or two requests, at any turns, every ingested item is written or dead-lettered, and every task has ended."""

    async def scenario() -> None:
        sink = CollectSink()
        graph = chain(source_of(range(3)), one_by_one, filter_items(lambda _: True), sink, capacity=1)
        scene = Scene(graph, sink)
        event = await scene.run(*interventions)
        assert isinstance(event, outcome | events.AllOk)  # it may have ended before the request
        if len(interventions) == 1:
            assert not scene.letters.letters
        if not event.figures.ledger.repeated:
            scene.every_item_is_somewhere(event)
        assert not operators_left()

    every(scenario, preemptions=(2, 3), at_least=(150, 500))


def test_a_cancelled_run_shuts_down_and_raises_the_cancellation(every: Every) -> None:
    """Whenever ``run()`` is cancelled, it ends as after a request, sets its event, and only then raises."""

    async def scenario() -> None:
        sink = CollectSink()
        scene = Scene(chain(source_of(range(3)), map_items(str), sink, capacity=1), sink)
        try:
            await scene.run(cancel_the_run)
        except asyncio.CancelledError:
            event = scene.built.event
            if event is None:
                assert not scene.built.ledger().ingested  # cancelled before its first step: nothing ran
                return
            assert isinstance(event, events.ShutDown)
            assert event.figures.ledger_holds
            scene.every_item_is_somewhere(event)
        assert not operators_left()

    every(scenario, preemptions=(3, 4), at_least=(500, 1_000))


def test_a_panic_tears_the_graph_down_and_names_its_leased_items(every: Every) -> None:
    """The leased items are dead-lettered and named. The rest is delivered or dead-lettered. Nothing is restarted."""

    async def scenario() -> None:
        sink = CollectSink()
        graph = chain(source_of(range(4)), map_items(FailAt({2: KeyError("bug")})), one_by_one, sink, capacity=2)
        scene = Scene(graph, sink)
        event = await scene.run()
        assert isinstance(event, events.Panicked)
        assert event.operator == "op-1"
        assert not event.figures.restarts
        scene.every_item_is_somewhere(event)
        leased = [letter for letter in scene.letters.letters if "KeyError" in letter.message]
        assert [repr(letter.payload) for letter in leased[: len(event.leased)]] == list(event.leased)
        assert 1 in [letter.payload for letter in leased]
        assert not operators_left()

    every(scenario, preemptions=(2, 3), at_least=(200, 1_000))


def test_an_exhausted_budget_at_any_moment_loses_nothing(every: Every) -> None:
    """With one restart allowed, the second failure ends the run. Every item is written or dead-lettered."""

    async def scenario() -> None:
        sink = CollectSink()
        graph = OperatorGraph("budget")
        operator = graph.add_operator(
            "operator",
            flat_map_items(lambda item: [failing(item)]),
            expanding=True,
            restart_policy=RestartPolicy.bounded(1, timedelta(seconds=60), backoff=None),
            max_deliveries=9,
        )
        failing = FailAt({2: away(), 3: away()})
        graph.connect(graph.add_source("source", source_of(range(3), batch=1)), operator, 2)
        graph.connect(operator, graph.add_sink("sink", sink), 1)
        scene = Scene(graph, sink)
        event = await scene.run()
        assert isinstance(event, events.BudgetExhausted)
        assert event.figures.restarts["operator"].total == 1
        scene.every_item_is_somewhere(event)

    every(scenario, preemptions=(4, 5), at_least=(350, 500))


def operators_left() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("operator:")]


# The schedules detect bugs.


async def _failing_stream() -> None:
    sink = CollectSink()
    failing = map_items(FailAt({1: away()}))
    scene = Scene(chain(source_of(range(4), batch=2), failing, sink, capacity=2), sink)
    await scene.run()
    assert sink.items == [0, 1, 2, 3]


@pytest.mark.parametrize("mutant", [lease_drops_an_item, lease_is_returned_reversed])
def test_a_broken_lease_is_found(mutant: Callable[[], Any]) -> None:
    """If a returned lease loses an item or its order, a schedule fails."""
    with mutant(), pytest.raises(AssertionError):
        run_every_schedule(_failing_stream, preemptions=2)


@pytest.mark.parametrize("mutant", [room_wakes_no_writer, the_end_wakes_no_reader])
def test_a_missing_wake_up_is_found(mutant: Callable[[], Any]) -> None:
    """If the writer is not woken by space, or the reader by the end of stream, some schedule waits for ever."""
    with mutant(), pytest.raises(Deadlock) as caught:
        run_every_schedule(_failing_stream, preemptions=2)
    again = caught.value.__notes__[0]
    departed = eval(again.removeprefix("again, with: run_schedule(").removesuffix(", …)"))
    with mutant(), pytest.raises(Deadlock):
        run_schedule(departed, _failing_stream)


def test_a_reader_that_does_not_check_again_is_found() -> None:
    """A race that asyncio's own order hides: a check, a turn of the loop, then the wait. One preemption finds it."""

    async def checks_once(ends: WiredEnds) -> None:
        receiver: Receiver[Any] = ends.receiver
        while not receiver.ended:
            if receiver.ready:
                receiver.try_recv_many()
                receiver.acknowledge()
                continue
            await asyncio.sleep(0)  # the item, and its wake-up, may come here
            await ends._inputs.wakeup.wait()

    async def scenario() -> None:
        await chain(source_of(range(2), batch=1), checks_once, capacity=1).build(clock=LoopClock()).run()

    with pytest.raises(Deadlock):
        run_every_schedule(scenario, preemptions=1)
