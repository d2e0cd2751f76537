"""``SpillingEdge``: an edge that writes what does not fit to a bounded queue on disk. See ``FlowPolicy.spill``.

The order is channel, queue, outbox. Whenever items leave the channel, the first of the queue take their place. So the reader
sees an ordinary channel, and the writer waits only if the queue is full. Control items between the spilled items stay in
memory, each with the number of items that were spilled before it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

from orchestrator_adapter.channels.channel import Channel, EdgeStatistics, Undeliverable
from orchestrator_adapter.channels.control import Control, runs
from orchestrator_adapter.channels.edge import Blocked, DeadLetterDropped, Edge, Side, SpilledLeft, YieldToReader, flush
from orchestrator_adapter.channels.handover_times import NEVER
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.decision import Decision

T = TypeVar("T")

_LOG_EVERY_S = 60.0
_MAX_SIGNALS = 100_000  # control items between spilled items; then the writer waits


class SpilledFile(Protocol):
    """A file with undelivered items."""

    @property
    def path(self) -> Path: ...
    @property
    def items(self) -> int: ...


class SpillUnreadable(Exception):
    """Items of the queue cannot be read back: their file was changed or is damaged, or unpickling them failed.

    Attributes:
        items: How many. They are no longer in the queue.
    """

    def __init__(self, items: int, why: str) -> None:
        super().__init__(why)
        self.items = items


class SpillQueue(Protocol):
    """What a spilling edge needs of its queue; ``storage.spill`` has one."""

    items: int
    bytes: int
    spilled: int
    full_because: str | None

    def open(self) -> Sequence[SpilledFile]:
        """Prepare the queue. Returns the files that earlier runs left. Raises ``OSError``."""

    def append(self, items: Sequence[Any]) -> int:
        """Accept as many of ``items`` as fit, from the front; ``full_because`` says why not all."""

    def take(self, max_items: int) -> list[Any]:
        """Remove some of the first ``max_items`` items, one at least. Raises ``SpillUnreadable``."""

    def close(self) -> tuple[list[Any], Sequence[SpilledFile]]:
        """Close the queue. Returns the items that are in memory, and the files that have the others."""


class SpillingEdge(Edge[T]):
    """An edge with a queue on disk between channel and outbox."""

    __slots__ = ("_controls", "_log", "_logged_at", "_marked", "_queue", "_writer_has_ended")

    def __init__(
        self,
        channel: Channel[T],
        queue: SpillQueue,
        *,
        writer: Side,
        reader: Side,
        clock: Clock,
        dead_letter: DeadLetterDropped,
        sheds: bool,
        log: Callable[..., None],
    ) -> None:
        """``log`` is called with a ``Decision`` and fields."""
        super().__init__(channel, writer=writer, reader=reader, clock=clock, dead_letter=dead_letter, sheds=sheds)
        self._queue = queue
        self._controls: deque[tuple[int, Control]] = deque()  # with the number of items that were spilled before
        self._log = log
        self._logged_at: dict[Decision, float] = {}
        self._writer_has_ended = False
        self._marked: tuple[int, float] | None = None  # an item on disk: its number, and when it was accepted

    @property
    def spilled(self) -> int:
        """As ``Edge.spilled``."""
        return self._queue.items

    @property
    def spilled_signals(self) -> int:
        """As ``Edge.spilled_signals``."""
        return len(self._controls)

    def statistics(self) -> EdgeStatistics:
        """As ``Edge.statistics``."""
        queue, figures = self._queue, super().statistics()
        return replace(
            figures,
            signals=figures.signals + len(self._controls),
            spilled=queue.items,
            spilled_bytes=queue.bytes,
            spilled_total=queue.spilled,
        )

    def open(self) -> None:
        """As ``Edge.open``. Logs what earlier runs have left in the folder; it is not delivered."""
        if left := self._queue.open():
            items = sum(file.items for file in left)
            self._log(
                Decision.SPILL_LEFT, edge=self.channel.edge, items=items, files=len(left), first=str(left[0].path)
            )

    def leave_spilled(self) -> SpilledLeft | None:
        """As ``Edge.leave_spilled``. The files stay."""
        items, files = self._queue.close()
        left = SpilledLeft(tuple(items), tuple((file.path, file.items) for file in files))
        self.channel.dead_lettered += left.count
        self.channel.signals_undelivered += len(self._controls)
        self._controls.clear()
        self._marked = None
        self.pressure.on_disk(self._queue.items)
        return left if left.count else None

    # The reader's side.

    def acknowledge(self, count: int | None = None) -> None:
        """As ``Edge.acknowledge``; then the queue fills the channel."""
        super().acknowledge(count)
        if self._has_backlog:
            self._replay()

    def return_leases(self, failure: str, max_deliveries: int) -> list[Undeliverable[T]]:
        """As ``Edge.return_leases``; then the queue fills the channel."""
        poison = super().return_leases(failure, max_deliveries)
        if self._has_backlog:
            self._replay()
        return poison

    # The writer's side.

    def enqueue(self, items: Sequence[T]) -> None:
        """As ``Edge.enqueue``. The next flush moves the outbox to disk, and lets the reader run."""
        if self._has_backlog:
            self._writer_account.emit(len(items))
            self.outbox.extend(items)
        else:
            super().enqueue(items)

    def enqueue_control(self, control: Control) -> None:
        """As ``Edge.enqueue_control``."""
        if self._has_backlog:
            self._writer_account.signals_out += 1
            self.channel.signals_sent += 1
            self.outbox.append(control)  # type: ignore[arg-type]  # T is the type of the data
            self.outbox_signals += 1
        else:
            super().enqueue_control(control)

    async def send_many(self, items: Sequence[T]) -> None:
        """As ``Edge.send_many``."""
        if self.outbox:
            await flush((self,), self.space_available, self._clock)
        start = 0
        while start < len(items):
            if self._has_backlog:
                await asyncio.sleep(0)  # otherwise a writer that never waits would block the loop
            if not self._has_reader():
                self._writer_account.emit(len(items) - start)
                if self._drop_unread(items[start:]):
                    await asyncio.sleep(0)
                return
            accepted = self._accept(items[start:])
            self._writer_account.emit(accepted)
            start += accepted
            if start < len(items):
                if self._sheds:
                    self._writer_account.emit(len(items) - start)
                    self._drop([Undeliverable(item, ()) for item in items[start:]], dead_letter_because=None)
                    return
                with self.pressure:
                    await self.space_available.wait()

    def pump(self) -> Blocked | None:
        """As ``Edge.pump``: what does not fit into the channel goes to disk."""
        before = self._queue.spilled
        blocked = super().pump()
        return YieldToReader() if blocked is None and self._queue.spilled > before else blocked

    def close(self) -> None:
        """As ``Edge.close``: the end of the stream comes after the items of the queue."""
        self._writer_has_ended = True
        if not self._has_backlog:
            super().close()

    @property
    def _has_backlog(self) -> bool:
        return self._queue.items > 0 or bool(self._controls)

    def _push_outbox(self) -> int:
        """As ``Edge._push_outbox``: into the channel, and what does not fit there into the queue."""
        in_channel = 0 if self._has_backlog else super()._push_outbox()
        in_queue = 0
        for run in runs(self.outbox) if self.outbox_signals else (self.outbox,):
            if isinstance(run, Control):
                if len(self._controls) == _MAX_SIGNALS:
                    self._note(Decision.SPILL_FULL, cause=f"{_MAX_SIGNALS:,} control items wait: the writer waits")
                    break
                self._controls.append((self._queue.spilled, run))
                self.outbox_signals -= 1
                in_queue += 1
            else:
                spilled = self._spill(run)
                in_queue += spilled
                if spilled < len(run):
                    break
        del self.outbox[:in_queue]
        return in_channel + in_queue

    def _accept(self, items: Sequence[T]) -> int:
        """Put as many of ``items``, which are data, as fit into the channel and then into the queue; return how many."""
        accepted = 0
        if not self._has_backlog:
            accepted = self.channel.push(items)
            self.items_available.wake()
        return accepted + self._spill(items[accepted:])

    def _spill(self, items: Sequence[T]) -> int:
        """Put as many of ``items``, which are data, as fit into the queue; return how many."""
        if not items:
            return 0
        begins = not self._queue.items
        accepted = self._queue.append(items)
        self.channel.sent += accepted
        if accepted and self.channel.sent >= self.channel.times.mark_from:
            self.channel.times.mark_from = NEVER
            self._marked = self._queue.spilled - 1 - accepted // 2, self._clock.monotonic()
        if begins and accepted:
            self._note(Decision.SPILLING)
        if accepted < len(items):
            policy = "what does not fit is shed" if self._sheds else "the writer waits"
            self._note(Decision.SPILL_FULL, cause=f"{self._queue.full_because}: {policy}")
        self.pressure.on_disk(self._queue.items)
        return accepted

    def _replay(self) -> None:
        """Move what fits from the queue into the channel."""
        while self._has_backlog:
            to_next_control = self._queue.items
            if self._controls:
                before, control = self._controls[0]
                to_next_control = before - (self._queue.spilled - self._queue.items)
                if to_next_control <= 0:
                    if not self.channel.push_control(control):
                        break
                    self._controls.popleft()
                    self.items_available.wake()
                    continue
            room = self.channel.room
            if room <= 0:
                break
            self._replay_items(min(room, to_next_control))
        self.pressure.on_disk(self._queue.items)
        if self._has_backlog:
            return
        if self._writer_has_ended:
            super().close()
        self.space_available.wake()

    def _replay_items(self, max_items: int) -> None:
        first, times = self._queue.spilled - self._queue.items, self.channel.times
        try:
            items = self._queue.take(max_items)
        except SpillUnreadable as error:
            lost = [Undeliverable(f"<an item that was spilled: {error}>", ())] * error.items
            self.channel.dead_lettered += error.items
            self._dead_letter(f"edge {self.channel.edge!r}: {error}", lost)
            if self._marked is not None and self._marked[0] < first + error.items:
                self._marked = None
                times.forget_mark()
        else:
            mark_from, times.mark_from = times.mark_from, NEVER  # they were not accepted now
            accepted = self.channel.push(items)
            times.mark_from = mark_from
            self.channel.sent -= accepted  # they were counted when they were spilled
            if self._marked is not None and self._marked[0] < first + accepted:
                times.mark(self.channel.end - accepted + self._marked[0] - first, self._marked[1])
                self._marked = None
            self.items_available.wake()

    def _note(self, decision: Decision, **fields: object) -> None:
        """Log it, at most once a minute."""
        now = self._clock.monotonic()
        if now - self._logged_at.get(decision, -_LOG_EVERY_S) >= _LOG_EVERY_S:
            self._logged_at[decision] = now
            self._log(decision, edge=self.channel.edge, items=self._queue.items, bytes=self._queue.bytes, **fields)
