"""Schedules, for tests: one coroutine, run in virtual time, its ready callbacks in an order that is not asyncio's own.

An event loop runs what is ready first in, first out, so a test sees one interleaving of all that are possible. Here every
seed is another one, and each can be had again::

    def test_nothing_is_lost_under_any_interleaving() -> None:
        with frozen_heap():
            for seed in range(1_000):
                run_schedule(seed, scenario)  # ``async def scenario()``: builds a graph with clock=LoopClock(), runs it

What is small enough need not be left to chance: ``run_every_schedule`` runs each of its interleavings, or each that
departs from asyncio's own order a few times at most (delay-bounded scheduling: Emmi, Qadeer, Rakamarić, POPL 2011; most
races need but one or two preemptions).

No time is waited: where nothing is ready, the clock jumps to the next timer, now and then a little past it, as a busy
loop would. Where there is no timer either, nobody can ever wake anybody again: that is a ``Deadlock``, and it is raised.
There are no threads: what is given to an executor runs on the loop, some virtual milliseconds later.

Knows nothing of graphs. Relies on these insides of CPython's asyncio (3.11 to 3.13), which
``tests/orchestrator_adapter/testing/test_schedules.py`` watches: ``BaseEventLoop._run_once`` takes what it runs next from
``_ready.popleft()``, waits in ``_selector.select(timeout)``, and keeps its timers in the heap ``_scheduled``.
"""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import warnings
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from math import ulp
from typing import Any, TypeVar

from orchestrator_adapter.primitives.gc_freeze import frozen_heap

T = TypeVar("T")

_START_NS = 1_767_225_600_000_000_000  # 2026-01-01T00:00:00Z
_LATE_SHARE = 0.25  # of the jumps: the loop comes a little late, so that several timers are due at once
_LATE_S = 0.02
_SLOWEST_THREAD_S = 0.05
_BIASES = ((0.0, 0.0), (0.0, 0.0), (0.6, 0.0), (0.0, 0.6))  # how often the oldest, and the newest, is simply preferred


class ScheduleFault(AssertionError):
    """A schedule did not end as every schedule must."""


class Deadlock(ScheduleFault):
    """Nothing is ready and nothing is due: nobody will ever wake anybody again."""


class OutOfTime(ScheduleFault):
    """It has run for longer than it may, in virtual time or in callbacks: a hang with timers, or a busy loop."""


class LeakedTasks(ScheduleFault):
    """It has ended and left something: a running task, an exception nobody took, a coroutine nobody awaited."""


class LoopClock:
    """The orchestrator's clock on the running event loop's own time; on a ``VirtualTimeLoop`` that is virtual time."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def now_ns(self) -> int:
        return _START_NS + round(self.monotonic() * 1e9)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(delay_s, callback)


def run_schedule(
    seed: int | Mapping[int, int],
    make: Callable[[], Coroutine[Any, Any, T]],
    *,
    limit: timedelta = timedelta(hours=1),
    max_callbacks: int = 1_000_000,
) -> T:
    """Run ``make()`` to its end under the schedule of this seed, and return what it returns.

    The same seed gives the same schedule, in every process, as long as the code that runs draws on no other chance (the
    order of a set of objects is one). Instead of a seed, the preemptions that ``run_every_schedule`` names give that
    schedule again. Must not be called from inside a running loop.

    Raises what the coroutine raises; ``Deadlock``; ``OutOfTime`` past ``limit`` of virtual time or after
    ``max_callbacks``; ``LeakedTasks`` for tasks that still run, exceptions that were never retrieved, and coroutines that
    were never awaited. It collects garbage to find the last two: put many schedules in one ``frozen_heap()``.
    """
    order = _Seeded(random.Random(seed)) if isinstance(seed, int) else _Prescribed(seed)
    with frozen_heap():
        return _run(VirtualTimeLoop(order, limit=limit, max_callbacks=max_callbacks), make)


def run_every_schedule(
    make: Callable[[], Coroutine[Any, Any, object]],
    *,
    preemptions: int | None = None,
    limit: timedelta = timedelta(hours=1),
    max_callbacks: int = 100_000,
    max_schedules: int = 1_000_000,
) -> int:
    """Run ``make()`` once under each schedule there is, and return how many that were.

    Their number grows exponentially with what is ready together. ``preemptions`` bounds it: only schedules that take
    another callback than the oldest that often, at most. The fewest preemptions come first, so that a failure is told by
    a short one.

    Raises, on the first that fails, what ``run_schedule`` would, with a note of the preemptions that give it again; and
    ``OutOfTime`` where there are more than ``max_schedules``: nothing is cut short in silence.
    """
    with frozen_heap():
        return _run_every(make, preemptions, limit, max_callbacks, max_schedules)


def _run_every(
    make: Callable[[], Coroutine[Any, Any, object]],
    preemptions: int | None,
    limit: timedelta,
    max_callbacks: int,
    max_schedules: int,
) -> int:
    ran = 0
    # Breadth first: each schedule that ran tells where, after its last departure, one more could be made.
    pending: deque[dict[int, int]] = deque([{}])
    while pending:
        preempted = pending.popleft()
        if ran == max_schedules:
            raise OutOfTime(f"expected at most {max_schedules:,} schedules, and there are more; bound the preemptions")
        order = _Prescribed(preempted)
        try:
            _run(VirtualTimeLoop(order, limit=limit, max_callbacks=max_callbacks), make)
        except BaseException as error:
            error.add_note(f"again, with: run_schedule({preempted}, …)")
            raise
        ran += 1
        if preemptions is None or len(preempted) < preemptions:
            for at in range(max(preempted, default=-1) + 1, len(order.ready)):
                pending.extend({**preempted, at: turn} for turn in range(1, order.ready[at]))
    return ran


def _run(loop: VirtualTimeLoop, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    left: list[str] = []
    loop.set_exception_handler(lambda _, context: left.append(_told(context)))
    gc.collect(1)  # what was left a moment ago has nothing to do with this run; what is older is frozen by now
    with _complaints(left):
        try:
            result = loop.run_until_complete(make())
            left += [f"still running: {task!r}" for task in _by_name(asyncio.all_tasks(loop))]
        finally:
            complaints, left[:] = tuple(left), []
            loop.shut_down()
            gc.collect()
        # What winding up has to say is of interest only where there was nothing to wind up.
        complaints += () if any(text.startswith("still running") for text in complaints) else tuple(left)
    if complaints:
        raise LeakedTasks("; ".join(complaints))
    return result


class _Seeded:
    """Turns and moments drawn from a seed."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._oldest, self._newest = rng.choice(_BIASES)

    def turn(self, ready: int) -> int:
        """Which of so many callbacks, oldest first, is next. Every one has its turn in the end."""
        draw = self._rng.random()
        if draw < self._oldest:
            return 0
        if draw < self._oldest + self._newest:
            return ready - 1
        return self._rng.randrange(ready)

    def late_s(self) -> float:
        """How much later than the next timer is due the loop comes to it."""
        return self._rng.uniform(0.0, _LATE_S) if self._rng.random() < _LATE_SHARE else 0.0

    def thread_s(self) -> float:
        """How long a thread takes."""
        return self._rng.uniform(0.0, _SLOWEST_THREAD_S)


class _Prescribed:
    """The oldest first, but for the preemptions prescribed: by number of the choice, counted from 0, which one instead.

    Attributes:
        ready: How many callbacks there were at each choice.
    """

    def __init__(self, preemptions: Mapping[int, int]) -> None:
        self.ready: list[int] = []
        self._preemptions = preemptions

    def turn(self, ready: int) -> int:
        """As ``_Seeded.turn``."""
        self.ready.append(ready)
        return self._preemptions.get(len(self.ready) - 1, 0)

    def late_s(self) -> float:
        """Never late: only what is due at one time is ready together."""
        return 0.0

    def thread_s(self) -> float:
        """Every thread takes its time."""
        return _SLOWEST_THREAD_S


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """An event loop without I/O, threads or waiting, whose ready callbacks run in the order that ``order`` says.

    Stricter than asyncio, which promises first in, first out for ``call_soon``: code that passes here does not lean on
    that promise.

    Attributes:
        callbacks: How many have run.
    """

    def __init__(self, order: _Seeded | _Prescribed, *, limit: timedelta, max_callbacks: int) -> None:
        super().__init__()
        self.callbacks = 0
        self._order = order
        self._now = 0.0
        self._limit_s = limit.total_seconds()
        self._max_callbacks = max_callbacks
        self._scheduled: list[asyncio.TimerHandle]
        self._clock_resolution = ulp(0.0)  # so that a timer is due at its very time, and not a little before
        self._selector = _Jump(self._jump)
        self._ready: deque[asyncio.Handle] = _Ready(order, self._count)

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def run_in_executor(  # type: ignore[override]  # typeshed ties func to args; here they are only passed on
        self,
        executor: Any,  # noqa: ARG002 - the interface is asyncio's
        func: Callable[..., T],
        *args: Any,
    ) -> asyncio.Future[T]:
        """Run it on the loop, a moment later; as in a thread, cancelling the future does not stop it."""
        future: asyncio.Future[T] = self.create_future()

        def run() -> None:
            try:
                result = func(*args)
            except BaseException as error:  # noqa: BLE001 - as concurrent.futures does
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(result)

        self.call_later(self._order.thread_s(), run)
        return future

    def shut_down(self) -> None:
        """Cancel what still runs, give it the chance to end, and close the loop. Whatever it says meanwhile is ignored."""
        self._limit_s, self._max_callbacks = self._now + self._limit_s, self.callbacks + self._max_callbacks
        self._ready = deque(self._ready)  # its order is no longer part of the schedule
        if tasks := asyncio.all_tasks(self):
            self.set_exception_handler(lambda _, __: None)
            for task in _by_name(tasks):
                task.cancel()
            with suppress(ScheduleFault):  # raised by what does not heed its cancellation either
                self.run_until_complete(asyncio.wait(tasks))
        self.run_until_complete(self.shutdown_asyncgens())
        self.close()

    def _jump(self, timeout: float | None) -> None:
        if timeout is None:
            running = "; ".join(repr(task) for task in _by_name(asyncio.all_tasks(self)))
            raise Deadlock(f"after {self._now:g} s nothing is ready and nothing is due; waiting: {running}")
        if timeout > 0:
            self._now = max(self._now, self._scheduled[0].when()) + self._order.late_s()
            self._clock_resolution = ulp(self._now)
            if self._now > self._limit_s:
                raise OutOfTime(f"expected an end within {self._limit_s:g} virtual seconds")

    def _count(self) -> None:
        self.callbacks += 1
        if self.callbacks > self._max_callbacks:
            raise OutOfTime(f"expected an end within {self._max_callbacks:,} callbacks, at {self._now:g} s")

    def _process_events(self, event_list: list[Any]) -> None:
        """There is no I/O, hence nothing to process."""

    def _write_to_self(self) -> None:
        """There are no threads that could wake it."""


class _Jump:
    """Stands where the loop has its selector: does not wait, but moves time."""

    def __init__(self, jump: Callable[[float | None], None]) -> None:
        self._jump = jump

    def select(self, timeout: float | None) -> list[Any]:
        self._jump(timeout)
        return []


class _Ready(deque[asyncio.Handle]):
    """The ready callbacks: it is said which is next, not the oldest taken."""

    def __init__(self, order: _Seeded | _Prescribed, count: Callable[[], None]) -> None:
        super().__init__()
        self._order = order
        self._count = count

    def popleft(self) -> asyncio.Handle:
        self._count()
        if len(self) == 1:
            return super().popleft()
        index = self._order.turn(len(self))
        handle = self[index]
        del self[index]
        return handle


@contextmanager
def _complaints(left: list[str]) -> Iterator[None]:
    """Collect, as text, warnings and what Python can only print: exceptions in finalizers."""
    hook = sys.unraisablehook

    def unraisable(what: Any) -> None:
        left.append(f"unraisable: {what.exc_value!r} in {what.object!r}")

    def warned(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        left.append(f"{category.__name__}: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", RuntimeWarning)
        warnings.simplefilter("always", ResourceWarning)
        warnings.showwarning = warned
        sys.unraisablehook = unraisable
        try:
            yield
        finally:
            sys.unraisablehook = hook


def _told(context: dict[str, Any]) -> str:
    """What the loop's exception handler was told, as one line."""
    error = context.get("exception")
    return f"{context['message']}: {error!r}" if error is not None else f"{context['message']}: {context.get('task')!r}"


def _by_name(tasks: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    """In an order that is the same in every process."""
    return sorted(tasks, key=lambda task: task.get_name())
