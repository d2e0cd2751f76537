"""Blocking calls: each operator has a pool of threads for them, and the pool keeps account of every call.

The accounts are kept on the event loop, so they need no lock; a thread only calls the function. A thread cannot be
interrupted: a call that no operator waits for any more is *abandoned*. Its thread runs on, and another thread takes its place, up to
a bound.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Generic, ParamSpec, TypeVar

from orchestrator_adapter.primitives.check_fields import check_fields
from orchestrator_adapter.primitives.daemon_threads import DaemonThreads
from orchestrator_adapter.primitives.decision import Decision
from orchestrator_adapter.primitives.errors import BlockingCallTimedOut, BlockingPoolExhausted
from orchestrator_adapter.primitives.event_log import BoundedLog
from orchestrator_adapter.primitives.wakeup import resolve

P = ParamSpec("P")
R = TypeVar("R")

_NAMED_IN_ERROR = 3  # calls that an error message names


@dataclass(frozen=True, slots=True)
class BlockingPool:
    """A pool of threads for the blocking calls of operators. Operators with equal pools share one.

    An operator or a sink without one has a pool of its own, with the operator's name and these defaults. Threads are
    started when they are needed. They are daemon threads: the process ends even if a call hangs.

    Attributes:
        name: Names the pool in metrics and messages.
        threads: Calls that run at the same time. Further calls wait.
        replacements: Abandoned threads that are replaced. Beyond that the pool shrinks; when no thread is left, a call
            raises ``BlockingPoolExhausted``, and the graph is torn down, because a restart of the operator would not help.
        timeout: A call of ``run_blocking`` that takes longer raises ``BlockingCallTimedOut``, and its thread is abandoned.
            A call of ``acknowledge_after`` that takes longer is reported, and goes on. ``None``: no limit.
    """

    name: str
    threads: int = 4
    replacements: int = 8
    timeout: timedelta | None = timedelta(minutes=5)

    def __post_init__(self) -> None:
        check_fields(
            "BlockingPool",
            ("name", self.name, bool(self.name), "a name"),
            ("threads", self.threads, self.threads >= 1, ">= 1"),
            ("replacements", self.replacements, self.replacements >= 0, ">= 0"),
            ("timeout", self.timeout, self.timeout is None or self.timeout > timedelta(0), "> 0, or None"),
        )


@dataclass(frozen=True, slots=True)
class HangingCall:
    """A blocking call that is abandoned or overdue.

    Attributes:
        operator: The operator that made it.
        instance: That operator's instance.
        function: The function, such as ``time.sleep``.
        running_s: For how long it has run, seconds.
        abandoned: Its operator no longer waits for it. If false, it is overdue: a sink waits for its write.
    """

    operator: str
    instance: int
    function: str
    running_s: float
    abandoned: bool

    def __str__(self) -> str:
        what = "abandoned" if self.abandoned else "overdue"
        return f"blocking call {self.function} of operator {self.operator!r} is {what} after {self.running_s:.1f} s"


@dataclass(frozen=True, slots=True)
class BlockingPoolStatistics:
    """One pool at one moment.

    Attributes:
        threads: Calls that can run at the same time now: ``BlockingPool.threads``, or fewer if more threads are abandoned
            than are replaced.
        busy: Calls that run, without the abandoned ones.
        waiting: Calls that wait for a thread.
        abandoned: Abandoned calls that still run.
        calls_total: Calls that have begun since the start.
        abandoned_total: Calls that were abandoned since the start.
        hanging: The calls that are abandoned or overdue now, the oldest first.
    """

    threads: int
    busy: int
    waiting: int
    abandoned: int
    calls_total: int
    abandoned_total: int
    hanging: tuple[HangingCall, ...]


class _Call(Generic[R]):
    """One blocking call."""

    __slots__ = (
        "abandoned",
        "began_at",
        "body",
        "function",
        "instance",
        "log",
        "operator",
        "over",
        "overdue",
        "thread",
    )

    def __init__(self, caller: BlockingCalls, function: Callable[..., R], body: Callable[[], R]) -> None:
        self.operator = caller.operator
        self.instance = caller.instance
        self.log = caller.log
        self.function = function
        self.body = body
        self.began_at = 0.0  # loop time
        self.thread: int | None = None
        self.over: asyncio.Future[None] | None = (
            None  # resolved when the call has ended, for a caller that waits for it
        )
        self.overdue = False
        self.abandoned = False

    def __call__(self) -> R:
        """In a thread. A future cannot hold a ``StopIteration``: on Python 3.11 it would never complete."""
        self.thread = threading.get_ident()
        try:
            return self.body()
        except StopIteration as stop:
            raise RuntimeError("a blocking function raised StopIteration") from stop

    @property
    def function_name(self) -> str:
        function: Any = self.function
        while isinstance(function, partial):
            function = function.func
        name = getattr(function, "__qualname__", None) or type(function).__qualname__
        module = getattr(function, "__module__", None)
        return name if module in {None, "builtins"} else f"{module}.{name}"

    def stack(self) -> str:
        """The stack of its thread, innermost frame last; empty if the call has not begun."""
        frame = sys._current_frames().get(self.thread) if self.thread is not None else None  # noqa: SLF001 - the documented way to a thread's stack
        return "" if frame is None else "".join(traceback.format_stack(frame))


class BlockingThreads:
    """One pool of one graph. Used on the event loop.

    Attributes:
        options: The declaration.
        calls_total: Calls that have begun.
    """

    def __init__(self, options: BlockingPool, graph: str) -> None:
        self.options = options
        most = options.threads + options.replacements
        self._threads = DaemonThreads(f"{graph}-blocking-{options.name}", max_threads=most)
        self._running: dict[_Call[Any], None] = {}
        self._abandoned: dict[_Call[Any], None] = {}
        self._waiting: deque[tuple[_Call[Any], asyncio.Future[None]]] = deque()
        self.calls_total = 0
        self._abandoned_total = 0
        self._idle: asyncio.Event | None = None

    @property
    def usable(self) -> int:
        """Calls that can run at the same time now."""
        options = self.options
        return min(options.threads, options.threads + options.replacements - len(self._abandoned))

    @property
    def is_idle(self) -> bool:
        """No thread runs a call."""
        return not self._running and not self._abandoned

    async def enter(self, call: _Call[Any]) -> None:
        """Wait until a thread is free for ``call``. If it is cancelled here, the call never begins."""
        if self.usable <= 0:
            raise self._exhausted()
        if len(self._running) < self.usable and not self._waiting:
            self._running[call] = None
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((call, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if call in self._running:  # its turn came together with the cancellation
                del self._running[call]
                self._admit()
            else:
                self._waiting = deque(waiting for waiting in self._waiting if waiting[0] is not call)
            raise

    def begin(self, call: _Call[R]) -> asyncio.Future[R]:
        """Start ``call``, which has entered. Never cancel the future: the pool would not learn that the thread is free again."""
        loop = asyncio.get_running_loop()
        call.began_at = loop.time()
        self.calls_total += 1
        try:
            work = loop.run_in_executor(self._threads, call)
        except BaseException:  # no thread can be started
            del self._running[call]
            self._admit()
            raise
        work.add_done_callback(partial(self._ended, call))
        return work

    def abandon(self, call: _Call[Any], why: str) -> None:
        """The caller of ``call`` no longer waits: another thread may take the place of its thread."""
        if call not in self._running:
            return  # it has just ended
        del self._running[call]
        self._abandoned[call] = None
        call.abandoned = True
        self._abandoned_total += 1
        call.log.note(
            "blocking_call",
            why,
            event=Decision.BLOCKING_CALL_ABANDONED,
            instance=call.instance,
            function=call.function_name,
            pool=self.options.name,
            abandoned=len(self._abandoned),
            usable=max(0, self.usable),
        )
        self._admit()

    def mark_overdue(self, call: _Call[Any], limit_s: float) -> None:
        """``call`` takes longer than allowed, and its caller goes on waiting for it."""
        call.overdue = True
        message = f"blocking call {call.function_name} has not returned within {limit_s:g} s; the operator waits for it"
        event = Decision.BLOCKING_CALL_OVERDUE
        call.log.note("blocking_call", message, event=event, instance=call.instance, stack=call.stack())

    def hanging(self) -> Iterable[_Call[Any]]:
        """The calls that are abandoned or overdue, and still run."""
        yield from self._abandoned
        yield from (call for call in self._running if call.overdue)

    @property
    def calls(self) -> tuple[_Call[Any], ...]:
        """Every call that runs, the abandoned ones first."""
        return (*self._abandoned, *self._running)

    def statistics(self) -> BlockingPoolStatistics:
        """The pool as it is now."""
        now = asyncio.get_running_loop().time() if self._abandoned or self._running else 0.0
        return BlockingPoolStatistics(
            threads=max(0, self.usable),
            busy=len(self._running),
            waiting=len(self._waiting),
            abandoned=len(self._abandoned),
            calls_total=self.calls_total,
            abandoned_total=self._abandoned_total,
            hanging=tuple(
                HangingCall(call.operator, call.instance, call.function_name, now - call.began_at, call.abandoned)
                for call in self.hanging()
            ),
        )

    async def wait_until_idle(self) -> None:
        """Wait until no thread runs a call."""
        if not self.is_idle:
            self._idle = asyncio.Event()
            await self._idle.wait()

    def shutdown(self) -> None:
        """Let idle threads end. Does not wait for a call that still runs."""
        self._threads.shutdown()

    def _ended(self, call: _Call[Any], work: asyncio.Future[Any]) -> None:
        if call.abandoned:
            del self._abandoned[call]
            if not work.cancelled():
                work.exception()  # retrieved: its caller no longer waits for the result
        else:
            del self._running[call]
        if call.over is not None:
            resolve(call.over)
        if self._waiting:
            self._admit()
        if self._idle is not None and self.is_idle:
            self._idle.set()

    def _admit(self) -> None:
        """Let waiting calls begin, the oldest first, or fail them if no thread is left."""
        while self._waiting and len(self._running) < self.usable:
            call, turn = self._waiting.popleft()
            if not turn.done():
                self._running[call] = None
                turn.set_result(None)
        if self.usable <= 0:
            while self._waiting:
                _, turn = self._waiting.popleft()
                if not turn.done():
                    turn.set_exception(self._exhausted())

    def _exhausted(self) -> BlockingPoolExhausted:
        named = dict.fromkeys(f"{call.function_name} of operator {call.operator!r}" for call in self._abandoned)
        names = ", ".join([*named][:_NAMED_IN_ERROR]) + (", …" if len(named) > _NAMED_IN_ERROR else "")
        return BlockingPoolExhausted(
            f"blocking pool {self.options.name!r} has no thread left: {len(self._abandoned)} calls hang ({names}); "
            "give these calls a timeout of their own"
        )


class BlockingCalls:
    """What one operator calls blocking functions with.

    Attributes:
        operator: The operator.
        instance: Its present instance.
        log: Its log.
        pool: The pool, which other operators may share.
    """

    def __init__(self, operator: str, log: BoundedLog, pool: BlockingThreads) -> None:
        self.operator = operator
        self.instance = 0
        self.log = log
        self.pool = pool

    @property
    def timeout(self) -> timedelta | None:
        """The pool's limit for one call."""
        return self.pool.options.timeout

    async def run(self, limit: timedelta | None, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """See ``WiredEnds.run_blocking_within``."""
        pool, call = self.pool, self._call(function, args, kwargs)
        await pool.enter(call)
        work = pool.begin(call)
        loop = asyncio.get_running_loop()
        call.over = over = loop.create_future()
        timer = None if limit is None else loop.call_later(limit.total_seconds(), resolve, over)
        try:
            await over
        except asyncio.CancelledError:
            if work.done() and not work.cancelled():
                work.exception()  # retrieved: the caller does not wait for it
            pool.abandon(call, "the operator stopped waiting for a blocking call")
            raise
        finally:
            if timer is not None:
                timer.cancel()
        if work.done():
            return work.result()
        assert limit is not None
        message = f"blocking call {call.function_name} did not return within {limit.total_seconds():g} s"
        pool.abandon(call, message)
        raise BlockingCallTimedOut(f"{message}; its thread is abandoned")

    async def complete(
        self, function: Callable[P, object], *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.CancelledError | None:
        """Call ``function``. Once it has begun, wait for its end in any case; return the cancellation that arrived while it ran."""
        pool, call = self.pool, self._call(function, args, kwargs)
        await pool.enter(call)
        work = pool.begin(call)
        timer: asyncio.TimerHandle | None = None
        if self.timeout is not None:
            limit_s = self.timeout.total_seconds()
            timer = asyncio.get_running_loop().call_later(limit_s, pool.mark_overdue, call, limit_s)
        cancelled: asyncio.CancelledError | None = None
        while not work.done():
            try:
                await asyncio.wait({work})
            except asyncio.CancelledError as error:
                cancelled = error
        if timer is not None:
            timer.cancel()
        work.result()
        return cancelled

    def _call(self, function: Callable[..., R], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Call[R]:
        return _Call(self, function, partial(copy_context().run, function, *args, **kwargs))


class BlockingPools:
    """The pools of one graph, by name."""

    def __init__(self, graph: str) -> None:
        self._graph = graph
        self._pools: dict[str, BlockingThreads] = {}

    def get(self, options: BlockingPool) -> BlockingThreads:
        """The pool of that name. The plan has checked that equal names mean equal options."""
        if options.name not in self._pools:
            self._pools[options.name] = BlockingThreads(options, self._graph)
        return self._pools[options.name]

    def statistics(self) -> dict[str, BlockingPoolStatistics]:
        """Every pool that has had a call, as it is now."""
        return {name: pool.statistics() for name, pool in self._pools.items() if pool.calls_total}

    def stack(self, operator: str) -> str:
        """The stacks of the threads that run calls of ``operator``; empty without such a thread."""
        stacks = [
            f"in its thread, in {call.function_name}:\n{call.stack()}"
            for pool in self._pools.values()
            for call in pool.calls
            if call.operator == operator
        ]
        return "".join(stacks)

    def still_running(self) -> dict[str, int]:
        """The operators whose blocking calls still run, with the instance that made the oldest one."""
        running: dict[str, int] = {}
        for pool in self._pools.values():
            for call in pool.calls:
                running.setdefault(call.operator, call.instance)
        return running

    async def wait_until_idle(self, limit_s: float) -> None:
        """Wait until no thread of any pool runs a call, at most ``limit_s`` seconds of real time."""
        with suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                for pool in self._pools.values():
                    await pool.wait_until_idle()

    def shutdown(self) -> None:
        """Let idle threads end. Does not wait for a call that still runs."""
        for pool in self._pools.values():
            pool.shutdown()
