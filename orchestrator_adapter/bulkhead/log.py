"""Every decision of a bulkhead is one JSON log line with stable names, and told to whoever listens. Never one line a call."""

from __future__ import annotations

import logging
from collections.abc import Callable

from orchestrator_adapter.bulkhead.statistics import BulkheadEvent
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.event_log import EventLog, RateLimiter, call_hook

logger = logging.getLogger("orchestrator_adapter.bulkhead")

_ALARMING = frozenset({"batch_lost", "bulkhead_exhausted"})
_WORTH_A_LOOK = frozenset({"worker_lost", "worker_hung", "connection_refused", "calls_cut_off", "worker_left_behind"})


class BulkheadLog:
    """The decisions of one bulkhead.

    In order of a worker's life: ``worker_launched``, ``worker_ready``, ``worker_hung``, ``worker_lost``, ``worker_restart``,
    ``worker_stopped``; of calls: ``batch_resubmitted``, ``batch_lost``, ``calls_cut_off``; of the whole:
    ``bulkhead_ready``, ``bulkhead_exhausted``, ``bulkhead_closed``; ``connection_refused`` and ``worker_left_behind``.
    """

    def __init__(self, bulkhead: str, listener: Callable[[BulkheadEvent], object] | None, clock: Clock) -> None:
        self._bulkhead = bulkhead
        self._listener = listener
        self._log = EventLog(logger, clock=clock, bulkhead=bulkhead)
        self._limiter = RateLimiter(clock)

    def __call__(self, decision: str, **fields: object) -> None:
        """Log it, and tell of it."""
        level = logging.INFO
        if decision in _ALARMING:
            level = logging.ERROR
        elif decision in _WORTH_A_LOOK:
            level = logging.WARNING
        self._log.write(decision, level, fields)
        call_hook(self._listener, BulkheadEvent(self._bulkhead, decision, fields))

    def refused(self, reason: str) -> None:
        """Somebody was not let in: at most one line a second, with the number left out since the last."""
        suppressed = self._limiter.admit("connection_refused")
        if suppressed is not None:
            self("connection_refused", cause=reason, not_logged_since_last=suppressed)
