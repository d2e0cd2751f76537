"""Windows over event time: of each key, the items in event order, cut into windows by a segmentation.

A window is *active* until the watermark reaches its end; then it is inserted. It is *retained* until the watermark has reached
its end plus the allowed lateness; in this time a late item amends it: what it changes is retracted, and inserted again. After
that it is released, and an item that belongs there is too late. Only the watermark decides; the order of arrival does not.

Pure. The windows know nothing of records: the caller passes the key, the event time and the item. See docs/event-time.md.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from orchestrator_adapter import check_fields
from sda_ops.event_time.changes import Added, Change, Late
from sda_ops.event_time.lanes import (
    AFTER_ALL_NS,
    BEFORE_ALL_NS,
    EARLIEST_UNSORTED_NS,
    FIRST_NS,
    LATEST_UNSORTED_NS,
    K,
    Lane,
    T,
    Window,
    ends_by,
    join,
    place_of,
    take_before,
)
from sda_ops.event_time.segmentation import Segmentation
from sda_ops.event_time.states import WindowStates


class EventTimeWindows(WindowStates[K, T]):
    """The windows of all keys.

    The state is bounded by (length of a window + allowed lateness + how far the watermark is behind) times the rate of items,
    and by ``max_held``. An item that is not late waits, unsorted, until the first window of its key may close: then the items of
    this key are sorted and put into windows, together. A late item costs a bisection in the windows of its key.

    Args:
        segmentation: How items are cut into windows.
        time_of: The event time of an item, UTC ns.
        order: A total order of the items of one key with equal event times, such as their ids. Two items with equal event
            time and order are the same item.
        allowed_lateness_ns: How long a closed window can still be amended, in event time.
        max_held: How many items are held. One more closes the oldest window early: it is inserted with what it has,
            released, and counted.
        slice_ns: Windows are sorted by their ends in slices of this length, and a mark that has moved by more is taken in
            steps. It changes how fast that is, and nothing else.
        on_release: Called with the key and the items of each window that is released, in ascending order; they are not held any
            more then. Of a sliding window, the items that it does not share with an earlier one.

    Attributes:
        retained: How many windows are closed, and can be amended.
        held: How many items are held.
        late: How many items were too late.
        duplicates: How many items were there already. A duplicate that is not late is counted, and not held any more, when its
            key is sorted.
        closed_early: How many windows were inserted before the watermark reached them, because of ``max_held``.
        released_early: How many closed windows were released before their time, because of ``max_held``.
    """

    def __init__(
        self,
        segmentation: Segmentation,
        *,
        time_of: Callable[[T], int],
        order: Callable[[T], Any],
        allowed_lateness_ns: int = 0,
        max_held: int = 1_000_000,
        slice_ns: int = 100_000_000,
        on_release: Callable[[K, Sequence[T]], object] | None = None,
    ) -> None:
        check_fields(
            "EventTimeWindows",
            ("allowed_lateness_ns", allowed_lateness_ns, allowed_lateness_ns >= 0, ">= 0"),
            ("max_held", max_held, max_held > 0, "> 0"),
            ("slice_ns", slice_ns, slice_ns > 0, "> 0"),
        )
        super().__init__(
            segmentation, order=order, allowed_ns=allowed_lateness_ns, slice_ns=slice_ns, on_release=on_release
        )
        self.duplicates = self.late = self.closed_early = self.released_early = 0
        self._time_of = time_of
        self._max_held = max_held
        self._slice_ns = slice_ns

    def items_of(self, key: K) -> tuple[T, ...]:
        """The items of the key that are held, in ascending order of (event time, order)."""
        lane = self._sorted_lane(key)
        return tuple(item for window in lane.windows for item in window.items) if lane is not None else ()

    def open_until_ns(self, key: K) -> int | None:
        """The end of the key's last window, as far as its items are known; ``None`` if none is open."""
        lane = self._sorted_lane(key)
        if lane is None or not lane.windows or (last := lane.windows[-1]).inserted:
            return None
        return last.end_ns

    def add(self, key: K, item: T) -> Added[K, T] | Late[K, T]:
        """Add an item of this key."""
        time_ns = self._time_of(item)
        lane = self._lanes.get(key)
        fits = self.held < self._max_held and EARLIEST_UNSORTED_NS <= time_ns <= LATEST_UNSORTED_NS
        if not fits or time_ns < self._mark_ns or (lane is not None and time_ns < lane.released_ns):
            return self._add_sorted(key, time_ns, item)
        if lane is None:
            lane = self._lanes[key] = Lane(BEFORE_ALL_NS, key)
        self.held += 1
        lane.unsorted.append(item)
        lane.unsorted_ns.append(time_ns)
        if time_ns < lane.earliest_ns:
            self._wait(lane, time_ns, self._segmentation.end_ns(time_ns, time_ns))
        return _ADDED

    def add_all(self, keys: Iterable[K], items: Sequence[T]) -> list[Added[K, T] | Late[K, T]]:
        """Add these items, each to its key, in order. Returns what ``add`` says of those that are late or change a window."""
        said = []
        lanes, time_of, mark_ns, latest_ns = self._lanes, self._time_of, self._mark_ns, LATEST_UNSORTED_NS
        has_room = self.held + len(items) <= self._max_held
        for key, item in zip(keys, items, strict=True):
            time_ns, lane = time_of(item), lanes.get(key)
            if has_room and lane is not None and time_ns >= mark_ns and lane.earliest_ns <= time_ns <= latest_ns:
                lane.unsorted.append(item)  # as most do
                lane.unsorted_ns.append(time_ns)
                self.held += 1
            elif (outcome := self.add(key, item)) is not _ADDED:
                said.append(outcome)
        return said

    def advance(self, mark_ns: int, limit: int | None = None) -> list[Change[K, T]]:
        """The watermark is ``mark_ns``: close and release what it allows. A mark before an earlier one changes nothing.

        Returns the insertions, in ascending order of the windows' ends; at most ``limit`` of them. If there are more, the
        next call with the same mark returns them, and the last one returns none; no item may be added in between.
        """
        changes: list[Change[K, T]] = []
        while mark_ns >= self._mark_ns:
            step_ns = mark_ns
            if (next_ns := self._open.next_ns) is not None:
                step_ns = min(mark_ns, max(next_ns + self._slice_ns, self._mark_ns))
            while limit is None or len(changes) < limit:
                if (due := self._open.pop(step_ns)) is None:
                    break
                if isinstance(due, Lane):
                    changes += self._close_first(due, due.end_ns)
                elif due.lane.earliest_ns < due.end_ns:
                    self._open.add(due)
                    self._sort(due.lane)
                else:
                    changes.append(self._insert(due))
            else:
                return changes
            self._mark_ns = step_ns
            while (window := self._retained.pop(step_ns - self._allowed_ns - self._lookback_ns)) is not None:
                self._release(window, window.end_ns)
            while (lane := self._forgetting.pop(step_ns)) is not None:
                if not lane.windows:
                    self._forget(lane)
            if step_ns == mark_ns:
                break
        return changes

    def close_all(self, limit: int | None = None) -> list[Change[K, T]]:
        """Close and release every window, at the end of the stream, as ``advance`` does. Every later item is too late."""
        return self.advance(AFTER_ALL_NS, limit)

    # Sorting. Items that are not late are in ``unsorted`` until their window closes, or is asked for.

    def _close_first(self, lane: Lane[K, T], due_ns: int) -> list[Change[K, T]]:
        """Close the first window of what is unsorted, if it ends at ``due_ns``; else wait until it ends."""
        windows, segmentation, first_ns = lane.windows, self._segmentation, lane.earliest_ns
        if self._lookback_ns or (windows and not windows[-1].inserted):
            self._sort(lane)
            return []
        # Of the times alone: the items are not in the processor's cache any more, and to read them takes longer than all of this.
        times_ns = sorted(lane.unsorted_ns)
        size, end_ns = segmentation.first_window(first_ns, times_ns)
        is_later = end_ns > due_ns
        is_examined_often = len(times_ns) > _FEW and (is_later or size < len(times_ns))
        if is_examined_often or (not is_later and len(set(times_ns[:size])) < size):
            self._sort(lane)  # what is of one time is ordered in windows, too
            return []
        if is_later:
            self._wait(lane, first_ns, end_ns)
            return []
        self._unsorted_lanes -= 1
        self._open_windows += 1
        lane.earliest_ns = AFTER_ALL_NS
        items = take_before(lane, end_ns)
        items.sort(key=self._time_of)
        if lane.unsorted:
            rest_ns = times_ns[size:]
            self._wait(lane, rest_ns[0], segmentation.first_window(rest_ns[0], rest_ns)[1])
        window = Window(end_ns, lane, segmentation.start_ns(first_ns), first_ns, times_ns[size - 1], items)
        windows.append(window)
        return [self._insert(window)]

    def _sort(self, lane: Lane[K, T]) -> None:
        """Put what is unsorted into windows. None of them may have to be closed by the mark already."""
        unsorted, windows, end_of = lane.unsorted, lane.windows, self._segmentation.end_ns
        unsorted.sort(key=self._time_of)
        self._unsorted_lanes -= 1
        lane.unsorted, lane.queue, lane.earliest_ns = [], None, AFTER_ALL_NS
        del lane.unsorted_ns[:]
        window = windows[-1] if windows else None
        for item in unsorted:
            time_ns = self._time_of(item)
            if window is None or time_ns >= window.end_ns:
                window = self._new(lane, time_ns, item)
                windows.append(window)
                self._open.add(window)
            elif window.last_ns < time_ns and not window.inserted:
                window.items.append(item)
                window.last_ns = time_ns
                window.end_ns = end_of(window.first_ns, time_ns)
            else:
                changes = self._put(lane, time_ns, item)
                if changes is None:
                    self.held -= 1
                    self.duplicates += 1
                assert not changes, "a window that was closed had waited for these items"
                window = windows[-1]

    def _sorted_lane(self, key: K) -> Lane[K, T] | None:
        lane = self._lanes.get(key)
        if lane is not None and lane.unsorted:
            self._sort(lane)
        return lane

    # Adding.

    def _add_sorted(self, key: K, time_ns: int, item: T) -> Added[K, T] | Late[K, T]:
        """Add an item that is late, that the cap has made too late, or for which there is no room."""
        late = time_ns < self._mark_ns
        lane = self._sorted_lane(key) or Lane(BEFORE_ALL_NS, key)
        if time_ns < lane.released_ns or (late and self._is_released(lane, time_ns)):
            self.late += 1
            return Late(key, time_ns, item, self._mark_ns - time_ns if late else 0)
        changes = self._put(lane, time_ns, item)
        if changes is None:
            self.duplicates += 1
            return _ADDED
        self._lanes[key] = lane
        self.held += 1
        while self.held > self._max_held:
            changes += self._release_oldest()
        return Added(tuple(changes), late) if changes or late else _ADDED

    def _is_released(self, lane: Lane[K, T], time_ns: int) -> bool:
        """Whether the window to which an item of this late time would belong has been released."""
        until_ns = self._mark_ns - self._allowed_ns
        return ends_by(lane.windows, time_ns, until_ns, segmentation=self._segmentation, time_of=self._time_of)

    def _put(self, lane: Lane[K, T], time_ns: int, item: T) -> list[Change[K, T]] | None:
        """Insert the item, and segment anew what it changes. ``None``: it is there already."""
        windows = lane.windows
        retractions: list[Change[K, T]] = []
        index = bisect_right(windows, time_ns, key=FIRST_NS) - 1
        if index >= 0 and time_ns < windows[index].end_ns:
            window = windows[index]
            at = place_of(window.items, time_ns, item, time_of=self._time_of, order_of=self._order)
            if at is None:
                return None
            within = window.first_ns <= time_ns <= window.last_ns
            retractions += self._retract(window)
            looking_back = self._retract_looking_back(lane, index + 1, time_ns, retractions)
            window.items.insert(at, item)
            if within and not retractions:  # the window is open, and its end stays
                return []
            window.last_ns = max(window.last_ns, time_ns)
            window.end_ns = self._segmentation.end_ns(window.first_ns, window.last_ns)
        else:
            index += 1
            looking_back = self._retract_looking_back(lane, index, time_ns, retractions)
            window = self._new(lane, time_ns, item)
            windows.insert(index, window)
        changed = [*self._merge_and_split(lane, index, retractions), *looking_back]
        insertions: list[Change[K, T]] = []
        for window in changed:
            if window.end_ns <= self._mark_ns:
                insertions.append(self._insert(window))
            elif window.queue is None:
                self._open.add(window)
        return retractions + insertions

    def _merge_and_split(self, lane: Lane[K, T], index: int, retractions: list[Change[K, T]]) -> list[Window[K, T]]:
        """Segment anew from the window ``index`` on, as far as something changes; returns the windows that have changed."""
        windows = lane.windows
        window = windows[index]
        changed = [window]
        while index + 1 < len(windows) and (following := windows[index + 1]).first_ns < window.end_ns:
            retractions += self._retract(following)
            join(window, following, self._segmentation, self._time_of)
            if following.items:
                index, window = index + 1, following
                changed.append(window)
            else:
                del windows[index + 1]
                following.queue = None
                self._open_windows -= 1
        return changed

    def _release_oldest(self) -> list[Change[K, T]]:
        """Close the oldest window early, with those that look back to it; or sort first what may be in it."""
        oldest = self._retained.pop(AFTER_ALL_NS) or self._open.pop(AFTER_ALL_NS)
        assert oldest is not None, "items are held, so that a window is there"
        if isinstance(oldest, Lane):
            self._sort(oldest)
            return []  # what is the oldest window is known now; perhaps there is room now, without the duplicates
        window = oldest
        if window.lane.unsorted:  # some of it may belong to the window
            (self._retained if window.inserted else self._open).add(window)
            self._sort(window.lane)
            return []
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


_ADDED: Added[Any, Any] = Added()
_FEW = 100
"""So many unsorted items are examined again for each window, and each time its end has moved. More are sorted, once."""
