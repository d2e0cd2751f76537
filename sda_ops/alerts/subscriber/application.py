"""The HTTP application of a subscriber: check the signature, recognise a repeat, act once, and answer.

=======  ================================================================================================
answer   when
=======  ================================================================================================
200      the alert is on the disk; a repeat as well, because the sender lost the first answer
400      no ``Idempotency-Key``, or not ``<conjunction id>/<revision>``: the sender parks such an alert
401      the signature is wrong, missing or too old: the sender tries again slowly
408      the body did not arrive within ten seconds
413      the body is larger than 1 MiB
503      the alert could not be written: the sender tries again
=======  ================================================================================================
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from functools import partial

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sda_ops.alerts.delivery.signature import signature_problem
from sda_ops.alerts.subscriber.table import ReceivedAlert, SubscriberTable

_MAX_BODY_BYTES = 1 << 20
_BODY_WITHIN_S = 10.0
_NS_PER_S = 10**9


def application(
    table: SubscriberTable,
    *,
    now_ns: Callable[[], int],
    key: bytes | None = None,
    on_alert: Callable[[ReceivedAlert], object] | None = None,
) -> Starlette:
    """Alerts are posted to any path. ``key`` is that of the shared secret; ``None``: signatures are not checked.

    ``on_alert`` is called once for each new alert, after it is on the disk. What may not be lost when the process is killed
    belongs into the table's transaction instead.
    """
    receive = partial(_receive, table, now_ns, key, on_alert)

    async def endpoint(request: Request) -> Response:
        return await receive(request)

    return Starlette(routes=[Route("/{path:path}", endpoint, methods=["POST"])])


async def _receive(
    table: SubscriberTable,
    now_ns: Callable[[], int],
    key: bytes | None,
    on_alert: Callable[[ReceivedAlert], object] | None,
    request: Request,
) -> Response:
    try:
        async with asyncio.timeout(_BODY_WITHIN_S):
            body = await _body(request)
    except TimeoutError:
        return _rejected(408, f"the body did not arrive within {_BODY_WITHIN_S:g} s")
    except ClientDisconnect:
        return Response(status_code=400)  # the sender has closed the connection and reads no answer
    if body is None:
        return _rejected(413, f"expected at most {_MAX_BODY_BYTES} bytes")
    now = now_ns()
    if key is not None and (problem := signature_problem(key, request.headers, body, now_s=now / _NS_PER_S)):
        return _rejected(401, problem)
    try:
        alert = ReceivedAlert.from_key(
            request.headers.get("idempotency-key", ""),
            content_type=request.headers.get("content-type", ""),
            body=body,
            received_ns=now,
        )
    except ValueError:
        return _rejected(400, "Idempotency-Key: expected <conjunction id>/<revision>")
    try:
        is_new = await run_in_threadpool(table.store, alert)
    except sqlite3.Error as error:
        return _rejected(503, f"the alert could not be written: {error}")
    if is_new and on_alert is not None:
        on_alert(alert)
    return JSONResponse({"result": "stored" if is_new else "repeat"})


async def _body(request: Request) -> bytes | None:
    """The body; ``None`` if it is too large."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY_BYTES:
            return None
    return bytes(body)


def _rejected(status: int, why: str) -> Response:
    return JSONResponse({"error": why}, status)
