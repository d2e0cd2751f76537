"""``MetricsPanel``s with the figures of the run's collectors: the live page's tables of what only the pipeline knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TypeAlias, assert_never

from prometheus_client.metrics_core import Metric

from orchestrator_adapter.control_plane.config import Figure, MetricsPanel
from orchestrator_adapter.control_plane.document import Panel, Row

_Found: TypeAlias = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
"""The samples by name: labels and value."""

_QUANTILE = 0.99
_NONE = "–"
_DURATIONS = {"µs": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3_600.0, "d": 86_400.0}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_KIB = 1024


def panels(declared: Iterable[MetricsPanel], families: Iterable[Metric], *, now_s: float) -> tuple[Panel, ...]:
    """Each panel, with one row for each value of its label. ``now_s``: UTC seconds. A metric that is missing has no figure."""
    found: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return tuple(_panel(each, found, now_s) for each in declared)


def _panel(declared: MetricsPanel, found: _Found, now_s: float) -> Panel:
    columns = [_column(figure, declared.by, found) for figure in declared.figures]
    names = dict.fromkeys(name for column in columns for name in column)
    rows = []
    for name in names:
        values = [column.get(name) for column in columns]
        shown = [_Shown.of(value, figure, now_s) for value, figure in zip(values, declared.figures, strict=True)]
        rows.append(Row(name=name, cells=tuple(each.text for each in shown), alarming=any(it.alarms for it in shown)))
    return Panel(title=declared.title, columns=tuple(figure.title for figure in declared.figures), rows=tuple(rows))


def _column(figure: Figure, by: str, found: _Found) -> dict[str, float]:
    """The figure by the value of the label ``by``; several samples of one value are added up."""
    if (buckets := found.get(f"{figure.metric}_bucket")) is not None:
        return _quantiles(buckets, figure, by)
    column: dict[str, float] = {}
    for labels, value in found.get(figure.metric, ()):
        if _fits(labels, figure):
            name = labels.get(by, "")
            column[name] = column.get(name, 0.0) + value
    return column


def _quantiles(buckets: Sequence[tuple[Mapping[str, str], float]], figure: Figure, by: str) -> dict[str, float]:
    """The upper bound of the bucket that has the quantile; values that nothing was measured for are missing."""
    cumulative: dict[str, dict[float, float]] = {}
    for labels, value in buckets:
        if _fits(labels, figure):
            of_one = cumulative.setdefault(labels.get(by, ""), {})
            bound = float(labels["le"])
            of_one[bound] = of_one.get(bound, 0.0) + value
    column = {}
    for name, counts in cumulative.items():
        total = max(counts.values())
        if total > 0:
            column[name] = min(bound for bound, seen in counts.items() if seen >= _QUANTILE * total)
    return column


def _fits(labels: Mapping[str, str], figure: Figure) -> bool:
    return all(labels.get(name) == value for name, value in figure.labels.items())


@dataclass(frozen=True, slots=True)
class _Shown:
    """A cell: its text, and whether its value is above the figure's limit."""

    text: str
    alarms: bool

    @classmethod
    def of(cls, value: float | None, figure: Figure, now_s: float) -> _Shown:
        if value is None:
            return cls(_NONE, alarms=False)
        shown = now_s - value if figure.unit == "age" else value
        return cls(_text(shown, figure), alarms=figure.alarm_above is not None and shown > figure.alarm_above)


def _text(value: float, figure: Figure) -> str:
    if not isfinite(value):
        return "more than the last bucket" if value > 0 else _NONE
    match figure.unit:
        case "count":
            return f"{value:,.0f}"
        case "seconds":
            return duration(value)
        case "age":
            return f"{duration(value)} ago" if value >= 0 else f"in {duration(-value)}"
        case "bytes":
            return _bytes(value)
        case "flag":
            return "yes" if value else "no"
        case _:
            assert_never(figure.unit)


def duration(seconds: float) -> str:
    """For people: ``350 µs``, ``12 ms``, ``3.2 s``, ``4 min``, ``2.5 h``, ``41 d``."""
    if not seconds:
        return "0 s"
    if seconds < 0:
        return f"-{duration(-seconds)}"
    fitting = [unit for unit, size in _DURATIONS.items() if float(f"{seconds / size:.3g}") >= 1]
    unit = fitting[-1] if fitting else "µs"
    return _three_digits(seconds / _DURATIONS[unit], unit)


def _bytes(value: float) -> str:
    unit = 0
    while float(f"{abs(value):.3g}") >= _KIB and unit < len(_UNITS) - 1:
        value, unit = value / _KIB, unit + 1
    return _three_digits(value, _UNITS[unit])


def _three_digits(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if abs(value) >= 100 else f"{value:.3g} {unit}"  # noqa: PLR2004 - of three digits
