"""The source of a catalogue, a file or an HTTP(S) URL, and one fetch from it. Knows nothing of the content."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar, assert_never

import httpx

from orchestrator_adapter import (
    BreakerPolicy,
    Clock,
    OperatorError,
    RetryDiscard,
    RetryDisposition,
    RetryFailure,
    RetryOk,
    RetryPolicy,
    check_fields,
)
from orchestrator_adapter.resilience.http import exchange
from sda_ops.regular_file import read_regular_file

FOUR_ATTEMPTS = RetryPolicy(timedelta(seconds=1), timedelta(seconds=30), max_attempts=4)
CATALOG_BREAKER = BreakerPolicy(window=timedelta(minutes=10), cooldown=timedelta(minutes=5), min_calls=4)
"""It opens when all attempts of one refresh fail. Then each later refresh costs the server one request until one succeeds."""

MAX_CATALOG_BYTES = 256 * 1024 * 1024
"""Ten times the size of all catalogued objects as JSON."""


_LAST_PORT = 65_535


@dataclass(frozen=True, slots=True)
class CatalogFile:
    """A file. Replace it by writing another one and renaming that: a file that ends within a row is rejected."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True, slots=True)
class CatalogUrl:
    """An HTTP(S) URL.

    Attributes:
        url: E.g. ``https://celestrak.org/NORAD/elements/gp.php?GROUP=active&FORMAT=csv``. Certificates are verified.
        timeout: For a whole answer, from connecting to its last byte.
        retry: When a failed request is made again within one refresh.
        max_body_bytes: A larger answer is rejected, and the rest of it is not read.
        ca_file: Certificates (PEM) to trust instead of the system's.
    """

    url: str = field(repr=False)  # it may have credentials
    timeout: timedelta = timedelta(seconds=60)
    retry: RetryPolicy = FOUR_ATTEMPTS
    max_body_bytes: int = MAX_CATALOG_BYTES
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        try:
            scheme, port = httpx.URL(self.url).scheme, httpx.URL(self.url).port
        except httpx.InvalidURL as error:
            raise ValueError(f"CatalogUrl: {self.url!r} is not a URL: {error}") from error
        if scheme not in {"http", "https"}:
            raise ValueError(f"CatalogUrl: url must begin with http:// or https://, got {self.url!r}")
        if port is not None and port > _LAST_PORT:
            raise ValueError(f"CatalogUrl: the port must be at most {_LAST_PORT}, got {port}")
        check_fields(
            "CatalogUrl",
            ("timeout", self.timeout, self.timeout > timedelta(0), "> 0"),
            ("max_body_bytes", self.max_body_bytes, self.max_body_bytes >= 1, ">= 1"),
        )

    def __str__(self) -> str:
        """The URL without user, password and query, which may contain a token."""
        return str(httpx.URL(self.url).copy_with(userinfo=b"", query=None, fragment=None))


CatalogLocation: TypeAlias = CatalogFile | CatalogUrl


class CatalogUnavailable(OperatorError):
    """The source has no catalogue, or cannot be reached. The message names the source and the reason."""


@dataclass(frozen=True, slots=True)
class Content:
    """The source's content, and the headers of a request for a newer one (RFC 9110, section 13.1)."""

    body: bytes
    validators: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NotModified:
    """The source has the same content as at the last fetch."""


_T = TypeVar("_T")


class Retrying(Protocol):
    """Makes the attempts of one request, with a circuit breaker, like ``ends.with_retry``. Raises ``RetryFailure``."""

    def __call__(
        self, policy: RetryPolicy, op: Callable[[], Awaitable[RetryDisposition[_T]]], /
    ) -> Awaitable[RetryOk[_T] | RetryDiscard]: ...


async def fetch(
    source: CatalogLocation, validators: Mapping[str, str], *, clock: Clock, retrying: Retrying
) -> Content | NotModified:
    """The source's content; ``validators`` are those of the last content, if it had any.

    Raises ``CatalogUnavailable``. A file is read in a thread; a cancelled request closes its connection.
    """
    match source:
        case CatalogFile(path):
            try:
                return Content(await asyncio.to_thread(read_regular_file, path))
            except OSError as error:
                raise CatalogUnavailable(f"{source}: {error.strerror or error}") from error
        case CatalogUrl():
            try:
                return await _request(source, validators, clock=clock, retrying=retrying)
            except RetryFailure as failure:
                raise CatalogUnavailable(str(failure)) from failure
        case _:
            assert_never(source)


async def _request(
    source: CatalogUrl, validators: Mapping[str, str], *, clock: Clock, retrying: Retrying
) -> Content | NotModified:
    try:
        # An empty trust store for plain HTTP, which never uses it: loading the system's certificates takes tens of
        # milliseconds. HTTPS loads them, in a thread.
        trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if httpx.URL(source.url).scheme == "https":
            trusted = await asyncio.to_thread(ssl.create_default_context, cafile=source.ca_file)
        client = httpx.AsyncClient(verify=trusted, timeout=source.timeout.total_seconds())
    except (OSError, ImportError, ValueError) as error:  # a missing ca_file; an invalid proxy in the environment
        raise CatalogUnavailable(f"{source}: cannot be requested: {error}") from error
    new_validators: dict[str, str] = {}

    async def read_headers(response: httpx.Response) -> None:
        if validators and response.status_code == httpx.codes.NOT_MODIFIED:
            raise _NotModifiedAnswer
        new_validators.clear()
        for header, condition in (("ETag", "If-None-Match"), ("Last-Modified", "If-Modified-Since")):
            if header in response.headers:
                new_validators[condition] = response.headers[header]

    async def attempt() -> RetryDisposition[Content | NotModified]:
        request = client.build_request("GET", source.url, headers=dict(validators))
        try:
            return await exchange(
                client,
                request,
                decode=lambda body: Content(body, dict(new_validators)),
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
        outcome = await retrying(policy, attempt)
    assert isinstance(outcome, RetryOk)  # no attempt discards
    return outcome.value


class _NotModifiedAnswer(Exception):
    """Raised through ``exchange``, which would treat a 304 as an unexpected redirection."""
