"""The report as JSON and the process's exit code: pure functions of the ``SupervisorEvent``."""

from __future__ import annotations

import json
from enum import IntEnum
from pathlib import Path
from typing import Any

from orchestrator_adapter.resilience.breaker import BreakerStatistics
from orchestrator_adapter.storage.durable import write_durably
from orchestrator_adapter.supervision import events
from orchestrator_adapter.supervision.events import SupervisorEvent

REPORT_VERSION = 1


class ExitCode(IntEnum):
    """The exit code of a process that ran a graph. If several apply, the highest counts."""

    OK = 0
    """``AllOk`` or ``ShutDown``: every item is accounted for."""
    FAILED = 1
    """The run did not start: settings, graph, claims, dead-letter store. What an operator cannot open is a restart instead."""
    USAGE = 2
    """The command line is wrong."""
    BUDGET_EXHAUSTED = 3
    PANICKED = 4
    STRAGGLERS = 5
    """An operator did not stop after the abort."""
    LEDGER_VIOLATION = 6
    """Items are unaccounted for: a bug of an operator or of the orchestrator."""


def exit_code(event: SupervisorEvent) -> ExitCode:
    """The exit code of ``event``; the most severe condition decides."""
    if not event.figures.ledger_holds:
        return ExitCode.LEDGER_VIOLATION
    if event.figures.stragglers:
        return ExitCode.STRAGGLERS
    match event:
        case events.Panicked():
            return ExitCode.PANICKED
        case events.BudgetExhausted():
            return ExitCode.BUDGET_EXHAUSTED
        case events.ShutDown() | events.AllOk():
            return ExitCode.OK


def cause(event: SupervisorEvent) -> str | None:
    """In one line, the operator that brought the graph down and why, or who requested the shutdown; ``None`` for ``AllOk``."""
    match event:
        case events.AllOk():
            return None
        case events.ShutDown(_, reason):
            return reason
        case events.BudgetExhausted(_, operator, chain) | events.Panicked(_, operator, chain):
            return f"{operator}: {' <- '.join(chain)}"


def report(event: SupervisorEvent) -> dict[str, Any]:
    """The report as plain JSON values, with units in the names."""
    figures = event.figures
    latency = figures.latency
    elapsed_s = figures.elapsed_s
    return {
        "report_version": REPORT_VERSION,
        "event": event.name,
        "cause": cause(event),
        "ledger": figures.ledger.as_dict(),
        "ledger_holds": figures.ledger_holds,
        "signals": figures.signals.as_dict(),
        "ledger_violations": [str(violation) for violation in figures.violations],
        "restarts": {operator: history.total for operator, history in figures.restarts.items()},
        "exits": {operator: str(exit_) for operator, exit_ in figures.exits.items()},
        "stragglers": [
            {"operator": straggler.operator, "instance": straggler.instance, "stack": straggler.stack}
            for straggler in figures.stragglers
        ],
        "undelivered": figures.undelivered,
        "problems": list(figures.problems),
        "latency_ms": {
            "p50": latency.p50_ms if latency else None,
            "p99": latency.p99_ms if latency else None,
            "max": latency.max_ms if latency else None,
        },
        "throughput_per_s": figures.ledger.written / elapsed_s if elapsed_s > 0 else 0.0,
        "elapsed_s": elapsed_s,
        "loop_stalls": figures.loop_stalls,
        "max_loop_lag_s": figures.max_loop_lag_s,
        "counters": {operator: dict(counters) for operator, counters in figures.counters.items()},
        "breakers": {name: _breaker(breaker) for name, breaker in figures.breakers.items()},
        "exit_code": int(exit_code(event)),
    }


def _breaker(breaker: BreakerStatistics) -> dict[str, Any]:
    return {
        "state": breaker.state.label,
        "forced": breaker.forced,
        "opened": breaker.opened,
        "open_s": breaker.open_s,
        "rejections": breaker.rejections,
    }


def write_report(event: SupervisorEvent, path: Path) -> None:
    """Write the report to ``path``, atomically and durably. Raises ``OSError``."""
    write_durably(path, json.dumps(report(event), indent=2) + "\n")
