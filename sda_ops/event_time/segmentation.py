"""How the items of one key, in event order, are cut into windows.

A segmentation is a pure rule. Windows are half-open intervals ``[start, end)`` in UTC nanoseconds. A window begins with its first
item; an item belongs to it if its event time is before the end, and the end depends on the first and the last item only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import TypeAlias

from orchestrator_adapter import check_fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Tumbling:
    """Windows of equal length, one after the other: ``[n · size, (n + 1) · size)``, for every integer n.

    Times before the epoch belong to windows with a negative n.

    Attributes:
        size_ns: Their length.
    """

    size_ns: int

    def __post_init__(self) -> None:
        check_fields("Tumbling", ("size_ns", self.size_ns, self.size_ns > 0, "> 0"))

    @property
    def lookback_ns(self) -> int:
        """A window has no items of earlier windows."""
        return 0

    @property
    def reach_ns(self) -> int:
        """An item before the end of a window belongs to this window or to an earlier one."""
        return 0

    def start_ns(self, first_ns: int) -> int:
        """The start of the window with this first item."""
        return first_ns - first_ns % self.size_ns

    def end_ns(self, first_ns: int, last_ns: int) -> int:  # noqa: ARG002 # the other segmentations need it
        """The end of the window with these first and last items."""
        return self.start_ns(first_ns) + self.size_ns

    def first_window(self, first_ns: int, times_ns: Iterable[int]) -> tuple[int, int]:
        """The window of the first of these ascending times: how many belong to it, and its end."""
        end_ns = self.end_ns(first_ns, first_ns)
        return sum(1 for _ in takewhile(lambda time_ns: time_ns < end_ns, times_ns)), end_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Sliding:
    """One window for each event time e: the items in ``[e - width, e]``, both ends included, which is ``[e - width, e + 1)``.

    Items with the same event time have one window.

    Attributes:
        width_ns: How far a window looks back.
    """

    width_ns: int

    def __post_init__(self) -> None:
        check_fields("Sliding", ("width_ns", self.width_ns, self.width_ns >= 0, ">= 0"))

    @property
    def lookback_ns(self) -> int:
        """A window has the items of the windows before it, as far back as this."""
        return self.width_ns

    @property
    def reach_ns(self) -> int:
        """An item before the end of a window belongs to this window or to an earlier one."""
        return 0

    def start_ns(self, first_ns: int) -> int:
        """The start of the window of this event time."""
        return first_ns - self.width_ns

    def end_ns(self, first_ns: int, last_ns: int) -> int:  # noqa: ARG002 # the other segmentations need it
        """The end of the window of this event time."""
        return first_ns + 1

    def first_window(self, first_ns: int, times_ns: Iterable[int]) -> tuple[int, int]:
        """The window of the first of these ascending times: how many belong to it and to no earlier one, and its end."""
        end_ns = self.end_ns(first_ns, first_ns)
        return sum(1 for _ in takewhile(lambda time_ns: time_ns < end_ns, times_ns)), end_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """Items that follow each other closely. Greedy, from the first item on.

    An item ``gap_ns`` or more after the last one begins a new window, and so does an item ``longest_ns`` or more after the first
    one.

    Attributes:
        gap_ns: The least distance of two windows' items.
        longest_ns: The longest window; at least ``gap_ns``.
    """

    gap_ns: int
    longest_ns: int

    def __post_init__(self) -> None:
        check_fields(
            "Session",
            ("gap_ns", self.gap_ns, self.gap_ns > 0, "> 0"),
            ("longest_ns", self.longest_ns, self.longest_ns >= self.gap_ns, f">= gap_ns = {self.gap_ns}"),
        )

    @property
    def lookback_ns(self) -> int:
        """A window has no items of earlier windows."""
        return 0

    @property
    def reach_ns(self) -> int:
        """An item before the end of a window could begin one that ends so much later."""
        return self.longest_ns

    def start_ns(self, first_ns: int) -> int:
        """The time of its first item."""
        return first_ns

    def end_ns(self, first_ns: int, last_ns: int) -> int:
        """The earliest time at which an item would begin a new window."""
        end_ns, latest_ns = last_ns + self.gap_ns, first_ns + self.longest_ns
        return end_ns if end_ns < latest_ns else latest_ns  # noqa: FURB136 # ``min`` takes twice as long, for every item

    def first_window(self, first_ns: int, times_ns: Iterable[int]) -> tuple[int, int]:
        """The window of the first of these ascending times: how many belong to it, and its end."""
        end_ns, gap_ns, latest_ns, size = first_ns + self.gap_ns, self.gap_ns, first_ns + self.longest_ns, 0
        for time_ns in times_ns:
            if time_ns >= end_ns or time_ns >= latest_ns:
                break
            end_ns = time_ns + gap_ns
            size += 1
        return size, min(end_ns, latest_ns)


Segmentation: TypeAlias = Tumbling | Sliding | Session
