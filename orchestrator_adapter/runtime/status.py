"""A running graph at one moment, as frozen records: for progress lines, status tables and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import assert_never

from orchestrator_adapter.channels.channel import EdgeStatistics
from orchestrator_adapter.channels.ledger import LedgerSnapshot, SignalsSnapshot
from orchestrator_adapter.graph.plan import Role
from orchestrator_adapter.operators.blocking import BlockingPoolStatistics
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.errors import LastError
from orchestrator_adapter.primitives.metrics import LatencyFigures, LatencySummary, merged
from orchestrator_adapter.resilience.breaker import BreakerStatistics
from orchestrator_adapter.runtime.operator_run import OperatorRun, OperatorState
from orchestrator_adapter.storage.dead_letter import DeadLetterKind
from orchestrator_adapter.supervision.restart import BoundedRestart, NeverRestart, RestartPolicy
from orchestrator_adapter.supervision.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class OperatorTimes:
    """What the instances of an operator have done with their time so far, seconds.

    Attributes:
        alive_s: An instance ran, or after its end a task that delivered what it had sent.
        idle_s: It waited for input.
        blocked_s: It waited for space in its outputs.
    """

    alive_s: float = 0.0
    idle_s: float = 0.0
    blocked_s: float = 0.0

    @property
    def busy_s(self) -> float:
        """The rest: it worked, or waited for what it has called. For a source this includes the wait for its feed."""
        return max(0.0, self.alive_s - self.idle_s - self.blocked_s)


@dataclass(frozen=True, slots=True)
class RestartBudget:
    """Restarts that an operator has left, of how many, within which time (seconds). ``None``: no limit."""

    left: int | None = None
    of: int | None = None
    window_s: float | None = None


@dataclass(frozen=True, slots=True)
class OperatorStatus:
    """One operator at one moment.

    Attributes:
        name: The operator.
        role: What it is.
        state: ``waiting`` (not started), ``running``, ``paused``, ``restarting``, or how it ended: ``ok``, ``errored``, ``panicked``,
            ``aborted``, ``straggler``.
        instance: Which instance, counted from 1; 0 before the first.
        uptime_s: How long this instance has run, seconds.
        consumed: Items acknowledged so far, by every instance.
        emitted: Items emitted so far, by every instance.
        idle_s: Seconds since a source ingested its last item; ``None`` for other roles, and before the first item.
        endless: It is a source that was declared as endless.
        exit: How its latest ended instance ended, in words; ``None`` if none has ended.
        ended_for_good: It will not run again.
        has_done_its_part: None of its readers needs more items (see ``SupervisionPolicy.done_when``), so that its end is
            no fault.
        restarts: How often it was restarted.
        ingest_rate_per_s: Items that a source ingests per second, an exponentially weighted mean over 30 s; ``None`` for
            other roles, and before its first start.
        latency: From ingest to acknowledgement, for a sink that measures it.
        dead_letters: Its dead-lettered items, by kind; see ``DeadLetterWriter.counts``.
        counters: The figures that it counts itself.
        signals_in: Control items that it has acknowledged. No other figure counts control items.
        signals_out: Control items that it has sent, one for each output.
        times: What its instances have done with their time.
        batch_latency: From taking a batch to its acknowledgement.
        sink_latency: The figures behind ``latency``.
        errors: Failures of its instances, by the exception's type; at most 20 types, further ones count as ``other``.
        last_error: The last failure of an instance or of an item.
        budget: What its restart policy still admits.
        restart_in_s: Until its next instance starts, seconds; ``None`` unless it is ``restarting``.
        breakers: The circuit breakers that it uses, by name.
        paused: Why a person has paused this source; empty if it is not paused.
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
    signals_in: int = 0
    signals_out: int = 0
    times: OperatorTimes = OperatorTimes()
    batch_latency: LatencyFigures = field(default_factory=LatencyFigures)
    sink_latency: LatencyFigures | None = None
    errors: Mapping[str, int] = field(default_factory=dict)
    last_error: LastError | None = None
    budget: RestartBudget = RestartBudget()
    restart_in_s: float | None = None
    breakers: tuple[str, ...] = ()
    paused: str = ""


@dataclass(frozen=True, slots=True)
class GraphStatus:
    """A running graph at one moment.

    Attributes:
        operators: In topological order.
        edges: By edge id.
        outboxes: By edge id, the items that were offered to the full edge and wait for space.
        ledger: As it stands.
        latency: Ingest to acknowledgement by the sinks that measure it.
        breakers: By name.
        blocking_pools: The pools for blocking calls, by name.
        restarts: The sum over all operators.
        shutting_down: Why the graph drains or has drained: a request, the end rule or a teardown; ``None`` while it runs.
        verdict: Which operator caused the teardown, and why; ``None`` if none did.
        loop_lag_s: How late the event loop is, seconds; 0 where no watchdog runs.
        loop_stalls: How often it was blocked for longer than the watchdog's threshold.
        signals: The control items, which the ledger does not count.
    """

    operators: tuple[OperatorStatus, ...]
    edges: Mapping[str, EdgeStatistics]
    outboxes: Mapping[str, int]
    ledger: LedgerSnapshot
    latency: LatencySummary | None
    breakers: Mapping[str, BreakerStatistics]
    blocking_pools: Mapping[str, BlockingPoolStatistics]
    restarts: int
    shutting_down: str | None
    verdict: str | None
    loop_lag_s: float
    loop_stalls: int
    signals: SignalsSnapshot = field(default_factory=SignalsSnapshot)


def operator_status(run: OperatorRun, clock: Clock, supervisor: Supervisor) -> OperatorStatus:
    """One operator as it is now."""
    services, now = run.services, clock.monotonic()
    last_item, rate = services.last_item_monotonic, services.ingest_rate
    return OperatorStatus(
        name=run.name,
        role=run.vertex.role,
        state=_state(run),
        instance=run.ends.instance,
        uptime_s=run.task.uptime() if run.task is not None else 0.0,
        consumed=run.account.consumed,
        emitted=run.account.emitted,
        idle_s=now - last_item if last_item is not None else None,
        endless=run.vertex.endless,
        exit=str(run.exit) if run.exit is not None else None,
        ended_for_good=run.has_ended,
        has_done_its_part=run.readers_are_done,
        restarts=supervisor.restart_count(run.name),
        ingest_rate_per_s=rate.rate(now) if rate is not None else None,
        latency=services.latency.summary(),
        sink_latency=services.latency.figures() if run.vertex.role is Role.SINK else None,
        dead_letters=services.dead_letter_writer.counts(run.name),
        counters=dict(services.counters),
        signals_in=run.account.signals_in,
        signals_out=run.account.signals_out,
        errors=dict(run.failures.counts),
        last_error=_last_error(run),
        budget=_budget(run.vertex.restart_policy, supervisor.restarts_left(run.name, now)),
        restart_in_s=max(0.0, run.due - now) if run.state is OperatorState.RESTARTING and run.due is not None else None,
        breakers=tuple(services.breakers_used),
        batch_latency=merged(edge.channel.times.batches.figures() for edge in run.inputs),
        paused="" if services.pause is None else services.pause.reason,
        times=OperatorTimes(run.alive.reading_s, run.idle.reading_s, run.blocked.reading_s),
    )


def _last_error(run: OperatorRun) -> LastError | None:
    """The later one of the last failure of an instance and the last dead letter."""
    errors = [error for error in (run.failures.last, run.services.dead_letter_writer.last(run.name)) if error]
    return max(errors, key=lambda error: error.time_ns, default=None)


def _budget(policy: RestartPolicy, left: int | None) -> RestartBudget:
    match policy.rule:
        case NeverRestart():
            return RestartBudget(left, 0)
        case BoundedRestart(max_restarts, window):
            return RestartBudget(left, max_restarts, window.total_seconds())
        case _:
            return RestartBudget(left)


def _state(run: OperatorRun) -> str:
    match run.state:
        case OperatorState.ENDED | OperatorState.DELIVERING:
            return type(run.exit).__name__.lower() if run.exit is not None else "straggler"
        case OperatorState.RESTARTING:
            return "restarting"
        case OperatorState.WAITING | OperatorState.RUNNING | OperatorState.STALLED:
            if not run.is_alive():
                return "waiting"
            return "paused" if run.ends.paused else "running"
        case _:
            assert_never(run.state)
