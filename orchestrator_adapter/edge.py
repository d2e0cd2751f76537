"""The two ends of an edge: ``Receiver`` and ``Sender``.

The waiting around ``channel`` happens here, and the booking; what is decided, is decided there. Knows nothing of operators
beyond their books.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar

from orchestrator_adapter.channel import Channel, FlowKind, FlowPolicy, Undeliverable
from orchestrator_adapter.clock import Clock
from orchestrator_adapter.errors import EndOfStream, ReaderGone
from orchestrator_adapter.ledger import OperatorAccount
from orchestrator_adapter.wakeup import Wakeup

T = TypeVar("T")

MAX_BATCH = 256
"""Items in an adaptive micro-batch unless the operator asks for another figure: enough to amortise the event loop."""


class Receiver(Generic[T]):
    """The reading end of one edge. Exactly one operator uses it.

    What has been received is leased: the next ``recv`` or ``recv_many`` acknowledges it, or ``acknowledge`` does so
    sooner. If the operator fails before that, it comes again.
    """

    __slots__ = ("_account", "_arrivals", "_channel", "_departures")

    def __init__(self, channel: Channel[T], account: OperatorAccount, *, arrivals: Wakeup, departures: Wakeup) -> None:
        self._channel = channel
        self._account = account
        self._arrivals = arrivals  # wakes this reader
        self._departures = departures  # wakes the writer at the other end

    @property
    def channel(self) -> Channel[T]:
        """The edge itself, for the runtime."""
        return self._channel

    @property
    def edge(self) -> str:
        """The edge's id, ``upstream -> downstream``: a fan-in tells its inputs apart by it."""
        return self._channel.edge

    @property
    def ready(self) -> int:
        """Items that can be taken without waiting."""
        return self._channel.ready

    @property
    def ended(self) -> bool:
        """The writer has finished and everything has been taken."""
        return self._channel.ended

    def acknowledge(self, count: int | None = None) -> None:
        """The oldest ``count`` leased items (all, if not given) are done with: they will never come again."""
        if count is None:
            count = self._channel.leased
        if count:
            self._channel.acknowledge(count)
            self._account.acknowledge(count)
            self._departures.wake()

    def try_recv_many(self, max_items: int = MAX_BATCH) -> list[T]:
        """Take what is ready, up to ``max_items``, without waiting; perhaps nothing. Acknowledges what came before."""
        self.acknowledge()
        return self._channel.take(max_items)

    def give_back(self, failure: str, max_deliveries: int) -> list[Undeliverable[T]]:
        """For the runtime: this reader failed; see ``Channel.give_back``. Poison that leaves makes room for the writer."""
        poison = self._channel.give_back(failure, max_deliveries)
        if poison:
            self._departures.wake()
        return poison

    def leave(self) -> None:
        """For the runtime: this reader has ended for good. The writer's next move raises ``ReaderGone``."""
        self._channel.reader_gone = True
        self._departures.wake()

    async def recv_many(self, max_items: int = MAX_BATCH) -> list[T]:
        """Take what is ready, up to ``max_items``, waiting only for the first item; an empty list is end of stream.

        Acknowledges what came before. In order. Cancelled while it waits, it has taken nothing.
        """
        self.acknowledge()
        channel = self._channel
        while not channel.ready:
            if channel.closed:
                return []
            await self._arrivals.wait()
        return channel.take(max_items)

    async def recv(self) -> T:
        """Take the next item; as ``recv_many`` otherwise. Raises ``EndOfStream`` at the end of the stream."""
        batch = await self.recv_many(1)
        if not batch:
            raise EndOfStream(f"edge {self.edge!r} has ended")
        return batch[0]

    def __aiter__(self) -> AsyncIterator[T]:
        """Every item, one at a time; asking for the next acknowledges the one before."""
        return _Items(self)

    def batches(self, max_items: int = MAX_BATCH) -> AsyncIterator[list[T]]:
        """Every item, in adaptive micro-batches; asking for the next acknowledges the one before."""
        return _Batches(self, max_items)


class _Items(AsyncIterator[T]):
    # Iterators, not async generators: a generator left by an exception lingers until the event loop closes it.
    def __init__(self, receiver: Receiver[T]) -> None:
        self._receiver = receiver

    async def __anext__(self) -> T:
        if batch := await self._receiver.recv_many(1):
            return batch[0]
        raise StopAsyncIteration


class _Batches(AsyncIterator[list[T]]):
    def __init__(self, receiver: Receiver[T], max_items: int) -> None:
        self._receiver = receiver
        self._max_items = max_items

    async def __anext__(self) -> list[T]:
        if batch := await self._receiver.recv_many(self._max_items):
            return batch
        raise StopAsyncIteration


class Sender(Generic[T]):
    """The writing end of one edge. Exactly one operator uses it.

    ``send`` and ``send_many`` suspend while the edge is full. ``offer`` never suspends: what does not fit stays in the
    runtime's hands (the *outbox*, which outlives the operator instance) until ``WiredEnds.flush`` has moved it.
    """

    __slots__ = (
        "_account",
        "_arrivals",
        "_bury",
        "_channel",
        "_clock",
        "_departures",
        "_outbox",
        "_policy",
        "_stuck_since",
    )

    def __init__(
        self,
        channel: Channel[T],
        policy: FlowPolicy,
        account: OperatorAccount,
        *,
        arrivals: Wakeup,
        departures: Wakeup,
        clock: Clock,
        bury: Callable[[str, Sequence[Undeliverable[T]]], None],
    ) -> None:
        self._channel = channel
        self._policy = policy
        self._account = account
        self._arrivals = arrivals  # wakes the reader at the other end
        self._departures = departures  # wakes this writer
        self._clock = clock
        self._bury = bury
        self._outbox: list[T] = []
        self._stuck_since: float | None = None

    @property
    def channel(self) -> Channel[T]:
        """The edge itself, for the runtime."""
        return self._channel

    @property
    def edge(self) -> str:
        """The edge's id, ``upstream -> downstream``."""
        return self._channel.edge

    @property
    def held(self) -> int:
        """Items offered that are not in the edge yet."""
        return len(self._outbox)

    def offer(self, items: Sequence[T]) -> None:
        """Hand ``items`` over, in order, without suspending. From now on they are the runtime's to deliver or bury."""
        self._account.emit(len(items))
        if self._outbox or self._channel.reader_gone:
            self._outbox.extend(items)  # the next flush moves it on, or says that the reader is gone
        elif items:
            accepted = self._channel.push(items)
            self._arrivals.wake()
            if accepted < len(items):
                self._outbox.extend(items[accepted:])

    async def send(self, item: T) -> None:
        """Send one item, suspending while the edge is full, as its flow policy says.

        Cancelled, the item was either accepted or not, and nothing else happened. Raises ``ReaderGone``.
        """
        await self.send_many((item,))

    async def send_many(self, items: Sequence[T]) -> None:
        """Send ``items`` in order. Cancelled, the ones from the front that were accepted stay accepted."""
        if self._policy.kind is not FlowKind.BACKPRESSURE:
            self.offer(items)
            await flush([self], self._departures, self._clock)
            return
        await flush([self], self._departures, self._clock)
        start = 0
        while start < len(items):
            self._check_reader()
            if room := self._channel.room:
                self.offer(items[start : start + room])
                start += room
            else:
                await self._departures.wait()

    def pump(self) -> float | None:
        """One step of ``flush``: move what fits. ``None`` if nothing is left, else when to try again at the latest.

        Minus infinity is "after one turn of the loop"; infinity is "when the reader has made room".
        """
        if not self._outbox:
            return None
        self._check_reader()
        if accepted := self._channel.push(self._outbox):
            self._arrivals.wake()
            del self._outbox[:accepted]
            self._stuck_since = None
        if not self._outbox:
            return None
        if self._policy.kind is FlowKind.BACKPRESSURE:
            return float("inf")
        if self._policy.kind is FlowKind.SHED:
            self._drop(dead_letter=False, why="")
            return float("-inf")  # the reader's turn: a writer that never waits would freeze the loop for everyone
        assert self._policy.deadline is not None
        now, patience = self._clock.monotonic(), self._policy.deadline.total_seconds()
        if self._stuck_since is None:
            self._stuck_since = now
        if now < self._stuck_since + patience:
            return self._stuck_since + patience
        self._drop(dead_letter=self._policy.dead_letter, why=f"edge {self.edge!r} was full for {patience:g} s")
        return None

    def push_what_fits(self) -> None:
        """For the runtime: the writer has ended; move what still fits, whatever the policy."""
        if self._outbox and not self._channel.reader_gone:
            accepted = self._channel.push(self._outbox)
            del self._outbox[:accepted]

    def close(self) -> None:
        """For the runtime: the writer has ended. The reader drains what is left and then sees the end of the stream."""
        self._channel.closed = True
        self._arrivals.wake()

    def withdraw_outbox(self) -> list[T]:
        """Take back what was offered and never fitted; for the dead letters, when the edge will move no more."""
        items, self._outbox = self._outbox, []
        return items

    def _drop(self, *, dead_letter: bool, why: str) -> None:
        items = self.withdraw_outbox()
        self._stuck_since = None
        if dead_letter:
            self._channel.dead_lettered += len(items)
            self._bury(why, [Undeliverable(item, ()) for item in items])
        else:
            self._channel.shed += len(items)
            self._account.shed += len(items)

    def _check_reader(self) -> None:
        if self._channel.reader_gone:
            raise ReaderGone(f"edge {self.edge!r}: its reader has ended for good")


async def flush(senders: Iterable[Sender[Any]], departures: Wakeup, clock: Clock) -> None:
    """Suspend until nothing offered through ``senders`` is left, all of them moving at once."""
    while True:
        retry_at = [at for sender in senders if (at := sender.pump()) is not None]
        if not retry_at:
            return
        if min(retry_at) == float("inf"):
            await departures.wait()
        elif min(retry_at) == float("-inf"):
            await asyncio.sleep(0)
        else:
            await departures.wait_until(min(retry_at), clock)
