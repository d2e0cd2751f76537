"""What an object's name says: which of several patterns it fits, and what kind of object it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate

_DEBRIS = re.compile(r"\bDEB(RIS)?\b", re.IGNORECASE)
_ROCKET_BODY = re.compile(r"\bR/B\b", re.IGNORECASE)
_UNCONTROLLED = re.compile(r"\b(DEB(RIS)?|AKM|PKM)\b|R/B", re.IGNORECASE)


def is_debris(name: str) -> bool:
    """Whether an object is a fragment, by the abbreviation that Space-Track and CelesTrak use."""
    return _DEBRIS.search(name) is not None


def is_rocket_body(name: str) -> bool:
    """Whether an object is a rocket body, by the same convention."""
    return _ROCKET_BODY.search(name) is not None


def is_uncontrolled(name: str) -> bool:
    """Whether an object is a fragment, an apogee or perigee kick motor, or a rocket body."""
    return _UNCONTROLLED.search(name) is not None


class NamePatterns:
    """Patterns of whole names with ``*``, ``?`` and ``[0-9]`` (`fnmatch`), without regard to case. The first that fits wins."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._any = re.compile("|".join(f"({translate(pattern)})" for pattern in patterns), re.IGNORECASE)
        self._empty = not patterns

    def index(self, name: str) -> int | None:
        """The index of the first pattern that ``name`` fits; ``None`` if it fits none."""
        if self._empty:
            return None
        match = self._any.match(name)
        return None if match is None or match.lastindex is None else match.lastindex - 1
