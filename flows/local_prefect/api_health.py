"""Whether a Prefect API answers, and waiting until it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import timedelta

import httpx

from orchestrator_adapter import Attempt, Retry, RetryDisposition, RetryFailure, RetryPolicy, with_retry
from orchestrator_adapter.resilience.http import HttpFailure, exchange

_TIMEOUT_S = 2.0
_FIRST_DELAY, _LONGEST_DELAY = timedelta(milliseconds=100), timedelta(seconds=1)


async def api_health(api_url: str) -> RetryDisposition[bytes]:
    """One request for the API's health, two seconds at most: ``Ok`` if it is up, else why not, and whether to retry."""
    url = f"{api_url.rstrip('/')}/health"
    try:
        async with asyncio.timeout(_TIMEOUT_S), httpx.AsyncClient(timeout=_TIMEOUT_S) as client:
            return await exchange(client, client.build_request("GET", url), decode=bytes, now_ns=time.time_ns)
    except TimeoutError:
        return Retry(HttpFailure(f"GET {url} was not answered within {_TIMEOUT_S:g} s"))


async def wait_for_api(api_url: str, timeout_s: float, on_first_failure: Callable[[str], object]) -> str | None:
    """Wait ``timeout_s`` at most until it answers (0: one request). ``None``, or the reason why it cannot be used."""
    policy = RetryPolicy(
        _FIRST_DELAY,
        _LONGEST_DELAY,
        max_attempts=None if timeout_s > 0 else 1,
        deadline=timedelta(seconds=timeout_s) if timeout_s > 0 else None,
    )

    def on_attempt(attempt: Attempt) -> None:
        if attempt.number == 1 and attempt.delay is not None:
            on_first_failure(str(attempt.error))

    try:
        await with_retry(policy, lambda: api_health(api_url), on_attempt=on_attempt)
    except RetryFailure as failure:
        return str(failure)
    return None
