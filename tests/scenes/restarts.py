"""Graphs whose operators fail and are restarted without limit."""

from __future__ import annotations

from typing import Any

from orchestrator_adapter import (
    Factory,
    OperatorError,
    OperatorGraph,
    RestartPolicy,
)


def itself(item: Any) -> Any:
    return item


def away() -> OperatorError:
    """A new error each time, because an exception keeps the frames of every place where it was raised."""
    return OperatorError("away")


def restarted_chain(source: Factory, *rest: Factory, capacity: int = 64, max_deliveries: int = 2) -> OperatorGraph:
    """As ``chain``, with operators that are restarted without limit."""
    graph = OperatorGraph("restarted")
    last = graph.add_source("source", source, restart_policy=RestartPolicy.always(backoff=None))
    for number, factory in enumerate(rest[:-1], 1):
        operator = graph.add_operator(
            f"op-{number}", factory, restart_policy=RestartPolicy.always(backoff=None), max_deliveries=max_deliveries
        )
        graph.connect(last, operator, capacity)
        last = operator
    sink = graph.add_sink(
        "sink", rest[-1], restart_policy=RestartPolicy.always(backoff=None), max_deliveries=max_deliveries
    )
    graph.connect(last, sink, capacity)
    return graph
