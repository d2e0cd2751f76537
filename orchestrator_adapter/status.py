"""A running graph at one moment, as frozen records: for progress lines, status tables and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator_adapter.breaker import BreakerStatistics
from orchestrator_adapter.channel import EdgeStatistics
from orchestrator_adapter.clock import Clock
from orchestrator_adapter.ledger import LedgerSnapshot
from orchestrator_adapter.metrics import LatencySummary
from orchestrator_adapter.plan import Role
from orchestrator_adapter.wiring import Slot


@dataclass(frozen=True, slots=True)
class OperatorStatus:
    """One operator at one moment.

    Attributes:
        name: The operator.
        role: What it is.
        state: ``waiting`` (not started), ``running``, ``restarting``, or how it ended: ``ok``, ``errored``, ``panicked``,
            ``aborted``, ``straggler``.
        instance: Which instance, counted from 1; 0 before the first.
        uptime_s: Of this instance, seconds.
        consumed: Items acknowledged, ever.
        emitted: Items sent on, ever.
        idle_s: Seconds since a source took in its last item; ``None`` for others, and before the first.
        ended_for_good: It will not run again.
        counters: The figures of its own that it counts.
    """

    name: str
    role: Role
    state: str
    instance: int
    uptime_s: float
    consumed: int
    emitted: int
    idle_s: float | None
    ended_for_good: bool
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class GraphStatus:
    """A running graph at one moment.

    Attributes:
        operators: In topological order.
        edges: By edge id.
        ledger: As it stands.
        latency: Ingest to acknowledgement by the sinks that measure it.
        breakers: By name.
        restarts: Of all operators together.
        loop_lag_s: How late the event loop is, seconds; 0 where no watchdog runs.
        loop_stalls: How often it stood still for longer than the watchdog's threshold.
    """

    operators: tuple[OperatorStatus, ...]
    edges: Mapping[str, EdgeStatistics]
    ledger: LedgerSnapshot
    latency: LatencySummary | None
    breakers: Mapping[str, BreakerStatistics]
    restarts: int
    loop_lag_s: float
    loop_stalls: int


def operator_status(slot: Slot, clock: Clock) -> OperatorStatus:
    """One operator as it is now."""
    if slot.retired or slot.leaving:
        state = type(slot.exit).__name__.lower() if slot.exit is not None else "straggler"
    elif slot.restart_at is not None:
        state = "restarting"
    else:
        state = "running" if slot.task is not None and slot.task.is_alive() else "waiting"
    last_item = slot.services.last_item_monotonic
    return OperatorStatus(
        name=slot.name,
        role=slot.vertex.role,
        state=state,
        instance=slot.ends.instance,
        uptime_s=slot.task.uptime() if slot.task is not None else 0.0,
        consumed=slot.account.consumed,
        emitted=slot.account.emitted,
        idle_s=clock.monotonic() - last_item if last_item is not None else None,
        ended_for_good=slot.retired,
        counters=dict(slot.services.counters),
    )
