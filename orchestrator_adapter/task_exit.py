"""The four ways one operator instance can end: ``task_exit.Ok``, ``.Errored``, ``.Panicked``, ``.Aborted``.

A closed union, to be matched with ``assert_never``. What follows from each is the supervisor's business.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TypeAlias

from orchestrator_adapter.errors import OperatorError


@dataclass(frozen=True, slots=True)
class Ok:
    """Its input ended, or it finished its drain."""

    def __str__(self) -> str:
        return "Ok"


@dataclass(frozen=True, slots=True)
class Errored:
    """An expected, operational failure: an ``OperatorError``, an ``OSError``, or what the operator declared."""

    error: BaseException

    def __str__(self) -> str:
        return f"Errored({describe(self.error)})"


@dataclass(frozen=True, slots=True)
class Panicked:
    """A bug: anything else that escaped, a cancellation that nobody asked for among it.

    Attributes:
        message: The exception's type and text.
        traceback: The formatted traceback, causes included.
        error: The exception itself.
    """

    message: str
    traceback: str
    error: BaseException

    def __str__(self) -> str:
        return f"Panicked({self.message})"


@dataclass(frozen=True, slots=True)
class Aborted:
    """The orchestrator asked it to stop, and it stopped."""

    reason: str = "abort"

    def __str__(self) -> str:
        return f"Aborted({self.reason})"


TaskExit: TypeAlias = Ok | Errored | Panicked | Aborted
"""How one operator instance ended."""


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


def classify(error: BaseException, expected: tuple[type[BaseException], ...] = ()) -> Errored | Panicked:
    """Whether what escaped an operator is the world's doing or a bug.

    An exception group is operational only if every exception in it is.
    """
    if _is_operational(error, (OperatorError, OSError, *expected)):
        return Errored(error)
    return Panicked(describe(error), "".join(traceback.format_exception(error)), error)


def _is_operational(error: BaseException, expected: tuple[type[BaseException], ...]) -> bool:
    if isinstance(error, expected):
        return True
    if isinstance(error, BaseExceptionGroup):
        return all(_is_operational(member, expected) for member in error.exceptions)
    return False
