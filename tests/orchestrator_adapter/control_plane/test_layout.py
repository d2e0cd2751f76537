"""Where operators are drawn."""

from __future__ import annotations

import random

import pytest

from flows.settings.fusion import FusionSettings
from flows.settings.ingest import IngestSettings
from flows.topologies import fusion, ingest
from orchestrator_adapter import OperatorGraph, broadcast, for_each, map_items, merge, source_of
from orchestrator_adapter.control_plane.layout import places
from orchestrator_adapter.graph.plan import Plan


def crossings(plan: Plan) -> int:
    """How often two edges between the same columns cross."""
    where = places(plan)
    ends = [(where[edge.upstream.name], where[edge.downstream.name]) for edge in plan.edges]
    return sum(
        (a[0][1] - b[0][1]) * (a[1][1] - b[1][1]) < 0
        for at, a in enumerate(ends)
        for b in ends[:at]
        if a[0][0] == b[0][0] and a[1][0] == b[1][0]
    )


def random_plan(seed: int) -> Plan:
    """Chains that fan out and in at random places."""
    rng, graph = random.Random(seed), OperatorGraph("random")
    ends = [graph.add_source(f"source-{number}", source_of([])) for number in range(rng.randint(1, 4))]
    for number in range(rng.randint(3, 30)):
        end = ends.pop(rng.randrange(len(ends)))
        kind = rng.randrange(3)
        if kind == 0 and ends:
            vertex = graph.add_fan_in(f"merge-{number}", merge())
            graph.connect(ends.pop(rng.randrange(len(ends))), vertex, 8)
        elif kind == 1:
            vertex = graph.add_fan_out(f"copy-{number}", broadcast())
            ends.append(vertex)
        else:
            vertex = graph.add_operator(f"map-{number}", map_items(lambda item: item))
        graph.connect(end, vertex, 8)
        ends.append(vertex)
    for number, end in enumerate(ends):
        sink = graph.add_operator(f"last-{number}", map_items(lambda item: item))
        graph.connect(end, sink, 8)
        written = graph.add_sink(f"sink-{number}", for_each(print))
        graph.connect(sink, written, 8)
    return graph.validate()


@pytest.mark.parametrize("seed", range(20))
def test_every_edge_leads_to_the_right_and_no_two_operators_share_a_place(seed: int) -> None:
    plan = random_plan(seed)
    where = places(plan)
    assert all(where[edge.upstream.name][0] < where[edge.downstream.name][0] for edge in plan.edges)
    assert len(set(where.values())) == len(plan.order)
    assert where == places(plan)


def test_the_pipelines_edges_do_not_cross() -> None:
    settings = FusionSettings()
    assert crossings(ingest.build_topology(IngestSettings()).validate()) == 0
    assert crossings(fusion.build_topology(settings, fusion.orbits_of(settings)).validate()) <= 1
