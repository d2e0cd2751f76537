"""The figures and events of a bulkhead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator_adapter.bulkhead.errors import Rejection


@dataclass(frozen=True, slots=True)
class BulkheadEvent:
    """What ``on_event`` is called with: the decision and fields of one log line."""

    bulkhead: str
    decision: str
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class BulkheadStatistics:
    """A bulkhead at one moment.

    Attributes:
        name: The bulkhead's name.
        workers: How many workers it is configured to have.
        alive: How many of them are ready for calls.
        pids: Process id of each ready worker, by the worker's number; on another machine it is that machine's pid.
        hosts: Host name of each ready worker, by the worker's number.
        waiting: Calls that are queued and not yet sent to a worker.
        in_flight: Calls that a worker has and whose caller still waits.
        calls: Calls made since the start.
        answered: Calls that returned.
        failed: Calls whose handler raised.
        abandoned: Calls whose caller was cancelled.
        lost: Calls that raised ``BatchLost``.
        aborted: Calls that ended because the bulkhead closed or was exhausted.
        resubmitted: How often a call was sent to a second worker.
        restarts: How often a worker was started again.
        hung: How often a worker was killed because its answer was late.
        shares: Calls of ``share``.
        rejected: Connections that were not admitted, by the kind of rejection.
        exhausted: Whether the budget ``rebuilds`` is used up.
    """

    name: str
    workers: int
    alive: int
    pids: Mapping[int, int]
    hosts: Mapping[int, str]
    waiting: int
    in_flight: int
    calls: int
    answered: int
    failed: int
    abandoned: int
    lost: int
    aborted: int
    resubmitted: int
    restarts: int
    hung: int
    shares: int
    rejected: Mapping[Rejection, int]
    exhausted: bool

    @property
    def rejected_connections(self) -> int:
        """Connections that were not admitted."""
        return sum(self.rejected.values())

    @property
    def balanced(self) -> bool:
        """Whether every call is accounted for exactly once."""
        ended = self.answered + self.failed + self.abandoned + self.lost + self.aborted
        return self.calls == ended + self.waiting + self.in_flight


@dataclass(slots=True)
class Counters:
    """The running counts of ``BulkheadStatistics``, under the same names."""

    calls: int = 0
    answered: int = 0
    failed: int = 0
    abandoned: int = 0
    lost: int = 0
    aborted: int = 0
    resubmitted: int = 0
    restarts: int = 0
    hung: int = 0
    shares: int = 0
    rejected: dict[Rejection, int] = field(default_factory=lambda: dict.fromkeys(Rejection, 0))
