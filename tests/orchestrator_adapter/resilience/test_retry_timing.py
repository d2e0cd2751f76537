"""``with_retry``: ``retry_after``, the deadline, the attempt timeout, the shutdown and cancellation."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from datetime import timedelta

import pytest

from orchestrator_adapter import (
    BreakerState,
    CircuitBreaker,
    RetriesExhausted,
    RetryBudget,
    RetryCutShort,
    RetryDisposition,
    with_retry,
)
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.resilience.breaker import Permit
from orchestrator_adapter.resilience.retry import (
    Attempt,
    AttemptOutcome,
    RetryDiscard,
    RetryOk,
    without_waiting,
)
from orchestrator_adapter.testing import (
    LoopClock,
    ManualClock,
    run_every_schedule,
    settle,
)
from tests.helpers.retry_script import (
    Highest,
    S,
    Script,
    away,
    begin,
    finish,
    policy,
    takes,
    timers,
    tripped,
    waits,
)

# Retry-After.


@pytest.mark.parametrize(
    ("requested", "waited_s"),
    [
        (None, 1.5),
        (30 * S, 31.5),
        (timedelta(minutes=5), 301.5),
        (timedelta(hours=1), 301.5),  # max_retry_after
        (0 * S, 1.5),
        (-10 * S, 1.5),
    ],
)
async def test_retry_after_is_added_to_the_drawn_delay(requested: timedelta | None, waited_s: float) -> None:
    """Up to five minutes, never negative, and the hook receives the whole delay."""
    clock = ManualClock()
    reported: list[Attempt] = []
    op = Script(clock, away(requested), RetryOk(1))
    await finish(clock, with_retry(policy(), op, clock=clock, rng=Highest(), on_attempt=reported.append))
    assert waits(op.calls) == [waited_s]
    assert reported[0].delay == waited_s * S


async def test_retry_after_does_not_affect_the_next_draw() -> None:
    """The next draw is up to three times the last draw, not the last wait."""
    clock = ManualClock()
    op = Script(clock, away(60 * S), away(), RetryOk(1))
    await finish(clock, with_retry(policy(), op, clock=clock, rng=Highest()))
    assert waits(op.calls) == [61.5, 4.5]


async def test_the_policy_limits_retry_after() -> None:
    """With a maximum of ten seconds, sixty become ten."""
    clock = ManualClock()
    op = Script(clock, away(60 * S), RetryOk(1))
    await finish(clock, with_retry(policy(max_retry_after=10 * S), op, clock=clock, rng=Highest()))
    assert waits(op.calls) == [11.5]


async def test_callers_with_the_same_retry_after_do_not_retry_at_the_same_time() -> None:
    """Two callers with different draws retry at different times, both after the pause."""
    clock = ManualClock()
    ops = [Script(clock, away(30 * S), RetryOk(1)) for _ in range(2)]
    tasks = [await begin(with_retry(policy(), op, clock=clock, rng=random.Random(seed))) for seed, op in enumerate(ops)]
    while not all(task.done() for task in tasks):
        clock.advance(timers(clock)[0] - clock.monotonic())
        await settle(20)
    first, second = (op.calls[1] for op in ops)
    assert min(first, second) >= 30.5
    assert abs(first - second) > 0.01


# The deadline, and the attempt timeout.


@pytest.mark.parametrize(("deadline", "calls"), [(1.5 * S, [0.0]), (1.75 * S, [0.0, 1.5]), (6 * S, [0.0, 1.5])])
async def test_a_wait_that_would_reach_the_deadline_is_not_started(deadline: timedelta, calls: list[float]) -> None:
    """It gives up at once."""
    clock = ManualClock()
    op = Script(clock, *[away()] * 3)
    with pytest.raises(RetriesExhausted) as raised:
        await finish(clock, with_retry(policy(deadline=deadline), op, clock=clock, rng=Highest()))
    assert op.calls == calls
    assert clock.monotonic() == calls[-1]
    plural = "s" if len(calls) > 1 else ""
    assert str(raised.value) == (
        f"no time left: ConnectionError: away (after {len(calls)} attempt{plural} in {calls[-1]:g} s)"
    )
    assert raised.value.reason == "deadline"


async def test_a_retry_after_that_would_exceed_the_deadline_is_not_waited_for() -> None:
    """The whole delay counts, including the pause that the downstream asked for."""
    clock = ManualClock()
    with pytest.raises(RetriesExhausted) as raised:
        await finish(
            clock, with_retry(policy(deadline=10 * S), Script(clock, away(60 * S)), clock=clock, rng=Highest())
        )
    assert (raised.value.reason, clock.monotonic()) == ("deadline", 0.0)


async def test_an_attempt_is_cancelled_at_the_deadline() -> None:
    """The deadline counts from the start of the first attempt: the second attempt has the remaining time."""
    clock = ManualClock()
    clock.advance(100)
    op = Script(clock, takes(clock, 0.5, away()), takes(clock, 60.0, RetryOk("late")))
    with pytest.raises(RetriesExhausted) as raised:
        await finish(clock, with_retry(policy(deadline=5 * S), op, clock=clock, rng=Highest()))
    assert clock.monotonic() == 105.0
    assert (
        str(raised.value) == "no time left: TimeoutError: the attempt was not done within 3 s (after 2 attempts in 5 s)"
    )
    assert isinstance(raised.value.__cause__, TimeoutError)


async def test_at_the_last_attempt_the_reason_is_attempts_also_at_the_deadline() -> None:
    """When no attempts and no time are left, the reason is ``attempts``."""
    clock = ManualClock()
    op = Script(clock, takes(clock, 60.0, RetryOk("late")))
    with pytest.raises(RetriesExhausted) as raised:
        await finish(clock, with_retry(policy(deadline=5 * S, max_attempts=1), op, clock=clock))
    assert (raised.value.reason, clock.monotonic()) == ("attempts", 5.0)


async def test_a_loop_that_wakes_after_the_deadline_makes_no_attempt() -> None:
    """After a delayed wait there is no attempt for which no time is left."""
    clock = ManualClock()
    op = Script(clock, away())
    waiting = await begin(with_retry(policy(deadline=5 * S), op, clock=clock, rng=Highest()))
    await clock.advance_when_idle(5.0)
    with pytest.raises(RetriesExhausted) as raised:
        await waiting
    assert raised.value.reason == "deadline"
    assert len(op.calls) == 1


async def test_an_attempt_that_times_out_is_retried() -> None:
    """It is cancelled after 5 s and retried after the backoff. The hook receives the timeout."""
    clock = ManualClock()
    reported: list[Attempt] = []
    op = Script(clock, takes(clock, 60.0, RetryOk("late")), takes(clock, 4.75, RetryOk("in time")))
    work = with_retry(policy(attempt_timeout=5 * S), op, clock=clock, rng=Highest(), on_attempt=reported.append)
    assert await finish(clock, work) == RetryOk("in time")
    assert op.calls == [0.0, 6.5]
    assert [attempt.outcome for attempt in reported] == [AttemptOutcome.FAILED, AttemptOutcome.OK]
    assert isinstance(reported[0].error, TimeoutError)
    assert str(reported[0].error) == "the attempt was not done within 5 s"


@pytest.mark.parametrize(("attempt_s", "deadline_s", "shorter_s"), [(2, 5, 2), (5, 2, 2)])
async def test_the_shorter_of_timeout_and_deadline_cancels_the_attempt(
    attempt_s: int, deadline_s: int, shorter_s: int
) -> None:
    """The message names it."""
    clock = ManualClock()
    op = Script(clock, takes(clock, 60.0, RetryOk("late")))
    both = policy(attempt_timeout=attempt_s * S, deadline=deadline_s * S, max_attempts=1)
    with pytest.raises(RetriesExhausted, match=f"TimeoutError: the attempt was not done within {shorter_s} s "):
        await finish(clock, with_retry(both, op, clock=clock))


async def test_the_result_of_an_op_that_swallows_its_cancellation_counts() -> None:
    """Its result is returned, and no cancellation remains pending."""
    clock = ManualClock()

    async def stubborn() -> RetryDisposition[str]:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return RetryOk("all the same")

    async def work() -> RetryOk[str] | RetryDiscard:
        outcome = await with_retry(policy(attempt_timeout=5 * S), stubborn, clock=clock)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)
        return outcome

    assert await finish(clock, work()) == RetryOk("all the same")


async def test_an_op_that_advances_the_clock_past_its_timeout_does_not_cancel_the_next_wait() -> None:
    """An op of 10 s that never awaits has ended by then. The next wait has its full length."""
    clock = ManualClock()

    async def slow() -> RetryDisposition[str]:
        clock.advance(10.0)
        return away() if clock.monotonic() < 15 else RetryOk("page")

    work = with_retry(policy(attempt_timeout=5 * S), slow, clock=clock, rng=Highest())
    assert await finish(clock, work) == RetryOk("page")
    assert clock.monotonic() == 21.5


# The shutdown.


async def test_the_shutdown_ends_the_wait() -> None:
    """At once, while the clock stands still. The last error is the cause."""
    clock, token = ManualClock(), ShutdownToken()
    failure = away()
    waiting = await begin(with_retry(policy(), Script(clock, failure), clock=clock, rng=Highest(), shutdown=token))
    clock.advance(1.25)
    token.set("asked")
    with pytest.raises(RetryCutShort) as raised:
        await waiting
    assert str(raised.value) == "ConnectionError: away (after 1 attempt in 1.25 s)"
    assert raised.value.__cause__ is failure.error
    assert not timers(clock)
    assert not token._waiters


async def test_with_the_shutdown_set_before_the_call_there_is_one_attempt() -> None:
    """A failure is final; a success is returned."""
    clock, token = ManualClock(), ShutdownToken()
    token.set("asked")
    reported: list[Attempt] = []
    with pytest.raises(RetryCutShort):
        await with_retry(policy(), Script(clock, away()), clock=clock, shutdown=token, on_attempt=reported.append)
    assert [attempt.delay for attempt in reported] == [None]
    assert await with_retry(policy(), Script(clock, RetryOk(1)), clock=clock, shutdown=token) == RetryOk(1)
    assert clock.timers_made == 0


@pytest.mark.parametrize("then", [RetryOk("page"), away()])
async def test_a_shutdown_during_an_attempt_does_not_cancel_it_and_makes_it_the_last(
    then: RetryDisposition[str],
) -> None:
    """Its success is returned; after its failure there is no wait."""
    clock, token = ManualClock(), ShutdownToken()
    trying = await begin(with_retry(policy(), Script(clock, takes(clock, 5.0, then)), clock=clock, shutdown=token))
    token.set("asked")
    await settle(20)
    assert not trying.done()
    clock.advance(5.0)
    if isinstance(then, RetryOk):
        assert await trying is then
    else:
        with pytest.raises(RetryCutShort):
            await trying
    assert not timers(clock)


async def test_after_the_last_attempt_the_reason_is_attempts_also_in_a_shutdown() -> None:
    """A shutdown that was set before does not change the error."""
    clock, token = ManualClock(), ShutdownToken()
    token.set("asked")
    with pytest.raises(RetriesExhausted):
        await with_retry(policy(max_attempts=1), Script(clock, away()), clock=clock, shutdown=token)


async def test_the_shutdown_ends_the_wait_after_a_rejected_call() -> None:
    """The error says that the call was rejected."""
    clock, token = ManualClock(), ShutdownToken()
    waiting = await begin(
        with_retry(policy(), Script(clock), clock=clock, shutdown=token, breaker=tripped(clock), rng=Highest())
    )
    token.set("asked")
    with pytest.raises(RetryCutShort) as raised:
        await waiting
    assert str(raised.value) == (
        "BreakerOpen: breaker 'archive' is open: ask again in 30 s (after 0 attempts and 1 rejected in 0 s)"
    )


async def test_a_hook_may_set_the_shutdown() -> None:
    """It receives a delay and sets the token: that delay is not waited for."""
    clock, token = ManualClock(), ShutdownToken()
    with pytest.raises(RetryCutShort):
        await with_retry(
            policy(), Script(clock, away()), clock=clock, shutdown=token, on_attempt=lambda _: token.set("hook")
        )
    assert clock.timers_made == 0


# Without waiting.


async def test_without_waiting_draws_and_reports_the_delays_and_does_not_wait() -> None:
    """The hook receives 1.5 and 4.5 s, and the clock stands still. Outside the context it waits again."""
    clock = ManualClock()
    reported: list[Attempt] = []
    with without_waiting():
        op = Script(clock, away(), away(), RetryOk(1))
        assert await with_retry(policy(), op, clock=clock, rng=Highest(), on_attempt=reported.append) == RetryOk(1)
    assert [attempt.delay for attempt in reported] == [1.5 * S, 4.5 * S, None]
    assert (clock.monotonic(), clock.timers_made) == (0.0, 0)
    op = Script(clock, away(), RetryOk(1))
    await finish(clock, with_retry(policy(), op, clock=clock, rng=Highest()))
    assert op.calls == [0.0, 1.5]


async def test_without_waiting_yields_to_the_loop_and_obeys_the_shutdown() -> None:
    """The loop runs between the attempts, and a shutdown ends them."""
    clock, token = ManualClock(), ShutdownToken()
    asyncio.get_running_loop().call_soon(token.set, "asked")
    with without_waiting(), pytest.raises(RetryCutShort):
        await with_retry(policy(max_attempts=None), Script(clock, *[away()] * 1000), clock=clock, shutdown=token)


async def test_without_waiting_applies_only_to_tasks_started_within() -> None:
    """A task that was started before goes on waiting."""
    clock = ManualClock()
    before = await begin(with_retry(policy(), Script(clock, away(), RetryOk(1)), clock=clock, rng=Highest()))
    with without_waiting():
        within = await begin(with_retry(policy(), Script(clock, away(), RetryOk(2)), clock=clock, rng=Highest()))
    assert within.result() == RetryOk(2)
    assert not before.done()
    await clock.advance_when_idle(1.5)
    assert before.result() == RetryOk(1)


async def test_the_machines_clock_and_a_new_random_source_are_the_defaults() -> None:
    """Without either argument, the delay is within its bounds."""
    reported: list[Attempt] = []
    with without_waiting():
        assert await with_retry(
            policy(), Script(ManualClock(), away(), RetryOk(1)), on_attempt=reported.append
        ) == RetryOk(1)
    (delay, _) = (attempt.delay for attempt in reported)
    assert delay is not None
    assert 0.5 * S <= delay <= 1.5 * S


# A cancellation at any moment.


@pytest.mark.usefixtures("_many_schedules")
@pytest.mark.parametrize("at_s", [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
@pytest.mark.parametrize("also", ["nothing", "shutdown", "timeout"])
def test_a_cancellation_at_any_moment_leaks_nothing(at_s: float, also: str) -> None:
    """During an attempt, during the wait, and in every order with their ends, the attempt timeout and the shutdown: no timer,
    waiter, permit or token leaks, and the task is always cancelled.
    """
    cancelled: set[bool] = set()

    async def scenario() -> None:
        clock, loop, token = LoopClock(), asyncio.get_running_loop(), ShutdownToken()
        breaker = CircuitBreaker("archive", clock=clock, cooldown=S)
        breaker.force_open()
        breaker.release()  # half-open: both attempts are probes
        budget = RetryBudget(capacity=5, earned_per_success=0.5)
        op = Script(
            clock, takes(clock, 1.0, away()), takes(clock, 1.0, RetryOk("page"))
        )  # from 0 to 1 and from 2 to 3 s
        reported: list[Attempt] = []
        working = asyncio.create_task(
            with_retry(
                policy(initial=S, cap=S, max_attempts=2, attempt_timeout=S if also == "timeout" else None),
                op,
                breaker=breaker,
                budget=budget,
                clock=clock,
                shutdown=token,
                on_attempt=reported.append,
            )
        )
        answers: list[bool] = []
        ours = [loop.call_later(at_s, lambda: answers.append(working.cancel()))]
        if also == "shutdown":
            ours.append(loop.call_later(at_s, token.set, "asked"))
        await asyncio.wait({working})
        assert working.cancelled() is (answers == [True])
        cancelled.add(working.cancelled())
        timers: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]
        assert not [timer for timer in timers if not timer.cancelled() and timer not in ours]
        assert not token._waiters
        earned = 0.5 * [attempt.outcome for attempt in reported].count(AttemptOutcome.OK)
        assert budget.tokens == min(5, 5 - max(0, len(op.calls) - 1) + earned)
        assert breaker.state is not BreakerState.HALF_OPEN or isinstance(breaker.ask(), Permit)

    assert run_every_schedule(scenario) >= (6 if at_s in {1.0, 3.0} else 1)
    assert True in cancelled
    assert cancelled == {True, False} or at_s != 3.0
