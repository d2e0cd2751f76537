"""``Supervisor``: decides what follows from each exit. It touches no task; time is passed in.

``runtime`` carries the decisions out. One-for-one: an operator's failure concerns only that operator, until its budget is
used up or it panics. Then the whole graph comes down, because data that bypasses an operator is worse than no data.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, assert_never

from orchestrator_adapter.primitives.errors import (
    BlockingPoolExhausted,
    DeadLetterLimitExceeded,
    ReaderDone,
    ReaderGone,
    RetryCutShort,
    cause_chain,
    describe,
)
from orchestrator_adapter.supervision.events import (
    AllOk,
    BudgetExhausted,
    GraphPanicked,
    Restarted,
    RestartHistory,
    RunFigures,
    ShutDown,
    SupervisorEvent,
)
from orchestrator_adapter.supervision.restart import NeverRestart, RestartPolicy, admit, restarts_left
from orchestrator_adapter.supervision.task_exit import Aborted, Errored, Ok, Panicked, TaskExit


@dataclass(frozen=True, slots=True)
class CloseOutputs:
    """The operator has ended by itself: its readers will see the end of the stream. The others go on."""


@dataclass(frozen=True, slots=True)
class Restart:
    """Start the next instance, after ``restarted.backoff_s``."""

    restarted: Restarted


@dataclass(frozen=True, slots=True)
class Exhausted:
    """The budget is used up, or no restart can help: tear the graph down."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Escalate:
    """A bug: never restarted, tear the graph down at once."""

    panicked: Panicked


@dataclass(frozen=True, slots=True)
class Ignore:
    """The operator's budget is used up, or it panicked, and its policy ignores that: the graph goes on without it."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class NoAction:
    """The exit is recorded, and nothing follows from it."""


@dataclass(frozen=True, slots=True)
class TeardownCause:
    """Which operator brings the graph down, why, and the items that it had leased at a panic (for people)."""

    decision: Exhausted | Escalate
    operator: str
    leased: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The name of the event that will follow."""
        return GraphPanicked.name if isinstance(self.decision, Escalate) else BudgetExhausted.name

    @property
    def cause(self) -> str:
        """In one line."""
        match self.decision:
            case Exhausted(error):
                return describe(error)
            case Escalate(panicked):
                return panicked.message

    def __str__(self) -> str:
        return f"operator {self.operator!r} brings the graph down ({self.kind}): {self.cause}"


def name_event(figures: RunFigures, teardown: TeardownCause | None, stopped_because: str | None) -> SupervisorEvent:
    """The event of a run: by its teardown cause, else by the request to stop (``stopped_because``), else ``AllOk``."""
    if teardown is None:
        return AllOk(figures) if stopped_because is None else ShutDown(figures, stopped_because)
    match teardown.decision:
        case Exhausted(error):
            return BudgetExhausted(figures, teardown.operator, cause_chain(error), error)
        case Escalate(panicked):
            chain = cause_chain(panicked.error)
            return GraphPanicked(figures, teardown.operator, chain, panicked.error, panicked.traceback, teardown.leased)


_REMEMBERED = 100  # restarts kept in full per operator; older ones are only counted, so that memory stays flat

Action: TypeAlias = CloseOutputs | Restart | Exhausted | Escalate | Ignore | NoAction
"""What follows from an exit."""


@dataclass(slots=True)
class _Operator:
    policy: RestartPolicy
    is_source: bool
    charged: tuple[float, ...] = ()
    consecutive_restarts: int = 0  # since the last healthy time
    charged_since_last_pill: bool = False  # the last restart was charged and removed no pill: it pays for the next pill
    restarts: int = 0
    recent: deque[Restarted] = field(default_factory=lambda: deque(maxlen=_REMEMBERED))


class Supervisor:
    """Decides what follows from each exit. Keeps every operator's restart history, and no other state."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._operators: dict[str, _Operator] = {}

    def watch(self, operator: str, policy: RestartPolicy, *, is_source: bool) -> None:
        """Add ``operator``, with its whole budget."""
        self._operators[operator] = _Operator(policy, is_source)

    @property
    def restarts(self) -> Mapping[str, RestartHistory]:
        """The restart history of each operator that was restarted."""
        return {
            name: RestartHistory(operator.restarts, tuple(operator.recent))
            for name, operator in self._operators.items()
            if operator.restarts
        }

    def restart_count(self, operator: str) -> int:
        """How often ``operator`` was restarted."""
        return self._operators[operator].restarts

    def restarts_left(self, operator: str, now: float) -> int | None:
        """How many more restarts of ``operator`` are within its budget at ``now``; ``None`` without a limit."""
        watched = self._operators[operator]
        return restarts_left(watched.policy, watched.charged, now)

    def decide(
        self,
        operator: str,
        exit_: TaskExit,
        *,
        instance: int,
        now: float,
        uptime_s: float,
        quarantined: int = 0,
        draining: bool = False,
        aborting: bool = False,
    ) -> Action:
        """What follows from ``exit_`` at monotonic time ``now``.

        ``quarantined`` is the number of poison pills that this exit removed from the operator's input after a redelivery.
        Such a restart is not charged if one was charged since the last pill. While ``draining``, sources are not restarted;
        while ``aborting``, nothing is restarted. An operator whose readers are all done is never restarted. A reader that
        has ended, too many dead letters and an exhausted blocking pool exhaust the budget at once: a restart would not help.
        If the operator's policy ignores failures, no exit brings the graph down.
        """
        match exit_:
            case Ok():
                return CloseOutputs()
            case Aborted():
                return NoAction()
            case Panicked():
                return Ignore(exit_.error) if self._operators[operator].policy.ignores else Escalate(exit_)
            case Errored() if aborting:
                return NoAction()
            case Errored(error):
                return self._errored(operator, error, instance, now, uptime_s, quarantined > 0, draining)
            case _:
                assert_never(exit_)

    def _errored(
        self,
        name: str,
        error: BaseException,
        instance: int,
        now: float,
        uptime_s: float,
        pill_removed: bool,  # noqa: FBT001 - private, and called once
        draining: bool,  # noqa: FBT001 - as above
    ) -> Action:
        operator = self._operators[name]
        reader_gone = contains(error, ReaderGone)
        if draining and (operator.is_source or reader_gone or consists_only_of(error, RetryCutShort)):
            return NoAction()  # it would have ended anyway; the runtime dead-letters what it could not deliver
        if consists_only_of(error, ReaderDone):
            return NoAction()
        if reader_gone or contains(error, DeadLetterLimitExceeded) or contains(error, BlockingPoolExhausted):
            return _exhausted(operator.policy, error)
        backoff, consecutive, delay_s = operator.policy.backoff, 0, 0.0
        if backoff is not None:
            consecutive = 1 if uptime_s >= backoff.healthy_after.total_seconds() else operator.consecutive_restarts + 1
            delay_s = backoff.delay_s(consecutive, self._rng)
        free = pill_removed and operator.charged_since_last_pill and not isinstance(operator.policy.rule, NeverRestart)
        if not free:
            admitted, operator.charged = admit(operator.policy, operator.charged, now, begins_at=now + delay_s)
            if not admitted:
                return _exhausted(operator.policy, error)
        operator.consecutive_restarts = consecutive
        # A pill costs one restart, not two: the failure that made it a suspect is charged, its quarantine is not. If one
        # batch has several pills, only the first one had such a failure; the quarantine of each other pill is charged.
        operator.charged_since_last_pill = not pill_removed
        restarted = Restarted(name, instance + 1, describe(error), now, not free, delay_s)
        operator.restarts += 1
        operator.recent.append(restarted)
        return Restart(restarted)


def is_restartable(exit_: TaskExit, *, draining: bool) -> bool:
    """Whether another instance may follow. If not, the failure is not the fault of the leased items."""
    if not isinstance(exit_, Errored):
        return False
    if contains(exit_.error, ReaderGone) or contains(exit_.error, BlockingPoolExhausted):
        return False
    return not (draining and consists_only_of(exit_.error, RetryCutShort))


def _exhausted(policy: RestartPolicy, error: BaseException) -> Exhausted | Ignore:
    return Ignore(error) if policy.ignores else Exhausted(error)


def contains(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether ``error`` is of that kind, or a group that contains an error of that kind."""
    if isinstance(error, BaseExceptionGroup):
        return any(contains(member, kind) for member in error.exceptions)
    return isinstance(error, kind)


def consists_only_of(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether ``error`` is of that kind, or a group that contains only errors of that kind."""
    if isinstance(error, BaseExceptionGroup):
        return all(consists_only_of(member, kind) for member in error.exceptions)
    return isinstance(error, kind)
