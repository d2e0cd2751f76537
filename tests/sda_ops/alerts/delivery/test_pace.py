from __future__ import annotations

import asyncio

from orchestrator_adapter.testing import ManualClock
from sda_ops.alerts.delivery.pace import Pace


async def _begun(pace: Pace, clock: ManualClock, count: int) -> list[float]:
    """When ``count`` requests that all wait from now on may begin."""
    began: list[float] = []

    async def one() -> None:
        await pace.turn()
        began.append(clock.monotonic())

    await asyncio.gather(*(one() for _ in range(count)))
    return began


async def test_requests_begin_evenly_spaced_and_the_first_one_at_once() -> None:
    clock = ManualClock(autojump=True)
    assert await _begun(Pace(4.0, clock), clock, 5) == [0.0, 0.25, 0.5, 0.75, 1.0]


async def test_unused_time_is_no_credit_for_a_burst() -> None:
    clock = ManualClock(autojump=True)
    pace = Pace(2.0, clock)
    await pace.turn()
    clock.advance(100.0)
    assert await _begun(pace, clock, 3) == [100.0, 100.5, 101.0]


async def test_none_begins_in_a_pause_also_if_it_waited_before() -> None:
    clock = ManualClock(autojump=True)
    pace = Pace(1.0, clock)
    await pace.turn()
    waiting = asyncio.create_task(_begun(pace, clock, 2))
    await asyncio.sleep(0)
    pace.pause(30.0)
    pace.pause(10.0)  # a shorter pause does not end it
    assert [at >= 30.0 for at in await waiting] == [True, True]


async def test_without_a_bound_only_a_pause_holds_requests() -> None:
    clock = ManualClock(autojump=True)
    pace = Pace(None, clock)
    assert await _begun(pace, clock, 3) == [0.0, 0.0, 0.0]
    pace.pause(5.0)
    assert await _begun(pace, clock, 2) == [5.0, 5.0]
