"""Restart policies and budgets, as pure functions of (history, now).

Restart intensity as in OTP's ``supervisor.erl``: restarts older than the window do not count, and the restart that would
exceed the bound is rejected.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, TypeAlias, assert_never

from orchestrator_adapter.primitives.check_fields import check_fields


@dataclass(frozen=True, slots=True)
class Backoff:
    """A jittered delay: ``uniform(initial, min(cap, initial * 3**k))`` before the k-th consecutive restart.

    After ``healthy_after`` of uptime the count of consecutive restarts starts over.
    """

    initial: timedelta
    cap: timedelta
    healthy_after: timedelta = timedelta(seconds=30)

    def __post_init__(self) -> None:
        in_order = timedelta(0) < self.initial <= self.cap
        check_fields(
            "Backoff",
            ("initial", self.initial, in_order, f"> 0 and <= cap ({self.cap!r})"),
            ("healthy_after", self.healthy_after, self.healthy_after > timedelta(0), "> 0"),
        )

    def delay_s(self, consecutive: int, rng: random.Random) -> float:
        """Seconds to wait before the ``consecutive``-th restart, counted from 1."""
        initial, cap = self.initial.total_seconds(), self.cap.total_seconds()
        return rng.uniform(initial, min(cap, initial * pow(3.0, min(consecutive, 64))))


DEFAULT_BACKOFF = Backoff(timedelta(milliseconds=50), timedelta(seconds=5))


@dataclass(frozen=True, slots=True)
class NeverRestart:
    """A failed operator is not restarted."""

    name: ClassVar = "never"
    backoff: ClassVar[Backoff | None] = None

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class AlwaysRestart:
    """A failed operator is restarted every time."""

    name: ClassVar = "always"
    backoff: Backoff | None = DEFAULT_BACKOFF

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class BoundedRestart:
    """A failed operator is restarted at most ``max_restarts`` times in any sliding ``window``."""

    name: ClassVar = "bounded"
    max_restarts: int
    window: timedelta
    backoff: Backoff | None = DEFAULT_BACKOFF

    def __post_init__(self) -> None:
        check_fields(
            "RestartPolicy.bounded",
            ("max_restarts", self.max_restarts, self.max_restarts >= 1, ">= 1"),
            ("window", self.window, self.window > timedelta(0), "> 0"),
        )

    def __str__(self) -> str:
        return f"{self.name}({self.max_restarts}, {self.window.total_seconds():g} s)"


RestartRule: TypeAlias = NeverRestart | AlwaysRestart | BoundedRestart
"""When a failed operator is restarted."""


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """What happens when an operator fails. Make one with ``never()``, ``always()``, ``bounded(...)`` or ``ignore(...)``.

    Each restart waits for a ``backoff``, 50 ms to 5 s by default. ``backoff=None`` restarts at once: a failure that repeats
    at once then uses up a budget within milliseconds, or keeps the event loop busy.
    """

    rule: RestartRule
    ignores: bool = False

    @classmethod
    def never(cls) -> RestartPolicy:
        """The first failure exhausts the budget: for sinks whose integrity is at stake."""
        return cls(NeverRestart())

    @classmethod
    def always(cls, *, backoff: Backoff | None = DEFAULT_BACKOFF) -> RestartPolicy:
        """Restart after every failure."""
        return cls(AlwaysRestart(backoff))

    @classmethod
    def bounded(
        cls, max_restarts: int, window: timedelta, *, backoff: Backoff | None = DEFAULT_BACKOFF
    ) -> RestartPolicy:
        """Admit ``max_restarts`` in any sliding ``window`` of monotonic time; the next failure exhausts the budget."""
        return cls(BoundedRestart(max_restarts, window, backoff))

    @classmethod
    def ignore(cls, restarts: RestartPolicy | None = None) -> RestartPolicy:
        """For an operator that the pipeline can do without, such as a metrics exporter beside the stream.

        It is restarted as ``restarts`` says (by default never). The failure that its budget does not admit, and a panic,
        end this operator only, and the graph goes on:

        - The items that it had leased and those that wait for it are dead-lettered.
        - Later items for it are shed at its input edges and counted there; the other branches of a fan-out go on.
        - Its outputs end: their readers receive the end of the stream.

        The failure is logged as ``ignored`` and is a problem of the run's report. The run's event and exit code do not
        change. An operator that returns before its input has ended is treated alike, and is no problem of the report. One
        that hangs and does not stop when it is aborted ends the graph as under any policy, because its code still runs.
        """
        return cls((restarts or cls.never()).rule, ignores=True)

    @property
    def backoff(self) -> Backoff | None:
        """The delay before a restart; ``None`` for none."""
        return self.rule.backoff

    def __str__(self) -> str:
        """The rule, the backoff if it is not the default, and whether the last failure is ignored."""
        text, backoff = str(self.rule), self.rule.backoff
        if backoff is not None and backoff != DEFAULT_BACKOFF:
            text += f", backoff {backoff.initial.total_seconds():g}–{backoff.cap.total_seconds():g} s"
        elif backoff is None and not isinstance(self.rule, NeverRestart):
            text += ", no backoff"
        return f"{text}, then ignored" if self.ignores else text


def admit(
    policy: RestartPolicy, charged: tuple[float, ...], now: float, *, begins_at: float
) -> tuple[bool, tuple[float, ...]]:
    """Whether one more restart is within the budget at ``now``, and the restarts that count from then on.

    ``charged`` are the monotonic times at which the restarts charged so far began, oldest first. This one will begin at
    ``begins_at``, after its backoff. A restart exactly ``window`` old does not count. Without a bound the history is empty.
    """
    match policy.rule:
        case NeverRestart():
            return False, charged
        case AlwaysRestart():
            return True, ()
        case BoundedRestart(max_restarts, window):
            recent = tuple(at for at in charged if now - at < window.total_seconds())
            if len(recent) >= max_restarts:
                return False, recent
            return True, (*recent, begins_at)
        case _:
            assert_never(policy.rule)


def restarts_left(policy: RestartPolicy, charged: tuple[float, ...], now: float) -> int | None:
    """How many more restarts ``admit`` would admit at ``now``, one after the other; ``None`` without a limit."""
    match policy.rule:
        case NeverRestart():
            return 0
        case AlwaysRestart():
            return None
        case BoundedRestart(max_restarts, window):
            return max_restarts - sum(now - at < window.total_seconds() for at in charged)
        case _:
            assert_never(policy.rule)


SOURCE_DEFAULT = RestartPolicy.bounded(5, timedelta(seconds=60))
STATELESS_DEFAULT = SOURCE_DEFAULT
STATEFUL_DEFAULT = RestartPolicy.bounded(3, timedelta(seconds=60))
SINK_DEFAULT = RestartPolicy.never()
