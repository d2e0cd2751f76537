"""The health of a run, as a pure function of its status. ``docs/control-plane.md`` has the rules in a table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orchestrator_adapter.graph.plan import Role
from orchestrator_adapter.runtime.status import GraphStatus, OperatorStatus


class HealthStatus(StrEnum):
    """A run's health in one word."""

    OK = "ok"
    """The run works."""
    DEGRADED = "degraded"
    """The run works, but something needs attention; the reasons say what."""
    DRAINING = "draining"
    """The run was asked to stop, or its end rule is met. It ends soon; nothing is wrong."""
    FAILING = "failing"
    """Something is wrong; the reasons say what."""


@dataclass(frozen=True, slots=True)
class Health:
    """A run's health. ``reasons`` are sentences; only ``ok`` has none."""

    status: HealthStatus
    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether the run works: anything but ``failing``."""
        return self.status is not HealthStatus.FAILING


def health_of(status: GraphStatus, *, silent_s: float = 0.0, threshold_s: float = 0.25, blocked_by: str = "") -> Health:
    """The health of the run with this ``status``, whose event loop has not answered for ``silent_s``.

    A restart is no reason to fail: the operator's restart budget limits restarts.
    """
    faults = [] if status.verdict is None else [status.verdict]
    if status.shutting_down is None:
        faults += [_ended(source) for source in status.operators if has_ended_unexpectedly(source)]
    if silent_s >= threshold_s:
        blocker = f"; {blocked_by} blocks it" if blocked_by else ""
        faults.append(f"event loop has not answered for {silent_s:.2f} s{blocker}")
    if faults:
        return Health(HealthStatus.FAILING, (*faults, *_hanging(status)))
    if status.shutting_down is not None:
        return Health(HealthStatus.DRAINING, (f"shutting down: {status.shutting_down}",))
    if concerns := (*_paused(status), *_hanging(status)):
        return Health(HealthStatus.DEGRADED, concerns)
    return Health(HealthStatus.OK, ())


def has_ended_unexpectedly(operator: OperatorStatus) -> bool:
    """Whether this is a source that ended with a failure, or that ended although it was declared endless.

    A source whose readers are all done is expected to end. Applies only while the graph is not shutting down.
    """
    gone = operator.role is Role.SOURCE and operator.ended_for_good and not operator.has_done_its_part
    return gone and (operator.endless or operator.state != "ok")


def _paused(status: GraphStatus) -> tuple[str, ...]:
    return tuple(
        f"source {each.name!r} is paused ({each.paused}) and ingests nothing until it is resumed"
        for each in status.operators
        if each.paused
    )


def _hanging(status: GraphStatus) -> tuple[str, ...]:
    """One sentence for each operator with blocking calls that are abandoned or overdue: its oldest such call."""
    calls = [call for pool in status.blocking_pools.values() for call in pool.hanging]
    oldest = {call.operator: call for call in sorted(calls, key=lambda call: call.running_s)}
    return tuple(str(call) for call in oldest.values())


def _ended(source: OperatorStatus) -> str:
    declared = ", and was declared endless" if source.endless else ""
    return f"source {source.name!r} has ended unexpectedly: {source.exit or 'it never stopped'}{declared}"
