"""Dead letters: items that could not be processed, each with the reason.

A store keeps them (`DeadLetterFile`, `DeadLetterList`). `DeadLetterLimits` says from how many on the operator is at fault,
and not the items. Knows nothing of what the items are.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from orchestrator_adapter.primitives.check_fields import check_fields
from orchestrator_adapter.primitives.errors import DeadLetterLimitExceeded
from orchestrator_adapter.storage.jsonl import DEFAULT_MAX_FILE_BYTES, RotatingJsonLines


class DeadLetterKind(StrEnum):
    """What went wrong. Stable names, for counters and for tools that read the store."""

    DESERIALIZATION = "Deserialization"
    """The bytes are not a frame of the format."""
    SCHEMA_MISMATCH = "SchemaMismatch"
    """Well-formed, but not a record of the schema."""
    VALIDATION_FAILED = "ValidationFailed"
    """A record of the schema with impossible values."""
    PROCESSING_EXCEPTION = "ProcessingException"
    """An operator failed on it."""
    RETRY_BUDGET_EXHAUSTED = "RetryBudgetExhausted"
    """Every attempt failed."""
    POISON_PILL = "PoisonPill"
    """Its operator failed on it repeatedly."""
    UNDELIVERED = "Undelivered"
    """It has no reader left."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One item that could not be processed.

    Attributes:
        schema_version: Of this record; 1.
        time_ns: When it was written, UTC nanoseconds since the Unix epoch.
        operator: The operator that could not process it.
        kind: What went wrong.
        message: The same for people: what was expected, what came, and where.
        attempts: The number of attempts.
        payload: The item: a record, or the bytes of a frame.
        history: Its earlier failures, oldest first.
    """

    schema_version: Literal[1] = 1
    time_ns: int
    operator: str
    kind: DeadLetterKind
    message: str
    attempts: int
    payload: Any
    history: tuple[str, ...] = ()


class DeadLetterStore(Protocol):
    """Keeps dead letters."""

    def append(self, letters: Sequence[DeadLetter]) -> None:
        """Keep the letters, in order, or raise `OSError`. Synchronous. Accepts any payload."""

    def close(self) -> None:
        """Make the letters durable and close the store. A second call does nothing."""


class DeadLetterFile:
    """Dead letters as JSON Lines in rotating files, one a line; see `orchestrator_adapter.storage.jsonl` for what is on disk.

    The payload is written as JSON where possible (records, dicts, lists, numbers, text). Bytes become ``{"base64": …}``, a
    number that is not finite becomes the text ``"nan"``, ``"inf"`` or ``"-inf"``, and any other object ``{"repr": …}``. An
    appended letter survives the end of the process at once, and a power cut after the next rotation or `close`.
    """

    def __init__(self, directory: Path, *, stem: str = "dead-letters", max_bytes: int = DEFAULT_MAX_FILE_BYTES) -> None:
        """Lock the directory and repair its files. Raises as `RotatingJsonLines` does."""
        self._lines = RotatingJsonLines(directory, stem=stem, max_bytes=max_bytes)

    def append(self, letters: Sequence[DeadLetter]) -> None:
        """Write the letters. After an `OSError` the store has none of them, unless they fill more than one file."""
        self._lines.write_lines(b"".join([_line(letter) for letter in letters]), len(letters))

    def close(self) -> None:
        """Fsync and finish the current file."""
        self._lines.close()


class DeadLetterList:
    """The newest `capacity` dead letters, in memory: for tests, and for runs without a store.

    Attributes:
        total: The number of appended letters, including those that are no longer kept.
    """

    def __init__(self, *, capacity: int = 10_000) -> None:
        self.total = 0
        self._kept: deque[DeadLetter] = deque(maxlen=capacity)

    @property
    def letters(self) -> list[DeadLetter]:
        """The letters that are kept, oldest first."""
        return list(self._kept)

    def append(self, letters: Sequence[DeadLetter]) -> None:
        """Keep the letters and drop the oldest ones beyond the capacity."""
        self.total += len(letters)
        self._kept.extend(letters)

    def close(self) -> None:
        """Do nothing: the letters stay in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterLimits:
    """How many dead letters an operator may have. More mean that the operator is at fault: a bad deployment, a new schema.

    Attributes:
        max_share: The greatest share of an operator's items, in (0, 1]; 1 sets no limit.
        min_items: The share is checked only from this number of items on.
        max_consecutive: The longest run of dead letters without a good item in between.
    """

    max_share: float = 0.5
    min_items: int = 1_000
    max_consecutive: int = 1_000

    def __post_init__(self) -> None:
        check_fields(
            "DeadLetterLimits",
            ("max_share", self.max_share, 0 < self.max_share <= 1, "> 0 and <= 1"),
            ("min_items", self.min_items, self.min_items >= 1, ">= 1"),
            ("max_consecutive", self.max_consecutive, self.max_consecutive >= 1, ">= 1"),
        )

    def breach(self, *, items: int, dead: int, consecutive: int) -> str | None:
        """A sentence that says which limit is exceeded; None if none is.

        Args:
            items: The number of items, dead letters included.
            dead: The number of dead letters.
            consecutive: The length of the current run of dead letters.
        """
        if consecutive > self.max_consecutive:
            return f"expected at most {self.max_consecutive} consecutive dead letters, got {consecutive}"
        if items >= self.min_items and dead > self.max_share * items:
            return (
                f"expected at most {self.max_share:.1%} dead letters, got {dead} of {items} items ({dead / items:.1%})"
            )
        return None


class DeadLetterGate:
    """Checks one operator's counts against its limits, across its restarts."""

    def __init__(self, limits: DeadLetterLimits | None) -> None:
        """``limits``: None for no limit."""
        self._limits = limits
        self._passed = 0
        self._dead_before_run = 0

    def check(self, operator: str, *, passed: int, dead: int) -> None:
        """Check an operator's totals so far. Call it again when they have grown.

        A run of dead letters starts at the last call that counted a good item. Totals do not show the order within one
        batch, so the shorter possible run counts.

        Raises:
            DeadLetterLimitExceeded: A limit is exceeded; the message names the operator.
        """
        if self._limits is None:
            return
        if passed > self._passed:
            self._passed, self._dead_before_run = passed, dead
        breach = self._limits.breach(items=passed + dead, dead=dead, consecutive=dead - self._dead_before_run)
        if breach is not None:
            raise DeadLetterLimitExceeded(f"operator {operator!r}: {breach}")


def _line(letter: DeadLetter) -> bytes:
    """The letter as one line of JSON, for any payload."""
    try:
        plain = msgspec.to_builtins(letter.payload, builtin_types=(bytes, bytearray), str_keys=True, enc_hook=_as_repr)
        return _encoded(letter, _readable(plain))
    except Exception:  # noqa: BLE001 - foreign code (a repr, a hook of msgspec) may raise anything, and the letter must be kept
        return _encoded(letter, _as_repr(letter.payload))


def _encoded(letter: DeadLetter, payload: Any) -> bytes:
    message, history = _encodable(letter.message), tuple(map(_encodable, letter.history))
    return (
        msgspec.json.encode(msgspec.structs.replace(letter, message=message, history=history, payload=payload)) + b"\n"
    )


def _readable(value: Any) -> Any:
    """Built-in values in a form that JSON has."""
    match value:
        case float() if not isfinite(value):
            return str(value)
        case bytes() | bytearray():
            return {"base64": base64.b64encode(value).decode()}
        case dict():
            return {key: _readable(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_readable(inner) for inner in value]
        case _:
            return value


def _as_repr(value: Any) -> dict[str, str]:
    try:
        text = repr(value)
    except Exception as error:  # noqa: BLE001 - a foreign repr may raise anything
        text = f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"
    return {"repr": _encodable(text)}


def _encodable(text: str) -> str:
    """The text with lone surrogates, which UTF-8 does not have, as escapes."""
    return text.encode(errors="backslashreplace").decode()
