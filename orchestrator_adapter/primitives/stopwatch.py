"""``Stopwatch``: for how long something was so, on a clock that is passed in."""

from __future__ import annotations

from typing import Self

from orchestrator_adapter.primitives.clock import Clock


class Stopwatch:
    """Adds up the time in which at least one of its causes held: time in which several hold is counted once.

    ``start`` and ``stop`` come in pairs, one pair for each cause; a ``with`` block is one cause. It is used on one event loop.
    """

    __slots__ = ("_causes", "_clock", "_since", "_total_s")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._causes = 0
        self._since = 0.0
        self._total_s = 0.0

    @property
    def reading_s(self) -> float:
        """Seconds so far, the present time included if a cause holds now. Never decreases."""
        return self._total_s + (self._clock.monotonic() - self._since if self._causes else 0.0)

    def start(self) -> None:
        """A cause begins."""
        if not self._causes:
            self._since = self._clock.monotonic()
        self._causes += 1

    def stop(self) -> None:
        """A cause ends."""
        assert self._causes, "a stopwatch was stopped more often than started"
        self._causes -= 1
        if not self._causes:
            self._total_s += self._clock.monotonic() - self._since

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
