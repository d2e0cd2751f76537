"""``ShutdownToken``: waiters, callbacks and timeouts."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.testing import LoopClock, ManualClock, run_every_schedule, settle


def nothing_leaks(token: ShutdownToken, clock: ManualClock) -> bool:
    return not token._waiters and not clock.pending_timers


async def test_wait_at_most_returns_false_after_its_delay() -> None:
    """Not a moment earlier. Neither the token nor the clock keeps the waiter."""
    token, clock = ShutdownToken(), ManualClock()
    waiting = asyncio.create_task(token.wait_at_most(5.0, clock))
    await clock.advance_when_idle(4.75)
    assert not waiting.done()
    await clock.advance_when_idle(0.25)
    assert waiting.result() is False
    assert nothing_leaks(token, clock)


async def test_setting_the_token_ends_the_wait() -> None:
    """While the clock stands still."""
    token, clock = ShutdownToken(), ManualClock()
    waiting = asyncio.create_task(token.wait_at_most(5.0, clock))
    await settle()
    token.set("asked")
    await settle()
    assert waiting.result() is True
    assert nothing_leaks(token, clock)


async def test_a_wait_on_a_set_token_returns_at_once() -> None:
    """It returns without a turn of the loop and sets no timer."""
    token, clock = ShutdownToken(), ManualClock()
    token.set("asked")
    waiting = token.wait_at_most(5.0, clock)
    with pytest.raises(StopIteration) as returned:
        waiting.send(None)
    assert returned.value.value is True
    assert clock.timers_made == 0


async def test_each_waiter_has_its_own_timeout_and_set_wakes_the_rest() -> None:
    """The end of one waiter's timeout wakes no other waiter."""
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
    assert nothing_leaks(token, clock)


async def test_a_wait_that_times_out_returns_whether_the_token_is_set_by_then() -> None:
    """The token is set after the timeout and before the waiter runs: it returns true."""
    token, clock = ShutdownToken(), ManualClock()
    waiting = asyncio.create_task(token.wait_at_most(1.0, clock))
    await settle()
    clock.advance(1.0)
    token.set("asked")
    assert await waiting is True


@pytest.mark.usefixtures("_many_schedules")
def test_nothing_leaks_in_any_order_of_timeout_token_and_cancellation() -> None:
    """All in the same turn: a cancelled task is cancelled; otherwise it returns whether the token is set."""
    seen: set[object] = set()

    async def scenario() -> None:
        token, clock, loop = ShutdownToken(), LoopClock(), asyncio.get_running_loop()
        waiting = asyncio.create_task(token.wait_at_most(1.0, clock))
        answers: list[bool] = []
        loop.call_later(1.0, lambda: answers.append(waiting.cancel()))
        loop.call_later(1.0, token.set, "asked")
        await asyncio.wait({waiting})
        assert waiting.cancelled() is (answers == [True])
        seen.add("cancelled" if waiting.cancelled() else waiting.result())
        assert not token._waiters
        await asyncio.sleep(2.0)
        assert not [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]

    assert run_every_schedule(scenario) > 10
    assert seen == {"cancelled", True, False}


async def test_the_token_wakes_every_waiter_and_keeps_its_first_reason() -> None:
    """Every waiter is woken, every callback called once (a late one at once). A second reason changes nothing."""
    token = ShutdownToken()
    called: list[str] = []
    token.on_set(lambda: called.append("early"))
    waiting = [asyncio.create_task(token.wait()) for _ in range(3)]
    await settle()
    token.set("SIGTERM")
    token.set("SIGINT")
    token.on_set(lambda: called.append("late"))
    await asyncio.gather(*waiting)
    await token.wait()
    assert (token.reason, called) == ("SIGTERM", ["early", "late"])


async def test_a_failing_shutdown_callback_does_not_stop_the_others() -> None:
    """If one callback raises, the next one is still called."""
    token = ShutdownToken()
    called: list[str] = []
    token.on_set(lambda: _fail(ValueError("callback")))
    token.on_set(lambda: called.append("second"))
    token.set("test")
    assert called == ["second"]


def _fail(error: Exception) -> None:
    raise error
