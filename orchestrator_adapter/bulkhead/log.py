"""Every decision of a bulkhead is one JSON log line with stable names, and told to whoever listens. Never one line a call."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

from orchestrator_adapter.bulkhead.statistics import BulkheadEvent
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.event_log import call_hook

logger = logging.getLogger("orchestrator_adapter.bulkhead")

_PERIOD_S = 1.0

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
        self._clock = clock
        self._refused_at = float("-inf")
        self._not_told = 0

    def __call__(self, decision: str, **fields: object) -> None:
        """Log it, and tell of it."""
        level = logging.INFO
        if decision in _ALARMING:
            level = logging.ERROR
        elif decision in _WORTH_A_LOOK:
            level = logging.WARNING
        logger.log(level, json.dumps({"event": decision, "bulkhead": self._bulkhead, **fields}, default=str))
        call_hook(self._listener, BulkheadEvent(self._bulkhead, decision, fields))

    def refused(self, reason: str) -> None:
        """Somebody was not let in: at most one line a second, with the number left out since the last."""
        now = self._clock.monotonic()
        if now - self._refused_at < _PERIOD_S:
            self._not_told += 1
            return
        self._refused_at = now
        self("connection_refused", cause=reason, not_logged_since_last=self._not_told)
        self._not_told = 0
