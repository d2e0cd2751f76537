"""``ShutdownToken``: set once, when the graph begins to drain. Knows nothing of graphs or signals."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.wakeup import resolve

logger = logging.getLogger("orchestrator_adapter.shutdown_token")


class ShutdownToken:
    """Set once, when the graph begins to drain: sources stop accepting, and the other operators finish their input.

    Any number of tasks may wait for it. It is never unset.
    """

    __slots__ = ("_callbacks", "_waiters", "reason")

    def __init__(self) -> None:
        self.reason: str | None = None
        self._waiters: dict[
            asyncio.Future[None], None
        ] = {}  # ordered: a set would wake them in a different order in each process
        self._callbacks: list[Callable[[], None]] = []

    @property
    def is_set(self) -> bool:
        return self.reason is not None

    def set(self, reason: str) -> None:
        """Request the drain. Later calls do nothing; the first reason stays."""
        if self.reason is not None:
            return
        self.reason = reason
        for waiter in self._waiters:
            resolve(waiter)
        for callback in self._callbacks:
            try:
                callback()
            except Exception:
                logger.exception("a shutdown callback failed; the shutdown goes on")

    def on_set(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when the token is set; at once if it is set already. What it raises is logged and ignored."""
        if self.is_set:
            callback()
        else:
            self._callbacks.append(callback)

    async def wait(self) -> None:
        """Suspend until the token is set. Cancel-safe."""
        if not self.is_set:
            await self._wait(self._waiter())

    async def wait_at_most(self, delay_s: float, clock: Clock) -> bool:
        """Suspend until the token is set, at most ``delay_s`` seconds of ``clock``'s time. Return whether it is set."""
        if not self.is_set:
            waiter = self._waiter()
            timer = clock.call_later(delay_s, partial(resolve, waiter))
            try:
                await self._wait(waiter)
            finally:
                timer.cancel()
        return self.is_set

    def _waiter(self) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters[waiter] = None
        return waiter

    async def _wait(self, waiter: asyncio.Future[None]) -> None:
        try:
            await waiter
        finally:
            self._waiters.pop(waiter, None)
