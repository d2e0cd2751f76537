"""``RecentDeadLetters``: the last dead letters of a run, for a reader: why, where and when, never the item itself.

The store has all of them, with their payloads. A message may quote a value of the input, so it is cut to 300 characters and
has no control characters. Bounded: about 1 KiB a letter, 1,000 letters of the run and 20 more of each operator.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator_adapter.storage.dead_letter import DeadLetter

MOST_OF_A_RUN = 1_000
MOST_OF_AN_OPERATOR = 20
_MESSAGE = 300  # characters


@dataclass(frozen=True, slots=True)
class RecentDeadLetter:
    """One dead letter without its item.

    Attributes:
        number: Counts up from 1 in the run.
        time_ns: When, UTC nanoseconds.
        kind: A ``DeadLetterKind``.
        payload: The item's type; with its size, if it is text or bytes.
    """

    number: int
    time_ns: int
    operator: str
    kind: str
    message: str
    attempts: int
    payload: str


@dataclass(frozen=True, slots=True)
class RecentPage:
    """Some letters, the newest first, out of ``kept`` that are in memory and ``total`` of the run or of the operator."""

    letters: tuple[RecentDeadLetter, ...]
    total: int
    kept: int
    more: bool


class RecentDeadLetters:
    """The last dead letters of one run. Any thread may call it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._of_the_run: deque[RecentDeadLetter] = deque(maxlen=MOST_OF_A_RUN)
        self._of_operators: dict[str, deque[RecentDeadLetter]] = {}
        self._totals: dict[str, int] = {}

    def add(self, letters: Sequence[DeadLetter]) -> None:
        """Remember letters of one operator, in order."""
        if not letters:
            return
        operator = letters[0].operator
        described = [_described(letter) for letter in letters[-MOST_OF_A_RUN:]]
        with self._lock:
            number = sum(self._totals.values()) + len(letters) - len(described)
            of_operator = self._of_operators.setdefault(operator, deque(maxlen=MOST_OF_AN_OPERATOR))
            self._totals[operator] = self._totals.get(operator, 0) + len(letters)
            for each in described:
                number += 1
                recent = replace(each, number=number)
                self._of_the_run.append(recent)
                of_operator.append(recent)

    def page(self, *, operator: str | None = None, before: int | None = None, limit: int = 20) -> RecentPage:
        """The newest ``limit`` letters, of one operator or of all, with numbers less than ``before``."""
        with self._lock:
            letters = list(self._of_the_run)
            total = sum(self._totals.values()) if operator is None else self._totals.get(operator, 0)
            if operator is not None:
                found = {each.number: each for each in letters if each.operator == operator}
                found |= {each.number: each for each in self._of_operators.get(operator, ())}
                letters = sorted(found.values(), key=lambda each: each.number)
        older = [each for each in reversed(letters) if before is None or each.number < before]
        return RecentPage(tuple(older[:limit]), total, len(letters), more=len(older) > limit)


def _described(letter: DeadLetter) -> RecentDeadLetter:
    message = letter.message[:_MESSAGE]
    if not message.isprintable():
        message = "".join(each if each.isprintable() else " " for each in message)
    if len(letter.message) > _MESSAGE:
        message += "…"
    payload = type(letter.payload).__name__
    if isinstance(letter.payload, str | bytes | bytearray | memoryview):
        payload = f"{payload} ({len(letter.payload)})"
    return RecentDeadLetter(0, letter.time_ns, letter.operator, letter.kind.value, message, letter.attempts, payload)
