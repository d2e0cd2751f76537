"""``WiredEnds``: what an operator is made with: the ends of its edges, and the services of the graph.

The operator's factory receives the same object on every restart: edges, accounts and kept resources outlive the instance.

The exact way to work has three steps. The first two run without a suspension between them::

    batch = await ends.receiver.recv_many(256)
    ends.commit([f(item) for item in batch], acknowledge=len(batch))   # emit the outputs and acknowledge the inputs
    await ends.flush()                                                 # backpressure; a cancellation loses nothing

``from_functions`` makes such operators from plain functions.

Control items pass an operator that does not know of them, in their place; see ``Receiver``. An operator sends one of its own
with ``await ends.emit_control(...)``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, ParamSpec, TypeAlias, TypeVar

from orchestrator_adapter.channels.channel import Undeliverable
from orchestrator_adapter.channels.control import Control, runs
from orchestrator_adapter.channels.edge import Side, flush, wait_for_items
from orchestrator_adapter.channels.ledger import OperatorAccount, Outcome
from orchestrator_adapter.channels.receiver import Receiver
from orchestrator_adapter.channels.sender import Sender
from orchestrator_adapter.operators.attempts import recorded
from orchestrator_adapter.operators.services import VertexServices
from orchestrator_adapter.primitives.errors import EdgeMisuse
from orchestrator_adapter.primitives.metrics import LatencyHistogram
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.resilience.breaker import BreakerPolicy, CircuitBreaker
from orchestrator_adapter.resilience.retry import (
    Attempt,
    RetryDiscard,
    RetryDisposition,
    RetryOk,
    RetryPolicy,
    with_retry,
)
from orchestrator_adapter.resilience.retry_budget import RetryBudget
from orchestrator_adapter.storage.dead_letter import DeadLetterKind

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


class WiredEnds:
    """Everything that one operator is wired to. Every instance of the operator receives the same object.

    Attributes:
        name: The operator's name.
        instance: 1 for the first instance, 2 after the first restart, and so on.
        receivers: One per input edge, in the order in which they were connected.
        senders: One per output edge, in the order in which they were connected.
        clock: The graph's clock.
        rng: The graph's random source.
        shutdown: Set when the graph is to drain. Sources must obey it; every other operator receives end of stream.
    """

    def __init__(self, name: str, *, inputs: Side, outputs: Side, services: VertexServices) -> None:
        self.name = name
        self.instance = 0
        self.receivers: tuple[Receiver[Any], ...] = tuple(Receiver(edge) for edge in inputs.edges)
        self.senders: tuple[Sender[Any], ...] = tuple(Sender(edge) for edge in outputs.edges)
        self.clock = services.clock
        self.rng = services.rng
        self.shutdown = services.shutdown
        self._services = services
        self._inputs = inputs
        self._outputs = outputs
        inputs.outputs = outputs

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
        """The operator's account, to read."""
        return self._services.account

    @property
    def latency(self) -> LatencyHistogram:
        """Where a sink records how long items took from ingest to its acknowledgement."""
        return self._services.latency

    # Passing items on.

    async def emit(self, items: Sequence[Any]) -> None:
        """For sources: ingest ``items`` and send them, suspending while the edge is full.

        They count as ingested from the call on: if the source is cancelled or fails while it waits, its next instance
        delivers them first. If there is no next instance, they are dead-lettered. Control items among them are sent in
        their place, and not counted.
        """
        self.ingest(items)
        await self.flush()

    def ingest(self, items: Sequence[Any]) -> None:
        """As ``emit``, but without suspending: what does not fit waits in the outbox until ``flush``."""
        for run in runs(items):
            if isinstance(run, Control):
                self._offer_control(run)
            else:
                services, now = self._services, self.clock.monotonic()
                if run:
                    services.last_item_monotonic = now
                    if services.ingest_rate is not None:
                        services.ingest_rate.mark(len(run), now)
                self.sender.offer(run)

    async def emit_control(self, control: Control) -> None:
        """Send ``control`` to every output, behind everything that was sent or offered before it, and flush.

        If it is cancelled while it waits, the control item is in the outbox, and the next flush or instance delivers it.
        """
        self._offer_control(control)
        await self._flush()

    def _offer_control(self, control: Control) -> None:
        for sender in self.senders:
            sender.offer_control(control)

    def commit(self, outputs: Sequence[Any], *, acknowledge: int) -> None:
        """In one step, offer ``outputs`` to the (one) output and acknowledge the oldest ``acknowledge`` leased inputs.

        Call ``flush()`` next. A failure before the commit repeats no item; a failure after it loses none.
        """
        if outputs:
            self.sender.offer(outputs)
        self.receiver.acknowledge(acknowledge)

    @property
    def paused(self) -> bool:
        """Whether a person has paused this source."""
        return (pause := self._services.pause) is not None and bool(pause.reason)

    async def flush(self) -> None:
        """Suspend until the outgoing edges have accepted every offered item, or their flow policies have dropped it.

        A source that a person has paused is suspended after that, until it is resumed or the shutdown begins. A source that
        calls this before it takes more in ingests nothing while it is paused. Control items are sent also during a pause.

        Raises ``DeadLetterLimitExceeded``, before it waits, when too much of the stream has become dead letters.
        """
        await self._flush()
        if (pause := self._services.pause) is not None and pause.reason:
            await pause.wait()

    async def _flush(self) -> None:
        self.check_dead_letter_limits()
        for edge in self._outputs.edges:
            if edge.outbox:
                await flush(self._outputs.edges, self._outputs.wakeup, self.clock)
                return

    async def wait_for_items(self) -> None:
        """For fan-ins: suspend until an input has items ready, or all have ended; returns at once if one has items.

        Forwards the control items that come next, unless items before them are still leased, and waits for space in the
        outputs while what was forwarded is not in them.
        """
        await wait_for_items(self._inputs)

    # Named outcomes, for items that are not passed on. Each one is counted.

    def duplicate(self, count: int = 1) -> None:
        """``count`` items repeat items that were passed on before."""
        self._declare("duplicates", count)

    def discard(self, count: int = 1) -> None:
        """``count`` items are of no interest here."""
        self._declare("discarded", count)

    def reject(self, item: object, reason: str) -> None:
        """``item`` is invalid: it counts as rejected, and is dead-lettered as ``ValidationFailed``."""
        self._declare_dead("rejected", item, DeadLetterKind.VALIDATION_FAILED, reason, 1)

    def dead_letter(
        self, item: object, kind: DeadLetterKind, message: str, *, attempts: int = 1, must_keep: bool = True
    ) -> None:
        """``item`` cannot be processed: it is dead-lettered with its reason.

        If the store fails, its error is raised, the item is not counted, and it is still leased (or still the source's).
        With ``must_keep=False`` the item is counted anyway, and the failure is reported as a problem of the run. Use that
        for input that cannot be received again, such as a datagram.
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
        if services.ingest_rate is not None:  # an item that a source gives an outcome was ingested
            services.ingest_rate.mark(count, self.clock.monotonic())

    def check_dead_letter_limits(self) -> None:
        """Raise ``DeadLetterLimitExceeded`` if the share or the run of dead letters of this operator exceeds its limits."""
        account = self._services.account
        passed = account.emitted if self.senders else account.written
        self._services.gate.check(self.name, passed=passed, dead=account.dead_lettered + account.rejected)

    # Figures, resources, retries, threads.

    def count(self, name: str, by: int = 1) -> None:
        """Count something of this operator, for metrics (``operator_figure{operator,name}``) and reports.

        Four names have metrics of their own: ``decode_errors`` (of a source: malformed frames), ``kernel_drops`` (of a
        source: what the kernel dropped before it was read), ``bytes_written`` (of a sink) and ``retry_attempts`` (counted
        by ``with_retry``). They never decrease.
        """
        counters = self._services.counters
        counters[name] = counters.get(name, 0) + by

    def gauge(self, name: str, value: int) -> None:
        """Set a figure of this operator."""
        self._services.counters[name] = value

    def keep(self, name: str, make: Callable[[], T], close: Callable[[T], object] | None = None) -> T:
        """A resource that outlives the instance: made once, the same for every later instance, closed when the run ends.

        For what a source listens on (socket, ``since`` watermark) and what a sink has open. Closed in reverse order. If
        ``close`` returns an awaitable, it is awaited, at most for the run's patience. What it raises is a problem of the
        run; an exception that is no operational error is a panic of the operator.
        """
        return self._services.kept.keep(name, make, close)

    def breaker(self, name: str, policy: BreakerPolicy) -> CircuitBreaker:
        """The graph's circuit breaker of that name, made at the first call. Operators with the same downstream share it.

        It outlives the instance, its changes are logged, and metrics and the report contain it. Raises ``ValueError`` if
        it was made with another policy.
        """
        breaker = self._services.breakers.get(name, policy)
        self._services.breakers_used[name] = None
        return breaker

    async def with_retry(
        self,
        policy: RetryPolicy,
        op: Callable[[], Awaitable[RetryDisposition[T]]],
        *,
        breaker: CircuitBreaker | None = None,
        budget: RetryBudget | None = None,
        on_attempt: Callable[[Attempt], object] | None = None,
    ) -> RetryOk[T] | RetryDiscard:
        """As ``retry.with_retry``, on the graph's clock and random source, until the graph's shutdown.

        Counts ``retry_attempts``: the attempts after the first. Logs one line when the downstream begins to fail, and one
        when it answers again.
        """
        return await with_retry(
            policy,
            op,
            breaker=breaker,
            budget=budget,
            clock=self.clock,
            rng=self.rng,
            shutdown=self.shutdown,
            on_attempt=recorded(self._services, breaker.name if breaker is not None else self.name, on_attempt),
        )

    async def run_blocking(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run blocking ``function`` in a thread of the operator's ``BlockingPool``, so that the event loop stays free.

        It runs in a copy of the operator's context variables, and may take as long as the pool's ``timeout`` (5 minutes by
        default). After that ``BlockingCallTimedOut`` is raised, an operational error. In that case, and if it is cancelled,
        the operator stops waiting, but the thread runs on to its end: a thread cannot be interrupted. It is abandoned,
        counted, and replaced. Raises ``BlockingPoolExhausted`` when too many threads are abandoned.
        """
        blocking = self._services.blocking
        return await blocking.run(blocking.timeout, function, *args, **kwargs)

    async def run_blocking_within(
        self, limit: timedelta | None, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """As ``run_blocking``, with ``limit`` as the timeout; ``None``: no limit. It counts from when a thread begins the call."""
        return await self._services.blocking.run(limit, function, *args, **kwargs)

    async def acknowledge_after(
        self, count: int, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """For sinks: run blocking ``function`` in a thread, then acknowledge the oldest ``count`` leased items.

        A write that has begun is completed: if it is cancelled, it acknowledges first and then raises the cancellation, so
        that a durable item is never counted as undelivered. If ``function`` raises, nothing is acknowledged.

        A write that takes longer than the pool's ``timeout`` is logged, and ``/health`` reports it, but the sink goes on
        waiting: nothing is acknowledged that may not be durable, and no second write of the same items begins while the
        first one may still succeed. If the sink is to end the graph then, give it a ``progress_timeout``.
        """
        cancelled = await self._services.blocking.complete(function, *args, **kwargs)
        self.receiver.acknowledge(count)
        if cancelled is not None:
            raise cancelled

    def start(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Start ``coroutine`` as a helper task that belongs to this instance, and return the task.

        If it raises, the instance fails with its exception: an operational error or a panic, as if the operator had raised
        it. The operator is cancelled then. When the instance ends, the helper is cancelled, and the instance waits for its
        end. A task that is started otherwise (``asyncio.create_task``) and outlives the instance is a *stray*: it is
        cancelled as well, and named in the report's ``problems``. Tasks that a kept resource starts while it is made are
        cancelled after the resource was closed.
        """
        if (start_helper := self._services.start_helper) is None:
            coroutine.close()
            raise EdgeMisuse(f"operator {self.name!r}: ends.start can be called only while an instance runs")
        return start_helper(coroutine, name)

    async def unless_shutdown(self, work: Coroutine[Any, Any, T]) -> T | None:
        """For sources: await ``work``, but cancel it and return ``None`` when shutdown is requested.

        ``work`` must store elsewhere what a cancellation would lose. If it returns or raises in spite of the cancellation,
        so does this call.
        """
        return await _unless_set(self.shutdown, work)


async def _unless_set(token: ShutdownToken, work: Coroutine[Any, Any, T]) -> T | None:
    working = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(token.wait())
    given_up = False
    try:
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        given_up = not working.done()
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
    return None if given_up and working.cancelled() else working.result()


Factory: TypeAlias = Callable[[WiredEnds], Coroutine[Any, Any, None]]
"""Makes one instance of an operator. Called again, with the same ends, on every restart."""
