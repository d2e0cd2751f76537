"""Declared graphs that the tests of validation, order and drawing share. They are never run."""

from __future__ import annotations

import pytest

from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.graph.plan import GraphError, Plan, VertexId
from orchestrator_adapter.operators.ends import WiredEnds


async def idle(ends: WiredEnds) -> None:
    """A factory for graphs that are never run."""


def source(graph: OperatorGraph, name: str = "radar") -> VertexId:
    return graph.add_source(name, idle)


def operator(graph: OperatorGraph, name: str = "normalize") -> VertexId:
    return graph.add_operator(name, idle)


def sink(graph: OperatorGraph, name: str = "log") -> VertexId:
    return graph.add_sink(name, idle)


def problems_of(graph: OperatorGraph) -> list[str]:
    with pytest.raises(GraphError) as caught:
        graph.validate()
    return [str(problem) for problem in caught.value.problems]


def names(plan: Plan) -> list[str]:
    return [vertex.name for vertex in plan.order]


def ingest() -> OperatorGraph:
    """Three radars, an archive and a link, as the specification draws it."""
    graph = OperatorGraph("ingest")
    sources = [source(graph, name) for name in ("radar-01", "radar-02", "radar-03", "optical", "isl")]
    fan_in = graph.add_fan_in("fan-in")
    normalize, validate = operator(graph, "normalize"), operator(graph, "validate")
    log = sink(graph, "log")
    for vertex in sources:
        graph.connect(vertex, fan_in, 1_024)
    graph.connect(fan_in, normalize, 4_096)
    graph.connect(normalize, validate, 4_096)
    graph.connect(validate, log, 4_096)
    return graph


def ring(graph: OperatorGraph, *members: str) -> list[VertexId]:
    vertices = [operator(graph, name) for name in members]
    for up, down in zip(vertices, vertices[1:] + vertices[:1], strict=True):
        graph.connect(up, down, 1)
    return vertices
