"""One HTTP exchange as a ``RetryDisposition``: the one place where it is said what may pass and what will not.

==================================================================================  ============================
what came of it                                                                      disposition
==================================================================================  ============================
2xx with a body that decodes                                                         ``RetryOk``
connection refused, reset or timed out, name not resolved, server hung up            ``Retry``
5xx, 429                                                                             ``Retry`` (503 and 429 with ``Retry-After``)
4xx otherwise, 1xx and 3xx (redirects are not followed)                              ``Permanent``
certificate that does not verify, TLS that is none, malformed HTTP                   ``Permanent``
bad JSON, wrong schema, body that is too large or cannot be decompressed             ``Permanent``
the same from a proxy on the way                                                     as from the server
==================================================================================  ============================

Knows httpx, and nothing of what is asked or answered.
"""

from __future__ import annotations

import re
import ssl
import zlib
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TypeVar

import httpx

from orchestrator_adapter.primitives.errors import OperatorError
from orchestrator_adapter.resilience.retry import Permanent, Retry, RetryDisposition, RetryOk

T = TypeVar("T")

DEFAULT_MAX_BODY_BYTES = 16 * 1024 * 1024

_NS_PER_S = 1_000_000_000
_MAX_LOCATION = 200  # characters of where a redirection leads, in messages
_USERINFO = re.compile("//[^/]*@")


class HttpFailure(OperatorError):
    """The peer's doing: an exchange did not bring what was asked for. The message names method, URL and what came."""


async def exchange(
    client: httpx.AsyncClient,
    request: httpx.Request,
    *,
    decode: Callable[[bytes], T],
    now_ns: Callable[[], int],
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
) -> RetryDisposition[T]:
    """Send ``request`` once and classify what comes of it; raises nothing that the network or the peer can cause.

    ``decode`` makes a value of a successful answer's body; a ``ValueError`` from it is a body that is wrong. What else it
    raises is a bug, and is passed on. ``now_ns``, UTC, is what a ``Retry-After`` in the form of a date is compared with.
    No more than ``max_body_bytes`` of the body are kept, and none are made beyond: it may be compressed, by gzip and once.
    httpx limits each step (connecting, each read) by the client's timeout; the whole exchange is for the caller to limit
    (``RetryPolicy.attempt_timeout``), lest a peer drip its answer for ever. Cancelled, it closes the connection.
    """
    where = f"{request.method} {_without_secrets(request.url)}"
    request.headers["Accept-Encoding"] = "gzip"
    try:
        response = await client.send(request, stream=True)
        try:
            failed = classify_status(where, response.status_code, response.headers, now_ns=now_ns())
            if failed is not None:
                return failed
            body = await _read(response, max_body_bytes)
        finally:
            await response.aclose()
    except (httpx.HTTPError, OSError) as error:
        return classify_error(where, error)
    except httpx.InvalidURL as error:  # httpx looks where a redirection leads, although it is not followed
        return Permanent(HttpFailure(f"{where} answered with a redirection to what is no URL: {error}"))
    except (_BadBody, zlib.error) as error:
        return Permanent(HttpFailure(f"{where} answered with {error}"))
    try:
        return RetryOk(decode(body))
    except ValueError as error:
        failure = HttpFailure(f"{where} answered with {len(body)} bytes that are not what was expected: {error}")
        failure.__cause__ = error
        return Permanent(failure)


class _BadBody(Exception):
    """A body that is not to be had; the text goes on after "answered with"."""


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    """The body, inflated. httpx would inflate a whole chunk at once, and as often as it is told to: 3 kB to 4 GiB."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", "gzip"}:
        raise _BadBody(f"Content-Encoding {encoding!r}, which was not asked for")
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16) if encoding == "gzip" else None  # 16: with gzip's header
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk if inflater is None else inflater.decompress(chunk, max_bytes + 1 - len(body))
        if len(body) > max_bytes:
            raise _BadBody(f"more than the {max_bytes} bytes allowed")
    if inflater is not None and not (inflater.eof and not inflater.unused_data):
        raise _BadBody("a gzip stream that is cut short, or goes on after its end")
    return bytes(body)


def _without_secrets(url: httpx.URL) -> httpx.URL:
    """For messages and logs: without user, password and query, which may hold a token."""
    return url.copy_with(userinfo=b"", query=None, fragment=None)


def _elsewhere(location: str | None) -> str:
    """Where a redirection leads, likewise; it may be no URL, so it is cut as text."""
    if not location:
        return ""
    path = _USERINFO.sub("//", re.split("[?#]", location, maxsplit=1)[0])
    return f", to {path[:_MAX_LOCATION]!r}"


def classify_status(where: str, status: int, headers: Mapping[str, str], *, now_ns: int) -> Retry | Permanent | None:
    """What a status code says; ``None`` for a success. ``headers`` by lower-case name (httpx's do not mind the case)."""
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return None
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    failure = HttpFailure(f"{where} answered {status}{phrase}{_elsewhere(headers.get('location'))}")
    if status in {HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}:
        return Retry(failure, retry_after(headers.get("retry-after"), now_ns=now_ns))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Retry(failure)
    return Permanent(failure)


def retry_after(value: str | None, *, now_ns: int) -> timedelta | None:
    """A ``Retry-After`` header (RFC 9110, section 10.2.3: seconds, or a date) as a duration; ``None`` if it is neither."""
    if value is None:
        return None
    try:
        if value.strip().isdecimal():
            return timedelta(seconds=int(value))
        until = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if until.tzinfo is None:
        until = until.replace(tzinfo=UTC)
    now = datetime.fromtimestamp(now_ns / _NS_PER_S, UTC)
    return max(timedelta(0), until - now)


def classify_error(where: str, error: BaseException) -> Retry | Permanent:
    """What an exception of httpx, or of the socket below, says."""
    *_, root = _causes(error)
    because = f" ({root})" if root is not error and str(root) and str(root) not in str(error) else ""
    failure = HttpFailure(f"{where} failed: {type(error).__name__}: {error}{because}")
    failure.__cause__ = error
    return Retry(failure) if _may_pass(error) else Permanent(failure)


def _may_pass(error: BaseException) -> bool:
    for cause in _causes(error):
        if isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return True  # hung up within the handshake or the stream: a reset that TLS has noticed
        if isinstance(cause, ssl.SSLError):
            return False
    if isinstance(error, httpx.ProxyError):
        return not str(error).startswith("4")  # it begins with the status that the proxy answered
    # ``RemoteProtocolError`` is both: a peer that hangs up instead of answering, and one that does not speak HTTP.
    if isinstance(error, httpx.RemoteProtocolError):
        return any(sign in str(error) for sign in _HUNG_UP)
    return isinstance(error, (httpx.TimeoutException, httpx.NetworkError, OSError))


_HUNG_UP = ("disconnected without sending", "peer closed connection")
"""How h11 and httpcore say so; watched by tests/orchestrator_adapter/resilience/test_http.py."""


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
