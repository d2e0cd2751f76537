"""``Limit`` and ``sleep``: on a clock moved by hand, and under every order of what comes in the same turn."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator_adapter.primitives.clock import SystemClock, Timeout, sleep
from orchestrator_adapter.testing import LoopClock, ManualClock, run_every_schedule, settle


def timers(clock: ManualClock) -> list[float]:
    """When those are due that have not been called off."""
    return clock.pending_timers


async def test_what_ends_in_time_is_left_alone_and_leaves_no_timer() -> None:
    """A moment before the limit is within it."""
    clock = ManualClock()
    limit = Timeout(clock, 5.0)

    async def work() -> str:
        async with limit:
            await sleep(clock, 4.75)
        return "done"

    working = asyncio.create_task(work())
    await clock.advance_when_idle(4.75)
    assert await working == "done"
    assert not limit.expired
    assert not timers(clock)


async def test_what_takes_longer_is_cancelled_and_the_message_says_how_long_it_had() -> None:
    """At the limit the work is cancelled, ``TimeoutError`` stands in its place, and the task is as if nothing had been."""
    clock = ManualClock()
    limit = Timeout(clock, 2.5)

    async def work() -> None:
        with pytest.raises(TimeoutError) as raised:
            await never_ends_within(limit)
        assert str(raised.value) == "not done within 2.5 s"
        assert isinstance(raised.value.__cause__, asyncio.CancelledError)
        await as_if_nothing_had_been()

    working = asyncio.create_task(work())
    await clock.advance_when_idle(2.25)
    assert not working.done()
    await clock.advance_when_idle(0.25)
    await working
    assert limit.expired
    assert not timers(clock)


async def never_ends_within(limit: Timeout) -> None:
    async with limit:
        await asyncio.Event().wait()


async def as_if_nothing_had_been() -> None:
    """No cancellation is left over in the current task."""
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_timeout_from_within_is_not_this_limits() -> None:
    """A ``TimeoutError`` that the work raises goes through as it is, and ``expired`` stays false."""
    clock = ManualClock()
    limit = Timeout(clock, 5.0)
    own = TimeoutError("the socket's own")
    with pytest.raises(TimeoutError) as raised:
        async with limit:
            raise own
    assert raised.value is own
    assert not limit.expired
    assert not timers(clock)


async def test_work_that_answers_its_cancellation_with_an_error_has_that_error() -> None:
    """Cut off, it raises something else: that is what comes out, even if it is a ``TimeoutError`` of its own."""
    clock = ManualClock()
    limit = Timeout(clock, 1.0)
    own = TimeoutError("the socket's own")

    async def work() -> None:
        async with limit:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                raise own from None

    working = asyncio.create_task(work())
    await clock.advance_when_idle(1.0)
    with pytest.raises(TimeoutError) as raised:
        await working
    assert raised.value is own
    assert not limit.expired
    assert working.cancelling() == 0


async def test_work_that_swallows_its_cancellation_is_given_the_time_it_takes() -> None:
    """It goes on, its end is its own, and no cancellation is left over."""
    clock = ManualClock()
    limit = Timeout(clock, 1.0)

    async def work() -> str:
        async with limit:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await sleep(clock, 10.0)
        await as_if_nothing_had_been()
        return "done"

    working = asyncio.create_task(work())
    await clock.advance_when_idle(1.0)
    await clock.advance_when_idle(10.0)
    assert await working == "done"
    assert not limit.expired


async def test_work_that_moves_the_clock_itself_is_not_cancelled_later() -> None:
    """Past its limit without an await, as a scripted slow call is, it has ended; what is awaited next is not cut off."""
    clock = ManualClock()
    limit = Timeout(clock, 1.0)
    async with limit:
        clock.advance(10.0)
    await as_if_nothing_had_been()
    assert not limit.expired


async def test_work_that_moves_the_clock_itself_is_cut_off_where_it_awaits() -> None:
    """Past its limit, the next thing it awaits within the limit is cancelled."""
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
    await as_if_nothing_had_been()


async def test_the_inner_of_two_limits_is_named_and_the_outer_goes_on() -> None:
    """Nested, the one that is over is the one that cuts off."""
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


async def test_of_two_limits_over_at_once_the_outer_cuts_off() -> None:
    """The inner one leaves the cancellation to it."""
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


async def test_a_cancellation_swallowed_before_is_not_taken_for_one_of_now() -> None:
    """In a task that has lived through a cancellation, the limit still makes a ``TimeoutError``."""
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
def test_in_whichever_order_end_limit_and_cancellation_come_a_cancellation_stays_one(*, cancelled: bool) -> None:
    """All in the same turn: cancelled is cancelled; otherwise it ends or is cut off, and nothing is left over."""
    seen: set[str] = set()

    async def scenario() -> None:
        clock, loop = LoopClock(), asyncio.get_running_loop()
        limit = Timeout(clock, 1.0)

        async def work() -> None:
            try:
                async with limit:
                    await sleep(clock, 1.0)
            except TimeoutError:
                assert limit.expired
                seen.add("cut off")
            else:
                seen.add("ended")
            await as_if_nothing_had_been()

        working = asyncio.create_task(work())
        asked: list[bool] = []
        if cancelled:
            loop.call_later(1.0, lambda: asked.append(working.cancel()))
        await asyncio.wait({working})
        assert working.cancelled() is (asked == [True])
        if working.cancelled():
            seen.add("cancelled")
        else:
            working.result()
        assert not [timer for timer in loop._scheduled if not timer.cancelled()]  # type: ignore[attr-defined]

    assert run_every_schedule(scenario) >= (6 if cancelled else 2)
    assert seen == ({"cancelled", "cut off", "ended"} if cancelled else {"cut off", "ended"})


async def test_sleep_takes_as_long_as_it_says() -> None:
    """Not a moment less."""
    clock = ManualClock()
    sleeping = asyncio.create_task(sleep(clock, 5.0))
    await clock.advance_when_idle(4.75)
    assert not sleeping.done()
    await clock.advance_when_idle(0.25)
    assert sleeping.done()


async def test_sleep_cancelled_leaves_no_timer() -> None:
    """And the cancellation goes through, also in the very turn in which it is over."""
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
    """A call comes on the loop, in the order of the delays; one that was called off never comes."""
    clock = SystemClock()
    called, both = list[str](), asyncio.Event()
    clock.call_later(1e-6, both.set)
    clock.call_later(0, lambda: called.append("on"))
    clock.call_later(0, lambda: called.append("off")).cancel()
    await both.wait()
    assert called == ["on"]
    assert clock.monotonic() <= clock.monotonic()
    assert clock.now_ns() > 1_767_225_600_000_000_000  # 2026-01-01
