from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from orchestrator_adapter.channels.ledger import Bookkeeping
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.graph.plan import GraphError, ProblemKind, Role, VertexId
from orchestrator_adapter.supervision.restart import RestartPolicy
from orchestrator_adapter.testing import LoopClock
from tests.orchestrator_adapter.graph.declared import idle, operator, problems_of, sink, source

# Pass 1: roles.


def surplus_source_input(graph: OperatorGraph) -> None:
    radar, optical, log = source(graph), source(graph, "optical"), sink(graph)
    graph.connect(radar, optical, 1)
    graph.connect(optical, log, 1)


def surplus_source_output(graph: OperatorGraph) -> None:
    radar = source(graph)
    for name in ("log", "audit"):
        graph.connect(radar, sink(graph, name), 1)


def missing_operator_input(graph: OperatorGraph) -> None:
    graph.connect(operator(graph), sink(graph), 1)


def missing_operator_output(graph: OperatorGraph) -> None:
    graph.connect(source(graph), operator(graph), 1)


def surplus_operator_input(graph: OperatorGraph) -> None:
    normalize = operator(graph)
    for name in ("radar", "optical"):
        graph.connect(source(graph, name), normalize, 1)
    graph.connect(normalize, sink(graph), 1)


def surplus_operator_output(graph: OperatorGraph) -> None:
    normalize = operator(graph)
    graph.connect(source(graph), normalize, 1)
    for name in ("log", "audit"):
        graph.connect(normalize, sink(graph, name), 1)


def missing_sink_input(graph: OperatorGraph) -> None:
    sink(graph)


def surplus_sink_input(graph: OperatorGraph) -> None:
    log = sink(graph)
    for name in ("radar", "optical"):
        graph.connect(source(graph, name), log, 1)


def surplus_sink_output(graph: OperatorGraph) -> None:
    log = sink(graph)
    graph.connect(source(graph), log, 1)
    graph.connect(log, sink(graph, "audit"), 1)


def missing_fan_in_input(graph: OperatorGraph) -> None:
    fan_in = graph.add_fan_in("fan-in")
    graph.connect(source(graph), fan_in, 1)
    graph.connect(fan_in, sink(graph), 1)


def missing_fan_in_output(graph: OperatorGraph) -> None:
    fan_in = graph.add_fan_in("fan-in")
    for name in ("radar", "optical"):
        graph.connect(source(graph, name), fan_in, 1)


def surplus_fan_in_output(graph: OperatorGraph) -> None:
    missing_fan_in_output(graph)
    for name in ("log", "audit"):
        graph.connect(graph.vertices[0].id, sink(graph, name), 1)


def missing_fan_out_input(graph: OperatorGraph) -> None:
    fan_out = graph.add_fan_out("fan-out")
    for name in ("log", "audit"):
        graph.connect(fan_out, sink(graph, name), 1)


def missing_fan_out_output(graph: OperatorGraph) -> None:
    fan_out = graph.add_fan_out("fan-out")
    graph.connect(source(graph), fan_out, 1)
    graph.connect(fan_out, sink(graph), 1)


def surplus_fan_out_input(graph: OperatorGraph) -> None:
    missing_fan_out_input(graph)
    for name in ("radar", "optical"):
        graph.connect(source(graph, name), graph.vertices[0].id, 1)


@pytest.mark.parametrize(
    ("declare", "message"),
    [
        (
            source,
            "source 'radar': expected one output, got none; add connect(radar, downstream, capacity)",
        ),
        (
            surplus_source_input,
            (
                "source 'optical': expected no input, got 1 (radar);"
                " remove the edge, or declare 'optical' with another role"
            ),
        ),
        (
            surplus_source_output,
            "source 'radar': expected one output, got 2 (log, audit); split them with add_fan_out(...)",
        ),
        (
            missing_operator_input,
            "operator 'normalize': expected one input, got none; add connect(upstream, normalize, capacity)",
        ),
        (
            missing_operator_output,
            "operator 'normalize': expected one output, got none; add connect(normalize, downstream, capacity)",
        ),
        (
            surplus_operator_input,
            "operator 'normalize': expected one input, got 2 (radar, optical); merge them first with add_fan_in(...)",
        ),
        (
            surplus_operator_output,
            "operator 'normalize': expected one output, got 2 (log, audit); split them with add_fan_out(...)",
        ),
        (
            missing_sink_input,
            "sink 'log': expected one input, got none; add connect(upstream, log, capacity)",
        ),
        (
            surplus_sink_input,
            "sink 'log': expected one input, got 2 (radar, optical); merge them first with add_fan_in(...)",
        ),
        (
            surplus_sink_output,
            "sink 'log': expected no output, got 1 (audit); remove the edge, or declare 'log' with another role",
        ),
        (
            missing_fan_in_input,
            "fan-in 'fan-in': expected 2 or more inputs, got 1 (radar); add connect(upstream, fan-in, capacity)",
        ),
        (
            missing_fan_in_output,
            "fan-in 'fan-in': expected one output, got none; add connect(fan-in, downstream, capacity)",
        ),
        (
            surplus_fan_in_output,
            "fan-in 'fan-in': expected one output, got 2 (log, audit); split them with add_fan_out(...)",
        ),
        (
            missing_fan_out_input,
            "fan-out 'fan-out': expected one input, got none; add connect(upstream, fan-out, capacity)",
        ),
        (
            missing_fan_out_output,
            "fan-out 'fan-out': expected 2 or more outputs, got 1 (log); add connect(fan-out, downstream, capacity)",
        ),
        (
            surplus_fan_out_input,
            "fan-out 'fan-out': expected one input, got 2 (radar, optical); merge them first with add_fan_in(...)",
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_wrong_number_of_edges_is_named(declare: Callable[[OperatorGraph], object], message: str) -> None:
    """Each role's missing or surplus direction is the one problem reported, with the present edges and the call that corrects it."""
    graph = OperatorGraph()
    declare(graph)
    assert problems_of(graph) == [message]


# Pass 1: declarations.


def test_an_empty_graph_is_rejected() -> None:
    """A graph without vertices is one problem with its own kind."""
    assert problems_of(OperatorGraph("nothing")) == ["graph 'nothing' has no vertices; call add_source(...) first"]


def test_a_duplicate_name_is_rejected() -> None:
    """The problem has the role of the second vertex with that name. The edges are still checked."""
    graph = OperatorGraph()
    graph.connect(source(graph, "radar"), sink(graph, "radar"), 1)
    assert problems_of(graph) == ["the name 'radar' is given to more than one vertex; give this sink a name of its own"]


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        (" log", "has white space around it, or a character that cannot be printed"),
        ("two\nlines", "has white space around it, or a character that cannot be printed"),
        ("radar -> log", "contains '->', as the id of an edge does"),
        ("log (2)", "ends with a number in parentheses, as the id of a second edge between two vertices does"),
        (7, "is not a string"),
    ],
)
def test_a_name_that_an_edge_id_cannot_contain_is_rejected(name: Any, problem: str) -> None:
    """Empty names, and names with which two edges could have one id. The same for the graph's own name."""
    graph = OperatorGraph("small")
    graph.connect(source(graph), sink(graph, name), 1)
    assert any(text.startswith(f"sink: the name {name!r} {problem}; ") for text in problems_of(graph))
    graph = OperatorGraph(name)
    graph.connect(source(graph), sink(graph), 1)
    assert any(text.startswith(f"the graph's name {name!r} {problem}; ") for text in problems_of(graph))


def test_every_edge_has_an_id_of_its_own() -> None:
    """Routers with several edges between them, and names with spaces and parentheses: as many ids as edges."""
    graph = OperatorGraph("small graph (new)")
    split, join = graph.add_fan_out("split (a)"), graph.add_fan_in("join 2")
    graph.connect(source(graph), split, 1)
    for _ in range(3):
        graph.connect(split, join, 1)
    graph.connect(join, sink(graph), 1)
    assert [edge.id for edge in graph.validate().edges] == [
        "radar -> split (a)",
        "split (a) -> join 2",
        "split (a) -> join 2 (2)",
        "split (a) -> join 2 (3)",
        "join 2 -> log",
    ]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("max_deliveries", 0, "max_deliveries must be >= 1, got 0"),
        ("max_deliveries", 1.5, "max_deliveries must be >= 1, got 1.5"),
        ("progress_timeout", timedelta(0), "progress_timeout must be a timedelta > 0, got datetime.timedelta(0)"),
        ("progress_timeout", 5, "progress_timeout must be a timedelta > 0, got 5"),
        ("expected_errors", ValueError, "expected_errors must be a tuple of exception types, got <class 'ValueError'>"),
        ("expected_errors", ("x",), "expected_errors must be a tuple of exception types, got ('x',)"),
    ],
)
def test_an_option_of_a_vertex_that_is_out_of_bounds_is_rejected(option: str, value: Any, message: str) -> None:
    """One sentence that names the vertex, the option and the bounds; wrong types too, such as seconds as a number."""
    graph = OperatorGraph()
    options: Any = {option: value}
    work = graph.add_operator("work", idle, **options)
    graph.connect(source(graph), work, 1)
    graph.connect(work, sink(graph), 1)
    (problem,) = problems_of(graph)
    assert problem.startswith(f"operator 'work': {message}; ")


@pytest.mark.parametrize("capacity", [0, -1, True, 1.5, None, "8"])
def test_a_capacity_that_is_not_a_positive_integer_is_rejected(capacity: Any) -> None:
    """Zero, a negative number, a boolean, a fraction, ``None``, text: an unbounded edge is impossible."""
    graph = OperatorGraph()
    graph.connect(source(graph), sink(graph), capacity)
    assert problems_of(graph) == [
        (
            f"edge 'radar -> log': capacity must be a positive integer, got {capacity!r};"
            " there are no unbounded edges: say how many items it may hold"
        )
    ]


def test_a_vertex_of_another_graph_is_rejected() -> None:
    """An id of another graph is named with its edge, and the input that it should feed is missing."""
    stranger = sink(OperatorGraph("other"), "audit")
    graph = OperatorGraph()
    graph.connect(source(graph), stranger, 1)
    graph.connect(VertexId(7, "nowhere"), sink(graph), 1)
    assert problems_of(graph) == [
        (
            "edge 'radar -> audit': vertex 'audit' is not of this graph;"
            " connect only ids that this graph's add_… calls returned"
        ),
        (
            "edge 'nowhere -> log': vertex 'nowhere' is not of this graph;"
            " connect only ids that this graph's add_… calls returned"
        ),
    ]


def test_an_item_is_delivered_twice_by_default() -> None:
    """The default of the specification, for every vertex with inputs."""
    graph = OperatorGraph()
    graph.add_operator("operator", idle)
    graph.add_sink("sink", idle)
    graph.add_fan_in("fan-in")
    graph.add_fan_out("fan-out")
    assert [vertex.max_deliveries for vertex in graph.vertices] == [2, 2, 2, 2]


def test_building_needs_no_running_loop_with_any_clock() -> None:
    """Even a graph with progress timeouts, on the clock of an event loop, is built without a running loop."""
    graph = OperatorGraph()
    graph.connect(source(graph), graph.add_sink("log", idle, progress_timeout=timedelta(seconds=1)), 1)
    assert graph.build(clock=LoopClock()).event is None


def test_all_problems_are_reported_together() -> None:
    """One error lists a duplicate, a capacity, a missing direction and a cycle, in that order, and counts them."""
    graph = OperatorGraph()
    source(graph, "radar")
    normalize, dedup = operator(graph, "normalize"), operator(graph, "dedup")
    graph.connect(normalize, dedup, 0)
    graph.connect(dedup, normalize, 1)
    graph.connect(source(graph, "radar"), sink(graph), 1)
    with pytest.raises(GraphError) as caught:
        graph.build()
    assert [problem.kind for problem in caught.value.problems] == [
        ProblemKind.DUPLICATE_NAME,
        ProblemKind.BAD_CAPACITY,
        ProblemKind.MISSING_OUTPUT,
        ProblemKind.CYCLE,
    ]
    assert str(caught.value).splitlines()[0] == "4 problems in the operator graph:"
    assert [line.strip("- ") for line in str(caught.value).splitlines()[1:]] == [
        str(problem) for problem in caught.value.problems
    ]


def test_a_single_problem_has_a_heading_in_the_singular() -> None:
    """The heading is grammatically correct."""
    with pytest.raises(GraphError, match=r"^1 problem in the operator graph:\n  - graph 'graph' has no vertices"):
        OperatorGraph().validate()


# Options.


def test_defaults_follow_the_role() -> None:
    """The default restart policy and bookkeeping of each role are those of the specification. Both can be chosen."""
    graph = OperatorGraph()
    source(graph)
    operator(graph)
    graph.add_operator("dedup", idle, stateful=True)
    graph.add_operator("window", idle, expanding=True, restart_policy=RestartPolicy.always())
    sink(graph)
    graph.add_fan_in("fan-in")
    graph.add_fan_out("fan-out")
    assert [(vertex.role, str(vertex.restart_policy), vertex.bookkeeping) for vertex in graph.vertices] == [
        (Role.SOURCE, "bounded(5, 60 s)", Bookkeeping.SOURCE),
        (Role.OPERATOR, "bounded(5, 60 s)", Bookkeeping.CONSERVING),
        (Role.OPERATOR, "bounded(3, 60 s)", Bookkeeping.CONSERVING),
        (Role.OPERATOR, "always", Bookkeeping.EXPANDING),
        (Role.SINK, "never", Bookkeeping.SINK),
        (Role.FAN_IN, "bounded(5, 60 s)", Bookkeeping.CONSERVING),
        (Role.FAN_OUT, "bounded(5, 60 s)", Bookkeeping.EXPANDING),
    ]


def test_two_edges_between_the_same_routers_are_two_edges() -> None:
    """A fan-out may feed a fan-in twice; each edge has its own channel and its own statistics."""
    graph = OperatorGraph()
    split, join = graph.add_fan_out("split"), graph.add_fan_in("join")
    graph.connect(source(graph), split, 1)
    graph.connect(split, join, 2)
    graph.connect(split, join, 3)
    graph.connect(join, sink(graph), 1)
    assert sorted(edge.capacity for edge in graph.build().status().edges.values()) == [1, 1, 2, 3]
