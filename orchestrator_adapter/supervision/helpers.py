"""The tasks that an operator instance starts: helpers, which belong to it, and strays, which it has not declared.

Both end with their instance. Knows nothing of restarts and graphs.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from contextvars import Context
from typing import Any, TypeVar

from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.wakeup import Wakeup

T = TypeVar("T")

TASK_NAME_PREFIX = "operator:"
"""The prefix of the names of asyncio tasks that run operators; the instance follows, e.g. ``normalize #2``."""

_DEFAULT_NAME = "Task-"
_NAMED = 10


class Helpers:
    """The tasks that one instance has started with ``ends.start``.

    Attributes:
        failures: What they raised, in order.
    """

    def __init__(self, on_failure: Callable[[], None]) -> None:
        """``on_failure`` is called when a helper has failed."""
        self.failures: list[BaseException] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._on_failure = on_failure

    def start(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Start ``coroutine`` as a task."""
        task = asyncio.get_running_loop().create_task(_contained(coroutine), name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        task.add_done_callback(lambda _: coroutine.close())  # it may have been cancelled before its first step
        return task

    @property
    def unnoticed(self) -> set[asyncio.Task[Any]]:
        """Those whose end has not been noticed."""
        return set(self._tasks)

    @property
    def alive(self) -> set[asyncio.Task[Any]]:
        """Those that have not ended."""
        return {task for task in self._tasks if not task.done()}

    def all_failures(self) -> list[BaseException]:
        """``failures``, with those of the tasks that have just ended."""
        return [*self.failures, *raised_by(self._tasks)]

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failures.append(error)
            self._on_failure()


async def _contained(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run it. Asyncio lets SystemExit and KeyboardInterrupt stop the event loop, and with it every other operator."""
    try:
        return await coroutine
    except (SystemExit, KeyboardInterrupt) as error:
        raise RuntimeError(f"a helper task raised {type(error).__name__}") from error


def tasks_in(matches: Callable[[Context], bool]) -> set[asyncio.Task[Any]]:
    """The tasks of this loop, except operators, in whose context ``matches`` is true.

    With those that have failed, and whose exception no other task has received.
    """
    loop = asyncio.get_running_loop()
    return {
        task
        for task in _every_task(loop)
        if not task.get_name().startswith(TASK_NAME_PREFIX)  # first: a graph may have a thousand operators
        and (not task.done() or getattr(task, "_log_traceback", False))
        and task.get_loop() is loop
        and (context := context_of(task)) is not None
        and matches(context)
    }


def _every_task(loop: asyncio.AbstractEventLoop) -> Iterable[asyncio.Task[Any]]:
    """Every task that is referenced, done ones included. Python 3.14 keeps no set with the done ones."""
    every: Iterable[asyncio.Task[Any]] | None
    every = getattr(asyncio.tasks, "_all_tasks", getattr(asyncio.tasks, "_scheduled_tasks", None))
    while every is not None:
        with suppress(RuntimeError):  # the set is that of all loops: another thread has just started a task
            return list(every)
    return asyncio.all_tasks(loop)


def raised_by(tasks: Iterable[asyncio.Task[Any]]) -> list[BaseException]:
    """The exceptions of those ``tasks`` that have ended with one."""
    ended = (task for task in tasks if task.done() and not task.cancelled())
    return [error for task in ended if (error := task.exception()) is not None]


def context_of(task: asyncio.Task[Any]) -> Context | None:
    """The context that a task runs in. Python 3.11 has no ``get_context``; there the garbage collector finds the context."""
    if hasattr(task, "get_context"):
        context: Context = task.get_context()
        return context
    return next((referent for referent in gc.get_referents(task) if isinstance(referent, Context)), None)


def label(task: asyncio.Task[Any]) -> str:
    """Its name; if it has none of its own, its coroutine's name."""
    name = task.get_name()
    if not name.startswith(_DEFAULT_NAME):
        return name
    return getattr(task.get_coro(), "__qualname__", None) or name


def bounded(texts: Sequence[str]) -> list[str]:
    """The first ten of ``texts``, and how many more there are: an operator may start any number of tasks."""
    return [*texts[:_NAMED], f"and {len(texts) - _NAMED} more"] if len(texts) > _NAMED else [*texts]


def is_closing_generator(task: asyncio.Task[Any]) -> bool:
    """Whether asyncio itself started it, to close an async generator that is no longer referenced."""
    return type(task.get_coro()).__name__ == "async_generator_athrow"


async def cancel_and_wait(tasks: Iterable[asyncio.Task[Any]], clock: Clock, limit_s: float) -> set[asyncio.Task[Any]]:
    """Cancel ``tasks`` and wait for their end, at most ``limit_s`` seconds of ``clock``'s time. Returns those that run on.

    Waits for one turn of the event loop at least. A cancellation of the caller cancels them again.
    """
    pending = {task for task in tasks if not task.done()}
    wakeup = Wakeup()
    for task in pending:
        task.add_done_callback(lambda _: wakeup.wake())
        if not is_closing_generator(task):
            task.cancel()
    until, in_time = clock.monotonic() + limit_s, True
    while pending and in_time:
        in_time = clock.monotonic() < until
        try:
            await (wakeup.wait_until(until, clock) if in_time else asyncio.sleep(0))
        except asyncio.CancelledError:
            for task in pending:
                task.cancel()
        pending = {task for task in pending if not task.done()}
    return pending
