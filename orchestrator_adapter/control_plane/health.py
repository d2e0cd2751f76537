"""Whether a run is well: a pure function of what is seen of it. ``docs/control-plane.md`` has the rules in a table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from orchestrator_adapter.graph.plan import Role
from orchestrator_adapter.runtime.status import GraphStatus, OperatorStatus


class HealthStatus(StrEnum):
    """How a run is, in one word."""

    OK = "ok"
    """It runs."""
    DRAINING = "draining"
    """It was asked to stop, or has all it wanted, and is about to end: nothing is wrong."""
    FAILING = "failing"
    """Somebody should look."""


@dataclass(frozen=True, slots=True)
class Health:
    """How a run is, and why: ``reasons`` are sentences, and there are some unless it is simply ``ok``."""

    status: HealthStatus
    reasons: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return self.status is not HealthStatus.FAILING


def judge(status: GraphStatus, *, silent_s: float = 0.0, threshold_s: float = 0.25, held_by: str = "") -> Health:
    """How the run is whose graph is in this ``status`` and whose event loop has not answered for ``silent_s``.

    An operator that is being restarted is no reason: its budget says when there are too many restarts.
    """
    wrong = [] if status.verdict is None else [status.verdict]
    if status.shutting_down is None:
        wrong += [_ended(source) for source in status.operators if has_ended_unexpectedly(source)]
    if silent_s >= threshold_s:
        holder = f"; {held_by} holds it" if held_by else ""
        wrong.append(f"event loop has not answered for {silent_s:.2f} s{holder}")
    if wrong:
        return Health(HealthStatus.FAILING, tuple(wrong))
    if status.shutting_down is not None:
        return Health(HealthStatus.DRAINING, (f"shutting down: {status.shutting_down}",))
    return Health(HealthStatus.OK, ())


def has_ended_unexpectedly(operator: OperatorStatus) -> bool:
    """Whether, in a graph that nobody has told to stop, it is a source that should still be there, or ended badly."""
    gone = operator.role is Role.SOURCE and operator.ended_for_good and not operator.has_done_its_part
    return gone and (operator.endless or operator.state != "ok")


def _ended(source: OperatorStatus) -> str:
    declared = ", and was declared endless" if source.endless else ""
    return f"source {source.name!r} has ended unexpectedly: {source.exit or 'it never stopped'}{declared}"
