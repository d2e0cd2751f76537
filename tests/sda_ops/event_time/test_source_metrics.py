"""What the metrics say of a watermarked source: lags and marks while it runs, and no watermark once it has ended."""

from __future__ import annotations

from datetime import timedelta

from prometheus_client import CollectorRegistry

from orchestrator_adapter import WiredEnds
from orchestrator_adapter.testing import CollectSink, chain, run_graph
from sda_ops.event_time.metrics import EventTimeMetrics
from sda_ops.event_time.promises import PromiseRules, ReadOrder
from sda_ops.event_time.source import watermarked

S = 1_000_000_000


async def test_a_source_reports_its_lags_and_marks_until_it_ends() -> None:
    """Event times 100, 101 and 102 s, which arrive 2, 2 and -1 s later; it ends after that."""
    metrics = EventTimeMetrics()
    registry = CollectorRegistry()
    registry.register(metrics)
    during: list[float | None] = []

    def sample(name: str) -> float | None:
        return registry.get_sample_value(name, {"source": "source"})

    async def source(ends: WiredEnds) -> None:
        await ends.emit([(100 * S, 102 * S), (101 * S, 103 * S), (102 * S, 101 * S)])
        during.extend(map(sample, ("source_watermark_seconds", "source_idle")))

    rules = PromiseRules(max_lateness=timedelta(0), order=ReadOrder.EVENT_TIME, own_time=True, idle_after=None)
    made = watermarked(lambda _: source, rules, times_of=lambda times: times, metrics=metrics)
    await run_graph(chain(made, CollectSink()))
    assert during == [102.0, 0.0]
    assert [sample(f"source_lag_seconds_{part}") for part in ("count", "sum")] == [2.0, 4.0]
    assert sample("clock_skew_observed_total") == 1.0
    assert (sample("source_watermark_seconds"), sample("source_idle")) == (None, 1.0)
