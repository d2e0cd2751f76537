"""``with_retry`` on a clock that is moved by hand: how long it waits, when it gives up, and what it leaves behind."""

from __future__ import annotations

import asyncio
import logging
import random
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import FrozenInstanceError
from datetime import timedelta
from itertools import pairwise
from math import sqrt
from typing import Any, Literal, TypeVar, assert_never

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_adapter import (
    BreakerOpen,
    BreakerPolicy,
    BreakerState,
    BuiltGraph,
    CircuitBreaker,
    DeadLetterKind,
    DeadLetterList,
    Factory,
    OperatorGraph,
    PermanentFailure,
    RestartPolicy,
    RetriesExhausted,
    RetryBudget,
    RetryCutShort,
    RetryDisposition,
    RetryPolicy,
    WiredEnds,
    merge,
    with_retry,
)
from orchestrator_adapter.primitives.clock import Clock, sleep
from orchestrator_adapter.primitives.errors import Tried
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.process.report import ExitCode, exit_code, report
from orchestrator_adapter.resilience.breaker import Permit
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
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import (
    CollectSink,
    ListSource,
    LoopClock,
    ManualClock,
    UntilShutdown,
    chain,
    run_every_schedule,
    run_graph,
    settle,
)
from tests.helpers.log_lines import event_of

T = TypeVar("T")

MS = timedelta(milliseconds=1)
S = timedelta(seconds=1)
Clamp = Literal["delay", "draw"]
CLAMPS: list[Clamp] = ["delay", "draw"]

SPECIFIED_MS = [300, 900, 2700, 5000, 5000, 5000]
"""Specification, section 7: the delays for initial=100 ms, cap=5 s, with the draw pinned to its upper bound."""


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
    """An ``op`` that does what it is told, a step a call, and notes when it was called. It raises the exceptions."""

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
    """When those are due that have not been called off."""
    return clock.pending_timers


async def finish(clock: ManualClock, work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` to its end, moving the clock from timer to timer; it must leave none."""
    task = asyncio.create_task(work)
    await settle(20)
    while not task.done():
        due = timers(clock)
        assert due, "it waits for what will never come"
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
    """What passed between one call and the next."""
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


# The schedule.


def test_the_specified_schedule() -> None:
    """Pinned to the upper bound, the delays are 300, 900, 2700 and then 5000 ms, 18.9 s in all."""
    specified = RetryPolicy(100 * MS, 5 * S, max_attempts=7)
    delays_s, previous_s = list[float](), 0.1
    for _ in SPECIFIED_MS:
        previous_s = specified.next_delay_s(previous_s, Highest())
        delays_s.append(previous_s)
    assert [round(1000 * delay_s, 9) for delay_s in delays_s] == SPECIFIED_MS
    assert sum(delays_s) == pytest.approx(18.9, abs=1e-12)


async def test_the_specified_schedule_is_what_passes_between_the_attempts() -> None:
    """Seven attempts are made, the waits between them are the specified ones, and after the last nobody waits."""
    clock = ManualClock()
    op = Script(clock, *[away()] * 7)
    with pytest.raises(RetriesExhausted) as raised:
        await finish(clock, with_retry(RetryPolicy(100 * MS, 5 * S, max_attempts=7), op, clock=clock, rng=Highest()))
    assert [round(1000 * wait_s, 6) for wait_s in waits(op.calls)] == SPECIFIED_MS
    assert clock.monotonic() == pytest.approx(18.9, abs=1e-9)
    assert raised.value.tried == Tried(7, 0, clock.monotonic())


@given(
    initial=st.timedeltas(timedelta(microseconds=1), timedelta(hours=1)),
    ratio=st.floats(1, 1e6),
    how_far=st.floats(0, 1),
    share=st.floats(0, 1),
    clamp=st.sampled_from(CLAMPS),
)
def test_a_delay_lies_between_initial_and_the_lesser_of_cap_and_thrice_the_last(
    initial: timedelta, ratio: float, how_far: float, share: float, clamp: Clamp
) -> None:
    """Whatever the previous delay and the draw."""
    any_policy = RetryPolicy(initial, max(initial, initial * ratio), None, clamp=clamp)
    initial_s, cap_s = initial.total_seconds(), any_policy.cap.total_seconds()
    previous_s = min(cap_s, initial_s + how_far * (cap_s - initial_s))
    delay_s = any_policy.next_delay_s(previous_s, Pinned(share))
    assert initial_s <= delay_s <= cap_s
    assert delay_s <= 3 * previous_s * (1 + 1e-12)


@pytest.mark.parametrize("clamp", CLAMPS)
def test_a_delay_is_never_beyond_the_bounds_in_a_long_run(clamp: Clamp) -> None:
    """Of ten thousand draws in a row none is below initial, above the cap, or above thrice the one before."""
    delays_s = run_of(10_000, policy(clamp=clamp))
    assert all(0.5 <= delay_s <= 8 for delay_s in delays_s)
    assert all(after <= 3 * before for before, after in pairwise([0.5, *delays_s]))


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("clamp", CLAMPS)
def test_a_draw_at_a_share_of_its_range_is_the_formulas(clamp: Clamp, share: float) -> None:
    """From 4 s, with a cap of 8 s, the range is 0.5 to 12 s, cut to 8 afterwards, or 0.5 to 8 s."""
    drawn = policy(clamp=clamp).next_delay_s(4.0, Pinned(share))
    assert drawn == pytest.approx(min(8.0, 0.5 + share * 11.5) if clamp == "delay" else 0.5 + share * 7.5)


def test_a_previous_delay_of_nothing_still_gives_a_delay() -> None:
    """``max(initial, 3 * previous)``: the range never ends before it begins."""
    assert policy().next_delay_s(0.0, Highest()) == 0.5


DRAWS = 100_000
KOLMOGOROV_1_PER_MILLE = 1.95 / sqrt(DRAWS)
"""What the greatest distance between the empirical and the true distribution exceeds once in a thousand times."""


def run_of(count: int, of: RetryPolicy, *, seed: int = 7) -> list[float]:
    """So many delays in a row."""
    rng, previous_s, delays_s = random.Random(seed), of.initial.total_seconds(), list[float]()
    for _ in range(count):
        previous_s = of.next_delay_s(previous_s, rng)
        delays_s.append(previous_s)
    return delays_s


def distance_from_uniform(sample: list[float]) -> float:
    """Kolmogorov's: between the sample's distribution and the uniform one on [0, 1]."""
    ordered, count = sorted(sample), len(sample)
    return max(max((rank + 1) / count - value, value - rank / count) for rank, value in enumerate(ordered))


def test_the_statistic_is_not_blind() -> None:
    """A distribution that is off by one in a hundred is told from the uniform one."""
    rng = random.Random(7)
    assert distance_from_uniform([rng.random() for _ in range(DRAWS)]) < KOLMOGOROV_1_PER_MILLE
    assert distance_from_uniform([rng.random() ** 1.03 for _ in range(DRAWS)]) > KOLMOGOROV_1_PER_MILLE


@pytest.mark.parametrize("clamp", CLAMPS)
def test_the_first_delay_is_uniform_between_initial_and_thrice_initial(clamp: Clamp) -> None:
    """100,000 first delays have that distribution."""
    rng = random.Random(7)
    firsts = [policy(clamp=clamp).next_delay_s(0.5, rng) for _ in range(DRAWS)]
    assert distance_from_uniform([first - 0.5 for first in firsts]) < KOLMOGOROV_1_PER_MILLE


@pytest.mark.parametrize("clamp", CLAMPS)
def test_a_delay_below_the_cap_is_uniform_given_the_one_before(clamp: Clamp) -> None:
    """In a run of 100,000, where a delay lies within its range is uniform, and tells nothing of where the next will."""
    delays_s = run_of(DRAWS, policy(clamp=clamp))
    places = [(after - 0.5) / (min(8.0, 3 * before) - 0.5) for before, after in pairwise([0.5, *delays_s]) if after < 8]
    assert len(places) > DRAWS / 2
    assert distance_from_uniform(places) < 1.95 / sqrt(len(places))
    correlation = sum((a - 0.5) * (b - 0.5) for a, b in pairwise(places)) * 12 / len(places)
    assert abs(correlation) < 3.3 / sqrt(len(places))


def test_a_delay_is_exactly_the_cap_as_often_as_the_formula_says() -> None:
    """Given the one before, with the probability that the range gives to what lies beyond the cap."""
    delays_s = run_of(DRAWS, policy())
    chances = [max(0.0, (3 * before - 8.0) / (3 * before - 0.5)) for before in [0.5, *delays_s[:-1]]]
    surplus = sum((delay_s == 8.0) - chance for delay_s, chance in zip(delays_s, chances, strict=True))
    assert abs(surplus) < 3.3 * sqrt(sum(chance * (1 - chance) for chance in chances))


def test_near_saturation_a_quarter_to_a_third_of_the_delays_are_exactly_the_cap() -> None:
    """With the specification's example for an archive; with ``clamp="draw"`` none is."""
    archive = {"initial": 200 * MS, "cap": 15 * S, "max_attempts": 8}
    capped = run_of(DRAWS, policy(**archive)).count(15.0)
    assert 1 / 4 <= capped / DRAWS <= 1 / 3
    assert run_of(DRAWS, policy(**archive, clamp="draw")).count(15.0) == 0


def test_a_hundred_callers_of_one_outage_do_not_come_back_together() -> None:
    """Ten seconds after a common failure no tenth of a second holds more than a tenth of a hundred callers' attempts."""
    attempts: list[float] = []
    for caller in range(100):
        at = 0.0
        for delay_s in run_of(20, RetryPolicy(200 * MS, 15 * S, 8), seed=caller):
            at += delay_s
            attempts.append(at)
    attempts.sort()
    slots = [bisect_left(attempts, 10 + n / 10) for n in range(100)]
    assert max(after - before for before, after in pairwise(slots)) <= 10


# What comes of an attempt.


async def test_ok_and_discard_are_values_that_a_match_tells_apart() -> None:
    """Both are returned as the op made them, at the first attempt, without a wait."""
    clock = ManualClock()

    async def told(step: RetryDisposition[int]) -> str:
        outcome: RetryOk[int] | RetryDiscard = await with_retry(policy(), Script(clock, step), clock=clock)
        match outcome:
            case RetryOk(value):
                return f"ok {value}"
            case RetryDiscard(reason):
                return f"discarded: {reason}"
            case _:
                assert_never(outcome)

    assert await told(RetryOk(42)) == "ok 42"
    assert await told(RetryDiscard("too old")) == "discarded: too old"
    assert clock.timers_made == 0


async def test_what_may_pass_is_tried_again_until_it_works() -> None:
    """Two failures and a success: three calls, each awaited afresh, and the success is returned."""
    clock = ManualClock()
    op = Script(clock, away(), away(), RetryOk("page"))
    assert await finish(clock, with_retry(policy(), op, clock=clock, rng=Highest())) == RetryOk("page")
    assert op.calls == [0.0, 1.5, 6.0]


async def test_op_is_called_afresh_for_each_attempt() -> None:
    """Each attempt awaits an awaitable of its own."""
    made: list[Coroutine[Any, Any, RetryDisposition[int]]] = []

    async def attempt() -> RetryDisposition[int]:
        return away() if len(made) < 3 else RetryOk(len(made))

    def op() -> Awaitable[RetryDisposition[int]]:
        made.append(attempt())
        return made[-1]

    with without_waiting():
        assert await with_retry(policy(), op) == RetryOk(3)
    assert len({id(each) for each in made}) == 3


async def test_permanent_raises_at_once_with_its_cause() -> None:
    """Nothing is waited for, nothing tried again, and the message has the error, the count and the time."""
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


async def test_the_last_failed_attempt_raises_with_the_count_and_the_last_error_as_cause() -> None:
    """Not the first error, and not a moment later than the last attempt."""
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


async def test_with_one_attempt_nothing_is_tried_again() -> None:
    """The first failure is the last."""
    clock = ManualClock()
    with pytest.raises(RetriesExhausted) as raised:
        await with_retry(policy(max_attempts=1), Script(clock, away()), clock=clock)
    assert str(raised.value) == "no attempts left: ConnectionError: away (after 1 attempt in 0 s)"


async def test_without_a_limit_it_goes_on_for_as_long_as_it_takes() -> None:
    """A thousand failures, then a success."""
    clock = ManualClock()
    op = Script(clock, *[away()] * 1000, RetryOk("at last"))
    with without_waiting():
        assert await with_retry(policy(max_attempts=None), op, clock=clock, rng=Highest()) == RetryOk("at last")
    assert len(op.calls) == 1001


@pytest.mark.parametrize("limits", [{}, {"attempt_timeout": 5 * S}, {"deadline": 5 * S}])
@pytest.mark.parametrize("error", [KeyError("bug"), OSError("disk"), TimeoutError("the socket's own"), SystemExit(3)])
async def test_what_nobody_classified_passes_unwrapped_and_at_once(limits: Any, error: BaseException) -> None:
    """A bug, or an op's own ``TimeoutError``, is neither tried again nor taken for the limit's; the permit is given back."""
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


async def test_an_op_that_fails_before_it_gives_an_awaitable_gives_the_permit_back() -> None:
    """What it raises passes as it is."""
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
async def test_an_op_that_returns_no_disposition_is_a_bug(answer: Any) -> None:
    """It is named in a ``TypeError`` at once, told to the hook, and the permit is given back."""
    clock = ManualClock()
    breaker = tripped(clock)
    clock.advance(30)
    told: list[Attempt] = []

    async def op() -> RetryDisposition[Any]:
        return answer  # type: ignore[no-any-return]

    with pytest.raises(TypeError) as raised:
        await with_retry(policy(), op, clock=clock, breaker=breaker, on_attempt=told.append)
    assert str(raised.value) == f"with_retry: expected op to return a RetryDisposition, got {answer!r}"
    assert told == [Attempt(1, AttemptOutcome.PERMANENT, raised.value, None)]
    permitted(breaker)


# The breaker.


async def test_the_breaker_learns_what_came_of_each_attempt() -> None:
    """Failures that may pass are its failures; a value, a "discard" and a permanent no (a 404) are its successes."""
    clock = ManualClock()
    breaker = CircuitBreaker("archive", clock=clock, window=300 * S)
    for steps in ([away(), RetryOk(1)], [away(), RetryDiscard("old")], [Permanent(ValueError("404"))]):
        with suppress(PermanentFailure):
            await finish(clock, with_retry(policy(), Script(clock, *steps), clock=clock, breaker=breaker))
    figures = breaker.statistics()
    assert (figures.calls, figures.failures) == (5, 2)


async def test_a_probe_that_gets_a_permanent_no_closes_the_breaker() -> None:
    """The downstream has answered."""
    clock = ManualClock()
    breaker = tripped(clock)
    clock.advance(30)
    with pytest.raises(PermanentFailure):
        await with_retry(policy(), Script(clock, Permanent(ValueError("404"))), clock=clock, breaker=breaker)
    assert breaker.state is BreakerState.CLOSED


async def test_a_refused_call_skips_the_attempt_and_goes_on_to_the_next_backoff() -> None:
    """It uses its slot up, op is not called, and the delay is the drawn one, not what the refusal says."""
    clock = ManualClock()
    breaker = tripped(clock, cooldown=10 * S)
    told: list[Attempt] = []
    op = Script(clock, RetryOk("page"))
    work = with_retry(policy(max_attempts=4), op, clock=clock, rng=Highest(), breaker=breaker, on_attempt=told.append)
    assert await finish(clock, work) == RetryOk("page")
    assert op.calls == [14.0]  # 1.5 + 4.5 + 8: refused at 0, 1.5 and 6
    assert [(attempt.number, attempt.outcome, attempt.delay) for attempt in told] == [
        (1, AttemptOutcome.REJECTED, 1.5 * S),
        (2, AttemptOutcome.REJECTED, 4.5 * S),
        (3, AttemptOutcome.REJECTED, 8 * S),
        (4, AttemptOutcome.OK, None),
    ]
    assert breaker.statistics().rejections == 3
    assert breaker.state is BreakerState.CLOSED


async def test_when_every_call_was_refused_the_error_says_so_and_when_to_ask_again() -> None:
    """No attempts were made; the cause is the last refusal."""
    clock = ManualClock()
    breaker = tripped(clock)
    op = Script(clock)
    with pytest.raises(RetriesExhausted) as raised:
        await finish(clock, with_retry(policy(), op, clock=clock, rng=Highest(), breaker=breaker))
    assert str(raised.value) == (
        "no attempts left: BreakerOpen: breaker 'archive' is open: ask again in 24 s "
        "(after 0 attempts and 3 rejected in 6 s)"
    )
    refusal = raised.value.__cause__
    assert isinstance(refusal, BreakerOpen)
    assert (refusal.breaker, refusal.ask_again_in) == ("archive", 24 * S)
    assert refusal.__cause__ is None
    assert raised.value.tried == Tried(attempts=0, rejected=3, elapsed_s=6.0)
    assert op.calls == []


async def test_after_refusals_the_error_that_the_downstream_gave_is_still_in_the_chain() -> None:
    """Exhausted, caused by the last refusal, caused by the last failure; not a chain as long as the outage."""
    clock = ManualClock()
    breaker = CircuitBreaker("archive", clock=clock, min_calls=1)
    failure = away()
    with pytest.raises(RetriesExhausted) as raised:
        await finish(
            clock,
            with_retry(policy(max_attempts=4), Script(clock, failure), clock=clock, rng=Highest(), breaker=breaker),
        )
    assert raised.value.tried == Tried(attempts=1, rejected=3, elapsed_s=14.0)
    refusal = raised.value.__cause__
    assert isinstance(refusal, BreakerOpen)
    assert refusal.__cause__ is failure.error


async def test_a_probe_whose_caller_is_cancelled_gives_its_permit_back() -> None:
    """The task is really cancelled in the middle of its attempt; the next caller gets the probe and closes the breaker."""
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


async def test_a_probe_that_takes_too_long_is_a_failure_of_the_downstream() -> None:
    """Cut off by the attempt's limit, it opens the breaker again."""
    clock = ManualClock()
    breaker = tripped(clock)
    clock.advance(30)
    op = Script(clock, takes(clock, 60.0, RetryOk("late")))
    with pytest.raises(RetriesExhausted):
        await finish(clock, with_retry(policy(max_attempts=1, attempt_timeout=5 * S), op, clock=clock, breaker=breaker))
    assert breaker.state is BreakerState.OPEN
    assert breaker.statistics().opened == 2


# Retry-After.


@pytest.mark.parametrize(
    ("asked_for", "waited_s"),
    [
        (None, 1.5),
        (30 * S, 31.5),
        (timedelta(minutes=5), 301.5),
        (timedelta(hours=1), 301.5),  # max_retry_after
        (0 * S, 1.5),
        (-10 * S, 1.5),
    ],
)
async def test_what_the_downstream_asks_for_comes_on_top_of_the_draw(
    asked_for: timedelta | None, waited_s: float
) -> None:
    """Up to five minutes, never less than nothing, and the hook is told the whole delay."""
    clock = ManualClock()
    told: list[Attempt] = []
    op = Script(clock, away(asked_for), RetryOk(1))
    await finish(clock, with_retry(policy(), op, clock=clock, rng=Highest(), on_attempt=told.append))
    assert waits(op.calls) == [waited_s]
    assert told[0].delay == waited_s * S


async def test_what_the_downstream_asks_for_does_not_feed_the_jitter() -> None:
    """The next draw is up to three times the last draw, not the last wait."""
    clock = ManualClock()
    op = Script(clock, away(60 * S), away(), RetryOk(1))
    await finish(clock, with_retry(policy(), op, clock=clock, rng=Highest()))
    assert waits(op.calls) == [61.5, 4.5]


async def test_the_longest_pause_is_the_policys() -> None:
    """Ten seconds, where it says ten seconds."""
    clock = ManualClock()
    op = Script(clock, away(60 * S), RetryOk(1))
    await finish(clock, with_retry(policy(max_retry_after=10 * S), op, clock=clock, rng=Highest()))
    assert waits(op.calls) == [11.5]


async def test_callers_told_the_same_pause_do_not_come_back_in_the_same_instant() -> None:
    """Two with different draws come at different times, neither before the pause is over."""
    clock = ManualClock()
    ops = [Script(clock, away(30 * S), RetryOk(1)) for _ in range(2)]
    tasks = [await begin(with_retry(policy(), op, clock=clock, rng=random.Random(seed))) for seed, op in enumerate(ops)]
    while not all(task.done() for task in tasks):
        clock.advance(timers(clock)[0] - clock.monotonic())
        await settle(20)
    first, second = (op.calls[1] for op in ops)
    assert min(first, second) >= 30.5
    assert abs(first - second) > 0.01


# The deadline of all, and the limit of one.


@pytest.mark.parametrize(("deadline", "calls"), [(1.5 * S, [0.0]), (1.75 * S, [0.0, 1.5]), (6 * S, [0.0, 1.5])])
async def test_no_wait_is_begun_that_would_reach_to_the_deadline(deadline: timedelta, calls: list[float]) -> None:
    """It gives up at once, without waiting for what it could not use."""
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


async def test_a_pause_that_would_reach_beyond_the_deadline_is_not_begun() -> None:
    """What the downstream asks for counts."""
    clock = ManualClock()
    with pytest.raises(RetriesExhausted) as raised:
        await finish(
            clock, with_retry(policy(deadline=10 * S), Script(clock, away(60 * S)), clock=clock, rng=Highest())
        )
    assert (raised.value.reason, clock.monotonic()) == ("deadline", 0.0)


async def test_an_attempt_is_cut_off_at_the_deadline() -> None:
    """Counted from the first attempt's beginning: what is left at the second attempt is what it may take."""
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


async def test_the_last_attempt_cut_off_at_the_deadline_was_the_last() -> None:
    """Where both are spent it is the attempts that are named."""
    clock = ManualClock()
    op = Script(clock, takes(clock, 60.0, RetryOk("late")))
    with pytest.raises(RetriesExhausted) as raised:
        await finish(clock, with_retry(policy(deadline=5 * S, max_attempts=1), op, clock=clock))
    assert (raised.value.reason, clock.monotonic()) == ("attempts", 5.0)


async def test_a_loop_that_comes_back_after_the_deadline_makes_no_attempt() -> None:
    """Held up during the wait, it does not ask a downstream that would have no time to answer."""
    clock = ManualClock()
    op = Script(clock, away())
    waiting = await begin(with_retry(policy(deadline=5 * S), op, clock=clock, rng=Highest()))
    await clock.advance_when_idle(5.0)
    with pytest.raises(RetriesExhausted) as raised:
        await waiting
    assert raised.value.reason == "deadline"
    assert len(op.calls) == 1


async def test_an_attempt_that_takes_longer_than_its_limit_counts_as_one_that_may_pass() -> None:
    """It is cancelled after 5 s, tried again after the backoff, and the hook is told of the timeout."""
    clock = ManualClock()
    told: list[Attempt] = []
    op = Script(clock, takes(clock, 60.0, RetryOk("late")), takes(clock, 4.75, RetryOk("in time")))
    work = with_retry(policy(attempt_timeout=5 * S), op, clock=clock, rng=Highest(), on_attempt=told.append)
    assert await finish(clock, work) == RetryOk("in time")
    assert op.calls == [0.0, 6.5]
    assert [attempt.outcome for attempt in told] == [AttemptOutcome.FAILED, AttemptOutcome.OK]
    assert isinstance(told[0].error, TimeoutError)
    assert str(told[0].error) == "the attempt was not done within 5 s"


@pytest.mark.parametrize(("attempt_s", "deadline_s", "shorter_s"), [(2, 5, 2), (5, 2, 2)])
async def test_of_both_limits_the_shorter_cuts_the_attempt_off(attempt_s: int, deadline_s: int, shorter_s: int) -> None:
    """And the message names it."""
    clock = ManualClock()
    op = Script(clock, takes(clock, 60.0, RetryOk("late")))
    both = policy(attempt_timeout=attempt_s * S, deadline=deadline_s * S, max_attempts=1)
    with pytest.raises(RetriesExhausted, match=f"TimeoutError: the attempt was not done within {shorter_s} s "):
        await finish(clock, with_retry(both, op, clock=clock))


async def test_an_op_that_swallows_its_cancellation_is_heard() -> None:
    """What it returns in spite of it counts, and no cancellation is left over for what comes next."""
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


async def test_an_op_that_moves_the_clock_past_its_limit_cancels_nothing_that_comes_after() -> None:
    """A scripted op of 10 s that never awaits has ended; the wait that follows is a whole one."""
    clock = ManualClock()

    async def slow() -> RetryDisposition[str]:
        clock.advance(10.0)
        return away() if clock.monotonic() < 15 else RetryOk("page")

    work = with_retry(policy(attempt_timeout=5 * S), slow, clock=clock, rng=Highest())
    assert await finish(clock, work) == RetryOk("page")
    assert clock.monotonic() == 21.5


# The shutdown.


async def test_the_shutdown_cuts_the_wait_short() -> None:
    """At once, without the clock being moved; the last error is the cause."""
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


async def test_set_before_the_call_one_attempt_is_made_and_its_failure_is_final() -> None:
    """A success is a success."""
    clock, token = ManualClock(), ShutdownToken()
    token.set("asked")
    told: list[Attempt] = []
    with pytest.raises(RetryCutShort):
        await with_retry(policy(), Script(clock, away()), clock=clock, shutdown=token, on_attempt=told.append)
    assert [attempt.delay for attempt in told] == [None]
    assert await with_retry(policy(), Script(clock, RetryOk(1)), clock=clock, shutdown=token) == RetryOk(1)
    assert clock.timers_made == 0


@pytest.mark.parametrize("then", [RetryOk("page"), away()])
async def test_set_during_an_attempt_it_is_not_cancelled_and_is_the_last(then: RetryDisposition[str]) -> None:
    """Its success is returned; after its failure nobody waits."""
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


async def test_after_the_last_attempt_it_is_the_attempts_that_ran_out() -> None:
    """A shutdown that has come by then changes nothing in what is told."""
    clock, token = ManualClock(), ShutdownToken()
    token.set("asked")
    with pytest.raises(RetriesExhausted):
        await with_retry(policy(max_attempts=1), Script(clock, away()), clock=clock, shutdown=token)


async def test_a_refused_call_waits_no_longer_than_the_shutdown_either() -> None:
    """The error says that it was refused."""
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


async def test_a_hook_that_asks_for_the_shutdown_gets_it() -> None:
    """Told of a delay, it sets the token: nobody waits for that delay."""
    clock, token = ManualClock(), ShutdownToken()
    with pytest.raises(RetryCutShort):
        await with_retry(
            policy(), Script(clock, away()), clock=clock, shutdown=token, on_attempt=lambda _: token.set("hook")
        )
    assert clock.timers_made == 0


# Hooks.


async def test_the_hook_is_told_of_each_attempt_once_in_a_record_it_cannot_change() -> None:
    """Number, outcome, error and delay, for a failure, a refusal and the last failure."""
    clock = ManualClock()
    breaker = CircuitBreaker("archive", clock=clock, min_calls=1, cooldown=5 * S)
    told: list[Attempt] = []
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
                on_attempt=told.append,
            ),
        )
    refusal = told[1].error
    assert isinstance(refusal, BreakerOpen)
    assert told == [
        Attempt(1, AttemptOutcome.FAILED, first.error, 1.5 * S),
        Attempt(2, AttemptOutcome.REJECTED, refusal, 4.5 * S),
        Attempt(3, AttemptOutcome.FAILED, last.error, None),
    ]
    with pytest.raises(FrozenInstanceError):
        told[0].number = 7  # type: ignore[misc]


@pytest.mark.parametrize(
    ("step", "outcome"),
    [
        (RetryOk(1), AttemptOutcome.OK),
        (RetryDiscard("old"), AttemptOutcome.DISCARDED),
        (Permanent(ValueError("404")), AttemptOutcome.PERMANENT),
        (KeyError("bug"), AttemptOutcome.PERMANENT),
    ],
)
async def test_the_hook_is_told_how_it_ended(step: Step, outcome: AttemptOutcome) -> None:
    """With the error, where there is one, and no delay."""
    clock = ManualClock()
    told: list[Attempt] = []
    with suppress(PermanentFailure, KeyError):
        await with_retry(policy(), Script(clock, step), clock=clock, on_attempt=told.append)
    error = step.error if isinstance(step, Permanent) else step if isinstance(step, BaseException) else None
    assert told == [Attempt(1, outcome, error, None)]


async def test_of_an_attempt_that_was_cancelled_the_hook_is_told_nothing() -> None:
    """Nothing has become of it."""
    clock = ManualClock()
    told: list[Attempt] = []
    trying = await begin(
        with_retry(policy(), Script(clock, takes(clock, 5.0, RetryOk(1))), clock=clock, on_attempt=told.append)
    )
    trying.cancel()
    await asyncio.wait({trying})
    assert not told


@pytest.mark.parametrize("error", [KeyError("bug"), asyncio.CancelledError()])
@pytest.mark.parametrize("last", [RetryOk(1), Permanent(ValueError("404")), OSError("disk"), away()])
async def test_a_hook_that_raises_changes_nothing_and_is_logged(
    error: BaseException, last: Step, caplog: pytest.LogCaptureFixture
) -> None:
    """The attempts, their waits and the end are as without it."""
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


# Without waiting.


async def test_without_waiting_draws_the_delays_tells_of_them_and_waits_for_none() -> None:
    """The hook hears 1.5 and 4.5 s, the clock stands still; outside it waits again."""
    clock = ManualClock()
    told: list[Attempt] = []
    with without_waiting():
        op = Script(clock, away(), away(), RetryOk(1))
        assert await with_retry(policy(), op, clock=clock, rng=Highest(), on_attempt=told.append) == RetryOk(1)
    assert [attempt.delay for attempt in told] == [1.5 * S, 4.5 * S, None]
    assert (clock.monotonic(), clock.timers_made) == (0.0, 0)
    op = Script(clock, away(), RetryOk(1))
    await finish(clock, with_retry(policy(), op, clock=clock, rng=Highest()))
    assert op.calls == [0.0, 1.5]


async def test_without_waiting_lets_others_have_their_turn_and_heeds_the_shutdown() -> None:
    """However often it tries, the loop goes round, and a shutdown ends it."""
    clock, token = ManualClock(), ShutdownToken()
    asyncio.get_running_loop().call_soon(token.set, "asked")
    with without_waiting(), pytest.raises(RetryCutShort):
        await with_retry(policy(max_attempts=None), Script(clock, *[away()] * 1000), clock=clock, shutdown=token)


async def test_without_waiting_holds_for_the_tasks_begun_within_and_no_others() -> None:
    """A task that was begun before goes on waiting."""
    clock = ManualClock()
    before = await begin(with_retry(policy(), Script(clock, away(), RetryOk(1)), clock=clock, rng=Highest()))
    with without_waiting():
        within = await begin(with_retry(policy(), Script(clock, away(), RetryOk(2)), clock=clock, rng=Highest()))
    assert within.result() == RetryOk(2)
    assert not before.done()
    await clock.advance_when_idle(1.5)
    assert before.result() == RetryOk(1)


async def test_the_machines_clock_and_chance_are_the_defaults() -> None:
    """With neither passed in, it draws within the bounds."""
    told: list[Attempt] = []
    with without_waiting():
        assert await with_retry(policy(), Script(ManualClock(), away(), RetryOk(1)), on_attempt=told.append) == RetryOk(
            1
        )
    (delay, _) = (attempt.delay for attempt in told)
    assert delay is not None
    assert 0.5 * S <= delay <= 1.5 * S


# The budget.


async def test_a_budget_is_spent_by_retries_only_and_earned_by_answers() -> None:
    """A first attempt costs nothing; a retry a token; a value, a "discard" and a permanent no earn their part each."""
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
    assert await tokens_after(KeyError("bug")) == 1.75  # nobody knows whether it answered
    assert await tokens_after(away(), away(), RetryOk(1)) == 0.75  # no token for the third
    assert budget.denied == 1


async def test_without_a_token_nothing_is_tried_again() -> None:
    """At once, without a wait, and the error says why."""
    clock = ManualClock()
    budget = RetryBudget(capacity=1)
    told: list[Attempt] = []
    op = Script(clock, away(), away())
    with pytest.raises(RetriesExhausted) as raised:
        await finish(clock, with_retry(policy(), op, clock=clock, rng=Highest(), budget=budget, on_attempt=told.append))
    assert str(raised.value) == ("no token in the retry budget left: ConnectionError: away (after 2 attempts in 1.5 s)")
    assert raised.value.reason == "budget"
    assert [attempt.delay for attempt in told] == [1.5 * S, None]
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


def test_a_budget_never_holds_more_than_its_capacity() -> None:
    """Neither by earning nor by giving back."""
    budget = RetryBudget(capacity=3)
    budget.earn()
    budget.return_token()
    assert budget.tokens == 3
    assert budget.spend()
    budget.return_token()
    assert budget.tokens == 3


async def test_slots_that_the_breaker_refuses_cost_no_token() -> None:
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


async def test_a_first_attempt_costs_no_token_however_late_it_is_let_through() -> None:
    """Refused twice and then let through, nothing was tried again; with an empty budget it is made all the same."""
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


async def test_a_retry_that_was_never_made_gives_its_token_back() -> None:
    """Refused until the attempts ran out, cut short by the shutdown, or cancelled in the wait."""
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


async def test_at_the_shutdown_no_token_is_taken_and_none_is_missed() -> None:
    """There will be no retry: it is the shutdown that is told, not the budget."""
    clock, token = ManualClock(), ShutdownToken()
    token.set("asked")
    budget = RetryBudget(capacity=1)
    with pytest.raises(RetryCutShort):
        await with_retry(policy(), Script(clock, away()), clock=clock, shutdown=token, budget=budget)
    assert budget.spend()
    with pytest.raises(RetryCutShort):
        await with_retry(policy(), Script(clock, away()), clock=clock, shutdown=token, budget=budget)
    assert (budget.tokens, budget.denied) == (0, 0)


async def test_after_the_last_attempt_no_token_is_taken_and_none_is_missed() -> None:
    """What is not tried again costs nothing, and where the attempts ran out it is not the budget that is told."""
    clock = ManualClock()
    budget = RetryBudget(capacity=1)
    for _ in range(2):
        with pytest.raises(RetriesExhausted) as raised:
            await with_retry(policy(max_attempts=1), Script(clock, away()), clock=clock, budget=budget)
        assert raised.value.reason == "attempts"
        budget.spend()
    assert (budget.tokens, budget.denied) == (0, 1)  # the second one we asked for ourselves


async def test_concurrent_callers_share_one_budget() -> None:
    """Of twenty callers of a dead downstream with ten tokens, ten retries are made in all, and twenty denied."""
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


# A cancellation, at whatever moment.


@pytest.mark.usefixtures("_many_schedules")
@pytest.mark.parametrize("at_s", [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
@pytest.mark.parametrize("also", ["nothing", "shutdown", "limit"])
def test_a_cancellation_at_any_moment_leaves_nothing_behind(at_s: float, also: str) -> None:
    """In an attempt, in the wait, and in every order with their ends, the attempt's limit and the shutdown: no timer, no
    waiter, no permit and no token stays, and it is never taken for anything else.
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
        told: list[Attempt] = []
        working = asyncio.create_task(
            with_retry(
                policy(initial=S, cap=S, max_attempts=2, attempt_timeout=S if also == "limit" else None),
                op,
                breaker=breaker,
                budget=budget,
                clock=clock,
                shutdown=token,
                on_attempt=told.append,
            )
        )
        asked: list[bool] = []
        ours = [loop.call_later(at_s, lambda: asked.append(working.cancel()))]
        if also == "shutdown":
            ours.append(loop.call_later(at_s, token.set, "asked"))
        await asyncio.wait({working})
        assert working.cancelled() is (asked == [True])
        cancelled.add(working.cancelled())
        timers: list[asyncio.TimerHandle] = loop._scheduled  # type: ignore[attr-defined]
        assert not [timer for timer in timers if not timer.cancelled() and timer not in ours]
        assert not token._waiters
        earned = 0.5 * [attempt.outcome for attempt in told].count(AttemptOutcome.OK)
        assert budget.tokens == min(5, 5 - max(0, len(op.calls) - 1) + earned)
        assert breaker.state is not BreakerState.HALF_OPEN or isinstance(breaker.ask(), Permit)

    assert run_every_schedule(scenario) >= (6 if at_s in {1.0, 3.0} else 1)
    assert True in cancelled
    assert cancelled == {True, False} or at_s != 3.0


def test_the_archive_example_of_eight_attempts_is_over_before_most_outages_of_half_a_minute_are() -> None:
    """Why the optical source does not count its attempts: 11 s in the median, and 85 of 100 times less than 30 s."""
    policy, rng = RetryPolicy(200 * MS, 15 * S, max_attempts=8), random.Random(8)

    def lasts_s() -> float:
        delays_s = [0.2]
        for _ in range(7):
            delays_s.append(policy.next_delay_s(delays_s[-1], rng))
        return sum(delays_s[1:])

    lasted_s = sorted(lasts_s() for _ in range(10_000))
    assert 10.0 < lasted_s[5_000] < 11.5
    assert 0.84 < bisect_left(lasted_s, 30.0) / 10_000 < 0.86


# In a graph.


def polls(op: Callable[[WiredEnds], Op], of: RetryPolicy, *, breaker: str | None = None) -> Factory:
    """A source that emits, until the shutdown or an empty page, the pages that ``op`` brings."""

    async def run(ends: WiredEnds) -> None:
        archive = None if breaker is None else ends.breaker(breaker, BREAKER)
        try:
            while isinstance(page := await ends.with_retry(of, op(ends), breaker=archive), RetryOk) and page.value:
                await ends.emit(page.value)
        except RetryCutShort:
            return

    return run


def scripted(*steps: Step) -> Callable[[WiredEnds], Op]:
    """The same script, whoever asks and however often it is restarted."""
    script: list[Script] = []

    def op(ends: WiredEnds) -> Op:
        if not script:
            script.append(Script(ends.clock, *steps))
        return script[0]

    return op


BREAKER = BreakerPolicy(min_calls=3, cooldown=10 * S)
FOREVER = RetryPolicy(200 * MS, 15 * S, max_attempts=None)


async def run_on(clock: ManualClock, graph: OperatorGraph) -> events.SupervisorEvent:
    """To its end, as fast as the machine can, moving the clock."""

    async def let_time_pass(built: BuiltGraph) -> None:
        while built.event is None:
            await settle(20)
            clock.advance(0.5)

    return await run_graph(graph, clock=clock, during=let_time_pass)


async def test_attempts_after_the_first_are_counted_and_the_items_arrive() -> None:
    """Two retries for the first page, one for the second, none for the last: ``retry_attempts`` is 3."""
    sink = CollectSink()
    op = scripted(away(), away(), RetryOk([1, 2]), away(), RetryOk([3]), RetryOk([]))
    event = await run_on(ManualClock(), chain(polls(op, FOREVER), sink))
    assert isinstance(event, events.AllOk)
    assert sink.items == [1, 2, 3]
    assert event.figures.counters["source"]["retry_attempts"] == 3
    assert event.figures.restarts == {}
    assert event.figures.ledger_holds


async def test_an_item_that_comes_a_second_time_in_a_shutdown_is_no_poison() -> None:
    """Its sink has failed on it before, and now gives up because of the shutdown: that does not count against the item."""
    letters, clock = DeadLetterList(), ManualClock()

    async def op() -> RetryDisposition[None]:
        return away()

    async def sink(ends: WiredEnds) -> None:
        async for _ in ends.receiver:
            if ends.instance == 1:
                raise OSError("once")
            await ends.with_retry(FOREVER, op)

    graph = OperatorGraph("alerts")
    source = graph.add_source("source", ListSource([1, 2], UntilShutdown()))
    graph.connect(source, graph.add_sink("sink", sink, restart_policy=RestartPolicy.bounded(5, 60 * S)), 8)

    async def during(built: BuiltGraph) -> None:
        await settle()
        assert built.status().restarts == 1
        built.request_shutdown("SIGTERM")

    event = await run_graph(graph, clock=clock, dead_letters=letters, during=during)
    assert isinstance(event, events.ShutDown)
    assert [(letter.payload, letter.kind) for letter in letters.letters] == [
        (item, DeadLetterKind.UNDELIVERED) for item in (1, 2)
    ]
    assert event.figures.ledger_holds


@pytest.mark.parametrize("policy", [RestartPolicy.never(), RestartPolicy.bounded(5, 60 * S)])
async def test_a_sink_that_gives_up_because_of_the_shutdown_has_not_failed(policy: RestartPolicy) -> None:
    """Its downstream is away when the graph is asked to stop: ``ShutDown``, and what it holds is undelivered, no poison."""
    letters, clock, refused = DeadLetterList(), ManualClock(), 0

    async def op() -> RetryDisposition[None]:
        nonlocal refused
        refused += 1
        return away()

    async def sink(ends: WiredEnds) -> None:
        async for _ in ends.receiver:
            await ends.with_retry(FOREVER, op)

    graph = OperatorGraph("alerts")
    source = graph.add_source("source", ListSource([1, 2, 3], UntilShutdown()))
    graph.connect(source, graph.add_sink("sink", sink, restart_policy=policy), 8)

    async def during(built: BuiltGraph) -> None:
        await settle()
        assert refused == 1
        built.request_shutdown("SIGTERM")

    event = await run_graph(graph, clock=clock, dead_letters=letters, during=during)
    assert isinstance(event, events.ShutDown)
    assert exit_code(event) is ExitCode.OK
    assert (event.figures.restarts, refused) == ({}, 1)
    assert [(letter.payload, letter.kind) for letter in letters.letters] == [
        (item, DeadLetterKind.UNDELIVERED) for item in (1, 2, 3)
    ]
    assert event.figures.ledger_holds


async def test_without_a_retry_the_count_is_there_and_zero() -> None:
    """What can be counted is in the report from the beginning."""
    event = await run_on(ManualClock(), chain(polls(scripted(RetryOk([])), FOREVER), CollectSink()))
    assert report(event)["counters"]["source"] == {"retry_attempts": 0}


async def test_a_source_that_retries_through_an_outage_is_not_restarted(caplog: pytest.LogCaptureFixture) -> None:
    """Twenty minutes without the archive cost no restart and no item; the breaker opens and closes again, which is logged,
    in the figures and in the report."""
    clock, sink = ManualClock(), CollectSink()

    def archive(ends: WiredEnds) -> Op:
        async def page() -> RetryDisposition[list[int]]:
            if 5 <= clock.monotonic() < 1205:
                return away()
            await sleep(clock, 1.0)
            return RetryOk([len(sink.items)] if len(sink.items) < 10 else [])

        return page

    graph = chain(polls(archive, FOREVER, breaker="archive"), sink, name="outage")
    with caplog.at_level(logging.INFO, "orchestrator_adapter.supervisor"):
        event = await run_on(clock, graph)
    assert isinstance(event, events.AllOk)
    assert sink.items == list(range(10))
    assert event.figures.elapsed_s > 1200
    assert event.figures.restarts == {}
    breaker = event.figures.breakers["archive"]
    assert (breaker.state, breaker.calls > 0) == (BreakerState.CLOSED, True)
    assert breaker.opened > 20
    assert breaker.open_s > 600
    assert event.figures.counters["source"]["retry_attempts"] < 200
    assert report(event)["breakers"]["archive"] == {
        "state": "closed",
        "forced": False,
        "opened": breaker.opened,
        "open_s": breaker.open_s,
        "rejections": breaker.rejections,
    }
    lines = [event_of(record.getMessage()) for record in caplog.records]
    changes = [line for line in lines if line["event"] == "circuit_breaker"]
    assert [change["state"] for change in changes].count("open") == breaker.opened
    assert changes[0] == {
        "event": "circuit_breaker",
        "graph": "outage",
        "breaker": "archive",
        "was": "closed",
        "state": "open",
        "forced": False,
        "reason": "5 of 10 calls in 30 s failed",
    }
    assert [change["reason"] for change in changes[-2:]] == [
        "10 s of cooldown are over: one probe decides",
        "the probe succeeded",
    ]


async def test_a_breaker_is_shared_by_name_across_operators_and_restarts() -> None:
    """Two sources and their later instances get the same object; another name, or another graph, another one."""
    seen: list[tuple[str, int, CircuitBreaker]] = []

    async def source(ends: WiredEnds) -> None:
        seen.append((ends.name, ends.instance, ends.breaker("archive", BREAKER)))
        assert ends.breaker("mirror", BREAKER) is not seen[-1][2]
        if ends.instance == 1:
            raise OSError("again")

    def graph() -> OperatorGraph:
        both = OperatorGraph("shared")
        join = both.add_fan_in("join", merge())
        for name in ("left", "right"):
            both.connect(both.add_source(name, source, restart_policy=RestartPolicy.always()), join, 4)
        both.connect(join, both.add_sink("sink", CollectSink()), 4)
        return both

    event = await run_graph(graph())
    assert sorted((name, instance) for name, instance, _ in seen) == [
        ("left", 1),
        ("left", 2),
        ("right", 1),
        ("right", 2),
    ]
    assert len({id(breaker) for _, _, breaker in seen}) == 1
    assert sorted(event.figures.breakers) == ["archive", "mirror"]
    await run_graph(graph())
    assert len({id(breaker) for _, _, breaker in seen}) == 2


async def test_one_name_with_two_policies_is_a_bug_and_brings_the_graph_down() -> None:
    """The error names the breaker and shows both policies."""

    async def source(ends: WiredEnds) -> None:
        ends.breaker("archive", BREAKER)
        ends.breaker("archive", BreakerPolicy())

    event = await run_graph(chain(source, CollectSink()))
    assert isinstance(event, events.Panicked)
    assert str(event.error).startswith("breaker 'archive': expected the policy it was made with, BreakerPolicy(")


async def test_a_permanent_failure_is_for_the_supervisor() -> None:
    """It is operational: the source is restarted within its budget, and the run's end names the cause."""
    steps = [Permanent(ValueError("404")), Permanent(ValueError("404"))]
    graph = OperatorGraph("gone")
    source = graph.add_source(
        "source", polls(scripted(*steps), FOREVER), restart_policy=RestartPolicy.bounded(1, timedelta(minutes=1))
    )
    graph.connect(source, graph.add_sink("sink", CollectSink()), 4)
    event = await run_on(ManualClock(), graph)
    assert isinstance(event, events.BudgetExhausted)
    assert event.chain == ("PermanentFailure: ValueError: 404 (after 1 attempt in 0 s)", "ValueError: 404")


async def test_the_graphs_shutdown_ends_a_retry_that_has_no_limit() -> None:
    """A source in the middle of its backoff drains at once; no grace is needed."""
    clock = ManualClock()

    async def ask_to_stop(built: BuiltGraph) -> None:
        await clock.advance_when_idle(60.0)
        built.request_shutdown("asked")

    graph = chain(polls(scripted(*[away()] * 1000), FOREVER), CollectSink())
    event = await run_graph(graph, clock=clock, during=ask_to_stop)
    assert isinstance(event, events.ShutDown)
    assert not event.figures.stragglers
    assert event.figures.elapsed_s == 60.0


async def test_a_graphs_hook_is_told_and_may_fail() -> None:
    """``on_attempt`` hears of each attempt besides the count, and what it raises changes nothing."""
    told: list[Attempt] = []

    def hook(attempt: Attempt) -> None:
        told.append(attempt)
        raise KeyError("bug")

    async def source(ends: WiredEnds) -> None:
        op = Script(ends.clock, away(), RetryOk([1]))
        page = await ends.with_retry(FOREVER, op, on_attempt=hook, budget=RetryBudget())
        assert isinstance(page, RetryOk)
        await ends.emit(page.value)

    event = await run_on(ManualClock(), chain(source, CollectSink()))
    assert isinstance(event, events.AllOk)
    assert [attempt.outcome for attempt in told] == [AttemptOutcome.FAILED, AttemptOutcome.OK]
    assert event.figures.counters["source"]["retry_attempts"] == 1


# Policies and budgets.


def test_the_policys_defaults() -> None:
    """The specification's clamp, no deadline, no limit of an attempt, pauses of up to five minutes."""
    assert RetryPolicy(S, S, 8) == RetryPolicy(
        initial=S,
        cap=S,
        max_attempts=8,
        clamp="delay",
        deadline=None,
        attempt_timeout=None,
        max_retry_after=timedelta(minutes=5),
    )


def test_everything_wrong_with_a_policy_is_said_at_once() -> None:
    """Seven wrong fields make one message that names all seven."""
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


def test_the_bounds_themselves_are_admitted() -> None:
    """The least of each field makes a policy."""
    least = timedelta(microseconds=1)
    RetryPolicy(least, least, 1, clamp="draw", deadline=least, attempt_timeout=least, max_retry_after=least)


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


def test_the_budgets_bounds_are_admitted() -> None:
    """One token, all of it earned by one success."""
    assert RetryBudget(capacity=1, earned_per_success=1).has_token
    assert (RetryBudget().capacity, RetryBudget().earned_per_success, RetryBudget().tokens) == (10, 0.1, 10)


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
def test_giving_up_is_a_matter_of_attempts_and_time(
    attempts: int, elapsed_s: float, delay_s: float, reason: str | None
) -> None:
    """At the last attempt, and where the delay would reach the deadline."""
    limited = policy(max_attempts=3, deadline=5 * S)
    assert give_up(limited, attempts=attempts, elapsed_s=elapsed_s, delay_s=delay_s) == reason
    assert give_up(policy(max_attempts=None), attempts=attempts, elapsed_s=elapsed_s, delay_s=delay_s) is None
