"""The windows of one key, and how their items are ordered, joined and looked up. Pure."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any, Generic, TypeAlias, TypeVar

from sda_ops.event_time.calendar_queue import Ending
from sda_ops.event_time.segmentation import Segmentation

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

Identity: TypeAlias = tuple[int, Any, int, Any, int]
"""What defines the content of a window: its first and last item, each by time and order, and how many there are."""

BEFORE_ALL_NS = -(1 << 200)
AFTER_ALL_NS = 1 << 200
FIRST_NS = attrgetter("first_ns")
EARLIEST_UNSORTED_NS, LATEST_UNSORTED_NS = -(1 << 63), (1 << 63) - 1
"""Earlier and later items are put into windows at once: the array of times has no room for them."""


@dataclass(slots=True, eq=False)
class Window(Ending, Generic[K, T]):
    """It waits to be closed, or to be released."""

    lane: Lane[K, T]
    start_ns: int
    first_ns: int
    last_ns: int
    items: list[T]
    inserted: bool = False


@dataclass(slots=True, eq=False)
class Lane(Ending, Generic[K, T]):
    """The windows of one key, in ascending order, not overlapping; no item before ``released_ns`` is accepted.

    ``unsorted`` are items that are in no window yet, with their times; the lane waits until their first window may close,
    ``earliest_ns`` is their least time. Without items and windows it waits to be forgotten. ``retracted`` counts contents that
    were retracted.
    """

    key: K
    released_ns: int = BEFORE_ALL_NS
    windows: list[Window[K, T]] = field(default_factory=list)
    unsorted: list[T] = field(default_factory=list)
    unsorted_ns: array[int] = field(default_factory=partial(array, "q"))
    earliest_ns: int = AFTER_ALL_NS
    retracted: dict[Identity, int] = field(default_factory=dict)


def take_before(lane: Lane[K, T], end_ns: int) -> list[T]:
    """Take the unsorted items before this time, in any order. At most a few should stay: each removal moves those behind it."""
    unsorted, unsorted_ns = lane.unsorted, lane.unsorted_ns
    places = [place for place, time_ns in enumerate(unsorted_ns) if time_ns < end_ns]
    places.reverse()
    for place in places:
        del unsorted_ns[place]
    return [unsorted.pop(place) for place in places]


def place_of(
    items: Sequence[T], time_ns: int, item: T, *, time_of: Callable[[T], int], order_of: Callable[[T], Any]
) -> int | None:
    """Where the item belongs among items in ascending order; ``None``: it is there already."""
    first = bisect_left(items, time_ns, key=time_of)
    if first == len(items) or time_of(items[first]) != time_ns:
        return first
    last, order = bisect_right(items, time_ns, first, key=time_of), order_of(item)
    at = bisect_left(items, order, first, last, key=order_of)
    return None if at < last and order_of(items[at]) == order else at


def join(
    window: Window[K, T], following: Window[K, T], segmentation: Segmentation, time_of: Callable[[T], int]
) -> None:
    """Move the items of the following window that belong to this one; the rest of it begins later."""
    joining = 0
    for time_ns in map(time_of, following.items):
        if time_ns >= window.end_ns:
            break
        window.last_ns, window.end_ns = time_ns, segmentation.end_ns(window.first_ns, time_ns)
        joining += 1
    window.items += following.items[:joining]
    del following.items[:joining]
    if following.items:
        following.first_ns = time_of(following.items[0])
        following.start_ns = segmentation.start_ns(following.first_ns)
        following.end_ns = segmentation.end_ns(following.first_ns, following.last_ns)


def ends_by(
    windows: Sequence[Window[K, T]],
    time_ns: int,
    until_ns: int,
    *,
    segmentation: Segmentation,
    time_of: Callable[[T], int],
) -> bool:
    """Whether the window to which an item of this time would belong ends at ``until_ns`` or before."""
    index = bisect_right(windows, time_ns, key=FIRST_NS) - 1
    if index >= 0 and time_ns < windows[index].end_ns:
        return windows[index].end_ns <= until_ns
    end_ns = segmentation.end_ns(time_ns, time_ns)
    for window in windows[index + 1 :]:
        for following_ns in map(time_of, window.items):
            if end_ns > until_ns or following_ns >= end_ns:
                return end_ns <= until_ns
            end_ns = segmentation.end_ns(time_ns, following_ns)
    return end_ns <= until_ns


def items_back_to_the_start(window: Window[K, T]) -> tuple[T, ...]:
    """Its items, and those of earlier windows of its key that it looks back to."""
    windows = window.lane.windows
    first = bisect_left(windows, window.start_ns, key=FIRST_NS)
    last = bisect_left(windows, window.end_ns, lo=first, key=FIRST_NS)
    return tuple(item for each in windows[first:last] for item in each.items)
