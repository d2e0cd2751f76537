"""``Timeout`` and ``sleep``: on a clock that the test advances, and under every order of simultaneous events."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator_adapter.primitives.clock import SystemClock, Timeout, sleep
from orchestrator_adapter.testing import LoopClock, ManualClock, run_every_schedule, settle


def timers(clock: ManualClock) -> list[float]:
    """The due times of the timers that are not cancelled."""
    return clock.pending_timers


async def test_a_body_that_ends_in_time_is_not_cancelled_and_leaves_no_timer() -> None:
    """A moment before the timeout is in time."""
    clock = ManualClock()
    timeout = Timeout(clock, 5.0)

    async def work() -> str:
        async with timeout:
            await sleep(clock, 4.75)
        return "done"

    working = asyncio.create_task(work())
    await clock.advance_when_idle(4.75)
    assert await working == "done"
    assert not timeout.expired
    assert not timers(clock)


async def test_a_body_that_takes_longer_is_cancelled_and_the_error_names_the_timeout() -> None:
    """The body is cancelled, ``TimeoutError`` is raised instead, and the task has no pending cancellation."""
    clock = ManualClock()
    timeout = Timeout(clock, 2.5)

    async def work() -> None:
        with pytest.raises(TimeoutError) as raised:
            await never_ends_within(timeout)
        assert str(raised.value) == "not done within 2.5 s"
        assert isinstance(raised.value.__cause__, asyncio.CancelledError)
        await no_cancellation_is_pending()

    working = asyncio.create_task(work())
    await clock.advance_when_idle(2.25)
    assert not working.done()
    await clock.advance_when_idle(0.25)
    await working
    assert timeout.expired
    assert not timers(clock)


async def never_ends_within(limit: Timeout) -> None:
    async with limit:
        await asyncio.Event().wait()


async def no_cancellation_is_pending() -> None:
    """Check that the current task has no pending cancellation."""
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_timeout_error_of_the_body_is_passed_on() -> None:
    """It is unchanged, and ``expired`` stays false."""
    clock = ManualClock()
    timeout = Timeout(clock, 5.0)
    own = TimeoutError("the socket's own")
    with pytest.raises(TimeoutError) as raised:
        async with timeout:
            raise own
    assert raised.value is own
    assert not timeout.expired
    assert not timers(clock)


async def test_an_error_that_the_body_raises_at_its_cancellation_is_passed_on() -> None:
    """Also if that error is a ``TimeoutError`` of its own."""
    clock = ManualClock()
    timeout = Timeout(clock, 1.0)
    own = TimeoutError("the socket's own")

    async def work() -> None:
        async with timeout:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise own from None

    working = asyncio.create_task(work())
    await clock.advance_when_idle(1.0)
    with pytest.raises(TimeoutError) as raised:
        await working
    assert raised.value is own
    assert not timeout.expired
    assert working.cancelling() == 0


async def test_a_body_that_swallows_its_cancellation_is_not_interrupted_again() -> None:
    """It goes on and ends by itself, and no cancellation is pending."""
    clock = ManualClock()
    timeout = Timeout(clock, 1.0)

    async def work() -> str:
        async with timeout:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await sleep(clock, 10.0)
        await no_cancellation_is_pending()
        return "done"

    working = asyncio.create_task(work())
    await clock.advance_when_idle(1.0)
    await clock.advance_when_idle(10.0)
    assert await working == "done"
    assert not timeout.expired


async def test_a_body_that_advances_the_clock_itself_is_not_cancelled_later() -> None:
    """It passes its timeout without an await, as a scripted slow call does. It has ended; the next await is not cancelled."""
    clock = ManualClock()
    timeout = Timeout(clock, 1.0)
    async with timeout:
        clock.advance(10.0)
    await no_cancellation_is_pending()
    assert not timeout.expired


async def test_a_body_that_advances_the_clock_itself_is_cancelled_at_its_next_await() -> None:
    """After it has passed its timeout, its next await is cancelled."""
    clock = ManualClock()
    reached = False

    async def work() -> None:
        nonlocal reached
        async with Timeout(clock, 1.0):
            clock.advance(10.0)
            reached = True
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await work()
    assert reached
    await no_cancellation_is_pending()


async def test_of_two_nested_timeouts_the_inner_one_expires_alone() -> None:
    """The error names the timeout that has expired; the outer one goes on."""
    clock = ManualClock()
    outer, inner = Timeout(clock, 3.0), Timeout(clock, 1.0)

    async def work() -> None:
        async with outer:
            with pytest.raises(TimeoutError, match="not done within 1 s"):
                await never_ends_within(inner)
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await clock.advance_when_idle(1.0)
    assert (outer.expired, inner.expired) == (False, True)
    await clock.advance_when_idle(2.0)
    with pytest.raises(TimeoutError, match="not done within 3 s"):
        await working
    assert outer.expired


async def test_of_two_timeouts_that_expire_together_the_outer_one_raises() -> None:
    """The inner one passes the cancellation on."""
    clock = ManualClock()
    outer, inner = Timeout(clock, 1.0), Timeout(clock, 1.0)

    async def work() -> None:
        async with outer, inner:
            await asyncio.Event().wait()

    working = asyncio.create_task(work())
    await clock.advance_when_idle(1.0)
    with pytest.raises(TimeoutError):
        await working
    assert (outer.expired, inner.expired) == (True, False)
    assert working.cancelling() == 0


async def test_an_earlier_swallowed_cancellation_does_not_affect_a_timeout() -> None:
    """In a task that has swallowed a cancellation, the timeout still raises ``TimeoutError``."""
    clock = ManualClock()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:  # and goes on
            await never_ends_within(Timeout(clock, 1.0))

    working = asyncio.create_task(work())
    await settle()
    working.cancel()
    await clock.advance_when_idle(1.0)
    with pytest.raises(TimeoutError):
        await working
    assert working.cancelling() == 1


@pytest.mark.usefixtures("_many_schedules")
@pytest.mark.parametrize("cancelled", [False, True])
def test_a_cancellation_stays_one_in_every_order_with_end_and_timeout(*, cancelled: bool) -> None:
    """All in the same turn: a cancelled task is cancelled; otherwise it ends or times out. Nothing remains pending."""
    seen: set[str] = set()

    async def scenario() -> None:
        clock, loop = LoopClock(), asyncio.get_running_loop()
        timeout = Timeout(clock, 1.0)

        async def work() -> None:
            try:
                async with timeout:
                    await sleep(clock, 1.0)
            except TimeoutError:
                assert timeout.expired
                seen.add("timed out")
            else:
                seen.add("ended")
            await no_cancellation_is_pending()

        working = asyncio.create_task(work())
        answers: list[bool] = []
        if cancelled:
            loop.call_later(1.0, lambda: answers.append(working.cancel()))
        await asyncio.wait({working})
        assert working.cancelled() is (answers == [True])
        if working.cancelled():
            seen.add("cancelled")
        else:
            working.result()
        assert not [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]

    assert run_every_schedule(scenario) >= (6 if cancelled else 2)
    assert seen == ({"cancelled", "timed out", "ended"} if cancelled else {"timed out", "ended"})


async def test_sleep_takes_exactly_its_delay() -> None:
    """Not a moment less."""
    clock = ManualClock()
    sleeping = asyncio.create_task(sleep(clock, 5.0))
    await clock.advance_when_idle(4.75)
    assert not sleeping.done()
    await clock.advance_when_idle(0.25)
    assert sleeping.done()


async def test_a_cancelled_sleep_leaves_no_timer() -> None:
    """The cancellation is passed on, also in the turn in which the sleep ends."""
    clock = ManualClock()
    sleeping = asyncio.create_task(sleep(clock, 5.0))
    await settle()
    assert timers(clock) == [5.0]
    clock.advance(5.0)
    sleeping.cancel()
    await asyncio.wait({sleeping})
    assert sleeping.cancelled()
    assert not timers(clock)


async def test_the_system_clock_runs_on_the_loops_timers() -> None:
    """Calls come on the loop, in the order of their delays. A cancelled call never comes."""
    clock = SystemClock()
    called, both = list[str](), asyncio.Event()
    clock.call_later(1e-6, both.set)
    clock.call_later(0, lambda: called.append("on"))
    clock.call_later(0, lambda: called.append("off")).cancel()
    await both.wait()
    assert called == ["on"]
    assert clock.monotonic() <= clock.monotonic()
    assert clock.now_ns() > 1_767_225_600_000_000_000  # 2026-01-01
