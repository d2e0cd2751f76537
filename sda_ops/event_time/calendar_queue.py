"""A priority queue by time, in slices of time (a calendar queue: R. Brown, CACM 31:1220, 1988). Pure."""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any, Generic, TypeVar


@dataclass(slots=True, eq=False)
class Ending:
    """An entry of a queue, of one queue at a time.

    Attributes:
        end_ns: When it is due. It may become later while it is in a queue.
        queue: The queue that it is in; set by the queue. Setting it to ``None`` removes the entry: the queue skips it then.
        due_ns: The ``end_ns`` by which the queue has sorted it.
    """

    end_ns: int
    queue: CalendarQueue[Any] | None = field(default=None, init=False)
    due_ns: int = field(default=0, init=False)


E = TypeVar("E", bound=Ending)


class CalendarQueue(Generic[E]):
    """Returns its entries in ascending order of ``end_ns``; those with equal ends in the order in which they were added.

    A slice is sorted when its first entry may be due; until then an entry costs an append. A heap of a hundred thousand windows takes
    ten times as long for each.

    Args:
        slice_ns: The length of a slice.
    """

    def __init__(self, *, slice_ns: int) -> None:
        self._slice_ns = slice_ns
        self._slices: dict[int, list[E]] = {}
        # The slices that are examined now. What is due first is at the end.
        self._sorted: dict[int, list[tuple[int, int, E]]] = {}
        self._numbers: list[int] = []  # of all slices, a heap
        self._tickets = count()

    def __len__(self) -> int:
        """How many entries there are, with those that were removed and have not been skipped yet."""
        return sum(map(len, self._slices.values())) + sum(map(len, self._sorted.values()))

    @property
    def next_ns(self) -> int | None:
        """No entry is due before this time; ``None`` if there is no entry."""
        return self._numbers[0] * self._slice_ns if self._numbers else None

    def add(self, entry: E) -> None:
        """Add the entry, or move it here from another place."""
        entry.queue, entry.due_ns = self, entry.end_ns
        number = entry.end_ns // self._slice_ns
        entries = self._slices.get(number)
        if entries is not None:
            entries.append(entry)
        elif (in_order := self._sorted.get(number)) is not None:
            insort(in_order, self._placed(entry))
        else:
            self._slices[number] = [entry]
            heappush(self._numbers, number)

    def pop(self, until_ns: int) -> E | None:
        """Remove and return the entry that is due first; ``None`` if that is after ``until_ns``."""
        while self._numbers and (number := self._numbers[0]) * self._slice_ns <= until_ns:
            in_order = self._sorted.get(number)
            if in_order is None:
                in_order = self._sorted[number] = [
                    self._placed(entry)
                    for entry in self._slices.pop(number)
                    if entry.due_ns // self._slice_ns == number  # it is not in another slice by now
                ]
                in_order.sort()
            while in_order:
                minus_due_ns, _, entry = in_order[-1]
                # Otherwise it is in another place, or was removed.
                is_waiting = entry.queue is self and entry.due_ns == -minus_due_ns
                if is_waiting and entry.due_ns > until_ns:
                    return None
                in_order.pop()
                if is_waiting and entry.due_ns == entry.end_ns:
                    entry.queue = None
                    return entry
                if is_waiting:
                    self.add(entry)  # its end is later now
            del self._sorted[heappop(self._numbers)]
        return None

    def _placed(self, entry: E) -> tuple[int, int, E]:
        """The entry with its place in a list that is in ascending order: what is due first, and was added first, is at the end."""
        return -entry.due_ns, -next(self._tickets), entry
