"""Some wait, others wake them: the only primitive under channels, tokens and the supervisor's loop.

The waiter re-checks its condition after every wake-up (``while not condition(): await wakeup.wait()``). All of this runs
on one event loop, and between the check and the wait nothing is awaited, so no wake-up can be lost.
"""

from __future__ import annotations

import asyncio

from orchestrator_adapter.primitives.clock import Clock


class Wakeup:
    """Wakes everybody who waits here: one task, as a rule; several, where an operator has one for each of its edges."""

    __slots__ = ("_waiters",)

    def __init__(self) -> None:
        self._waiters: list[asyncio.Future[None]] = []

    @property
    def awaited(self) -> bool:
        """Whether a task waits here now."""
        return any(not waiter.done() for waiter in self._waiters)

    def wake(self) -> None:
        """Wake whoever waits. Costs nothing where nobody does."""
        for waiter in self._waiters:
            resolve(waiter)

    async def wait(self) -> None:
        """Suspend until ``wake``. Cancelled, it leaves nothing behind."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)

    async def wait_until(self, deadline: float, clock: Clock) -> None:
        """As ``wait``, but also woken at ``deadline`` (monotonic seconds of ``clock``)."""
        timer = clock.call_later(max(0.0, deadline - clock.monotonic()), self.wake)
        try:
            await self.wait()
        finally:
            timer.cancel()


def resolve(waiter: asyncio.Future[None]) -> None:
    """Complete ``waiter`` unless it is done."""
    if not waiter.done():
        waiter.set_result(None)
