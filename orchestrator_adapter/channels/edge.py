"""``Edge``: one edge of a running graph, as the runtime holds it.

Puts the waiting and the accounting around a ``Channel``, which decides. Operators see an edge only through ``Receiver`` and
``Sender``. Knows nothing of operators beyond their accounts.

A control item waits as data does, but on its own: behind everything that was offered before it, and only while the channel
has as many control items as it may. A full shed or timed edge drops the data in front of it, and never the control item. So
on an edge whose reader does not read at all, the writer waits once ``Channel.max_signals`` control items are in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from orchestrator_adapter.channels.channel import Channel, EdgeStatistics, Undeliverable
from orchestrator_adapter.channels.conflict_detector import ConflictDetector
from orchestrator_adapter.channels.control import Control, runs
from orchestrator_adapter.channels.ledger import OperatorAccount
from orchestrator_adapter.channels.pressure import Pressure
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.errors import ReaderDone, ReaderGone
from orchestrator_adapter.primitives.stopwatch import Stopwatch
from orchestrator_adapter.primitives.wakeup import Wakeup

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class Side:
    """All edges of one operator in one direction, and what they share.

    Attributes:
        account: The operator's account.
        waiting: For how long a task of the operator has been suspended here: for input, or for space in its outputs.
        wakeup: Wakes the operator: for its inputs when items are available, for its outputs when space is.
        edges: In the order in which they were connected.
        outputs: For the inputs of an operator: its outputs, to which its control items are forwarded.
    """

    account: OperatorAccount
    waiting: Stopwatch
    wakeup: Wakeup = field(init=False)
    edges: list[Edge[Any]] = field(default_factory=list)
    outputs: Side | None = None

    def __post_init__(self) -> None:
        self.wakeup = Wakeup(self.waiting)


@dataclass(frozen=True, slots=True)
class YieldToReader:
    """Try again after one turn of the event loop. A writer that never waits would block the loop."""


@dataclass(frozen=True, slots=True)
class AwaitSpace:
    """Try again when the reader has made space."""


@dataclass(frozen=True, slots=True)
class RetryAt:
    """Try again when the reader has made space, or at this monotonic time."""

    at: float


Blocked: TypeAlias = YieldToReader | AwaitSpace | RetryAt
"""Why ``Edge.pump`` could not empty the outbox, and when to try again."""


DeadLetterDropped: TypeAlias = Callable[[str, Sequence[Undeliverable[Any]]], None]
"""Writes items that an edge gave up to the dead letters, with the reason, and charges them to the writer's account."""


@dataclass(frozen=True, slots=True)
class SpilledLeft:
    """Spilled items that their reader did not take: ``items`` in memory, then those in ``files``, with their numbers."""

    items: tuple[Any, ...]
    files: tuple[tuple[Path, int], ...]

    @property
    def count(self) -> int:
        """All items."""
        return len(self.items) + sum(count for _, count in self.files)


class Edge(Generic[T]):
    """A channel with its writer and its reader, for backpressure and shed; ``timed_edge``, ``spilling_edge`` are for the others.

    The *outbox* holds items that the writer has offered and that did not fit. It outlives the writer's instance.

    Attributes:
        channel: The buffer with its leases.
        writer: The outputs of the operator that writes.
        reader: The inputs of the operator that reads.
        items_available: Wakes the reader.
        space_available: Wakes the writer.
        reading: Rejects a second concurrent reader.
        writing: Rejects a second concurrent writer.
        pressure: For how long the edge has had more items than its reader takes.
        outbox: Items and control items that wait for space, oldest first.
        outbox_signals: How many of these are control items.
    """

    __slots__ = (
        "_clock",
        "_dead_letter",
        "_reader_account",
        "_sheds",
        "_writer_account",
        "channel",
        "items_available",
        "outbox",
        "outbox_signals",
        "pressure",
        "reader",
        "reading",
        "space_available",
        "writer",
        "writing",
    )

    def __init__(
        self,
        channel: Channel[T],
        *,
        writer: Side,
        reader: Side,
        clock: Clock,
        dead_letter: DeadLetterDropped,
        sheds: bool = False,
    ) -> None:
        self.channel = channel
        self.writer = writer
        self.reader = reader
        self.items_available = reader.wakeup
        self.space_available = writer.wakeup
        self.reading = ConflictDetector(f"the reading end of edge {channel.edge!r}")
        self.writing = ConflictDetector(f"the writing end of edge {channel.edge!r}")
        self.outbox: list[T] = []
        self.outbox_signals = 0
        self.pressure = Pressure(clock)
        self._writer_account = writer.account
        self._reader_account = reader.account
        self._clock = clock
        self._dead_letter = dead_letter
        self._sheds = sheds
        writer.edges.append(self)
        reader.edges.append(self)

    @property
    def outbox_items(self) -> int:
        """Items that wait in the outbox, without the control items."""
        return len(self.outbox) - self.outbox_signals

    @property
    def spilled(self) -> int:
        """Items on disk, behind those in the channel and before those in the outbox."""
        return 0

    @property
    def spilled_signals(self) -> int:
        """Control items between them."""
        return 0

    def statistics(self) -> EdgeStatistics:
        """A frozen picture of this edge. Measures the next wait and the next batch, so that the next picture has them."""
        self.channel.times.measure_next()
        return self.channel.statistics(pressure_s=self.pressure.reading_s)

    def open(self) -> None:
        """Open what the edge needs for a run. Raises ``OSError``."""

    def leave_spilled(self) -> SpilledLeft | None:
        """The reader has ended for good: the spilled items leave the edge."""
        return None

    # The reader's side.

    def acknowledge(self, count: int | None = None) -> None:
        """Drop the oldest ``count`` leased items and control items (default: all): they are never delivered again."""
        channel = self.channel
        if count is None:
            count = channel.leased
        if count:
            signals = channel.acknowledge(count)
            inputs = self.reader.edges
            still_leased = (
                channel.leased_items if len(inputs) == 1 else sum(edge.channel.leased_items for edge in inputs)
            )
            self._reader_account.signals_in += signals
            if count > signals or not still_leased:
                self._reader_account.acknowledge(count - signals, still_leased=still_leased)
            self.space_available.wake()
            if self.pressure.drops:
                self.pressure.acknowledged()

    def acknowledge_and_forward(self) -> bool:
        """Forward the leased control items, and acknowledge all leases, in one step. Returns whether it forwarded any."""
        controls = self.channel.leased_controls()
        for control in controls:
            self._forward(control)
        self.acknowledge()
        return bool(controls)

    def forward_next(self) -> None:
        """Take, forward and acknowledge ``channel.next_control`` in one step. Nothing may be leased."""
        self.channel.take(1)
        self.acknowledge_and_forward()

    def _forward(self, control: Control) -> None:
        if self.reader.outputs is not None:
            for edge in self.reader.outputs.edges:
                edge.enqueue_control(control)

    async def flush_outputs(self) -> None:
        """Suspend until the reader's outputs have accepted what was forwarded to them."""
        outputs = self.reader.outputs
        if outputs is not None and any(edge.outbox for edge in outputs.edges):
            await flush(outputs.edges, outputs.wakeup, self._clock)

    async def wait_for_items(self) -> bool:
        """Suspend until an item is ready. Returns false at the end of the stream."""
        channel = self.channel
        with self.reading:
            while not channel.ready:
                if channel.closed:
                    return False
                await self.items_available.wait()
            return True

    def return_leases(self, failure: str, max_deliveries: int) -> list[Undeliverable[T]]:
        """The reader has failed; see ``Channel.return_leases``. Wakes the writer if poison pills have left the edge."""
        poison = self.channel.return_leases(failure, max_deliveries)
        if poison:
            self.space_available.wake()
        return poison

    def finish(self, *, done: bool = False, ignored: bool = False) -> None:
        """The reader has ended for good: from now on the writer's calls raise ``ReaderGone``.

        If the reader is ``done`` (it needs no more items), they raise ``ReaderDone`` once all readers of the writer are
        done. Until then items for this edge are dead-lettered, so that the other branches go on. If it is ``ignored``
        (its restart policy ignores its end), the writer's calls raise nothing, and the items are shed.
        """
        self.channel.reader_gone = True
        self.channel.reader_done = done
        self.channel.reader_ignored = ignored
        self.space_available.wake()
        self.pressure.acknowledged()

    # The writer's side.

    def enqueue(self, items: Sequence[T]) -> None:
        """Accept ``items`` without suspending: what does not fit goes to the outbox."""
        self._writer_account.emit(len(items))
        if self.outbox or self.channel.reader_gone:
            self.outbox.extend(items)  # the next flush moves them, or raises ReaderGone
        elif items:
            accepted = self.channel.push(items)
            self.items_available.wake()
            if accepted < len(items):
                self.outbox.extend(items[accepted:])

    def enqueue_control(self, control: Control) -> None:
        """Accept ``control`` without suspending, behind everything that was accepted before it."""
        self._writer_account.signals_out += 1
        self.channel.signals_sent += 1
        if self.outbox or self.channel.reader_gone or not self.channel.push_control(control):
            self.outbox.append(control)  # type: ignore[arg-type]  # T is the type of the data
            self.outbox_signals += 1
        else:
            self.items_available.wake()

    async def send_many(self, items: Sequence[T]) -> None:
        """See ``Sender.send_many``."""
        if self.outbox:
            await flush((self,), self.space_available, self._clock)
        if self._sheds:
            self.enqueue(items)
            await flush((self,), self.space_available, self._clock)
            return
        start = 0
        while start < len(items):
            if not self._has_reader():
                self._writer_account.emit(len(items) - start)
                if self._drop_unread(items[start:]):
                    await asyncio.sleep(0)
                return
            if room := self.channel.room:
                self.enqueue(items[start : start + room])
                start += room
            else:
                with self.pressure:
                    await self.space_available.wait()

    def pump(self) -> Blocked | None:
        """Move what fits from the outbox into the channel. ``None`` if the outbox is then empty."""
        if not self.outbox:
            return None
        if not self._has_reader():
            return self._drop_unread(self.withdraw_outbox())
        self._push_outbox()
        if not self.outbox:
            return None
        if self._sheds and self.outbox_items:
            self._shed_outbox()
            return AwaitSpace() if self.outbox else YieldToReader()
        return AwaitSpace()

    def close(self) -> None:
        """The writer has ended. The reader receives the items that are left, then the end of the stream."""
        self.channel.closed = True
        self.items_available.wake()

    def withdraw_outbox(self) -> list[T]:
        """Empty the outbox. Returns its items; its control items are counted as undelivered."""
        self.channel.signals_undelivered += self.outbox_signals
        items = self.outbox if not self.outbox_signals else [it for it in self.outbox if not isinstance(it, Control)]
        self.outbox, self.outbox_signals = [], 0
        return items

    def _push_outbox(self) -> int:
        """Move what fits from the outbox into the channel, in order. Returns how many items and control items that was."""
        accepted = 0
        for run in runs(self.outbox) if self.outbox_signals else (self.outbox,):
            if isinstance(run, Control):
                pushed, of = int(self.channel.push_control(run)), 1
                self.outbox_signals -= pushed
            else:
                pushed, of = self._push_from_outbox(accepted, run), len(run)
            accepted += pushed
            if pushed < of:
                break
        if accepted:
            self.items_available.wake()
            del self.outbox[:accepted]
        return accepted

    def _push_from_outbox(self, at: int, items: Sequence[T]) -> int:  # noqa: ARG002 - an edge with deadlines needs the place
        """Push ``items``, which are in the outbox from the index ``at`` on. Returns how many the channel has accepted."""
        return self.channel.push(items)

    def _shed_outbox(self) -> None:
        """Shed the items in the outbox. Its control items stay, and move as far as they fit."""
        controls = [item for item in self.outbox if isinstance(item, Control)]
        items = [item for item in self.outbox if not isinstance(item, Control)]
        self._drop([Undeliverable(item, ()) for item in items], dead_letter_because=None)
        self.outbox = controls  # type: ignore[assignment]  # T is the type of the data
        self._push_outbox()

    def _drop(self, items: Sequence[Undeliverable[T]], *, dead_letter_because: str | None) -> None:
        """The flow policy gives ``items`` up: dead-letter them, or shed them without a reason."""
        self.channel.policy_drops += len(items)
        if items:
            self.pressure.dropped()
        if dead_letter_because is None:
            self._shed(items)
        else:
            self.channel.dead_lettered += len(items)
            self._dead_letter(dead_letter_because, items)

    def _shed(self, items: Sequence[object]) -> None:
        self.channel.shed += len(items)
        self._writer_account.shed += len(items)

    def _has_reader(self) -> bool:
        """Whether a reader takes items. Raises ``ReaderGone`` if it has ended and the writer has no branch to go on for."""
        if not self.channel.reader_gone:
            return True
        if not (self.channel.reader_done or self.channel.reader_ignored):
            raise ReaderGone(f"edge {self.channel.edge!r}: its reader has ended for good")
        if readers_are_done(self.writer.edges):
            raise ReaderDone(f"edge {self.channel.edge!r}: its reader needs no more items")
        return False

    def _drop_unread(self, items: Sequence[T]) -> YieldToReader | None:
        """Shed or dead-letter ``items``, which no reader takes. Where they are shed, nothing else makes the writer wait."""
        if self.channel.reader_ignored:
            self._shed(items)
            return YieldToReader()
        if items:  # there may have been control items only
            self.channel.dead_lettered += len(items)
            why = f"edge {self.channel.edge!r}: its reader needs no more items"
            self._dead_letter(why, [Undeliverable(item, ()) for item in items])
        return None


def readers_are_done(edges: Collection[Edge[Any]]) -> bool:
    """Whether no reader of ``edges`` needs more items, and at least one of them has ended without a fault."""
    channels = [edge.channel for edge in edges]
    return all(it.reader_done or it.reader_ignored for it in channels) and any(it.reader_done for it in channels)


async def flush(edges: Collection[Edge[Any]], space_available: Wakeup, clock: Clock) -> None:
    """Suspend until the outboxes of ``edges`` are empty. All edges are pumped in turn, so none waits for another."""
    while blocked := [(edge, step) for edge in edges if (step := edge.pump()) is not None]:
        if any(isinstance(step, YieldToReader) for _, step in blocked):
            await asyncio.sleep(0)
            continue
        for edge, _ in blocked:
            edge.pressure.start()
        try:
            if deadlines := [step.at for _, step in blocked if isinstance(step, RetryAt)]:
                await space_available.wait_until(min(deadlines), clock)
            else:
                await space_available.wait()
        finally:
            for edge, _ in blocked:
                edge.pressure.stop()


async def wait_for_items(inputs: Side) -> None:
    """See ``WiredEnds.wait_for_items``."""
    while True:
        waiting = False  # a control item behind a lease: the next read forwards it
        for edge in inputs.edges:
            while edge.channel.next_control is not None and not edge.channel.leased:
                edge.forward_next()
            waiting |= edge.channel.next_control is not None
        if inputs.outputs is not None and any(edge.outbox for edge in inputs.outputs.edges):
            await inputs.edges[0].flush_outputs()
            continue  # in the meantime anything may have arrived
        channels = [edge.channel for edge in inputs.edges]
        if waiting or any(channel.ready_items for channel in channels) or all(channel.ended for channel in channels):
            return
        await inputs.wakeup.wait()
