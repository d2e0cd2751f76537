"""``Bulkhead``: long-lived worker processes that answer requests made of arrays, supervised, behind one small interface.

All of it runs on the caller's event loop and decides by ``book``; what may block (launching, killing, reaping) has threads of
its own. A worker that dies or hangs is replaced within a budget, what it had is done by another, and callers notice nothing
but time. It knows nothing of what is computed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
import secrets
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

from numpy.typing import NDArray

from orchestrator_adapter.bulkhead.errors import (
    BatchLost,
    BulkheadCannotStart,
    BulkheadClosed,
    BulkheadExhausted,
    HandlerFailed,
    Malformed,
)
from orchestrator_adapter.bulkhead.launchers.launcher import Launcher, WorkerHandle
from orchestrator_adapter.bulkhead.launchers.local import LocalProcesses
from orchestrator_adapter.bulkhead.log import BulkheadLog
from orchestrator_adapter.bulkhead.scheduler import CallBook, RebuildBudget
from orchestrator_adapter.bulkhead.statistics import BulkheadEvent, BulkheadStatistics
from orchestrator_adapter.bulkhead.transport.connection import Connection
from orchestrator_adapter.bulkhead.transport.handshake import KEY_BYTES, TOKEN_BYTES
from orchestrator_adapter.bulkhead.transport.invitation import Invitation
from orchestrator_adapter.bulkhead.transport.listener import Address, Door
from orchestrator_adapter.bulkhead.transport.wire import MAX_BYTES, Arrays, Failure, Frame, Message, encode
from orchestrator_adapter.primitives.clock import Clock, SystemClock, Timeout, sleep
from orchestrator_adapter.primitives.errors import DuplicateRun, describe
from orchestrator_adapter.supervision.restart import RestartPolicy

T = TypeVar("T")

logger = logging.getLogger("orchestrator_adapter.bulkhead")

_UNDERTAKERS = 4
_LOOK_EVERY_S = 0.05  # whether a worker that has not joined yet is still alive


@dataclass(slots=True)
class _Call:
    """One call that has not ended."""

    method: str
    message: Message
    answer: asyncio.Future[dict[str, NDArray[Any]]]


@dataclass(slots=True, eq=False)
class _Life:
    """One instance of one worker, from its invitation to its end.

    Attributes:
        over: Done, with the reason, when its connection is gone.
        ready_at: Monotonic seconds; ``None`` before.
        posted: What it was told to share and has not confirmed, by ticket; ``None`` for what only it was told, as newcomer.
        stopping: It was told to stop: the end of its connection is in order.
        handle: From the moment at which it has been launched, unless it was unwanted by then. Both change under ``lock``.
        told: That it was launched is in the log.
        unwanted: Nobody waits for it to be launched any more.
    """

    worker: int
    instance: int
    over: asyncio.Future[str]
    key: bytes = field(default_factory=partial(secrets.token_bytes, KEY_BYTES))
    connection: Connection | None = None
    pid: int | None = None
    host: str = ""
    ready_at: float | None = None
    posted: dict[int, asyncio.Future[None] | None] = field(default_factory=dict)
    stopping: bool = False
    hung: bool = False
    told: bool = False
    handle: WorkerHandle | None = None
    unwanted: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Bulkhead:
    """``async with Bulkhead("propagator", "sda_ops.propagation.worker:PropagationWorker", …) as bulkhead: await bulkhead.call(…)``.

    ``target`` is ``module:name`` of a callable without arguments that makes a ``Handler`` in each of the ``workers``
    processes. Each is sent up to ``in_flight`` calls at a time, so that it never waits for the next one. An answer that its
    worker has been working on for ``answer_within`` is late: the worker hangs, and is killed. ``rebuilds`` bounds how
    often a worker is started again, all of them together.

    ``start_within`` bounds how long a worker may take to be ready, ``drain_within`` how long the end waits for calls, and
    again for workers to stop; ``max_bytes`` is the most that a request or an answer may hold. ``on_event`` is told every
    decision. Workers are plain local processes unless ``launcher`` starts them otherwise.

    It is entered once, on the loop that it is called on. Made, it has opened nothing.
    """

    def __init__(
        self,
        name: str,
        target: str,
        *,
        workers: int = 1,
        in_flight: int = 2,
        answer_within: timedelta,
        rebuilds: RestartPolicy,
        launcher: Launcher | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        on_event: Callable[[BulkheadEvent], object] | None = None,
        start_within: timedelta = timedelta(seconds=60),
        drain_within: timedelta = timedelta(seconds=5),
        max_bytes: int = MAX_BYTES,
    ) -> None:
        if problems := [
            *(
                f"{what} must be >= 1, got {value}"
                for what, value in _counts(workers, in_flight, max_bytes)
                if value < 1
            ),
            *(f"{what} must be > 0, got {value}" for what, value in _spans(answer_within, start_within, drain_within)),
            *(() if all(target.partition(":")) else (f"target must be 'module:name', got {target!r}",)),
        ]:
            raise ValueError(f"bulkhead {name!r}: {'; '.join(problems)}")
        self.name = name
        self._target = target
        self._workers = workers
        self._answer_within_s = answer_within.total_seconds()
        self._start_within_s = start_within.total_seconds()
        self._drain_within_s = drain_within.total_seconds()
        self._max_bytes = max_bytes
        self._launcher = launcher
        self._clock = clock or SystemClock()
        self._log = BulkheadLog(name, on_event, self._clock)
        self._book = CallBook(in_flight=in_flight)
        self._budget = RebuildBudget(rebuilds, rng or random.Random())
        self._tickets = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._shared: dict[str, Arrays] = {}
        self._invited: dict[bytes, _Life] = {}
        self._lives: dict[int, _Life] = {}  # by worker: those that are launched or ready
        self._ready: dict[int, _Life] = {}
        self._keepers: list[asyncio.Task[None]] = []
        self._burials: set[asyncio.Task[None]] = set()
        self._counts = _Counts()
        self._entered = self._open = self._stopping = False
        self._exhausted: str | None = None
        self._timer_set = False
        self._address = Address()
        self._door: Door | None = None
        self._threads: ThreadPoolExecutor | None = None
        self._undertakers: ThreadPoolExecutor | None = None
        self._all_ready: asyncio.Future[None] | None = None

    def launch_with(self, launcher: Launcher) -> None:
        """Use ``launcher``, unless one was given when it was made. Before it is entered."""
        if self._entered:
            raise DuplicateRun(f"bulkhead {self.name!r} has been entered; its launcher cannot change any more")
        self._launcher = self._launcher or launcher

    async def __aenter__(self) -> Self:
        """Start the workers; returns when all are ready. Raises ``OSError``, and then nothing is left of it."""
        if self._entered:
            raise DuplicateRun(f"bulkhead {self.name!r} has been entered before; make another one")
        self._entered = True
        self._launcher = launcher = self._launcher or LocalProcesses()
        self._all_ready = asyncio.get_running_loop().create_future()
        self._threads = ThreadPoolExecutor(self._workers + 1, thread_name_prefix=f"bulkhead-{self.name}")
        self._undertakers = ThreadPoolExecutor(_UNDERTAKERS, thread_name_prefix=f"bulkhead-{self.name}-ended")
        self._door = Door(
            network=launcher.network,
            clock=self._clock,
            max_bytes=self._max_bytes,
            key_of=self._key_of,
            on_admitted=self._admitted,
            on_refused=self._refused,
        )
        try:
            self._address = await self._door.open()
            self._keepers = [
                asyncio.create_task(self._keep(worker), name=f"bulkhead-{self.name}-worker-{worker}")
                for worker in range(1, self._workers + 1)
            ]
            for keeper in self._keepers:
                keeper.add_done_callback(self._kept)
            await self._all_ready
        except BaseException:
            await _to_the_end(self._stop())
            raise
        self._open = True
        self._log("bulkhead_ready", workers=self._workers, target=self._target)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take no more calls, wait for those there are, stop the workers, kill those that do not stop: all bounded."""
        self._open = False
        try:
            await self._drain()
        finally:
            await _to_the_end(self._stop())

    async def call(self, method: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
        """Have a worker's handler answer; suspends until it has: while every place is taken, that is the backpressure.

        Calls are begun in the order in which they were made, and see whatever had been shared before; several workers
        may answer in any order. The arrays must not change before this returns, and those returned are the caller's.
        Cancelled, the answer is given up, and the worker stays usable.

        Raises ``HandlerFailed`` if the handler raised, ``BatchLost`` if a second worker was lost with it,
        ``BulkheadExhausted`` if there are to be no more workers, ``BulkheadClosed`` outside ``async with``, and ``TypeError``
        or ``ValueError`` for what cannot travel.
        """
        self._refuse_unless_open()
        ticket = next(self._tickets)
        message = encode("call", ticket=ticket, name=method, arrays=arrays, max_bytes=self._max_bytes)
        answer: asyncio.Future[dict[str, NDArray[Any]]] = asyncio.get_running_loop().create_future()
        self._calls[ticket] = _Call(method, message, answer)
        self._counts.calls += 1
        self._book.submit(ticket)
        self._dispatch()
        try:
            return await answer
        finally:
            if self._calls.pop(ticket, None) is not None:  # nobody has ended it: the caller was cancelled
                self._book.abandon(ticket)
                self._counts.abandoned += 1

    async def share(self, key: str, arrays: Arrays) -> None:
        """Give every worker ``arrays`` to hold as ``key``; returns when each has them. Calls made afterwards see them.

        They are copied and kept: whoever is started later is given all that is shared before any call. A call made before
        may see them, too. Cancelled, it may have taken effect or not. Raises ``HandlerFailed`` if a handler would not
        have them (for those started later, what had the key before is kept), and otherwise as ``call`` does.
        """
        self._refuse_unless_open()
        kept = {name: array.copy() for name, array in arrays.items()}
        encode(
            "share", name=key, arrays=kept, max_bytes=self._max_bytes
        )  # what cannot travel is told before it is kept
        before = self._shared.get(key)
        self._shared[key] = kept
        self._counts.shares += 1
        loop = asyncio.get_running_loop()
        confirmations = []
        for life in tuple(self._ready.values()):
            confirmed: asyncio.Future[None] = loop.create_future()
            self._post(life, key, kept, confirmed)
            confirmations.append(confirmed)
        outcomes = await asyncio.gather(*confirmations, return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, HandlerFailed)]
        if failures:
            if self._shared.get(key) is kept:
                del self._shared[key]
                if before is not None:
                    self._shared[key] = before
            raise failures[0]
        self._raise_if_exhausted()

    def statistics(self) -> BulkheadStatistics:
        """As of now."""
        counts = self._counts
        return BulkheadStatistics(
            name=self.name,
            workers=self._workers,
            alive=len(self._ready),
            pids={worker: life.pid for worker, life in sorted(self._ready.items()) if life.pid is not None},
            hosts={worker: life.host for worker, life in sorted(self._ready.items())},
            waiting=self._book.waiting,
            in_flight=self._book.in_flight,
            calls=counts.calls,
            answered=counts.answered,
            failed=counts.failed,
            abandoned=counts.abandoned,
            lost=counts.lost,
            refused=counts.refused,
            resubmitted=counts.resubmitted,
            restarts=counts.restarts,
            hung=counts.hung,
            shares=counts.shares,
            refused_connections=counts.refused_connections,
            exhausted=self._exhausted is not None,
        )

    # A worker's life.

    async def _keep(self, worker: int) -> None:
        """See that there is a worker of this number, one after the other."""
        for instance in itertools.count(1):
            if self._exhausted is not None:
                return
            life = _Life(worker, instance, asyncio.get_running_loop().create_future())
            reason = await self._live(life)
            if self._stopping or self._exhausted is not None:
                return
            assert self._all_ready is not None
            if not self._all_ready.done():
                self._all_ready.set_exception(
                    BulkheadCannotStart(f"bulkhead {self.name!r}: worker-{worker} did not start: {reason}")
                )
                return
            now = self._clock.monotonic()
            uptime_s = now - life.ready_at if life.ready_at is not None else 0.0
            delay_s = self._budget.next_delay_s(now, uptime_s)
            if delay_s is None:
                self._exhaust(f"worker-{worker} was lost: {reason}")
                return
            self._counts.restarts += 1
            self._log("worker_restart", worker=worker, instance=instance + 1, cause=reason, backoff_s=delay_s)
            if delay_s:
                await sleep(self._clock, delay_s)

    def _kept(self, keeper: asyncio.Task[None]) -> None:
        """A keeper has ended. One that fails has a bug, or its launcher has: nobody may wait for it."""
        if keeper.cancelled() or (error := keeper.exception()) is None:
            return
        assert self._all_ready is not None
        if not self._all_ready.done():
            self._all_ready.set_exception(error)
        elif self._exhausted is None:
            self._exhaust(f"a worker could not be replaced: {describe(error)}")

    async def _live(self, life: _Life) -> str:
        """Launch a worker and stay with it until it is over; why it is."""
        token = secrets.token_bytes(TOKEN_BYTES)
        self._invited[token] = life
        self._lives[life.worker] = life
        reason = "it was not wanted any more"
        try:
            await self._in_thread(partial(self._launch, life, self._invitation(life, token)))
            if life.handle is not None:
                self._launched(life)
                reason = await self._until_over(life, life.handle)
        except OSError as error:
            reason = f"it could not be launched: {error}"
        finally:
            # It may be launched this very moment: either it is buried here, or it sees that it is unwanted.
            with life.lock:
                life.unwanted = True
            self._invited.pop(token, None)
            if self._lives.get(life.worker) is life:
                del self._lives[life.worker]
            if life.connection is not None:
                life.connection.close(reason)
            if life.handle is not None:
                await self._bury(life, life.handle, reason)
        return reason

    def _invitation(self, life: _Life, token: bytes) -> Invitation:
        return Invitation(
            bulkhead=self.name,
            worker=life.worker,
            instance=life.instance,
            target=self._target,
            token=token,
            key=life.key,
            max_bytes=self._max_bytes,
            path=self._address.path,
            host=self._address.host,
            port=self._address.port,
            credentials=self._address.credentials,
        )

    def _launch(self, life: _Life, invitation: Invitation) -> None:
        """On a thread."""
        assert self._launcher is not None
        handle = self._launcher.launch(invitation)
        with life.lock:
            if not life.unwanted:
                life.handle = handle
                return
        handle.kill(None)
        handle.stopped("it was not wanted any more")

    def _launched(self, life: _Life) -> None:
        """Told once: a worker may have joined before the thread that launched it comes to say so."""
        if not life.told:
            life.told = True
            self._log("worker_launched", worker=life.worker, instance=life.instance)

    async def _until_over(self, life: _Life, handle: WorkerHandle) -> str:
        deadline = self._clock.monotonic() + self._start_within_s
        while life.ready_at is None and not life.over.done():
            if life.connection is None and not handle.is_alive():
                return "it ended before it had joined"
            if self._clock.monotonic() >= deadline:
                return f"it was not ready within {self._start_within_s:g} s"
            await asyncio.wait({life.over}, timeout=_LOOK_EVERY_S)
        return await asyncio.shield(life.over)

    async def _bury(self, life: _Life, handle: WorkerHandle, reason: str) -> None:
        in_order = life.stopping and life.over.done()
        if in_order or (self._stopping and life.ready_at is None):
            self._log("worker_stopped", worker=life.worker, instance=life.instance)
        else:
            self._log("worker_lost", worker=life.worker, instance=life.instance, pid=life.pid, cause=reason)
        killed = None if in_order else asyncio.ensure_future(self._in_thread(partial(handle.kill, life.pid)))
        # Its successor does not wait for what may take a while: a report to somebody who is away, say.
        burial = asyncio.create_task(self._buried(killed, partial(handle.stopped, None if in_order else reason)))
        self._burials.add(burial)
        burial.add_done_callback(self._burials.discard)
        if killed is not None:
            await asyncio.shield(killed)  # whoever is cancelled here leaves it to the burial

    async def _buried(self, killed: asyncio.Future[None] | None, stopped: Callable[[], None]) -> None:
        try:
            if killed is not None:
                await asyncio.wait({killed})  # a failure is the keeper's to raise; the burial goes on
            await asyncio.get_running_loop().run_in_executor(self._undertakers, stopped)
        except Exception:
            logger.exception("the launcher of bulkhead %r failed when a worker had ended; that goes on", self.name)

    async def _in_thread(self, action: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, action)

    # The door's callbacks.

    def _key_of(self, token: bytes) -> bytes | None:
        life = self._invited.get(token)
        return life.key if life is not None else None

    def _admitted(self, connection: Connection, token: bytes) -> None:
        life = self._invited.pop(token)  # an invitation is good for one
        life.connection = connection
        connection.on_frame = partial(self._frame, life)
        connection.lost.add_done_callback(lambda lost: self._over(life, lost.result()))

    def _refused(self, reason: str) -> None:
        self._counts.refused_connections += 1
        self._log.refused(reason)

    def _over(self, life: _Life, reason: str) -> None:
        """A worker's connection is gone: nothing more comes of it."""
        if not life.over.done():
            life.over.set_result(reason)
        for confirmed in life.posted.values():
            if confirmed is not None and not confirmed.done():
                confirmed.set_result(None)  # its successor is given it before any call
        if self._ready.pop(life.worker, None) is None:
            return
        loss = self._book.lose(life.worker)
        if loss.resubmitted is not None:
            self._counts.resubmitted += 1
            method = self._calls[loss.resubmitted].method
            self._log(
                "batch_resubmitted", worker=life.worker, method=method, ticket=loss.resubmitted, behind=len(loss.behind)
            )
        if loss.given_up is not None:
            self._give_up(loss.given_up, reason)
        self._dispatch()

    def _give_up(self, ticket: int, reason: str) -> None:
        call = self._calls.pop(ticket)
        if self._is_abandoned(call):
            return
        self._counts.lost += 1
        self._log("batch_lost", method=call.method, ticket=ticket, cause=reason)
        message = f"bulkhead {self.name!r}: {call.method}: two workers were lost with it, the second because: {reason}"
        call.answer.set_exception(BatchLost(message, method=call.method, losses=2))

    # Frames.

    def _frame(self, life: _Life, frame: Frame) -> None:
        """Something has come from a worker. Raises ``Malformed`` if it is not its turn to say that."""
        header, ready = frame.header, life.ready_at is not None
        match header.kind:
            case "joined" if life.pid is None:
                life.pid, life.host = header.ticket, header.name
                self._launched(life)
            case "ready" if life.pid is not None and not ready:
                self._welcome(life)
            case "failed" if header.failure is not None and not ready:
                failure = header.failure
                raise Malformed(f"no handler could be made of {self._target!r}: {failure.type}: {failure.message}")
            case "answer" if ready:
                self._answered(life, header.ticket, frame.arrays)
            case "failed" if header.failure is not None and ready:
                self._answered(life, header.ticket, header.failure)
            case kind:
                raise Malformed(f"a worker may not say {kind!r} now")

    def _welcome(self, life: _Life) -> None:
        now = self._clock.monotonic()
        life.ready_at = now
        self._ready[life.worker] = life
        self._book.join(life.worker)
        self._log("worker_ready", worker=life.worker, instance=life.instance, pid=life.pid, host=life.host)
        for key, arrays in self._shared.items():
            self._post(life, key, arrays, None)
        assert self._all_ready is not None
        if len(self._ready) == self._workers and not self._all_ready.done():
            self._all_ready.set_result(None)
        self._dispatch()

    def _post(self, life: _Life, key: str, arrays: Arrays, confirmed: asyncio.Future[None] | None) -> None:
        assert life.connection is not None
        ticket = next(self._tickets)
        life.posted[ticket] = confirmed
        self._book.share(life.worker, ticket, self._clock.monotonic())
        life.connection.send(encode("share", ticket=ticket, name=key, arrays=arrays, max_bytes=self._max_bytes))
        self._set_timer()

    def _answered(self, life: _Life, ticket: int, answer: dict[str, NDArray[Any]] | Failure) -> None:
        shared = ticket in life.posted
        waited_for = self._book.answered(life.worker, ticket, self._clock.monotonic(), shared=shared)
        if shared:
            self._confirmed(life.posted.pop(ticket), answer)
        elif waited_for:
            call = self._calls.pop(ticket)
            if self._is_abandoned(call):
                pass
            elif isinstance(answer, Failure):
                self._counts.failed += 1
                call.answer.set_exception(self._handler_failed(call.method, answer))
            else:
                self._counts.answered += 1
                call.answer.set_result(answer)
        self._dispatch()

    def _confirmed(self, confirmed: asyncio.Future[None] | None, answer: object) -> None:
        if isinstance(answer, Failure):
            if confirmed is None:
                raise Malformed(f"it would not hold what its predecessor held: {answer.type}: {answer.message}")
            if not confirmed.done():
                confirmed.set_exception(self._handler_failed("share", answer))
        elif confirmed is not None and not confirmed.done():
            confirmed.set_result(None)

    def _handler_failed(self, method: str, failure: Failure) -> HandlerFailed:
        return HandlerFailed(
            f"bulkhead {self.name!r}: {method}: the handler raised {failure.type}: {failure.message}",
            error_type=failure.type,
            error_message=failure.message,
            remote_traceback=failure.traceback,
        )

    # Calls.

    def _dispatch(self) -> None:
        if self._stopping:
            return
        for assignment in self._book.assign(self._clock.monotonic()):
            connection = self._ready[assignment.worker].connection
            assert connection is not None
            connection.send(self._calls[assignment.ticket].message)
        self._set_timer()

    def _is_abandoned(self, call: _Call) -> bool:
        """Whether its caller has just been cancelled and has not come round to say so; counted here, then."""
        self._counts.abandoned += call.answer.done()
        return call.answer.done()

    def _set_timer(self) -> None:
        """One timer for all: it is set for whoever may be late first, and looks again then."""
        if self._timer_set or (at := self._book.look_again_at(self._answer_within_s)) is None:
            return
        self._timer_set = True
        self._clock.call_later(max(0.0, at - self._clock.monotonic()), self._look)

    def _look(self) -> None:
        self._timer_set = False
        for worker in self._book.overdue(self._clock.monotonic(), self._answer_within_s):
            life = self._ready[worker]
            if not life.hung:
                life.hung = True
                self._counts.hung += 1
                self._log("worker_hung", worker=worker, instance=life.instance, pid=life.pid)
                assert life.connection is not None
                life.connection.close(f"it hung: no answer within {self._answer_within_s:g} s")
        self._set_timer()

    def _refuse_unless_open(self) -> None:
        self._raise_if_exhausted()
        if not self._open:
            raise BulkheadClosed(f"bulkhead {self.name!r} is {'closed' if self._entered else 'not open yet'}")

    def _raise_if_exhausted(self) -> None:
        if self._exhausted is not None:
            raise BulkheadExhausted(self._exhausted)

    def _cut_off(self, why: Callable[[], Exception]) -> None:
        """End every call that has not ended."""
        if not self._calls:
            return
        self._log("calls_cut_off", calls=len(self._calls))
        for ticket, call in self._calls.items():
            self._book.abandon(ticket)
            if not self._is_abandoned(call):
                self._counts.refused += 1
                call.answer.set_exception(why())
        self._calls.clear()

    # Ends.

    def _exhaust(self, cause: str) -> None:
        self._exhausted = message = f"bulkhead {self.name!r}: the budget for rebuilds is used up: {cause}"
        self._log("bulkhead_exhausted", cause=cause)
        self._cut_off(lambda: BulkheadExhausted(message))
        for life in tuple(self._lives.values()):
            self._end(life, "the bulkhead is exhausted")

    def _end(self, life: _Life, reason: str) -> None:
        if life.connection is not None:
            life.connection.close(reason)
        elif not life.over.done():
            life.over.set_result(reason)

    async def _drain(self) -> None:
        with suppress(TimeoutError):  # what is left is cut off
            async with Timeout(self._clock, self._drain_within_s):
                if answers := {call.answer for call in self._calls.values()}:
                    await asyncio.wait(answers)

    async def _stop(self) -> None:
        """Stop the workers, and leave nothing behind."""
        self._stopping = True
        self._cut_off(lambda: BulkheadClosed(f"bulkhead {self.name!r} was left before it had answered"))
        for keeper, worker in zip(self._keepers, range(1, self._workers + 1), strict=True):
            if (life := self._ready.get(worker)) is not None and life.connection is not None:
                life.stopping = True
                life.connection.send(encode("stop"))
            else:
                keeper.cancel()
        if not await self._ended_in_time():
            for life in tuple(self._lives.values()):
                life.stopping = False
                self._end(life, f"it did not stop within {self._drain_within_s:g} s")
            if not await self._ended_in_time():
                self._log("worker_left_behind", workers=sum(not keeper.done() for keeper in self._keepers))
                for keeper in self._keepers:
                    keeper.cancel()
                await self._ended_in_time()  # or they would bury theirs when the threads for that are gone
        if self._door is not None:
            await self._door.close()
        with suppress(TimeoutError):  # a launcher that takes longer does so on its own thread
            async with Timeout(self._clock, self._drain_within_s):
                if self._burials:
                    await asyncio.wait(self._burials)
        for threads in (self._threads, self._undertakers):
            if threads is not None:
                threads.shutdown(wait=False)
        self._log("bulkhead_closed", **self._counts.told())

    async def _ended_in_time(self) -> bool:
        with suppress(TimeoutError):
            async with Timeout(self._clock, self._drain_within_s):
                if self._keepers:
                    await asyncio.wait(self._keepers)
        return all(keeper.done() for keeper in self._keepers)


@dataclass(slots=True)
class _Counts:
    """See ``BulkheadStatistics``."""

    calls: int = 0
    answered: int = 0
    failed: int = 0
    abandoned: int = 0
    lost: int = 0
    refused: int = 0
    resubmitted: int = 0
    restarts: int = 0
    hung: int = 0
    shares: int = 0
    refused_connections: int = 0

    def told(self) -> dict[str, int]:
        """For the last line of the log."""
        return {"calls": self.calls, "answered": self.answered, "lost": self.lost, "restarts": self.restarts}


def _counts(workers: int, in_flight: int, max_bytes: int) -> tuple[tuple[str, int], ...]:
    return (("workers", workers), ("in_flight", in_flight), ("max_bytes", max_bytes))


def _spans(*spans: timedelta) -> list[tuple[str, timedelta]]:
    names = ("answer_within", "start_within", "drain_within")
    return [(name, span) for name, span in zip(names, spans, strict=True) if span <= timedelta(0)]


async def _to_the_end(ending: Awaitable[None]) -> None:
    """Await it although the caller is cancelled meanwhile; that is raised afterwards. It is bounded by itself."""
    task = asyncio.ensure_future(ending)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
