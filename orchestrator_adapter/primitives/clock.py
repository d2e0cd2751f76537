"""Time is passed in: nothing in the orchestrator reads a global clock.

Budgets, windows and deadlines use the monotonic clock. Only timestamps for people use the wall clock.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """A scheduled call that can be cancelled."""

    def cancel(self) -> None:
        """Cancel the call. Does nothing after it has fired."""


class Clock(Protocol):
    """The time that the orchestrator uses. ``testing.ManualClock`` is a clock that a test sets."""

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
    """``async with Timeout(clock, 5.0):`` cancels a body that takes longer, and raises ``TimeoutError`` instead.

    As ``asyncio.timeout``, but on a clock that is passed in. A cancellation from elsewhere stays a cancellation. A body
    that swallows its cancellation and goes on is not interrupted again.

    Attributes:
        expired: Whether the ``TimeoutError`` was raised by this timeout, and not by the body.
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
            # The body itself advances a manual clock. It cannot be cancelled before it awaits something. If it never does,
            # it is done, and a cancellation would hit the next await outside.
            self._timer = asyncio.get_running_loop().call_soon(self._expire)
            return
        self._fired = True
        self._task.cancel()


async def sleep(clock: Clock, delay_s: float) -> None:
    """Suspend for ``delay_s`` seconds of ``clock``'s time. Cancel-safe: the timer is cancelled."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def finish() -> None:
        if not done.done():
            done.set_result(None)

    timer = clock.call_later(delay_s, finish)
    try:
        await done
    finally:
        timer.cancel()
