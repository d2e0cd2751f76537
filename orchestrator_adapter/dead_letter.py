"""Dead letters: items that could not be processed, kept with their reason. Knows nothing of what they are.

# NOTE to the helper: the lead wrote the record, Protocol, list, limits and DeadLetterGate (runtime uses exactly these);
# keep their names and signatures, better the rest, add DeadLetterFile. Delete this note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol

import msgspec

from orchestrator_adapter.errors import DeadLetterLimitExceeded


class DeadLetterKind(StrEnum):
    """Why an item became a dead letter."""

    DESERIALIZATION = "Deserialization"
    SCHEMA_MISMATCH = "SchemaMismatch"
    VALIDATION_FAILED = "ValidationFailed"
    PROCESSING_EXCEPTION = "ProcessingException"
    RETRY_BUDGET_EXHAUSTED = "RetryBudgetExhausted"
    POISON_PILL = "PoisonPill"
    UNDELIVERED = "Undelivered"


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter."""

    schema_version: int = 1
    time_ns: int
    operator: str
    kind: DeadLetterKind
    message: str
    attempts: int
    payload: Any
    history: tuple[str, ...] = ()


class DeadLetterStore(Protocol):
    """Where dead letters go."""

    def append(self, letters: Sequence[DeadLetter]) -> None:
        """Keep ``letters``, in order. Raises ``OSError`` if they cannot be kept."""

    def close(self) -> None:
        """Make everything durable and let go of the store."""


class DeadLetterList:
    """In memory, for tests and for graphs that were given no store."""

    def __init__(self) -> None:
        self.letters: list[DeadLetter] = []

    def append(self, letters: Sequence[DeadLetter]) -> None:
        self.letters.extend(letters)

    def close(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class DeadLetterLimits:
    """Beyond these an operator's dead letters are taken for its own fault and escalate."""

    max_share: float = 0.5
    min_items: int = 1_000
    max_consecutive: int = 1_000

    def __post_init__(self) -> None:
        if not 0 < self.max_share <= 1:
            raise ValueError(f"DeadLetterLimits: max_share must be in (0, 1], got {self.max_share}")
        if self.min_items < 1 or self.max_consecutive < 1:
            raise ValueError(
                f"DeadLetterLimits: min_items and max_consecutive must be >= 1, got {self.min_items}, {self.max_consecutive}"
            )


class DeadLetterGate:
    """Watches one operator's share and run of dead letters. ``None`` limits watch nothing."""

    def __init__(self, limits: DeadLetterLimits | None) -> None:
        self._limits = limits
        self._passed = 0
        self._dead_then = 0

    def check(self, operator: str, *, passed: int, dead: int) -> None:
        """``passed`` and ``dead`` are the operator's totals. Raises ``DeadLetterLimitExceeded``."""
        limits = self._limits
        if limits is None:
            return
        if passed != self._passed:
            self._passed, self._dead_then = passed, dead
        consecutive = dead - self._dead_then
        if consecutive > limits.max_consecutive:
            raise DeadLetterLimitExceeded(f"operator {operator!r}: {consecutive} dead letters in a row (limit {limits.max_consecutive})")
        total = passed + dead
        if total >= limits.min_items and dead > limits.max_share * total:
            raise DeadLetterLimitExceeded(
                f"operator {operator!r}: {dead} of {total} items became dead letters (limit {limits.max_share:.0%})"
            )
