"""Windows over event time: of each key, the items in event order, cut into windows by a segmentation.

A window is *active* until the watermark reaches its end; then it is inserted. It is *retained* until the watermark has reached
its end plus the allowed lateness; in this time a late item amends it: what it changes is retracted, and inserted again. After
that it is released, and an item that belongs there is too late. Only the watermark decides; the order of arrival does not.

Pure. The windows know nothing of records: the caller passes the key, the event time and the item. See docs/event-time.md.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count, takewhile
from typing import Any, Generic, TypeAlias, TypeVar

from orchestrator_adapter import check_fields
from sda_ops.event_time.changes import Added, Change, Duplicate, Insert, Late, Retract
from sda_ops.event_time.segmentation import Segmentation

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

_Identity: TypeAlias = tuple[int, Any, int, Any, int]

_BEFORE_ALL_NS = -(1 << 200)
_AFTER_ALL_NS = 1 << 200


@dataclass(slots=True, eq=False)
class _Window(Generic[K, T]):
    """``ticket`` names its one valid entry in the two heaps; entries with another one are skipped."""

    lane: _Lane[K, T]
    start_ns: int
    end_ns: int
    times_ns: list[int]
    items: list[T]
    inserted: bool = False
    ticket: int = -1


@dataclass(slots=True, eq=False)
class _Lane(Generic[K, T]):
    """The windows of one key, in ascending order, not overlapping; no item before ``released_ns`` is accepted.

    ``forgetting``: it has an entry in the heap of lanes. ``retracted`` counts contents that were retracted.
    """

    key: K
    released_ns: int = _BEFORE_ALL_NS
    forgetting: bool = False
    windows: list[_Window[K, T]] = field(default_factory=list)
    retracted: dict[_Identity, int] = field(default_factory=dict)


_Heap: TypeAlias = list[tuple[int, int, _Window[K, T]]]


class EventTimeWindows(Generic[K, T]):
    """The windows of all keys.

    The state is bounded by (length of a window + allowed lateness + how far the watermark is behind) times the rate of items,
    and by ``max_held``. An item costs a bisection in the windows of its key; at the end, in event order, it costs an append.

    Args:
        segmentation: How items are cut into windows.
        order: A total order of the items of one key with equal event times, such as their ids. Two items with equal event
            time and order are the same item.
        allowed_lateness_ns: How long a closed window can still be amended, in event time.
        max_held: How many items are held. One more closes the oldest window early: it is inserted with what it has,
            released, and counted.
        on_release: Called with the key and the items of each window that is released, in ascending order; they are not held any
            more then. Of a sliding window, the items that it does not share with an earlier one.

    Attributes:
        active: How many windows are open.
        retained: How many windows are closed, and can be amended.
        held: How many items the windows have.
        late: How many items were too late.
        closed_early: How many windows were inserted before the watermark reached them, because of ``max_held``.
        released_early: How many closed windows were released before their time, because of ``max_held``.
    """

    def __init__(
        self,
        segmentation: Segmentation,
        *,
        order: Callable[[T], Any],
        allowed_lateness_ns: int = 0,
        max_held: int = 1_000_000,
        on_release: Callable[[K, Sequence[T]], object] | None = None,
    ) -> None:
        check_fields(
            "EventTimeWindows",
            ("allowed_lateness_ns", allowed_lateness_ns, allowed_lateness_ns >= 0, ">= 0"),
            ("max_held", max_held, max_held > 0, "> 0"),
        )
        self.active = self.retained = self.held = 0
        self.late = self.closed_early = self.released_early = 0
        self._segmentation = segmentation
        self._lookback_ns = segmentation.lookback_ns
        self._order = order
        self._allowed_ns = allowed_lateness_ns
        self._max_held = max_held
        self._on_release = on_release
        self._mark_ns = _BEFORE_ALL_NS
        self._lanes: dict[K, _Lane[K, T]] = {}
        self._tickets = count()
        self._closing: _Heap[K, T] = []
        self._retained: _Heap[K, T] = []
        self._forgetting: list[tuple[int, int, _Lane[K, T]]] = []

    @property
    def mark_ns(self) -> int | None:
        """The newest watermark; ``None`` before the first one, and after ``close_all``."""
        return self._mark_ns if _BEFORE_ALL_NS < self._mark_ns < _AFTER_ALL_NS else None

    def items_of(self, key: K) -> tuple[T, ...]:
        """The items of the key that are held, in ascending order of (event time, order)."""
        lane = self._lanes.get(key)
        return tuple(item for window in lane.windows for item in window.items) if lane is not None else ()

    def open_until_ns(self, key: K) -> int | None:
        """The end of the key's last window, as far as its items are known; ``None`` if none is open."""
        lane = self._lanes.get(key)
        if lane is None or not lane.windows or (last := lane.windows[-1]).inserted:
            return None
        return last.end_ns

    def add(self, key: K, time_ns: int, item: T) -> Added[K, T] | Duplicate | Late[K, T]:
        """Add an item of this key and event time."""
        lane = self._lanes.get(key)
        if lane is None:
            lane = _Lane(key)
        elif (
            lane.windows
            and (last := lane.windows[-1]).times_ns[-1] < time_ns < last.end_ns
            and not last.inserted
            and self.held < self._max_held
        ):  # the usual case: it is the newest item of an open window
            last.times_ns.append(time_ns)
            last.items.append(item)
            last.end_ns = self._segmentation.end_ns(last.times_ns[0], time_ns)
            self.held += 1
            return _ADDED if time_ns >= self._mark_ns else _ADDED_LATE
        late = time_ns < self._mark_ns
        if time_ns < lane.released_ns or (late and self._is_released(lane, time_ns)):
            self.late += 1
            return Late(key, time_ns, item, self._mark_ns - time_ns if late else 0)
        changes = self._put(lane, time_ns, item)
        if changes is None:
            return _DUPLICATE
        self._lanes[key] = lane
        self.held += 1
        while self.held > self._max_held:
            changes += self._release_oldest()
        return Added(tuple(changes), late) if changes or late else _ADDED

    def advance(self, mark_ns: int, limit: int | None = None) -> list[Change[K, T]]:
        """The watermark is ``mark_ns``: close and release what it allows. A mark before an earlier one changes nothing.

        Returns the insertions, in ascending order of the windows' ends; at most ``limit`` of them. If there are more, the
        next call with the same mark returns them, and the last one returns none; no item may be added in between.
        """
        changes: list[Change[K, T]] = []
        if mark_ns < self._mark_ns:
            return changes
        self._mark_ns = mark_ns
        while (limit is None or len(changes) < limit) and (window := self._due(self._closing, mark_ns)) is not None:
            changes.append(self._insert(window))
        # While windows are still to be closed, those that they look back to are kept.
        until_ns = min(mark_ns, self._closing[0][0] - 1) if changes and self._closing else mark_ns
        until_ns -= self._allowed_ns + self._lookback_ns
        while (window := self._due(self._retained, until_ns)) is not None:
            self._release(window, window.end_ns)
        while self._forgetting and self._forgetting[0][0] <= mark_ns:
            lane = heappop(self._forgetting)[2]
            lane.forgetting = False
            if not lane.windows:
                self._forget(lane)
        return changes

    def close_all(self, limit: int | None = None) -> list[Change[K, T]]:
        """Close and release every window, at the end of the stream, as ``advance`` does. Every later item is too late."""
        return self.advance(_AFTER_ALL_NS, limit)

    # Adding.

    def _is_released(self, lane: _Lane[K, T], time_ns: int) -> bool:
        """Whether the window to which an item of this late time would belong has been released."""
        return _ends_by(lane.windows, time_ns, self._mark_ns - self._allowed_ns, self._segmentation)

    def _put(self, lane: _Lane[K, T], time_ns: int, item: T) -> list[Change[K, T]] | None:
        """Insert the item, and segment anew what it changes. ``None``: it is there already."""
        windows = lane.windows
        if time_ns >= self._mark_ns and (not windows or time_ns >= windows[-1].end_ns):
            windows.append(self._open(lane, time_ns, item))
            self._schedule(self._closing, windows[-1])
            return []
        retractions: list[Change[K, T]] = []
        index = len(windows) - 1
        if index >= 0 and time_ns < windows[index].times_ns[0]:
            index = bisect_right(windows, time_ns, key=_first_ns) - 1
        if index >= 0 and time_ns < windows[index].end_ns:
            window = windows[index]
            at = _place_of(window, time_ns, item, self._order)
            if at is None:
                return None
            within = time_ns <= window.times_ns[-1]
            retractions += self._retract(window)
            looking_back = self._retract_looking_back(lane, index + 1, time_ns, retractions)
            window.times_ns.insert(at, time_ns)
            window.items.insert(at, item)
            if within and not retractions:  # the window is open, and its end stays
                return []
            window.end_ns = self._segmentation.end_ns(window.times_ns[0], window.times_ns[-1])
        else:
            index += 1
            looking_back = self._retract_looking_back(lane, index, time_ns, retractions)
            window = self._open(lane, time_ns, item)
            windows.insert(index, window)
        changed = [*self._merge_and_split(lane, index, retractions), *looking_back]
        insertions: list[Change[K, T]] = []
        for window in changed:
            if window.end_ns <= self._mark_ns:
                insertions.append(self._insert(window))
            elif window.ticket < 0:
                self._schedule(self._closing, window)
        return retractions + insertions

    def _merge_and_split(self, lane: _Lane[K, T], index: int, retractions: list[Change[K, T]]) -> list[_Window[K, T]]:
        """Segment anew from the window ``index`` on, as far as something changes; returns the windows that have changed."""
        windows, segmentation = lane.windows, self._segmentation
        window = windows[index]
        changed = [window]
        while index + 1 < len(windows) and (following := windows[index + 1]).times_ns[0] < window.end_ns:
            retractions += self._retract(following)
            _join(window, following, segmentation)
            if following.items:
                following.start_ns = segmentation.start_ns(following.times_ns[0])
                following.end_ns = segmentation.end_ns(following.times_ns[0], following.times_ns[-1])
                index, window = index + 1, following
                changed.append(window)
            else:
                del windows[index + 1]
                following.ticket = -1
                self.active -= 1
        return changed

    def _retract_looking_back(
        self, lane: _Lane[K, T], index: int, time_ns: int, retractions: list[Change[K, T]]
    ) -> list[_Window[K, T]]:
        """Retract the closed windows from ``index`` on that look back to this time; returns them."""
        if not self._lookback_ns:
            return []
        reaching = takewhile(lambda window: window.start_ns <= time_ns, lane.windows[index:])
        affected = [window for window in reaching if window.inserted]
        for window in affected:
            retractions += self._retract(window)
        return affected

    def _identity(self, window: _Window[K, T], items: int) -> _Identity:
        """What defines the content of a window with so many items: only additions change what is between two items."""
        times_ns, order = window.times_ns, self._order
        return times_ns[0], order(window.items[0]), times_ns[-1], order(window.items[-1]), items

    # The states of a window: open, inserted, perhaps open again, released.

    def _open(self, lane: _Lane[K, T], time_ns: int, item: T) -> _Window[K, T]:
        segmentation = self._segmentation
        self.active += 1
        return _Window(lane, segmentation.start_ns(time_ns), segmentation.end_ns(time_ns, time_ns), [time_ns], [item])

    def _insert(self, window: _Window[K, T]) -> Insert[K, T]:
        self.active -= 1
        self.retained += 1
        window.inserted = True
        self._schedule(self._retained, window)
        return Insert(window.lane.key, window.start_ns, window.end_ns, *self._content(window))

    def _retract(self, window: _Window[K, T]) -> list[Change[K, T]]:
        """Retract the window, if it was inserted. Call it before its content changes."""
        if not window.inserted:
            return []
        retraction = Retract(window.lane.key, window.start_ns, window.end_ns, *self._content(window))
        self.active += 1
        self.retained -= 1
        window.inserted = False
        window.ticket = -1
        retracted, identity = window.lane.retracted, self._identity(window, len(retraction.items))
        retracted[identity] = retracted.get(identity, 0) + 1
        return [retraction]

    def _content(self, window: _Window[K, T]) -> tuple[tuple[T, ...], int]:
        """Its items, with those that it looks back to, and their edition."""
        items = _items_back_to_the_start(window) if self._lookback_ns else tuple(window.items)
        retracted = window.lane.retracted
        return items, retracted.get(self._identity(window, len(items)), 0) if retracted else 0

    def _release(self, window: _Window[K, T], released_ns: int) -> None:
        """Forget the window, which is the first of its lane."""
        lane = window.lane
        del lane.windows[0]
        window.ticket = -1
        lane.released_ns = max(lane.released_ns, released_ns)
        self.held -= len(window.items)
        self.retained -= 1
        if self._on_release is not None:
            self._on_release(lane.key, window.items)
        if lane.retracted:
            lane.retracted = {each: n for each, n in lane.retracted.items() if each[0] >= lane.released_ns}
        if not lane.windows and not lane.forgetting:
            self._forget(lane)

    def _release_oldest(self) -> list[Change[K, T]]:
        """Close the oldest window early, with those that look back to it."""
        window = self._due(self._retained, _AFTER_ALL_NS) or self._due(self._closing, _AFTER_ALL_NS)
        assert window is not None, "items are held, so that a window is there"
        changes: list[Change[K, T]] = []
        until_ns = window.end_ns + self._lookback_ns
        if window.inserted:
            self.released_early += 1
        for each in window.lane.windows:
            if each.end_ns > until_ns:
                break
            if not each.inserted:
                self.closed_early += 1
                changes.append(self._insert(each))
        self._release(window, until_ns)
        return changes

    def _forget(self, lane: _Lane[K, T]) -> None:
        """Forget an empty lane when every item before ``released_ns`` is too late without it."""
        at_ns = lane.released_ns + self._segmentation.reach_ns + self._allowed_ns
        if at_ns <= self._mark_ns:
            del self._lanes[lane.key]
        else:
            lane.forgetting = True
            heappush(self._forgetting, (at_ns, next(self._tickets), lane))

    # Two heaps of windows by their end. The end of a window grows with its items; its entry follows when it comes up.

    def _schedule(self, heap: _Heap[K, T], window: _Window[K, T]) -> None:
        window.ticket = next(self._tickets)
        heappush(heap, (window.end_ns, window.ticket, window))

    def _due(self, heap: _Heap[K, T], until_ns: int) -> _Window[K, T] | None:
        """Take the window with the earliest end from the heap, if that is not after ``until_ns``."""
        while heap and heap[0][0] <= until_ns:
            end_ns, ticket, window = heappop(heap)
            if ticket == window.ticket:
                if window.end_ns == end_ns:
                    return window
                self._schedule(heap, window)
        return None


def _first_ns(window: _Window[Any, Any]) -> int:
    return window.times_ns[0]


def _place_of(window: _Window[K, T], time_ns: int, item: T, order_of: Callable[[T], Any]) -> int | None:
    """Where the item belongs among the window's items; ``None``: it is there already."""
    times_ns = window.times_ns
    first = bisect_left(times_ns, time_ns)
    if first == len(times_ns) or times_ns[first] != time_ns:
        return first
    last, order = bisect_right(times_ns, time_ns, first), order_of(item)
    at = bisect_left(window.items, order, first, last, key=order_of)
    return None if at < last and order_of(window.items[at]) == order else at


def _items_back_to_the_start(window: _Window[K, T]) -> tuple[T, ...]:
    """Its items, and those of earlier windows of its key that it looks back to."""
    windows = window.lane.windows
    first = bisect_left(windows, window.start_ns, key=_first_ns)
    last = bisect_left(windows, window.end_ns, lo=first, key=_first_ns)
    return tuple(item for each in windows[first:last] for item in each.items)


def _ends_by(windows: Sequence[_Window[K, T]], time_ns: int, until_ns: int, segmentation: Segmentation) -> bool:
    """Whether the window to which an item of this time would belong ends at ``until_ns`` or before."""
    index = bisect_right(windows, time_ns, key=_first_ns) - 1
    if index >= 0 and time_ns < windows[index].end_ns:
        return windows[index].end_ns <= until_ns
    end_ns = segmentation.end_ns(time_ns, time_ns)
    for window in windows[index + 1 :]:
        for following_ns in window.times_ns:
            if end_ns > until_ns or following_ns >= end_ns:
                return end_ns <= until_ns
            end_ns = segmentation.end_ns(time_ns, following_ns)
    return end_ns <= until_ns


def _join(window: _Window[K, T], following: _Window[K, T], segmentation: Segmentation) -> None:
    """Move the items of the following window that belong to this one."""
    first_ns, joining = window.times_ns[0], 0
    for time_ns in following.times_ns:
        if time_ns >= window.end_ns:
            break
        window.end_ns = segmentation.end_ns(first_ns, time_ns)
        joining += 1
    window.times_ns += following.times_ns[:joining]
    window.items += following.items[:joining]
    del following.times_ns[:joining], following.items[:joining]


_ADDED: Added[Any, Any] = Added()
_ADDED_LATE: Added[Any, Any] = Added(late=True)
_DUPLICATE = Duplicate()
