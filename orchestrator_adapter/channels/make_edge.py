"""``make_edge``: the edge that carries out a flow policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, assert_never

from orchestrator_adapter.channels.channel import Channel
from orchestrator_adapter.channels.edge import DeadLetterDropped, Edge, Side
from orchestrator_adapter.channels.flow_policy import Backpressure, FlowPolicy, Shed, Spill, Timed
from orchestrator_adapter.channels.spilling_edge import SpillingEdge, SpillQueue
from orchestrator_adapter.channels.timed_edge import TimedChannel, TimedEdge
from orchestrator_adapter.primitives.clock import Clock


def make_edge(
    edge_id: str,
    capacity: int,
    policy: FlowPolicy,
    *,
    writer: Side,
    reader: Side,
    clock: Clock,
    dead_letter: DeadLetterDropped,
    make_queue: Callable[[str, Spill], SpillQueue],
    log: Callable[..., None],
) -> Edge[Any]:
    """An empty edge from ``writer`` to ``reader``; both get to know it. ``make_queue`` and ``log`` are for spilling edges."""
    match policy.when_full:
        case Backpressure() | Shed():
            return Edge(
                Channel(edge_id, capacity, clock),
                writer=writer,
                reader=reader,
                clock=clock,
                dead_letter=dead_letter,
                sheds=isinstance(policy.when_full, Shed),
            )
        case Timed():
            return TimedEdge(
                TimedChannel(edge_id, capacity, policy.when_full, clock),
                policy.when_full,
                writer=writer,
                reader=reader,
                clock=clock,
                dead_letter=dead_letter,
            )
        case Spill(when_full=when_full):
            return SpillingEdge(
                Channel(edge_id, capacity, clock),
                make_queue(edge_id, policy.when_full),
                writer=writer,
                reader=reader,
                clock=clock,
                dead_letter=dead_letter,
                sheds=isinstance(when_full, Shed),
                log=log,
            )
        case _:
            assert_never(policy.when_full)
