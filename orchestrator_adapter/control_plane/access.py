"""Who may read and who may act: pure functions of the settings and of a request's headers, and where they are applied.

On a loopback address no token is needed to read. A page of the internet that a browser on this machine shows must not read
it either: it can give its own host name the address 127.0.0.1 (DNS rebinding), but it cannot change the ``Host`` header that
the browser then sends. So such requests are rejected by that header. Where a token is needed, it protects against this as
well: a browser sends a password only to the host name for which it was entered.
"""

from __future__ import annotations

import base64
import hmac
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator_adapter.control_plane.answers import as_json
from orchestrator_adapter.control_plane.config import ControlPlane, is_loopback
from orchestrator_adapter.control_plane.exposition import JSON
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.event_log import EventLog, RateLimiter

_QUOTED = 100  # characters of a client's text in an answer or a log line
_HEALTH = "/health"
_HOST = re.compile(r"(?:\[(?P<address>[^][]*)\]|(?P<name>[^][:]*))(?::[0-9]*)?")
READS = "may_read"
"""The key of a request's state: whether it may read everything. ``/health`` is answered without that, but has no reasons then."""


@dataclass(frozen=True, slots=True)
class Denial:
    """Why a request is not answered: the status, a sentence, and what a client should send instead (``WWW-Authenticate``)."""

    status: int
    message: str
    challenge: str = ""

    @property
    def headers(self) -> Mapping[str, str]:
        """The header of the challenge, if there is one."""
        return {"WWW-Authenticate": self.challenge} if self.challenge else {}


def deny_reading(settings: ControlPlane, *, host: str | None, authorization: str | None) -> Denial | None:
    """Why a request with these headers may not read; ``None``: it may."""
    if not settings.token_to_read:
        if host is None or is_loopback(_without_port(host)):  # every browser sends a host
            return None
        return Denial(
            421,
            f"this address answers to localhost, 127.0.0.1 and [::1] only, and the request is for {host[:_QUOTED]!r}; "
            "with a token, and behind_proxy or TLS, the control plane answers to every name",
        )
    if _has_token(authorization, settings.token, basic=True):
        return None
    return Denial(
        401,
        "a token is needed: send it as 'Authorization: Bearer TOKEN', or as the password of HTTP Basic with any user",
        'Basic realm="control plane", charset="UTF-8"',
    )


def deny_acting(settings: ControlPlane, *, authorization: str | None, content_type: str | None) -> Denial | None:
    """Why a request with these headers, which may read, may not act; ``None``: it may.

    A browser adds a password of HTTP Basic by itself, also to a form that another page sends. So only the header ``Bearer``
    counts here, and the body must be JSON, which no form can send.
    """
    if not settings.actions:
        return Denial(403, "actions are disabled; the settings actions and token of the control plane enable them")
    if not _has_token(authorization, settings.token, basic=False):
        return Denial(401, "actions need the token: send it as 'Authorization: Bearer TOKEN'", "Bearer")
    if (content_type or "").partition(";")[0].strip().lower() != JSON:
        return Denial(415, f"send 'Content-Type: {JSON}', with or without a body")
    return None


def _has_token(authorization: str | None, token: str, *, basic: bool) -> bool:
    """Whether the header has the token. The time that this takes says nothing of the token."""
    scheme, _, credentials = (authorization or "").partition(" ")
    given = credentials.strip()
    if basic and scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:  # not base64, or not text
            return False
    elif scheme.lower() != "bearer":
        return False
    return bool(token) and hmac.compare_digest(given.encode(), token.encode())


def _without_port(host: str) -> str:
    """The name or address in a ``Host`` header; empty if that is not one with or without a port (RFC 9110, section 7.2)."""
    found = _HOST.fullmatch(host)
    return "" if found is None else found["address"] or found["name"]


class Guard:
    """Answers requests that may not read, and passes the others on. Denied requests are logged, at most one line a second."""

    def __init__(self, app: ASGIApp, settings: ControlPlane, denials: DenialLog) -> None:
        self._app = app
        self._settings = settings
        self._denials = denials

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        request = Request(scope)
        denial = deny_reading(
            self._settings, host=request.headers.get("host"), authorization=request.headers.get("authorization")
        )
        scope["state"][READS] = denial is None
        if denial is None or (denial.status == HTTPStatus.UNAUTHORIZED and request.url.path == _HEALTH):
            await self._app(scope, receive, send)
            return
        self._denials(request, denial)
        await as_json({"error": denial.message}, denial.status, denial.headers)(scope, receive, send)


class DenialLog:
    """Logs denied requests: at most one line a second for each status, with the number of those that were not logged."""

    def __init__(self, log: EventLog, clock: Clock) -> None:
        self._log = log
        self._limiter = RateLimiter(clock)

    def __call__(self, request: Request, denial: Denial) -> None:
        """Log one."""
        if (suppressed := self._limiter.admit(denial.status)) is not None:
            client = request.client
            self._log(
                "access_denied",
                level=logging.WARNING,
                client="" if client is None else client.host,
                path=request.scope["path"][:_QUOTED],
                status=denial.status,
                message=denial.message,
                not_logged_since_last=suppressed,
            )
