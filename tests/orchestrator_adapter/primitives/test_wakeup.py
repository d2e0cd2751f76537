"""``ShutdownToken``: who waits on it is woken once, by it or by the clock, and leaves nothing behind."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.testing import LoopClock, ManualClock, run_every_schedule, settle


def nothing_is_left(token: ShutdownToken, clock: ManualClock) -> bool:
    return not token._waiters and not clock.pending_timers


async def test_waiting_at_most_so_long_takes_so_long_and_says_that_it_is_not_set() -> None:
    """Not a moment less, and the token and the clock forget the waiter."""
    token, clock = ShutdownToken(), ManualClock()
    waiting = asyncio.create_task(token.wait_at_most(5.0, clock))
    await clock.advance_when_idle(4.75)
    assert not waiting.done()
    await clock.advance_when_idle(0.25)
    assert waiting.result() is False
    assert nothing_is_left(token, clock)


async def test_setting_the_token_cuts_the_wait_short() -> None:
    """Without the clock being moved at all."""
    token, clock = ShutdownToken(), ManualClock()
    waiting = asyncio.create_task(token.wait_at_most(5.0, clock))
    await settle()
    token.set("asked")
    await settle()
    assert waiting.result() is True
    assert nothing_is_left(token, clock)


async def test_on_a_token_that_is_set_nobody_waits() -> None:
    """It returns without a turn of the loop, and makes no timer."""
    token, clock = ShutdownToken(), ManualClock()
    token.set("asked")
    waiting = token.wait_at_most(5.0, clock)
    with pytest.raises(StopIteration) as returned:
        waiting.send(None)
    assert returned.value.value is True
    assert clock.timers_made == 0


async def test_several_wait_each_for_its_own_time_and_one_set_wakes_the_rest() -> None:
    """One waiter's time being over wakes no other."""
    token, clock = ShutdownToken(), ManualClock()
    short, long, for_ever = (
        asyncio.create_task(token.wait_at_most(1.0, clock)),
        asyncio.create_task(token.wait_at_most(2.0, clock)),
        asyncio.create_task(token.wait()),
    )
    await clock.advance_when_idle(1.0)
    assert (short.done(), long.done(), for_ever.done()) == (True, False, False)
    token.set("asked")
    await settle()
    assert (short.result(), long.result(), for_ever.done()) == (False, True, True)
    assert nothing_is_left(token, clock)


async def test_set_before_a_waiter_whose_time_is_over_has_its_turn_it_counts_as_set() -> None:
    """What it returns is how the token is then."""
    token, clock = ShutdownToken(), ManualClock()
    waiting = asyncio.create_task(token.wait_at_most(1.0, clock))
    await settle()
    clock.advance(1.0)
    token.set("asked")
    assert await waiting is True


@pytest.mark.usefixtures("_many_schedules")
def test_in_whichever_order_time_token_and_cancellation_come_nothing_is_left() -> None:
    """All in the same turn: cancelled is cancelled; otherwise it says how the token is. No waiter and no timer stays."""
    seen: set[object] = set()

    async def scenario() -> None:
        token, clock, loop = ShutdownToken(), LoopClock(), asyncio.get_running_loop()
        waiting = asyncio.create_task(token.wait_at_most(1.0, clock))
        asked: list[bool] = []
        loop.call_later(1.0, lambda: asked.append(waiting.cancel()))
        loop.call_later(1.0, token.set, "asked")
        await asyncio.wait({waiting})
        assert waiting.cancelled() is (asked == [True])
        seen.add("cancelled" if waiting.cancelled() else waiting.result())
        assert not token._waiters
        await asyncio.sleep(2.0)
        assert not [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]

    assert run_every_schedule(scenario) > 10
    assert seen == {"cancelled", True, False}
