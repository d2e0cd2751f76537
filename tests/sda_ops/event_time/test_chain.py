"""The real operators between the sources and the windows keep a mark behind the items before it, and in front of those after."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator_adapter import (
    Factory,
    FlowPolicy,
    OperatorError,
    OperatorGraph,
    RestartPolicy,
    SupervisorEvent,
    VertexId,
    WiredEnds,
    map_items,
    merge,
    sift,
    source_of,
)
from orchestrator_adapter.testing import CollectSink, run_graph
from sda_ops.dedup import deduplicate
from sda_ops.event_time.watermark import Watermark, least_watermark
from sda_ops.normalize import Normalizer
from sda_ops.records.observation import Observation
from sda_ops.validate import validator
from tests.scenes.operators import Propagating, beacons, correlate, propagate

_ALWAYS = RestartPolicy.always(backoff=None)


def marked(observations: Sequence[Observation], source: str) -> list[Any]:
    """Behind each observation the mark that excludes it by one nanosecond."""
    return [
        part
        for observation in observations
        for part in (observation, Watermark(observation.sensor_timestamp + 1, source))
    ]


class Failing:
    """A propagator that fails at some of its requests, so that ``propagate`` is restarted between two marks."""

    def __init__(self, *calls: int) -> None:
        self._calls = calls
        self._call = 0

    def __call__(self, _: object) -> None:
        self._call += 1
        if self._call in self._calls:
            raise OperatorError("away")


async def slow_reader(ends: WiredEnds) -> None:
    """Passes everything on, one item each time, and lets every other task run in between."""
    async for batch in ends.receiver.batches(1):
        for _ in range(3):
            await asyncio.sleep(0)
        ends.commit(batch, acknowledge=1)
        await ends.flush()


def fusion_chain(
    sources: dict[str, list[Any]], *, capacity: int, aside: FlowPolicy, propagator: Propagating, slow: bool
) -> tuple[OperatorGraph, CollectSink, CollectSink]:
    """The stream of ``sda-fusion`` from its sources to ``correlate``; the sinks of both branches."""
    graph = OperatorGraph("chain")
    audit, found = CollectSink(controls=True), CollectSink(controls=True)
    last = graph.add_fan_in("merge", merge(combine={Watermark: least_watermark()}))
    for name, parts in sources.items():
        graph.connect(graph.add_source(name, source_of(parts, batch=3)), last, capacity)

    def then(name: str, factory: Factory, at: VertexId, **options: Any) -> VertexId:
        operator = graph.add_operator(name, factory, restart_policy=_ALWAYS, max_deliveries=5)
        graph.connect(at, operator, capacity, **options)
        return operator

    minute = timedelta(minutes=1)
    valid = validator(max_clock_skew=minute, max_archive_age=minute, uses_own_time=lambda _: True)
    last = then("normalize", map_items(Normalizer(clock_offset_ns={"isl-a": 0})), last)
    last = then("validate", sift(valid), last)
    last = then("dedup", deduplicate(), last)
    tee = graph.add_fan_out("tee")
    graph.connect(last, tee, capacity)
    graph.connect(tee, graph.add_sink("audit", audit), capacity)
    last = then("slow", slow_reader, tee, policy=aside) if slow else tee
    last = then("propagate", propagate(propagator=propagator), last, **({} if slow else {"policy": aside}))
    last = then("correlate", correlate(), last)
    graph.connect(last, graph.add_sink("found", found), capacity)
    return graph, audit, found


def assert_marks_keep_their_place(parts: Sequence[Any]) -> int:
    """No item is earlier than a mark before it, and the marks ascend. Returns how many marks there are."""
    mark_ns = -1
    for part in parts:
        if isinstance(part, Watermark):
            assert part.time_ns is not None
            assert part.time_ns > mark_ns
            mark_ns = part.time_ns
        else:
            assert part.sensor_timestamp >= mark_ns
    return sum(isinstance(part, Watermark) for part in parts)


@pytest.mark.parametrize("slow", [False, True], ids=["", "behind a slow reader"])
@pytest.mark.parametrize("capacity", [1, 7])
async def test_a_mark_never_overtakes_an_observation_on_its_way_to_the_windows(
    tmp_path: Path, *, capacity: int, slow: bool
) -> None:
    """Two rings, a spilling edge, batches, repeats, and a propagator that fails three times."""
    first = beacons([3.0 * number for number in range(40)], source_id="isl-a")
    second = beacons([3.0 * number + 1.0 for number in range(40)], source_id="isl-b")
    sources = {
        "isl-a": marked([*first, first[-1]], "isl-a"),  # with one duplicate
        "isl-b": marked(second, "isl-b"),
    }
    graph, audit, found = fusion_chain(
        sources,
        capacity=capacity,
        aside=FlowPolicy.spill(tmp_path),
        propagator=Propagating(Failing(2, 3, 5)),
        slow=slow,
    )

    event: SupervisorEvent = await run_graph(graph)

    assert event.figures.ledger_holds
    assert event.figures.ledger.duplicates == 1
    assert event.figures.restarts["propagate"].total == 3
    for sink in (audit, found):
        marks = assert_marks_keep_their_place(sink.items)
        assert len(sink.items) - marks == 80
        assert marks > 40
        assert sink.items[-1] == Watermark(second[-1].sensor_timestamp + 1, "isl-b")
    # The first mark waits for both rings, and is that of the one that is behind.
    first_mark = next(part for part in found.items if isinstance(part, Watermark))
    assert first_mark == Watermark(first[0].sensor_timestamp + 1, "isl-a")
