"""The threads on which a launcher's blocking methods run."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from orchestrator_adapter.primitives.clock import Clock, Timeout
from orchestrator_adapter.primitives.daemon_threads import DaemonThreads

T = TypeVar("T")

logger = logging.getLogger("orchestrator_adapter.bulkhead")

_REAPER_THREADS = 4


class LauncherThreads:
    """Launching and killing have one thread per worker; reaping has its own threads, since it may wait for a slow report."""

    def __init__(self, bulkhead: str, *, workers: int) -> None:
        self._bulkhead = bulkhead
        self._threads = DaemonThreads(f"bulkhead-{bulkhead}", max_threads=workers + 1)
        self._reapers = DaemonThreads(f"bulkhead-{bulkhead}-reaper", max_threads=_REAPER_THREADS)
        self._reaping: set[asyncio.Task[None]] = set()

    async def run(self, action: Callable[[], T]) -> T:
        """Launch or kill."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, action)

    def reap(self, stopped: Callable[[], None], *, after: asyncio.Future[None] | None) -> None:
        """Call ``stopped`` in the background, once ``after`` is done. A successor does not wait for it."""
        task = asyncio.create_task(self._reap(stopped, after))
        self._reaping.add(task)
        task.add_done_callback(self._reaping.discard)

    async def close(self, clock: Clock, *, within_s: float) -> None:
        """Wait ``within_s`` for what is being reaped. A launcher that takes longer does not keep the process alive."""
        with suppress(TimeoutError):
            async with Timeout(clock, within_s):
                if self._reaping:
                    await asyncio.wait(self._reaping)
        self._threads.shutdown()
        self._reapers.shutdown()

    async def _reap(self, stopped: Callable[[], None], after: asyncio.Future[None] | None) -> None:
        try:
            if after is not None:
                await asyncio.wait({after})  # its exception is raised by the slot that awaits it
            await asyncio.get_running_loop().run_in_executor(self._reapers, stopped)
        except Exception:
            logger.exception(
                "bulkhead %r: its launcher failed to reap a worker; the bulkhead continues", self._bulkhead
            )
