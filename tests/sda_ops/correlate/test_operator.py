"""The ``correlate`` operator, and ``propagate``, ``correlate`` and ``fuse`` together, in running graphs."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator_adapter import (
    OperatorError,
    OperatorGraph,
    map_items,
    source_of,
)
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import (
    CollectSink,
    FailAt,
    ManualClock,
    chain,
    run_graph,
)
from sda_ops.correlate import operator
from sda_ops.correlate.fuse import fuse
from sda_ops.propagation.interval import Placed
from sda_ops.records.observation import Observation, RadarTarget
from tests.helpers.log_lines import event_of
from tests.helpers.running import NOON_NS
from tests.scenes.correlation import Moment, beacon, interval_at, observation, sky
from tests.scenes.operators import (
    at,
    beacons,
    correlate,
    correlations_of,
    fusing,
    ids,
    numbers,
    propagate,
    updates_of,
)

# propagate, correlate and fuse.


async def test_every_observation_arrives_once_and_in_order_and_updates_are_derived() -> None:
    """300 beacons of each of two sensors, of the same objects: 600 correlations, 300 updates, and the ledger holds."""
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
        "op-1": {"catalog_objects": 600, "catalog_element_sets": 600, "catalog_version": 1, "intervals": 3},
        "op-2": {"correlated": 600, "ambiguous": 0, "uct": 0, "unpredicted": 0, "unknown_sensors": 0},
        "fuse": {
            "updates": 300,
            "retractions": 0,
            "late": 0,
            "late_amended": 0,
            "closed_early": 0,
            "released_early": 0,
            "open_windows": 0,
            "retained_windows": 0,
            "held": 0,
        },
    }


@pytest.mark.parametrize("stage", range(4))
@pytest.mark.parametrize("call", [1, 70, 200])
async def test_a_restart_at_any_stage_loses_and_repeats_nothing(stage: int, call: int) -> None:
    """Before ``propagate`` or after any of the three operators: every correlation and every update arrives once."""
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
    event = await run_graph(graph, clock=ManualClock(autojump=True))
    assert isinstance(event, events.AllOk)
    assert event.figures.restarts[f"op-{stage}"].total == 1
    assert event.figures.ledger_holds
    assert ids(correlations_of(sink.items)) == ids(observations)
    assert sorted(each.catalog_number for each in updates_of(sink.items)) == sorted(numbers(100))
    ledger = event.figures.ledger
    assert (ledger.ingested, ledger.repeated, ledger.derived, ledger.written) == (200, 0, 100, 300)


# correlate.


async def test_correlations_have_the_time_of_the_graphs_clock_and_counters_start_at_zero() -> None:
    """Before any input the counters are zero, not missing."""
    clock, sink = ManualClock(now_ns=NOON_NS + 77), CollectSink()
    await run_graph(chain(source_of(beacons([1.0])), propagate(), correlate(), sink), clock=clock)
    assert sink.items[0].correlated_timestamp == NOON_NS + 77
    event = await run_graph(chain(source_of([]), correlate(), CollectSink()), clock=clock)
    assert event.figures.counters["op-1"] == {
        "correlated": 0,
        "ambiguous": 0,
        "uct": 0,
        "unpredicted": 0,
        "unknown_sensors": 0,
    }


async def test_each_kind_of_association_is_counted() -> None:
    """Here one observation is correlated, one is an uncorrelated track, and one is unpredicted."""
    good, lost, late = beacons([1.0, 2.0, 3.0])
    nowhere = replace_target(lost)
    sink = CollectSink()
    interval = interval_at(sky(), at(1.0))
    placed = [Placed(good, interval), Placed(nowhere, interval), Placed(late, interval_at((), at(3.0)))]
    event = await run_graph(chain(source_of(placed), correlate(), sink))
    assert [each.association for each in sink.items] == ["correlated", "uct", "unpredicted"]
    assert event.figures.counters["op-1"] == {
        "correlated": 1,
        "ambiguous": 0,
        "uct": 1,
        "unpredicted": 1,
        "unknown_sensors": 0,
    }


async def test_a_sensor_without_a_position_is_logged_and_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    """Its observations are unpredicted; a beacon, whose position is its own, is not such a sensor."""
    interval = interval_at(sky(), at(1.0))
    unknown = [observation("radar", f"radar-{number % 2}", at(1.0), RadarTarget(1e6)) for number in range(600)]
    placed = [Placed(each, interval) for each in (*unknown, *beacons([1.0]))]
    sink = CollectSink()
    event = await run_graph(chain(source_of(placed), correlate(), sink))
    assert [each.association for each in sink.items] == ["unpredicted"] * 600 + ["correlated"]
    lines = [event_of(record.getMessage()) for record in caplog.records if record.name == operator.__name__]
    assert [(line["event"], line["source_id"]) for line in lines] == [
        ("sensor_unknown", "radar-0"),
        ("sensor_unknown", "radar-1"),
    ]
    assert event.figures.counters["op-1"]["unknown_sensors"] == 2
    assert event.figures.ledger_holds


def replace_target(observation: Observation) -> Observation:
    """A beacon at the same time near the centre of the Earth."""
    moment = Moment(observation.sensor_timestamp, np.array([1e3, 0.0, 0.0]), np.array([0.0, 1.0, 0.0]))
    return beacon(moment)
