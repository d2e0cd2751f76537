"""The log of a bulkhead: one JSON line with stable field names per decision, and one ``BulkheadEvent``. No line per call."""

from __future__ import annotations

import logging
from collections.abc import Callable

from orchestrator_adapter.bulkhead.errors import Rejection
from orchestrator_adapter.bulkhead.statistics import BulkheadEvent
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.event_log import EventLog, RateLimiter, call_hook

logger = logging.getLogger("orchestrator_adapter.bulkhead")

_ERRORS = frozenset({"batch_lost", "bulkhead_exhausted"})
_WARNINGS = frozenset({"worker_lost", "worker_hung", "connection_rejected", "calls_aborted", "worker_not_stopped"})


class BulkheadLog:
    """The decisions of one bulkhead.

    About a worker, in order: ``worker_launched``, ``worker_ready``, ``worker_hung``, ``worker_lost``, ``worker_restart``,
    ``worker_stopped``, ``worker_not_stopped``. About calls: ``batch_resubmitted``, ``batch_lost``, ``calls_aborted``.
    About the bulkhead: ``bulkhead_ready``, ``bulkhead_exhausted``, ``bulkhead_closed``, ``connection_rejected``.
    """

    def __init__(self, bulkhead: str, on_event: Callable[[BulkheadEvent], object] | None, clock: Clock) -> None:
        self._bulkhead = bulkhead
        self._on_event = on_event
        self._log = EventLog(logger, clock=clock, bulkhead=bulkhead)
        self._limiter = RateLimiter(clock)

    def __call__(self, decision: str, **fields: object) -> None:
        """Log ``decision`` and call ``on_event``."""
        level = logging.INFO
        if decision in _ERRORS:
            level = logging.ERROR
        elif decision in _WARNINGS:
            level = logging.WARNING
        self._log.write(decision, level, fields)
        call_hook(self._on_event, BulkheadEvent(self._bulkhead, decision, fields))

    def connection_rejected(self, kind: Rejection, reason: str) -> None:
        """Log at most one rejected connection a second and kind, with the number of those that were not logged since."""
        suppressed = self._limiter.admit(kind)
        if suppressed is not None:
            self("connection_rejected", kind=kind, cause=reason, not_logged_since_last=suppressed)
