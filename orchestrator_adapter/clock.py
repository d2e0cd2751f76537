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
