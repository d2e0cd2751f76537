"""One call of Prefect's API, classified as done, worth a retry, or permanent. Prefect's own retries are off: they take minutes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import TypeVar

import httpx
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

from orchestrator_adapter.resilience.retry import Permanent, Retry, RetryDisposition, RetryOk

T = TypeVar("T")

_TIMEOUT_S = 10.0
_LIMITS = httpx.Limits(
    max_connections=16,
    max_keepalive_connections=8,
    # A Prefect server closes a connection that was idle for 5 s. Prefect's own client keeps it for 25 s, and then fails.
    keepalive_expiry=2.0,
)
_WORTH_A_RETRY = frozenset({408, 409, 425, 429})


@asynccontextmanager
async def client_without_retries() -> AsyncIterator[PrefectClient]:
    """A client of the configured API, for the running event loop. A failed call is not repeated."""
    with temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}):
        async with get_client(httpx_settings={"limits": _LIMITS}) as client:
            yield client


async def ask(call: Awaitable[T], *, within_s: float = _TIMEOUT_S) -> RetryDisposition[T]:
    """Await the call: ``RetryOk`` with its value, ``Retry`` if the server is unreachable or failing, ``Permanent`` if it rejects."""
    try:
        async with asyncio.timeout(within_s):
            return RetryOk(await call)
    except httpx.HTTPStatusError as error:
        code = error.response.status_code
        return Retry(error) if code >= httpx.codes.INTERNAL_SERVER_ERROR or code in _WORTH_A_RETRY else Permanent(error)
    except ObjectNotFound as error:
        return Permanent(error)
    except TimeoutError:
        return Retry(TimeoutError(f"not answered within {within_s:g} s"))
    except (httpx.HTTPError, OSError) as error:
        return Retry(error)
