"""A condition without a lock: tasks wait, others notify. Channels, tokens and the supervisor's loop are built on it.

A waiter checks its condition again after every wake-up (``while not condition(): await wakeup.wait()``). Everything runs on
one event loop, and nothing is awaited between the check and the wait, so no wake-up can be lost.
"""

from __future__ import annotations

import asyncio

from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.stopwatch import Stopwatch


class Wakeup:
    """Wakes all tasks that wait: usually one; several, if an operator has one task for each of its edges.

    ``waiting``, if it is given, measures for how long at least one task waits: until it runs again, not until it is woken.
    """

    __slots__ = ("_waiters", "_waiting")

    def __init__(self, waiting: Stopwatch | None = None) -> None:
        self._waiters: list[asyncio.Future[None]] = []
        self._waiting = waiting

    @property
    def awaited(self) -> bool:
        """Whether a task waits now."""
        return any(not waiter.done() for waiter in self._waiters)

    def wake(self) -> None:
        """Wake all waiting tasks. Costs next to nothing without waiting tasks."""
        for waiter in self._waiters:
            resolve(waiter)

    async def wait(self) -> None:
        """Suspend until ``wake``. Cancel-safe."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        if self._waiting is not None:
            self._waiting.start()
        try:
            await waiter
        finally:
            self._waiters.remove(waiter)
            if self._waiting is not None:
                self._waiting.stop()

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
