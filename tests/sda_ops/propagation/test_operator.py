"""The ``propagate`` operator in running graphs."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta

import numpy as np
from sgp4.api import SatrecArray

from orchestrator_adapter import (
    BuiltGraph,
    DeadLetterKind,
    DeadLetterList,
    Factory,
    OperatorError,
    SupervisorEvent,
    WiredEnds,
    source_of,
)
from orchestrator_adapter.bulkhead import BatchLost
from orchestrator_adapter.primitives.gc_freeze import frozen_heap
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import (
    CollectSink,
    ListSource,
    ManualClock,
    Pause,
    UntilShutdown,
    chain,
    run_graph,
)
from sda_ops.astro.propagation import sgp4_states
from sda_ops.astro.time import NS_PER_DAY
from sda_ops.catalog import ElementColumns, synthetic_catalog
from sda_ops.propagation.interval import STEP_NS, Placed, knots_of
from sda_ops.propagation.operator import Prediction
from sda_ops.propagation.uncertainty import ElementSetErrors
from sda_ops.records.observation import Observation
from tests.helpers.running import NOON_NS, Fault, counter, eventually
from tests.scenes.correlation import sky
from tests.scenes.operators import (
    RENUMBERED,
    Propagating,
    beacons,
    columns,
    correlate,
    numbers,
    propagate,
)
from tests.scenes.tracks import FixedCatalog, Version


async def placed_by(operator: Factory, observations: Sequence[Observation]) -> tuple[list[Placed], SupervisorEvent]:
    sink = CollectSink()
    event = await run_graph(chain(source_of(observations), operator, sink))
    assert event.figures.ledger_holds
    return sink.items, event


async def test_each_observation_gets_the_interval_of_its_time_and_each_knot_is_computed_once() -> None:
    """Times in any order over 80 seconds need four intervals, made of seven knots."""
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


async def test_at_most_max_intervals_are_cached_and_the_results_stay_right() -> None:
    """Two are cached, of ten that are needed three times each."""
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


async def test_the_least_recently_used_interval_is_dropped_from_the_cache() -> None:
    """The first interval, used between all the others, is computed only once."""
    seconds = [number for index in range(1, 8) for number in (5.0, 5.0 + 100.0 * index)]
    prediction = Prediction(errors=ElementSetErrors(), max_intervals=2)
    placed, _ = await placed_by(propagate(prediction=prediction), beacons(seconds))
    assert len({id(each.interval) for each in placed[::2]}) == 1


async def test_an_error_of_the_propagator_restarts_the_operator_without_loss() -> None:
    """After one error on the second interval nothing is lost or repeated, and the first interval is not computed again."""
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


async def test_a_lost_request_dead_letters_only_the_observations_of_its_interval() -> None:
    """Their dead letters have the reason. All other observations arrive in order, including those of the same batch."""

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


async def test_a_lost_request_is_not_repeated_within_a_batch_but_in_the_next_one() -> None:
    """Otherwise each of forty observations would cost two workers. The interval may succeed in the next batch."""
    requests: list[list[int]] = []

    def lose_at_first(knots: list[int]) -> None:
        requests.append(knots)
        if len(requests) == 1:
            raise BatchLost("lost", method="propagate", losses=2)

    clock, sink, letters = ManualClock(), CollectSink(), DeadLetterList()
    first, second = beacons([1.0] * 40), beacons([1.0] * 40)

    async def advance(_: BuiltGraph) -> None:
        await eventually(lambda: len(letters.letters) == 40, "the first batch is lost")
        await clock.advance_when_idle(1.0)

    source = ListSource(first, Pause(timedelta(seconds=1)), second)
    graph = chain(source, propagate(propagator=Propagating(lose_at_first)), sink)
    event = await run_graph(graph, clock=clock, dead_letters=letters, during=advance)
    assert [letter.payload for letter in letters.letters] == first
    assert [each.observation for each in sink.items] == second
    assert len(requests) == 2
    assert event.figures.ledger_holds


async def test_the_propagators_figures_are_metrics_of_the_operator() -> None:
    """They are updated with every batch."""
    _, event = await placed_by(propagate(figures=lambda: {"workers": 3}), beacons([1.0]))
    expected = {"catalog_objects": 600, "catalog_element_sets": 600, "catalog_version": 1, "intervals": 1, "workers": 3}
    assert event.figures.counters["op-1"] == expected


class ChangingCatalog(FixedCatalog):
    """A catalogue that the test replaces."""

    def replace(self, columns: ElementColumns) -> None:
        self.current = Version(self.current.number + 1, columns)


async def test_a_newer_catalogue_is_used_from_the_next_batch_on() -> None:
    """Nothing of the previous catalogue is used: the same times are propagated again."""
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


def with_history(days: float, *, objects: int) -> ElementColumns:
    """The catalogue at noon, and so many of its objects with a second set, whose epoch is later."""
    epoch_ns = NOON_NS + round(days * NS_PER_DAY)
    later = synthetic_catalog(objects=600, epoch_ns=epoch_ns)[:objects]
    return ElementColumns.of([*sky(), *later])


async def test_of_several_element_sets_of_an_object_the_nearest_to_the_observation_is_used() -> None:
    """To the middle of each ten minutes. The others are not propagated, and both sides of the change are right at once."""
    columns = with_history(1.0, objects=200)
    first_ns, second_ns = columns.epoch_ns[0], columns.epoch_ns[-1]
    seconds = [43_140.0, 43_199.0, 43_201.0, 43_261.0, 43_150.0, 86_400.0]
    observations = beacons(seconds)
    placed, event = await placed_by(propagate(FixedCatalog(columns), Propagating()), observations)
    assert [each.observation for each in placed] == observations
    for (_, interval), second in zip(placed, seconds, strict=True):
        assert interval.facts.catalog_number.tolist() == columns.catalog_number[:600].tolist()
        assert set(interval.facts.epoch_ns[:200].tolist()) == {first_ns if second < 43_200.0 else second_ns}
        assert set(interval.facts.epoch_ns[200:].tolist()) == {first_ns}
        numbers = np.arange(600)
        r_m, _ = interval.states(numbers, np.full(600, interval.start_ns))
        satrecs = SatrecArray(columns.satrecs())
        rows = np.where((numbers < 200) & (second >= 43_200.0), 600 + numbers, numbers)
        expected_m = sgp4_states(satrecs, np.array([interval.start_ns])).r_teme_m[rows, 0]
        np.testing.assert_allclose(r_m, expected_m, atol=1e-3, rtol=0.0)
    counters = event.figures.counters["op-1"]
    assert (counters["catalog_objects"], counters["catalog_element_sets"]) == (600, 800)


async def test_intervals_with_the_same_element_sets_share_their_knots() -> None:
    """Also across the ten minutes, so that a history far away costs no propagation."""
    propagator = Propagating()
    columns = with_history(-9.0, objects=200)
    await placed_by(propagate(FixedCatalog(columns), propagator), beacons([599.0, 601.0, 621.0]))
    assert len(propagator.knots) == len(set(propagator.knots)) == 6


async def test_a_newer_catalogue_is_frozen_so_that_garbage_collections_skip_it() -> None:
    """Otherwise its objects make each later collection stall the loop. Without ``frozen_heap`` nothing is frozen."""
    for heap, is_collected in ((frozen_heap, False), (nullcontext, True)):
        catalog, sink = ChangingCatalog(columns()), CollectSink()
        with heap():
            newer = ElementColumns.of(sky())
            catalog.replace(newer)
            await run_graph(chain(source_of(beacons([1.0])), propagate(catalog), correlate(), sink))
            assert len(sink.items) == 1
            assert any(thing is newer for thing in gc.get_objects()) is is_collected


async def test_a_catalogue_that_changes_during_a_batch_is_not_used_for_that_batch() -> None:
    """The whole batch uses the version that it began with."""
    catalog, sink = ChangingCatalog(columns()), CollectSink()

    def change_during_batch(knots: list[int]) -> None:
        if catalog.current.number == 1:
            catalog.replace(columns(renumbered=True))

    seconds = [1.0, 101.0, 201.0]
    graph = chain(source_of(beacons(seconds)), propagate(catalog, Propagating(change_during_batch)), correlate(), sink)
    event = await run_graph(graph)
    assert [each.catalog_number for each in sink.items] == numbers(3)
    assert event.figures.counters["op-1"]["catalog_version"] == 1


async def test_loading_the_catalogue_is_retried_by_a_restart() -> None:
    """The operator takes nothing from its input before a catalogue is loaded."""

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


async def test_keep_fresh_runs_as_long_as_the_instance() -> None:
    """It is cancelled when the instance fails, runs again beside the next one, and is cancelled when that one ends."""
    runs: list[str] = []

    async def keep_fresh(ends: WiredEnds) -> None:
        runs.append(f"begins with {ends.instance}")
        try:
            await asyncio.Event().wait()
        finally:
            runs.append(f"ends with {ends.instance}")

    fault = Fault(propagate(keep_fresh=keep_fresh))
    sink = CollectSink()
    source = ListSource(beacons([1.0]), UntilShutdown())

    async def strike(built: BuiltGraph) -> None:
        await eventually(lambda: sink.items, "an observation arrives")
        assert runs == ["begins with 1"]
        fault.strike()
        await eventually(lambda: fault.instances == 2, "the operator is restarted")
        await eventually(lambda: len(runs) == 3, "it runs beside the next")
        built.request_shutdown("seen")

    await run_graph(chain(source, fault, sink), during=strike)
    assert runs == ["begins with 1", "ends with 1", "begins with 2", "ends with 2"]


async def test_an_error_of_keep_fresh_fails_the_operator_at_once() -> None:
    """It fails even without input, so that a stale catalogue does not go unnoticed. The next instance tries again."""
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


def test_an_interval_needs_four_knots() -> None:
    """The figures in the tests above depend on it."""
    assert len(knots_of(NOON_NS)) == 4
