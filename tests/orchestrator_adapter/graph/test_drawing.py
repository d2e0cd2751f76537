from __future__ import annotations

from datetime import timedelta

from orchestrator_adapter.channels.flow_policy import FlowPolicy
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.supervision.restart import RestartPolicy
from tests.orchestrator_adapter.graph.declared import idle, ring, sink, source


def test_mermaid_draws_roles_policies_and_capacities() -> None:
    """The whole drawing of a small graph: shapes by role, restart policies, capacities, and non-default flow policies."""
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


def test_describe_lists_every_vertex_and_edge_with_its_note() -> None:
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
    """The drawings do not validate, so that the problem can be seen."""
    graph = OperatorGraph("broken")
    ring(graph, "a", "b")
    assert "v1 -->" in graph.to_mermaid()
    assert graph.describe().startswith("broken: 2 vertices, 2 edges")
    assert OperatorGraph("empty").describe() == "empty: 0 vertices, 0 edges"
