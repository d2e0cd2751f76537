"""Metric families from a function of the figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from orchestrator_adapter.primitives.metrics import BOUNDS_S, LatencyFigures, cumulative_counts

Samples: TypeAlias = Iterable[tuple[Sequence[str], float]]
"""The values of the labels, and the figure."""


def gauge(name: str, meaning: str, labels: Sequence[str], samples: Samples) -> Metric:
    """A figure that goes up and down."""
    family = GaugeMetricFamily(name, meaning, labels=labels)
    for values, figure in samples:
        family.add_metric(values, figure)
    return family


def counter(name: str, meaning: str, labels: Sequence[str], samples: Samples) -> Metric:
    """A figure that only grows during a run; its name ends in ``_total``."""
    family = CounterMetricFamily(name, meaning, labels=labels)
    for values, figure in samples:
        family.add_metric(values, figure)
    return family


def histogram(
    name: str, meaning: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], LatencyFigures]]
) -> Metric:
    """How often durations were at most as long as each of ``BOUNDS_S``, and their sum."""
    family = HistogramMetricFamily(name, meaning, labels=labels)
    for values, figures in samples:
        family.add_metric(values, list(zip(_BOUNDS, cumulative_counts(figures), strict=True)), figures.sum_s)
    return family


_BOUNDS = (*map(str, BOUNDS_S), "+Inf")
