"""How runs may end, for tests of reports: a balanced ledger with every count, and each final event."""

from __future__ import annotations

from dataclasses import replace

from orchestrator_adapter.channels.ledger import LedgerSnapshot, LedgerViolation
from orchestrator_adapter.primitives.metrics import LatencySummary
from orchestrator_adapter.resilience.breaker import BreakerState, BreakerStatistics
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.supervision.events import Restarted, RestartHistory, RunFigures, Straggler, SupervisorEvent

BALANCED = LedgerSnapshot(10, 0, 0, 7, 1, 1, 0, 0, 0, 1, 0)
OPEN = BreakerStatistics(
    "archive", BreakerState.OPEN, forced=False, calls=5, failures=4, rejections=12, opened=2, open_s=31.5
)
FIGURES = RunFigures(
    restarts={"poll": RestartHistory(2, (Restarted("poll", 2, "OSError", 1.0, charged=True, backoff_s=0.0),))},
    exits={"poll": task_exit.Ok(), "log": task_exit.Aborted("SIGTERM")},
    stragglers=(),
    ledger=BALANCED,
    violations=(),
    undelivered=1,
    problems=("closing what 'log' kept: OSError",),
    latency=LatencySummary(7, 1.5, 2.5, 3.5),
    counters={"poll": {"polls": 3}},
    breakers={"archive": OPEN},
    elapsed_s=3.5,
)
STUCK = replace(FIGURES, stragglers=(Straggler("log", 1, "here"),))
UNBALANCED = replace(STUCK, ledger=replace(BALANCED, written=6))
VIOLATED = replace(FIGURES, violations=(LedgerViolation("map", 3, 2),))


def all_ok(figures: RunFigures = FIGURES) -> SupervisorEvent:
    return events.AllOk(figures)


def shut_down(figures: RunFigures = FIGURES) -> SupervisorEvent:
    return events.ShutDown(figures, "SIGTERM")


def exhausted(figures: RunFigures = FIGURES) -> SupervisorEvent:
    return events.BudgetExhausted(figures, "poll", ("OSError: down", "ValueError: no"), OSError("down"))


def panicked(figures: RunFigures = FIGURES) -> SupervisorEvent:
    return events.Panicked(figures, "map", ("KeyError: 'x'",), KeyError("x"), "Traceback", ("item",))
