"""Schedules, for tests: one coroutine, run in virtual time, with its ready callbacks in another order than asyncio's own.

An event loop runs ready callbacks first in, first out, so a test sees one of many possible interleavings. Here each seed
gives another interleaving, and the same seed gives the same one::

    def test_no_interleaving_loses_an_item() -> None:
        with frozen_heap():
            for seed in range(1_000):
                run_schedule(seed, scenario)  # ``async def scenario()``: builds a graph with clock=LoopClock(), runs it

For small programs, ``run_every_schedule`` runs every interleaving, or every one with a limited number of preemptions:
choices of another callback than the oldest (delay-bounded scheduling: Emmi, Qadeer, Rakamarić, POPL 2011; most races need
only one or two).

No real time passes: when no callback is ready, the clock jumps to the next timer, sometimes a little past it, as on a busy
loop. When there is no timer either, no task can ever run again: ``Deadlock`` is raised. There are no threads: a function for
an executor runs on the loop, some virtual milliseconds later.

Knows nothing of graphs. It relies on these internals of CPython's asyncio (3.11 to 3.13), which
``tests/orchestrator_adapter/testing/test_schedules.py`` checks: ``BaseEventLoop._run_once`` takes the next callback from
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
_LATE_SHARE = 0.25  # of the jumps: the loop is a little late, so that several timers are due together
_LATE_S = 0.02
_SLOWEST_THREAD_S = 0.05
_BIASES = ((0.0, 0.0), (0.0, 0.0), (0.6, 0.0), (0.0, 0.6))  # the shares of choices that take the oldest, and the newest


class ScheduleFault(AssertionError):
    """A schedule did not end correctly."""


class Deadlock(ScheduleFault):
    """No callback is ready and no timer is set: no task can ever run again."""


class OutOfTime(ScheduleFault):
    """It ran for longer than allowed, in virtual time or in callbacks: it repeats a timer or a busy loop without end."""


class LeakedTasks(ScheduleFault):
    """It ended and left a running task, an exception that was not retrieved, or a coroutine that was not awaited."""


class LoopClock:
    """The orchestrator's clock on the running event loop's own time; on a ``VirtualTimeLoop`` that is virtual time."""

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time()

    def now_ns(self) -> int:
        """Before the loop runs, for example while a graph is built, this is the time at which virtual time begins."""
        try:
            return _START_NS + round(self.monotonic() * 1e9)
        except RuntimeError:
            return _START_NS

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

    The same seed gives the same schedule in every process, if the code uses no other randomness (the order of a set of
    objects is one). Instead of a seed, it takes the preemptions that ``run_every_schedule`` reports, to repeat that
    schedule. Must not be called inside a running loop.

    Raises what the coroutine raises; ``Deadlock``; ``OutOfTime`` after ``limit`` of virtual time or ``max_callbacks``;
    ``LeakedTasks`` for tasks that still run, exceptions that were never retrieved, and coroutines that were never awaited.
    To find the last two it collects garbage: run many schedules inside one ``frozen_heap()``.
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
    """Run ``make()`` once under every schedule, and return their number.

    The number grows exponentially with the callbacks that are ready together. ``preemptions`` bounds it: a schedule may
    take another callback than the oldest that many times at most. Schedules with few preemptions run first, so that a
    failure is reported with few of them.

    On the first failure it raises what ``run_schedule`` would, with a note of the preemptions that repeat it. Raises
    ``OutOfTime`` if there are more than ``max_schedules``.
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
    # Breadth first: each schedule that ran shows where, after its last preemption, one more is possible.
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
    loop.set_exception_handler(lambda _, context: left.append(_message(context)))
    gc.collect(1)  # recent garbage is not of this run; older objects are frozen
    with _complaints(left):
        try:
            result = loop.run_until_complete(make())
            left += [f"still running: {task!r}" for task in _by_name(asyncio.all_tasks(loop))]
        finally:
            complaints, left[:] = tuple(left), []
            loop.shut_down()
            gc.collect()
        # Complaints of the shutdown count only if no task was left: otherwise the shutdown itself causes them.
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
        """The index of the next callback among so many, oldest first. Every callback runs eventually."""
        draw = self._rng.random()
        if draw < self._oldest:
            return 0
        if draw < self._oldest + self._newest:
            return ready - 1
        return self._rng.randrange(ready)

    def late_s(self) -> float:
        """How late the loop handles the next timer."""
        return self._rng.uniform(0.0, _LATE_S) if self._rng.random() < _LATE_SHARE else 0.0

    def thread_s(self) -> float:
        """How long a call in a thread takes."""
        return self._rng.uniform(0.0, _SLOWEST_THREAD_S)


class _Prescribed:
    """The oldest first, except at the given preemptions: the number of a choice, from 0, to the index taken instead.

    Attributes:
        ready: How many callbacks were ready at each choice.
    """

    def __init__(self, preemptions: Mapping[int, int]) -> None:
        self.ready: list[int] = []
        self._preemptions = preemptions

    def turn(self, ready: int) -> int:
        """As ``_Seeded.turn``."""
        self.ready.append(ready)
        return self._preemptions.get(len(self.ready) - 1, 0)

    def late_s(self) -> float:
        """Never late: only timers of the same time are due together."""
        return 0.0

    def thread_s(self) -> float:
        """Every call takes the longest time."""
        return _SLOWEST_THREAD_S


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """An event loop without I/O, threads or waiting, whose ready callbacks run in the order that ``order`` says.

    Stricter than asyncio, which promises first in, first out for ``call_soon``: code that passes here does not depend on
    that order.

    Attributes:
        callbacks: The number of callbacks that have run.
    """

    def __init__(self, order: _Seeded | _Prescribed, *, limit: timedelta, max_callbacks: int) -> None:
        super().__init__()
        self.callbacks = 0
        self._order = order
        self._now = 0.0
        self._limit_s = limit.total_seconds()
        self._max_callbacks = max_callbacks
        self._scheduled: list[asyncio.TimerHandle]
        self._clock_resolution = ulp(0.0)  # so that no timer is due before its time
        self._selector = _Jump(self._jump)
        self._ready: deque[asyncio.Handle] = _Ready(order, self._count)

    def time(self) -> float:
        """Virtual seconds since the loop was created."""
        return self._now

    def run_in_executor(  # type: ignore[override]  # typeshed ties func to args; here they are only passed on
        self,
        executor: Any,  # noqa: ARG002 - the interface is asyncio's
        func: Callable[..., T],
        *args: Any,
    ) -> asyncio.Future[T]:
        """Run ``func`` on the loop, a moment later. As in a thread, cancelling the future does not stop it."""
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
        """Cancel the tasks that still run, let them end, and close the loop. Errors of this phase are ignored."""
        self._limit_s, self._max_callbacks = self._now + self._limit_s, self.callbacks + self._max_callbacks
        self._ready = deque(self._ready)  # the order of the shutdown is not part of the schedule
        if tasks := asyncio.all_tasks(self):
            self.set_exception_handler(lambda _, __: None)
            for task in _by_name(tasks):
                task.cancel()
            with suppress(ScheduleFault):  # a task ignores its cancellation
                self.run_until_complete(asyncio.wait(tasks))
        self.run_until_complete(self.shutdown_asyncgens())
        self.close()

    def _jump(self, timeout: float | None) -> None:
        if timeout is None:
            running = "; ".join(repr(task) for task in _by_name(asyncio.all_tasks(self)))
            raise Deadlock(f"after {self._now:g} s no callback is ready and no timer is set; waiting: {running}")
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
        """There is no I/O."""

    def _write_to_self(self) -> None:
        """There are no threads."""


class _Jump:
    """Replaces the loop's selector: it does not wait, it moves the time."""

    def __init__(self, jump: Callable[[float | None], None]) -> None:
        self._jump = jump

    def select(self, timeout: float | None) -> list[Any]:
        self._jump(timeout)
        return []


class _Ready(deque[asyncio.Handle]):
    """The ready callbacks; ``order`` chooses the next one."""

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
    """Collect, as text, warnings and the exceptions in finalizers, which Python only prints."""
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


def _message(context: dict[str, Any]) -> str:
    """What the loop's exception handler got, as one line."""
    error = context.get("exception")
    return f"{context['message']}: {error!r}" if error is not None else f"{context['message']}: {context.get('task')!r}"


def _by_name(tasks: set[asyncio.Task[Any]]) -> list[asyncio.Task[Any]]:
    """Sorted, so that the order is the same in every process."""
    return sorted(tasks, key=lambda task: task.get_name())
