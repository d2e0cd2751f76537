"""The states of windows: open, inserted, perhaps open again, released; and how many are in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, Generic

from sda_ops.event_time.calendar_queue import CalendarQueue
from sda_ops.event_time.changes import Change, Insert, Retract
from sda_ops.event_time.lanes import AFTER_ALL_NS, BEFORE_ALL_NS, Identity, K, Lane, T, Window, items_back_to_the_start
from sda_ops.event_time.segmentation import Segmentation


class WindowStates(Generic[K, T]):
    """The lanes, and the queues in which their windows wait for the watermark.

    Attributes:
        retained: How many windows are closed, and can be amended.
        held: How many items are held.
    """

    def __init__(
        self,
        segmentation: Segmentation,
        *,
        order: Callable[[T], Any],
        allowed_ns: int,
        slice_ns: int,
        on_release: Callable[[K, Sequence[T]], object] | None,
    ) -> None:
        self.retained = self.held = 0
        self._open_windows = self._unsorted_lanes = 0
        self._segmentation = segmentation
        self._lookback_ns = segmentation.lookback_ns
        self._order = order
        self._allowed_ns = allowed_ns
        self._on_release = on_release
        self._mark_ns = BEFORE_ALL_NS
        self._lanes: dict[K, Lane[K, T]] = {}
        self._open: CalendarQueue[Lane[K, T] | Window[K, T]] = CalendarQueue(slice_ns=slice_ns)
        self._retained: CalendarQueue[Window[K, T]] = CalendarQueue(slice_ns=slice_ns)
        self._forgetting: CalendarQueue[Lane[K, T]] = CalendarQueue(slice_ns=slice_ns)

    @property
    def mark_ns(self) -> int | None:
        """The newest watermark; ``None`` before the first one, and after ``close_all``."""
        return self._mark_ns if BEFORE_ALL_NS < self._mark_ns < AFTER_ALL_NS else None

    @property
    def active(self) -> int:
        """How many windows are open. The items of a key that are not sorted yet count as one."""
        return self._open_windows + self._unsorted_lanes

    def _wait(self, lane: Lane[K, T], earliest_ns: int, end_ns: int) -> None:
        """Examine the lane when the first window of what is unsorted may close: at ``end_ns``."""
        if lane.earliest_ns == AFTER_ALL_NS:
            self._unsorted_lanes += 1
        lane.earliest_ns, lane.end_ns = earliest_ns, end_ns
        self._open.add(lane)

    def _new(self, lane: Lane[K, T], time_ns: int, item: T) -> Window[K, T]:
        start_ns, end_ns = self._segmentation.start_ns(time_ns), self._segmentation.end_ns(time_ns, time_ns)
        self._open_windows += 1
        return Window(end_ns, lane, start_ns, time_ns, time_ns, [item])

    def _insert(self, window: Window[K, T]) -> Insert[K, T]:
        self._open_windows -= 1
        self.retained += 1
        window.inserted = True
        self._retained.add(window)
        return Insert(window.lane.key, window.start_ns, window.end_ns, *self._content(window))

    def _retract(self, window: Window[K, T]) -> list[Change[K, T]]:
        """Retract the window, if it was inserted. Call it before its content changes."""
        if not window.inserted:
            return []
        retraction = Retract(window.lane.key, window.start_ns, window.end_ns, *self._content(window))
        self._open_windows += 1
        self.retained -= 1
        window.inserted = False
        window.queue = None
        retracted, identity = window.lane.retracted, self._identity(window, len(retraction.items))
        retracted[identity] = retracted.get(identity, 0) + 1
        return [retraction]

    def _content(self, window: Window[K, T]) -> tuple[tuple[T, ...], int]:
        """Its items, with those that it looks back to, and their edition."""
        items = items_back_to_the_start(window) if self._lookback_ns else tuple(window.items)
        retracted = window.lane.retracted
        return items, retracted.get(self._identity(window, len(items)), 0) if retracted else 0

    def _release(self, window: Window[K, T], released_ns: int) -> None:
        """Forget the window, which is the first of its lane."""
        lane = window.lane
        del lane.windows[0]
        window.queue = None
        lane.released_ns = max(lane.released_ns, released_ns)
        self.held -= len(window.items)
        self.retained -= 1
        if self._on_release is not None:
            self._on_release(lane.key, window.items)
        if lane.retracted:
            lane.retracted = {each: n for each, n in lane.retracted.items() if each[0] >= lane.released_ns}
        if not lane.windows and not lane.unsorted:
            self._forget(lane)

    def _forget(self, lane: Lane[K, T]) -> None:
        """Forget an empty lane when every item before ``released_ns`` is too late without it."""
        lane.end_ns = lane.released_ns + self._segmentation.reach_ns + self._allowed_ns
        if lane.end_ns <= self._mark_ns:
            lane.queue = None
            del self._lanes[lane.key]
        elif lane.queue is None:
            self._forgetting.add(lane)

    def _retract_looking_back(
        self, lane: Lane[K, T], index: int, time_ns: int, retractions: list[Change[K, T]]
    ) -> list[Window[K, T]]:
        """Retract the closed windows from ``index`` on that look back to this time; returns them."""
        if not self._lookback_ns:
            return []
        reaching = takewhile(lambda window: window.start_ns <= time_ns, lane.windows[index:])
        affected = [window for window in reaching if window.inserted]
        for window in affected:
            retractions += self._retract(window)
        return affected

    def _identity(self, window: Window[K, T], items: int) -> Identity:
        """What defines the content of a window with so many items: only additions change what is between two items."""
        order = self._order
        return window.first_ns, order(window.items[0]), window.last_ns, order(window.items[-1]), items
