"""One set of events in many orders of arrival, through sources, fan-ins with marks and the operator."""

from __future__ import annotations

from uuid import UUID

from orchestrator_adapter.testing import ManualClock, run_graph
from sda_ops.alerts.risk.operator import assess_risk
from sda_ops.event_time.watermark import Watermark
from sda_ops.records.risk import ConjunctionRisk
from tests.helpers.sizes import small_and_long
from tests.scenes.risks import LIMITS, START_NS, ArrivalOrder, Effective, Scene, effective, near, risk_graph


async def stated(order: ArrivalOrder) -> list[ConjunctionRisk]:
    """Every statement, in order."""
    graph, sink = risk_graph(order, assess_risk(LIMITS, near))
    event = await run_graph(graph, clock=ManualClock(now_ns=START_NS, autojump=True))
    assert event.figures.ledger_holds
    return [item for item in sink.items if not isinstance(item, Watermark)]


def differing(one: dict[UUID, Effective], other: dict[UUID, Effective]) -> list[UUID]:
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


@small_and_long(("events", "orders"), (1_000, 4), (1_000, 20), (100_000, 20))
async def test_the_last_statements_are_the_same_in_every_order_of_arrival_within_the_lateness(
    events: int, orders: int
) -> None:
    scene = Scene.of(events, seed=1)
    expected = scene.expected()
    assert len(expected) > 30
    for seed in range(orders):
        risks = await stated(ArrivalOrder.of(scene, seed))
        assert not differing(effective(risks), expected)
