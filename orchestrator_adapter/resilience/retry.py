"""``with_retry``: try again what failed, in a way that keeps a short outage short.

The operator classifies what came of an attempt (a ``RetryDisposition``); what follows is decided here: how long to wait, by
decorrelated jitter, and when to give up. An outage that ends must not find all its callers at the door in the same instant,
nor any of them knocking faster and faster.

Delays follow M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015 ("decorrelated jitter"):
``delay = min(cap, uniform(initial, max(initial, 3 * previous)))``, ``previous`` starting at ``initial``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Generic, Literal, Self, TypeAlias, TypeVar

from orchestrator_adapter.primitives.check_fields import check_fields
from orchestrator_adapter.primitives.clock import Clock, SystemClock, Timeout, sleep
from orchestrator_adapter.primitives.errors import (
    BreakerOpen,
    GiveUpReason,
    PermanentFailure,
    RetriesExhausted,
    RetryCutShort,
    Tried,
    describe,
)
from orchestrator_adapter.primitives.event_log import call_hook
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.resilience.breaker import CircuitBreaker, Permit, Rejection
from orchestrator_adapter.resilience.retry_budget import RetryBudget

T = TypeVar("T")

_WAITS: ContextVar[bool] = ContextVar("waits", default=True)


# What came of an attempt.


@dataclass(frozen=True, slots=True)
class RetryOk(Generic[T]):
    """It worked, with this value."""

    value: T


@dataclass(frozen=True, slots=True)
class Retry:
    """It failed in a way that may pass. ``retry_after``: the downstream asked not to be asked again sooner."""

    error: BaseException
    retry_after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Permanent:
    """It failed in a way that another attempt will not mend."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class RetryDiscard:
    """There is nothing to be done about it, and nothing wrong: what it was for can be let go."""

    reason: str


RetryDisposition: TypeAlias = RetryOk[T] | Retry | Permanent | RetryDiscard
"""The result of one attempt, classified by the operator, which knows the downstream."""

Ok = RetryOk
Discard = RetryDiscard
"""The specification's names for them."""


# When to try again.


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often to try, and how long to wait in between.

    Attributes:
        initial: The least delay, and what ``previous`` starts at.
        cap: The greatest delay.
        max_attempts: The first included; calls that a breaker refused count. ``None``: until it works, fails for good, or
            the deadline or the shutdown comes.
        clamp: ``"delay"``, the specification's: draw up to three times the previous delay, then cut to the cap; near
            saturation a quarter to a third of the delays are then exactly the cap. ``"draw"``: draw up to the cap.
        deadline: For all attempts and delays together. A delay that would reach beyond it is not begun, an attempt that
            does is cut off.
        attempt_timeout: For one attempt. One that takes longer is cancelled and counts as one that may pass.
        max_retry_after: A downstream that asks for a longer pause is asked again after this one.
    """

    initial: timedelta
    cap: timedelta
    max_attempts: int | None
    clamp: Literal["delay", "draw"] = "delay"
    deadline: timedelta | None = None
    attempt_timeout: timedelta | None = None
    max_retry_after: timedelta = timedelta(minutes=5)

    def __post_init__(self) -> None:
        zero = timedelta(0)
        check_fields(
            "RetryPolicy",
            ("initial", self.initial, self.initial > zero, "> 0"),
            ("cap", self.cap, self.cap >= self.initial, f">= initial ({self.initial!r})"),
            (
                "max_attempts",
                self.max_attempts,
                self.max_attempts is None or self.max_attempts >= 1,
                ">= 1, or None",
            ),
            ("clamp", self.clamp, self.clamp in {"delay", "draw"}, "'delay' or 'draw'"),
            ("deadline", self.deadline, self.deadline is None or self.deadline > zero, "> 0, or None"),
            (
                "attempt_timeout",
                self.attempt_timeout,
                self.attempt_timeout is None or self.attempt_timeout > zero,
                "> 0, or None",
            ),
            ("max_retry_after", self.max_retry_after, self.max_retry_after > zero, "> 0"),
        )

    def next_delay_s(self, previous_s: float, rng: random.Random) -> float:
        """The delay that follows one of ``previous_s``, seconds; ``previous_s`` is ``initial`` before the first."""
        initial_s, cap_s = self.initial.total_seconds(), self.cap.total_seconds()
        highest_s = max(initial_s, 3 * previous_s)
        if self.clamp == "draw":
            highest_s = min(cap_s, highest_s)
        return min(cap_s, rng.uniform(initial_s, highest_s))


class AttemptOutcome(StrEnum):
    """What became of an attempt."""

    OK = "ok"
    DISCARDED = "discarded"
    FAILED = "failed"
    """In a way that may pass."""
    REJECTED = "rejected"
    """By the breaker: nothing was sent."""
    PERMANENT = "permanent"
    """Failed in a way that will not pass, or in one that nobody has classified."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """Told to ``on_attempt`` after each attempt.

    Attributes:
        number: Counted from 1; refused ones count.
        outcome: What became of it.
        error: What went wrong, if something did.
        delay: Until the next attempt; ``None`` if there will be none.
    """

    number: int
    outcome: AttemptOutcome
    error: BaseException | None
    delay: timedelta | None


async def with_retry(
    policy: RetryPolicy,
    op: Callable[[], Awaitable[RetryDisposition[T]]],
    *,
    breaker: CircuitBreaker | None = None,
    budget: RetryBudget | None = None,
    clock: Clock | None = None,
    rng: random.Random | None = None,
    shutdown: ShutdownToken | None = None,
    on_attempt: Callable[[Attempt], object] | None = None,
) -> RetryOk[T] | RetryDiscard:
    """Call ``op``, afresh for each attempt, until it works, fails for good, or the policy says to give up.

    Operators use ``ends.with_retry``, which fills in their clock, random source and shutdown token, and counts.

    ``breaker``: a call that it refuses skips the attempt and goes on to the next backoff. ``budget``: without a token no
    attempt after the first is made; what the breaker refuses costs none, and a retry that is not made gives its own back.
    ``shutdown``: once it is set nobody waits any more, and the attempt under way is the last; it is not cancelled. A
    downstream's ``retry_after`` comes on top of the drawn delay, so that those who were all told "in 30 s" do not come
    back in the same instant.

    Returns what ``op`` said, if that was ``RetryOk`` or ``RetryDiscard``. Raises ``PermanentFailure`` at once,
    ``RetriesExhausted`` (it says why and after how many attempts), or ``RetryCutShort``, each with the last error as its
    cause. An exception that leaves ``op`` was classified by nobody: it is passed on as it is, at once. Cancelled, it
    cancels the attempt under way and gives the breaker's permit back.
    """
    clock = SystemClock() if clock is None else clock
    rng = random.Random() if rng is None else rng
    began = clock.monotonic()
    previous_s = policy.initial.total_seconds()
    number = made = 0
    error: BaseException | None = None
    with _Token(budget) as token:
        while True:
            number += 1
            permit = breaker.ask() if breaker is not None else None
            if isinstance(permit, Rejection):
                failed, outcome = Retry(_refused(permit, error)), AttemptOutcome.REJECTED
            else:
                made += 1
                token.used()
                limit_s = _limit_s(policy, clock.monotonic() - began)
                try:
                    disposition = await _attempt(op, permit, clock, limit_s)
                except Exception as unclassified:
                    call_hook(on_attempt, Attempt(number, AttemptOutcome.PERMANENT, unclassified, None))
                    raise
                if budget is not None and not isinstance(disposition, Retry):
                    budget.earn()
                match disposition:
                    case RetryOk():
                        call_hook(on_attempt, Attempt(number, AttemptOutcome.OK, None, None))
                        return disposition
                    case RetryDiscard():
                        call_hook(on_attempt, Attempt(number, AttemptOutcome.DISCARDED, None, None))
                        return disposition
                    case Permanent(final):
                        call_hook(on_attempt, Attempt(number, AttemptOutcome.PERMANENT, final, None))
                        tried = Tried(made, number - made, clock.monotonic() - began)
                        raise PermanentFailure(describe(final), tried) from final
                    case Retry():
                        failed, outcome = disposition, AttemptOutcome.FAILED
            error = failed.error
            previous_s = policy.next_delay_s(previous_s, rng)
            delay_s = previous_s + _pause_s(policy, failed.retry_after)
            elapsed_s = clock.monotonic() - began
            reason = give_up(policy, attempts=number, elapsed_s=elapsed_s, delay_s=delay_s)
            stopping = shutdown is not None and shutdown.is_set
            if reason is None and not stopping and made and not token.taken():
                reason = "budget"
            goes_on = reason is None and not stopping
            call_hook(on_attempt, Attempt(number, outcome, error, timedelta(seconds=delay_s) if goes_on else None))
            if goes_on:
                stopping = await _wait(delay_s, clock, shutdown)
                elapsed_s = clock.monotonic() - began  # a busy loop may have come too late
                reason = give_up(policy, attempts=number, elapsed_s=elapsed_s, delay_s=0.0)
            tried = Tried(made, number - made, clock.monotonic() - began)
            if reason is not None:
                raise RetriesExhausted(describe(error), tried, reason=reason) from error
            if stopping:
                raise RetryCutShort(describe(error), tried) from error


def give_up(policy: RetryPolicy, *, attempts: int, elapsed_s: float, delay_s: float) -> GiveUpReason | None:
    """Why there is to be no further attempt after a delay of ``delay_s``, if there is not."""
    if policy.max_attempts is not None and attempts >= policy.max_attempts:
        return "attempts"
    if policy.deadline is not None and elapsed_s + delay_s >= policy.deadline.total_seconds():
        return "deadline"
    return None


@contextmanager
def without_waiting() -> Iterator[None]:
    """For tests: while inside, ``with_retry`` draws its delays and tells its hooks of them, and waits for none."""
    token = _WAITS.set(False)
    try:
        yield
    finally:
        _WAITS.reset(token)


class _Token:
    """One caller's token of the budget: taken before the delay, and returned if the retry is never made."""

    def __init__(self, budget: RetryBudget | None) -> None:
        self._budget = budget
        self._taken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._taken and self._budget is not None:
            self._budget.return_token()

    def taken(self) -> bool:
        """Take a token for the next retry, unless one is taken already; false if there is none."""
        self._taken = self._taken or self._budget is None or self._budget.spend()
        return self._taken

    def used(self) -> None:
        """The retry is made."""
        self._taken = False


async def _attempt(
    op: Callable[[], Awaitable[RetryDisposition[T]]], permit: Permit | None, clock: Clock, limit_s: float | None
) -> RetryDisposition[T]:
    """One attempt, and what the breaker learns of it; an attempt that is cancelled or raises teaches it nothing."""
    with permit if permit is not None else nullcontext():
        disposition = await (op() if limit_s is None else _limited(op, clock, limit_s))
        if not isinstance(disposition, (RetryOk, Retry, Permanent, RetryDiscard)):
            raise TypeError(f"with_retry: expected op to return a RetryDisposition, got {disposition!r}")
        if permit is not None:
            if isinstance(disposition, Retry):
                permit.failed()
            else:
                permit.succeeded()
        return disposition


async def _limited(
    op: Callable[[], Awaitable[RetryDisposition[T]]], clock: Clock, limit_s: float
) -> RetryDisposition[T]:
    limit = Timeout(clock, limit_s)
    try:
        async with limit:
            return await op()
    except TimeoutError:
        if limit.expired:
            return Retry(TimeoutError(f"the attempt was not done within {limit_s:g} s"))
        raise


async def _wait(delay_s: float, clock: Clock, shutdown: ShutdownToken | None) -> bool:
    """Wait; whether the shutdown has cut it short."""
    if not _WAITS.get():
        await asyncio.sleep(0)
    elif shutdown is None:
        await sleep(clock, delay_s)
    else:
        await shutdown.wait_at_most(delay_s, clock)
    return shutdown is not None and shutdown.is_set


def _limit_s(policy: RetryPolicy, elapsed_s: float) -> float | None:
    """How long an attempt that begins now may take."""
    limits_s = [policy.attempt_timeout.total_seconds()] if policy.attempt_timeout is not None else []
    if policy.deadline is not None:
        limits_s.append(max(0.0, policy.deadline.total_seconds() - elapsed_s))
    return min(limits_s, default=None)


def _pause_s(policy: RetryPolicy, retry_after: timedelta | None) -> float:
    """What the downstream asks for on top of the delay."""
    if retry_after is None:
        return 0.0
    return max(timedelta(0), min(retry_after, policy.max_retry_after)).total_seconds()


def _refused(refusal: Rejection, earlier: BaseException | None) -> BreakerOpen:
    error = BreakerOpen(str(refusal), breaker=refusal.breaker, ask_again_in=refusal.ask_again_in)
    error.__cause__ = earlier.__cause__ if isinstance(earlier, BreakerOpen) else earlier
    return error
