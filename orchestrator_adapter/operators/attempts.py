"""What an operator's calls with retry count and log."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

from orchestrator_adapter.operators.services import VertexServices
from orchestrator_adapter.primitives.errors import describe
from orchestrator_adapter.primitives.event_log import call_hook
from orchestrator_adapter.resilience.retry import Attempt, AttemptOutcome


def recorded(
    services: VertexServices, downstream: str, on_attempt: Callable[[Attempt], object] | None
) -> Callable[[Attempt], None]:
    """A hook for one call of ``with_retry``: counts ``retry_attempts``, logs changes of ``downstream``, calls ``on_attempt``."""
    counters = services.counters
    counters.setdefault("retry_attempts", 0)
    attempts = 0

    def record(attempt: Attempt) -> None:
        nonlocal attempts
        if attempt.outcome is not AttemptOutcome.REJECTED:
            attempts += 1
            counters["retry_attempts"] += int(attempts > 1)
        log = services.log
        match attempt.outcome:
            case AttemptOutcome.OK | AttemptOutcome.DISCARDED:
                log.downstream(downstream, failing=False, attempt=attempt.number)
            case AttemptOutcome.FAILED | AttemptOutcome.REJECTED:
                assert attempt.error is not None
                log.downstream(downstream, failing=True, attempt=attempt.number, error=describe(attempt.error))
            case AttemptOutcome.PERMANENT:
                pass  # the downstream works, and rejects this one call; the caller receives the error
            case _:
                assert_never(attempt.outcome)
        call_hook(on_attempt, attempt)

    return record
