"""Whether a Prefect API answers, and waiting until it does."""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable
from datetime import timedelta

import httpx

from orchestrator_adapter import Attempt, Retry, RetryDisposition, RetryFailure, RetryPolicy, with_retry
from orchestrator_adapter.resilience.http import HttpFailure, exchange

_ANSWER_WITHIN_S = 2.0
_FIRST_DELAY, _LONGEST_DELAY = timedelta(milliseconds=100), timedelta(seconds=1)


def add_api_wait_argument(parser: argparse.ArgumentParser, *, default_s: float) -> None:
    """How long a command waits for the API, as every command that needs one takes it."""
    parser.add_argument(
        "--api-wait",
        type=float,
        default=default_s,
        metavar="S",
        help="seconds to wait for the server that PREFECT_API_URL names (default: %(default)s)",
    )


async def api_health(api_url: str) -> RetryDisposition[bytes]:
    """One request for the API's health: ``Ok`` if it is up, else why not, and whether that may pass. Two seconds at most."""
    url = f"{api_url.rstrip('/')}/health"
    try:
        async with asyncio.timeout(_ANSWER_WITHIN_S), httpx.AsyncClient(timeout=_ANSWER_WITHIN_S) as client:
            return await exchange(client, client.build_request("GET", url), decode=bytes, now_ns=time.time_ns)
    except TimeoutError:
        return Retry(HttpFailure(f"GET {url} was not answered within {_ANSWER_WITHIN_S:g} s"))


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
