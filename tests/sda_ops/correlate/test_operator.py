"""``propagate``, ``correlate`` and ``fuse`` in running graphs: nothing is lost, nothing comes twice, and the order stays."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import pytest

from orchestrator_adapter import (
    BuiltGraph,
    DeadLetterKind,
    DeadLetterList,
    Factory,
    OperatorError,
    OperatorGraph,
    SupervisorEvent,
    WiredEnds,
    map_items,
    source_of,
)
from orchestrator_adapter.bulkhead import BatchLost
from orchestrator_adapter.primitives.gc_freeze import frozen_heap
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import (
    CollectSink,
    FailAt,
    ListSource,
    ManualClock,
    Pause,
    UntilShutdown,
    chain,
    run_graph,
    settle,
)
from sda_ops.astro.propagation import States
from sda_ops.astro.time import NS_PER_S, Nanoseconds
from sda_ops.catalog import ElementColumns
from sda_ops.correlate import operator as operators
from sda_ops.correlate.associate import Associator
from sda_ops.correlate.fuse import fuse
from sda_ops.correlate.windows import WindowLimits
from sda_ops.propagation import operator as propagation_operator
from sda_ops.propagation.interval import STEP_NS, CatalogInterval, Placed, knots_of
from sda_ops.propagation.operator import Prediction
from sda_ops.propagation.pool import InlinePropagator
from sda_ops.propagation.uncertainty import ElementSetErrors, Objects
from sda_ops.records.correlation import Correlation, CrossSensorUpdate
from sda_ops.records.observation import Observation
from tests.helpers.running import NOON_NS, Fault, GatedSink, counter, eventually
from tests.scenes.correlate_scenes import Moment, beacon, interval_at, sky
from tests.scenes.tracks import FixedCatalog, Version

RENUMBERED = 1_000_000
PREDICTION = Prediction(errors=ElementSetErrors())


@cache
def columns(*, renumbered: bool = False) -> ElementColumns:
    """The sky's; or the same orbits under other numbers."""
    element_sets = sky()
    if renumbered:
        element_sets = tuple(replace(each, catalog_number=each.catalog_number + RENUMBERED) for each in element_sets)
    return ElementColumns.of(element_sets)


class Propagating:
    """An `InlinePropagator` that notes what it is asked for, and does ``first`` what it is told to."""

    def __init__(self, first: Callable[[list[int]], object] = lambda _: None) -> None:
        self.knots: list[int] = []
        self.catalogs = 0
        self._first = first
        self._inner = InlinePropagator(engine="sgp4")

    async def use_catalog(self, columns: ElementColumns) -> int:
        self.catalogs += 1
        return await self._inner.use_catalog(columns)

    async def propagate(self, objects: Objects | None, timestamp_ns: Nanoseconds) -> States:
        knots = (timestamp_ns // STEP_NS).tolist()
        self._first(knots)
        self.knots += knots
        return await self._inner.propagate(objects, timestamp_ns)


def at(second: float) -> int:
    return NOON_NS + round(second * NS_PER_S)


def beacons(seconds: Sequence[float], *, source_id: str = "isl-1") -> list[Observation]:
    """Of object after object, at these seconds past noon."""
    return [
        beacon(Moment.of(interval_number(int(second // 20)), 7 * number % 600, at(second)), source_id=source_id)
        for number, second in enumerate(seconds)
    ]


@cache
def interval_number(number: int) -> CatalogInterval:
    """That many intervals past noon."""
    return interval_at(sky(), at(20.0 * number))


def numbers(count: int) -> list[int]:
    """Of the objects that so many beacons are of."""
    return [sky()[7 * number % 600].catalog_number for number in range(count)]


def propagate(
    catalog: Any = None, propagator: Any = None, prediction: Prediction = PREDICTION, **options: Any
) -> Factory:
    return propagation_operator.propagate(
        catalog or FixedCatalog(columns()), propagator or Propagating(), prediction, **options
    )


def correlate() -> Factory:
    return operators.correlate(Associator({}))


def fusing(source: Factory, *stages: Factory, sink: Factory, capacity: int = 64) -> OperatorGraph:
    """Source, ``stages`` as ``op-1`` …, ``fuse`` and sink."""
    graph = OperatorGraph("fusing")
    last = graph.add_source("source", source)
    for number, factory in enumerate(stages[:-1], 1):
        operator = graph.add_operator(f"op-{number}", factory)
        graph.connect(last, operator, capacity)
        last = operator
    fusion = graph.add_operator("fuse", stages[-1], expanding=True, stateful=True)
    graph.connect(last, fusion, capacity)
    graph.connect(fusion, graph.add_sink("sink", sink), capacity)
    return graph


def correlations_of(items: Sequence[Any]) -> list[Correlation]:
    return [item for item in items if isinstance(item, Correlation)]


def updates_of(items: Sequence[Any]) -> list[CrossSensorUpdate]:
    return [item for item in items if isinstance(item, CrossSensorUpdate)]


def ids(items: Sequence[Any]) -> list[Any]:
    return [item.observation_id for item in items]


# All three.


async def test_every_observation_arrives_once_and_in_order_and_updates_are_derived() -> None:
    """300 beacons and 300 repeats of the same objects by another ring: 600 correlations, 300 updates, books exact."""
    seconds = [number * 0.15 for number in range(300)]
    observations = [*beacons(seconds), *beacons(seconds, source_id="isl-2")]
    sink = CollectSink()
    graph = fusing(source_of(observations), propagate(), correlate(), fuse(), sink=sink)
    event = await run_graph(graph, clock=ManualClock())
    assert isinstance(event, events.AllOk)
    assert event.figures.ledger_holds
    assert ids(correlations_of(sink.items)) == ids(observations)
    assert [each.catalog_number for each in correlations_of(sink.items)] == numbers(300) * 2
    assert [each.catalog_number for each in updates_of(sink.items)] == numbers(300)
    for update in updates_of(sink.items):
        assert [each.source_id for each in update.contributions] == ["isl-1", "isl-2"]
    ledger = event.figures.ledger
    assert (ledger.ingested, ledger.repeated, ledger.derived, ledger.written) == (600, 0, 300, 900)
    assert ledger.absorbed == 0
    assert event.figures.counters == {
        "op-1": {"catalog_objects": 600, "catalog_version": 1, "intervals": 3},
        "op-2": {"correlated": 600, "ambiguous": 0, "uct": 0, "unpredicted": 0},
        "fuse": {"updates": 300, "open_windows": 0, "closed_early": 0},
    }


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("call", [1, 70, 200])
async def test_a_restart_anywhere_in_the_middle_loses_and_repeats_nothing(stage: int, call: int) -> None:
    """Before ``propagate``, behind it, behind ``correlate``, behind ``fuse``: every correlation once, every update once."""
    observations = [*beacons([0.1] * 100), *beacons([0.2] * 100, source_id="isl-2")]
    failing, sink = FailAt({call: OperatorError("away")}), CollectSink()
    stages = [propagate(), correlate(), fuse()]
    graph = OperatorGraph("restarted")
    last = graph.add_source("source", source_of(observations))
    for number, factory in enumerate([*stages[:stage], map_items(failing), *stages[stage:]]):
        last_but_one, is_fuse = last, factory is stages[2]
        last = graph.add_operator(f"op-{number}", factory, expanding=is_fuse, stateful=is_fuse)
        graph.connect(last_but_one, last, 16)
    graph.connect(last, graph.add_sink("sink", sink), 16)
    event = await run_graph(graph, clock=ManualClock())
    assert isinstance(event, events.AllOk)
    assert event.figures.restarts[f"op-{stage}"].total == 1
    assert event.figures.ledger_holds
    assert ids(correlations_of(sink.items)) == ids(observations)
    assert sorted(each.catalog_number for each in updates_of(sink.items)) == sorted(numbers(100))
    ledger = event.figures.ledger
    assert (ledger.ingested, ledger.repeated, ledger.derived, ledger.written) == (200, 0, 100, 300)


# propagate.


async def placed_by(operator: Factory, observations: Sequence[Observation]) -> tuple[list[Placed], SupervisorEvent]:
    sink = CollectSink()
    event = await run_graph(chain(source_of(observations), operator, sink))
    assert event.figures.ledger_holds
    return sink.items, event


async def test_each_observation_gets_the_interval_of_its_time_and_each_knot_is_asked_for_once() -> None:
    """Times that jump to and fro over a minute: four intervals, made of seven knots."""
    seconds = [0.0, 59.9, 20.0, 19.999, 40.0, 61.0, 1.0, 79.9]
    propagator = Propagating()
    observations = beacons(seconds)
    placed, _ = await placed_by(propagate(propagator=propagator), observations)
    assert [each.observation for each in placed] == observations
    for observation, interval in placed:
        assert interval.start_ns <= observation.sensor_timestamp < interval.start_ns + STEP_NS
    assert len({id(each.interval) for each in placed}) == 4
    noon = NOON_NS // STEP_NS
    assert sorted(propagator.knots) == list(range(noon - 1, noon + 6))
    assert propagator.catalogs == 1


async def test_no_more_intervals_are_remembered_than_allowed_and_the_answers_stay_right() -> None:
    """Two, of ten that come three times over."""
    seconds = [20.0 * number + 3.0 for number in range(10)] * 3
    propagator, sink = Propagating(), CollectSink()
    prediction = Prediction(errors=ElementSetErrors(), max_intervals=2)
    graph = chain(
        source_of(beacons(seconds)), propagate(propagator=propagator, prediction=prediction), correlate(), sink
    )
    event = await run_graph(graph)
    assert event.figures.counters["op-1"]["intervals"] == 2
    assert [each.catalog_number for each in sink.items] == numbers(30)
    assert len(propagator.knots) > 2 * 13


async def test_an_interval_that_is_used_is_remembered_longer_than_one_that_is_not() -> None:
    """The first, asked for between all the others, is never made a second time."""
    seconds = [number for index in range(1, 8) for number in (5.0, 5.0 + 100.0 * index)]
    prediction = Prediction(errors=ElementSetErrors(), max_intervals=2)
    placed, _ = await placed_by(propagate(prediction=prediction), beacons(seconds))
    assert len({id(each.interval) for each in placed[::2]}) == 1


async def test_a_propagator_that_fails_restarts_the_operator_and_costs_nothing() -> None:
    """An operational error on the second interval, once: nothing is lost or repeated, and the first is not asked for again."""
    failures = [OperatorError("away")]

    def fail_once(knots: list[int]) -> None:
        if NOON_NS // STEP_NS + 7 in knots and failures:
            raise failures.pop()

    propagator = Propagating(fail_once)
    observations = beacons([1.0, 2.0, 101.0, 102.0, 3.0])
    placed, event = await placed_by(propagate(propagator=propagator), observations)
    assert [each.observation for each in placed] == observations
    assert event.figures.restarts["op-1"].total == 1
    assert (event.figures.ledger.repeated, event.figures.ledger.dead_lettered) == (0, 0)
    assert len(propagator.knots) == len(set(propagator.knots)) == 8
    assert propagator.catalogs == 1


async def test_a_lost_batch_costs_exactly_the_observations_of_its_interval() -> None:
    """They go to the dead letters with the reason; all others arrive, in order, those of the same batch too."""

    def lose(knots: list[int]) -> None:
        if NOON_NS // STEP_NS + 10 in knots:
            raise BatchLost("propagate: lost with two workers", method="propagate", losses=2)

    observations = beacons([1.0, 201.0, 2.0, 219.0, 301.0, 3.0, 202.0])
    letters, sink = DeadLetterList(), CollectSink()
    graph = chain(source_of(observations), propagate(propagator=Propagating(lose)), sink)
    event = await run_graph(graph, dead_letters=letters)
    assert isinstance(event, events.AllOk)
    assert [observations.index(each.observation) for each in sink.items] == [0, 2, 4, 5]
    assert [observations.index(letter.payload) for letter in letters.letters] == [1, 3, 6]
    assert {(letter.operator, letter.kind, letter.message, letter.attempts) for letter in letters.letters} == {
        ("op-1", DeadLetterKind.PROCESSING_EXCEPTION, "propagate: lost with two workers", 2)
    }
    assert "op-1" not in event.figures.restarts
    assert event.figures.ledger_holds
    assert (event.figures.ledger.dead_lettered, event.figures.ledger.written) == (3, 4)


async def test_a_request_that_is_lost_is_made_once_a_batch_and_again_in_the_next() -> None:
    """Not once for each of forty observations, two workers each; and an interval lost in one batch may be had in another."""
    asked: list[list[int]] = []

    def lose_at_first(knots: list[int]) -> None:
        asked.append(knots)
        if len(asked) == 1:
            raise BatchLost("lost", method="propagate", losses=2)

    clock, sink, letters = ManualClock(), CollectSink(), DeadLetterList()
    first, second = beacons([1.0] * 40), beacons([1.0] * 40)

    async def let_time_pass(_: BuiltGraph) -> None:
        await eventually(lambda: len(letters.letters) == 40, "the first batch is lost")
        await clock.advance_when_idle(1.0)

    source = ListSource(first, Pause(timedelta(seconds=1)), second)
    graph = chain(source, propagate(propagator=Propagating(lose_at_first)), sink)
    event = await run_graph(graph, clock=clock, dead_letters=letters, during=let_time_pass)
    assert [letter.payload for letter in letters.letters] == first
    assert [each.observation for each in sink.items] == second
    assert len(asked) == 2
    assert event.figures.ledger_holds


async def test_the_propagators_own_figures_are_told_as_the_operators() -> None:
    """With every batch, as they are then."""
    _, event = await placed_by(propagate(figures=lambda: {"workers": 3}), beacons([1.0]))
    expected = {"catalog_objects": 600, "catalog_version": 1, "intervals": 1, "workers": 3}
    assert event.figures.counters["op-1"] == expected


class ChangingCatalog(FixedCatalog):
    """One that is replaced by hand."""

    def replace(self, columns: ElementColumns) -> None:
        self.current = Version(self.current.number + 1, columns)


async def test_a_newer_catalogue_is_used_from_the_next_batch_on() -> None:
    """And nothing of the one before it: what was propagated is propagated anew, for the same times."""
    clock, catalog, propagator, sink = ManualClock(), ChangingCatalog(columns()), Propagating(), CollectSink()
    first, second = beacons([1.0] * 5), beacons([1.0] * 5)
    source = ListSource(first, Pause(timedelta(seconds=1)), second)

    async def change(built: BuiltGraph) -> None:
        await eventually(lambda: len(sink.items) == 5, "the first batch arrives")
        assert counter(built, "catalog_version", "op-1") == 1
        catalog.replace(columns(renumbered=True))
        await clock.advance_when_idle(1.0)

    graph = chain(source, propagate(catalog, propagator), correlate(), sink)
    event = await run_graph(graph, clock=clock, during=change)
    assert [each.catalog_number for each in sink.items] == [
        *numbers(5),
        *[number + RENUMBERED for number in numbers(5)],
    ]
    assert event.figures.counters["op-1"]["catalog_version"] == 2
    assert (propagator.catalogs, len(propagator.knots)) == (2, 8)


async def test_a_newer_catalogue_is_kept_out_of_the_garbage_collectors_way() -> None:
    """A full one's objects would make each later collection hold the loop; where nothing is kept out, nothing changes."""
    for keeps, is_looked_through in ((frozen_heap, False), (nullcontext, True)):
        catalog, sink = ChangingCatalog(columns()), CollectSink()
        with keeps():
            newer = ElementColumns.of(sky())
            catalog.replace(newer)
            await run_graph(chain(source_of(beacons([1.0])), propagate(catalog), correlate(), sink))
            assert len(sink.items) == 1
            assert any(thing is newer for thing in gc.get_objects()) is is_looked_through


async def test_a_catalogue_that_changes_while_a_batch_is_under_way_is_not_mixed_into_it() -> None:
    """The batch is all of the version that it began with."""
    catalog, sink = ChangingCatalog(columns()), CollectSink()

    def change_meanwhile(knots: list[int]) -> None:
        if catalog.current.number == 1:
            catalog.replace(columns(renumbered=True))

    seconds = [1.0, 101.0, 201.0]
    graph = chain(source_of(beacons(seconds)), propagate(catalog, Propagating(change_meanwhile)), correlate(), sink)
    event = await run_graph(graph)
    assert [each.catalog_number for each in sink.items] == numbers(3)
    assert event.figures.counters["op-1"]["catalog_version"] == 1


async def test_a_catalogue_that_cannot_be_loaded_yet_is_asked_for_again() -> None:
    """The operator is restarted, and takes nothing from its input before there is one."""

    class Late(FixedCatalog):
        loads = 0

        async def load(self) -> None:
            self.loads += 1
            if self.loads == 1:
                raise OperatorError("no catalogue yet")

    catalog, observations = Late(columns()), beacons([1.0, 2.0])
    placed, event = await placed_by(propagate(catalog), observations)
    assert [each.observation for each in placed] == observations
    assert (catalog.loads, event.figures.restarts["op-1"].total) == (2, 1)


async def test_what_keeps_the_catalogue_fresh_lives_as_long_as_the_instance() -> None:
    """It runs beside it, is cancelled when it fails, runs beside the next, and is cancelled when that has done."""
    lives: list[str] = []

    async def keep_fresh(ends: WiredEnds) -> None:
        lives.append(f"begins with {ends.instance}")
        try:
            await asyncio.Event().wait()
        finally:
            lives.append(f"ends with {ends.instance}")

    fault = Fault(propagate(keep_fresh=keep_fresh))
    sink = CollectSink()
    source = ListSource(beacons([1.0]), UntilShutdown())

    async def strike(built: BuiltGraph) -> None:
        await eventually(lambda: sink.items, "an observation arrives")
        assert lives == ["begins with 1"]
        fault.strike()
        await eventually(lambda: fault.instances == 2, "the operator is restarted")
        await eventually(lambda: len(lives) == 3, "it runs beside the next")
        built.request_shutdown("seen")

    await run_graph(chain(source, fault, sink), during=strike)
    assert lives == ["begins with 1", "ends with 1", "begins with 2", "ends with 2"]


async def test_an_error_of_what_keeps_the_catalogue_fresh_is_the_operators() -> None:
    """At once, while nothing comes: a catalogue that grows old unseen helps nobody. The next instance tries again."""
    instances: list[int] = []

    async def keep_fresh(ends: WiredEnds) -> None:
        instances.append(ends.instance)
        if ends.instance == 1:
            raise OperatorError("cannot refresh")
        await asyncio.Event().wait()

    async def quiet(built: BuiltGraph) -> None:
        await eventually(lambda: len(instances) == 2, "the operator is restarted")
        built.request_shutdown("seen")

    graph = chain(ListSource(UntilShutdown()), propagate(keep_fresh=keep_fresh), CollectSink())
    event = await run_graph(graph, during=quiet)
    (failure,) = event.figures.restarts["op-1"].recent
    assert "cannot refresh" in str(failure)


def test_what_an_interval_needs_is_four_knots() -> None:
    """Which the figures above rest on."""
    assert len(knots_of(NOON_NS)) == 4


# correlate.


async def test_correlations_are_dated_by_the_graphs_clock_and_counted_before_anything_comes() -> None:
    """What is not there is zero, not missing."""
    clock, sink = ManualClock(now_ns=NOON_NS + 77), CollectSink()
    await run_graph(chain(source_of(beacons([1.0])), propagate(), correlate(), sink), clock=clock)
    assert sink.items[0].correlated_timestamp == NOON_NS + 77
    event = await run_graph(chain(source_of([]), correlate(), CollectSink()), clock=clock)
    assert event.figures.counters["op-1"] == {"correlated": 0, "ambiguous": 0, "uct": 0, "unpredicted": 0}


async def test_each_kind_of_answer_is_counted() -> None:
    """Over all instances: one correlated, one nobody's, one that nobody can say."""
    good, lost, late = beacons([1.0, 2.0, 3.0])
    nowhere = replace_target(lost)
    sink = CollectSink()
    interval = interval_at(sky(), at(1.0))
    placed = [Placed(good, interval), Placed(nowhere, interval), Placed(late, interval_at((), at(3.0)))]
    event = await run_graph(chain(source_of(placed), correlate(), sink))
    assert [each.association for each in sink.items] == ["correlated", "uct", "unpredicted"]
    assert event.figures.counters["op-1"] == {"correlated": 1, "ambiguous": 0, "uct": 1, "unpredicted": 1}


def replace_target(observation: Observation) -> Observation:
    """The same from the middle of the Earth."""
    moment = Moment(observation.sensor_timestamp, np.array([1e3, 0.0, 0.0]), np.array([0.0, 1.0, 0.0]))
    return beacon(moment)


# fuse.


async def correlations(*batches: tuple[int, str]) -> list[list[Correlation]]:
    """For each batch, so many beacons' correlations by one ring, of object after object."""
    found: list[list[Correlation]] = []
    for count, source_id in batches:
        sink = CollectSink()
        observations = beacons([1.0] * count, source_id=source_id)
        await run_graph(chain(source_of(observations), propagate(), correlate(), sink))
        found.append(sink.items)
    return found


async def test_a_window_closes_at_its_time_although_nothing_comes() -> None:
    """Not a millisecond before; what the correlations said has gone on long ago."""
    clock, sink = ManualClock(), CollectSink()
    first, second = await correlations((3, "isl-1"), (3, "isl-2"))
    source = ListSource(first, Pause(timedelta(seconds=1.5)), second, UntilShutdown())
    seen: list[tuple[int, int]] = []

    async def let_time_pass(built: BuiltGraph) -> None:
        await eventually(lambda: len(sink.items) == 3, "the first ring's arrive")
        await clock.advance_when_idle(1.5)
        await eventually(lambda: len(sink.items) == 6, "the second ring's arrive")
        await clock.advance_when_idle(0.499)
        seen.append((len(updates_of(sink.items)), counter(built, "open_windows", "fuse") or 0))
        await clock.advance_when_idle(0.001)
        await eventually(lambda: len(sink.items) == 9, "the windows close")
        seen.append((len(updates_of(sink.items)), counter(built, "open_windows", "fuse") or 0))
        built.request_shutdown("seen")

    event = await run_graph(fusing(source, fuse(), sink=sink), clock=clock, during=let_time_pass)
    assert seen == [(0, 3), (3, 0)]
    start_ns = ManualClock().now_ns()
    for update in updates_of(sink.items):
        assert (update.opened_timestamp, update.closed_timestamp) == (start_ns, start_ns + 2 * NS_PER_S)
    assert event.figures.ledger_holds


async def test_a_window_that_is_due_closes_before_what_has_come_meanwhile_is_taken_in() -> None:
    """Held up by what is behind it until its windows' time is up, with the second ring waiting: nothing was seen by both."""
    clock, sink = ManualClock(), GatedSink()
    first, second = await correlations((2, "isl-1"), (1, "isl-2"))

    async def let_time_pass(_: BuiltGraph) -> None:
        await settle()
        clock.advance(2.0)
        sink.gate.set()

    graph = fusing(source_of([*first, *second]), fuse(), sink=sink, capacity=1)
    event = await run_graph(graph, clock=clock, during=let_time_pass)
    assert sink.items == [*first, *second]
    assert event.figures.counters["fuse"] == {"updates": 0, "open_windows": 0, "closed_early": 0}


async def test_an_update_comes_behind_the_correlations_that_it_is_made_of() -> None:
    """A window that is full closes there and then; what follows, follows."""
    first, second = await correlations((3, "isl-1"), (3, "isl-2"))
    sink = CollectSink()
    graph = fusing(source_of([*first, *second]), fuse(WindowLimits(max_contributions=2)), sink=sink)
    event = await run_graph(graph, clock=ManualClock())
    kinds = [type(item).__name__ for item in sink.items]
    assert kinds == ["Correlation"] * 3 + ["Correlation", "CrossSensorUpdate"] * 3
    assert correlations_of(sink.items) == [*first, *second]
    assert (event.figures.ledger.derived, event.figures.ledger.absorbed) == (3, 0)


async def test_windows_that_close_for_want_of_room_are_counted() -> None:
    """Ten objects, room for four."""
    (found,) = await correlations((10, "isl-1"))
    sink = CollectSink()
    event = await run_graph(fusing(source_of(found), fuse(WindowLimits(max_open=4)), sink=sink), clock=ManualClock())
    assert sink.items == found
    assert event.figures.counters["fuse"] == {"updates": 0, "open_windows": 0, "closed_early": 6}


async def test_the_windows_outlive_the_instance() -> None:
    """The first ring before a restart and the second one after it are still one update each."""
    clock, sink, fault = ManualClock(), CollectSink(), Fault(fuse(WindowLimits(length=timedelta(hours=1))))
    first, second = await correlations((3, "isl-1"), (3, "isl-2"))
    source = ListSource(first, Pause(timedelta(minutes=1)), second)

    async def strike(_: BuiltGraph) -> None:
        await eventually(lambda: len(sink.items) == 3, "the first ring's arrive")
        fault.strike()
        await eventually(lambda: fault.instances == 2, "the operator is restarted")
        await clock.advance_when_idle(60.0)

    event = await run_graph(fusing(source, fault, sink=sink), clock=clock, during=strike)
    assert event.figures.restarts["fuse"].total == 1
    assert correlations_of(sink.items) == [*first, *second]
    assert [len(update.contributions) for update in updates_of(sink.items)] == [2, 2, 2]
    assert event.figures.ledger_holds
