"""Small graphs and operators that the tests of a running graph share."""

from __future__ import annotations

import asyncio
from typing import Any

from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.operators.ends import Factory, WiredEnds
from orchestrator_adapter.primitives.errors import OperatorError
from orchestrator_adapter.runtime.built_graph import BuiltGraph
from orchestrator_adapter.supervision.events import SupervisorEvent
from orchestrator_adapter.supervision.restart import RestartPolicy
from orchestrator_adapter.testing import ManualClock, settle

AWAY = OperatorError("away")


def three(
    source: Factory,
    operator: Factory,
    sink: Factory,
    *,
    policy: RestartPolicy | None = None,
    capacity: int = 64,
    max_deliveries: int = 2,
    expanding: bool = False,
) -> OperatorGraph:
    """``source -> op -> sink`` with the options of the operator."""
    graph = OperatorGraph("three")
    first = graph.add_source("source", source)
    middle = graph.add_operator(
        "op", operator, restart_policy=policy, max_deliveries=max_deliveries, expanding=expanding
    )
    graph.connect(first, middle, capacity)
    graph.connect(middle, graph.add_sink("sink", sink), capacity)
    return graph


def shutting_down(*requests: str) -> Any:
    async def during(built: BuiltGraph) -> None:
        await settle()
        for request in requests:
            built.request_shutdown(request)
            await settle()

    return during


async def live(ends: WiredEnds) -> None:
    """A source that emits 0, 1, 2 … until it is asked to stop."""
    number = 0
    while not ends.shutdown.is_set:
        await ends.emit([number])
        number += 1
        await asyncio.sleep(0)


async def takes_one_batch(ends: WiredEnds) -> None:
    """An operator or sink that takes one batch, and then waits for ever."""
    await ends.receiver.recv_many()
    await asyncio.Event().wait()


def double(item: int) -> int:
    return 2 * item


def holds(event: SupervisorEvent) -> bool:
    figures = event.figures
    return figures.ledger_holds and figures.ledger.in_flight == 0


def advancing(times: int) -> Any:
    async def during(built: BuiltGraph) -> None:
        assert isinstance(built.clock, ManualClock)
        for _ in range(times):
            await built.clock.advance_when_idle(1)

    return during


async def let_time_pass(built: BuiltGraph, clock: ManualClock, step_s: float = 1.0) -> None:
    """Advance the clock in steps until the run has ended."""
    while built.event is None:
        await clock.advance_when_idle(step_s)
