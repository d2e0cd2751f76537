"""Where a catalogue is had from, and one look at whether there is a new one: a file, or an HTTP(S) address.

Knows nothing of what is in it.
"""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TypeAlias, assert_never

import httpx

from orchestrator_adapter import Clock, OperatorError, RetryDisposition, RetryFailure, RetryOk, RetryPolicy, with_retry
from orchestrator_adapter.resilience.http import exchange

FOUR_ATTEMPTS = RetryPolicy(timedelta(seconds=1), timedelta(seconds=30), max_attempts=4)
MAX_CATALOG_BYTES = 256 * 1024 * 1024
"""Ten times all that is catalogued, as JSON."""


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """A file. Whoever replaces it should write another one and rename it; one cut off in a row is told and refused."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class CatalogUrl:
    """An HTTP(S) address.

    Attributes:
        url: E.g. ``https://celestrak.org/NORAD/elements/gp.php?GROUP=active&FORMAT=csv``. Certificates are verified.
        timeout: For the whole of an answer, from connecting to its last byte.
        retry: When a request that failed is made again within one refresh; the next refresh is another matter.
        max_body_bytes: A larger answer is refused, and not read any further.
        ca_file: Certificates (PEM) to trust instead of the system's.
    """

    url: str
    timeout: timedelta = timedelta(seconds=60)
    retry: RetryPolicy = FOUR_ATTEMPTS
    max_body_bytes: int = MAX_CATALOG_BYTES
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        try:
            scheme = httpx.URL(self.url).scheme
        except httpx.InvalidURL as error:
            raise ValueError(f"CatalogUrl: {self.url!r} is no URL: {error}") from error
        if scheme not in {"http", "https"}:
            raise ValueError(f"CatalogUrl: url must begin with http:// or https://, got {self.url!r}")
        if self.timeout <= timedelta(0) or self.max_body_bytes < 1:
            raise ValueError(
                f"CatalogUrl: timeout must be > 0 and max_body_bytes >= 1, got {self.timeout!r} and {self.max_body_bytes}"
            )

    def __str__(self) -> str:
        """Without user, password and query, which may hold a token."""
        return str(httpx.URL(self.url).copy_with(userinfo=b"", query=None, fragment=None))


CatalogSource: TypeAlias = CatalogFile | CatalogUrl


class CatalogUnavailable(OperatorError):
    """There is no catalogue to be had from where it should be. The message says from where, and why not."""


@dataclass(frozen=True, slots=True)
class Content:
    """What the source holds, and the headers that ask whether it still does (RFC 9110, section 13.1)."""

    body: bytes
    validators: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NotModified:
    """The source says that it holds what it held."""


async def fetch(
    source: CatalogSource, validators: Mapping[str, str], *, clock: Clock, rng: random.Random
) -> Content | NotModified:
    """What ``source`` holds now; ``validators`` are those of what it held when last asked, if it gave any.

    Raises ``CatalogUnavailable``. A file is read in a thread; cancelled, a request closes its connection.
    """
    match source:
        case CatalogFile(path):
            try:
                return Content(await asyncio.to_thread(path.read_bytes))
            except OSError as error:
                raise CatalogUnavailable(f"{source}: {error.strerror or error}") from error
        case CatalogUrl():
            try:
                return await _request(source, validators, clock=clock, rng=rng)
            except RetryFailure as failure:
                raise CatalogUnavailable(str(failure)) from failure
        case _:
            assert_never(source)


async def _request(
    source: CatalogUrl, validators: Mapping[str, str], *, clock: Clock, rng: random.Random
) -> Content | NotModified:
    try:
        trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # nobody, and a verified nobody: enough without TLS
        if httpx.URL(source.url).scheme == "https":
            # In a thread: reading the system's certificates takes tens of milliseconds.
            trusted = await asyncio.to_thread(ssl.create_default_context, cafile=source.ca_file)
        client = httpx.AsyncClient(verify=trusted, timeout=source.timeout.total_seconds())
    except (OSError, ImportError, ValueError) as error:  # no such ca_file; a proxy of the environment that is none
        raise CatalogUnavailable(f"{source}: cannot be asked: {error}") from error
    given: dict[str, str] = {}

    async def read_headers(response: httpx.Response) -> None:
        if validators and response.status_code == httpx.codes.NOT_MODIFIED:
            raise _NotModifiedAnswer
        given.clear()
        for header, condition in (("ETag", "If-None-Match"), ("Last-Modified", "If-Modified-Since")):
            if header in response.headers:
                given[condition] = response.headers[header]

    async def attempt() -> RetryDisposition[Content | NotModified]:
        request = client.build_request("GET", source.url, headers=dict(validators))
        try:
            return await exchange(
                client,
                request,
                decode=lambda body: Content(body, dict(given)),
                now_ns=clock.now_ns,
                max_body_bytes=source.max_body_bytes,
            )
        except _NotModifiedAnswer:
            return RetryOk(NotModified())

    policy = source.retry
    if policy.attempt_timeout is None:
        policy = replace(policy, attempt_timeout=source.timeout)
    async with client:
        client.event_hooks = {"response": [read_headers]}
        outcome = await with_retry(policy, attempt, clock=clock, rng=rng)
    assert isinstance(outcome, RetryOk)  # nothing here discards
    return outcome.value


class _NotModifiedAnswer(Exception):
    """Leaves ``exchange``, to which a 304 is a redirection that nobody asked for."""
