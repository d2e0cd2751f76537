"""How a run ended: ``events.AllOk``, ``.ShutDown``, ``.BudgetExhausted``, ``.Panicked``; and the records that hooks receive.

Frozen values only: ``supervisor`` decides which event, and ``runtime`` fills it in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

from orchestrator_adapter.channels.ledger import LedgerSnapshot, LedgerViolation, SignalsSnapshot
from orchestrator_adapter.primitives.metrics import LatencySummary
from orchestrator_adapter.resilience.breaker import BreakerStatistics
from orchestrator_adapter.supervision.task_exit import TaskExit


@dataclass(frozen=True, slots=True)
class Restarted:
    """One restart: the instance that it started, its cause, its time (monotonic seconds), and whether it was charged."""

    operator: str
    instance: int
    cause: str
    at_monotonic: float
    charged: bool
    backoff_s: float


@dataclass(frozen=True, slots=True)
class RestartHistory:
    """The number of an operator's restarts, and the most recent ones (at most 100), oldest first."""

    total: int
    recent: tuple[Restarted, ...]


@dataclass(frozen=True, slots=True)
class Straggler:
    """A task that did not stop when asked to: its operator, its instance and its stack."""

    operator: str
    instance: int
    stack: str


@dataclass(frozen=True, slots=True)
class RunFigures:
    """The figures that every event carries.

    Attributes:
        restarts: The restart history of each operator that was restarted.
        exits: How the last instance of each operator ended. Stragglers are missing.
        stragglers: Tasks that did not stop.
        ledger: The ledger at the end.
        violations: Operators whose ledger does not balance.
        undelivered: Items that were left in edges at the end; they went to the dead letters as ``Undelivered``.
        problems: Failures while closing resources, as sentences.
        latency: From ingest to acknowledgement, by the sinks that measured it.
        counters: The counters and gauges of each operator.
        breakers: Every circuit breaker at the end, by name.
        elapsed_s: Seconds from the first spawn to the end.
        loop_stalls: How often the event loop was blocked for longer than the watchdog's threshold.
        max_loop_lag_s: The longest such time, seconds.
        signals: The control items, which the ledger does not count.
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
    signals: SignalsSnapshot = field(default_factory=SignalsSnapshot)

    @property
    def ledger_holds(self) -> bool:
        """Whether the equation balances, for the graph and for every operator, and that of the control items for the graph."""
        return self.ledger.balanced and self.signals.balanced and not self.violations


@dataclass(frozen=True, slots=True)
class AllOk:
    """Every operator ended by itself."""

    name: ClassVar = "AllOk"

    figures: RunFigures


@dataclass(frozen=True, slots=True)
class ShutDown:
    """The graph was asked to stop (``reason`` says by what) and drained."""

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
    """``operator`` has a bug. ``leased`` are the items that it had leased; they went to the dead letters."""

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
    """For ``on_spawn``: an instance has started. ``restarted`` is set from the second instance on."""

    operator: str
    instance: int
    role: str
    upstream: tuple[str, ...]
    restarted: Restarted | None


@dataclass(frozen=True, slots=True)
class Exited:
    """For ``on_exit``: an instance has ended after ``uptime_s`` seconds; ``exit`` says how."""

    operator: str
    instance: int
    exit: TaskExit
    uptime_s: float


@dataclass(frozen=True, slots=True)
class Escalated:
    """For ``on_escalate``: ``operator`` brings the graph down; ``kind`` is the name of the event that will follow."""

    operator: str
    kind: str
    cause: str


@dataclass(frozen=True, slots=True)
class ShuttingDown:
    """For ``on_shutdown``: ``phase`` 1 drains within ``grace_s``, 2 aborts, 3 names stragglers."""

    phase: int
    reason: str
    grace_s: float


@dataclass(frozen=True, slots=True)
class Decided:
    """For ``on_decision``: a decision, as it is logged.

    Attributes:
        decision: A value of ``Decision``.
        fields: The names and values of its log line.
    """

    decision: str
    fields: Mapping[str, object]

    @property
    def operator(self) -> str | None:
        """The operator that the decision concerns; ``None`` if it concerns the graph."""
        operator = self.fields.get("operator")
        return operator if isinstance(operator, str) and operator else None


@dataclass(frozen=True, slots=True)
class SupervisionHooks:
    """Callbacks that report what happens. Each receives one frozen record, on the loop.

    ``on_decision`` receives every decision; the others receive some decisions again, as records of their own. A stall of the
    loop is reported on the watchdog's thread, while the loop is blocked. What a hook raises is logged and changes nothing.
    A hook must not block: the data plane waits for it.

    ``context_for`` is called before an instance starts, and returns the ``contextvars.Context`` in which the instance runs,
    with the tasks and blocking calls that it starts. ``None``, and a hook that raises: a copy of the context of ``run()``.
    Return a new one for each instance.
    """

    on_spawn: Callable[[Spawned], object] | None = None
    on_exit: Callable[[Exited], object] | None = None
    on_restart: Callable[[Restarted], object] | None = None
    on_escalate: Callable[[Escalated], object] | None = None
    on_shutdown: Callable[[ShuttingDown], object] | None = None
    on_decision: Callable[[Decided], object] | None = None
    context_for: Callable[[Spawned], Context | None] | None = None
