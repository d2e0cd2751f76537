"""``Channel``: one bounded edge as a buffer with cursors, and what happened to every item that was ever sent into it.

Synchronous on purpose: it decides (what fits, what is delivered next, what is redelivered, what is poison) and never waits;
``edge`` adds the waiting. It knows nothing of operators, tasks or graphs, and its items are opaque.

The buffer is one list with two cursors::

        acknowledged │ leased       │ ready
    ─────────────────┼──────────────┼──────────────
                 _head           _taken          len

Taking moves ``_taken`` right, acknowledging moves ``_head`` right, and returning the leases is ``_taken = _head``: the
items are at the head of the channel again, in order, because they never left it. Capacity bounds leased *and* ready items,
so an edge never contains more than its capacity, redelivery included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_COMPACT_AT = 256  # acknowledged items; a shorter prefix is not worth moving the rest for


@dataclass(frozen=True, slots=True)
class EdgeStatistics:
    """One edge at one moment.

    Attributes:
        occupancy: Items in the edge now, leased ones included; never above ``capacity``.
        leased: Those of them that the reader has taken and not acknowledged.
        capacity: The bound, in items.
        sent: Items ever accepted from the writer.
        received: Items ever delivered to the reader; redeliveries are not counted again.
        redelivered: How often an item was delivered again after its reader failed.
        shed: Items dropped by the edge's flow policy.
        dead_lettered: Items that left this edge for the dead letters (poison, too old, undelivered, panic).
        policy_drops: Items that the flow policy shed, and those that it dead-lettered because they were too old.
        high_water_mark: The highest occupancy so far.
    """

    occupancy: int
    leased: int
    capacity: int
    sent: int
    received: int
    redelivered: int
    shed: int
    dead_lettered: int
    policy_drops: int
    high_water_mark: int


@dataclass(frozen=True, slots=True)
class Undeliverable(Generic[T]):
    """An item that was taken out of an edge to be dead-lettered, with its history.

    ``history`` has one sentence for each delivery that was not acknowledged, oldest first.
    """

    item: T
    history: tuple[str, ...]


class Channel(Generic[T]):
    """A bounded first-in-first-out buffer with leases, for one writer and one reader on one event loop."""

    __slots__ = (
        "_base",
        "_buffer",
        "_failures",
        "_head",
        "_suspects_end",
        "_taken",
        "capacity",
        "closed",
        "dead_lettered",
        "edge",
        "high_water_mark",
        "policy_drops",
        "reader_done",
        "reader_gone",
        "received",
        "redelivered",
        "sent",
        "shed",
    )

    def __init__(self, edge: str, capacity: int) -> None:
        self.edge = edge
        self.capacity = capacity
        self.closed = False  # the writer has finished
        self.reader_gone = False  # the reader has ended for good
        self.reader_done = False  # it needs no more items, and no fault made it end
        self.sent = 0
        self.received = 0
        self.redelivered = 0
        self.shed = 0
        self.dead_lettered = 0
        self.policy_drops = 0
        self.high_water_mark = 0
        self._buffer: list[T] = []
        self._head = 0
        self._taken = 0
        self._base = 0  # the sequence number of _buffer[0], counted from the first item ever sent
        self._suspects_end = 0  # items with a lower sequence number are delivered one at a time
        self._failures: dict[int, tuple[str, ...]] = {}  # sequence number -> failed deliveries so far

    # State.

    @property
    def occupancy(self) -> int:
        """Items in the edge, leased ones included."""
        return len(self._buffer) - self._head

    @property
    def room(self) -> int:
        """How many more items fit."""
        return self.capacity - len(self._buffer) + self._head

    @property
    def ready(self) -> int:
        """Items that can be taken now."""
        return len(self._buffer) - self._taken

    @property
    def leased(self) -> int:
        """Items taken and not yet acknowledged."""
        return self._taken - self._head

    @property
    def ended(self) -> bool:
        """The writer has finished and everything has been taken."""
        return self.closed and self._taken == len(self._buffer)

    def statistics(self) -> EdgeStatistics:
        """A frozen picture of this edge."""
        return EdgeStatistics(
            occupancy=self.occupancy,
            leased=self.leased,
            capacity=self.capacity,
            sent=self.sent,
            received=self.received,
            redelivered=self.redelivered,
            shed=self.shed,
            dead_lettered=self.dead_lettered,
            policy_drops=self.policy_drops,
            high_water_mark=self.high_water_mark,
        )

    # The writer's side.

    def push(self, items: Sequence[T]) -> int:
        """Accept as many of ``items`` as fit, from the front; return how many that was."""
        room = self.room
        accepted = len(items)
        if accepted <= room:
            self._buffer += items
        else:
            accepted = room
            self._buffer += items[:room]
        self.sent += accepted
        occupancy = len(self._buffer) - self._head
        self.high_water_mark = max(self.high_water_mark, occupancy)
        return accepted

    def push_one(self, item: T) -> bool:
        """Accept ``item`` if it fits; say whether it did."""
        if self.room <= 0:
            return False
        self.push((item,))
        return True

    # The reader's side.

    def take(self, max_items: int) -> list[T]:
        """Lease up to ``max_items`` ready items, in order. Suspects (see ``return_leases``) are delivered one at a time."""
        if max_items < 1:
            raise ValueError(f"edge {self.edge!r}: expected to take at least one item, got max_items={max_items}")
        taken = self._taken
        sequence = self._base + taken
        if sequence < self._suspects_end:
            max_items = 1
            if sequence in self._failures:
                self.redelivered += 1
                self.received -= 1
        items = self._buffer[taken : taken + max_items]
        self._taken = taken + len(items)
        self.received += len(items)
        return items

    def acknowledge(self, count: int) -> None:
        """Drop the first ``count`` leased items: they are processed."""
        if not 0 <= count <= self.leased:
            raise ValueError(f"edge {self.edge!r}: {count} items acknowledged, but {self.leased} are leased")
        if self._failures:
            first = self._base + self._head
            for sequence in range(first, first + count):
                self._failures.pop(sequence, None)
        self._head += count
        self._compact()

    def return_leases(self, failure: str, max_deliveries: int) -> list[Undeliverable[T]]:
        """The reader has failed: make its leased items ready again, in order, and return the poison pills among them.

        ``failure`` is added to the history of every leased item. Items with ``max_deliveries`` failures are poison pills
        and leave the edge. The others are suspects: they are delivered one at a time until they are acknowledged, so
        that the item at fault becomes known.
        """
        first, last = self._base + self._head, self._base + self._taken
        survivors: list[T] = []
        histories: list[tuple[str, ...]] = []
        poison: list[Undeliverable[T]] = []
        for sequence in range(first, last):
            item = self._buffer[sequence - self._base]
            history = (*self._failures.pop(sequence, ()), failure)
            if len(history) >= max_deliveries:
                poison.append(Undeliverable(item, history))
            else:
                survivors.append(item)
                histories.append(history)
        self.dead_lettered += len(poison)
        if poison:
            # Close the gap towards the head, so that the untaken items keep their sequence numbers.
            self._buffer[self._head : self._taken] = survivors
            self._base += len(poison)
            first += len(poison)
        self._taken = self._head
        self._failures.update((first + offset, history) for offset, history in enumerate(histories))
        self._suspects_end = max(self._suspects_end, last)
        return poison

    def withdraw(self, *, leased_only: bool) -> list[Undeliverable[T]]:
        """Take the leased items (or all items) out of the edge, in order, to be dead-lettered."""
        end = self._taken if leased_only else len(self._buffer)
        items = [
            Undeliverable(item, self._failures.pop(self._base + position, ()))
            for position, item in enumerate(self._buffer[self._head : end], self._head)
        ]
        self.dead_lettered += len(items)
        self._head = end
        self._taken = max(self._taken, end)
        self._compact()
        return items

    def _compact(self) -> None:
        head = self._head
        if head == len(self._buffer):
            self._buffer.clear()
        elif head >= _COMPACT_AT and head * 2 >= len(self._buffer):
            del self._buffer[:head]
        else:
            return
        self._base += head
        self._taken -= head
        self._head = 0
