"""Passes 3 and 4 of ``build``: make every channel, then wire every operator, in topological order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestrator_adapter.channels.channel import Undeliverable
from orchestrator_adapter.channels.edge import Edge, Side
from orchestrator_adapter.channels.flow_policy import Spill
from orchestrator_adapter.channels.ledger import OperatorAccount
from orchestrator_adapter.channels.make_edge import make_edge
from orchestrator_adapter.graph.plan import Plan, Vertex
from orchestrator_adapter.operators.blocking import BlockingCalls, BlockingPool, BlockingPools
from orchestrator_adapter.operators.services import VertexServices
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.errors import OrchestratorError
from orchestrator_adapter.primitives.event_log import BoundedLog, DecisionLog
from orchestrator_adapter.primitives.metrics import LatencyHistogram
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.primitives.stopwatch import Stopwatch
from orchestrator_adapter.resilience.breaker import Breakers
from orchestrator_adapter.runtime.operator_run import OperatorRun
from orchestrator_adapter.storage.dead_letter import DeadLetterGate, DeadLetterKind
from orchestrator_adapter.storage.dead_letter_writer import DeadLetterWriter
from orchestrator_adapter.storage.spill import SpillFiles


@dataclass(frozen=True, slots=True)
class GraphServices:
    """What every vertex of one graph shares."""

    clock: Clock
    rng: random.Random
    shutdown: ShutdownToken
    dead_letter_writer: DeadLetterWriter
    pools: BlockingPools
    breakers: Breakers
    log: DecisionLog


def wire(plan: Plan, services: GraphServices) -> tuple[Mapping[str, OperatorRun], Mapping[str, Edge[Any]]]:
    """The operators by name, in topological order, and the edges by id. Every end of every edge is used exactly once."""
    lent = {vertex.name: _services(vertex, services) for vertex in plan.order}
    inputs, outputs = (
        {name: Side(its.account, Stopwatch(services.clock)) for name, its in lent.items()}
        for _ in ("inputs", "outputs")
    )
    edges: dict[str, Edge[Any]] = {}
    for declared in plan.edges:
        writer = declared.upstream.name
        edges[declared.id] = make_edge(
            declared.id,
            declared.capacity,
            declared.policy,
            writer=outputs[writer],
            reader=inputs[declared.downstream.name],
            clock=services.clock,
            dead_letter=partial(_dead_letter_dropped, lent[writer]),
            make_queue=_make_queue,
            log=services.log,
        )
    runs = {
        vertex.name: OperatorRun(
            vertex, inputs=inputs.pop(vertex.name), outputs=outputs.pop(vertex.name), services=lent[vertex.name]
        )
        for vertex in plan.order
    }
    if inputs or outputs:
        raise OrchestratorError(f"unused ends after wiring: {sorted({*inputs, *outputs})}")
    return runs, edges


def _make_queue(edge: str, spill: Spill) -> SpillFiles:
    return SpillFiles(spill.folder, edge, spill.max_bytes)


def _services(vertex: Vertex, services: GraphServices) -> VertexServices:
    log = BoundedLog(vertex.name, services.clock)
    pool = services.pools.get(vertex.blocking_pool or BlockingPool(vertex.name))
    return VertexServices(
        clock=services.clock,
        rng=services.rng,
        shutdown=services.shutdown,
        dead_letter_writer=services.dead_letter_writer,
        account=OperatorAccount(vertex.name, vertex.bookkeeping),
        blocking=BlockingCalls(vertex.name, log, pool),
        breakers=services.breakers,
        gate=DeadLetterGate(vertex.dead_letter_limits),
        log=log,
        latency=LatencyHistogram(),
    )


def _dead_letter_dropped(services: VertexServices, why: str, items: Sequence[Undeliverable[Any]]) -> None:
    """Items that a flow policy gave up on, or that were for a branch that is done: too frequent for a log line each."""
    services.log.note(str(DeadLetterKind.UNDELIVERED), why)
    services.account.dead_lettered += len(items)
    services.dead_letter_writer.write_unlogged(services.account.operator, items, DeadLetterKind.UNDELIVERED, why)
