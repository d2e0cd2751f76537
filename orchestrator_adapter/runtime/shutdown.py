"""``Shutdown``: where the two-phase shutdown stands, as a frozen value that time and requests advance.

Knows no task, clock or operator: ``supervision_loop`` acts on the phases.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum


class Phase(IntEnum):
    """The phases of a shutdown, as the specification numbers them."""

    RUNNING = 0
    DRAINING = 1
    """Sources stop; every other operator runs until its input ends."""
    ABORTING = 2
    """What still runs is cancelled."""
    ABANDONING = 3
    """What still runs is named as a straggler."""


@dataclass(frozen=True, slots=True)
class Shutdown:
    """The state of a shutdown.

    Attributes:
        phase: The current phase.
        reason: Why the graph drains.
        deadline: When the current phase ends, monotonic seconds; ``None`` while running.
        requested: A shutdown was requested. A drain can also start by itself (a teardown, or the end rule).
        done: The end rule started the drain: it was not requested, and nothing failed.
    """

    phase: Phase = Phase.RUNNING
    reason: str = ""
    deadline: float | None = None
    requested: bool = False
    done: bool = False

    def drain(self, reason: str, now: float, *, grace_s: float, done: bool = False) -> Shutdown:
        """Start the drain, unless it has started already."""
        if self.phase is not Phase.RUNNING:
            return self
        return replace(self, phase=Phase.DRAINING, reason=reason, deadline=now + grace_s, done=done)

    def request(self, reason: str, now: float, *, grace_s: float) -> Shutdown:
        """A request to stop. The first one starts the drain; a second one during the drain ends its grace period now."""
        requested = replace(self, requested=True)
        if self.phase is Phase.RUNNING:
            return requested.drain(reason, now, grace_s=grace_s)
        if self.phase is Phase.DRAINING and self.requested:
            return replace(requested, deadline=now)
        return requested

    def advance(self, now: float, *, patience_s: float) -> Shutdown:
        """The next phase, if the deadline of this one has passed; it lasts ``patience_s``."""
        if self.next_deadline is None or now < self.next_deadline:
            return self
        return replace(self, phase=Phase(self.phase + 1), deadline=now + patience_s)

    @property
    def next_deadline(self) -> float | None:
        """When ``advance`` will change the phase; ``None`` if no phase follows."""
        return self.deadline if self.phase < Phase.ABANDONING else None

    def drain_left_s(self, now: float, *, at_least_s: float) -> float:
        """How long the drain's grace period still lasts, seconds; ``at_least_s`` if that is longer, and outside a drain."""
        if self.phase is not Phase.DRAINING or self.deadline is None:
            return at_least_s
        return max(at_least_s, self.deadline - now)

    @property
    def stopped_because(self) -> str | None:
        """Why the run was stopped; ``None`` if it was not, or ended by the end rule."""
        return None if self.phase is Phase.RUNNING or self.done else self.reason
