"""What tests of a bulkhead wait for."""

from __future__ import annotations

from collections.abc import Callable

import psutil

from orchestrator_adapter.bulkhead import Bulkhead
from tests.helpers.running import eventually


def process_ended(pid: int) -> bool:
    """Whether there is no such process, or only a zombie."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def in_flight(pool: Bulkhead, calls: int) -> Callable[[], bool]:
    """Whether the pool's workers have this many calls."""
    return lambda: pool.statistics().in_flight == calls


async def until_replaced(pool: Bulkhead, pid: int) -> None:
    """Wait until worker 1 is ready and is not the process ``pid``."""
    await eventually(lambda: pool.statistics().pids.get(1, pid) != pid, "another worker is ready")
