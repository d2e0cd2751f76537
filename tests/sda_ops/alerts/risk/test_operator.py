"""The ``risk`` operator in a running graph: restarts, the recovery, other control items, figures and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from orchestrator_adapter import BuiltGraph, Control, Factory, OperatorError, OperatorGraph, RestartPolicy
from orchestrator_adapter.testing import CollectSink, ListSource, ManualClock, Pause, UntilShutdown, run_graph
from sda_ops.alerts.risk.assessor import AssessorLimits, Recovery, RiskAssessor
from sda_ops.alerts.risk.evidence import EvidenceLimits
from sda_ops.alerts.risk.operator import assess_risk
from sda_ops.event_time.metrics import EventTimeMetrics
from sda_ops.event_time.watermark import Watermark
from sda_ops.records.conjunction import ConjunctionEstimate
from sda_ops.records.risk import ConjunctionRisk
from tests.helpers.running import Fault, counter, eventually
from tests.scenes.risks import START_NS, S, near, observed, screened

LIMITS = AssessorLimits(
    evidence=EvidenceLimits(gap_ns=10 * S, longest_ns=60 * S, allowed_lateness_ns=5 * S), restate_after_ns=0
)
PAIR = (101, 102)


@dataclass(frozen=True, slots=True)
class Canary(Control):
    """A control item that the operator does not know."""

    number: int


def mark(seconds: float | None) -> Watermark:
    return Watermark(None if seconds is None else START_NS + round(seconds * S), "radar-0")


def risk_chain(source: Factory, risk: Factory) -> tuple[OperatorGraph, CollectSink]:
    graph, sink = OperatorGraph("risks"), CollectSink(controls=True)
    policy = RestartPolicy.bounded(3, timedelta(minutes=1))
    operator = graph.add_operator("risk", risk, expanding=True, stateful=True, restart_policy=policy)
    graph.connect(graph.add_source("source", source), operator, 64)
    graph.connect(operator, graph.add_sink("sink", sink), 64)
    return graph, sink


def brief(items: Sequence[Any]) -> list[Any]:
    """Of each statement the cause, and each control item as it is."""
    return [item.cause if isinstance(item, ConjunctionRisk) else item for item in items]


async def test_each_statement_is_in_front_of_the_mark_that_allows_it_and_every_control_item_keeps_its_place() -> None:
    """An idle mark and an unknown control item change nothing and are forwarded."""
    source = ListSource(
        [screened(PAIR), observed(101, 1.0), mark(2), Canary(1), mark(None), observed(102, 3.0), mark(13)]
    )
    graph, sink = risk_chain(source, assess_risk(LIMITS, near))
    event = await run_graph(graph)
    assert brief(sink.items) == [
        *("screened", "observed", mark(2), Canary(1), mark(None)),
        *("observed", "settled", mark(13)),
    ]
    assert event.figures.ledger_holds


async def test_the_state_outlives_an_instance_and_nothing_is_stated_twice() -> None:
    """The recovery is made once for the process."""
    recoveries: list[int] = []

    def recover(now_ns: int) -> Recovery:
        recoveries.append(now_ns)
        return Recovery([screened((7, 8))], frozenset())

    clock = ManualClock(now_ns=START_NS)
    risk = Fault(assess_risk(LIMITS, near, recover=recover))
    source = ListSource([screened(PAIR), observed(101, 1.0)], Pause(timedelta(seconds=1)), [mark(20)], UntilShutdown())
    graph, sink = risk_chain(source, risk)

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: len(sink.items) == 3, "three statements")
        risk.strike()
        while risk.instances < 2:
            await asyncio.sleep(0.001)
            clock.advance(0.05)
        clock.advance(1.0)
        await eventually(lambda: mark(20) in sink.items, "the mark")
        built.request_shutdown("seen")

    event = await run_graph(graph, clock=clock, during=during)
    assert brief(sink.items) == ["recovered", "screened", "observed", "settled", "settled", mark(20)]
    assert recoveries == [START_NS]
    assert (event.figures.ledger_holds, event.figures.restarts["risk"].total) == (True, 1)


async def test_a_recovery_that_fails_is_tried_again_before_anything_is_read() -> None:
    attempts: list[int] = []

    def recover(now_ns: int) -> Recovery:
        attempts.append(now_ns)
        if len(attempts) < 3:
            raise OperatorError("the table is locked")
        return Recovery([screened((7, 8))], frozenset())

    graph, sink = risk_chain(ListSource([screened(PAIR)]), assess_risk(LIMITS, near, recover=recover))
    event = await run_graph(graph, clock=ManualClock(autojump=True))
    assert brief(sink.items)[:2] == ["recovered", "screened"]
    assert (len(attempts), event.figures.restarts["risk"].total) == (3, 2)


async def test_a_large_recovery_gives_the_event_loop_its_turns_and_states_each_conjunction_once() -> None:
    updates = [screened((1_000 + n, 9_000 + n)) for n in range(3_000)]
    turns, turns_at = 0, list[int]()

    def concerns(estimate: ConjunctionEstimate) -> bool:
        turns_at.append(turns)
        return near(estimate)

    async def during(_: BuiltGraph) -> None:
        nonlocal turns
        while len(sink.items) < len(updates):
            turns += 1
            await asyncio.sleep(0)

    risk = assess_risk(LIMITS, concerns, recover=lambda _: Recovery(updates, frozenset()))
    graph, sink = risk_chain(ListSource([mark(1)]), risk)
    await run_graph(graph, during=during)
    stated = [
        risk.conjunction_id for risk in sink.items if isinstance(risk, ConjunctionRisk) and risk.cause == "recovered"
    ]
    assert stated == [each.conjunction_id for each in updates]
    assert turns_at[0] < turns_at[1_000] < turns_at[2_000]


def test_a_mark_that_settles_many_conjunctions_does_so_in_steps() -> None:
    """So that the event loop has its turns in between. What is left when the steps are abandoned comes with the next mark."""
    assessor = RiskAssessor(LIMITS, near)
    assessor.add([screened((1_000 + n, 9_000 + n)) for n in range(500)])
    steps = assessor.steps(START_NS + S)
    assert [len(next(steps)) for _ in range(2)] == [0, 200]
    steps.close()  # type: ignore[attr-defined] # a generator
    assert assessor.unsettled == 300
    assert [len(risks) for risks in assessor.steps(START_NS + 2 * S)] == [0, 200, 100]


async def test_late_observations_retractions_and_windows_are_counted_in_figures_and_metrics() -> None:
    metrics = EventTimeMetrics(operators=["risk"])
    source = ListSource(
        [screened(PAIR), observed(101, 1.0), mark(12), observed(101, 2.0), observed(101, -9.0), mark(13)],
        [of_pair(2, "withdrawn"), observed(102, 20.0), mark(21)],
        UntilShutdown(),
    )
    graph, sink = risk_chain(source, assess_risk(LIMITS, near, metrics=metrics))
    figures: dict[str, int | None] = {}

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: mark(21) in sink.items, "the last mark")
        names = ("screened", "observed", "amended", "withdrawn", "late", "watched", "open_windows", "observations_held")
        figures.update({name: counter(built, name, "risk") for name in names})
        figures["windows"] = int(metrics_value(metrics, "pending_windows", operator="risk", tier="active"))
        built.request_shutdown("seen")

    await run_graph(graph, during=during)
    assert figures == {
        "screened": 1,
        "observed": 1,
        "amended": 1,
        "withdrawn": 1,
        "late": 1,
        "watched": 1,
        "open_windows": 1,
        "observations_held": 1,
        "windows": 1,
    }
    assert metrics_value(metrics, "late_items_total", operator="risk", outcome="dropped") == 1
    assert metrics_value(metrics, "late_items_total", operator="risk", outcome="amended") == 1
    assert metrics_value(metrics, "retractions_emitted_total", operator="risk") == 1


def of_pair(revision: int, status: str) -> Any:
    return screened(PAIR, revision, status=status, at_s=13.0)


def metrics_value(metrics: EventTimeMetrics, name: str, **labels: str) -> float:
    return next(
        sample.value
        for family in metrics.collect()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    )
