"""``TimedEdge``: an edge that bounds the age of each item that waits at it. See ``FlowPolicy.timed``.

Only these edges store times, so the others pay nothing. Each item has a deadline: the moment at which it is too old. It is
computed once, when the item arrives, so that a later step of the wall clock does not change it. A control item is never too
old: its deadline is infinity.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from typing import Any, TypeVar

from orchestrator_adapter.channels.channel import Channel, Undeliverable
from orchestrator_adapter.channels.control import Control
from orchestrator_adapter.channels.edge import AwaitSpace, Blocked, DeadLetterDropped, Edge, RetryAt, Side, flush
from orchestrator_adapter.channels.flow_policy import Timed
from orchestrator_adapter.primitives.clock import Clock

T = TypeVar("T")


class TimedChannel(Channel[T]):
    """A channel that has a deadline for each of its items, parallel to the buffer."""

    __slots__ = ("_clock", "_deadlines", "_earliest", "_ingested_ns", "_limit_s")

    def __init__(self, edge: str, capacity: int, timed: Timed, clock: Clock) -> None:
        super().__init__(edge, capacity, clock)
        self._clock = clock
        self._limit_s = timed.deadline.total_seconds()
        self._ingested_ns: Callable[[T], int] | None = None
        if callable(timed.since):
            self._ingested_ns = timed.since
        elif timed.since == "ingest":
            self._ingested_ns = _ingest_timestamp
        self._deadlines: list[float] = []
        self._earliest = inf  # no deadline of a ready item is earlier

    def deadlines(self, items: Sequence[T]) -> list[float]:
        """For items that arrive now: when each is too old, monotonic seconds. An ingest in the future counts as now."""
        deadline = self._clock.monotonic() + self._limit_s
        if self._ingested_ns is None:
            return [deadline] * len(items)
        now_ns, ingested_ns = self._clock.now_ns(), self._ingested_ns
        return [deadline - max(0, now_ns - ingested_ns(item)) / 1e9 for item in items]

    def push(self, items: Sequence[T], deadlines: Sequence[float] | None = None) -> int:
        """As ``Channel.push``. ``deadlines`` are those of ``items``; by default the items arrive now."""
        if deadlines is None:
            deadlines = self.deadlines(items)
        accepted = super().push(items)
        self._deadlines += deadlines[:accepted]
        self._earliest = min(self._earliest, min(deadlines[:accepted], default=inf))
        return accepted

    def push_control(self, control: Control) -> bool:
        """As ``Channel.push_control``."""
        accepted = super().push_control(control)
        if accepted:
            self._deadlines.append(inf)
        return accepted

    def expire(self) -> list[Undeliverable[T]]:
        """Remove the ready items that are too old, in order. Leased items never expire."""
        now = self._clock.monotonic()
        if self._earliest > now:
            return []
        ready = range(self._taken, len(self._buffer))
        late = [position for position in ready if self._deadlines[position] <= now]
        expired = self._remove(late)
        self._earliest = self.next_deadline
        return expired

    @property
    def next_deadline(self) -> float:
        """When the next ready item is too old, monotonic seconds; infinity without one."""
        if self._ingested_ns is None and not self.controls:  # then items are in the order of their deadlines
            return self._deadlines[self._taken] if self.ready else inf
        return min(self._deadlines[self._taken :], default=inf)

    def return_leases(self, failure: str, max_deliveries: int) -> list[Undeliverable[T]]:
        """As ``Channel.return_leases``. The returned items keep their deadlines."""
        first = self._base + self._head
        self._deadlines[self._head : self._taken] = [
            deadline
            for sequence, deadline in enumerate(self._deadlines[self._head : self._taken], first)
            if len(self._failures.get(sequence, ())) + 1 < max_deliveries or sequence in self.controls
        ]
        poison = super().return_leases(failure, max_deliveries)
        self._earliest = self.next_deadline
        return poison

    def _remove(self, positions: Sequence[int]) -> list[Undeliverable[T]]:
        """Take the ready items at these ascending positions out. Those behind them move up, with their failures."""
        if not positions:
            return []
        removed, base = set(positions), self._base
        self.times.removed([base + at for at in positions])
        expired = [Undeliverable(self._buffer[at], self._failures.pop(base + at, ())) for at in positions]
        kept = [at for at in range(positions[0], len(self._buffer)) if at not in removed]
        failures = {
            base + new: history
            for new, old in enumerate(kept, positions[0])
            if (history := self._failures.pop(base + old, None)) is not None
        }
        self._failures |= failures
        if self.controls:
            moved = {base + old: base + new for new, old in enumerate(kept, positions[0])}
            self.controls = deque(moved.get(sequence, sequence) for sequence in self.controls)
        self._suspects_end -= sum(base + at < self._suspects_end for at in positions)
        self._buffer[positions[0] :] = [self._buffer[at] for at in kept]
        self._deadlines[positions[0] :] = [self._deadlines[at] for at in kept]
        return expired

    def _compact(self) -> None:
        super()._compact()
        del self._deadlines[: len(self._deadlines) - len(self._buffer)]


class TimedEdge(Edge[T]):
    """An edge whose items leave it when they are too old: late items are looked for where the reader takes, and when it is full."""

    __slots__ = ("_outbox_deadlines", "_timed")

    channel: TimedChannel[T]

    def __init__(
        self,
        channel: TimedChannel[T],
        timed: Timed,
        *,
        writer: Side,
        reader: Side,
        clock: Clock,
        dead_letter: DeadLetterDropped,
    ) -> None:
        super().__init__(channel, writer=writer, reader=reader, clock=clock, dead_letter=dead_letter)
        self._timed = timed
        self._outbox_deadlines: list[float] = []

    # The reader's side. ``Receiver`` acknowledges before each take.

    def acknowledge(self, count: int | None = None) -> None:
        """As ``Edge.acknowledge``; then ready items that are too old leave the edge."""
        super().acknowledge(count)
        self._expire_ready()

    async def wait_for_items(self) -> bool:
        """As ``Edge.wait_for_items``. The ready item is not too old."""
        with self.reading:
            while True:
                self._expire_ready()
                if self.channel.ready:
                    return True
                if self.channel.closed:
                    return False
                await self.items_available.wait()

    # The writer's side.

    def enqueue(self, items: Sequence[T]) -> None:
        """As ``Edge.enqueue``."""
        deadlines = self.channel.deadlines(items)
        self._writer_account.emit(len(items))
        self._accept(items, deadlines)

    def enqueue_control(self, control: Control) -> None:
        """As ``Edge.enqueue_control``."""
        super().enqueue_control(control)
        if len(self.outbox) > len(self._outbox_deadlines):
            self._outbox_deadlines.append(inf)

    async def send_many(self, items: Sequence[T]) -> None:
        """As ``Edge.send_many``. The age of these items counts from the call."""
        waiting, deadlines = list(items), self.channel.deadlines(items)
        if self.outbox:
            await flush((self,), self.space_available, self._clock)
        while waiting:
            if not self._has_reader():
                self._writer_account.emit(len(waiting))
                if self._drop_unread(waiting):
                    await asyncio.sleep(0)
                return
            self._expire_ready()
            if late := _take_late(waiting, deadlines, self._clock.monotonic()):
                self._writer_account.emit(len(late))
                self._drop_late([Undeliverable(item, ()) for item in late])
            elif room := self.channel.room:
                self._writer_account.emit(len(waiting[:room]))
                self._accept(waiting[:room], deadlines[:room])
                del waiting[:room], deadlines[:room]
            else:
                with self.pressure:
                    await self.space_available.wait_until(self._next_deadline(deadlines), self._clock)

    def pump(self) -> Blocked | None:
        """As ``Edge.pump``, after the items that are too old have left channel and outbox."""
        if not self.outbox:
            return None
        if not self._has_reader():
            return self._drop_unread(self.withdraw_outbox())
        self._expire_ready()
        late = _take_late(self.outbox, self._outbox_deadlines, self._clock.monotonic())
        self._drop_late([Undeliverable(item, ()) for item in late])
        self._push_outbox()
        if not self.outbox:
            return None
        deadline = self._next_deadline(self._outbox_deadlines)
        return RetryAt(deadline) if deadline < inf else AwaitSpace()

    def withdraw_outbox(self) -> list[T]:
        """As ``Edge.withdraw_outbox``."""
        self._outbox_deadlines.clear()
        return super().withdraw_outbox()

    def _push_outbox(self) -> int:
        accepted = super()._push_outbox()
        del self._outbox_deadlines[:accepted]
        return accepted

    def _push_from_outbox(self, at: int, items: Sequence[T]) -> int:
        return self.channel.push(items, self._outbox_deadlines[at : at + len(items)])

    def _accept(self, items: Sequence[T], deadlines: Sequence[float]) -> None:
        accepted = 0
        if not self.outbox and not self.channel.reader_gone and items:
            if self.channel.room < len(items):
                self._expire_ready()
            accepted = self.channel.push(items, deadlines)
            self.items_available.wake()
        self.outbox.extend(items[accepted:])
        self._outbox_deadlines.extend(deadlines[accepted:])

    def _next_deadline(self, deadlines: Sequence[float]) -> float:
        return min(self.channel.next_deadline, *deadlines)

    def _expire_ready(self) -> None:
        if late := self.channel.expire():
            self._drop_late(late)
            self.space_available.wake()

    def _drop_late(self, items: Sequence[Undeliverable[T]]) -> None:
        if not items:
            return
        why = None
        if self._timed.dead_letter:
            of = "" if self._timed.since == "edge" else " of its ingest"
            why = f"edge {self.channel.edge!r}: not delivered within {self._timed.deadline.total_seconds():g} s{of}"
        self._drop(items, dead_letter_because=why)


def _take_late(items: list[Any], deadlines: list[float], now: float) -> list[Any]:
    """Remove the items that are too old from both lists, and return them."""
    late = [item for item, deadline in zip(items, deadlines, strict=True) if deadline <= now]
    if late:
        kept = [(item, deadline) for item, deadline in zip(items, deadlines, strict=True) if deadline > now]
        items[:], deadlines[:] = [item for item, _ in kept], [deadline for _, deadline in kept]
    return late


def _ingest_timestamp(item: Any) -> int:
    try:
        ingested_ns: int = item.ingest_timestamp
    except AttributeError:
        raise TypeError(
            "FlowPolicy.timed(since='ingest'): expected items with an ingest_timestamp (UTC nanoseconds), got"
            f" {type(item).__name__}; or pass a function as since"
        ) from None
    return ingested_ns
