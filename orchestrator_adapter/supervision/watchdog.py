"""A thread that detects a blocked event loop and names the operator that blocks it.

An operator that computes without awaiting blocks every other operator, and nothing on the loop can report it. A timer on
the loop therefore records a heartbeat. The watchdog's thread reads how old the last heartbeat is; past a threshold it takes
the loop thread's stack and the operator on whose behalf the loop runs. Knows nothing of graphs.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType

from orchestrator_adapter.primitives.check_fields import check_fields
from orchestrator_adapter.supervision.helpers import TASK_NAME_PREFIX
from orchestrator_adapter.supervision.task import INSTANCE, Task

logger = logging.getLogger("orchestrator_adapter.watchdog")

_HEARTBEATS_PER_THRESHOLD = 4  # so that a stall is detected at most a quarter of the threshold late


@dataclass(frozen=True, slots=True)
class LoopStall:
    """The event loop was blocked for longer than the threshold.

    Attributes:
        operator: The operator that was running, or that had started the running task or scheduled the running callback.
            Without one: the name of the running task, or empty.
        instance: That operator's instance; ``None`` if no operator was found.
        lag_s: How late the loop was when the stall was detected, seconds.
        stack: The loop thread's stack, innermost frame last.
    """

    operator: str
    instance: int | None
    lag_s: float
    stack: str

    @property
    def label(self) -> str:
        """The operator with its instance, for people: ``normalize #1``."""
        return self.operator if self.instance is None else f"{self.operator} #{self.instance}"


class LoopWatchdog:
    """Watches the running event loop between ``start`` and ``stop``.

    ``on_stall`` is called once for each stall, *on the watchdog's thread*, while the loop is still blocked. It must be
    thread-safe and must not touch the loop.

    Attributes:
        stalls: The number of stalls so far.
        max_lag_s: The longest lag so far.
        threshold_s: A longer lag is a stall, seconds.
    """

    def __init__(
        self,
        on_stall: Callable[[LoopStall], object],
        *,
        threshold: timedelta = timedelta(milliseconds=250),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        check_fields("LoopWatchdog", ("threshold", threshold, threshold > timedelta(0), "> 0"))
        self.stalls = 0
        self.max_lag_s = 0.0
        self.threshold_s = threshold.total_seconds()
        self._on_stall = on_stall
        self._period_s = self.threshold_s / _HEARTBEATS_PER_THRESHOLD
        self._monotonic = monotonic
        self._last_heartbeat = 0.0
        self._reported_heartbeat: float | None = None
        self._reported: tuple[float, LoopStall] | None = (
            None  # the last heartbeat before the last stall, and that stall
        )
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0

    @property
    def lag_s(self) -> float:
        """How late the loop is now, seconds; readable from any thread."""
        return max(0.0, self._monotonic() - self._last_heartbeat - self._period_s) if self._timer is not None else 0.0

    @property
    def current_stall(self) -> LoopStall | None:
        """The stall that lasts now, once it is detected; readable from any thread."""
        reported = self._reported
        if reported is None or reported[0] != self._last_heartbeat or self._timer is None:
            return None
        return reported[1]

    def start(self) -> None:
        """Start watching the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._heartbeat()
        threading.Thread(target=self._watch, name="event-loop-watchdog", daemon=True).start()

    def stop(self) -> None:
        """Stop watching. Returns at once; the thread ends within a quarter of the threshold.

        It may still be writing the line of a stall to a log that does not answer, and the loop must not wait for that.
        """
        self._stopped.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _heartbeat(self) -> None:
        assert self._loop is not None
        self.max_lag_s = max(self.max_lag_s, self.lag_s)
        self._last_heartbeat = self._monotonic()
        self._timer = self._loop.call_later(self._period_s, self._heartbeat)

    def _watch(self) -> None:
        while not self._stopped.wait(self._period_s):
            heartbeat, lag_s = self._last_heartbeat, self.lag_s
            if is_new_stall(lag_s, self.threshold_s, heartbeat, self._reported_heartbeat):
                self._reported_heartbeat = heartbeat
                self.stalls += 1
                try:
                    assert self._loop is not None
                    stall = inspect_loop(self._loop, self._loop_thread, lag_s)
                    self._reported = (heartbeat, stall)
                    self._on_stall(stall)
                except Exception:  # on_stall is foreign code, and the watchdog must outlive it
                    logger.exception("a stall of the event loop could not be reported; the watchdog goes on")


def inspect_loop(loop: asyncio.AbstractEventLoop, thread: int, lag_s: float) -> LoopStall:
    """On whose behalf ``loop`` runs now, and the stack of its ``thread``. Call it on another thread."""
    running = asyncio.current_task(loop)
    frames = _with_callers(sys._current_frames().get(thread))  # noqa: SLF001 - the documented way to a thread's stack
    instance = _instance(frames)
    stack = "".join(traceback.StackSummary.extract((frame, frame.f_lineno) for frame in reversed(frames)).format())
    if instance is not None:
        return LoopStall(instance.name, instance.instance, lag_s, stack)
    if running is None:
        return LoopStall("", None, lag_s, stack)
    operator, number = _named(running)
    return LoopStall(operator or running.get_name(), number, lag_s, stack)


def operator_of(task: asyncio.Task[object]) -> str:
    """The operator whose instance ``task`` is; empty for any other task. Any thread may call it."""
    return _named(task)[0]


def _named(task: asyncio.Task[object]) -> tuple[str, int | None]:
    name = task.get_name()
    operator, _, number = name.removeprefix(TASK_NAME_PREFIX).rpartition(" #")
    if name.startswith(TASK_NAME_PREFIX) and number.isdecimal():
        return operator, int(number)
    return "", None


def _with_callers(frame: FrameType | None) -> list[FrameType]:
    """The frames of a stack, innermost first. Taken at once: a frame that returns in the meantime loses its caller."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def _instance(frames: list[FrameType]) -> Task | None:
    """The operator instance on whose behalf the loop runs its current callback, if there is one.

    asyncio runs every callback, including the next step of a task, by ``Handle._run`` in the context in which the callback
    was scheduled. Other event loops (uvloop) have no such frame; there the name of the running task is used.
    """
    for frame in frames:
        if frame.f_code is asyncio.Handle._run.__code__:  # noqa: SLF001 - watched by tests/orchestrator_adapter/supervision/test_watchdog.py
            # The loop's thread may go on while this runs; at its end ``_run`` deletes its reference to the handle.
            context: Context | None = getattr(frame.f_locals.get("self"), "_context", None)
            return context.get(INSTANCE) if context is not None else None
    return None


def is_new_stall(lag_s: float, threshold_s: float, heartbeat: float, reported_heartbeat: float | None) -> bool:
    """Whether the lag exceeds the threshold and the stall was not reported yet; its last heartbeat identifies a stall."""
    return lag_s > threshold_s and heartbeat != reported_heartbeat
