"""A view of a graph as metric families: Prometheus text, OpenMetrics, JSON. ``docs/control-plane.md`` lists them.

Units are in the names. What an operator does not count has no sample; what the orchestrator counts starts at zero, so that
Prometheus sees the first increase.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from orchestrator_adapter.control_plane.collectors import Collectors
from orchestrator_adapter.control_plane.families import Samples as _Samples
from orchestrator_adapter.control_plane.families import counter as _counter
from orchestrator_adapter.control_plane.families import gauge as _gauge
from orchestrator_adapter.control_plane.families import histogram as _histogram
from orchestrator_adapter.control_plane.health import HealthStatus, health_of
from orchestrator_adapter.control_plane.operator_metrics import of_operators
from orchestrator_adapter.control_plane.process_figures import of_the_process
from orchestrator_adapter.control_plane.snapshot import View
from orchestrator_adapter.control_plane.worker_pools import of_worker_pools
from orchestrator_adapter.graph.plan import Plan
from orchestrator_adapter.operators.blocking import BlockingPoolStatistics
from orchestrator_adapter.runtime.status import GraphStatus

JSON = "application/json"

_END = b"# EOF\n"
"""The last line of OpenMetrics."""


@dataclass(frozen=True, slots=True)
class TextFormat:
    """One of the text formats: Prometheus text or OpenMetrics, in a version."""

    content_type: str
    _encode: Callable[[CollectorRegistry], bytes]

    def render(self, plan: Plan, view: View, collectors: Collectors | None = None) -> bytes:
        """The metric families of ``view``, and those of the user's collectors, in this format."""
        pages = [self._page(families(plan, view)), *(collectors.each(self._page) if collectors is not None else ())]
        end = _END if pages[0].endswith(_END) else b""
        return b"".join(page.removesuffix(_END) for page in pages) + end

    def _page(self, families: Iterable[Metric]) -> bytes:
        registry = CollectorRegistry()
        registry.register(_Families(families))
        return self._encode(registry)


def text_format(accept: str) -> TextFormat:
    """The format that the HTTP header ``Accept`` asks for; Prometheus text if it asks for none."""
    try:
        encode, content_type = choose_encoder(accept)
    except TypeError:  # the version is not a number: prometheus_client fails to compare it
        encode, content_type = choose_encoder("")
    return TextFormat(content_type, encode)


def as_json(plan: Plan, view: View, collectors: Collectors | None = None) -> dict[str, Any]:
    """The metric families as plain values. A counter's name ends in ``_total``, as the names of its samples do.

    A value that is no finite number is ``None``: JSON has no other.
    """
    metrics = _as_values(families(plan, view))
    for of_one in collectors.each(_as_values) if collectors is not None else ():
        metrics += of_one
    return {"metrics": metrics}


def _as_values(families: Iterable[Metric]) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{family.name}_total" if family.type == "counter" else family.name,
            "type": family.type,
            "help": family.documentation,
            "samples": [
                {"name": sample.name, "labels": dict(sample.labels), "value": _finite(sample.value)}
                for sample in family.samples
            ],
        }
        for family in families
    ]


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None


def wants_json(accept: str) -> bool:
    """Whether the HTTP header ``Accept`` names JSON and does not prefer one of the text formats."""
    wanted: dict[str, float] = {}
    for media_range in accept.split(","):
        name, *parameters = (part.strip().lower() for part in media_range.split(";"))
        wanted[name] = max(wanted.get(name, 0.0), _quality(parameters))
    as_text = max(wanted.get(name, 0.0) for name in ("text/plain", "application/openmetrics-text"))
    return wanted.get(JSON, 0.0) > as_text


def _quality(parameters: Iterable[str]) -> float:
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return float(parameter[2:])
            except ValueError:
                return 0.0
    return 1.0


class _Families(Collector):
    """A ``prometheus_client`` collector of families that exist already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def families(plan: Plan, view: View) -> Iterator[Metric]:
    """Every metric family, with its help and its unit."""
    yield _health(view)
    yield from of_operators(view.status.operators)
    yield from _of_edges(plan, view.status)
    yield from _of_spills(plan, view.status)
    yield from _of_breakers(view.status)
    yield from _of_blocking_pools(view.status)
    yield from of_worker_pools(view.pools)
    yield from _of_the_ledger(view.status)
    yield from _of_the_loop(view)
    yield from of_the_process(view.process)


def _health(view: View) -> Metric:
    health = health_of(view.status, silent_s=view.silent_s, threshold_s=view.threshold_s, blocked_by=view.blocked_by)
    return _gauge(
        "pipeline_health",
        "The health of the run, as /health has it: 1 for its present status, 0 for the others",
        ["status"],
        (((status.value,), status is health.status) for status in HealthStatus),
    )


def _of_edges(plan: Plan, status: GraphStatus) -> Iterator[Metric]:
    edges = status.edges
    yield _gauge(
        "channel_occupancy",
        "Items in the edge, leased ones included",
        ["edge"],
        (((edge,), figures.occupancy) for edge, figures in edges.items()),
    )
    yield _gauge(
        "channel_capacity",
        "The most items that fit into the edge",
        ["edge"],
        (((edge,), figures.capacity) for edge, figures in edges.items()),
    )
    yield _gauge(
        "channel_outbox",
        "Items that the writer has offered and that wait for space in the full edge",
        ["edge"],
        (((edge,), items) for edge, items in status.outboxes.items()),
    )
    yield _gauge(
        "channel_high_water_mark",
        "The most items that have been in the edge",
        ["edge"],
        (((edge,), figures.high_water_mark) for edge, figures in edges.items()),
    )
    yield _gauge(
        "channel_signals_pending",
        "Control items in the edge, which take no space from the items",
        ["edge"],
        (((edge,), figures.signals) for edge, figures in edges.items()),
    )
    yield _counter(
        "channel_signals_total",
        "Control items sent into the edge, those that its reader received, and those left in it when one end ended for good",
        ["edge", "fate"],
        (
            sample
            for edge, figures in edges.items()
            for sample in (
                ((edge, "sent"), figures.signals_sent),
                ((edge, "received"), figures.signals_received),
                ((edge, "undelivered"), figures.signals_undelivered),
            )
        ),
    )
    yield _counter(
        "flow_policy_drops_total",
        "Items that the edge's flow policy shed or dead-lettered: the edge was full, or they waited too long",
        ["edge", "policy"],
        (((edge.id, edge.policy.name), edges[edge.id].policy_drops) for edge in plan.edges),
    )
    yield _counter(
        "edge_pressure_seconds_total",
        "For how long the edge has held up its writer, was dropping items, or had items on disk, seconds",
        ["edge"],
        (((edge,), figures.pressure_s) for edge, figures in edges.items()),
    )
    yield _histogram(
        "edge_wait_seconds",
        "How long items waited in the edge until its reader took them, sampled, seconds",
        ["edge"],
        (((edge,), figures.wait) for edge, figures in edges.items()),
    )


def _of_spills(plan: Plan, status: GraphStatus) -> Iterator[Metric]:
    spilling = {edge.id: status.edges[edge.id] for edge in plan.edges if edge.policy.name == "spill"}
    yield _gauge(
        "spill_items",
        "Items of the edge that are on disk, behind those in the channel",
        ["edge"],
        (((edge,), figures.spilled) for edge, figures in spilling.items()),
    )
    yield _gauge(
        "spill_bytes",
        "What the edge has on disk, bytes",
        ["edge"],
        (((edge,), figures.spilled_bytes) for edge, figures in spilling.items()),
    )
    yield _counter(
        "spilled_items_total",
        "Items that the edge has written to disk",
        ["edge"],
        (((edge,), figures.spilled_total) for edge, figures in spilling.items()),
    )


def _of_breakers(status: GraphStatus) -> Iterator[Metric]:
    breakers = status.breakers.values()
    yield _gauge(
        "circuit_breaker_state",
        "State of the circuit breaker: 0 closed, 1 open, 2 half-open",
        ["breaker"],
        (((breaker.name,), int(breaker.state)) for breaker in breakers),
    )
    yield _gauge(
        "circuit_breaker_forced",
        "Whether a person has forced the circuit breaker into its state: 1, else 0",
        ["breaker"],
        (((breaker.name,), int(breaker.forced)) for breaker in breakers),
    )
    yield _counter(
        "circuit_breaker_rejections_total",
        "Calls that the circuit breaker rejected",
        ["breaker"],
        (((breaker.name,), breaker.rejections) for breaker in breakers),
    )
    yield _counter(
        "circuit_breaker_open_seconds_total",
        "The total time for which the circuit breaker has been open, seconds; the time half-open is not included",
        ["breaker"],
        (((breaker.name,), breaker.open_s) for breaker in breakers),
    )


def _of_blocking_pools(status: GraphStatus) -> Iterator[Metric]:
    pools = status.blocking_pools

    def each(figure: Callable[[BlockingPoolStatistics], float]) -> _Samples:
        return (((name,), figure(pool)) for name, pool in pools.items())

    yield _gauge(
        "blocking_pool_threads",
        "Blocking calls that can run at the same time in the pool; fewer than declared if abandoned ones are not replaced",
        ["pool"],
        each(lambda pool: pool.threads),
    )
    yield _gauge(
        "blocking_pool_busy",
        "Blocking calls that run, without the abandoned ones",
        ["pool"],
        each(lambda pool: pool.busy),
    )
    yield _gauge(
        "blocking_pool_waiting", "Blocking calls that wait for a thread", ["pool"], each(lambda pool: pool.waiting)
    )
    yield _gauge(
        "blocking_pool_abandoned",
        "Blocking calls that still run although their operators no longer wait for them",
        ["pool"],
        each(lambda pool: pool.abandoned),
    )
    yield _counter(
        "blocking_calls_total", "Blocking calls that have begun", ["pool"], each(lambda pool: pool.calls_total)
    )
    yield _counter(
        "blocking_calls_abandoned_total",
        "Blocking calls that operators stopped waiting for, after a timeout or a cancellation",
        ["pool"],
        each(lambda pool: pool.abandoned_total),
    )


def _of_the_ledger(status: GraphStatus) -> Iterator[Metric]:
    ledger = status.ledger
    yield _gauge(
        "ledger_items",
        "The ledger's terms, items: ingested + repeated + derived = all the others together",
        ["term"],
        (((term,), items) for term, items in ledger.as_dict().items()),
    )
    yield _gauge(
        "ledger_balanced",
        "Whether both sides of the ledger's equation agree: 1, else 0",
        [],
        [((), int(ledger.balanced))],
    )


def _of_the_loop(view: View) -> Iterator[Metric]:
    yield _gauge("event_loop_lag_seconds", "How late the event loop is now, seconds", [], [((), view.lag_s)])
    yield _counter(
        "event_loop_stalls_total",
        "How often the event loop has stalled for longer than the watchdog's threshold",
        [],
        [((), view.stalls)],
    )
    yield _gauge(
        "snapshot_age_seconds",
        "The age of these figures (except those of the event loop), seconds; grows while the event loop is stalled",
        [],
        [((), view.age_s)],
    )
