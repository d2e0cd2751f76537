"""``with_retry``: results, the breaker, hooks and policies, on a clock that the test advances."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from contextlib import suppress
from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import Any, assert_never

import pytest

from orchestrator_adapter import (
    BreakerOpen,
    BreakerState,
    CircuitBreaker,
    PermanentFailure,
    RetriesExhausted,
    RetryDisposition,
    RetryPolicy,
    with_retry,
)
from orchestrator_adapter.primitives.errors import Tried
from orchestrator_adapter.resilience.retry import (
    Attempt,
    AttemptOutcome,
    Permanent,
    Retry,
    RetryDiscard,
    RetryOk,
    give_up,
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
    permitted,
    policy,
    takes,
    timers,
    tripped,
)

# The result of an attempt.


async def test_ok_and_discard_are_returned_and_a_match_distinguishes_them() -> None:
    """Both are returned unchanged, at the first attempt, without a wait."""
    clock = ManualClock()

    async def text_of(step: RetryDisposition[int]) -> str:
        outcome: RetryOk[int] | RetryDiscard = await with_retry(policy(), Script(clock, step), clock=clock)
        match outcome:
            case RetryOk(value):
                return f"ok {value}"
            case RetryDiscard(reason):
                return f"discarded: {reason}"
            case _:
                assert_never(outcome)

    assert await text_of(RetryOk(42)) == "ok 42"
    assert await text_of(RetryDiscard("too old")) == "discarded: too old"
    assert clock.timers_made == 0


async def test_a_retry_result_is_retried_until_a_success() -> None:
    """Two failures and a success: three calls, and the success is returned."""
    clock = ManualClock()
    op = Script(clock, away(), away(), RetryOk("page"))
    assert await finish(clock, with_retry(policy(), op, clock=clock, rng=Highest())) == RetryOk("page")
    assert op.calls == [0.0, 1.5, 6.0]


async def test_op_is_called_once_for_each_attempt() -> None:
    """Each attempt awaits a new awaitable."""
    made: list[Coroutine[Any, Any, RetryDisposition[int]]] = []

    async def attempt() -> RetryDisposition[int]:
        return away() if len(made) < 3 else RetryOk(len(made))

    def op() -> Awaitable[RetryDisposition[int]]:
        made.append(attempt())
        return made[-1]

    with without_waiting():
        assert await with_retry(policy(), op) == RetryOk(3)
    assert len({id(each) for each in made}) == 3


async def test_a_permanent_result_raises_at_once_with_its_cause() -> None:
    """There is no wait and no retry. The message has the error, the attempts and the time."""
    clock = ManualClock()
    error = ValueError("wrong schema")
    op = Script(clock, away(), Permanent(error))
    with pytest.raises(PermanentFailure) as raised:
        await finish(clock, with_retry(policy(), op, clock=clock, rng=Highest()))
    assert str(raised.value) == "ValueError: wrong schema (after 2 attempts in 1.5 s)"
    assert raised.value.__cause__ is error
    assert raised.value.tried == Tried(attempts=2, rejected=0, elapsed_s=1.5)
    assert raised.value.attempts == 2
    assert clock.monotonic() == 1.5


async def test_the_last_failed_attempt_raises_with_the_last_error_as_cause() -> None:
    """The cause is not the first error, and there is no wait after the last attempt."""
    clock = ManualClock()
    last = ConnectionResetError("reset")
    op = Script(clock, away(), away(), Retry(last))
    with pytest.raises(RetriesExhausted) as raised:
        await finish(clock, with_retry(policy(), op, clock=clock, rng=Highest()))
    assert str(raised.value) == "no attempts left: ConnectionResetError: reset (after 3 attempts in 6 s)"
    assert raised.value.__cause__ is last
    assert raised.value.attempts == 3
    assert raised.value.reason == "attempts"
    assert clock.monotonic() == 6.0


async def test_with_one_attempt_there_is_no_retry() -> None:
    """The first failure raises."""
    clock = ManualClock()
    with pytest.raises(RetriesExhausted) as raised:
        await with_retry(policy(max_attempts=1), Script(clock, away()), clock=clock)
    assert str(raised.value) == "no attempts left: ConnectionError: away (after 1 attempt in 0 s)"


async def test_without_a_limit_it_retries_until_a_success() -> None:
    """A thousand failures, then a success."""
    clock = ManualClock()
    op = Script(clock, *[away()] * 1000, RetryOk("at last"))
    with without_waiting():
        assert await with_retry(policy(max_attempts=None), op, clock=clock, rng=Highest()) == RetryOk("at last")
    assert len(op.calls) == 1001


@pytest.mark.parametrize("limits", [{}, {"attempt_timeout": 5 * S}, {"deadline": 5 * S}])
@pytest.mark.parametrize("error", [KeyError("bug"), OSError("disk"), TimeoutError("the socket's own"), SystemExit(3)])
async def test_an_exception_of_op_is_passed_on_unchanged_and_at_once(limits: Any, error: BaseException) -> None:
    """A bug or the op's own ``TimeoutError`` is not retried and not taken for a timeout; the permit is released."""
    clock = ManualClock()
    breaker = tripped(clock)
    clock.advance(30)
    op = Script(clock, error)
    with pytest.raises(type(error)) as raised:
        await with_retry(policy(**limits), op, clock=clock, breaker=breaker)
    assert raised.value is error
    assert raised.value.__cause__ is None
    assert len(op.calls) == 1
    assert not timers(clock)
    assert breaker.state is BreakerState.HALF_OPEN
    permitted(breaker)


async def test_an_op_that_raises_before_it_returns_an_awaitable_releases_the_permit() -> None:
    """Its exception is passed on unchanged."""
    clock = ManualClock()
    breaker = tripped(clock)
    clock.advance(30)

    def op() -> Awaitable[RetryDisposition[int]]:
        raise KeyError("bug")

    for limits in ({}, {"attempt_timeout": S}):
        with pytest.raises(KeyError):
            await with_retry(policy(**limits), op, clock=clock, breaker=breaker)
    assert not timers(clock)
    permitted(breaker)


@pytest.mark.parametrize("answer", [None, "page", RetryOk])
async def test_an_op_that_does_not_return_a_disposition_raises_type_error(answer: Any) -> None:
    """The ``TypeError`` names the value, the hook receives the attempt, and the permit is released."""
    clock = ManualClock()
    breaker = tripped(clock)
    clock.advance(30)
    reported: list[Attempt] = []

    async def op() -> RetryDisposition[Any]:
        return answer  # type: ignore[no-any-return]

    with pytest.raises(TypeError) as raised:
        await with_retry(policy(), op, clock=clock, breaker=breaker, on_attempt=reported.append)
    assert str(raised.value) == f"with_retry: expected op to return a RetryDisposition, got {answer!r}"
    assert reported == [Attempt(1, AttemptOutcome.PERMANENT, raised.value, None)]
    permitted(breaker)


# The breaker.


async def test_the_breaker_counts_the_outcome_of_each_attempt() -> None:
    """A ``Retry`` is a failure; a value, a discard and a permanent answer (a 404) are successes."""
    clock = ManualClock()
    breaker = CircuitBreaker("archive", clock=clock, window=300 * S)
    for steps in ([away(), RetryOk(1)], [away(), RetryDiscard("old")], [Permanent(ValueError("404"))]):
        with suppress(PermanentFailure):
            await finish(clock, with_retry(policy(), Script(clock, *steps), clock=clock, breaker=breaker))
    figures = breaker.statistics()
    assert (figures.calls, figures.failures) == (5, 2)


async def test_a_probe_with_a_permanent_answer_closes_the_breaker() -> None:
    """The downstream answered."""
    clock = ManualClock()
    breaker = tripped(clock)
    clock.advance(30)
    with pytest.raises(PermanentFailure):
        await with_retry(policy(), Script(clock, Permanent(ValueError("404"))), clock=clock, breaker=breaker)
    assert breaker.state is BreakerState.CLOSED


async def test_a_rejected_call_skips_the_attempt_and_the_next_backoff_begins() -> None:
    """It counts as an attempt, op is not called, and the delay is the drawn one, not that of the rejection."""
    clock = ManualClock()
    breaker = tripped(clock, cooldown=10 * S)
    reported: list[Attempt] = []
    op = Script(clock, RetryOk("page"))
    work = with_retry(
        policy(max_attempts=4), op, clock=clock, rng=Highest(), breaker=breaker, on_attempt=reported.append
    )
    assert await finish(clock, work) == RetryOk("page")
    assert op.calls == [14.0]  # 1.5 + 4.5 + 8: rejected at 0, 1.5 and 6
    assert [(attempt.number, attempt.outcome, attempt.delay) for attempt in reported] == [
        (1, AttemptOutcome.REJECTED, 1.5 * S),
        (2, AttemptOutcome.REJECTED, 4.5 * S),
        (3, AttemptOutcome.REJECTED, 8 * S),
        (4, AttemptOutcome.OK, None),
    ]
    assert breaker.statistics().rejections == 3
    assert breaker.state is BreakerState.CLOSED


async def test_when_every_call_is_rejected_the_error_says_when_to_ask_again() -> None:
    """No attempts were made; the cause is the last rejection."""
    clock = ManualClock()
    breaker = tripped(clock)
    op = Script(clock)
    with pytest.raises(RetriesExhausted) as raised:
        await finish(clock, with_retry(policy(), op, clock=clock, rng=Highest(), breaker=breaker))
    assert str(raised.value) == (
        "no attempts left: BreakerOpen: breaker 'archive' is open: ask again in 24 s "
        "(after 0 attempts and 3 rejected in 6 s)"
    )
    rejection = raised.value.__cause__
    assert isinstance(rejection, BreakerOpen)
    assert (rejection.breaker, rejection.ask_again_in) == ("archive", 24 * S)
    assert rejection.__cause__ is None
    assert raised.value.tried == Tried(attempts=0, rejected=3, elapsed_s=6.0)
    assert op.calls == []


async def test_after_rejections_the_downstreams_last_error_is_in_the_chain() -> None:
    """Exhausted, caused by the last rejection, caused by the last failure. The chain does not grow with the outage."""
    clock = ManualClock()
    breaker = CircuitBreaker("archive", clock=clock, min_calls=1)
    failure = away()
    with pytest.raises(RetriesExhausted) as raised:
        await finish(
            clock,
            with_retry(policy(max_attempts=4), Script(clock, failure), clock=clock, rng=Highest(), breaker=breaker),
        )
    assert raised.value.tried == Tried(attempts=1, rejected=3, elapsed_s=14.0)
    rejection = raised.value.__cause__
    assert isinstance(rejection, BreakerOpen)
    assert rejection.__cause__ is failure.error


async def test_a_cancelled_probe_releases_its_permit() -> None:
    """The task is really cancelled during its attempt. The next caller gets the probe and closes the breaker."""
    clock = ManualClock()
    breaker = tripped(clock)
    clock.advance(30)
    op = Script(clock, takes(clock, 5.0, RetryOk("late")))
    probing = await begin(with_retry(policy(), op, clock=clock, breaker=breaker))
    with pytest.raises(RetriesExhausted):
        await with_retry(policy(max_attempts=1), Script(clock), clock=clock, breaker=breaker)
    probing.cancel()
    await asyncio.wait({probing})
    assert probing.cancelled()
    assert breaker.statistics().state is BreakerState.HALF_OPEN
    assert not timers(clock)
    assert await with_retry(policy(), Script(clock, RetryOk("now")), clock=clock, breaker=breaker) == RetryOk("now")
    assert breaker.state is BreakerState.CLOSED


async def test_a_probe_that_times_out_is_a_failure_of_the_downstream() -> None:
    """The attempt timeout cancels it, and the breaker opens again."""
    clock = ManualClock()
    breaker = tripped(clock)
    clock.advance(30)
    op = Script(clock, takes(clock, 60.0, RetryOk("late")))
    with pytest.raises(RetriesExhausted):
        await finish(clock, with_retry(policy(max_attempts=1, attempt_timeout=5 * S), op, clock=clock, breaker=breaker))
    assert breaker.state is BreakerState.OPEN
    assert breaker.statistics().opened == 2


# Hooks.


async def test_the_hook_receives_one_frozen_record_for_each_attempt() -> None:
    """It has number, outcome, error and delay, for a failure, a rejection and the last failure."""
    clock = ManualClock()
    breaker = CircuitBreaker("archive", clock=clock, min_calls=1, cooldown=5 * S)
    reported: list[Attempt] = []
    first, last = away(), away()
    with pytest.raises(RetriesExhausted):
        await finish(
            clock,
            with_retry(
                policy(),
                Script(clock, first, last),
                clock=clock,
                rng=Highest(),
                breaker=breaker,
                on_attempt=reported.append,
            ),
        )
    rejection = reported[1].error
    assert isinstance(rejection, BreakerOpen)
    assert reported == [
        Attempt(1, AttemptOutcome.FAILED, first.error, 1.5 * S),
        Attempt(2, AttemptOutcome.REJECTED, rejection, 4.5 * S),
        Attempt(3, AttemptOutcome.FAILED, last.error, None),
    ]
    with pytest.raises(FrozenInstanceError):
        reported[0].number = 7  # type: ignore[misc]


@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        (RetryOk(1), AttemptOutcome.OK),
        (RetryDiscard("old"), AttemptOutcome.DISCARDED),
        (Permanent(ValueError("404")), AttemptOutcome.PERMANENT),
        (KeyError("bug"), AttemptOutcome.PERMANENT),
    ],
)
async def test_the_hook_receives_the_last_outcome(step: Step, outcome: AttemptOutcome) -> None:
    """With the error, if there is one, and without a delay."""
    clock = ManualClock()
    reported: list[Attempt] = []
    with suppress(PermanentFailure, KeyError):
        await with_retry(policy(), Script(clock, step), clock=clock, on_attempt=reported.append)
    error = step.error if isinstance(step, Permanent) else step if isinstance(step, BaseException) else None
    assert reported == [Attempt(1, outcome, error, None)]


async def test_the_hook_receives_nothing_for_a_cancelled_attempt() -> None:
    """It has no outcome."""
    clock = ManualClock()
    reported: list[Attempt] = []
    trying = await begin(
        with_retry(policy(), Script(clock, takes(clock, 5.0, RetryOk(1))), clock=clock, on_attempt=reported.append)
    )
    trying.cancel()
    await asyncio.wait({trying})
    assert not reported


@pytest.mark.parametrize("error", [KeyError("bug"), asyncio.CancelledError()])
@pytest.mark.parametrize("last", [RetryOk(1), Permanent(ValueError("404")), OSError("disk"), away()])
async def test_a_hook_that_raises_changes_nothing_and_is_logged(
    error: BaseException, last: Step, caplog: pytest.LogCaptureFixture
) -> None:
    """The attempts, their waits and the result are the same as without it."""
    ends: list[object] = []

    def broken(_: Attempt) -> None:
        raise error

    for hook in (None, broken):
        clock = ManualClock()
        op = Script(clock, away(), away(), last)
        try:
            ends.append(await finish(clock, with_retry(policy(), op, clock=clock, rng=Highest(), on_attempt=hook)))
        except (PermanentFailure, RetriesExhausted, OSError) as ended:
            ends.append(repr(ended))
        ends.append(op.calls)
    assert ends[:2] == ends[2:]
    assert [record.getMessage() for record in caplog.records] == ["a hook failed; what it was called for goes on"] * 3


# Policies and budgets.


def test_the_policys_defaults() -> None:
    """The specification's clamp, no deadline, no attempt timeout, pauses of up to five minutes."""
    assert RetryPolicy(S, S, 8) == RetryPolicy(
        initial=S,
        cap=S,
        max_attempts=8,
        clamp="delay",
        deadline=None,
        attempt_timeout=None,
        max_retry_after=timedelta(minutes=5),
    )


def test_every_invalid_field_of_a_policy_is_named_in_one_error() -> None:
    """Seven invalid fields give one message that names all seven."""
    clamp: Any = "both"
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - pinned whole below
        RetryPolicy(0 * S, -S, 0, clamp=clamp, deadline=0 * S, attempt_timeout=0 * S, max_retry_after=0 * S)
    assert str(raised.value) == (
        "RetryPolicy: initial must be > 0, got datetime.timedelta(0); "
        "RetryPolicy: cap must be >= initial (datetime.timedelta(0)), got datetime.timedelta(days=-1, seconds=86399); "
        "RetryPolicy: max_attempts must be >= 1, or None, got 0; "
        "RetryPolicy: clamp must be 'delay' or 'draw', got 'both'; "
        "RetryPolicy: deadline must be > 0, or None, got datetime.timedelta(0); "
        "RetryPolicy: attempt_timeout must be > 0, or None, got datetime.timedelta(0); "
        "RetryPolicy: max_retry_after must be > 0, got datetime.timedelta(0)"
    )


def test_the_bounds_of_a_policy_are_valid() -> None:
    """The smallest value of each field is valid."""
    least = timedelta(microseconds=1)
    RetryPolicy(least, least, 1, clamp="draw", deadline=least, attempt_timeout=least, max_retry_after=least)


@pytest.mark.parametrize(
    ("attempts", "elapsed_s", "delay_s", "reason"),
    [
        (2, 0.0, 0.0, None),
        (3, 0.0, 0.0, "attempts"),
        (4, 0.0, 0.0, "attempts"),
        (1, 4.0, 0.75, None),
        (1, 4.0, 1.0, "deadline"),
        (1, 5.0, 0.0, "deadline"),
        (3, 5.0, 0.0, "attempts"),
    ],
)
def test_it_gives_up_when_no_attempts_or_no_time_are_left(
    attempts: int, elapsed_s: float, delay_s: float, reason: str | None
) -> None:
    """At the last attempt, and when the delay would reach the deadline."""
    limited = policy(max_attempts=3, deadline=5 * S)
    assert give_up(limited, attempts=attempts, elapsed_s=elapsed_s, delay_s=delay_s) == reason
    assert give_up(policy(max_attempts=None), attempts=attempts, elapsed_s=elapsed_s, delay_s=delay_s) is None
