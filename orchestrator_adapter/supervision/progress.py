"""Whether an operator that has work is doing any: the progress timeout, as a pure function of what was seen and when."""

from __future__ import annotations

from dataclasses import dataclass

_LOOKS_PER_TIMEOUT = 4  # so that a stall is seen at most a quarter of the timeout late


@dataclass(slots=True)
class ProgressWatch:
    """Watches one operator. Looked at four times per timeout; ``since`` is the first look at which it had no excuse.

    An operator that waits for room in its output is excused: the one downstream is to blame.
    """

    timeout_s: float
    since: float | None = None
    acknowledged: int = 0

    def next_look(self, now: float) -> float:
        """When to look again at the latest."""
        return now + self.timeout_s / _LOOKS_PER_TIMEOUT

    def stalled(self, now: float, *, acknowledged: int, has_input: bool, waits_for_room: bool) -> bool:
        """Whether it has had input, and room for its output, and acknowledged nothing for the whole timeout."""
        if acknowledged != self.acknowledged or not has_input or waits_for_room:
            self.since, self.acknowledged = None, acknowledged
            return False
        if self.since is None:
            self.since = now  # the excuse may have ended at any moment since the last look
        return now - self.since >= self.timeout_s

    def restart(self) -> None:
        """A new instance has all its time before it."""
        self.since = None
