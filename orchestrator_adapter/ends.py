"""What an operator holds: the ends of its edges, and everything else it may know of the world around it.

``WiredEnds`` is handed to the operator's factory, and handed again on every restart: edges, books and kept resources
outlive the instance. The waiting around ``channel`` happens here; what is decided, is decided there.

The exact way to work is three steps, of which the first two are one uninterrupted stretch of code::

    batch = await ends.receiver.recv_many(256)
    ends.commit([f(item) for item in batch], acknowledge=len(batch))   # outputs leave and inputs are done, together
    await ends.flush()                                                 # backpressure; a cancellation loses nothing

``operators`` makes such operators out of plain functions.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, ParamSpec, TypeAlias, TypeVar

from orchestrator_adapter.channel import Channel, FlowKind, FlowPolicy, Undeliverable
from orchestrator_adapter.clock import Clock
from orchestrator_adapter.dead_letter import DeadLetter, DeadLetterGate, DeadLetterKind, DeadLetterStore
from orchestrator_adapter.errors import EdgeMisuse, EndOfStream, ReaderGone
from orchestrator_adapter.ledger import Bookkeeping, OperatorAccount, Outcome
from orchestrator_adapter.metrics import LatencyHistogram
from orchestrator_adapter.wakeup import ShutdownToken, Wakeup

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")

logger = logging.getLogger("orchestrator_adapter.operator")

MAX_BATCH = 256
"""Items in an adaptive micro-batch unless the operator asks for another figure: enough to amortise the event loop."""

_LOG_PERIOD_S = 1.0  # at most one line per operator and kind of dead letter in this time


class Receiver(Generic[T]):
    """The reading end of one edge. Exactly one operator uses it.

    What has been received is leased: the next ``recv`` or ``recv_many`` acknowledges it, or ``acknowledge`` does so
    sooner. If the operator fails before that, it comes again.
    """

    __slots__ = ("_account", "_arrivals", "_channel", "_departures")

    def __init__(
        self, channel: Channel[T], account: OperatorAccount, *, arrivals: Wakeup, departures: Wakeup
    ) -> None:
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


@dataclass(slots=True)
class VertexServices:
    """What the runtime lends one vertex for its whole life. Internal: operators see it through ``WiredEnds``."""

    clock: Clock
    rng: random.Random
    shutdown: ShutdownToken
    dead_letters: DeadLetterStore
    account: OperatorAccount
    executor: Callable[[], ThreadPoolExecutor]
    gate: DeadLetterGate
    latency: LatencyHistogram
    counters: dict[str, int] = field(default_factory=dict)
    last_item_monotonic: float | None = None


class WiredEnds:
    """Everything one operator is wired to. The same object is handed to every instance of the operator.

    Attributes:
        name: The operator's own name.
        instance: 1 for the first instance, 2 after the first restart, and so on.
        receivers: One per input edge, in the order in which they were connected.
        senders: One per output edge, likewise.
        clock: The graph's clock.
        rng: The graph's random source.
        shutdown: Set when the graph is to drain. Sources must heed it; everyone else sees end of stream instead.
    """

    def __init__(
        self,
        name: str,
        receivers: Sequence[Receiver[Any]],
        senders: Sequence[Sender[Any]],
        services: VertexServices,
        *,
        arrivals: Wakeup,
        departures: Wakeup,
    ) -> None:
        self.name = name
        self.instance = 0
        self.receivers = tuple(receivers)
        self.senders = tuple(senders)
        self.clock = services.clock
        self.rng = services.rng
        self.shutdown = services.shutdown
        self._services = services
        self._arrivals = arrivals
        self._departures = departures
        self._kept: dict[str, tuple[Any, Callable[[], object] | None]] = {}
        self._logged: dict[str, tuple[float, int]] = {}

    @property
    def receiver(self) -> Receiver[Any]:
        """The one input of an operator or a sink."""
        if len(self.receivers) != 1:
            raise EdgeMisuse(f"operator {self.name!r} has {len(self.receivers)} inputs; use ends.receivers")
        return self.receivers[0]

    @property
    def sender(self) -> Sender[Any]:
        """The one output of a source or an operator."""
        if len(self.senders) != 1:
            raise EdgeMisuse(f"operator {self.name!r} has {len(self.senders)} outputs; use ends.senders")
        return self.senders[0]

    @property
    def account(self) -> OperatorAccount:
        """The operator's books, to read."""
        return self._services.account

    @property
    def latency(self) -> LatencyHistogram:
        """Where a sink records how long items took from ingest to its acknowledgement."""
        return self._services.latency

    # Passing items on.

    async def emit(self, items: Sequence[Any]) -> None:
        """For sources: take ``items`` in and send them, suspending while the edge is full.

        From the moment of the call they are ingested: if the source is cancelled or fails while it waits, its next
        instance delivers them first, and if there is none they go to the dead letters.
        """
        if items:
            self._services.last_item_monotonic = self.clock.monotonic()
        self.sender.offer(items)
        self.check_dead_letter_limits()
        await self.flush()

    def commit(self, outputs: Sequence[Any], *, acknowledge: int) -> None:
        """In one step: ``outputs`` leave for the (one) output, and the oldest ``acknowledge`` leased inputs are done.

        Follow it with ``flush()``. A failure before it repeats nothing; a failure after it loses nothing. Raises
        ``DeadLetterLimitExceeded`` (after the books are closed) when too much of the stream became dead letters.
        """
        if outputs:
            self.sender.offer(outputs)
        self.receiver.acknowledge(acknowledge)
        self.check_dead_letter_limits()

    async def flush(self) -> None:
        """Suspend until everything offered has been taken in by the outgoing edges (or dealt with by their policies)."""
        await flush(self.senders, self._departures, self.clock)

    async def arrival(self) -> None:
        """For fan-ins: suspend until an input has items ready, or all have ended; returns at once if one has items."""
        while not any(receiver.ready for receiver in self.receivers):
            if all(receiver.ended for receiver in self.receivers):
                return
            await self._arrivals.wait()

    # Named outcomes, for items that are not passed on. Each is booked, and goes somewhere.

    def duplicate(self, count: int = 1) -> None:
        """``count`` items repeat what has been passed on before."""
        self._services.account.declare("duplicates", count)

    def discard(self, count: int = 1) -> None:
        """``count`` items are of no interest here."""
        self._services.account.declare("discarded", count)

    def reject(self, item: object, reason: str) -> None:
        """``item`` is unacceptable: booked as rejected, and kept in the dead letters as ``ValidationFailed``."""
        self._declare_dead("rejected", item, DeadLetterKind.VALIDATION_FAILED, reason, 1)

    def dead_letter(self, item: object, kind: DeadLetterKind, message: str, *, attempts: int = 1) -> None:
        """``item`` cannot be processed: it goes to the dead letters with its reason."""
        self._declare_dead("dead_lettered", item, kind, message, attempts)

    def _declare_dead(self, outcome: Outcome, item: object, kind: DeadLetterKind, message: str, attempts: int) -> None:
        services = self._services
        letter = DeadLetter(
            time_ns=self.clock.now_ns(),
            operator=self.name,
            kind=kind,
            message=message,
            attempts=attempts,
            payload=item,
        )
        services.dead_letters.append([letter])
        services.account.declare(outcome, 1)
        self.log_bounded(str(kind), message)

    def check_dead_letter_limits(self) -> None:
        """Raise ``DeadLetterLimitExceeded`` if this operator's share or run of dead letters is beyond its limits."""
        account = self._services.account
        passed = account.emitted if self.senders else account.written
        self._services.gate.check(self.name, passed=passed, dead=account.dead_lettered + account.rejected)

    def log_bounded(self, kind: str, message: str) -> None:
        """Log a dead letter, at most one line per kind and second: what was left out is told with the next."""
        now = self.clock.monotonic()
        last, suppressed = self._logged.get(kind, (float("-inf"), 0))
        if now - last < _LOG_PERIOD_S:
            self._logged[kind] = (last, suppressed + 1)
            return
        self._logged[kind] = (now, 0)
        fields = {"event": "dead_letter", "operator": self.name, "kind": kind, "message": message}
        logger.warning(json.dumps(fields | {"not_logged_since_last": suppressed}))

    # The world around.

    def count(self, name: str, by: int = 1) -> None:
        """Count something of the operator's own (``kernel_drops``, ``connections``), for metrics and reports."""
        counters = self._services.counters
        counters[name] = counters.get(name, 0) + by

    def gauge(self, name: str, value: int) -> None:
        """Set one of the operator's own figures."""
        self._services.counters[name] = value

    def keep(self, name: str, make: Callable[[], T], close: Callable[[T], object] | None = None) -> T:
        """A resource that outlives the instance: made once, handed to every later instance, closed at the very end.

        For what a source listens on (socket, ``since`` watermark) and what a sink has open. Closed in reverse order.
        """
        if name not in self._kept:
            value = make()
            self._kept[name] = (value, None if close is None else partial(close, value))
        kept: T = self._kept[name][0]
        return kept

    def close_kept(self) -> list[Exception]:
        """Close everything kept, last made first. For the runtime. Returns what went wrong; nothing stops it."""
        problems: list[Exception] = []
        while self._kept:
            _, (_, close) = self._kept.popitem()
            if close is not None:
                try:
                    close()
                except Exception as error:  # noqa: BLE001 - the others must be closed too; the runtime reports it
                    problems.append(error)
        return problems

    async def run_blocking(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run blocking ``function`` in the graph's bounded thread pool, so that the event loop stays free.

        Cancelled, the operator stops waiting, but the thread runs on to its end: threads cannot be interrupted.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._services.executor(), _contained, partial(function, *args, **kwargs))

    async def acknowledge_after(
        self, count: int, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """For sinks: run blocking ``function`` in the thread pool, then acknowledge the oldest ``count`` leased items.

        A write once begun is seen to its end: cancelled meanwhile, it acknowledges first and passes the cancellation on
        then, so that what is durable is never taken for undelivered. If ``function`` raises, nothing is acknowledged.
        """
        call = partial(function, *args, **kwargs)
        work = asyncio.get_running_loop().run_in_executor(self._services.executor(), _contained, call)
        cancelled: asyncio.CancelledError | None = None
        while not work.done():
            try:
                await asyncio.wait({work})
            except asyncio.CancelledError as error:
                cancelled = error
        work.result()
        self.receiver.acknowledge(count)
        if cancelled is not None:
            raise cancelled

    async def unless_shutdown(self, work: Coroutine[Any, Any, T]) -> T | None:
        """For sources: await ``work``, but give up (cancelling it) when shutdown is asked for. ``None`` then.

        Whatever ``work`` has to lose by a cancellation, it must keep elsewhere. What it returns or raises in spite of
        the cancellation is returned or raised here.
        """
        working = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self.shutdown.wait())
        given_up = False
        try:
            await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
            given_up = not working.done()
        finally:
            for task in (working, stopping):
                task.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)
        return None if given_up and working.cancelled() else working.result()


def _contained(call: Callable[[], R]) -> R:
    """Run it in a thread. A ``StopIteration`` cannot enter a future (Python 3.11 leaves it waiting for ever)."""
    try:
        return call()
    except StopIteration as stop:
        raise RuntimeError("a blocking function raised StopIteration") from stop


Factory: TypeAlias = Callable[[WiredEnds], Coroutine[Any, Any, None]]
"""Makes one instance of an operator: called again, with the same ends, on every restart."""

__all__ = ["MAX_BATCH", "Bookkeeping", "Factory", "Receiver", "Sender", "VertexServices", "WiredEnds", "flush"]
