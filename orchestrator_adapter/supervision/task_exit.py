"""The four ways one operator instance can end: ``task_exit.Ok``, ``.Errored``, ``.Panicked``, ``.Aborted``.

A closed union, to be matched with ``assert_never``. What follows from each is the supervisor's business.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TypeAlias

from orchestrator_adapter.primitives.errors import OperatorError, describe


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
