"""Restart policies and budgets, as pure functions of (history, now).

Restart intensity as in OTP's ``supervisor.erl``: restarts older than the window no longer count, and the one that would
exceed the bound is refused.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum


class RestartKind(Enum):
    """Whether a failed operator is restarted."""

    NEVER = "never"
    ALWAYS = "always"
    BOUNDED = "bounded"


@dataclass(frozen=True, slots=True)
class Backoff:
    """A jittered wait before a restart: ``uniform(initial, min(cap, initial * 3**k))`` before the k-th in a row.

    After ``healthy_after`` of uptime the row starts over.
    """

    initial: timedelta
    cap: timedelta
    healthy_after: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        if not timedelta(0) < self.initial <= self.cap:
            raise ValueError(f"Backoff: expected 0 < initial <= cap, got initial={self.initial}, cap={self.cap}")

    def delay_s(self, row: int, rng: random.Random) -> float:
        """Seconds to wait before the ``row``-th restart in a row, counted from 1."""
        initial, cap = self.initial.total_seconds(), self.cap.total_seconds()
        return rng.uniform(initial, min(cap, initial * pow(3.0, min(row, 64))))


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """What is done when an operator fails operationally. Make one with ``never()``, ``always()`` or ``bounded(...)``."""

    kind: RestartKind
    max_restarts: int = 0
    window: timedelta = timedelta(0)
    backoff: Backoff | None = None

    @classmethod
    def never(cls) -> RestartPolicy:
        """The first failure exhausts the budget: for sinks whose integrity is at stake."""
        return cls(RestartKind.NEVER)

    @classmethod
    def always(cls, *, backoff: Backoff | None = None) -> RestartPolicy:
        """Restart however often it takes."""
        return cls(RestartKind.ALWAYS, backoff=backoff)

    @classmethod
    def bounded(cls, max_restarts: int, window: timedelta, *, backoff: Backoff | None = None) -> RestartPolicy:
        """Admit ``max_restarts`` in any sliding ``window`` of monotonic time; the next failure exhausts the budget."""
        if max_restarts < 1 or window <= timedelta(0):
            raise ValueError(
                f"RestartPolicy.bounded: expected max_restarts >= 1 and window > 0, got {max_restarts}, {window}"
            )
        return cls(RestartKind.BOUNDED, max_restarts, window, backoff)

    def __str__(self) -> str:
        text = str(self.kind.value)
        if self.kind is RestartKind.BOUNDED:
            text += f"({self.max_restarts}, {self.window.total_seconds():g} s)"
        if self.backoff is not None:
            text += f", backoff {self.backoff.initial.total_seconds():g}–{self.backoff.cap.total_seconds():g} s"
        return text


def admit(
    policy: RestartPolicy, charged: tuple[float, ...], now: float, *, begins_at: float
) -> tuple[bool, tuple[float, ...]]:
    """Whether one more restart is within the budget at ``now``, and the restarts that count from then on.

    ``charged`` are the monotonic times at which the restarts charged so far began, oldest first; this one is to begin at
    ``begins_at``, after its backoff. A restart exactly ``window`` old no longer counts. Without a bound nothing needs
    remembering.
    """
    if policy.kind is RestartKind.NEVER:
        return False, charged
    if policy.kind is RestartKind.ALWAYS:
        return True, ()
    recent = tuple(at for at in charged if now - at < policy.window.total_seconds())
    if len(recent) >= policy.max_restarts:
        return False, recent
    return True, (*recent, begins_at)


SOURCE_DEFAULT = RestartPolicy.bounded(5, timedelta(seconds=60))
STATELESS_DEFAULT = SOURCE_DEFAULT
STATEFUL_DEFAULT = RestartPolicy.bounded(3, timedelta(seconds=60))
SINK_DEFAULT = RestartPolicy.never()
