"""The calls in progress: sends them to workers as the scheduler decides, and completes them with answers or errors."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from orchestrator_adapter.bulkhead.errors import BatchLost, HandlerFailed, Malformed
from orchestrator_adapter.bulkhead.log import BulkheadLog
from orchestrator_adapter.bulkhead.scheduler import Scheduler
from orchestrator_adapter.bulkhead.statistics import Counters
from orchestrator_adapter.bulkhead.transport.wire import Arrays, Failure, Message, encode
from orchestrator_adapter.bulkhead.worker_slot import Answer, WorkerInstance
from orchestrator_adapter.primitives.clock import Clock


@dataclass(slots=True)
class _Call:
    """A call that has not ended."""

    method: str
    message: Message
    answer: asyncio.Future[dict[str, NDArray[Any]]]


@dataclass(slots=True)
class _ReadyWorker:
    """A worker that can be sent calls.

    Attributes:
        shares: The shares that it has not confirmed, by ticket. ``None`` for state that was shared before it was ready: no
            call of ``share`` waits for its confirmation.
        hung: Its connection was closed because its answer was late.
    """

    worker: WorkerInstance
    shares: dict[int, asyncio.Future[None] | None] = field(default_factory=dict)
    hung: bool = False


class Dispatcher:
    """The calls and shared state of one bulkhead. It knows workers only while they are ready.

    Attributes:
        answer_within_s: A worker that works on one call for longer hangs, and its connection is closed.
    """

    def __init__(
        self,
        bulkhead: str,
        *,
        in_flight: int,
        answer_within_s: float,
        max_bytes: int,
        counters: Counters,
        clock: Clock,
        log: BulkheadLog,
    ) -> None:
        self.answer_within_s = answer_within_s
        self._bulkhead = bulkhead
        self._max_bytes = max_bytes
        self._counters = counters
        self._clock = clock
        self._log = log
        self._scheduler = Scheduler(in_flight=in_flight)
        self._tickets = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._shared: dict[str, Arrays] = {}
        self._ready: dict[int, _ReadyWorker] = {}  # by the worker's number
        self._timer_set = False
        self._closed = False

    @property
    def ready(self) -> list[WorkerInstance]:
        """The workers that can be sent calls, by their number."""
        return [self._ready[number].worker for number in sorted(self._ready)]

    @property
    def waiting(self) -> int:
        """How many calls are queued and not yet sent to a worker."""
        return self._scheduler.waiting

    @property
    def in_flight(self) -> int:
        """How many calls a worker has, without the abandoned ones."""
        return self._scheduler.in_flight

    async def call(self, method: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
        """See ``Bulkhead.call``."""
        ticket = next(self._tickets)
        message = encode("call", ticket=ticket, name=method, arrays=arrays, max_bytes=self._max_bytes)
        answer: asyncio.Future[dict[str, NDArray[Any]]] = asyncio.get_running_loop().create_future()
        self._calls[ticket] = _Call(method, message, answer)
        self._counters.calls += 1
        self._scheduler.submit(ticket)
        self._dispatch()
        try:
            return await answer
        finally:
            if self._calls.pop(ticket, None) is not None:  # it has not ended: the caller was cancelled
                self._scheduler.abandon(ticket)
                self._counters.abandoned += 1

    async def share(self, key: str, arrays: Arrays) -> None:
        """See ``Bulkhead.share``."""
        copies = {name: array.copy() for name, array in arrays.items()}
        encode("share", name=key, arrays=copies, max_bytes=self._max_bytes)  # raises before anything is stored
        before = self._shared.get(key)
        self._shared[key] = copies
        self._counters.shares += 1
        loop = asyncio.get_running_loop()
        confirmations = []
        for ready in tuple(self._ready.values()):
            confirmed: asyncio.Future[None] = loop.create_future()
            self._send_share(ready, key, copies, confirmed)
            confirmations.append(confirmed)
        outcomes = await asyncio.gather(*confirmations, return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, HandlerFailed)]
        if failures:
            if self._shared.get(key) is copies:
                del self._shared[key]
                if before is not None:
                    self._shared[key] = before
            raise failures[0]

    def add_worker(self, worker: WorkerInstance) -> None:
        """The worker is ready: send it all shared state, then calls."""
        self._ready[worker.number] = ready = _ReadyWorker(worker)
        self._scheduler.add_worker(worker.number)
        for key, arrays in self._shared.items():
            self._send_share(ready, key, arrays, None)
        self._dispatch()

    def remove_worker(self, worker: WorkerInstance, reason: str) -> None:
        """The worker is lost: resubmit its calls, or give up the oldest one."""
        for confirmed in self._ready.pop(worker.number).shares.values():
            if confirmed is not None and not confirmed.done():
                confirmed.set_result(None)  # the successor is sent all shared state before any call
        loss = self._scheduler.remove_worker(worker.number)
        if loss.resubmitted is not None:
            self._counters.resubmitted += 1
            self._log(
                "batch_resubmitted",
                worker=worker.number,
                method=self._calls[loss.resubmitted].method,
                ticket=loss.resubmitted,
                requeued=len(loss.requeued),
            )
        if loss.given_up is not None:
            self._give_up(loss.given_up, reason)
        self._dispatch()

    def on_answer(self, worker: WorkerInstance, ticket: int, answer: Answer) -> None:
        """The worker has answered a call or confirmed a share. Raises ``Malformed`` if it is out of order."""
        shares = self._ready[worker.number].shares
        shared = ticket in shares
        waited_for = self._scheduler.answered(worker.number, ticket, self._clock.monotonic(), shared=shared)
        if shared:
            self._confirm_share(shares.pop(ticket), answer)
        elif waited_for:
            call = self._calls.pop(ticket)
            if self._is_abandoned(call):
                pass
            elif isinstance(answer, Failure):
                self._counters.failed += 1
                call.answer.set_exception(self._handler_failed(call.method, answer))
            else:
                self._counters.answered += 1
                call.answer.set_result(answer)
        self._dispatch()

    async def wait_until_idle(self) -> None:
        """Returns when all present calls have ended."""
        if answers := {call.answer for call in self._calls.values()}:
            await asyncio.wait(answers)

    def abort_calls(self, error: Callable[[], Exception]) -> None:
        """Every call that has not ended raises ``error()``."""
        if not self._calls:
            return
        self._log("calls_aborted", calls=len(self._calls))
        for ticket, call in self._calls.items():
            self._scheduler.abandon(ticket)
            if not self._is_abandoned(call):
                self._counters.aborted += 1
                call.answer.set_exception(error())
        self._calls.clear()

    def close(self) -> None:
        """Send no more calls."""
        self._closed = True

    def _dispatch(self) -> None:
        if self._closed:
            return
        for assignment in self._scheduler.assign(self._clock.monotonic()):
            self._ready[assignment.worker].worker.send(self._calls[assignment.ticket].message)
        self._set_timer()

    def _send_share(
        self, ready: _ReadyWorker, key: str, arrays: Arrays, confirmed: asyncio.Future[None] | None
    ) -> None:
        ticket = next(self._tickets)
        ready.shares[ticket] = confirmed
        self._scheduler.share(ready.worker.number, ticket, self._clock.monotonic())
        ready.worker.send(encode("share", ticket=ticket, name=key, arrays=arrays, max_bytes=self._max_bytes))
        self._set_timer()

    def _confirm_share(self, confirmed: asyncio.Future[None] | None, answer: Answer) -> None:
        if isinstance(answer, Failure):
            if confirmed is None:
                raise Malformed(f"it rejected state that its predecessor accepted: {answer.type}: {answer.message}")
            if not confirmed.done():
                confirmed.set_exception(self._handler_failed("share", answer))
        elif confirmed is not None and not confirmed.done():
            confirmed.set_result(None)

    def _give_up(self, ticket: int, reason: str) -> None:
        call = self._calls.pop(ticket)
        if self._is_abandoned(call):
            return
        self._counters.lost += 1
        self._log("batch_lost", method=call.method, ticket=ticket, cause=reason)
        message = (
            f"bulkhead {self._bulkhead!r}: {call.method}: two workers were lost with it, the second because: {reason}"
        )
        call.answer.set_exception(BatchLost(message, method=call.method, losses=2))

    def _is_abandoned(self, call: _Call) -> bool:
        """Whether its caller was cancelled and ``call`` has not run on yet; then it is counted here."""
        self._counters.abandoned += call.answer.done()
        return call.answer.done()

    def _handler_failed(self, method: str, failure: Failure) -> HandlerFailed:
        return HandlerFailed(
            f"bulkhead {self._bulkhead!r}: {method}: the handler raised {failure.type}: {failure.message}",
            error_type=failure.type,
            error_message=failure.message,
            remote_traceback=failure.traceback,
        )

    def _set_timer(self) -> None:
        """One timer serves all workers. It is set for the earliest deadline, and then set again."""
        deadline = self._scheduler.next_deadline(self.answer_within_s)
        if self._timer_set or deadline is None:
            return
        self._timer_set = True
        self._clock.call_later(max(0.0, deadline - self._clock.monotonic()), self._close_overdue)

    def _close_overdue(self) -> None:
        self._timer_set = False
        for number in self._scheduler.overdue(self._clock.monotonic(), self.answer_within_s):
            ready = self._ready[number]
            if not ready.hung:
                ready.hung = True
                self._counters.hung += 1
                worker = ready.worker
                self._log("worker_hung", worker=number, instance=worker.instance, pid=worker.pid)
                worker.close(f"it hung: no answer within {self.answer_within_s:g} s")
        self._set_timer()
