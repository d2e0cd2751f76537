"""Observations, and the operators ``propagate``, ``correlate`` and ``fuse``, for tests that run them in graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

from orchestrator_adapter import (
    Factory,
    OperatorGraph,
)
from sda_ops.astro.propagation import States
from sda_ops.astro.time import NS_PER_S, Nanoseconds
from sda_ops.catalog import ElementColumns
from sda_ops.correlate import operator as correlate_operator
from sda_ops.correlate.associate import Associator
from sda_ops.propagation import operator as propagate_operator
from sda_ops.propagation.interval import STEP_NS, CatalogInterval
from sda_ops.propagation.operator import Prediction
from sda_ops.propagation.pool import InlinePropagator
from sda_ops.propagation.uncertainty import ElementSetErrors, Objects
from sda_ops.records.correlation import Correlation, CrossSensorUpdate
from sda_ops.records.observation import Observation
from tests.helpers.running import NOON_NS
from tests.scenes.correlation import Moment, beacon, interval_at, sky
from tests.scenes.tracks import FixedCatalog

RENUMBERED = 1_000_000
PREDICTION = Prediction(errors=ElementSetErrors())


@cache
def columns(*, renumbered: bool = False) -> ElementColumns:
    """The element sets of `sky`, or the same orbits with other catalogue numbers."""
    element_sets = sky()
    if renumbered:
        element_sets = tuple(replace(each, catalog_number=each.catalog_number + RENUMBERED) for each in element_sets)
    return ElementColumns.of(element_sets)


class Propagating:
    """An `InlinePropagator` that records the requested knots and calls ``before`` with them first."""

    def __init__(self, before: Callable[[list[int]], object] = lambda _: None) -> None:
        self.knots: list[int] = []
        self.catalogs = 0
        self._before = before
        self._inner = InlinePropagator(engine="sgp4")

    async def use_catalog(self, columns: ElementColumns) -> int:
        self.catalogs += 1
        return await self._inner.use_catalog(columns)

    async def propagate(self, objects: Objects | None, timestamp_ns: Nanoseconds) -> States:
        knots = (timestamp_ns // STEP_NS).tolist()
        self._before(knots)
        self.knots += knots
        return await self._inner.propagate(objects, timestamp_ns)


def at(second: float) -> int:
    return NOON_NS + round(second * NS_PER_S)


def beacons(seconds: Sequence[float], *, source_id: str = "isl-1") -> list[Observation]:
    """Beacons of one object after the other, at these seconds past noon."""
    return [
        beacon(Moment.of(interval_number(int(second // 20)), 7 * number % 600, at(second)), source_id=source_id)
        for number, second in enumerate(seconds)
    ]


@cache
def interval_number(number: int) -> CatalogInterval:
    """The interval with this number, counted from noon."""
    return interval_at(sky(), at(20.0 * number))


def numbers(count: int) -> list[int]:
    """The catalogue numbers of the objects of the first ``count`` `beacons`."""
    return [sky()[7 * number % 600].catalog_number for number in range(count)]


def propagate(
    catalog: Any = None, propagator: Any = None, prediction: Prediction = PREDICTION, **options: Any
) -> Factory:
    return propagate_operator.propagate(
        catalog or FixedCatalog(columns()), propagator or Propagating(), prediction, **options
    )


def correlate() -> Factory:
    return correlate_operator.correlate(Associator({}))


def fusing(source: Factory, *stages: Factory, sink: Factory, capacity: int = 64) -> OperatorGraph:
    """A graph of a source, ``stages`` (named ``op-1`` …, the last one ``fuse``) and a sink."""
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
