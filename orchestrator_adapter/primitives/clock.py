"""Time, passed in: nothing in the orchestrator reaches for a global clock.

Budgets, windows and deadlines run on the monotonic clock; only timestamps that people read come from the wall clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A call that lies in the future and can be called off."""

    def cancel(self) -> None:
        """Call it off. Harmless when it has fired already."""


class Clock(Protocol):
    """What the orchestrator needs to know of time. ``testing.ManualClock`` is the one you set by hand."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back."""

    def now_ns(self) -> int:
        """UTC nanoseconds since the Unix epoch."""

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Call ``callback`` on the event loop once ``delay_s`` seconds have passed."""


class SystemClock:
    """The machine's clocks and the running event loop's timers."""

    def monotonic(self) -> float:
        return time.monotonic()

    def now_ns(self) -> int:
        return time.time_ns()

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        return asyncio.get_running_loop().call_later(delay_s, callback)


class Timeout:
    """``async with Timeout(clock, 5.0):`` what takes longer is cancelled, and ``TimeoutError`` raised in its place.

    ``asyncio.timeout`` on a clock that is passed in. A cancellation from elsewhere stays one. Something that swallows
    its cancellation and goes on is given the time it takes.

    Attributes:
        expired: Whether the ``TimeoutError`` is this limit's, and not one that came from within.
    """

    __slots__ = ("_cancelling", "_clock", "_fired", "_limit_s", "_task", "_timer", "expired")

    def __init__(self, clock: Clock, limit_s: float) -> None:
        self._clock = clock
        self._limit_s = limit_s
        self._fired = False
        self.expired = False

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._timer = self._clock.call_later(self._limit_s, self._expire)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._timer.cancel()
        if self._fired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            self.expired = True
            raise TimeoutError(f"not done within {self._limit_s:g} s") from error

    def _expire(self) -> None:
        if asyncio.current_task() is self._task:
            # It moves a manual clock itself. It cannot be cut off before it awaits something; if it never does, it is done,
            # and a cancellation would hit whatever it awaits next.
            self._timer = asyncio.get_running_loop().call_soon(self._expire)
            return
        self._fired = True
        self._task.cancel()


async def sleep(clock: Clock, delay_s: float) -> None:
    """Suspend for ``delay_s`` seconds of ``clock``'s time. Cancel-safe: the timer is called off."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    timer = clock.call_later(delay_s, finish)
    try:
        await done
    finally:
        timer.cancel()
