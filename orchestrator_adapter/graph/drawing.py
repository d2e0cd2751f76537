"""Pictures of a declared graph: a Mermaid flowchart, and text for a terminal. Work for invalid graphs too."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator_adapter.channels.flow_policy import FlowPolicy
from orchestrator_adapter.graph.plan import DeclaredEdge, Role, Vertex


def to_mermaid(vertices: Sequence[Vertex], edges: Sequence[DeclaredEdge]) -> str:
    """A Mermaid flowchart, with capacities, flow policies and restart policies."""
    shapes = {
        Role.SOURCE: ("([", "])"),
        Role.OPERATOR: ("[", "]"),
        Role.SINK: ("[(", ")]"),
        Role.FAN_IN: ("{{", "}}"),
        Role.FAN_OUT: ("{{", "}}"),
    }
    lines = ["flowchart LR"]
    for vertex in vertices:
        left, right = shapes[vertex.role]
        label = f"{_escape(vertex.name)}<br/><small>{vertex.role.value} · {vertex.restart_policy}</small>"
        lines.append(f'    v{vertex.id.index}{left}"{label}"{right}')
    for edge in edges:
        label = f"{edge.capacity}" + ("" if edge.policy == FlowPolicy.backpressure() else f" · {edge.policy}")
        lines.append(f'    v{edge.upstream.index} -->|"{_escape(label)}"| v{edge.downstream.index}')
    return "\n".join(lines) + "\n"


def describe(name: str, vertices: Sequence[Vertex], edges: Sequence[DeclaredEdge]) -> str:
    """One line for each vertex and edge, with its policy or capacity, and the reason."""
    rows = [(vertex.name, vertex.role.value, f"restart {vertex.restart_policy}", vertex.note) for vertex in vertices]
    rows += [(edge.id, "edge", f"{edge.capacity} items, {edge.policy}", edge.note) for edge in edges]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = [f"{name}: {len(vertices)} vertices, {len(edges)} edges"]
    for *cells, note in rows:
        text = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append(f"  {text}  {note}".rstrip())
    return "\n".join(lines)


def _escape(text: str) -> str:
    return text.replace('"', "#quot;")
