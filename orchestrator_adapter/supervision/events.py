"""How a run ended: ``events.AllOk``, ``.ShutDown``, ``.BudgetExhausted``, ``.Panicked``; and the records told on the way.

Frozen values only; ``supervisor`` decides them and ``runtime`` fills them in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from orchestrator_adapter.channels.ledger import LedgerSnapshot, LedgerViolation
from orchestrator_adapter.primitives.metrics import LatencySummary
from orchestrator_adapter.resilience.breaker import BreakerStatistics
from orchestrator_adapter.supervision.task_exit import TaskExit


@dataclass(frozen=True, slots=True)
class Restarted:
    """One restart: the instance it started, why, when (monotonic seconds), and whether the budget was charged."""

    operator: str
    instance: int
    cause: str
    at_monotonic: float
    charged: bool
    backoff_s: float


@dataclass(frozen=True, slots=True)
class RestartHistory:
    """How often an operator was restarted, and its most recent restarts (at most 100), oldest first."""

    total: int
    recent: tuple[Restarted, ...]


@dataclass(frozen=True, slots=True)
class Straggler:
    """A task that was asked to stop and did not: its operator, its instance and where it hangs."""

    operator: str
    instance: int
    stack: str


@dataclass(frozen=True, slots=True)
class RunFigures:
    """What every event carries, however the run ended.

    Attributes:
        restarts: Per operator that was restarted, how often and why.
        exits: Per operator, how its last instance ended; operators that are stragglers are missing.
        stragglers: Tasks that would not stop.
        ledger: The ledger at the end.
        violations: Operators whose books did not close.
        undelivered: Items found in edges at the end; they went to the dead letters as ``Undelivered``.
        problems: What went wrong while closing resources, in words.
        latency: Ingest to acknowledgement by the sinks that measured it.
        counters: Per operator, the figures of its own that it counted.
        breakers: By name, every circuit breaker as it was at the end.
        elapsed_s: Seconds from the first spawn to the end.
        loop_stalls: How often the event loop stood still for longer than the watchdog's threshold.
        max_loop_lag_s: The longest that it did.
    """

    restarts: Mapping[str, RestartHistory]
    exits: Mapping[str, TaskExit]
    stragglers: tuple[Straggler, ...]
    ledger: LedgerSnapshot
    violations: tuple[LedgerViolation, ...]
    undelivered: int
    problems: tuple[str, ...]
    latency: LatencySummary | None
    counters: Mapping[str, Mapping[str, int]]
    breakers: Mapping[str, BreakerStatistics]
    elapsed_s: float
    loop_stalls: int = 0
    max_loop_lag_s: float = 0.0

    @property
    def ledger_holds(self) -> bool:
        """The equation balances and every operator's books closed."""
        return self.ledger.balanced and not self.violations


@dataclass(frozen=True, slots=True)
class AllOk:
    """Every operator ended by itself."""

    name: ClassVar = "AllOk"

    figures: RunFigures


@dataclass(frozen=True, slots=True)
class ShutDown:
    """The graph was asked to stop (``reason`` says by whom) and drained."""

    name: ClassVar = "ShutDown"
    figures: RunFigures
    reason: str


@dataclass(frozen=True, slots=True)
class BudgetExhausted:
    """``operator`` failed once more than its policy admits; ``chain`` is its last error with its causes."""

    name: ClassVar = "BudgetExhausted"
    figures: RunFigures
    operator: str
    chain: tuple[str, ...]
    error: BaseException


@dataclass(frozen=True, slots=True)
class GraphPanicked:
    """``operator`` has a bug. ``leased`` are the items it held; they went to the dead letters."""

    name: ClassVar = "Panicked"
    figures: RunFigures
    operator: str
    chain: tuple[str, ...]
    error: BaseException
    traceback: str
    leased: tuple[str, ...]


SupervisorEvent: TypeAlias = AllOk | ShutDown | BudgetExhausted | GraphPanicked
"""How a run ended. The ``name`` of each is what reports, logs and Prefect call it."""

Panicked = GraphPanicked
"""The specification's name for it."""


@dataclass(frozen=True, slots=True)
class Spawned:
    """Told to ``on_spawn``: an instance has started. ``restarted`` is set from the second instance on."""

    operator: str
    instance: int
    role: str
    upstream: tuple[str, ...]
    restarted: Restarted | None


@dataclass(frozen=True, slots=True)
class Exited:
    """Told to ``on_exit``: an instance has ended, this way, after ``uptime_s`` seconds."""

    operator: str
    instance: int
    exit: TaskExit
    uptime_s: float


@dataclass(frozen=True, slots=True)
class Escalated:
    """Told to ``on_escalate``: ``operator`` brings the graph down; ``kind`` is the event's name to come."""

    operator: str
    kind: str
    cause: str


@dataclass(frozen=True, slots=True)
class ShuttingDown:
    """Told to ``on_shutdown``: ``phase`` 1 drains within ``grace_s``, 2 aborts, 3 names stragglers."""

    phase: int
    reason: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class Decided:
    """Told to ``on_decision``: exactly what is logged as one line. ``fields`` has the names and values of that line."""

    decision: str
    fields: Mapping[str, object]

    @property
    def operator(self) -> str | None:
        """Whom it is about; ``None`` where it is about the graph."""
        operator = self.fields.get("operator")
        return operator if isinstance(operator, str) and operator else None


@dataclass(frozen=True, slots=True)
class SupervisionHooks:
    """Callbacks for whoever reports what happens; each gets one frozen record, on the loop.

    ``on_decision`` is told every decision, the others again with what they need of it; a stall of the loop is told on the
    watchdog's thread, while the loop stands still. A hook that raises is logged and changes nothing. A hook must not
    block: the data plane waits for it.
    """

    on_spawn: Callable[[Spawned], object] | None = None
    on_exit: Callable[[Exited], object] | None = None
    on_restart: Callable[[Restarted], object] | None = None
    on_escalate: Callable[[Escalated], object] | None = None
    on_shutdown: Callable[[ShuttingDown], object] | None = None
    on_decision: Callable[[Decided], object] | None = None
