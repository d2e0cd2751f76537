"""The ``fuse`` operator: it adds a cross-sensor update for every object that several sensors observed within one window.

The windows are sessions of event time, one object each (`sda_ops.event_time.windows`). What closes them is the watermark.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from operator import attrgetter
from typing import Literal, TypeAlias
from uuid import UUID, uuid5

import msgspec

from orchestrator_adapter import Control, DeadLetterKind, Factory, WiredEnds, check_fields
from sda_ops.event_time.changes import Added, Change, Late, Retract
from sda_ops.event_time.metrics import EventTimeMetrics
from sda_ops.event_time.segmentation import Session
from sda_ops.event_time.watermark import Watermark
from sda_ops.event_time.windows import EventTimeWindows
from sda_ops.records.correlation import Contribution, Correlation, CrossSensorUpdate

LatePolicy: TypeAlias = Literal["count", "dead_letter"]
"""What happens to a correlation that is too late for its window. It is passed on in both cases, and counted. ``dead_letter``: a
dead letter has it as well."""

_UPDATES = UUID("6f1c1a52-6f0b-5c39-9f43-3f4f6b8a2c11")
"""The namespace of update ids (RFC 9562, section 5.5). Changing it changes every id."""

_NUMBER = attrgetter("catalog_number")

_AT_ONCE = 1_024
"""Windows that close in one step, so that a mark that closes many does not stall the loop (10 ms instead of a second)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionWindows:
    """How correlations of one object are cut into windows.

    Attributes:
        gap: Observations of one object with less time between them are in one window.
        longest: A window is not longer. An observation this long after the first one, or longer, begins a new window.
        allowed_lateness: How long after its end, in event time, a late observation can still change a window.
        late: What happens to observations that are later.
        max_held: How many correlations the windows hold. One more closes the oldest window early.
    """

    gap: timedelta = timedelta(seconds=2)
    longest: timedelta = timedelta(seconds=30)
    allowed_lateness: timedelta = timedelta(seconds=5)
    late: LatePolicy = "count"
    max_held: int = 1_000_000

    def __post_init__(self) -> None:
        check_fields(
            "FusionWindows",
            ("gap", self.gap, self.gap > timedelta(0), "> 0"),
            ("longest", self.longest, self.longest >= self.gap, f">= gap = {self.gap}"),
            ("allowed_lateness", self.allowed_lateness, self.allowed_lateness >= timedelta(0), ">= 0"),
            ("max_held", self.max_held, self.max_held > 0, "> 0"),
        )

    def make(self) -> EventTimeWindows[int, Correlation]:
        """The windows, empty. The key is the catalogue number."""
        return EventTimeWindows(
            Session(gap_ns=_ns(self.gap), longest_ns=_ns(self.longest)),
            time_of=attrgetter("sensor_timestamp"),
            order=lambda correlation: correlation.observation_id.int,
            allowed_lateness_ns=_ns(self.allowed_lateness),
            max_held=self.max_held,
        )


def fuse(windows: FusionWindows | None = None, *, metrics: EventTimeMetrics | None = None) -> Factory:
    """An operator that passes correlations on, in order, and adds an update for each closed window with several sensors.

    Declare it as ``expanding`` and ``stateful``: updates, and dead letters of correlations that are passed on, are derived
    items. A watermark closes windows; it is passed on behind their updates. A late correlation that changes a closed
    window gives the retraction of its update, then the new one. At the end of the stream every window closes. The windows
    outlive an instance; so do updates that an instance had not sent when it failed. If the operator is aborted, the open
    windows are lost; their correlations have already been sent.

    Metrics: ``updates`` and ``retractions`` that were sent, ``late``, ``closed_early``, ``open_windows``,
    ``retained_windows``, ``held``; and those of ``metrics``.
    """
    settings = windows or FusionWindows()

    async def run(ends: WiredEnds) -> None:
        fusion = ends.keep("windows", lambda: _Fusion(settings.make(), settings.late, metrics))
        fusion.begin(ends)
        async for batch in ends.receiver.batches(controls=True):
            if isinstance(batch, Watermark):
                fusion.mark(batch)
                if batch.time_ns is not None:
                    await fusion.advance(ends, batch.time_ns)
            elif not isinstance(batch, Control):
                fusion.add(ends, batch)
                fusion.commit(ends, batch)
            await ends.flush()
        await fusion.advance(ends, None)

    return run


@dataclass(slots=True)
class _Fusion:
    """What outlives an instance. ``unsent`` are updates that are not committed yet."""

    windows: EventTimeWindows[int, Correlation]
    late: LatePolicy
    metrics: EventTimeMetrics | None
    unsent: list[CrossSensorUpdate] = field(default_factory=list)
    closed_early: int = 0

    def begin(self, ends: WiredEnds) -> None:
        for name in ("updates", "retractions", "late_amended"):
            ends.count(name, 0)
        self._show(ends)

    def mark(self, mark: Watermark) -> None:
        if self.metrics is not None:
            self.metrics.pipeline_mark(mark)

    async def advance(self, ends: WiredEnds, mark_ns: int | None) -> None:
        """Send what this mark closes, or the end of the stream, if it is ``None``."""
        windows = self.windows
        while True:
            changes = windows.close_all(_AT_ONCE) if mark_ns is None else windows.advance(mark_ns, _AT_ONCE)
            self._take(changes)
            self.commit(ends, ())
            await ends.flush()
            if not changes:
                return

    def add(self, ends: WiredEnds, correlations: Iterable[Correlation]) -> None:
        known = [each for each in correlations if each.catalog_number is not None and each.residuals is not None]
        said = self.windows.add_all(map(_NUMBER, known), known)
        amended, too_late = 0, [each for each in said if isinstance(each, Late)]
        for each in said:
            if isinstance(each, Added):
                self._take(each.changes)
                amended += each.late and bool(each.changes)
        ends.count("late_amended", amended)
        if self.late == "dead_letter":  # last: it may fail, and the windows have taken the items by now
            for each in too_late:
                ends.dead_letter(each.item, DeadLetterKind.VALIDATION_FAILED, _too_late(each))
        if self.metrics is not None and said:
            self.metrics.late(ends.name, "amended", amended)
            self.metrics.late(ends.name, "dropped" if self.late == "count" else "dead_lettered", len(too_late))

    def commit(self, ends: WiredEnds, batch: Sequence[Correlation]) -> None:
        """Send the batch and the updates that are not sent yet."""
        updates = self.unsent
        ends.commit([*batch, *updates], acknowledge=len(batch))
        self.unsent = []
        retractions = sum(update.retracted for update in updates)
        ends.count("updates", len(updates) - retractions)
        ends.count("retractions", retractions)
        self._show(ends)
        if self.metrics is not None:
            _report(self.metrics, ends, batch, retractions)

    def _take(self, changes: Iterable[Change[int, Correlation]]) -> None:
        self.unsent += [update for change in changes if (update := update_of(change)) is not None]

    def _show(self, ends: WiredEnds) -> None:
        windows = self.windows
        ends.gauge("late", windows.late)
        ends.gauge("closed_early", windows.closed_early)
        ends.gauge("released_early", windows.released_early)
        ends.gauge("open_windows", windows.active)
        ends.gauge("retained_windows", windows.retained)
        ends.gauge("held", windows.held)
        if self.metrics is not None:
            self.metrics.windows(ends.name, windows.active, windows.retained)
            self.metrics.closed_early(ends.name, windows.closed_early - self.closed_early)
        self.closed_early = windows.closed_early


def update_of(change: Change[int, Correlation]) -> CrossSensorUpdate | None:
    """The update of a window, or its retraction; ``None`` if one sensor alone observed the object.

    The id comes from the object and the contributing ids. If a window with exactly these was retracted before, it also comes
    from how often: a retracted id never returns.
    """
    items = change.items
    if len({item.source_id for item in items}) == 1:
        return None
    again = f" {change.edition}" if change.edition else ""
    return CrossSensorUpdate(
        uuid5(_UPDATES, f"{change.key} {_text([item.observation_id for item in items])}{again}"),
        change.key,
        change.start_ns,
        change.end_ns,
        tuple(
            [
                Contribution(item.observation_id, item.source_id, item.sensor_timestamp, item.residuals)
                for item in items
                if item.residuals is not None  # always: `add` sees to it
            ]
        ),
        min([item.ingest_timestamp for item in items]),
        isinstance(change, Retract),
    )


def _text(ids: list[UUID]) -> str:
    """The ids in ascending order, with spaces. msgspec writes ``["…","…"]`` at 50 ns per id; ``str`` takes 640 ns."""
    return msgspec.json.encode(sorted(ids, key=attrgetter("int")))[2:-2].replace(b'","', b" ").decode()


def _too_late(late: Late[int, Correlation]) -> str:
    if late.late_ns <= 0:
        return f"too late: the window of object {late.key} was closed early, because max_held correlations were held"
    return (
        f"too late: {late.late_ns / 1e9:.3f} s before the watermark, and the window of object {late.key} is released; "
        "the correlation is passed on, and is in no cross-sensor update"
    )


def _report(metrics: EventTimeMetrics, ends: WiredEnds, batch: Sequence[Correlation], retractions: int) -> None:
    if retractions:
        metrics.retractions(ends.name, retractions)
    if batch:
        now_ns, lags_ns = ends.clock.now_ns(), defaultdict[str, list[int]](list)
        for correlation in batch:
            lags_ns[correlation.source_kind].append(now_ns - correlation.ingest_timestamp)
        for kind, each in lags_ns.items():
            metrics.pipeline_lag(kind, each)


def _ns(duration: timedelta) -> int:
    return duration // timedelta(microseconds=1) * 1_000
