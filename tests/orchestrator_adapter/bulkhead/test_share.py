from __future__ import annotations

import asyncio
import os
import signal
from functools import partial

import pytest

from orchestrator_adapter.bulkhead import Bulkhead, HandlerFailed
from tests.helpers.running import eventually
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import bulkhead, numbers
from tests.orchestrator_adapter.bulkhead.waiting import until_replaced


def no_worker_of(pool: Bulkhead, pids: set[int]) -> bool:
    """Whether none of these processes is a ready worker."""
    return not pids & set(pool.statistics().pids.values())


async def test_shared_state_reaches_every_worker_and_every_successor_before_its_first_call() -> None:
    """Both workers have it, and so do their successors; a second share with the same key replaces all of it."""
    async with bulkhead(workers=2, in_flight=1) as pool:
        table = numbers(1, 2, 3)
        await pool.share("table", table)
        table["x"][0] = 99  # the pool has copied it
        for _ in range(2):
            recalled = await asyncio.gather(*(pool.call("recall", {}) for _ in range(4)))
            assert [list(one["x"]) for one in recalled] == [[1, 2, 3]] * 4
            await eventually(lambda: pool.statistics().alive == 2, "both are ready")
            old = set(pool.statistics().pids.values())
            for pid in old:
                os.kill(pid, signal.SIGKILL)
            await eventually(partial(no_worker_of, pool, old), "both are lost")
        await pool.share("table", numbers(4))
        recalled = await asyncio.gather(*(pool.call("recall", {}) for _ in range(4)))
    assert [list(one["x"]) for one in recalled] == [[4]] * 4


async def test_a_share_that_the_handler_rejects_raises_and_is_not_sent_to_successors() -> None:
    """``share`` raises ``HandlerFailed``, and a successor starts without the rejected state."""
    async with bulkhead(workers=2) as pool:
        with pytest.raises(HandlerFailed, match="share: the handler raised ValueError: not this one"):
            await pool.share("unwelcome", numbers(1))
        pids = pool.statistics().pids
        os.kill(pids[1], signal.SIGKILL)
        await until_replaced(pool, pids[1])
        await pool.share("table", numbers(1))  # confirmed after all state that the successor was sent
        assert (pool.statistics().alive, pool.statistics().restarts) == (2, 1)
