"""The lags of a pipeline without watermarks, from a sample of each batch."""

from __future__ import annotations

from operator import attrgetter, itemgetter
from typing import Any

import pytest

from orchestrator_adapter import WiredEnds, source_of
from orchestrator_adapter.testing import CollectSink, chain, run_graph
from sda_ops.event_time.lags import MEASURED_OF_A_BATCH, PipelineLag, with_source_lag
from sda_ops.event_time.metrics import EventTimeMetrics
from tests.helpers.metrics import scraped_from
from tests.helpers.running import observations

NS_PER_S = 1_000_000_000


def figure(metrics: EventTimeMetrics, name: str, source: str) -> float:
    return scraped_from(metrics)[name, (source,)]


async def test_a_source_emits_what_it_did_and_its_lags_are_those_of_its_items() -> None:
    """Three items that are two, three and four seconds late; all of a small batch are measured."""
    metrics, sink = EventTimeMetrics(), CollectSink()
    items = [(100 * NS_PER_S, (100 + late) * NS_PER_S) for late in (2, 3, 4)]
    await run_graph(chain(with_source_lag(source_of(items), metrics, times_of=itemgetter(0, 1)), sink))
    assert sink.items == items
    assert figure(metrics, "source_lag_seconds_count", "source") == 3
    assert figure(metrics, "source_lag_seconds_sum", "source") == 9


async def test_of_large_batches_a_sample_counts_for_all_items() -> None:
    """A hundred batches of 250 items, all one second late: the counts agree to some items in a hundred batches."""
    metrics, measured = EventTimeMetrics(), list[Any]()

    def times_of(item: Any) -> tuple[int, int]:
        measured.append(item)
        return 0, NS_PER_S

    async def emit(ends: WiredEnds) -> None:
        for _ in range(100):
            await ends.emit(range(250))

    await run_graph(chain(with_source_lag(emit, metrics, times_of=times_of), CollectSink(), capacity=500))
    assert len(measured) <= 100 * MEASURED_OF_A_BATCH
    assert figure(metrics, "source_lag_seconds_count", "source") == pytest.approx(25_000, rel=0.01)
    assert figure(metrics, "source_lag_seconds_sum", "source") == figure(metrics, "source_lag_seconds_count", "source")
    assert len(set(measured)) == 250  # each place in a batch is measured at some time


def test_the_lag_of_the_pipeline_is_by_the_kind_of_sensor() -> None:
    """From the arrival to the given time; a negative one is clock skew."""
    metrics = EventTimeMetrics()
    batch = observations(5)
    kind = batch[0].source_kind
    at_ns = max(observation.ingest_timestamp for observation in batch)
    PipelineLag(metrics, attrgetter("source_kind", "ingest_timestamp")).ended(batch, at_ns + 2 * NS_PER_S)
    assert figure(metrics, "pipeline_lag_seconds_count", kind) == 5
    expected = sum(at_ns + 2 * NS_PER_S - observation.ingest_timestamp for observation in batch) / NS_PER_S
    assert figure(metrics, "pipeline_lag_seconds_sum", kind) == pytest.approx(expected)
