"""Which of several patterns an object's name fits: for tables of sizes and of fleets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import translate


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
