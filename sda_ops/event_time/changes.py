"""What windows report: closed windows, retracted ones, and what became of an item."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeAlias, TypeVar

import msgspec

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")


class Insert(msgspec.Struct, Generic[K, T], frozen=True, gc=False):
    """A window has closed with these items.

    Attributes:
        key: Whose items they are.
        start_ns: The first nanosecond of the window.
        end_ns: The first nanosecond after it.
        items: In ascending order of (event time, order).
        edition: How many times a window with exactly these items was inserted and retracted before. With it, no insert has the
            identity of a retracted one.
    """

    key: K
    start_ns: int
    end_ns: int
    items: tuple[T, ...]
    edition: int = 0


class Retract(msgspec.Struct, Generic[K, T], frozen=True, gc=False):
    """The insert with the same fields is no longer true."""

    key: K
    start_ns: int
    end_ns: int
    items: tuple[T, ...]
    edition: int = 0


Change: TypeAlias = Insert[K, T] | Retract[K, T]


class Added(msgspec.Struct, Generic[K, T], frozen=True, gc=False):
    """The item is held, or the same item, by event time and order, was there already.

    Attributes:
        changes: What this changes in closed windows: first the retractions, then the insertions, each in ascending order of
            time. Then the insertions of windows that the cap has closed early.
        late: Whether its event time is before the watermark.
    """

    changes: tuple[Change[K, T], ...] = ()
    late: bool = False


class Late(msgspec.Struct, Generic[K, T], frozen=True, gc=False):
    """The item is in no window, because its window was released. Nothing has changed but the count.

    Attributes:
        key: Whose item it is.
        time_ns: Its event time.
        item: The item.
        late_ns: How long its event time is before the watermark. 0 or less: the cap has closed its window early.
    """

    key: K
    time_ns: int
    item: T
    late_ns: int
