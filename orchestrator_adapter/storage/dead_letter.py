"""Dead letters: where an item goes that cannot be processed, with the reason and the item itself.

A store keeps them (`DeadLetterFile`, `DeadLetterList`); `DeadLetterLimits` says when there are so many that it is the
operator that is at fault and not the items. Nothing here knows what the items are, or runs anything.
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
    """What went wrong; stable names, for counters and for tools that read the store."""

    DESERIALIZATION = "Deserialization"
    """The bytes are no frame of the format."""
    SCHEMA_MISMATCH = "SchemaMismatch"
    """Well-formed, but not the record that was agreed on."""
    VALIDATION_FAILED = "ValidationFailed"
    """A good record that cannot be true."""
    PROCESSING_EXCEPTION = "ProcessingException"
    """An operator failed on it."""
    RETRY_BUDGET_EXHAUSTED = "RetryBudgetExhausted"
    """Every attempt failed."""
    POISON_PILL = "PoisonPill"
    """It took its operator down, again and again."""
    UNDELIVERED = "Undelivered"
    """Nobody was left to take it."""


class DeadLetter(msgspec.Struct, frozen=True, kw_only=True):
    """One item that could not be processed.

    Attributes:
        schema_version: Of this record; 1.
        time_ns: When it was given up, UTC nanoseconds since the Unix epoch.
        operator: Who gave it up.
        kind: What went wrong.
        message: The same for people: expected, got, where.
        attempts: How often it was tried.
        payload: The item as it was: a record, or the bytes of a frame.
        history: What happened to it before, oldest first.
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
    """Where dead letters are kept."""

    def append(self, letters: Sequence[DeadLetter]) -> None:
        """Keeps the letters, in order, or raises `OSError`. Synchronous; an odd payload is no reason to raise."""

    def close(self) -> None:
        """Makes what was kept durable and gives the store back. A second call does nothing."""


class DeadLetterFile:
    """Dead letters as JSON Lines in rotating files, one a line; see `orchestrator_adapter.storage.jsonl` for what is on disk.

    The payload is JSON where it can be (records, dicts, lists, numbers, text). Bytes become ``{"base64": …}``, a number
    that is not finite the text ``"nan"``, ``"inf"`` or ``"-inf"``, and anything else ``{"repr": …}``. `append` survives
    the process at once; the machine from the next rotation or `close` on.
    """

    def __init__(self, directory: Path, *, stem: str = "dead-letters", max_bytes: int = DEFAULT_MAX_FILE_BYTES) -> None:
        """Takes the directory and repairs it; raises as `RotatingJsonLines` does."""
        self._lines = RotatingJsonLines(directory, stem=stem, max_bytes=max_bytes)

    def append(self, letters: Sequence[DeadLetter]) -> None:
        """Writes the letters; after an `OSError` none of them is in the store, unless they fill more than a file."""
        self._lines.write_lines(b"".join([_line(letter) for letter in letters]), len(letters))

    def close(self) -> None:
        """Fsyncs and finishes the current file."""
        self._lines.close()


class DeadLetterList:
    """Dead letters in memory, the newest `capacity` of them: for tests, and for runs that keep none.

    Attributes:
        total: How many were appended, those no longer kept included.
    """

    def __init__(self, *, capacity: int = 10_000) -> None:
        self.total = 0
        self._kept: deque[DeadLetter] = deque(maxlen=capacity)

    @property
    def letters(self) -> list[DeadLetter]:
        """Those that are kept, oldest first."""
        return list(self._kept)

    def append(self, letters: Sequence[DeadLetter]) -> None:
        """Keeps the letters; the oldest make room."""
        self.total += len(letters)
        self._kept.extend(letters)

    def close(self) -> None:
        """Does nothing: what is in memory stays there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterLimits:
    """How many dead letters are the items' fault; more are the operator's (a bad deployment, a changed schema).

    Attributes:
        max_share: Greatest share of an operator's items, in (0, 1]; 1 never trips.
        min_items: The share is not judged before so many items.
        max_consecutive: Longest run of dead letters without one good item in between.
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
        """The sentence that says which limit is broken; None while all hold.

        Args:
            items: How many there were, the dead ones included.
            dead: How many of them became dead letters.
            consecutive: How many of them in a row, up to now.
        """
        if consecutive > self.max_consecutive:
            return f"expected at most {self.max_consecutive} dead letters in a row, got {consecutive}"
        if items >= self.min_items and dead > self.max_share * items:
            return (
                f"expected at most {self.max_share:.1%} dead letters, got {dead} of {items} items ({dead / items:.1%})"
            )
        return None


class DeadLetterGate:
    """Watches one operator's counts against its limits, across its restarts."""

    def __init__(self, limits: DeadLetterLimits | None) -> None:
        """Takes the limits; None for no limit."""
        self._limits = limits
        self._passed = 0
        self._dead_before_run = 0

    def check(self, operator: str, *, passed: int, dead: int) -> None:
        """Judges an operator's totals so far; to be called again whenever they have grown.

        A run of dead letters is counted from the last call that saw a good item: what order the two had within one
        batch, totals cannot say, and the run is taken for the shorter.

        Raises:
            DeadLetterLimitExceeded: They are beyond the limits; the message names the operator.
        """
        if self._limits is None:
            return
        if passed > self._passed:
            self._passed, self._dead_before_run = passed, dead
        breach = self._limits.breach(items=passed + dead, dead=dead, consecutive=dead - self._dead_before_run)
        if breach is not None:
            raise DeadLetterLimitExceeded(f"operator {operator!r}: {breach}")


def _line(letter: DeadLetter) -> bytes:
    """The letter as one line of JSON, whatever its payload."""
    try:
        plain = msgspec.to_builtins(letter.payload, builtin_types=(bytes, bytearray), str_keys=True, enc_hook=_as_repr)
        return _encoded(letter, _readable(plain))
    except Exception:  # noqa: BLE001 -- foreign code (a repr, a hook of msgspec) meets any object: the letter must be kept
        return _encoded(letter, _as_repr(letter.payload))


def _encoded(letter: DeadLetter, payload: Any) -> bytes:
    message, history = _encodable(letter.message), tuple(map(_encodable, letter.history))
    return (
        msgspec.json.encode(msgspec.structs.replace(letter, message=message, history=history, payload=payload)) + b"\n"
    )


def _readable(value: Any) -> Any:
    """Built-in values as JSON can say them."""
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
    except Exception as error:  # noqa: BLE001 -- a foreign repr may raise anything
        text = f"<{type(value).__name__}, whose repr raised {type(error).__name__}>"
    return {"repr": _encodable(text)}


def _encodable(text: str) -> str:
    """Lone surrogates, which UTF-8 cannot hold, written as escapes."""
    return text.encode(errors="backslashreplace").decode()
