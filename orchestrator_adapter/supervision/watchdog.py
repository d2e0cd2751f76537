"""A thread that notices when the event loop stands still, and names who holds it.

On one event loop an operator that computes without awaiting freezes everyone, and nothing on the loop can say so. The
loop beats; the watchdog, on a thread of its own, looks how long ago the last beat was, and past a threshold takes the loop
thread's stack and the name of the operator on whose behalf it runs. Knows nothing of graphs.
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

from orchestrator_adapter.supervision.task import INSTANCE, TASK_NAME_PREFIX

logger = logging.getLogger("orchestrator_adapter.watchdog")

_BEATS_PER_THRESHOLD = 4  # so that a stall is noticed at most a quarter of the threshold late


@dataclass(frozen=True, slots=True)
class LoopStall:
    """The event loop stood still.

    Attributes:
        operator: The operator's instance (``normalize #1``) that was running, or that had started the task or scheduled
            the callback which was; else that task's name; empty if none was.
        lag_s: How late the loop was when it was noticed; at the end of a stall, how long it lasted.
        stack: The loop thread's stack, innermost frame last.
    """

    operator: str
    lag_s: float
    stack: str


class LoopWatchdog:
    """Watches the running event loop between ``start`` and ``stop``.

    ``on_stall`` is called once for each stall, *on the watchdog's thread*, while the loop still stands; it must be
    thread-safe and must not touch the loop.

    Attributes:
        stalls: How many there were.
        max_lag_s: The longest lag seen.
        threshold_s: A longer lag is a stall, seconds.
    """

    def __init__(
        self,
        on_stall: Callable[[LoopStall], object],
        *,
        threshold: timedelta = timedelta(milliseconds=250),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        if threshold <= timedelta(0):
            raise ValueError(f"LoopWatchdog: threshold must be > 0, got {threshold}")
        self.stalls = 0
        self.max_lag_s = 0.0
        self.threshold_s = threshold.total_seconds()
        self._on_stall = on_stall
        self._period_s = self.threshold_s / _BEATS_PER_THRESHOLD
        self._monotonic = monotonic
        self._last_beat = 0.0
        self._reported_beat: float | None = None
        self._told: tuple[float, LoopStall] | None = None  # the last stall, with the last beat before it
        self._beating: asyncio.TimerHandle | None = None
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_thread = 0

    @property
    def lag_s(self) -> float:
        """How late the loop is now, seconds; readable from any thread."""
        return max(0.0, self._monotonic() - self._last_beat - self._period_s) if self._beating is not None else 0.0

    @property
    def standing(self) -> LoopStall | None:
        """The stall that lasts now, as far as it has been noticed; readable from any thread."""
        told = self._told
        return told[1] if told is not None and told[0] == self._last_beat and self._beating is not None else None

    def start(self) -> None:
        """Start watching the running loop."""
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._beat()
        self._thread = threading.Thread(target=self._watch, name="event-loop-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching. The thread ends within a quarter of the threshold."""
        self._ending.set()
        if self._beating is not None:
            self._beating.cancel()
            self._beating = None
        if self._thread is not None:
            self._thread.join()

    def _beat(self) -> None:
        assert self._loop is not None
        self.max_lag_s = max(self.max_lag_s, self.lag_s)
        self._last_beat = self._monotonic()
        self._beating = self._loop.call_later(self._period_s, self._beat)

    def _watch(self) -> None:
        while not self._ending.wait(self._period_s):
            beat, lag_s = self._last_beat, self.lag_s
            if is_new_stall(lag_s, self.threshold_s, beat, self._reported_beat):
                self._reported_beat = beat
                self.stalls += 1
                try:
                    stall = self._culprit(lag_s)
                    self._told = (beat, stall)
                    self._on_stall(stall)
                except Exception:  # the watchdog must outlive what it looks at, and whom it tells
                    logger.exception("a stall of the event loop could not be told; the watchdog goes on")

    def _culprit(self, lag_s: float) -> LoopStall:
        running = asyncio.current_task(self._loop)
        frame = sys._current_frames().get(self._loop_thread)  # noqa: SLF001 - the documented way to another thread's stack
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        name = running.get_name() if running is not None else ""
        return LoopStall(_instance(frame) or name.removeprefix(TASK_NAME_PREFIX), lag_s, stack)


def _instance(frame: FrameType | None) -> str:
    """The operator's instance on whose behalf the loop runs what it runs; empty if for none.

    asyncio runs every callback, a task's next step among them, by ``Handle._run`` in the context in which it was
    scheduled. Other event loops (uvloop) have no such frame; there the task's own name has to do.
    """
    while frame is not None:
        if frame.f_code is asyncio.Handle._run.__code__:  # noqa: SLF001 - watched by tests/orchestrator_adapter/supervision/test_watchdog.py
            # The loop's thread may run on meanwhile; at its end ``_run`` lets go of its handle.
            context: Context | None = getattr(frame.f_locals.get("self"), "_context", None)
            instance = context.get(INSTANCE) if context is not None else None
            return "" if instance is None else str(instance)
        frame = frame.f_back
    return ""


def is_new_stall(lag_s: float, threshold_s: float, beat: float, reported_beat: float | None) -> bool:
    """Whether the lag is beyond the threshold and belongs to no stall told before: each is told by its last beat."""
    return lag_s > threshold_s and beat != reported_beat
