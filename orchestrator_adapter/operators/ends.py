"""What an operator holds: the ends of its edges, and everything else it may know of the world around it.

``WiredEnds`` is handed to the operator's factory, and handed again on every restart: edges, books and kept resources
outlive the instance.

The exact way to work is three steps, of which the first two are one uninterrupted stretch of code::

    batch = await ends.receiver.recv_many(256)
    ends.commit([f(item) for item in batch], acknowledge=len(batch))   # outputs leave and inputs are done, together
    await ends.flush()                                                 # backpressure; a cancellation loses nothing

``operators`` makes such operators out of plain functions.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ParamSpec, TypeAlias, TypeVar, assert_never

from orchestrator_adapter.channels.channel import Undeliverable
from orchestrator_adapter.channels.edge import Receiver, Sender, flush
from orchestrator_adapter.channels.ledger import OperatorAccount, Outcome
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.errors import EdgeMisuse, ReaderGone, describe
from orchestrator_adapter.primitives.event_log import BoundedLog, call_hook
from orchestrator_adapter.primitives.metrics import LatencyHistogram, RateMeter
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.primitives.wakeup import Wakeup
from orchestrator_adapter.resilience.breaker import BreakerPolicy, Breakers, CircuitBreaker
from orchestrator_adapter.resilience.retry import (
    Attempt,
    AttemptOutcome,
    RetryDiscard,
    RetryDisposition,
    RetryOk,
    RetryPolicy,
    with_retry,
)
from orchestrator_adapter.resilience.retry_budget import RetryBudget
from orchestrator_adapter.storage.dead_letter import DeadLetterGate, DeadLetterKind
from orchestrator_adapter.storage.dead_letter_writer import DeadLetterWriter

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


@dataclass(slots=True)
class VertexServices:
    """What the runtime lends one vertex for its whole life. Internal: operators see it through ``WiredEnds``.

    ``ingest_rate`` is a source's, from its first start on.
    """

    clock: Clock
    rng: random.Random
    shutdown: ShutdownToken
    dead_letter_writer: DeadLetterWriter
    account: OperatorAccount
    executor: Callable[[], ThreadPoolExecutor]
    breakers: Breakers
    gate: DeadLetterGate
    log: BoundedLog
    latency: LatencyHistogram
    counters: dict[str, int] = field(default_factory=dict)
    last_item_monotonic: float | None = None
    ingest_rate: RateMeter | None = None


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

    @property
    def waits_for_room(self) -> bool:
        """Whether the operator is suspended because an output is full."""
        return self._departures.awaited

    # Passing items on.

    async def emit(self, items: Sequence[Any]) -> None:
        """For sources: take ``items`` in and send them, suspending while the edge is full.

        From the moment of the call they are ingested: if the source is cancelled or fails while it waits, its next
        instance delivers them first, and if there is none they go to the dead letters.
        """
        if items:
            services, now = self._services, self.clock.monotonic()
            services.last_item_monotonic = now
            if services.ingest_rate is not None:
                services.ingest_rate.mark(len(items), now)
        self.sender.offer(items)
        await self.flush()

    def commit(self, outputs: Sequence[Any], *, acknowledge: int) -> None:
        """In one step: ``outputs`` leave for the (one) output, and the oldest ``acknowledge`` leased inputs are done.

        Follow it with ``flush()``. A failure before it repeats nothing; a failure after it loses nothing.
        """
        if outputs:
            self.sender.offer(outputs)
        self.receiver.acknowledge(acknowledge)

    async def flush(self) -> None:
        """Suspend until everything offered has been taken in by the outgoing edges (or dealt with by their policies).

        Raises ``DeadLetterLimitExceeded``, before it waits, when too much of the stream has become dead letters.
        """
        self.check_dead_letter_limits()
        if any(sender.held for sender in self.senders):
            await flush(self.senders, self._departures, self.clock)

    @property
    def has_to_deliver(self) -> bool:
        """For the runtime: whether something offered waits for a reader that is still there."""
        return any(sender.held and not sender.channel.reader_gone for sender in self.senders)

    async def deliver(self) -> None:
        """For the runtime: as ``flush``, for an operator that has ended; what has no reader is left where it is."""
        while pending := [sender for sender in self.senders if sender.held and not sender.channel.reader_gone]:
            with suppress(ReaderGone):  # one of them has gone meanwhile: go on without it
                await flush(pending, self._departures, self.clock)

    async def arrival(self) -> None:
        """For fan-ins: suspend until an input has items ready, or all have ended; returns at once if one has items."""
        while not any(receiver.ready for receiver in self.receivers):
            if all(receiver.ended for receiver in self.receivers):
                return
            await self._arrivals.wait()

    # Named outcomes, for items that are not passed on. Each is booked, and goes somewhere.

    def duplicate(self, count: int = 1) -> None:
        """``count`` items repeat what has been passed on before."""
        self._declare("duplicates", count)

    def discard(self, count: int = 1) -> None:
        """``count`` items are of no interest here."""
        self._declare("discarded", count)

    def reject(self, item: object, reason: str) -> None:
        """``item`` is unacceptable: booked as rejected, and kept in the dead letters as ``ValidationFailed``."""
        self._declare_dead("rejected", item, DeadLetterKind.VALIDATION_FAILED, reason, 1)

    def dead_letter(
        self, item: object, kind: DeadLetterKind, message: str, *, attempts: int = 1, must_keep: bool = True
    ) -> None:
        """``item`` cannot be processed: it goes to the dead letters with its reason.

        If the store fails, its error is raised, nothing is booked, and the item is still leased (or in the source's own
        hands). With ``must_keep=False`` it is booked all the same, and the store's failure is a problem of the run, told in
        its figures: for input that could not be offered again, such as a datagram.
        """
        self._declare_dead("dead_lettered", item, kind, message, attempts, must_keep=must_keep)

    def _declare_dead(
        self,
        outcome: Outcome,
        item: object,
        kind: DeadLetterKind,
        message: str,
        attempts: int,
        *,
        must_keep: bool = True,
    ) -> None:
        services = self._services
        keep = (
            services.dead_letter_writer.write_unlogged_or_raise
            if must_keep
            else services.dead_letter_writer.write_unlogged
        )
        keep(self.name, [Undeliverable(item, ())], kind, message, attempts=attempts)
        self._declare(outcome, 1)
        services.log.note(str(kind), message, instance=self.instance)

    def _declare(self, outcome: Outcome, count: int) -> None:
        services = self._services
        services.account.declare(outcome, count)
        if services.ingest_rate is not None:  # what a source gives an outcome, it has taken in
            services.ingest_rate.mark(count, self.clock.monotonic())

    def check_dead_letter_limits(self) -> None:
        """Raise ``DeadLetterLimitExceeded`` if this operator's share or run of dead letters is beyond its limits."""
        account = self._services.account
        passed = account.emitted if self.senders else account.written
        self._services.gate.check(self.name, passed=passed, dead=account.dead_lettered + account.rejected)

    # The world around.

    def count(self, name: str, by: int = 1) -> None:
        """Count something of the operator's own, for metrics and reports, where it is ``operator_figure{operator,name}``.

        Four names are known and have metrics of their own: ``decode_errors`` (of a source: frames that are none),
        ``kernel_drops`` (of a source: what the kernel dropped before it could be read), ``bytes_written`` (of a sink) and
        ``retry_attempts`` (counted by ``with_retry``). They only ever grow.
        """
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

    def breaker(self, name: str, policy: BreakerPolicy) -> CircuitBreaker:
        """The graph's circuit breaker of that name, made at the first call: operators with the same downstream share it.

        It outlives the instance, its changes are logged, and metrics and the report show it. Raises ``ValueError`` if it
        was made with another policy.
        """
        return self._services.breakers.get(name, policy)

    async def with_retry(
        self,
        policy: RetryPolicy,
        op: Callable[[], Awaitable[RetryDisposition[T]]],
        *,
        breaker: CircuitBreaker | None = None,
        budget: RetryBudget | None = None,
        on_attempt: Callable[[Attempt], object] | None = None,
    ) -> RetryOk[T] | RetryDiscard:
        """As ``retry.with_retry``, on the graph's clock and random source, until its shutdown.

        Counts ``retry_attempts``: attempts that were made after the first. When the downstream begins to fail, and when it
        answers again, that is one line in the log.
        """
        downstream = breaker.name if breaker is not None else self.name
        self.count("retry_attempts", 0)
        made = 0

        def told(attempt: Attempt) -> None:
            nonlocal made
            if attempt.outcome is not AttemptOutcome.REJECTED:
                made += 1
                self.count("retry_attempts", int(made > 1))
            log = self._services.log
            match attempt.outcome:
                case AttemptOutcome.OK | AttemptOutcome.DISCARDED:
                    log.downstream(downstream, failing=False, attempt=attempt.number)
                case AttemptOutcome.FAILED | AttemptOutcome.REJECTED:
                    assert attempt.error is not None
                    log.downstream(downstream, failing=True, attempt=attempt.number, error=describe(attempt.error))
                case AttemptOutcome.PERMANENT:
                    pass  # it has answered, with a "no" that is about this one call; the caller is told
                case _:
                    assert_never(attempt.outcome)
            call_hook(on_attempt, attempt)

        return await with_retry(
            policy,
            op,
            breaker=breaker,
            budget=budget,
            clock=self.clock,
            rng=self.rng,
            shutdown=self.shutdown,
            on_attempt=told,
        )

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
