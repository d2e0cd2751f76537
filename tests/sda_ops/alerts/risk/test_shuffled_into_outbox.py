"""The shuffled events through the operator into a real outbox: what a subscriber receives last is the same in every order."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import pytest

from orchestrator_adapter import for_each_batch
from orchestrator_adapter.testing import ManualClock, run_graph
from sda_ops.alerts.outbox.file import ALERT_COLUMNS, AlertOutboxError, alert_from
from sda_ops.alerts.outbox.recording import Recording
from sda_ops.alerts.outbox.rules import AlertRules, SubscriberRules
from sda_ops.alerts.outbox.store import AlertOutbox
from sda_ops.alerts.risk.operator import assess_risk
from sda_ops.records.alert import Alert
from sda_ops.records.risk import ConjunctionRisk
from tests.helpers.sizes import small_and_long
from tests.scenes.risks import LIMITS, NEAR_M, START_NS, ArrivalOrder, Scene, effective, near, risk_graph
from tests.sda_ops.alerts.risks import risk

FINALS = SubscriberRules(name="all", finals=True)


def opened(path: Path) -> AlertOutbox:
    outbox = AlertOutbox(path, rules=AlertRules(miss_distance_m=NEAR_M, min_severity="low"), subscribers=[FINALS])
    outbox.open(START_NS)
    return outbox


async def recorded(order: ArrivalOrder, outbox: AlertOutbox) -> dict[UUID, list[Alert]]:
    """The alerts that are in the outbox in the end, by conjunction."""

    def record(risks: list[ConjunctionRisk]) -> None:
        outbox.record(risks, START_NS)

    graph, _ = risk_graph(order, assess_risk(LIMITS, near), for_each_batch(record))
    clock = ManualClock(now_ns=START_NS, autojump=True)
    event = await run_graph(graph, clock=clock, limit=timedelta(minutes=10))
    assert event.figures.ledger_holds
    assert outbox.alerted(START_NS - 1)
    outbox.close()
    return alerts_in(outbox.path)


def alerts_in(path: Path) -> dict[UUID, list[Alert]]:
    db = sqlite3.connect(path)
    found: defaultdict[UUID, list[Alert]] = defaultdict(list)
    query = f"SELECT {ALERT_COLUMNS} FROM alerts a JOIN conjunctions c ON c.number = a.conjunction ORDER BY a.number"
    for row in db.execute(query):
        alert = alert_from(row)
        found[alert.conjunction_id].append(alert)
    db.close()
    return found


@pytest.mark.timeout(3_600)
@small_and_long(("events", "orders"), (1_000, 1), (1_000, 20), (100_000, 5))
async def test_the_newest_revisions_are_the_same_in_every_order_of_arrival(
    events: int, orders: int, tmp_path: Path
) -> None:
    """And each conjunction's revisions are 0, 1, 2 and so on."""
    scene = Scene.of(events, seed=1)
    expected = scene.expected()
    for seed in range(orders):
        alerts = await recorded(ArrivalOrder.of(scene, seed), opened(tmp_path / f"{seed}.sqlite"))
        assert effective(alert.risk for each in alerts.values() for alert in each) == expected
        for each in alerts.values():
            assert [alert.revision for alert in each] == list(range(len(each)))


def test_a_revision_that_is_used_twice_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mutant that counts the revisions of a conjunction from the one before the last: the file rejects it."""
    load = Recording._load_heads

    def forgetting_one(self: Recording, names: list[str]) -> None:
        load(self, names)
        for head in self._heads.values():
            head.revision -= 1

    monkeypatch.setattr(Recording, "_load_heads", forgetting_one)
    outbox = opened(tmp_path / "alerts.sqlite")
    outbox.record([risk(estimate=1)], START_NS)
    with pytest.raises(AlertOutboxError):
        outbox.record([risk(estimate=2, miss_m=100.0)], START_NS)
    outbox.close()
