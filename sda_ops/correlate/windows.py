"""Cross-sensor windows: the correlations of one object by several sensors within a processing-time window become one update.

A window opens with the first correlation of an object. It closes after a fixed time or when it is full. A closing window
gives an update if two or more sensors contributed. A window with one sensor gives none; its correlations have already been
passed on, so nothing is lost.

Pure: the time is passed in. Windows by event time are a later stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID, uuid5

from orchestrator_adapter import check_fields
from sda_ops.records.correlation import Contribution, Correlation, CrossSensorUpdate

_UPDATES = UUID("6f1c1a52-6f0b-5c39-9f43-3f4f6b8a2c11")
"""The namespace of update ids (RFC 9562, section 5.5). Changing it changes every id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowLimits:
    """The bounds of windows.

    Attributes:
        length: The time from the first contribution to closing, on a monotonic clock.
        max_contributions: A window with so many contributions closes.
        max_open: How many windows are open at once. A further one closes the oldest early.
    """

    length: timedelta = timedelta(seconds=2)
    max_contributions: int = 256
    max_open: int = 50_000

    def __post_init__(self) -> None:
        check_fields(
            "WindowLimits",
            ("length", self.length, self.length > timedelta(0), "> 0"),
            ("max_contributions", self.max_contributions, self.max_contributions > 1, "> 1"),
            ("max_open", self.max_open, self.max_open > 0, "> 0"),
        )


@dataclass(slots=True)
class _Window:
    opened: float
    opened_ns: int
    contributions: dict[UUID, Contribution] = field(default_factory=dict)
    ingest_ns: int = 0


class CrossSensorWindows:
    """The open windows, in order of opening.

    Attributes:
        closed_early: How many windows closed before their time because of ``max_open``.
    """

    def __init__(self, limits: WindowLimits) -> None:
        self.closed_early = 0
        self._limits = limits
        self._length_s = limits.length.total_seconds()
        self._open: dict[int, _Window] = {}

    def __len__(self) -> int:
        """The number of open windows."""
        return len(self._open)

    def add(self, correlation: Correlation, *, now: float, now_ns: int) -> Iterator[CrossSensorUpdate]:
        """Add a correlation to the window of its object; yields the updates of windows that this closes.

        Correlations that are not ``correlated`` are ignored, and so is the same observation again. ``now`` is in monotonic
        seconds and must not decrease; ``now_ns`` is UTC.
        """
        number, residuals = correlation.catalog_number, correlation.residuals
        if number is None or residuals is None:
            return
        window = self._open.get(number)
        if window is None:
            if len(self._open) >= self._limits.max_open:
                self.closed_early += 1
                yield from self._close(next(iter(self._open)), now_ns)
            window = self._open[number] = _Window(now, now_ns, ingest_ns=correlation.ingest_timestamp)
        window.contributions.setdefault(
            correlation.observation_id,
            Contribution(correlation.observation_id, correlation.source_id, correlation.sensor_timestamp, residuals),
        )
        if len(window.contributions) >= self._limits.max_contributions:
            yield from self._close(number, now_ns)

    def due(self, *, now: float, now_ns: int) -> Iterator[CrossSensorUpdate]:
        """Close every window whose time has passed."""
        while self._open:
            number, window = next(iter(self._open.items()))
            if now < window.opened + self._length_s:
                return
            yield from self._close(number, now_ns)

    def close_all(self, *, now_ns: int) -> Iterator[CrossSensorUpdate]:
        """Close every window, at the end of the stream."""
        while self._open:
            yield from self._close(next(iter(self._open)), now_ns)

    def next_due(self) -> float | None:
        """The monotonic time at which the first window is due; ``None`` if none is open."""
        first = next(iter(self._open.values()), None)
        return None if first is None else first.opened + self._length_s

    def _close(self, number: int, now_ns: int) -> Iterator[CrossSensorUpdate]:
        window = self._open.pop(number)
        contributions = tuple(window.contributions.values())
        if len({contribution.source_id for contribution in contributions}) > 1:
            ids = " ".join(sorted(str(contribution.observation_id) for contribution in contributions))
            yield CrossSensorUpdate(
                uuid5(_UPDATES, f"{number} {ids}"), number, window.opened_ns, now_ns, contributions, window.ingest_ns
            )
