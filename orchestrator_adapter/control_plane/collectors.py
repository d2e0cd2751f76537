"""Metrics of the user's own collectors, beside the built-in ones. A collector that fails costs only its own metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol, TypeVar

from prometheus_client.metrics_core import Metric

from orchestrator_adapter.primitives.errors import OrchestratorError
from orchestrator_adapter.primitives.event_log import EventLog

R = TypeVar("R")

_SUFFIXES = {
    "counter": ("_total", "_created"),
    "summary": ("_count", "_sum", "_created"),
    "histogram": ("_bucket", "_count", "_sum", "_created"),
    "info": ("_info",),
}
"""Of the names of a family's series, as ``prometheus_client.CollectorRegistry`` has them."""

_BUILT_IN = "the control plane itself"


class MetricsCollector(Protocol):
    """Anything that ``prometheus_client`` can collect from: a ``Gauge``, a ``Histogram``, or a ``Collector`` of your own."""

    def collect(self) -> Iterable[Metric]:
        """The metric families now. Called on the control plane's thread at each request; it must not block."""
        ...


class ClashingMetrics(OrchestratorError, ValueError):
    """Two collectors, or one and the control plane itself, have metrics of the same name."""


class Collectors:
    """The user's collectors of one run.

    Creating it raises ``ClashingMetrics`` if a name is used twice, as far as collectors know their names before the run. A
    name that appears later and is used already counts as a failure of its collector.
    """

    def __init__(self, collectors: Sequence[MetricsCollector], *, built_in: Iterable[Metric], log: EventLog) -> None:
        self._log = log
        self._labelled = [(f"collectors[{at}] ({_name_of(each)})", each) for at, each in enumerate(collectors)]
        self._failed: set[str] = set()
        self._owners = {name: _BUILT_IN for family in built_in for name in _names(family)}
        for label, collector in self._labelled:
            describe = getattr(collector, "describe", collector.collect)
            try:
                described = list(describe())
            except Exception as error:  # noqa: BLE001 - a collector's failure must not keep the run from starting
                self._log_once(label, error)
            else:
                self._own(label, described)

    def each(self, render: Callable[[list[Metric]], R]) -> Iterator[R]:
        """``render`` of each collector's families. A collector for which that fails is logged once, and left out."""
        for label, collector in self._labelled:
            try:
                families = list(collector.collect())
                self._own(label, families)
                rendered = render(families)
            except Exception as error:  # noqa: BLE001 - it costs only the collector's own metrics
                self._log_once(label, error)
            else:
                yield rendered

    def _own(self, label: str, families: Iterable[Metric]) -> None:
        for name in (name for family in families for name in _names(family)):
            if (owner := self._owners.setdefault(name, label)) != label:
                raise ClashingMetrics(
                    f"ControlPlane: {label} has the metric {name!r}, which {owner} has as well: rename it"
                )

    def _log_once(self, label: str, error: Exception) -> None:
        if label not in self._failed:
            self._failed.add(label)
            self._log("collector_failed", level=logging.ERROR, exc=error, collector=label)


def _name_of(collector: MetricsCollector) -> str:
    return getattr(collector, "__name__", None) or type(collector).__name__


def _names(family: Metric) -> list[str]:
    return [family.name, *(f"{family.name}{suffix}" for suffix in _SUFFIXES.get(family.type, ()))]
