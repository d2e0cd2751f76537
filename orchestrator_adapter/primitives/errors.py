"""Every error the orchestrator raises, and whose fault each one is.

Knows nothing of channels, tasks or graphs: it only names what can go wrong with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

GiveUpReason: TypeAlias = Literal["attempts", "deadline", "budget"]
"""Why no further attempt was made: there had been as many as allowed, there was no time left, or no token."""


class OrchestratorError(Exception):
    """Base of every error defined here."""


class OperatorError(OrchestratorError):
    """An expected, operational failure of an operator: the world's fault, not the code's.

    Raise it (or a subclass, or any ``OSError``) from an operator whose restart may help. Anything else that escapes an
    operator is taken for a bug and is never restarted.
    """


class Stalled(OperatorError):
    """An operator had input waiting and acknowledged nothing for its ``progress_timeout``."""


class DeadLetterLimitExceeded(OperatorError):
    """Too many of an operator's items became dead letters: the deployment is at fault, not the items."""


class BreakerOpen(OperatorError):
    """The downstream's doing: its circuit breaker refuses calls.

    Attributes:
        breaker: Which one.
        ask_again_in: When a permit may be had.
    """

    def __init__(self, message: str, *, breaker: str, ask_again_in: timedelta) -> None:
        super().__init__(message)
        self.breaker = breaker
        self.ask_again_in = ask_again_in


@dataclass(frozen=True, slots=True)
class Tried:
    """What ``with_retry`` had done when it gave up.

    Attributes:
        attempts: How often it was really tried.
        rejected: How often a circuit breaker let nothing be sent; not among the attempts.
        elapsed_s: Seconds since it began.
    """

    attempts: int
    rejected: int
    elapsed_s: float

    def __str__(self) -> str:
        plural = "" if self.attempts == 1 else "s"
        rejected = f" and {self.rejected} rejected" if self.rejected else ""
        return f"after {self.attempts} attempt{plural}{rejected} in {round(self.elapsed_s, 3):g} s"


class RetryFailure(OperatorError):
    """The downstream's doing: what was tried has not worked. The last error is the cause (``__cause__``).

    Attributes:
        tried: What was done.
    """

    def __init__(self, message: str, tried: Tried) -> None:
        super().__init__(f"{message} ({tried})")
        self.tried = tried

    @property
    def attempts(self) -> int:
        """How often it was really tried."""
        return self.tried.attempts


class PermanentFailure(RetryFailure):
    """Another attempt would not mend it."""


class RetriesExhausted(RetryFailure):
    """It might pass, and it was given up all the same.

    Attributes:
        reason: Why: ``attempts``, ``deadline`` or ``budget``.
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
    """Nobody's fault: the graph is shutting down, and nobody waits for another attempt."""


class ReaderGone(OperatorError):
    """The peer's doing: the operator that read this edge has ended for good, so nothing more can be sent on it."""


class ReaderDone(ReaderGone):
    """Nobody's fault: by the run's end rule the reader has had all it wanted, so its writer has nothing left to do."""


class EndOfStream(OrchestratorError):
    """``recv()`` was called after the writer closed the edge and everything in it was read."""


class EdgeMisuse(OrchestratorError):
    """The caller's bug: two readers or two writers on one edge, or an end used that the role does not have."""


class DuplicateRun(OrchestratorError):
    """The caller's bug: ``run()`` was awaited a second time on one built graph."""


class MissingExtra(OrchestratorError, ImportError):
    """What was asked for needs an optional dependency that is not installed. The message says how to install it."""


def describe(error: BaseException) -> str:
    """``TypeName: text`` of an exception, or just its type where it has no text."""
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 - an exception whose text cannot be made must still be told apart
        text = f"<its text raised {type(broken).__name__}>"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def cause_chain(error: BaseException) -> tuple[str, ...]:
    """``error`` and what caused it, outermost first, as Python's own traceback would chain them."""
    chain: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        chain.append(describe(current))
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return tuple(chain)
