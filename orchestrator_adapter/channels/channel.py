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

Control items are in the same buffer, in their place in the order. ``controls`` has their sequence numbers, and these
invariants hold, so that an edge without control items pays one truth test a step:

- ``controls`` is ascending, and lists exactly the control items between ``_head`` and the end of the buffer.
- ``take`` returns data only, or one control item alone: a batch ends before a control item.
- A control item takes no room: ``capacity`` bounds the data, ``max_signals`` bounds the control items.
- ``occupancy``, ``sent``, ``received``, ``redelivered`` and ``dead_lettered`` count data only. The cursors, ``ready`` and
  ``leased`` count both, and so does the argument of ``acknowledge``.
- A control item has no failures: it is never a poison pill, and ``withdraw`` returns no control item.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from orchestrator_adapter.channels.control import Control
from orchestrator_adapter.channels.handover_times import HandoverTimes
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.metrics import LatencyFigures

T = TypeVar("T")

_COMPACT_AT = 256  # acknowledged items; a shorter prefix is not worth moving the rest for
_LEAST_MAX_SIGNALS = (
    64  # a small edge has room for so many control items, so that a full one seldom makes its writer wait
)


@dataclass(frozen=True, slots=True)
class EdgeStatistics:
    """One edge at one moment.

    Attributes:
        occupancy: Items in the edge now, leased ones included; never above ``capacity``.
        leased: Those of them that the reader has taken and not acknowledged.
        capacity: The bound, in items.
        sent: Items ever accepted from the writer, spilled ones included.
        received: Items ever delivered to the reader; redeliveries are not counted again.
        redelivered: How often an item was delivered again after its reader failed.
        shed: Items dropped by the edge's flow policy.
        dead_lettered: Items that left this edge for the dead letters (poison, too old, undelivered, panic).
        policy_drops: Items that the flow policy shed, and those that it dead-lettered because they were too old.
        high_water_mark: The highest occupancy so far.
        signals: Control items in the edge now. No other figure counts them.
        signals_sent: Control items ever sent into the edge, those that wait in its outbox included.
        signals_received: Control items that the reader has acknowledged.
        signals_undelivered: Control items that were in the edge or its outbox when its reader or writer ended for good.
        spilled: Items on disk now, behind those in the edge; 0 unless its policy is ``spill``, as the next two.
        spilled_bytes: Bytes on disk now.
        spilled_total: Items ever written to disk.
        pressure_s: For how long the edge has held up its writer, dropped items or had items on disk, seconds so far.
        wait: How long items waited in the edge, from their acceptance until the reader took them.
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
    signals: int = 0
    signals_sent: int = 0
    signals_received: int = 0
    signals_undelivered: int = 0
    spilled: int = 0
    spilled_bytes: int = 0
    spilled_total: int = 0
    pressure_s: float = 0.0
    wait: LatencyFigures = field(default_factory=LatencyFigures)


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
        "controls",
        "dead_lettered",
        "edge",
        "high_water_mark",
        "max_signals",
        "policy_drops",
        "reader_done",
        "reader_gone",
        "reader_ignored",
        "received",
        "redelivered",
        "sent",
        "shed",
        "signals_received",
        "signals_sent",
        "signals_undelivered",
        "times",
    )

    def __init__(self, edge: str, capacity: int, clock: Clock | None = None) -> None:
        self.edge = edge
        self.capacity = capacity
        self.closed = False  # the writer has finished
        self.reader_gone = False  # the reader has ended for good
        self.reader_done = False  # it needs no more items, and no fault made it end
        self.reader_ignored = False  # its restart policy ignores that it has ended
        self.sent = 0
        self.received = 0
        self.redelivered = 0
        self.shed = 0
        self.dead_lettered = 0
        self.policy_drops = 0
        self.high_water_mark = 0
        self.max_signals = max(capacity, _LEAST_MAX_SIGNALS)
        self.signals_sent = 0  # counted by the edge, because control items may wait in its outbox
        self.signals_received = self.signals_undelivered = 0
        self.times = HandoverTimes(clock)
        self._buffer: list[T] = []  # and control items
        self.controls: deque[int] = deque()  # the sequence numbers of the control items that are not acknowledged
        self._head = 0
        self._taken = 0
        self._base = 0  # the sequence number of _buffer[0], counted from the first item ever sent
        self._suspects_end = 0  # items with a lower sequence number are delivered one at a time
        self._failures: dict[int, tuple[str, ...]] = {}  # sequence number -> failed deliveries so far

    # State.

    @property
    def occupancy(self) -> int:
        """Items in the edge, leased ones included."""
        return len(self._buffer) - self._head - len(self.controls)

    @property
    def signals(self) -> int:
        """Control items in the edge, a leased one included."""
        return len(self.controls)

    @property
    def room(self) -> int:
        """How many more items fit."""
        return self.capacity - len(self._buffer) + self._head + len(self.controls)

    @property
    def ready(self) -> int:
        """Items and control items that can be taken now."""
        return len(self._buffer) - self._taken

    @property
    def ready_items(self) -> int:
        """Of these, the items that are data."""
        if not self.controls:
            return self.ready
        return self.ready - len(self.controls) + self.leased_signals

    @property
    def leased(self) -> int:
        """Items and control items taken and not yet acknowledged."""
        return self._taken - self._head

    @property
    def leased_signals(self) -> int:
        """Of these, the control items."""
        return bisect_left(self.controls, self._base + self._taken) if self.controls else 0

    @property
    def leased_items(self) -> int:
        """Of these, the items that are data."""
        return self._taken - self._head - (self.leased_signals if self.controls else 0)

    @property
    def next_control(self) -> Control | None:
        """The control item that ``take`` would return now. It stays in the edge."""
        if self.controls and self._to_next_control() == 0:
            item = self._buffer[self._taken]
            assert isinstance(item, Control)
            return item
        return None

    @property
    def end(self) -> int:
        """The sequence number of the next item that is sent."""
        return self._base + len(self._buffer)

    @property
    def ended(self) -> bool:
        """The writer has finished and everything has been taken."""
        return self.closed and self._taken == len(self._buffer)

    def statistics(self, *, pressure_s: float = 0.0) -> EdgeStatistics:
        """A frozen picture of this edge. Its owner knows the pressure."""
        return EdgeStatistics(
            occupancy=self.occupancy,
            leased=self.leased_items,
            capacity=self.capacity,
            sent=self.sent,
            received=self.received,
            redelivered=self.redelivered,
            shed=self.shed,
            dead_lettered=self.dead_lettered,
            policy_drops=self.policy_drops,
            high_water_mark=self.high_water_mark,
            signals=self.signals,
            signals_sent=self.signals_sent,
            signals_received=self.signals_received,
            signals_undelivered=self.signals_undelivered,
            pressure_s=pressure_s,
            wait=self.times.waits.figures(),
        )

    # The writer's side.

    def push(self, items: Sequence[T]) -> int:
        """Accept as many of ``items``, which are data, as fit, from the front; return how many that was."""
        accepted = len(items)
        occupancy = len(self._buffer) - self._head - len(self.controls) + accepted
        if occupancy > self.capacity:
            accepted -= occupancy - self.capacity
            items, occupancy = items[:accepted], self.capacity
        self._buffer += items
        self.sent += accepted
        if occupancy > self.high_water_mark:  # noqa: PLR1730 - the data path: a call of max costs twice as much
            self.high_water_mark = occupancy
        if self.sent >= self.times.mark_from:
            self.times.accepted(self.end, accepted)
        return accepted

    def leased_controls(self) -> list[Control]:
        """The leased control items, oldest first."""
        leased = [self._buffer[sequence - self._base] for sequence in self.controls][: self.leased_signals]
        return [item for item in leased if isinstance(item, Control)]

    def push_control(self, control: Control) -> bool:
        """Accept ``control`` unless the edge has ``max_signals`` already; return whether it did. It takes no item's room."""
        if len(self.controls) >= self.max_signals:
            return False
        self.controls.append(self._base + len(self._buffer))
        self._buffer.append(control)  # type: ignore[arg-type]  # T is the type of the data; only `take` returns both
        return True

    # The reader's side.

    def take(self, max_items: int) -> list[T]:
        """Lease up to ``max_items`` ready items, in order, or one control item alone (see ``next_control``).

        Suspects (see ``return_leases``) are delivered one at a time.
        """
        if max_items < 1:
            raise ValueError(f"edge {self.edge!r}: expected to take at least one item, got max_items={max_items}")
        taken = self._taken
        sequence = self._base + taken
        if self.controls:
            data = self._to_next_control()
            if data == 0:
                self._taken = taken + 1
                return self._buffer[taken : taken + 1]
            max_items = min(max_items, data)
        if sequence < self._suspects_end:
            max_items = 1
            if sequence in self._failures:
                self.redelivered += 1
                self.received -= 1
        items = self._buffer[taken : taken + max_items]
        count = len(items)
        self._taken = taken + count
        self.received += count
        if count and sequence + count > self.times.attend_at:
            self.times.taken(sequence + count, count, received=self.received, sent=self.sent)
        return items

    def acknowledge(self, count: int) -> int:
        """Drop the first ``count`` leased items and control items: they are processed. Returns how many were control items."""
        if not 0 <= count <= self._taken - self._head:
            raise ValueError(f"edge {self.edge!r}: {count} items acknowledged, but {self.leased} are leased")
        if self._failures:
            first = self._base + self._head
            for sequence in range(first, first + count):
                self._failures.pop(sequence, None)
        self._head += count
        if self.times.holds:
            self.times.acknowledged(self._base + self._head)
        signals = self._drop_controls() if self.controls else 0
        self.signals_received += signals
        self._compact()
        return signals

    def return_leases(self, failure: str, max_deliveries: int) -> list[Undeliverable[T]]:
        """The reader has failed: make its leased items ready again, in order, and return the poison pills among them.

        ``failure`` is added to the history of every leased item. Items with ``max_deliveries`` failures are poison pills
        and leave the edge. The others are suspects: they are delivered one at a time until they are acknowledged, so
        that the item at fault becomes known. A control item is neither.
        """
        self.times.returned(self.leased_items)
        first, last = self._base + self._head, self._base + self._taken
        controls = {self.controls.popleft() for _ in range(self.leased_signals)}
        survivors: list[T] = []
        histories: list[tuple[str, ...]] = []  # of the survivors; empty for a control item
        poison: list[Undeliverable[T]] = []
        for sequence in range(first, last):
            item = self._buffer[sequence - self._base]
            if sequence in controls:
                survivors.append(item)
                histories.append(())
                continue
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
        self._failures.update((first + offset, history) for offset, history in enumerate(histories) if history)
        self.controls.extendleft(first + offset for offset in reversed(range(len(histories))) if not histories[offset])
        self._suspects_end = max(self._suspects_end, last)
        return poison

    def withdraw(self, *, leased_only: bool) -> list[Undeliverable[T]]:
        """Take the leased items (or all items) out of the edge, in order, to be dead-lettered.

        Control items between them leave the edge too, as ``signals_undelivered``.
        """
        self.times.returned(self.leased_items)
        if not leased_only:
            self.times.forget_mark()
        end = self._taken if leased_only else len(self._buffer)
        controls = set(self.controls)
        items = [
            Undeliverable(item, self._failures.pop(self._base + position, ()))
            for position, item in enumerate(self._buffer[self._head : end], self._head)
            if self._base + position not in controls
        ]
        self.dead_lettered += len(items)
        self._head = end
        self._taken = max(self._taken, end)
        self.signals_undelivered += self._drop_controls()
        self._compact()
        return items

    def _to_next_control(self) -> int:
        """How many ready items come before the next control item; the length of the buffer if there is no such one."""
        taken = self._base + self._taken
        return next((sequence - taken for sequence in self.controls if sequence >= taken), len(self._buffer))

    def _drop_controls(self) -> int:
        """Forget the control items before ``_head``. Returns how many these were."""
        head, before = self._base + self._head, len(self.controls)
        while self.controls and self.controls[0] < head:
            self.controls.popleft()
        return before - len(self.controls)

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
