"""Which operator computes on the event loop, seen from another thread."""

from __future__ import annotations

import asyncio
import threading

from orchestrator_adapter.runtime.loop_usage import PERIOD_S, LoopUsage
from orchestrator_adapter.supervision.helpers import TASK_NAME_PREFIX


async def test_an_operator_that_computes_has_its_share_until_the_looks_are_old() -> None:
    """A thread looks while the operator keeps the loop, and while nothing runs. Looks from before a pause do not count."""
    usage = LoopUsage(asyncio.get_running_loop())
    computing, looked = threading.Event(), threading.Event()

    def look() -> None:
        assert computing.wait(20)
        for number in range(15):
            usage.look(number / 10)
        looked.set()

    async def compute() -> None:
        computing.set()
        assert looked.wait(20)  # it keeps the loop

    looking = threading.Thread(target=look)
    looking.start()
    await asyncio.create_task(compute(), name=f"{TASK_NAME_PREFIX}hog #1")
    looking.join()
    assert usage.shares(1.4) == {"hog": 1.0}
    assert usage.shares(1.4 + 2 * PERIOD_S) == {}


async def test_a_few_looks_say_nothing_yet() -> None:
    usage = LoopUsage(asyncio.get_running_loop())
    usage.look(0.0)
    assert usage.shares(0.0) == {}
