"""Gets documents from a control plane over HTTP. Each thing that can go wrong is one sentence (``NoDocument``)."""

from __future__ import annotations

import ipaddress
import json
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec

from orchestrator_adapter.control_plane.document import VERSION, Document, decode

DEFAULTS = ("http://127.0.0.1:9100", "http://127.0.0.1:9101")
"""Where sda-ingest and sda-fusion serve, unless their settings say otherwise."""

_DEFAULT_PORT = 9100
_LAST_PORT = 65_535
_TIMEOUT_S = 5.0  # for a connection, and between two parts of an answer
_ANSWER_S = 10.0  # for the whole answer
_MAX_BYTES = 32_000_000
_SHOWN = 200  # characters of a server's own message


class NoDocument(Exception):
    """Why there is no document, as a sentence without a full stop."""


@dataclass(frozen=True, slots=True)
class Source:
    """A control plane.

    Attributes:
        url: Its address, without a path at the end.
        token: What it wants to see before it answers; empty: none is sent.
        token_file: Where the token comes from, for messages.
        tls: How its certificate is verified; ``None``: with the certificates that the system trusts.
    """

    url: str
    token: str = field(default="", repr=False)
    token_file: str = ""
    tls: ssl.SSLContext | None = None

    def fetch(self) -> bytes:
        """The present document as JSON. Raises `NoDocument`."""
        headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})
        verify = self.tls or ssl.create_default_context() if self.url.startswith("https:") else False
        try:
            # No proxy of the environment: it would receive the token, and cannot reach this machine's loopback.
            with (
                httpx.Client(verify=verify, timeout=_TIMEOUT_S, trust_env=False) as client,
                client.stream("GET", f"{self.url}/graph", headers=headers) as response,
            ):
                body = _read(response)
        except httpx.HTTPError as error:
            raise NoDocument(f"{self.url}: {_failure(error)}") from error
        if response.status_code != httpx.codes.OK:
            raise NoDocument(f"{self.url}: {self._rejected(response.status_code, body)}")
        return body

    def _rejected(self, status: int, body: bytes) -> str:
        if status == httpx.codes.UNAUTHORIZED:
            if not self.token:
                return "it needs a token: give the file that has it with --token-file"
            return f"it rejects the token of {self.token_file}"
        if status == httpx.codes.NOT_FOUND:
            return "it has no page /graph: it is not a control plane, or of an older version"
        if httpx.codes.is_redirect(status):
            return f"it answers {status} and refers to another address: give that one"
        return f"it answers {status}{_own_message(body)}"


def document_of(body: bytes, url: str) -> Document:
    """The document in an answer of ``url``. Raises `NoDocument`."""
    try:
        return decode(body)
    except msgspec.MsgspecError as error:
        version = _version(body)
        if version is None:
            raise NoDocument(f"{url}: the answer is not a document of a control plane") from error
        if version != VERSION:
            raise NoDocument(
                f"{url}: it sends documents of version {version}, and this command reads version {VERSION}: "
                "use the command of the same release"
            ) from error
        raise NoDocument(f"{url}: its document cannot be read: {error}") from error


def url_of(address: str, *, tls: bool) -> str:
    """The URL of an address: ``host``, ``host:port``, ``:port``, ``port`` or a URL; ``tls`` is used where it has no scheme.

    Raises `ValueError` with what is wrong.
    """
    given = address.strip()
    if given.isdecimal() or (given.startswith(":") and given[1:].isdecimal()):
        given = f"127.0.0.1:{given.removeprefix(':')}"
    has_scheme = "://" in given
    problem = f"expected an address such as 127.0.0.1:9100 or https://host:9100, got {address!r}"
    try:
        parts = urlsplit(given if has_scheme else f"{'https' if tls else 'http'}://{given}")
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(problem) from error
    if parts.scheme not in {"http", "https"} or not host or parts.query or parts.username or " " in given:
        raise ValueError(problem)
    if port is None and not has_scheme:
        port = _DEFAULT_PORT
    if port is not None and not 1 <= port <= _LAST_PORT:
        raise ValueError(problem)
    name = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/").removesuffix("/graph")
    return f"{parts.scheme}://{name}{'' if port is None else f':{port}'}{path}"


def is_encrypted_or_local(url: str) -> bool:
    """Whether a token that is sent there cannot be read by others on the way."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost" or host.endswith(".localhost")
    return parts.scheme == "https" or local


def read_token(path: Path) -> str:
    """The token in a file. Raises `ValueError` with what is wrong."""
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--token-file {path}: {_reason(error)}") from error
    if not token.isascii() or not token.isprintable() or not token or " " in token:
        raise ValueError(f"--token-file {path}: expected one line of visible ASCII characters")
    return token


def trusting(ca: Path) -> ssl.SSLContext:
    """TLS that trusts the certificates in ``ca`` only. Raises `ValueError` with what is wrong."""
    try:
        return ssl.create_default_context(cafile=str(ca))
    except ssl.SSLError as error:
        raise ValueError(f"--ca {ca}: expected certificates in the format PEM") from error
    except OSError as error:
        raise ValueError(f"--ca {ca}: {_reason(error)}") from error


def _read(response: httpx.Response) -> bytes:
    body, until = bytearray(), time.monotonic() + _ANSWER_S
    for part in response.iter_bytes():
        body += part
        if len(body) > _MAX_BYTES or time.monotonic() > until:
            raise NoDocument(f"{response.url}: the answer does not end: it is not a control plane")
    return bytes(body)


def _failure(error: httpx.HTTPError) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {cause.verify_message} (--ca FILE has the certificate authority)"
        if isinstance(cause, ssl.SSLError):
            return "it does not speak TLS as expected: is it an address with http://?"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.TimeoutException):
        return f"it does not answer within {_TIMEOUT_S:.0f} s"
    if isinstance(error, httpx.ConnectError):
        return f"it cannot be reached ({_shown(str(error))}): does the run serve its control plane there?"
    if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
        return "it does not answer in HTTP: is it another port, or an address with https://?"
    return f"the request failed: {_shown(str(error)) or type(error).__name__}"


def _own_message(body: bytes) -> str:
    try:
        message = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return ", which is not a document"
    return f": {_shown(str(message))}"


def _version(body: bytes) -> object:
    try:
        return json.loads(body)["version"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "it is not a text"


def _shown(text: str) -> str:
    line = " ".join(text.split())[:_SHOWN]
    return "".join(character if character.isprintable() else "?" for character in line)
