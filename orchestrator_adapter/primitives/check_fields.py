"""``check_fields``: all of a record's fields that are out of bounds, in one error."""

from __future__ import annotations


def check_fields(record: str, *fields: tuple[str, object, object, str]) -> None:
    """Raise ``ValueError`` that names every field that is out of bounds: ``RetryPolicy: cap must be > 0, got 0``.

    Each field is its name, its value, whether that is within bounds, and the bounds in words.
    """
    problems = [f"{record}: {name} must be {bounds}, got {value!r}" for name, value, good, bounds in fields if not good]
    if problems:
        raise ValueError("; ".join(problems))
