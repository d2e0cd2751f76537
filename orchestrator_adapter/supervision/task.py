"""``Task``: one operator instance, and how it ended.

Knows its asyncio task, and nothing of graphs, edges or restarts.
"""

from __future__ import annotations

import asyncio
import gc
import traceback
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar
from types import AsyncGeneratorType, CoroutineType, FrameType
from typing import Any

from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.supervision.restart import RestartPolicy
from orchestrator_adapter.supervision.task_exit import Aborted, Ok, TaskExit, classify

TASK_NAME_PREFIX = "operator:"
"""The prefix of the names of asyncio tasks that run operators; the instance follows, e.g. ``normalize #2``."""

INSTANCE: ContextVar[Task] = ContextVar("instance")
"""The operator instance on whose behalf code runs: in its own task, in a task it started, or in a callback it scheduled."""


class Task:
    """One operator instance. The runtime makes it; ``start`` starts it, and ``join`` returns how it ended.

    Attributes:
        name: The operator's name.
        instance: 1 for the operator's first instance, one more at each restart.
        restart_policy: What happens when it fails.
    """

    def __init__(
        self,
        name: str,
        body: Callable[[], Coroutine[Any, Any, None]],
        *,
        clock: Clock,
        restart_policy: RestartPolicy,
        instance: int = 1,
        expected_errors: tuple[type[BaseException], ...] = (),
    ) -> None:
        self.name = name
        self.instance = instance
        self.restart_policy = restart_policy
        self._body = body
        self._clock = clock
        self._expected_errors = expected_errors
        self._running: asyncio.Task[TaskExit] | None = None
        self._started_at: float | None = None
        self._ended_at: float | None = None
        self._abort_reason: str | None = None

    def __str__(self) -> str:
        return f"{self.name} #{self.instance}"

    def start(self, on_exit: Callable[[Task, TaskExit], None] | None = None, context: Context | None = None) -> None:
        """Start it on the running loop. ``on_exit`` is called once, on the loop, when it has ended.

        It runs in ``context``, which no other instance may use; ``None``: in a copy of the current one.
        """
        if self._running is not None:
            raise RuntimeError(f"task {self} was started already")
        self._started_at = self._clock.monotonic()
        self._running = asyncio.get_running_loop().create_task(
            self._run(), name=f"{TASK_NAME_PREFIX}{self}", context=context
        )

        def finished(running: asyncio.Task[TaskExit]) -> None:
            self._ended_at = self._clock.monotonic()
            if on_exit is not None:
                on_exit(self, self._settle(running))

        self._running.add_done_callback(finished)

    def uptime(self) -> float:
        """Seconds since it started, until it ended; 0 before it started."""
        if self._started_at is None:
            return 0.0
        return (self._clock.monotonic() if self._ended_at is None else self._ended_at) - self._started_at

    def is_alive(self) -> bool:
        """Whether it has started and not ended. A task that swallows its cancellation is alive."""
        return self._running is not None and not self._running.done()

    def abort(self, reason: str = "abort") -> None:
        """Ask it to stop now, by cancellation. ``join`` and ``is_alive`` show whether it has stopped."""
        if self._running is None:
            raise RuntimeError(f"task {self} was never started")
        if not self._running.done():
            self._abort_reason = reason
            self._running.cancel()

    async def join(self) -> TaskExit:
        """Wait until it has ended, however long that takes, and return how it ended.

        Any number of tasks may wait. Cancelling a waiter does not affect the task.
        """
        if self._running is None:
            raise RuntimeError(f"task {self} was never started")
        await asyncio.wait({self._running})
        return self._settle(self._running)

    def stack(self) -> str:
        """Its stack, innermost frame last, and the stacks of the tasks that it started: to report a straggler.

        Empty when it has ended. Takes some milliseconds if there are many tasks.
        """
        if self._running is None or self._running.done():
            return ""
        stacks = traceback.format_list(_await_chain(self._running.get_coro()))
        for task in sorted(asyncio.all_tasks(self._running.get_loop()) - {self._running}, key=asyncio.Task.get_name):
            if (context := _context_of(task)) is not None and context.get(INSTANCE) is self:
                stacks.append(f"in its task {task.get_name()!r}:\n")
                stacks += traceback.format_list(_await_chain(task.get_coro()))
        return "".join(stacks)

    async def _run(self) -> TaskExit:
        # This coroutine returns a TaskExit and raises nothing, also for SystemExit and KeyboardInterrupt: asyncio would
        # let those two stop the event loop, and with it every other operator.
        INSTANCE.set(self)
        try:
            await self._body()
        except asyncio.CancelledError as cancelled:
            return Aborted(self._abort_reason) if self._abort_reason is not None else classify(cancelled)
        except BaseException as error:  # noqa: BLE001 - this is the one place that classifies every exception
            return classify(error, self._expected_errors)
        # It may have swallowed the cancellation and returned: it has stopped all the same because it was asked to.
        return Aborted(self._abort_reason) if self._abort_reason is not None else Ok()

    def _settle(self, running: asyncio.Task[TaskExit]) -> TaskExit:
        if running.cancelled():  # cancelled before its first step: the body never ran
            cancelled = asyncio.CancelledError("cancelled before it started")
            return Aborted(self._abort_reason) if self._abort_reason is not None else classify(cancelled)
        return running.result()


def _context_of(task: asyncio.Task[Any]) -> Context | None:
    """The context that a task runs in. Python 3.11 has no ``get_context``; there the garbage collector finds the context."""
    if hasattr(task, "get_context"):
        context: Context = task.get_context()
        return context
    return next((referent for referent in gc.get_referents(task) if isinstance(referent, Context)), None)


_SUSPENDABLE = (CoroutineType, AsyncGeneratorType)


def _await_chain(awaited: object) -> list[traceback.FrameSummary]:
    """The frames of a suspended coroutine and of what it awaits, outermost first."""
    frames: list[traceback.FrameSummary] = []
    seen: set[int] = set()
    while awaited is not None and id(awaited) not in seen:
        seen.add(id(awaited))
        frame: FrameType | None = (
            getattr(awaited, "cr_frame", None)
            or getattr(awaited, "gi_frame", None)
            or getattr(awaited, "ag_frame", None)
        )
        if frame is None:
            # A step of an async generator (``anext``) has no reference to it in Python; the garbage collector finds it.
            awaited = next((found for found in gc.get_referents(awaited) if isinstance(found, _SUSPENDABLE)), None)
            continue
        frames.extend(traceback.extract_stack(frame, limit=1))
        awaited = (
            getattr(awaited, "cr_await", None)
            or getattr(awaited, "gi_yieldfrom", None)
            or getattr(awaited, "ag_await", None)
        )
    return frames
