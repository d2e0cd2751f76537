"""Whether a Prefect API answers, and waiting until it does."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta

import httpx

from orchestrator_adapter import RetryDisposition, RetryFailure, RetryPolicy, with_retry
from orchestrator_adapter.http_exchange import exchange
from orchestrator_adapter.retry import Attempt

_ANSWER_WITHIN = timedelta(seconds=2)
_FIRST_DELAY, _LONGEST_DELAY = timedelta(milliseconds=100), timedelta(seconds=1)


async def api_health(api_url: str) -> RetryDisposition[bytes]:
    """One request for the API's health: ``Ok`` if it is up, else why not, and whether that may pass."""
    async with httpx.AsyncClient(timeout=_ANSWER_WITHIN.total_seconds()) as client:
        request = client.build_request("GET", f"{api_url.rstrip('/')}/health")
        return await exchange(client, request, decode=bytes, now_ns=time.time_ns)


async def wait_for_api(api_url: str, limit_s: float, on_first_failure: Callable[[str], object]) -> str | None:
    """Wait until it answers, for ``limit_s`` seconds at most (0: ask once). ``None``, or why it is of no use."""
    policy = RetryPolicy(
        _FIRST_DELAY,
        _LONGEST_DELAY,
        max_attempts=None if limit_s > 0 else 1,
        deadline=timedelta(seconds=limit_s) if limit_s > 0 else None,
    )

    def told(attempt: Attempt) -> None:
        if attempt.number == 1 and attempt.delay is not None:
            on_first_failure(str(attempt.error))

    try:
        await with_retry(policy, lambda: api_health(api_url), on_attempt=told)
    except RetryFailure as failure:
        return str(failure)
    return None
