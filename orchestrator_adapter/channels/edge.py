"""The two ends of an edge: ``Receiver`` and ``Sender``.

The waiting around ``channel`` happens here, and the booking; what is decided, is decided there. Knows nothing of operators
beyond their books.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, Generic, TypeAlias, TypeVar
from weakref import ReferenceType, ref

from orchestrator_adapter.channels.channel import Channel, FlowKind, FlowPolicy, Undeliverable
from orchestrator_adapter.channels.ledger import OperatorAccount
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.errors import EdgeMisuse, EndOfStream, ReaderDone, ReaderGone
from orchestrator_adapter.primitives.wakeup import Wakeup

T = TypeVar("T")

MAX_BATCH = 256
"""Items in an adaptive micro-batch unless the operator asks for another figure: enough to amortise the event loop."""


_Task: TypeAlias = "asyncio.Task[Any]"
_LINE: ContextVar[tuple[ReferenceType[_Task], ...]] = ContextVar("line", default=())
"""The tasks that have used an end of an edge on the way to this one: itself, the one that started it, and so on."""


class _OneUser:
    """Holds an end of an edge to one task at a time.

    A second task would acknowledge what the first still works on. Those that a task starts may use the end on its
    behalf, while it waits for them (``asyncio.wait_for`` is such a task on Python 3.11).
    """

    __slots__ = ("_end", "_user")

    def __init__(self, end: str) -> None:
        self._end = end
        self._user: _Task | None = None

    def check(self) -> None:
        """The current task uses the end from now on. Raises ``EdgeMisuse`` while another one does."""
        task = asyncio.current_task()
        if task is self._user or task is None:
            return
        line = _LINE.get()
        if self._user is not None and not self._user.done() and ref(self._user) not in line:
            raise EdgeMisuse(
                f"{self._end} is used by task {self._user.get_name()!r}, and now by {task.get_name()!r} as well: "
                "every end of an edge has exactly one user"
            )
        self._user = task
        if ref(task) not in line:
            _LINE.set((*line, ref(task)))


class Receiver(Generic[T]):
    """The reading end of one edge. Exactly one task of exactly one operator uses it: a second one is refused.

    What has been received is leased: the next ``recv`` or ``recv_many`` acknowledges it, or ``acknowledge`` does so
    sooner. If the operator fails before that, it comes again. An operator that returns before its input has ended is done
    with the one item it holds; of a batch, only with what it has acknowledged: the rest is undelivered.
    """

    __slots__ = ("_account", "_arrivals", "_channel", "_departures", "_one_user", "_siblings")

    def __init__(
        self,
        channel: Channel[T],
        account: OperatorAccount,
        *,
        arrivals: Wakeup,
        departures: Wakeup,
        siblings: Sequence[Channel[Any]] = (),
    ) -> None:
        self._channel = channel
        self._account = account
        self._arrivals = arrivals  # wakes this reader
        self._departures = departures  # wakes the writer at the other end
        self._siblings = siblings  # all the inputs of this operator
        self._one_user = _OneUser(f"the reading end of edge {channel.edge!r}")

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
            still_leased = self._channel.leased
            if self._siblings:
                still_leased = sum(channel.leased for channel in self._siblings)
            self._account.acknowledge(count, still_leased=still_leased)
            self._departures.wake()

    def try_recv_many(self, max_items: int = MAX_BATCH) -> list[T]:
        """Take what is ready, up to ``max_items``, without waiting; perhaps nothing. Acknowledges what came before."""
        self._one_user.check()
        self.acknowledge()
        return self._channel.take(max_items)

    def give_back(self, failure: str, max_deliveries: int) -> list[Undeliverable[T]]:
        """For the runtime: this reader failed; see ``Channel.give_back``. Poison that leaves makes room for the writer."""
        poison = self._channel.give_back(failure, max_deliveries)
        if poison:
            self._departures.wake()
        return poison

    def leave(self, *, done: bool = False) -> None:
        """For the runtime: this reader has ended for good. The writer's next move raises ``ReaderGone``.

        With ``done`` it has had all it wanted: then it raises ``ReaderDone``, unless the writer has other readers.
        """
        self._channel.reader_gone = True
        self._channel.reader_done = done
        self._departures.wake()

    async def recv_many(self, max_items: int = MAX_BATCH) -> list[T]:
        """Take what is ready, up to ``max_items``, waiting only for the first item; an empty list is end of stream.

        Acknowledges what came before. In order. Cancelled while it waits, it has taken nothing.
        """
        self._one_user.check()
        self.acknowledge()
        if self._channel.ready or await self._arrived():
            return self._channel.take(max_items)
        return []

    async def recv(self) -> T:
        """Take the next item; as ``recv_many`` otherwise. Raises ``EndOfStream`` at the end of the stream."""
        batch = await self.recv_many(1)
        if not batch:
            raise EndOfStream(f"edge {self.edge!r} has ended")
        return batch[0]

    async def _arrived(self) -> bool:
        """Wait for an item; false at the end of the stream."""
        while not self._channel.ready:
            if self._channel.closed:
                return False
            await self._arrivals.wait()
        return True

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
    """The writing end of one edge. Exactly one task of exactly one operator uses it: a second one is refused.

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
        "_one_user",
        "_outbox",
        "_policy",
        "_siblings",
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
        siblings: Sequence[Channel[Any]] = (),
    ) -> None:
        self._channel = channel
        self._policy = policy
        self._account = account
        self._arrivals = arrivals  # wakes the reader at the other end
        self._departures = departures  # wakes this writer
        self._clock = clock
        self._bury = bury
        self._siblings = siblings  # all the outputs of a fan-out
        self._one_user = _OneUser(f"the writing end of edge {channel.edge!r}")
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
        self._one_user.check()
        self._hand_over(items)

    def _hand_over(self, items: Sequence[T]) -> None:
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
        self._one_user.check()
        if self._outbox or self._channel.reader_gone or not self._channel.room:
            await self.send_many((item,))
        else:
            self._hand_over((item,))

    async def send_many(self, items: Sequence[T]) -> None:
        """Send ``items`` in order. Cancelled, the ones from the front that were accepted stay accepted.

        On an edge with a deadline, what it gives up on is accepted, too: it is in the dead letters, or shed.
        """
        self._one_user.check()
        if self._outbox:
            await flush([self], self._departures, self._clock)
        if self._policy.kind is FlowKind.SHED:
            self._hand_over(items)
            await flush([self], self._departures, self._clock)
            return
        start = 0
        self._stuck_since = None  # these items have waited for nothing yet
        while start < len(items):
            if not self._is_read():
                self._account.emit(len(items) - start)
                self._bury_unread(items[start:])
                return
            if room := self._channel.room:
                self._hand_over(items[start : start + room])
                start += room
                self._stuck_since = None
            elif (give_up_at := self._give_up_at()) is None:
                await self._departures.wait()
            elif self._clock.monotonic() < give_up_at:
                await self._departures.wait_until(give_up_at, self._clock)
            else:
                self._account.emit(len(items) - start)
                self._give_up(items[start:])
                return

    def pump(self) -> float | None:
        """One step of ``flush``: move what fits. ``None`` if nothing is left, else when to try again at the latest.

        Minus infinity is "after one turn of the loop"; infinity is "when the reader has made room".
        """
        if not self._outbox:
            return None
        if not self._is_read():
            self._bury_unread(self.withdraw_outbox())
            return None
        if accepted := self._channel.push(self._outbox):
            self._arrivals.wake()
            del self._outbox[:accepted]
            self._stuck_since = None
        if not self._outbox:
            return None
        if self._policy.kind is FlowKind.SHED:
            self._give_up(self.withdraw_outbox())
            return float("-inf")  # the reader's turn: a writer that never waits would freeze the loop for everyone
        give_up_at = self._give_up_at()
        if give_up_at is None:
            return float("inf")
        if self._clock.monotonic() < give_up_at:
            return give_up_at
        self._give_up(self.withdraw_outbox())
        return None

    def close(self) -> None:
        """For the runtime: the writer has ended. The reader drains what is left and then sees the end of the stream."""
        self._channel.closed = True
        self._arrivals.wake()

    def withdraw_outbox(self) -> list[T]:
        """Take back what was offered and never fitted; for the dead letters, when the edge will move no more."""
        items, self._outbox = self._outbox, []
        return items

    def _give_up_at(self) -> float | None:
        """When a writer that finds the edge full now stops waiting, monotonic; ``None`` is never."""
        if self._policy.deadline is None:
            return None
        if self._stuck_since is None:
            self._stuck_since = self._clock.monotonic()
        return self._stuck_since + self._policy.deadline.total_seconds()

    def _give_up(self, items: Sequence[T]) -> None:
        """What the edge has no room for goes where its policy says."""
        self._stuck_since = None
        self._channel.policy_drops += len(items)
        if self._policy.dead_letter:
            assert self._policy.deadline is not None
            self._dead_letter(items, f"edge {self.edge!r} was full for {self._policy.deadline.total_seconds():g} s")
        else:
            self._channel.shed += len(items)
            self._account.shed += len(items)

    def _is_read(self) -> bool:
        """Whether there is a reader. Raises ``ReaderGone`` where there is none, and no other branch to go on for."""
        if not self._channel.reader_gone:
            return True
        if not self._channel.reader_done:
            raise ReaderGone(f"edge {self.edge!r}: its reader has ended for good")
        if all(channel.reader_done for channel in self._siblings):
            raise ReaderDone(f"edge {self.edge!r}: its reader has had all it wanted")
        return False

    def _bury_unread(self, items: Sequence[T]) -> None:
        """One branch of a fan-out is done, and the others go on."""
        self._dead_letter(items, f"edge {self.edge!r}: its reader has had all it wanted")

    def _dead_letter(self, items: Sequence[T], why: str) -> None:
        self._channel.dead_lettered += len(items)
        self._bury(why, [Undeliverable(item, ()) for item in items])


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
