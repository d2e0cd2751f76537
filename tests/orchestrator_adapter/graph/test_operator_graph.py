from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_adapter.channels.channel import FlowPolicy
from orchestrator_adapter.channels.ledger import Bookkeeping
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.graph.plan import GraphError, Plan, ProblemKind, Role, VertexId
from orchestrator_adapter.operators.ends import WiredEnds
from orchestrator_adapter.supervision.restart import RestartPolicy
from orchestrator_adapter.testing import LoopClock


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
    """Each role's missing or surplus direction is the one problem reported, with who is there and what would mend it."""
    graph = OperatorGraph()
    declare(graph)
    assert problems_of(graph) == [message]


# Pass 1: declarations.


def test_an_empty_graph_is_refused() -> None:
    """A graph without vertices is one problem, of its own kind."""
    assert problems_of(OperatorGraph("nothing")) == ["graph 'nothing' has no vertices; call add_source(...) first"]


def test_a_name_given_twice_is_refused() -> None:
    """The second vertex of a name is told by role to choose another; the edges are judged all the same."""
    graph = OperatorGraph()
    graph.connect(source(graph, "radar"), sink(graph, "radar"), 1)
    assert problems_of(graph) == ["the name 'radar' is given to more than one vertex; give this sink a name of its own"]


@pytest.mark.parametrize("capacity", [0, -1, True, 1.5, None, "8"])
def test_a_capacity_that_is_no_positive_integer_is_refused(capacity: Any) -> None:
    """Zero, negative, a boolean, a fraction, nothing, text: there is no way to an unbounded edge."""
    graph = OperatorGraph()
    graph.connect(source(graph), sink(graph), capacity)
    assert problems_of(graph) == [
        (
            f"edge 'radar -> log': capacity must be a positive integer, got {capacity!r};"
            " there are no unbounded edges: say how many items it may hold"
        )
    ]


def test_a_vertex_of_another_graph_is_refused() -> None:
    """An id that this graph did not give out is named with its edge, and what it should have fed is missing."""
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


def test_max_deliveries_below_one_is_refused() -> None:
    """An item must be delivered once at least."""
    graph = OperatorGraph()
    graph.connect(source(graph), graph.add_sink("log", idle, max_deliveries=0), 1)
    assert problems_of(graph) == [
        "sink 'log': max_deliveries must be >= 1, got 0; an item must be delivered once at least"
    ]


def test_an_item_is_delivered_twice_unless_told_otherwise() -> None:
    """The default of the specification, for every kind of vertex that reads."""
    graph = OperatorGraph()
    graph.add_operator("operator", idle)
    graph.add_sink("sink", idle)
    graph.add_fan_in("fan-in")
    graph.add_fan_out("fan-out")
    assert [vertex.max_deliveries for vertex in graph.vertices] == [2, 2, 2, 2]


def test_building_needs_no_running_loop_whatever_the_clock() -> None:
    """Also a graph with progress timeouts, on a clock that is the running loop's, is built where no loop runs."""
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


def test_a_single_problem_is_told_in_the_singular() -> None:
    """The heading counts as English does."""
    with pytest.raises(GraphError, match=r"^1 problem in the operator graph:\n  - graph 'graph' has no vertices"):
        OperatorGraph().validate()


# Pass 2: order and cycles.


def ring(graph: OperatorGraph, *members: str) -> list[VertexId]:
    vertices = [operator(graph, name) for name in members]
    for up, down in zip(vertices, vertices[1:] + vertices[:1], strict=True):
        graph.connect(up, down, 1)
    return vertices


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
    """The shortest cycle there is has one edge."""
    graph = OperatorGraph()
    ring(graph, "dedup")
    assert problems_of(graph) == [
        "the graph has a cycle: dedup -> dedup; remove one of its edges, e.g. connect(dedup, dedup, …)"
    ]


def test_each_strongly_connected_component_has_one_cycle_named() -> None:
    """Two separate rings are two problems; two loops through one vertex are one."""
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


def test_what_merely_lies_behind_a_cycle_is_not_named_as_one() -> None:
    """A cycle keeps everything downstream from being placed; only the cycle itself is reported."""
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
    """Behind a fan-out with a short and a long branch, the fan-in comes after the long one; ties as they were added."""
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
    for _ in range(10):  # in turn, so that what disturbs the machine disturbs both
        for length, graph in graphs.items():
            start = time.thread_time()
            built = graph.build()
            best[length] = min(best[length], time.thread_time() - start)
            assert len(built.plan.levels) == length
    assert best[1_000] < 24 * best[125]


# Options, and where they end up.


def test_defaults_follow_the_role() -> None:
    """Restart policy and bookkeeping of each role are those of the specification, and can be chosen."""
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


# Drawing.


def test_mermaid_draws_roles_policies_and_capacities() -> None:
    """The whole picture of a small graph: shapes by role, restart policies, capacities, and flow policies if special."""
    graph = OperatorGraph("small")
    radar = source(graph, 'radar "north"')
    fan_out = graph.add_fan_out("split", restart_policy=RestartPolicy.always())
    graph.connect(radar, fan_out, 64)
    graph.connect(fan_out, sink(graph, "log"), 32)
    graph.connect(fan_out, sink(graph, "preview"), 8, policy=FlowPolicy.shed())
    assert graph.to_mermaid() == (
        "flowchart LR\n"
        '    v0(["radar #quot;north#quot;<br/><small>source · bounded(5, 60 s)</small>"])\n'
        '    v1{{"split<br/><small>fan-out · always</small>"}}\n'
        '    v2[("log<br/><small>sink · never</small>")]\n'
        '    v3[("preview<br/><small>sink · never</small>")]\n'
        '    v0 -->|"64"| v1\n'
        '    v1 -->|"32"| v2\n'
        '    v1 -->|"8 · shed"| v3\n'
    )


def test_describe_tells_every_vertex_and_edge_and_why() -> None:
    """Names, roles, policies, capacities and notes, in columns."""
    graph = OperatorGraph("small")
    radar = graph.add_source("radar", idle, note="the socket may be taken for a moment")
    policy = FlowPolicy.timed(timedelta(seconds=2))
    graph.connect(radar, sink(graph, "log"), 64, policy=policy, note="a burst")
    assert graph.describe() == (
        "small: 2 vertices, 1 edges\n"
        "  radar         source  restart bounded(5, 60 s)               the socket may be taken for a moment\n"
        "  log           sink    restart never\n"
        "  radar -> log  edge    64 items, timed 2 s, then dead-letter  a burst"
    )


def test_an_invalid_graph_can_be_drawn() -> None:
    """What is wrong can be seen: neither drawing validates."""
    graph = OperatorGraph("broken")
    ring(graph, "a", "b")
    assert "v1 -->" in graph.to_mermaid()
    assert graph.describe().startswith("broken: 2 vertices, 2 edges")
    assert OperatorGraph("empty").describe() == "empty: 0 vertices, 0 edges"
