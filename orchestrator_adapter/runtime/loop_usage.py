"""Which operators compute on the event loop, by looking from another thread what it runs.

An operator that computes on the loop keeps every other operator from going on: they seem to work as well, because their
awaits return late. Only what the loop runs distinguishes them.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping
from typing import Final

from orchestrator_adapter.supervision.watchdog import operator_of

PERIOD_S: Final = 2.5
_LEAST_LOOKS: Final = 10  # before that, a share says too little


class LoopUsage:
    """What ``loop`` has run in the last ``PERIOD_S`` seconds. ``look`` at it regularly, some 20 times a second."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._looks: deque[tuple[float, str | None]] = deque()

    def look(self, now_s: float) -> None:
        """Note what runs now (monotonic seconds). Called on another thread."""
        task = asyncio.current_task(self._loop)
        self._looks.append((now_s, None if task is None else operator_of(task)))
        self._forget_old(now_s)

    def shares(self, now_s: float) -> Mapping[str, float]:
        """The share of the time for which each operator computed on the loop; empty while that is not known.

        What else the loop ran has the name ``""``.
        """
        self._forget_old(now_s)
        if len(self._looks) < _LEAST_LOOKS:
            return {}
        seen = Counter(operator for _, operator in self._looks if operator is not None)
        return {operator: count / len(self._looks) for operator, count in seen.items()}

    def _forget_old(self, now_s: float) -> None:
        while self._looks and now_s - self._looks[0][0] > PERIOD_S:
            self._looks.popleft()
