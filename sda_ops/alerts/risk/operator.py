"""The ``risk`` operator: correlations, watermarks and updates of conjunctions in, statements about risks out."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias, get_args

from orchestrator_adapter import Control, EventLog, Factory, WiredEnds
from sda_ops.alerts.risk.assessor import AssessorLimits, Recovery, RiskAssessor
from sda_ops.event_time.metrics import EventTimeMetrics
from sda_ops.event_time.watermark import Watermark
from sda_ops.records.conjunction import ConjunctionEstimate
from sda_ops.records.risk import ConjunctionRisk, RiskCause

logger = logging.getLogger(__name__)

_BATCH = 256
_RECOVERED_AT_ONCE = 1_000  # conjunctions: about 10 ms of the event loop

Recover: TypeAlias = Callable[[int], Recovery]
"""Loads what a new process begins with. It gets the time, UTC nanoseconds. It may block: it is called in a thread."""


@dataclass(slots=True)
class _Held:
    """What outlives an instance."""

    assessor: RiskAssessor
    recovered: bool = False


def assess_risk(
    limits: AssessorLimits,
    concerns: Callable[[ConjunctionEstimate], bool],
    *,
    recover: Recover | None = None,
    metrics: EventTimeMetrics | None = None,
) -> Factory:
    """An operator that states the risk of each conjunction. See `sda_ops.alerts.risk.assessor` for what it states, and when.

    Declare it as ``expanding`` and ``stateful``. Its input has `Correlation` and `ConjunctionUpdate` records and watermarks. Each
    `ConjunctionRisk` is sent in front of the watermark that follows it. Every watermark is forwarded. At the end of the stream
    everything is settled. The assessor outlives an instance. With the process it is lost: then ``recover`` loads the
    conjunctions, before anything is read; their evidence begins anew. What ``recover`` raises fails the operator.

    Args:
        limits: The bounds of its state.
        concerns: Whether an estimate is within the general thresholds for alerts. A conjunction that never was gets no statement.
        recover: Loads the conjunctions at the start of the process.
        metrics: Where windows, late items and retractions are counted.

    Metrics: ``conjunctions`` known, ``watched`` and ``unsettled``; ``observations_held``, ``open_windows`` and ``element_sets`` (with a
    total of their observations); the counts ``screened``, ``observed``, ``settled``, ``amended``, ``withdrawn`` and ``recovered`` of
    statements by cause; ``late``, ``closed_early``, ``removed_totals`` and ``forgotten`` are what was lost to lateness and limits;
    ``repeated_updates`` and ``updates_over`` were ignored.
    """

    async def run(ends: WiredEnds) -> None:
        held = ends.keep("held", lambda: _Held(RiskAssessor(limits, concerns)))
        assessor, figures = held.assessor, _Figures(ends, held.assessor, metrics)
        if recover is not None and not held.recovered:
            recovery = await ends.run_blocking_within(None, recover, ends.clock.now_ns())
            statements = 0
            for start in range(0, len(recovery.updates), _RECOVERED_AT_ONCE):
                some = replace(recovery, updates=recovery.updates[start : start + _RECOVERED_AT_ONCE])
                risks = assessor.recover(some)  # an instance that begins anew ignores those that are known
                ends.commit(risks, acknowledge=0)
                figures.report(risks)
                statements += len(risks)
                await ends.flush()
                await asyncio.sleep(0)
            held.recovered = True
            log = EventLog(logger, clock=ends.clock, operator=ends.name, instance=ends.instance)
            log("risks_recovered", conjunctions=len(recovery.updates), statements=statements)
        async for batch in ends.receiver.batches(_BATCH, controls=True):
            if isinstance(batch, Control):
                mark_ns = batch.time_ns if isinstance(batch, Watermark) else None
                for number, risks in enumerate([] if mark_ns is None else assessor.steps(mark_ns)):
                    ends.commit(risks, acknowledge=0)
                    figures.report(risks)
                    await ends.flush()
                    if number > 1:  # a mark that settles many
                        await asyncio.sleep(0)
            else:
                risks = assessor.add(batch)
                ends.commit(risks, acknowledge=len(batch))
                figures.report(risks)
                await ends.flush()
        risks = assessor.close()
        ends.commit(risks, acknowledge=0)
        figures.report(risks)
        await ends.flush()

    return run


class _Figures:
    """The operator's figures and metrics."""

    def __init__(self, ends: WiredEnds, assessor: RiskAssessor, metrics: EventTimeMetrics | None) -> None:
        self._ends = ends
        self._assessor = assessor
        self._metrics = metrics
        windows = assessor.evidence.windows
        self._counted = Counter(late=windows.late, amended=assessor.amended, closed_early=windows.closed_early)
        for cause in get_args(RiskCause):
            ends.count(cause, 0)

    def report(self, risks: Sequence[ConjunctionRisk]) -> None:
        """After each batch and each watermark."""
        ends, assessor = self._ends, self._assessor
        windows = assessor.evidence.windows
        for cause, count in Counter([risk.cause for risk in risks]).items():
            ends.count(cause, count)
        for name, value in (
            ("conjunctions", assessor.known),
            ("watched", assessor.watched),
            ("unsettled", assessor.unsettled),
            ("observations_held", windows.held),
            ("open_windows", windows.active),
            ("element_sets", assessor.evidence.totals),
            ("late", windows.late),
            ("closed_early", windows.closed_early),
            ("removed_totals", assessor.evidence.removed_totals),
            ("forgotten", assessor.forgotten),
            ("repeated_updates", assessor.repeated),
            ("updates_over", assessor.over),
        ):
            ends.gauge(name, value)
        if self._metrics is not None:
            self._to_metrics(self._metrics, risks)

    def _to_metrics(self, metrics: EventTimeMetrics, risks: Sequence[ConjunctionRisk]) -> None:
        name, assessor = self._ends.name, self._assessor
        windows = assessor.evidence.windows
        metrics.windows(name, windows.active, windows.retained)
        now = Counter(late=windows.late, amended=assessor.amended, closed_early=windows.closed_early)
        new = now - self._counted
        self._counted = now
        if new["late"]:
            metrics.late(name, "dropped", new["late"])
        if new["amended"]:
            metrics.late(name, "amended", new["amended"])
        if new["closed_early"]:
            metrics.closed_early(name, new["closed_early"])
        if retracted := sum(risk.status == "retracted" for risk in risks):
            metrics.retractions(name, retracted)
