"""Where the operators of a graph are drawn: columns from left to right, rows from top to bottom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from orchestrator_adapter.graph.plan import Plan

_PASSES: Final = 4


def places(plan: Plan) -> Mapping[str, tuple[int, int]]:
    """The column and the row of each operator, by name.

    The column is the length of the longest path from a source, so every edge leads to a greater column. In each column the
    operators are ordered by the mean row of their neighbours (the barycentre heuristic of Sugiyama, Tagawa & Toda, *Methods
    for Visual Understanding of Hierarchical System Structures*, IEEE Transactions on Systems, Man, and Cybernetics 11(2),
    1981), alternately of those to the left and to the right. Equal means keep their order, so the result is the same each time.
    """
    columns = [[vertex.name for vertex in level] for level in plan.levels]
    left: dict[str, list[str]] = {vertex.name: [] for vertex in plan.order}
    right: dict[str, list[str]] = {vertex.name: [] for vertex in plan.order}
    for edge in plan.edges:
        left[edge.downstream.name].append(edge.upstream.name)
        right[edge.upstream.name].append(edge.downstream.name)
    row = {name: float(at) for column in columns for at, name in enumerate(column)}
    for number in range(_PASSES):
        neighbours, order = (left, columns) if number % 2 == 0 else (right, columns[::-1])
        for column in order:
            column.sort(key=lambda name: _mean([row[it] for it in neighbours[name]], otherwise=row[name]))
            row.update((name, float(at)) for at, name in enumerate(column))
    return {name: (at, int(row[name])) for at, column in enumerate(columns) for name in column}


def _mean(values: list[float], *, otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
