"""The progress timeout: whether an operator that has input makes progress, as a pure function of what was seen and when."""

from __future__ import annotations

from dataclasses import dataclass

_CHECKS_PER_TIMEOUT = 4  # so that a stall is detected at most a quarter of the timeout late


@dataclass(slots=True)
class ProgressWatch:
    """Watches one operator, with four checks per timeout. ``since`` is the first check at which it made no progress.

    An operator that waits for space in its output is excused: the operator downstream is the cause.
    """

    timeout_s: float
    since: float | None = None
    acknowledged: int = 0

    def next_check(self, now: float) -> float:
        """The latest time of the next check."""
        return now + self.timeout_s / _CHECKS_PER_TIMEOUT

    def stalled(self, now: float, *, acknowledged: int, has_input: bool, waits_for_space: bool) -> bool:
        """Whether it had input and space for its output, and acknowledged nothing, for the whole timeout."""
        if acknowledged != self.acknowledged or not has_input or waits_for_space:
            self.since, self.acknowledged = None, acknowledged
            return False
        if self.since is None:
            self.since = now  # the excuse may have ended at any moment since the last check
        return now - self.since >= self.timeout_s

    def restart(self) -> None:
        """A new instance has the whole timeout."""
        self.since = None
