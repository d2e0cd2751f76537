"""A running graph at one moment, as frozen records: for progress lines, status tables and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator_adapter.channels.channel import EdgeStatistics
from orchestrator_adapter.channels.ledger import LedgerSnapshot
from orchestrator_adapter.graph.plan import Role
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.metrics import LatencySummary
from orchestrator_adapter.resilience.breaker import BreakerStatistics
from orchestrator_adapter.runtime.wiring import Slot
from orchestrator_adapter.storage.dead_letter import DeadLetterKind


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
        endless: It is a source that was declared to have no end of its own.
        exit: How its latest instance to end did so, in words; ``None`` before.
        ended_for_good: It will not run again.
        has_done_its_part: Those who read from it have all had what they wanted (see ``SupervisionPolicy.done_when``), so
            that its end is no loss.
        restarts: How often it was restarted.
        ingest_rate_per_s: Items that a source takes in a second, an exponentially weighted mean over the last 30 s;
            ``None`` for others, and before its first start.
        latency: Of a sink that measures it, ingest to acknowledgement.
        dead_letters: Its dead-lettered items, by kind; see ``DeadLetterWriter.counts``.
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
    endless: bool
    exit: str | None
    ended_for_good: bool
    has_done_its_part: bool
    restarts: int
    ingest_rate_per_s: float | None
    latency: LatencySummary | None
    dead_letters: Mapping[DeadLetterKind, int]
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
        shutting_down: Why the graph drains or has drained: who asked, or the end rule, or the verdict; ``None`` while it
            simply runs.
        verdict: Which operator brings the graph down, and why; ``None`` as long as none does.
        loop_lag_s: How late the event loop is, seconds; 0 where no watchdog runs.
        loop_stalls: How often it stood still for longer than the watchdog's threshold.
    """

    operators: tuple[OperatorStatus, ...]
    edges: Mapping[str, EdgeStatistics]
    ledger: LedgerSnapshot
    latency: LatencySummary | None
    breakers: Mapping[str, BreakerStatistics]
    restarts: int
    shutting_down: str | None
    verdict: str | None
    loop_lag_s: float
    loop_stalls: int


def operator_status(slot: Slot, clock: Clock, *, restarts: int) -> OperatorStatus:
    """One operator as it is now."""
    if slot.retired or slot.leaving:
        state = type(slot.exit).__name__.lower() if slot.exit is not None else "straggler"
    elif slot.restart_at is not None:
        state = "restarting"
    else:
        state = "running" if slot.task is not None and slot.task.is_alive() else "waiting"
    services, senders, now = slot.services, slot.ends.senders, clock.monotonic()
    last_item, rate = services.last_item_monotonic, services.ingest_rate
    return OperatorStatus(
        name=slot.name,
        role=slot.vertex.role,
        state=state,
        instance=slot.ends.instance,
        uptime_s=slot.task.uptime() if slot.task is not None else 0.0,
        consumed=slot.account.consumed,
        emitted=slot.account.emitted,
        idle_s=now - last_item if last_item is not None else None,
        endless=slot.vertex.endless,
        exit=str(slot.exit) if slot.exit is not None else None,
        ended_for_good=slot.retired,
        has_done_its_part=bool(senders) and all(sender.channel.reader_done for sender in senders),
        restarts=restarts,
        ingest_rate_per_s=rate.rate(now) if rate is not None else None,
        latency=services.latency.summary(),
        dead_letters=services.dead_letter_writer.counts(slot.name),
        counters=dict(services.counters),
    )
