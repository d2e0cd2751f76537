from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.graph.plan import GraphError, ProblemKind
from tests.orchestrator_adapter.graph.declared import ingest, names, operator, problems_of, ring, sink, source


def test_a_cycle_is_named_as_a_path() -> None:
    """Two operators that feed each other are named in order, back to the first, with an edge to remove."""
    graph = OperatorGraph()
    ring(graph, "normalize", "dedup")
    assert problems_of(graph) == [
        (
            "the graph has a cycle: normalize -> dedup -> normalize;"
            " remove one of its edges, e.g. connect(dedup, normalize, …)"
        )
    ]


def test_an_operator_that_feeds_itself_is_a_cycle() -> None:
    """The shortest possible cycle has one edge."""
    graph = OperatorGraph()
    ring(graph, "dedup")
    assert problems_of(graph) == [
        "the graph has a cycle: dedup -> dedup; remove one of its edges, e.g. connect(dedup, dedup, …)"
    ]


def test_each_strongly_connected_component_has_one_cycle_named() -> None:
    """Two separate cycles are two problems. Two cycles through one vertex are one problem."""
    graph = OperatorGraph()
    ring(graph, "a", "b", "c")
    ring(graph, "x", "y")
    with pytest.raises(GraphError) as caught:
        graph.validate()
    assert [problem.where for problem in caught.value.problems] == [("a", "b", "c", "a"), ("x", "y", "x")]

    figure_eight = OperatorGraph()
    hub, left, right = (operator(figure_eight, name) for name in ("hub", "left", "right"))
    for up, down in ((hub, left), (left, hub), (hub, right), (right, hub)):
        figure_eight.connect(up, down, 1)
    with pytest.raises(GraphError) as caught:
        figure_eight.validate()
    cycles = [problem.where for problem in caught.value.problems if problem.kind is ProblemKind.CYCLE]
    assert cycles == [("hub", "left", "hub")]


def test_vertices_downstream_of_a_cycle_are_not_reported_as_a_cycle() -> None:
    """The vertices downstream of a cycle cannot be ordered either. Only the cycle itself is reported."""
    graph = OperatorGraph()
    fan_in, loop = graph.add_fan_in("fan-in"), graph.add_fan_out("loop")
    graph.connect(source(graph), fan_in, 1)
    graph.connect(fan_in, loop, 1)
    graph.connect(loop, fan_in, 1)
    tail = operator(graph, "tail")
    graph.connect(loop, tail, 1)
    graph.connect(tail, sink(graph), 1)
    assert problems_of(graph) == [
        "the graph has a cycle: fan-in -> loop -> fan-in; remove one of its edges, e.g. connect(loop, fan-in, …)"
    ]


def test_the_reference_ingest_topology_is_ordered_level_by_level() -> None:
    """The five sources, then their fan-in, then normalize, validate and the log."""
    plan = ingest().validate()
    assert [[vertex.name for vertex in level] for level in plan.levels] == [
        ["radar-01", "radar-02", "radar-03", "optical", "isl"],
        ["fan-in"],
        ["normalize"],
        ["validate"],
        ["log"],
    ]
    assert [edge.id for edge in plan.edges][-1] == "validate -> log"


def test_a_diamond_is_ordered_by_its_longest_path() -> None:
    """After a fan-out with a short and a long branch, the fan-in comes after the long one. Ties are in insertion order."""
    graph = OperatorGraph("diamond")
    log = sink(graph)  # added first on purpose: order follows the edges, not the declarations
    fan_in = graph.add_fan_in("join")
    radar, split = source(graph), graph.add_fan_out("split")
    left, right, further = operator(graph, "left"), operator(graph, "right"), operator(graph, "further")
    graph.connect(radar, split, 1)
    graph.connect(split, right, 1)
    graph.connect(split, left, 1)
    graph.connect(left, further, 1)
    graph.connect(right, fan_in, 1)
    graph.connect(further, fan_in, 1)
    graph.connect(fan_in, log, 1)
    assert names(graph.validate()) == ["radar", "split", "left", "right", "further", "join", "log"]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.randoms(use_true_random=False))
def test_upstream_always_comes_first(lengths: list[int], rng: Any) -> None:
    """However the declarations and edges of several chains into one sink are shuffled, no vertex precedes its upstream."""
    graph = OperatorGraph()
    wanted = [(chain, step) for chain, length in enumerate(lengths) for step in range(length)]
    rng.shuffle(wanted)
    ids = {(chain, step): (source if step == 0 else operator)(graph, f"{chain}/{step}") for chain, step in wanted}
    links = [(ids[chain, step], ids[chain, step + 1]) for chain, step in wanted if (chain, step + 1) in ids]
    ends = [ids[chain, length - 1] for chain, length in enumerate(lengths)]
    log = sink(graph)
    if len(ends) > 1:
        fan_in = graph.add_fan_in("fan-in")
        links += [*((end, fan_in) for end in ends), (fan_in, log)]
    else:
        links.append((ends[0], log))
    rng.shuffle(links)
    for up, down in links:
        graph.connect(up, down, 1)
    place = {name: index for index, name in enumerate(names(graph.validate()))}
    assert len(place) == len(graph.vertices)
    assert all(place[up.name] < place[down.name] for up, down in links)


def test_a_chain_of_a_thousand_is_validated_in_linear_time() -> None:
    """Eight times the length costs at most 24 times the CPU time: quadratic growth would cost 64 times."""

    def chained(length: int) -> OperatorGraph:
        graph = OperatorGraph()
        last = source(graph)
        for number in range(length - 2):
            following = operator(graph, f"op-{number}")
            graph.connect(last, following, 1)
            last = following
        graph.connect(last, sink(graph), 1)
        return graph

    graphs = {length: chained(length) for length in (125, 1_000)}
    best = dict.fromkeys(graphs, float("inf"))
    for _ in range(10):  # alternately, so that other load on the machine affects both
        for length, graph in graphs.items():
            start = time.thread_time()
            built = graph.build()
            best[length] = min(best[length], time.thread_time() - start)
            assert len(built.plan.levels) == length
    assert best[1_000] < 24 * best[125]
