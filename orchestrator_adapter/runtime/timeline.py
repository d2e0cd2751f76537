"""The last decisions of a graph, for people: a bounded list, each entry with a sentence. Any thread may use it."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from orchestrator_adapter.primitives.decision import Decision, is_alarming

CAPACITY: Final = 200
_LONGEST: Final = 300  # characters of a sentence

_SENTENCES: Final[Mapping[str, str]] = {
    Decision.SPAWN: "instance {instance} has started",
    Decision.CLEAN_EXIT: "has ended by itself",
    Decision.EXIT_WHILE_DRAINING: "has failed during the shutdown: {exit}",
    Decision.NOT_WANTED: "has ended: its readers need no more items",
    Decision.RESTART: "has failed and is started again in {backoff_s} s: {cause}",
    Decision.BUDGET_EXHAUSTED: "has failed once more than its restart budget admits; the pipeline ends: {cause}",
    Decision.ESCALATE: "has a bug; the pipeline ends: {cause}",
    Decision.IGNORED: "has failed for good, and the pipeline goes on without it: {cause}",
    Decision.STALLED: "makes no progress and is aborted",
    Decision.ABORT: "did not end in time and is cancelled: {reason}",
    Decision.ABORTED: "has ended after its abort",
    Decision.STRAGGLER: "was asked to stop and did not",
    Decision.STRAY_TASKS: "has left tasks running, which were cancelled: {tasks}",
    Decision.SHUTDOWN: "shutdown, phase {phase}: {reason}",
    Decision.SHUTDOWN_AGAIN: "a second request to stop ends the grace period: {reason}",
    Decision.SHUTDOWN_UNDER_WAY: "a request to stop, while the graph already drains: {reason}",
    Decision.LOOP_STALL: "the event loop is blocked for {lag_s} s",
    Decision.BLOCKING_CALL_ABANDONED: "waits no more for a blocking call, whose thread runs on: {function}",
    Decision.BLOCKING_CALL_OVERDUE: "waits for a blocking call longer than its timeout: {function}",
    Decision.DEAD_LETTER: "has dead-lettered {items} ({kind}): {message}",
    Decision.DEAD_LETTERS_LOST: "could not keep the dead letters of {items}: {cause}",
    Decision.CIRCUIT_BREAKER: "circuit breaker {breaker}: {was} -> {state} ({reason})",
    Decision.SOURCE_PAUSED: "is paused: {reason}",
    Decision.SOURCE_RESUMED: "is resumed: {reason}",
    Decision.ACTION: "{who} requested {action}: {result}",
    Decision.SPILLING: "edge {edge} writes to disk: its reader is late",
    Decision.SPILL_FULL: "the files of edge {edge} are full: {cause}",
    Decision.SPILL_LEFT: "earlier runs have left {items} in the files of edge {edge}",
    Decision.LEDGER_VIOLATION: "items are unaccounted for: {message}",
    Decision.ENDED: "the run has ended: {outcome}",
}
"""What each decision says. The entry has the operator's name beside it."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One decision, or several equal ones with no other in between.

    Attributes:
        number: Counts up from 1.
        time_ns: When it happened last, UTC nanoseconds.
        decision: A value of ``Decision``.
        operator: Which operator; empty if it concerns the graph.
        text: A sentence for people.
        times: How often it happened without another decision in between.
    """

    number: int
    time_ns: int
    decision: str
    operator: str
    text: str
    times: int = 1

    @property
    def is_alarming(self) -> bool:
        """Whether a person should check it."""
        return is_alarming(self.decision)


class Timeline:
    """The last ``CAPACITY`` entries. Equal decisions of one operator, with no other in between, are one entry, with the newest sentence."""

    def __init__(self) -> None:
        self._entries: deque[tuple[tuple[object, ...], Entry]] = deque(maxlen=CAPACITY)
        self._lock = threading.Lock()
        self._recorded = 0

    @property
    def recorded(self) -> int:
        """How many decisions there were; it changes with each."""
        return self._recorded

    def record(self, decision: str, fields: Mapping[str, object], time_ns: int) -> None:
        """Add a decision with the fields of its log line."""
        operator = str(fields.get("operator") or "")
        same = (decision, operator, fields.get("kind"), fields.get("breaker"), fields.get("edge"))
        text = sentence(decision, fields)
        with self._lock:
            self._recorded += 1
            if self._entries and self._entries[-1][0] == same:
                last = self._entries[-1][1]
                self._entries[-1] = (same, replace(last, time_ns=time_ns, text=text, times=last.times + 1))
            else:
                number = self._entries[-1][1].number + 1 if self._entries else 1
                self._entries.append((same, Entry(number, time_ns, decision, operator, text)))

    def entries(self) -> tuple[Entry, ...]:
        """The entries, oldest first."""
        with self._lock:
            return tuple(entry for _, entry in self._entries)


def sentence(decision: str, fields: Mapping[str, object]) -> str:
    """A decision in words, without the operator's name. A field that is missing is left out."""
    pattern = _SENTENCES.get(decision, decision.replace("_", " "))
    text = pattern.format_map(_Words(fields))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


class _Words(dict[str, object]):
    """The fields as text; ``items`` with its noun."""

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if name == "items" and isinstance(value, int):
            return f"{value:,} {'item' if value == 1 else 'items'}"
        return f"{value:.3g}" if isinstance(value, float) else "" if value is None else str(value)
