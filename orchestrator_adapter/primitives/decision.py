"""``Decision``: the names of what a graph decides or detects, for the log, the hooks and Prefect's events."""

from __future__ import annotations

from enum import StrEnum


class Decision(StrEnum):
    """One decision. The values are stable: automations and log queries depend on them."""

    SPAWN = "spawn"
    """An operator instance was started."""
    CLEAN_EXIT = "clean_exit"
    """An operator ended by itself, and its outputs are closed."""
    EXIT_WHILE_DRAINING = "exit_while_draining"
    """An operator failed during a shutdown and is not restarted."""
    NOT_WANTED = "not_wanted"
    """An operator ended because its readers are all done."""
    RESTART = "restart"
    """An operator failed and is restarted; ``cause`` says why, ``backoff_s`` after how long."""
    BUDGET_EXHAUSTED = "budget_exhausted"
    """An operator failed once more than its restart policy admits: the pipeline ends, Failed."""
    ESCALATE = "escalate"
    """An operator panicked (a bug): it is never restarted, and the pipeline ends, Crashed."""
    IGNORED = "ignored"
    """An operator failed for good or panicked, and its policy ignores that: the pipeline goes on without it."""
    STALLED = "stalled"
    """An operator made no progress for its ``progress_timeout`` and is aborted."""
    ABORT = "abort"
    """An operator that did not end within the grace period is cancelled."""
    ABORTED = "aborted"
    """An operator ended after its abort."""
    STRAGGLER = "straggler"
    """An operator was asked to stop and did not."""
    STRAY_TASKS = "stray_tasks"
    """An operator instance has ended and left tasks running, which were cancelled."""
    SHUTDOWN = "shutdown"
    """The graph begins to drain."""
    SHUTDOWN_AGAIN = "shutdown_again"
    """A second request to stop: the grace period ends now."""
    SHUTDOWN_UNDER_WAY = "shutdown_under_way"
    """A first request to stop, while the graph already drains."""
    LOOP_STALL = "loop_stall"
    """The event loop is blocked."""
    BLOCKING_CALL_ABANDONED = "blocking_call_abandoned"
    """An operator waits no more for a blocking call, whose thread runs on."""
    BLOCKING_CALL_OVERDUE = "blocking_call_overdue"
    """A sink waits for a blocking write for longer than its pool's timeout."""
    DEAD_LETTER = "dead_letter"
    """Items were written to the dead-letter store."""
    DEAD_LETTERS_LOST = "dead_letters_lost"
    """The dead-letter store failed, and items are lost."""
    CIRCUIT_BREAKER = "circuit_breaker"
    """A circuit breaker changed its state."""
    SOURCE_PAUSED = "source_paused"
    """A person has paused a source: it ingests nothing more."""
    SOURCE_RESUMED = "source_resumed"
    """A person has resumed a paused source. The end of a pause by a shutdown is not reported."""
    ACTION = "action"
    """A person has requested an action of the control plane; ``who``, ``action`` and ``result`` say who, what and how it ended."""
    SPILLING = "spilling"
    """An edge with the flow policy spill writes to disk, because its reader is late."""
    SPILL_FULL = "spill_full"
    """The files of an edge are full or cannot be written: what does not fit waits or is shed; ``cause`` says why."""
    SPILL_LEFT = "spill_left"
    """Earlier runs have left items in the files of an edge. They are not delivered."""
    LEDGER_VIOLATION = "ledger_violation"
    """An operator's ledger does not balance: items are unaccounted for."""
    ENDED = "ended"
    """The run has ended; ``outcome`` is the name of its event."""


_ALARMING = frozenset(
    {
        Decision.BUDGET_EXHAUSTED,
        Decision.DEAD_LETTER,
        Decision.DEAD_LETTERS_LOST,
        Decision.ESCALATE,
        Decision.IGNORED,
        Decision.LEDGER_VIOLATION,
        Decision.LOOP_STALL,
        Decision.SPILL_FULL,
        Decision.SPILL_LEFT,
        Decision.STALLED,
        Decision.STRAGGLER,
        Decision.STRAY_TASKS,
    }
)


def is_alarming(decision: str) -> bool:
    """Whether a person should check it: such a decision is logged as an error, any other as information."""
    return decision in _ALARMING
