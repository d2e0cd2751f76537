"""``with_retry``: repeat failed operations without prolonging an outage.

The operator classifies the result of an attempt (a ``RetryDisposition``). This module decides how long to wait, by
decorrelated jitter, and when to give up. After an outage the callers must not all return in the same instant, and none of
them may retry faster and faster.

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


# The result of an attempt.


@dataclass(frozen=True, slots=True)
class RetryOk(Generic[T]):
    """It succeeded with this value."""

    value: T


@dataclass(frozen=True, slots=True)
class Retry:
    """It failed, and a later attempt may succeed. ``retry_after``: the pause that the downstream asked for."""

    error: BaseException
    retry_after: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Permanent:
    """It failed, and another attempt would fail as well."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class RetryDiscard:
    """The operation is no longer needed. Not an error."""

    reason: str


RetryDisposition: TypeAlias = RetryOk[T] | Retry | Permanent | RetryDiscard
"""The result of one attempt, classified by the operator, which knows the downstream."""

Ok = RetryOk
Discard = RetryDiscard
"""The specification's names for them."""


# When to try again.


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The number of attempts, and the delays between them.

    Attributes:
        initial: The shortest delay, and the initial value of ``previous``.
        cap: The longest delay.
        max_attempts: Including the first one and those that a breaker rejected. ``None``: no limit; it ends with a success,
            a permanent failure, the deadline or the shutdown.
        clamp: ``"delay"``, the specification's: draw up to three times the previous delay, then limit to the cap; near
            saturation a quarter to a third of the delays then equal the cap. ``"draw"``: draw up to the cap.
        deadline: For all attempts and delays together. A delay that would exceed it is not started; an attempt that exceeds it
            is cancelled.
        attempt_timeout: For one attempt. An attempt that takes longer is cancelled and counts as ``Retry``.
        max_retry_after: The longest pause that a downstream can ask for.
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
    """The outcome of an attempt."""

    OK = "ok"
    DISCARDED = "discarded"
    FAILED = "failed"
    """A later attempt may succeed."""
    REJECTED = "rejected"
    """The breaker rejected it: nothing was sent."""
    PERMANENT = "permanent"
    """Another attempt would fail as well, or ``op`` raised an exception."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """For ``on_attempt``, after each attempt.

    Attributes:
        number: Counted from 1; rejected attempts count.
        outcome: Its outcome.
        error: Its error, if it failed.
        delay: The delay before the next attempt; ``None`` if there is no next attempt.
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
    """Call ``op`` once for each attempt, until it succeeds, fails for good, or the policy ends the attempts.

    Operators use ``ends.with_retry``, which fills in their clock, random source and shutdown token, and counts.

    ``breaker``: if it rejects a call, the attempt is skipped and the next delay begins. ``budget``: every attempt after the
    first one needs a token; a rejected attempt costs none, and a retry that is not made returns its token. ``shutdown``: when
    it is set, delays end at once, and the current attempt is the last one; it is not cancelled. A downstream's
    ``retry_after`` is added to the drawn delay, so that callers with the same ``retry_after`` do not return at the same time.

    Returns the result of ``op`` if it is ``RetryOk`` or ``RetryDiscard``. Raises ``PermanentFailure`` at once,
    ``RetriesExhausted`` (it says why and after how many attempts), or ``RetryCutShort``, each with the last error as its
    cause. An exception that ``op`` raises is passed on unchanged, at once. Cancelled, it cancels the current attempt and
    releases the breaker's permit.
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
                failed, outcome = Retry(_breaker_open(permit, error)), AttemptOutcome.REJECTED
            else:
                made += 1
                token.spent()
                timeout_s = _timeout_s(policy, clock.monotonic() - began)
                try:
                    disposition = await _attempt(op, permit, clock, timeout_s)
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
            if reason is None and not stopping and made and not token.take():
                reason = "budget"
            goes_on = reason is None and not stopping
            call_hook(on_attempt, Attempt(number, outcome, error, timedelta(seconds=delay_s) if goes_on else None))
            if goes_on:
                stopping = await _wait(delay_s, clock, shutdown)
                elapsed_s = clock.monotonic() - began  # a busy loop may have woken us late
                reason = give_up(policy, attempts=number, elapsed_s=elapsed_s, delay_s=0.0)
            tried = Tried(made, number - made, clock.monotonic() - began)
            if reason is not None:
                raise RetriesExhausted(describe(error), tried, reason=reason) from error
            if stopping:
                raise RetryCutShort(describe(error), tried) from error


def give_up(policy: RetryPolicy, *, attempts: int, elapsed_s: float, delay_s: float) -> GiveUpReason | None:
    """Why no further attempt follows after a delay of ``delay_s``; ``None`` if one does."""
    if policy.max_attempts is not None and attempts >= policy.max_attempts:
        return "attempts"
    if policy.deadline is not None and elapsed_s + delay_s >= policy.deadline.total_seconds():
        return "deadline"
    return None


@contextmanager
def without_waiting() -> Iterator[None]:
    """For tests: within this context ``with_retry`` draws its delays and reports them to its hooks, and does not wait."""
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

    def take(self) -> bool:
        """Take a token for the next retry, unless one is taken already. Return whether there is one."""
        self._taken = self._taken or self._budget is None or self._budget.spend()
        return self._taken

    def spent(self) -> None:
        """The retry is made: its token is spent."""
        self._taken = False


async def _attempt(
    op: Callable[[], Awaitable[RetryDisposition[T]]], permit: Permit | None, clock: Clock, timeout_s: float | None
) -> RetryDisposition[T]:
    """One attempt, reported to the breaker. An attempt that is cancelled or raises has no outcome."""
    with permit if permit is not None else nullcontext():
        disposition = await (op() if timeout_s is None else _with_timeout(op, clock, timeout_s))
        if not isinstance(disposition, (RetryOk, Retry, Permanent, RetryDiscard)):
            raise TypeError(f"with_retry: expected op to return a RetryDisposition, got {disposition!r}")
        if permit is not None:
            if isinstance(disposition, Retry):
                permit.failed()
            else:
                permit.succeeded()
        return disposition


async def _with_timeout(
    op: Callable[[], Awaitable[RetryDisposition[T]]], clock: Clock, timeout_s: float
) -> RetryDisposition[T]:
    timeout = Timeout(clock, timeout_s)
    try:
        async with timeout:
            return await op()
    except TimeoutError:
        if timeout.expired:
            return Retry(TimeoutError(f"the attempt was not done within {timeout_s:g} s"))
        raise


async def _wait(delay_s: float, clock: Clock, shutdown: ShutdownToken | None) -> bool:
    """Wait. Return whether the shutdown is set, which ends the wait early."""
    if not _WAITS.get():
        await asyncio.sleep(0)
    elif shutdown is None:
        await sleep(clock, delay_s)
    else:
        await shutdown.wait_at_most(delay_s, clock)
    return shutdown is not None and shutdown.is_set


def _timeout_s(policy: RetryPolicy, elapsed_s: float) -> float | None:
    """The timeout of an attempt that starts now, seconds; ``None`` for none."""
    timeouts_s = [policy.attempt_timeout.total_seconds()] if policy.attempt_timeout is not None else []
    if policy.deadline is not None:
        timeouts_s.append(max(0.0, policy.deadline.total_seconds() - elapsed_s))
    return min(timeouts_s, default=None)


def _pause_s(policy: RetryPolicy, retry_after: timedelta | None) -> float:
    """The pause that the downstream asks for in addition to the delay, seconds."""
    if retry_after is None:
        return 0.0
    return max(timedelta(0), min(retry_after, policy.max_retry_after)).total_seconds()


def _breaker_open(rejection: Rejection, earlier: BaseException | None) -> BreakerOpen:
    error = BreakerOpen(str(rejection), breaker=rejection.breaker, ask_again_in=rejection.ask_again_in)
    error.__cause__ = earlier.__cause__ if isinstance(earlier, BreakerOpen) else earlier
    return error
