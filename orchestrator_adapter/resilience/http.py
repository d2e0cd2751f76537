"""One HTTP exchange as a ``RetryDisposition``: the one place that classifies HTTP results for retries.

==================================================================================  ============================
result                                                                               disposition
==================================================================================  ============================
2xx with a body that decodes                                                         ``RetryOk``
connection refused, reset or timed out, name not resolved, peer closed connection    ``Retry``
5xx, 429                                                                             ``Retry`` (503 and 429 with ``Retry-After``)
4xx otherwise, 1xx and 3xx (redirects are not followed)                              ``Permanent``
certificate that does not verify, invalid TLS, malformed HTTP                        ``Permanent``
bad JSON, wrong schema, body that is too large or cannot be decompressed             ``Permanent``
the same from a proxy                                                                as from the server
==================================================================================  ============================

Knows httpx, and nothing of the content of requests and responses.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from typing import TypeVar

import httpx

from orchestrator_adapter.primitives.errors import OperatorError
from orchestrator_adapter.resilience.retry import Permanent, Retry, RetryDisposition, RetryOk

T = TypeVar("T")

DEFAULT_MAX_BODY_BYTES = 16 * 1024 * 1024

_NS_PER_S = 1_000_000_000
_MAX_LOCATION = 200  # characters of a redirection's target in messages
_USERINFO = re.compile("//[^/]*@")
_MAX_DETAIL_BYTES = 2_048  # read of an error answer's body
_MAX_DETAIL = 200  # characters of it in messages
_DETAIL_PATIENCE_S = 1.0  # for it: the message can do without
_MAX_SKIPPED_BYTES = 16_384  # of a body that is not needed
_SKIP_PATIENCE_S = 0.2  # for it: a new connection costs less
_MIN_SECRET = 4  # characters: shorter ones are in any text
_TAG = re.compile("<[^>]*>")


HIDE_PATH = "hide_path"
"""An extension of a request (``extensions={HIDE_PATH: True}``): its path is in no message, as user, password and query never are."""


class HttpFailure(OperatorError):
    """The peer's fault: an exchange failed. The message names the method, the URL and the result.

    Attributes:
        status: The status code of an error answer; ``None`` if there was no answer, or a success whose body is invalid.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


async def exchange(
    client: httpx.AsyncClient,
    request: httpx.Request,
    *,
    decode: Callable[[bytes], T],
    now_ns: Callable[[], int],
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES,
) -> RetryDisposition[T]:
    """Send ``request`` once and classify the result. Raises nothing that the network or the peer can cause.

    ``request`` is not changed: the header ``Accept-Encoding`` of what is sent is ``gzip``. The message of an error answer has
    the first line of its body, bounded. ``decode`` makes a value of a successful response's body. A ``ValueError`` from it
    means an invalid body; any other exception is a bug, and is passed on. ``now_ns``, UTC, is compared with a ``Retry-After``
    that is a date. At most ``max_body_bytes`` of the body are read or inflated; the body may be compressed once, by gzip. The
    client's timeout limits each step (connecting, each read). The caller limits the whole exchange
    (``RetryPolicy.attempt_timeout``), because a peer could send its response endlessly slowly. Cancelled, it closes the
    connection.
    """
    where = f"{request.method} {_without_secrets(request)}"
    body = await _answered(client, request, where, now_ns=now_ns, read=partial(_read, max_bytes=max_body_bytes))
    if not isinstance(body, RetryOk):
        return body
    try:
        return RetryOk(decode(body.value))
    except ValueError as error:
        failure = HttpFailure(f"{where} answered with {len(body.value)} bytes that are not what was expected: {error}")
        failure.__cause__ = error
        return Permanent(failure)


async def submit(
    client: httpx.AsyncClient, request: httpx.Request, *, now_ns: Callable[[], int]
) -> Retry | Permanent | RetryOk[int]:
    """As ``exchange``, for a request whose answer says all with its status: the value of a success is that status.

    A success is one as soon as its header has come, and its body may be huge, endless or broken. A short body that comes soon is
    read, so that the connection can be used again; with any other one the connection is closed.
    """
    where = f"{request.method} {_without_secrets(request)}"
    return await _answered(client, request, where, now_ns=now_ns, read=_skip)


async def _answered(
    client: httpx.AsyncClient,
    request: httpx.Request,
    where: str,
    *,
    now_ns: Callable[[], int],
    read: Callable[[httpx.Response], Awaitable[T]],
) -> Retry | Permanent | RetryOk[T]:
    """Send once; ``read`` makes the value of a success."""
    headers = httpx.Headers(request.headers)
    headers["Accept-Encoding"] = "gzip"
    sent = httpx.Request(
        request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
    )
    try:
        response = await client.send(sent, stream=True)
        try:
            detail = "" if response.is_success else await _first_line(response)
            said = dict(response.headers)
            if "location" in said:
                said["location"] = _cleaned(said["location"], response.request)
            failed = classify_status(where, response.status_code, said, now_ns=now_ns(), detail=detail)
            return failed or RetryOk(await read(response))
        finally:
            await response.aclose()
    except (httpx.HTTPError, OSError) as error:
        return classify_error(where, error)
    except httpx.InvalidURL as error:  # httpx parses a redirection's target, although it does not follow it
        return Permanent(HttpFailure(f"{where} answered with a redirection to an invalid URL: {error}"))
    except (_BadBody, zlib.error) as error:
        return Permanent(HttpFailure(f"{where} answered with {error}"))


async def _skip(response: httpx.Response) -> int:
    """Read a body that is not needed, as far as it is short and comes soon. Returns the status."""
    skipped = 0
    with suppress(httpx.HTTPError, OSError, TimeoutError):
        async with asyncio.timeout(_SKIP_PATIENCE_S):
            async for chunk in response.aiter_raw():
                skipped += len(chunk)
                if skipped > _MAX_SKIPPED_BYTES:
                    break
    return response.status_code


class _BadBody(Exception):
    """A body that cannot be read; its text continues the message "answered with"."""


async def _read(response: httpx.Response, max_bytes: int) -> bytes:
    """The inflated body. httpx would inflate a whole chunk at once, as often as the header says: 3 kB to 4 GiB."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"identity", "gzip"}:
        raise _BadBody(f"Content-Encoding {encoding!r}, which was not requested")
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 16) if encoding == "gzip" else None  # 16: with gzip's header
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk if inflater is None else inflater.decompress(chunk, max_bytes + 1 - len(body))
        if len(body) > max_bytes:
            raise _BadBody(f"more than the {max_bytes} bytes allowed")
    if inflater is not None and not (inflater.eof and not inflater.unused_data):
        raise _BadBody("a gzip stream that is truncated, or goes on after its end")
    return bytes(body)


async def _first_line(response: httpx.Response) -> str:
    """The first line of an error answer's body, which often says why: as much as arrives soon and fits into a message.

    Only printable text, no tags, and none of the request's own secrets, which a server may repeat.
    """
    body = b""
    with suppress(httpx.HTTPError, OSError, TimeoutError):
        async with asyncio.timeout(_DETAIL_PATIENCE_S):
            async for chunk in response.aiter_raw():
                body += chunk[:_MAX_DETAIL_BYTES]
                if len(body) >= _MAX_DETAIL_BYTES:
                    break
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        try:
            body = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(body, _MAX_DETAIL_BYTES)
        except zlib.error:
            return ""
    text = _TAG.sub("\n", body[:_MAX_DETAIL_BYTES].decode("utf-8", errors="replace"))
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    line = _cleaned(line, response.request)
    return "".join(character if character.isprintable() else "?" for character in line[:_MAX_DETAIL])


def _secrets(request: httpx.Request) -> set[str]:
    """What a request's URL has that messages must not have: user, password, the values of its query, and a path that is secret."""
    url = request.url
    found = {url.username, url.password, url.query.decode("ascii", "replace"), *url.params.values()}
    if request.extensions.get(HIDE_PATH):
        found |= {url.path.strip("/"), *url.path.split("/")}
    return {text for text in found if len(text) >= _MIN_SECRET}


def _cleaned(text: str, request: httpx.Request) -> str:
    """A text of the server, without the secrets of the request's URL."""
    for secret in sorted(_secrets(request), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def _without_secrets(request: httpx.Request) -> str:
    """The URL for messages and logs: without user, password and query, which may contain a token, or a path that is secret."""
    url = request.url.copy_with(userinfo=b"", query=None, fragment=None)
    return f"{url.copy_with(path='/')}…" if request.extensions.get(HIDE_PATH) else str(url)


def _redirection_target(location: str | None) -> str:
    """A redirection's target for messages, without secrets. It may be an invalid URL, so it is shortened as text."""
    if not location:
        return ""
    path = _USERINFO.sub("//", re.split("[?#]", location, maxsplit=1)[0])
    return f", to {path[:_MAX_LOCATION]!r}"


def classify_status(
    where: str, status: int, headers: Mapping[str, str], *, now_ns: int, detail: str = ""
) -> Retry | Permanent | None:
    """The class of a status code; ``None`` for a success. ``headers`` by lower-case name (httpx's ignore the case).

    ``detail`` is the server's own text, for the message.
    """
    if HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES:
        return None
    try:
        phrase = f" {HTTPStatus(status).phrase}"
    except ValueError:
        phrase = ""
    said = f": {detail!r}" if detail else ""
    failure = HttpFailure(
        f"{where} answered {status}{phrase}{_redirection_target(headers.get('location'))}{said}", status=status
    )
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
    """The class of an exception of httpx, or of the socket below it."""
    *_, root = _causes(error)
    because = f" ({root})" if root is not error and str(root) and str(root) not in str(error) else ""
    failure = HttpFailure(f"{where} failed: {type(error).__name__}: {error}{because}")
    failure.__cause__ = error
    return Retry(failure) if _may_pass(error) else Permanent(failure)


def _may_pass(error: BaseException) -> bool:
    for cause in _causes(error):
        if isinstance(cause, (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return True  # the peer closed the connection within the TLS handshake or stream: a reset
        if isinstance(cause, ssl.SSLError):
            return False
    if isinstance(error, httpx.ProxyError):
        return not str(error).startswith("4")  # the text begins with the proxy's status
    # ``RemoteProtocolError`` means either: the peer closed the connection without an answer, or it does not speak HTTP.
    if isinstance(error, httpx.RemoteProtocolError):
        return any(text in str(error) for text in _CONNECTION_CLOSED)
    return isinstance(error, (httpx.TimeoutException, httpx.NetworkError, OSError))


_CONNECTION_CLOSED = ("disconnected without sending", "peer closed connection")
"""The texts of h11 and httpcore; checked by tests/orchestrator_adapter/resilience/test_http.py."""


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or current.__context__
