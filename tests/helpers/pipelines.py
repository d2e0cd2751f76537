"""For tests of runs: a source that waits, a sink that does not stop, a dead-letter store that can fail."""

from __future__ import annotations

import asyncio

from orchestrator_adapter import (
    DeadLetterList,
    WiredEnds,
)


async def endless(ends: WiredEnds) -> None:
    """A source that emits one item and then waits for the shutdown."""
    await ends.emit(["one item"])
    await ends.shutdown.wait()


async def stubborn(ends: WiredEnds) -> None:
    """A sink that takes nothing and runs until it is aborted."""
    await asyncio.get_running_loop().create_future()


class Store(DeadLetterList):
    """Counts how often it was closed; closing can fail."""

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__()
        self.closed = 0
        self.broken = broken

    def close(self) -> None:
        self.closed += 1
        if self.broken:
            raise OSError("the disk is gone")
