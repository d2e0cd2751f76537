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
from typing import Any, TypeVar

from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.errors import describe
from orchestrator_adapter.primitives.kept import KEPT
from orchestrator_adapter.supervision.helpers import (
    TASK_NAME_PREFIX,
    Helpers,
    bounded,
    cancel_and_wait,
    is_closing_generator,
    label,
    raised_by,
    tasks_in,
)
from orchestrator_adapter.supervision.restart import RestartPolicy
from orchestrator_adapter.supervision.task_exit import Aborted, Ok, TaskExit, classify

T = TypeVar("T")

INSTANCE: ContextVar[Task] = ContextVar("instance")
"""The operator instance on whose behalf code runs: in its own task, in a task it started, or in a callback it scheduled."""


class Task:
    """One operator instance. The runtime makes it; ``start`` starts it, and ``join`` returns how it ended.

    Attributes:
        name: The operator's name.
        instance: 1 for the operator's first instance, one more at each restart.
        restart_policy: What happens when it fails.
        owner: What it belongs to: equal for all instances of one graph.
        strays: The names of tasks that it started without ``start_helper``, and that had to be cancelled at its end.
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
        patience_s: float = 1.0,
        owner: object = None,
    ) -> None:
        self.name = name
        self.instance = instance
        self.restart_policy = restart_policy
        self.owner = owner
        self.strays: list[str] = []
        self._patience_s = patience_s
        self._helpers = Helpers(self._stop_body)
        self._body_ended = False
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

    def start_helper(self, coroutine: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """See ``WiredEnds.start``."""
        return self._helpers.start(coroutine, name)

    def fail(self, error: BaseException) -> None:
        """A task that it has started has failed: the instance fails with ``error``."""
        self._helpers.failures.append(error)
        self._stop_body()

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
        return _stack_of(self._running.get_coro()) + self.tasks_stack()

    def tasks_stack(self) -> str:
        """The stacks of the tasks that it started, also after its end."""
        tasks = sorted(tasks_in(lambda context: context.get(INSTANCE) is self), key=label)
        return "".join(bounded([f"in its task {task.get_name()!r}:\n{_stack_of(task.get_coro())}" for task in tasks]))

    async def _run(self) -> TaskExit:
        # This coroutine returns a TaskExit and raises nothing, also for SystemExit and KeyboardInterrupt: asyncio would
        # let those two stop the event loop, and with it every other operator.
        INSTANCE.set(self)
        errors: list[BaseException] = []
        cancelled: BaseException | None = None
        try:
            await self._body()
        except asyncio.CancelledError as error:
            cancelled = error
        except BaseException as error:  # noqa: BLE001 - this is the one place that classifies every exception
            errors.append(error)
        self._body_ended = True
        try:
            errors += await self._end_tasks()
            if cancelled is not None and not errors and self._abort_reason is None:
                return classify(cancelled)  # by no request of the orchestrator: a bug; it is no expected error
            if errors:
                return classify(_together(errors), self._expected_errors)
            # It may have swallowed the cancellation and returned: it has stopped all the same because it was asked to.
            return Aborted(self._abort_reason) if self._abort_reason is not None else Ok()
        finally:
            del errors, cancelled  # their tracebacks refer to this frame

    def _stop_body(self) -> None:
        """A helper has failed: the instance fails."""
        if not self._body_ended and self._running is not None:
            self._running.cancel()

    async def _end_tasks(self) -> list[BaseException]:
        """Cancel the tasks that this instance has started, and wait for them. Returns what its helpers and strays raised."""
        errors: list[BaseException] = []
        while tasks := self._tasks():
            strays = tasks - self._helpers.alive
            alive = {task for task in tasks if not task.done()}
            self.strays += [label(task) for task in strays & alive if not is_closing_generator(task)]
            left = await cancel_and_wait(alive, self._clock, self._patience_s)
            while left and self._abort_reason is not None:  # the runtime names it as a straggler
                left = await cancel_and_wait(left, self._clock, self._patience_s)
            errors += raised_by(strays)
            if left:
                names = ", ".join(bounded(sorted(repr(label(task)) for task in left)))
                errors.append(RuntimeError(f"its tasks did not stop within {self._patience_s:g} s: {names}"))
                break
        return [*self._helpers.all_failures(), *errors]

    def _tasks(self) -> set[asyncio.Task[Any]]:
        """The tasks that this instance has started, if they run or have failed. Not those of its kept resources."""

        def is_own(context: Context) -> bool:
            return context.get(INSTANCE) is self and not context.get(KEPT, False)

        return self._helpers.alive | (tasks_in(is_own) - self._helpers.unnoticed)

    def _settle(self, running: asyncio.Task[TaskExit]) -> TaskExit:
        if running.cancelled():  # cancelled before its first step: the body never ran
            cancelled = asyncio.CancelledError("cancelled before it started")
            return Aborted(self._abort_reason) if self._abort_reason is not None else classify(cancelled)
        return running.result()


def _together(errors: list[BaseException]) -> BaseException:
    if len(errors) == 1:
        return errors[0]
    return BaseExceptionGroup("; ".join(bounded([describe(error) for error in errors])), errors)


_SUSPENDABLE = (CoroutineType, AsyncGeneratorType)


def _stack_of(awaited: object) -> str:
    return "".join(traceback.format_list(_await_chain(awaited)))


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
