"""Tools for the tests of ``with_retry``: a scripted ``op``, pinned draws, and a clock that the test advances."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from datetime import timedelta
from itertools import pairwise
from typing import Any, TypeVar

from orchestrator_adapter import (
    BreakerState,
    CircuitBreaker,
    RetryDisposition,
    RetryPolicy,
)
from orchestrator_adapter.primitives.clock import Clock, sleep
from orchestrator_adapter.resilience.breaker import Permit
from orchestrator_adapter.resilience.retry import (
    Permanent,
    Retry,
    RetryDiscard,
    RetryOk,
)
from orchestrator_adapter.testing import (
    ManualClock,
    settle,
)

T = TypeVar("T")

MS = timedelta(milliseconds=1)
S = timedelta(seconds=1)


class Highest(random.Random):
    """Every draw is its upper bound."""

    def uniform(self, a: float, b: float) -> float:
        return b


class Pinned(random.Random):
    """Every draw is at this share of its range."""

    def __init__(self, share: float) -> None:
        super().__init__(0)
        self.share = share

    def random(self) -> float:
        return self.share


def policy(**changes: Any) -> RetryPolicy:
    """Pinned to the upper bound, its delays are 1.5, 4.5, 8, 8 … s: exact in binary."""
    fields: dict[str, Any] = {"initial": 500 * MS, "cap": 8 * S, "max_attempts": 3}
    return RetryPolicy(**(fields | changes))


Op = Callable[[], Awaitable[RetryDisposition[Any]]]
Step = RetryDisposition[Any] | BaseException | Op


class Script:
    """An ``op`` with one step for each call; a step that is an exception is raised. Records the times of its calls."""

    def __init__(self, clock: Clock, *steps: Step) -> None:
        self.calls: list[float] = []
        self._clock = clock
        self._steps = list(steps)

    async def __call__(self) -> RetryDisposition[Any]:
        self.calls.append(self._clock.monotonic())
        step = self._steps.pop(0)
        if isinstance(step, BaseException):
            raise step
        if isinstance(step, (RetryOk, Retry, Permanent, RetryDiscard)):
            return step
        return await step()


def away(retry_after: timedelta | None = None) -> Retry:
    return Retry(ConnectionError("away"), retry_after)


def takes(clock: Clock, seconds: float, then: RetryDisposition[Any]) -> Op:
    async def step() -> RetryDisposition[Any]:
        await sleep(clock, seconds)
        return then

    return step


def timers(clock: ManualClock) -> list[float]:
    """The due times of the timers that are not cancelled."""
    return clock.pending_timers


async def finish(clock: ManualClock, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end, advancing the clock from timer to timer. No timer may remain."""
    task = asyncio.create_task(work)
    await settle(20)
    while not task.done():
        due = timers(clock)
        assert due, "it waits, and no timer is set"
        clock.advance(due[0] - clock.monotonic())
        await settle(20)
    assert not timers(clock)
    return task.result()


async def begin(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Run ``work`` until it waits for the clock."""
    task = asyncio.create_task(work)
    await settle(20)
    return task


def waits(calls: Sequence[float]) -> list[float]:
    """The seconds between consecutive calls."""
    return [after - before for before, after in pairwise(calls)]


def tripped(clock: ManualClock, **changes: Any) -> CircuitBreaker:
    """A breaker that has just opened."""
    breaker = CircuitBreaker("archive", clock=clock, **({"min_calls": 1} | changes))
    permitted(breaker).failed()
    assert breaker.state is BreakerState.OPEN
    return breaker


def permitted(breaker: CircuitBreaker) -> Permit:
    permit = breaker.ask()
    assert isinstance(permit, Permit)
    return permit
