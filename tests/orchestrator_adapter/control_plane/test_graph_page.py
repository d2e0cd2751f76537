"""``GET /graph``: the document of real runs, over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta

import jsonschema
from prometheus_client import Counter, Gauge, Histogram

from orchestrator_adapter import (
    BreakerPolicy,
    OperatorError,
    OperatorGraph,
    RestartPolicy,
    WiredEnds,
    for_each,
    map_items,
    source_of,
)
from orchestrator_adapter.control_plane import ControlPlane, Figure, MetricsPanel
from orchestrator_adapter.control_plane.document import Document, decode, schema
from orchestrator_adapter.resilience.breaker import Permit
from orchestrator_adapter.supervision.restart import Backoff
from tests.helpers.control_plane import fetch, served, value, waiting
from tests.helpers.running import eventually
from tests.helpers.support import ROOT

SCHEMA = ROOT / "docs/schemas/graph-1.json"


async def document(url: str) -> Document:
    answer = await fetch(f"{url}/graph")
    assert answer.status_code == 200, answer.text
    return decode(answer.content)


async def document_when(url: str, what: str, condition: Callable[[Document], object]) -> Document:
    """The first document for which ``condition`` holds."""
    deadline = time.monotonic() + 20
    while not condition(found := await document(url)):
        assert time.monotonic() < deadline, what
    return found


def test_the_published_schema_is_that_of_the_document() -> None:
    """`make schemas` writes it again."""
    assert SCHEMA.read_bytes() == schema()


async def test_the_document_of_a_run_is_valid_and_has_the_figures_of_the_metrics() -> None:
    built = waiting()

    async def during(url: str) -> None:
        await eventually(lambda: built.ledger().written == 3, "three items")
        answer, metrics = await fetch(f"{url}/graph"), (await fetch(f"{url}/metrics")).text
        jsonschema.validate(json.loads(answer.content), json.loads(SCHEMA.read_bytes()))
        found = decode(answer.content)
        assert (found.graph, found.run) == ("chain", built.run_id)
        assert [(it.name, it.role, it.column, it.state) for it in found.operators] == [
            ("source", "source", 0, "running"),
            ("op-1", "operator", 1, "running"),
            ("sink", "sink", 2, "running"),
        ]
        for it in found.operators:
            assert it.consumed == value(metrics, "operator_items_total", operator=it.name, direction="consumed")
            shares = it.shares
            assert abs(shares.busy + shares.idle + shares.blocked + shares.down - 1) < 1e-9
        assert dict(found.ledger.left)["ingested"] == dict(found.ledger.right)["written"] == 3
        assert found.ledger.balanced
        assert found.ledger.lost == 0
        assert [entry.decision for entry in found.timeline] == ["spawn"] * 3
        assert found.headline

    await served(built, during)


async def test_a_restarting_operator_has_its_countdown_its_budget_and_its_error() -> None:
    """The only restart of its budget is taken; the next instance starts in a minute."""

    def fail(item: int) -> int:
        raise OperatorError(f"no place for {item}")

    graph = OperatorGraph("fails")
    policy = RestartPolicy.bounded(1, timedelta(minutes=5), backoff=Backoff(timedelta(minutes=1), timedelta(minutes=1)))
    source = graph.add_source("source", source_of([7]))
    broken = graph.add_operator("broken", map_items(fail), restart_policy=policy, note="may fail once")
    sink = graph.add_sink("sink", for_each(print))
    graph.connect(source, broken, 8)
    graph.connect(broken, sink, 8)

    async def during(url: str) -> None:
        found = await document_when(url, "a restart", lambda it: it.operators[1].state == "restarting")
        operator = found.operators[1]
        assert operator.restart_in_s is not None
        assert 0 < operator.restart_in_s <= 60
        assert (operator.budget.left, operator.budget.of, operator.budget.restarts) == (0, 1, 1)
        assert operator.last_error is not None
        assert operator.last_error.kind == "OperatorError"
        assert "no place for 7" in operator.last_error.message
        assert operator.errors == {"OperatorError": 1}
        assert operator.note == "may fail once"
        assert any(entry.decision == "restart" and entry.operator == "broken" for entry in found.timeline)

    await served(graph.build(), during)


async def test_an_open_breaker_has_its_countdown_and_its_operators() -> None:
    async def calls(ends: WiredEnds) -> None:
        breaker = ends.breaker("archive", BreakerPolicy(min_calls=1, cooldown=timedelta(minutes=1)))
        permit = breaker.ask()
        assert isinstance(permit, Permit)
        permit.failed()
        await ends.shutdown.wait()

    graph = OperatorGraph("calls")
    graph.connect(graph.add_source("asks", calls), graph.add_sink("sink", for_each(print)), 8)

    async def during(url: str) -> None:
        found = await document_when(url, "the breaker", lambda it: it.breakers and it.breakers[0].state == "open")
        (breaker,) = found.breakers
        assert breaker.probe_in_s is not None
        assert 0 < breaker.probe_in_s <= 60
        assert (breaker.name, breaker.forced, breaker.operators) == ("archive", False, ("asks",))
        assert found.operators[0].breakers == ("archive",)

    await served(graph.build(), during)


async def test_a_panel_shows_the_figures_of_the_collectors_with_their_units() -> None:
    """A metric that is missing has no figure, and a limit marks the row."""
    waits = Gauge("outbox_oldest_seconds", "Oldest", ["subscriber"], registry=None)
    sent = Counter("sent", "Sent", ["subscriber", "outcome"], registry=None)
    took = Histogram("took_seconds", "Took", ["subscriber"], buckets=(0.1, 1.0, 10.0), registry=None)
    waits.labels("hub").set(75)
    sent.labels("hub", "ok").inc(1_234)
    sent.labels("hub", "lost").inc(5)
    sent.labels("relay", "ok").inc()
    for _ in range(100):
        took.labels("hub").observe(0.05)
    panel = MetricsPanel(
        "Outbox",
        "subscriber",
        (
            Figure("oldest", "outbox_oldest_seconds", unit="seconds", alarm_above=30),
            Figure("sent", "sent_total", {"outcome": "ok"}),
            Figure("took, p99", "took_seconds", unit="seconds"),
            Figure("nothing", "there_is_no_such_metric"),
        ),
    )

    async def during(url: str) -> None:
        (shown,) = (await document(url)).panels
        assert (shown.title, shown.columns) == ("Outbox", ("oldest", "sent", "took, p99", "nothing"))
        assert [(row.name, row.cells, row.alarming) for row in shown.rows] == [
            ("hub", ("1.25 min", "1,234", "100 ms", "–"), True),
            ("relay", ("–", "1", "–", "–"), False),
        ]

    await served(waiting(), during, plane=ControlPlane(port=0, collectors=(waits, sent, took), panels=(panel,)))
