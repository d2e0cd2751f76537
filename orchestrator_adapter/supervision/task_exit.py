"""How an operator instance can end: ``task_exit.Ok``, ``.Errored``, ``.Panicked`` or ``.Aborted``.

A closed union, matched with ``assert_never``. ``supervisor`` decides what follows from each.
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
    """An expected, operational failure: an ``OperatorError``, an ``OSError``, or an error that the operator declared."""

    error: BaseException

    def __str__(self) -> str:
        return f"Errored({describe(self.error)})"


@dataclass(frozen=True, slots=True)
class Panicked:
    """A bug: any other exception, including a cancellation that was not requested.

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
    """Whether an exception that escaped an operator is an operational failure or a bug.

    An exception group is operational only if every exception in it is operational.
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
