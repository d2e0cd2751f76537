"""Every decision is one JSON log line with stable field names. Never one line per item: what items cause is bounded."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping
from typing import TypeVar

from orchestrator_adapter.primitives.clock import Clock

T = TypeVar("T")

logger = logging.getLogger("orchestrator_adapter.supervisor")
operator_logger = logging.getLogger("orchestrator_adapter.operator")

_PERIOD_S = 1.0  # at most one line per operator and kind in this time

_ERRORS = frozenset(
    {
        "budget_exhausted",
        "dead_letter",
        "dead_letters_lost",
        "escalate",
        "ledger_violation",
        "loop_stall",
        "stalled",
        "straggler",
    }
)


def is_alarming(event: str) -> bool:
    """Whether a person should look at it."""
    return event in _ERRORS


def log_decision(event: str, graph: str, **fields: object) -> None:
    """Log ``event`` of ``graph``; what a person should look at is logged as an error, the rest as information."""
    record = {"event": event, "graph": graph, **fields}
    logger.log(logging.ERROR if is_alarming(event) else logging.INFO, json.dumps(record, default=str))


class DecisionLog:
    """The decisions of one graph: each is logged, and told to whoever listens. Any thread may call it.

    Attributes:
        listener: Is told each decision with the names and values of its line; whatever it raises goes no further.
    """

    def __init__(self, graph: str) -> None:
        self.listener: Callable[[str, Mapping[str, object]], object] | None = None
        self._graph = graph

    def __call__(self, event: str, **fields: object) -> None:
        """Log ``event``, and tell of it."""
        log_decision(event, self._graph, **fields)
        if (listener := self.listener) is not None:
            call_hook(lambda told: listener(event, told), fields)


def call_hook(hook: Callable[[T], object] | None, record: T) -> None:
    """Call ``hook`` with ``record``; whatever it raises is logged and goes no further."""
    if hook is None:
        return
    try:
        hook(record)
    except (Exception, asyncio.CancelledError):  # a hook is foreign code
        logger.exception("a hook failed; what it was told of goes on")


class BoundedLog:
    """One operator's log of what its items cause: at most one line a second and kind, with the number left out."""

    def __init__(self, operator: str, clock: Clock) -> None:
        self._operator = operator
        self._clock = clock
        self._last: dict[str, tuple[float, int]] = {}
        self._downstreams: dict[str, tuple[bool, float]] = {}  # what was told last, and when

    def note(self, kind: str, message: str, *, event: str = "dead_letter", **fields: object) -> None:
        """Log it, unless one of its kind was logged within the last second; then count it."""
        now = self._clock.monotonic()
        last, suppressed = self._last.get(kind, (float("-inf"), 0))
        if now - last < _PERIOD_S:
            self._last[kind] = (last, suppressed + 1)
            return
        self._last[kind] = (now, 0)
        told = {"event": event, "operator": self._operator, "kind": kind, "message": message, **fields}
        operator_logger.warning(json.dumps(told | {"not_logged_since_last": suppressed}))

    def downstream(self, name: str, *, failing: bool, **fields: object) -> None:
        """Log that a downstream has begun to fail, or answers again: a line a change, and at most one a second.

        What changes sooner is told by the next call after that second, if it still holds.
        """
        now = self._clock.monotonic()
        was_failing, told_at = self._downstreams.get(name, (False, float("-inf")))
        if failing == was_failing or now - told_at < _PERIOD_S:
            return
        self._downstreams[name] = (failing, now)
        event = "downstream_failing" if failing else "downstream_answers"
        line = json.dumps({"event": event, "operator": self._operator, "downstream": name, **fields})
        operator_logger.log(logging.WARNING if failing else logging.INFO, line)
