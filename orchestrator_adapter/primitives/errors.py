"""Every error that the orchestrator raises, and whose fault each one is.

Names what can go wrong with channels, tasks and graphs, and knows none of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import PurePath
from typing import Literal, TypeAlias

GiveUpReason: TypeAlias = Literal["attempts", "deadline", "budget"]
"""Why no further attempt was made: no attempts, no time or no token was left."""


class OrchestratorError(Exception):
    """Base of every error defined here."""


class OperatorError(OrchestratorError):
    """An expected, operational failure of an operator: the fault of its surroundings, not of its code.

    Raise it (or a subclass, or any ``OSError``) from an operator when a restart may help. Any other exception that escapes
    an operator counts as a bug, and the operator is not restarted.
    """


class Stalled(OperatorError):
    """An operator had input waiting and acknowledged nothing for its ``progress_timeout``."""


class DeadLetterLimitExceeded(OperatorError):
    """Too many of an operator's items became dead letters: the deployment is at fault, not the items."""


class BlockingCallTimedOut(OperatorError, TimeoutError):
    """A blocking call did not return within its timeout. Its thread is abandoned: it runs on until the call returns."""


class BlockingPoolExhausted(OperatorError):
    """Every thread of a pool for blocking calls hangs, and no more of them are replaced. A restart would not help."""


class BreakerOpen(OperatorError):
    """The downstream's fault: its circuit breaker rejects calls.

    Attributes:
        breaker: The breaker's name.
        ask_again_in: The time until a permit may be available.
    """

    def __init__(self, message: str, *, breaker: str, ask_again_in: timedelta) -> None:
        super().__init__(message)
        self.breaker = breaker
        self.ask_again_in = ask_again_in


@dataclass(frozen=True, slots=True)
class Tried:
    """What ``with_retry`` did before it gave up.

    Attributes:
        attempts: The attempts that were sent.
        rejected: The attempts that a circuit breaker rejected; they are not part of ``attempts``.
        elapsed_s: Seconds since the first attempt.
    """

    attempts: int
    rejected: int
    elapsed_s: float

    def __str__(self) -> str:
        plural = "" if self.attempts == 1 else "s"
        rejected = f" and {self.rejected} rejected" if self.rejected else ""
        return f"after {self.attempts} attempt{plural}{rejected} in {round(self.elapsed_s, 3):g} s"


class RetryFailure(OperatorError):
    """The downstream's fault: every attempt failed. The last error is the cause (``__cause__``).

    Attributes:
        tried: What was done before it was given up.
    """

    def __init__(self, message: str, tried: Tried) -> None:
        super().__init__(f"{message} ({tried})")
        self.tried = tried

    @property
    def attempts(self) -> int:
        """The attempts that were sent."""
        return self.tried.attempts


class PermanentFailure(RetryFailure):
    """Another attempt would fail as well."""


class RetriesExhausted(RetryFailure):
    """Another attempt might succeed, but no further attempt is allowed.

    Attributes:
        reason: What was used up: ``attempts``, ``deadline`` or ``budget``.
    """

    def __init__(self, message: str, tried: Tried, *, reason: GiveUpReason) -> None:
        super().__init__(f"no {_SPENT[reason]} left: {message}", tried)
        self.reason = reason


_SPENT: dict[GiveUpReason, str] = {
    "attempts": "attempts",
    "deadline": "time",
    "budget": "token in the retry budget",
}


class RetryCutShort(RetryFailure):
    """Not an error: the graph is shutting down, and no further attempt is made."""


class ReaderGone(OperatorError):
    """The peer's fault: the operator that reads this edge has ended for good, so nothing more can be sent on it."""


class ReaderDone(ReaderGone):
    """Not an error: by the run's end rule the reader is done, so its writer has nothing left to do."""


class EndOfStream(OrchestratorError):
    """``recv()`` was called after the writer had closed the edge and all its items were read."""


class EdgeMisuse(OrchestratorError):
    """The caller's bug: two readers or two writers on one edge, or an end used that the role does not have."""


class DuplicateRun(OrchestratorError):
    """The caller's bug: ``run()`` was awaited a second time on one built graph."""


class MissingExtra(OrchestratorError, ImportError):
    """The feature needs an optional dependency that is not installed. The message says how to install it."""


_LONGEST_TEXT = 2_000  # characters; an error's text may contain the body of an answer, and goes into logs and reports
_MOST_KINDS = 20  # types of failures that are counted for an operator, so that a metric has a bounded number of labels
_OTHER_KINDS = "other"
_LONGEST_CHAIN = 20


@dataclass(frozen=True, slots=True)
class LastError:
    """The last failure of an operator.

    Attributes:
        time_ns: When, UTC nanoseconds.
        kind: The exception's type, or the dead letter's kind.
        message: In words.
    """

    time_ns: int
    kind: str
    message: str


class Failures:
    """The failures of one operator's instances: how many, by the exception's type, and the last one."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.last: LastError | None = None

    def record(self, error: BaseException, time_ns: int) -> None:
        """An instance has failed with ``error``. At most 20 types are counted; further ones count as ``other``."""
        kind = type(error).__name__
        counted = kind if kind in self.counts or len(self.counts) < _MOST_KINDS else _OTHER_KINDS
        self.counts[counted] = self.counts.get(counted, 0) + 1
        self.last = LastError(time_ns, kind, describe(error).removeprefix(f"{kind}: "))


def describe(error: BaseException) -> str:
    """``TypeName: text`` of an exception; only its type if it has no text. A long text is shortened to 2,000 characters."""
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 - an exception whose text cannot be made must still be named
        text = f"<its text raised {type(broken).__name__}>"
    if len(text) > _LONGEST_TEXT:
        text = f"{text[:_LONGEST_TEXT]}… ({len(text)} characters)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def cause_chain(error: BaseException) -> tuple[str, ...]:
    """``error`` and its causes, outermost first, chained as in Python's traceback. At most 20; the last one says if there are more."""
    chain: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        if len(chain) == _LONGEST_CHAIN:
            return (*chain[:-1], f"{chain[-1]}, and further causes")
        seen.add(id(current))
        chain.append(describe(current))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return tuple(chain)


def raised_at(error: BaseException) -> str:
    """Where ``error`` was raised, as ``file.py:12``; empty if it was not."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        place = f"{PurePath(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place
