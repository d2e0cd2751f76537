"""What a bulkhead says of itself. Frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BulkheadEvent:
    """Told to ``on_event``: exactly what is logged as one line. ``fields`` has the names and values of that line."""

    bulkhead: str
    decision: str
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class BulkheadStatistics:
    """A bulkhead at one moment.

    Attributes:
        name: Whose.
        workers: How many there are to be.
        alive: How many are ready for calls.
        pids: Theirs, by the worker's number; of a worker elsewhere it is a process of that machine.
        hosts: The machines they run on, likewise.
        waiting: Calls that no worker has yet.
        in_flight: Calls that a worker has and that somebody waits for.
        calls: Calls made since the start.
        answered: Those that returned.
        failed: Those whose handler raised.
        abandoned: Those whose caller was cancelled.
        lost: Those that raised ``BatchLost``.
        refused: Those that were cut off by the bulkhead's end or exhaustion.
        resubmitted: How often a call went to a second worker.
        restarts: How often a worker was started again.
        hung: How often a worker was ended because an answer was late.
        shares: Calls of ``share``.
        refused_connections: Connections that were not let in.
        exhausted: Whether the budget for rebuilds is used up.
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
    refused: int
    resubmitted: int
    restarts: int
    hung: int
    shares: int
    refused_connections: int
    exhausted: bool

    @property
    def balanced(self) -> bool:
        """Whether every call is accounted for, once."""
        ended = self.answered + self.failed + self.abandoned + self.lost + self.refused
        return self.calls == ended + self.waiting + self.in_flight
