"""``check_fields``: all of a record's fields that are out of bounds, in one error."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeGuard


def check_fields(record: str, *fields: tuple[str, object, object, str]) -> None:
    """Raise ``ValueError`` that names every field that is out of bounds: ``RetryPolicy: cap must be > 0, got 0``.

    Each field is its name, its value, whether that is within bounds, and the bounds in words.
    """
    problems = [f"{record}: {name} must be {bounds}, got {value!r}" for name, value, good, bounds in fields if not good]
    if problems:
        raise ValueError("; ".join(problems))


def is_duration(value: object, *, above: timedelta | None = None) -> TypeGuard[timedelta]:
    """Whether ``value`` is a ``timedelta``, not a number of seconds, and > ``above`` (without ``above``: >= 0)."""
    if not isinstance(value, timedelta):
        return False
    return value >= timedelta(0) if above is None else value > above
