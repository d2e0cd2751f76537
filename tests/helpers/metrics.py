"""For tests of the metrics: a graph in which everything happens that is counted, and parsers of what ``/metrics`` says."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.registry import Collector

from orchestrator_adapter import (
    BreakerPolicy,
    BuiltGraph,
    DeadLetterKind,
    FlowPolicy,
    OperatorGraph,
    RetryPolicy,
    WiredEnds,
    map_items,
)
from orchestrator_adapter.control_plane.exposition import text_format
from orchestrator_adapter.control_plane.snapshot import View
from orchestrator_adapter.resilience import retry
from orchestrator_adapter.resilience.breaker import Rejection
from orchestrator_adapter.testing import (
    run_graph,
)
from tests.helpers.running import GatedSink, eventually

SECTION_13 = {
    *("operator_restart_total", "operator_uptime_seconds", "circuit_breaker_state", "retry_attempts_total"),
    *("channel_occupancy", "channel_capacity", "source_ingest_rate", "source_decode_errors_total"),
    *("sink_bytes_written_total", "dead_letters_total", "flow_policy_drops_total", "event_loop_lag_seconds"),
    *("ledger_items", "ledger_balanced"),
}
"""The families that the specification lists."""

OTHERS = {
    *("operator_up", "operator_items_total", "operator_figure", "source_kernel_drops_total"),
    *("source_last_item_age_seconds", "sink_latency_seconds", "channel_high_water_mark", "circuit_breaker_forced"),
    *("circuit_breaker_rejections_total", "circuit_breaker_open_seconds_total", "event_loop_stalls_total"),
    *("snapshot_age_seconds", "channel_outbox", "blocking_calls_total", "blocking_calls_abandoned_total"),
    *("operator_signals_total", "channel_signals_pending", "channel_signals_total"),
    *("bulkhead_workers", "bulkhead_workers_ready", "bulkhead_calls_waiting", "bulkhead_calls_in_flight"),
    *("bulkhead_exhausted", "bulkhead_calls_total", "bulkhead_calls_lost_total", "bulkhead_worker_restarts_total"),
    *("process_resident_memory_bytes", "process_open_fds", "process_max_fds", "process_threads"),
    *("process_cpu_seconds_total", "bulkhead_workers_hung_total", "bulkhead_rejected_connections_total"),
    *("blocking_pool_threads", "blocking_pool_busy", "blocking_pool_waiting", "blocking_pool_abandoned"),
    *("operator_restarts_left", "operator_errors_total", "operator_time_seconds_total", "operator_latency_seconds"),
    *("edge_pressure_seconds_total", "edge_wait_seconds", "source_paused"),
    *("spill_items", "spill_bytes", "spilled_items_total", "pipeline_health"),
}

parse_openmetrics: Callable[[str], Any] = openmetrics.text_string_to_metric_families
"""A strict parser without type annotations."""

Figures = dict[tuple[str, ...], float]


def view(built: BuiltGraph, *, lag_s: float = 0.5, stalls: int = 2, age_s: float = 0.25) -> View:
    return View(built.status(), age_s, silent_s=0.0, threshold_s=0.25, lag_s=lag_s, stalls=stalls, blocked_by="")


def scraped(built: BuiltGraph) -> dict[str, Figures]:
    """What a Prometheus server reads: by family, and by label values in the order of the labels' names."""
    body = text_format("").render(built.plan, view(built))
    return figures(parse_text(body.decode()))


def figures(parsed: Any) -> dict[str, Figures]:
    """Of a histogram, the counts of the buckets, which have the label ``le``, and all of them, without it."""
    found: dict[str, Figures] = {}
    for family in parsed:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        names = {name} if family.type != "histogram" else {f"{name}_bucket", f"{name}_count"}
        found[name] = {
            tuple(value for _, value in sorted(sample.labels.items())): sample.value
            for sample in family.samples
            if sample.name in names
        }
        others = {f"{name}_sum"} if family.type == "histogram" else set()
        assert {sample.name for sample in family.samples} <= names | others
    return found


class Everything:
    """A graph with an operator of every role, an edge of every policy, breakers, retries and every cause of a dead letter.

    It takes in ten items and two malformed frames. ``call`` calls a partner for each item; the first call fails, and item 1
    is rejected. ``fragile`` fails at item 5. The other eight items are copied for ``screen`` and ``archive``, which take
    nothing; their edges have a capacity of two.
    """

    def __init__(self) -> None:
        self.screen = GatedSink()
        self.archive = GatedSink()
        self.graph = graph = OperatorGraph("everything")
        feed = graph.add_source("feed", self._feed, endless=True)
        call = graph.add_operator("call", self._call)
        fragile = graph.add_operator("fragile", map_items(self._fragile))
        split = graph.add_fan_out("split")
        screen = graph.add_sink("screen", self._screen)
        archive = graph.add_sink("archive", self.archive)
        graph.connect(feed, call, 16)
        graph.connect(call, fragile, 16)
        graph.connect(fragile, split, 16)
        graph.connect(split, screen, 2, policy=FlowPolicy.shed())
        graph.connect(split, archive, 2, policy=FlowPolicy.timed(timedelta(milliseconds=1)))

    async def run(self, observe: Callable[[BuiltGraph], Coroutine[Any, Any, None]]) -> BuiltGraph:
        """Run it, call ``observe`` after the last dead letter, then stop it."""
        kept: list[BuiltGraph] = []

        async def during(built: BuiltGraph) -> None:
            kept.append(built)
            await eventually(lambda: built.ledger().dead_lettered == 2 + 1 + 6, "the last dead letter")
            await observe(built)
            built.request_shutdown("seen")
            self.screen.gate.set()
            self.archive.gate.set()

        event = await run_graph(self.graph, during=during)
        assert event.figures.ledger_holds
        return kept[0]

    async def _feed(self, ends: WiredEnds) -> None:
        for frame in (b"x", b"y"):
            ends.dead_letter(frame, DeadLetterKind.DESERIALIZATION, "malformed")
            ends.count("decode_errors")
        ends.gauge("kernel_drops", 3)
        ends.gauge("port", 9201)
        await ends.emit(range(10))
        await ends.shutdown.wait()

    async def _call(self, ends: WiredEnds) -> None:
        policy = BreakerPolicy(threshold=1.0, min_calls=100)
        partner = ends.breaker("partner", policy)
        ends.breaker("broken", policy).force_open("by hand")
        assert isinstance(ends.breaker("broken", policy).ask(), Rejection)
        quick = RetryPolicy(timedelta(microseconds=1), timedelta(microseconds=1), 5)
        failures = [OSError("at first")]

        async for item in ends.receiver:

            async def ask(item: int = item) -> retry.RetryDisposition[int]:
                return retry.Retry(failures.pop()) if failures else retry.RetryOk(item)

            await ends.with_retry(quick, ask, breaker=partner)
            if item == 1:
                ends.reject(item, "not wanted")
                ends.commit([], acknowledge=1)
            else:
                ends.commit([item], acknowledge=1)
            await ends.flush()

    def _fragile(self, item: int) -> int:
        if item == 5:
            raise OSError("not five")
        return item

    async def _screen(self, ends: WiredEnds) -> None:
        ends.count("bytes_written", 77)
        ends.count("decode_errors", 4)  # of a sink: has no family of its own
        ends.latency.record(2_000_000_000, 100)
        await self.screen(ends)


def scraped_from(metrics: Collector) -> dict[tuple[str, tuple[str, ...]], float]:
    """Every sample that a Prometheus server reads, by name and values of the labels."""
    registry = CollectorRegistry()
    registry.register(metrics)
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in parse_text(generate_latest(registry).decode())
        for sample in family.samples
    }
