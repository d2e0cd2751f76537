"""The screening of ``sda-fusion``'s catalogue: its worker processes, its table, and the source of its results. No Prefect here."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from flows.settings.fusion import ConjunctionSettings
from flows.topologies.cluster import launcher_of
from orchestrator_adapter import Backoff, Factory, RestartPolicy
from orchestrator_adapter.bulkhead import Bulkhead
from sda_ops.screening.conjunctions.conjunction_table import ConjunctionTable
from sda_ops.screening.conjunctions.coverage import CoveragePlan
from sda_ops.screening.conjunctions.operator import ChangingCatalog, ScreeningRules, confirming, screen_conjunctions
from sda_ops.screening.conjunctions.screener import WorkerScreener
from sda_ops.screening.workers.windows import screening_bulkhead

SCREEN_ALL_ABOVE = 200
"""Changed objects. Of 14,683 objects, about 250 against all cost as much as all against all, with held positions and numba
(``python -m bench.screening against``)."""

UNTIL_IT_WORKS = RestartPolicy.always(
    backoff=Backoff(timedelta(seconds=1), timedelta(minutes=5), healthy_after=timedelta(hours=1))
)
"""Of the operator: a screening that fails never ends the run, because the audit of the stream would have a gap.
It is tried again at least every five minutes, so that it goes on when the cause is over; ``last_screening_age_s`` grows until
then. A budget would not help: it admits a screening that fails once a minute, and ends the run if one fails at once."""

WORKERS_UNTIL_IT_WORKS = RestartPolicy.always(
    backoff=Backoff(timedelta(seconds=1), timedelta(seconds=30), healthy_after=timedelta(minutes=10))
)
"""Of the worker processes: lost ones are replaced without end. A window that costs two of them fails the operator."""


@dataclass(frozen=True, slots=True)
class CatalogScreening:
    """The parts of a screening.

    Attributes:
        pool: Its worker processes.
        table: The table of conjunctions.
        source: The operator.
        confirm: For the sink: what is on its disk.
    """

    pool: Bulkhead
    table: ConjunctionTable
    source: Factory
    confirm: Callable[[Sequence[object]], None]

    async def prepare(self) -> None:
        """Open the table: a damaged one is found before anything runs."""
        await asyncio.to_thread(self.table.open)


def screening_of(settings: ConjunctionSettings, catalog: ChangingCatalog) -> CatalogScreening:
    """The parts, not started and not opened."""
    pool = screening_bulkhead(
        workers=settings.workers or os.cpu_count() or 1,
        launcher=launcher_of(settings.cluster),
        answer_within=timedelta(seconds=settings.answer_within_s),
        rebuilds=WORKERS_UNTIL_IT_WORKS,
    )
    table = ConjunctionTable(settings.table)
    screener = WorkerScreener(
        workers=pool,
        miss_distance_m=settings.miss_distance_m,
        window=settings.window,
        options=settings.advanced.options(),
        assumptions=settings.assumptions(),
    )
    covered = ScreeningRules(
        plan=CoveragePlan(horizon=settings.horizon, window=settings.window, all_above=SCREEN_ALL_ABOVE),
        keep=timedelta(days=settings.keep_days),
    )

    def figures() -> dict[str, int]:
        workers = pool.statistics()
        return {"workers_alive": workers.alive, "worker_restarts": workers.restarts, "calls_answered": workers.answered}

    source = screen_conjunctions(catalog, screener, table, covered, figures=figures)
    return CatalogScreening(pool, table, source, confirming(table))
