"""The figures of worker pools: any pool that has them. The control plane does not know what a pool computes, or how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from prometheus_client.metrics_core import Metric

from orchestrator_adapter.control_plane.families import Samples, counter, gauge


class PoolFigures(Protocol):
    """The figures of a pool at one moment; ``BulkheadStatistics`` explains them."""

    @property
    def name(self) -> str: ...
    @property
    def workers(self) -> int: ...
    @property
    def alive(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def in_flight(self) -> int: ...
    @property
    def calls(self) -> int: ...
    @property
    def lost(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    @property
    def hung(self) -> int: ...
    @property
    def exhausted(self) -> bool: ...
    @property
    def rejected(self) -> Mapping[Any, int]: ...


class WorkerPool(Protocol):
    """A pool of worker processes, for example a ``Bulkhead``."""

    def statistics(self) -> PoolFigures:
        """The current figures. Called on the graph's loop."""
        ...


def of_worker_pools(pools: Sequence[PoolFigures]) -> Iterator[Metric]:
    """Their metric families."""

    def each(figure: Callable[[PoolFigures], float]) -> Samples:
        return (((pool.name,), figure(pool)) for pool in pools)

    labels = ["bulkhead"]
    yield gauge("bulkhead_workers", "Worker processes that the bulkhead should have", labels, each(lambda p: p.workers))
    yield gauge("bulkhead_workers_ready", "Workers that are ready for calls", labels, each(lambda p: p.alive))
    yield gauge("bulkhead_calls_waiting", "Calls that wait for a worker", labels, each(lambda p: p.waiting))
    yield gauge("bulkhead_calls_in_flight", "Calls that a worker has", labels, each(lambda p: p.in_flight))
    yield gauge(
        "bulkhead_exhausted",
        "Whether the budget for rebuilds is used up: 1, else 0",
        labels,
        each(lambda p: p.exhausted),
    )
    yield counter("bulkhead_calls_total", "Calls that operators have made", labels, each(lambda p: p.calls))
    yield counter(
        "bulkhead_calls_lost_total", "Calls that were given up after two lost workers", labels, each(lambda p: p.lost)
    )
    yield counter(
        "bulkhead_worker_restarts_total", "How often a worker was started again", labels, each(lambda p: p.restarts)
    )
    yield counter(
        "bulkhead_workers_hung_total",
        "Workers that were killed because their answer was late",
        labels,
        each(lambda p: p.hung),
    )
    yield counter(
        "bulkhead_rejected_connections_total",
        "Connections that were not admitted, by the reason",
        [*labels, "kind"],
        (((pool.name, str(kind)), count) for pool in pools for kind, count in pool.rejected.items()),
    )
