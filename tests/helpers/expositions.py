"""What ``/metrics`` of the pipelines may have, without a run of them: every family with a sample."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client import CollectorRegistry, generate_latest

from flows.settings.fusion import FusionSettings
from flows.settings.ingest import IngestSettings
from flows.topologies.fusion import fusion_pipeline
from flows.topologies.ingest import ingest_pipeline
from orchestrator_adapter import BuiltGraph
from orchestrator_adapter.control_plane.exposition import text_format
from orchestrator_adapter.operators.blocking import BlockingPoolStatistics
from sda_ops.alerts.metrics import AlertMetrics
from sda_ops.event_time.metrics import EventTimeMetrics
from sda_ops.event_time.watermark import Watermark
from tests.helpers.metrics import Everything, view

ONLY_WHILE_IT_RUNS = 'operator_figure{operator="screen",name="last_screening_age_s"} 1\n'
"""A figure that ``screen`` counts itself (``sda_ops/screening/conjunctions/operator.py``)."""


async def expositions() -> list[str]:
    """Of both pipelines as they are built, of a graph in which everything happens, and of the collectors of ``sda_ops``."""
    texts = [ONLY_WHILE_IT_RUNS, _of_sda_ops()]
    for pipeline in (ingest_pipeline(IngestSettings()), fusion_pipeline(FusionSettings())):
        built = pipeline.graph.build()
        pools = tuple(pool.statistics() for pool in pipeline.bulkheads)
        texts.append(text_format("").render(built.plan, replace(view(built), pools=pools)).decode())

    async def observe(built: BuiltGraph) -> None:
        seen = view(built)
        status = replace(seen.status, blocking_pools={"archive": BlockingPoolStatistics(4, 1, 0, 0, 9, 0, ())})
        texts.append(text_format("").render(built.plan, replace(seen, status=status)).decode())

    await Everything().run(observe)
    return texts


def _of_sda_ops() -> str:
    event_time = EventTimeMetrics(sources=["radar-01"], operators=["fuse"])
    event_time.source_mark(Watermark(1, "radar-01"))
    event_time.pipeline_mark(Watermark(1, "radar-01"))
    event_time.source_lag("radar-01", [1])
    event_time.pipeline_lag("radar", [1])
    event_time.windows("fuse", 1, 1)
    registry = CollectorRegistry()
    registry.register(event_time)
    registry.register(AlertMetrics(subscribers=["ops"]))
    return generate_latest(registry).decode()
