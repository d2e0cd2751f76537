"""One set of events in many orders of arrival, through sources, fan-ins with marks and the operator."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest

from orchestrator_adapter import BuiltGraph, Factory, WiredEnds
from orchestrator_adapter.testing import ManualClock, run_graph
from sda_ops.alerts.risk.assessor import Recovery
from sda_ops.alerts.risk.operator import assess_risk
from sda_ops.event_time.segmentation import Session
from sda_ops.event_time.watermark import Watermark
from sda_ops.event_time.windows import EventTimeWindows
from sda_ops.records.risk import ConjunctionRisk
from tests.helpers.sizes import small_and_long
from tests.scenes.risks import (
    EPOCH_NS,
    LIMITS,
    START_NS,
    ArrivalOrder,
    Effective,
    S,
    Scene,
    effective,
    near,
    risk_graph,
    screened,
)
from tests.sda_ops.event_time.windows_model import Item, segment


async def stated(
    order: ArrivalOrder, risk: Factory | None = None, *, killed: bool = False, figures: dict[str, int] | None = None
) -> list[ConjunctionRisk]:
    """Every statement, in order; without those at the end of the stream if the process is ``killed``.

    ``figures`` gets those of the operator.
    """
    graph, sink = risk_graph(order, risk or assess_risk(LIMITS, near))
    built: list[BuiltGraph] = []

    async def keep(of: BuiltGraph) -> None:
        built.append(of)

    clock = ManualClock(now_ns=START_NS, autojump=True)
    event = await run_graph(graph, clock=clock, during=keep, limit=timedelta(minutes=10))
    assert event.figures.ledger_holds
    if figures is not None:
        figures.update(next(each.counters for each in built[0].status().operators if each.name == "risk"))
    marks = [at for at, item in enumerate(sink.items) if isinstance(item, Watermark)]
    until_end = sink.items[: marks[-1]]
    following: Watermark = sink.items[marks[-1]]
    for item in reversed(until_end):
        if isinstance(item, Watermark):
            following = item
        elif item.cause == "settled":
            assert item.complete_until_timestamp == following.time_ns, "it is in front of the mark that allows it"
    return [item for item in (until_end if killed else sink.items) if isinstance(item, ConjunctionRisk)]


def differing(one: dict[UUID, Effective], other: dict[UUID, Effective]) -> list[UUID]:
    return [key for key in {**one, **other} if one.get(key) != other.get(key)]


def final_too_early(risks: Sequence[ConjunctionRisk], scene: Scene) -> Iterator[ConjunctionRisk]:
    """Final statements of a session that goes on: by the definition of sessions, over all observations of the scene."""
    segmentation = Session(gap_ns=LIMITS.evidence.gap_ns, longest_ns=LIMITS.evidence.longest_ns)
    items: defaultdict[str, list[Item]] = defaultdict(list)
    for each in scene.observations:
        assert each.reference_orbit_id is not None
        items[each.reference_orbit_id].append(Item(each.sensor_timestamp, str(each.observation_id)))
    sessions = {key: segment(each, segmentation) for key, each in items.items()}
    for risk in risks:
        mark_ns = risk.complete_until_timestamp
        if risk.status != "final" or mark_ns is None or mark_ns >= risk.estimate.tca_timestamp:
            continue
        sets = [
            f"{each.catalog_number}@{epoch_ns}"
            for each in risk.evidence
            for epoch_ns in (EPOCH_NS, EPOCH_NS + 3_600 * S)
            if epoch_ns >= each.epoch_timestamp
        ]
        if mark_ns < risk.estimate.screened_timestamp or any(
            session.start_ns < mark_ns < session.end_ns for key in sets for session in sessions.get(key, ())
        ):
            yield risk


@pytest.mark.timeout(3_600)
@small_and_long(("events", "orders"), (1_000, 2), (1_000, 20), (100_000, 20))
async def test_the_last_statements_are_the_same_in_every_order_of_arrival_within_the_lateness(
    events: int, orders: int
) -> None:
    """And they are those of the definition. No final statement is one nanosecond early."""
    scene = Scene.of(events, seed=1)
    expected = scene.expected()
    assert len(expected) > 30
    for seed in range(orders):
        risks = await stated(ArrivalOrder.of(scene, seed))
        assert not differing(effective(risks), expected)
        if seed < 3:
            assert not list(
                final_too_early([risk for risk in risks if risk.cause != "settled" or not _at_end(risk, risks)], scene)
            )


def _at_end(risk: ConjunctionRisk, risks: Sequence[ConjunctionRisk]) -> bool:
    """Whether the end of the stream, and no mark, has caused it."""
    return risk.complete_until_timestamp == risks[-1].complete_until_timestamp


@small_and_long("events", 1_000, 20_000)
async def test_beyond_the_lateness_what_is_missing_is_what_was_counted_as_late(events: int) -> None:
    """Of all objects together: each is in one conjunction, and its windows never end the conjunction's time."""
    scene = Scene.of(events, seed=2)
    numbers = sorted({each.catalog_number for each in scene.observations if each.catalog_number is not None})
    pairs = zip(numbers[::2], [*numbers[1::2], 1], strict=False)
    scene = replace(scene, updates=tuple(screened((min(pair), max(pair))) for pair in pairs))
    figures: dict[str, int] = {}
    risks = await stated(ArrivalOrder.of(scene, 1, beyond=0.1), figures=figures)
    missing = _observations(scene.expected()) - _observations(effective(risks))
    assert missing == figures["late"] > 0


def _observations(state: dict[UUID, Effective]) -> int:
    return sum(evidence.observations for _, _, both in state.values() for evidence in both)


@small_and_long("seed", 1, *range(2, 20))
async def test_after_a_kill_in_the_middle_no_conjunction_is_lost_and_the_last_statement_is_true(seed: int) -> None:
    """The process loses its state. The table keeps what the screening found, also what the process had not read. The evidence is that since the restart."""
    scene = Scene.of(1_000, seed=3)
    order = ArrivalOrder.of(scene, seed)
    kill_s = 30.0 + 5 * seed
    before = await stated(order.between(0.0, kill_s), killed=True)
    table = {each.conjunction_id: each for at_s, each in order.updates if at_s < kill_s + 5}
    now_ns = START_NS + round(kill_s * S)
    newest = [each for each in table.values() if each.status != "passed" and each.tca_timestamp >= now_ns]
    alerted = {risk.conjunction_id for risk in before}
    # What was not confirmed comes again, and is ignored.
    rest = replace(order.between(kill_s, 10_000), updates=[(max(at_s, kill_s), each) for at_s, each in order.updates])
    after = await stated(rest, assess_risk(LIMITS, near, recover=lambda _: Recovery(newest, alerted)))
    seen = tuple(each for items in rest.of_sensor.values() for _, each in items)
    expected = replace(scene, observations=seen).expected()
    last = effective([*before, *after])
    for key, (estimate, status, evidence) in expected.items():
        # One that was near only in estimates that no process has read was never stated.
        if estimate.tca_timestamp >= now_ns + 60 * S and (near(estimate) or key in alerted):
            assert last[key] == (estimate, status, evidence)
    assert not [key for key in last if key not in expected]


# Mutants: each breaks the operator in one way, and the checks above find it.


def without_retractions(risk: Factory) -> Factory:
    """Loses every retraction."""

    async def run(ends: WiredEnds) -> None:
        commit = ends.commit

        def lossy(outputs: Sequence[ConjunctionRisk], *, acknowledge: int) -> None:
            commit([each for each in outputs if each.status != "retracted"], acknowledge=acknowledge)

        ends.commit = lossy  # type: ignore[method-assign] # a mutant
        await risk(ends)

    return run


async def test_a_lost_retraction_is_found() -> None:
    scene = Scene.of(1_000, seed=1)
    risks = await stated(ArrivalOrder.of(scene, 0), without_retractions(assess_risk(LIMITS, near)))
    assert differing(effective(risks), scene.expected())


async def test_a_final_statement_that_is_one_nanosecond_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    advance = EventTimeWindows.advance
    monkeypatch.setattr(EventTimeWindows, "advance", lambda self, mark_ns: advance(self, mark_ns + 1))
    scene = Scene.of(1_000, seed=1)
    risks = await stated(ArrivalOrder.of(scene, 0))
    assert list(final_too_early([risk for risk in risks if not _at_end(risk, risks)], scene))
