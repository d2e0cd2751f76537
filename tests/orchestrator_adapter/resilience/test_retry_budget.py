"""``RetryBudget``: what spends and what earns a token."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any

import pytest

from orchestrator_adapter import (
    CircuitBreaker,
    PermanentFailure,
    RetriesExhausted,
    RetryBudget,
    RetryCutShort,
    with_retry,
)
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.resilience.retry import (
    Attempt,
    Permanent,
    RetryDiscard,
    RetryOk,
    without_waiting,
)
from orchestrator_adapter.testing import (
    ManualClock,
)
from tests.helpers.retry_script import (
    Highest,
    S,
    Script,
    Step,
    away,
    begin,
    finish,
    policy,
    tripped,
)


async def test_retries_spend_tokens_and_answers_earn_them() -> None:
    """A first attempt is free, and a retry costs a token. A value, a discard and a permanent answer each earn a part."""
    clock = ManualClock()
    budget = RetryBudget(capacity=2, earned_per_success=0.25)

    async def tokens_after(*steps: Step) -> float:
        with without_waiting(), suppress(PermanentFailure, RetriesExhausted, KeyError):
            await with_retry(policy(), Script(clock, *steps), clock=clock, budget=budget)
        return budget.tokens

    assert await tokens_after(RetryOk(1)) == 2  # no more than its capacity
    assert await tokens_after(away(), RetryOk(1)) == 1.25
    assert await tokens_after(RetryDiscard("old")) == 1.5
    assert await tokens_after(Permanent(ValueError("404"))) == 1.75
    assert await tokens_after(KeyError("bug")) == 1.75  # unknown whether it answered
    assert await tokens_after(away(), away(), RetryOk(1)) == 0.75  # no token for the third
    assert budget.denied == 1


async def test_without_a_token_there_is_no_retry() -> None:
    """It gives up at once, without a wait, and the error says why."""
    clock = ManualClock()
    budget = RetryBudget(capacity=1)
    reported: list[Attempt] = []
    op = Script(clock, away(), away())
    with pytest.raises(RetriesExhausted) as raised:
        await finish(
            clock, with_retry(policy(), op, clock=clock, rng=Highest(), budget=budget, on_attempt=reported.append)
        )
    assert str(raised.value) == ("no token in the retry budget left: ConnectionError: away (after 2 attempts in 1.5 s)")
    assert raised.value.reason == "budget"
    assert [attempt.delay for attempt in reported] == [1.5 * S, None]
    assert (budget.tokens, budget.denied) == (0, 1)


def test_ten_successes_earn_one_retry() -> None:
    """Ten times 0.1 is one, also in binary fractions, and nine times is not."""
    budget = RetryBudget()
    while budget.spend():
        pass
    for _ in range(9):
        budget.earn()
    assert not budget.has_token
    budget.earn()
    assert budget.spend()
    assert budget.tokens == 0


def test_a_budget_never_has_more_tokens_than_its_capacity() -> None:
    """Neither earning nor returning a token exceeds it."""
    budget = RetryBudget(capacity=3)
    budget.earn()
    budget.return_token()
    assert budget.tokens == 3
    assert budget.spend()
    budget.return_token()
    assert budget.tokens == 3


async def test_rejected_attempts_cost_no_token() -> None:
    """One failure, three rejections, then a success: one retry, one token."""
    clock = ManualClock()
    breaker = CircuitBreaker("archive", clock=clock, min_calls=1, cooldown=20 * S)
    budget = RetryBudget(capacity=5, earned_per_success=0.5)
    op = Script(clock, away(), RetryOk(1))
    await finish(
        clock,
        with_retry(policy(max_attempts=9), op, clock=clock, rng=Highest(), breaker=breaker, budget=budget),
    )
    assert op.calls == [0.0, 22.0]
    assert breaker.statistics().rejections == 3
    assert budget.tokens == 4.5


async def test_a_first_attempt_costs_no_token_even_after_rejections() -> None:
    """Rejected twice and then admitted, it is still the first attempt, and needs no token."""
    clock = ManualClock()
    budget = RetryBudget(capacity=1, earned_per_success=1)
    assert budget.spend()
    op = Script(clock, RetryOk(1))
    await finish(
        clock,
        with_retry(policy(), op, clock=clock, rng=Highest(), breaker=tripped(clock, cooldown=5 * S), budget=budget),
    )
    assert op.calls == [6.0]
    assert (budget.tokens, budget.denied) == (1, 0)


async def test_a_retry_that_is_never_made_returns_its_token() -> None:
    """It was rejected until no attempts were left, ended by the shutdown, or cancelled during the wait."""
    clock, token = ManualClock(), ShutdownToken()
    budget = RetryBudget(capacity=5)

    def work(**more: Any) -> Coroutine[Any, Any, RetryOk[Any] | RetryDiscard]:
        return with_retry(policy(), Script(clock, away()), clock=clock, rng=Highest(), budget=budget, **more)

    with pytest.raises(RetriesExhausted):
        await finish(clock, work(breaker=CircuitBreaker("archive", clock=clock, min_calls=1)))
    assert budget.tokens == 5
    cut_short, cancelled = await begin(work(shutdown=token)), await begin(work())
    assert budget.tokens == 3
    token.set("asked")
    cancelled.cancel()
    await asyncio.wait({cut_short, cancelled})
    assert isinstance(cut_short.exception(), RetryCutShort)
    assert cancelled.cancelled()
    assert (budget.tokens, budget.denied) == (5, 0)


async def test_a_shutdown_takes_and_needs_no_token() -> None:
    """No retry follows, so the error names the shutdown and not the budget."""
    clock, token = ManualClock(), ShutdownToken()
    token.set("asked")
    budget = RetryBudget(capacity=1)
    with pytest.raises(RetryCutShort):
        await with_retry(policy(), Script(clock, away()), clock=clock, shutdown=token, budget=budget)
    assert budget.spend()
    with pytest.raises(RetryCutShort):
        await with_retry(policy(), Script(clock, away()), clock=clock, shutdown=token, budget=budget)
    assert (budget.tokens, budget.denied) == (0, 0)


async def test_the_last_attempt_takes_and_needs_no_token() -> None:
    """No retry follows, so the error names the attempts and not the budget."""
    clock = ManualClock()
    budget = RetryBudget(capacity=1)
    for _ in range(2):
        with pytest.raises(RetriesExhausted) as raised:
            await with_retry(policy(max_attempts=1), Script(clock, away()), clock=clock, budget=budget)
        assert raised.value.reason == "attempts"
        budget.spend()
    assert (budget.tokens, budget.denied) == (0, 1)  # this test itself asked for the second one


async def test_concurrent_callers_share_one_budget() -> None:
    """Twenty callers of a dead downstream with ten tokens make ten retries in all, and twenty are denied."""
    clock = ManualClock()
    budget = RetryBudget(capacity=10)
    ops = [Script(clock, *[away()] * 3) for _ in range(20)]
    tasks = [
        await begin(with_retry(policy(), op, clock=clock, rng=random.Random(seed), budget=budget))
        for seed, op in enumerate(ops)
    ]
    await clock.advance_when_idle(100)
    assert all(isinstance(error := task.exception(), RetriesExhausted) and error.reason == "budget" for task in tasks)
    assert sum(len(op.calls) for op in ops) == 30
    assert (budget.tokens, budget.denied) == (0, 20)


@pytest.mark.parametrize(
    ("capacity", "earned", "message"),
    [
        (0.5, 0.1, "RetryBudget: capacity must be >= 1 and finite, got 0.5"),
        (float("inf"), 0.1, "RetryBudget: capacity must be >= 1 and finite, got inf"),
        (
            float("nan"),
            0.1,
            (
                "RetryBudget: capacity must be >= 1 and finite, got nan; "
                "RetryBudget: earned_per_success must be > 0 and <= capacity (nan), got 0.1"
            ),
        ),
        (10, 0, "RetryBudget: earned_per_success must be > 0 and <= capacity (10), got 0"),
        (10, 11, "RetryBudget: earned_per_success must be > 0 and <= capacity (10), got 11"),
        (10, float("nan"), "RetryBudget: earned_per_success must be > 0 and <= capacity (10), got nan"),
    ],
)
def test_a_budget_out_of_bounds_is_rejected(capacity: float, earned: float, message: str) -> None:
    """The message says which bounds were expected and which value was given."""
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - pinned whole below
        RetryBudget(capacity=capacity, earned_per_success=earned)
    assert str(raised.value) == message


def test_the_bounds_of_a_budget_are_valid() -> None:
    """One token, which one success earns."""
    assert RetryBudget(capacity=1, earned_per_success=1).has_token
    assert (RetryBudget().capacity, RetryBudget().earned_per_success, RetryBudget().tokens) == (10, 0.1, 10)
