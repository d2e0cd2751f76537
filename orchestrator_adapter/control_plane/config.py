"""``ControlPlane``: the address that serves a run's health and metrics, and how much clients may cost."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from orchestrator_adapter.primitives.check_fields import check_fields

if TYPE_CHECKING:  # it imports prometheus_client, which a run without a control plane does not need
    from orchestrator_adapter.control_plane.collectors import MetricsCollector

_MAX_PORT = 65_535
_TOKEN = re.compile(r"[!-~]{16,}")  # what a header can carry


@dataclass(frozen=True, slots=True)
class Figure:
    """One column of a ``MetricsPanel``.

    Attributes:
        title: The column's heading.
        metric: The name of a sample of one of the run's collectors, for example ``alerts_total``. A histogram's name stands
            for its 99th percentile.
        labels: Only samples with these labels.
        unit: How the value is shown: ``count``, ``seconds``, ``bytes``, ``age`` (seconds since this Unix time) or ``flag``
            (yes, if it is not 0).
        alarm_above: A row with a greater value is marked; ``None``: none is.
    """

    title: str
    metric: str
    labels: Mapping[str, str] = field(default_factory=dict)
    unit: Literal["count", "seconds", "bytes", "age", "flag"] = "count"
    alarm_above: float | None = None


@dataclass(frozen=True, slots=True)
class MetricsPanel:
    """A table of the live page: figures of the run's own collectors, one row for each value of the label ``by``.

    Attributes:
        title: Its heading.
        by: The label that names the rows, for example ``source``. Samples without it are one row, whose name is empty.
        figures: Its columns.
    """

    title: str
    by: str
    figures: tuple[Figure, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """Where and how to serve. On a loopback address, everyone on the machine can read. Other addresses need a token and TLS.

    Attributes:
        host: The address to listen on. ``0.0.0.0`` is every IPv4 address, ``::`` every address, IPv4 and IPv6.
        port: The TCP port; with 0 the system chooses one, and the log line ``control_plane`` names it.
        patience: How long a request waits for the graph's event loop. After that it is answered with the last figures,
            and the loop counts as stalled once it has not answered for the watchdog's threshold (without a watchdog:
            for ``patience``).
        request_timeout: For a connection, from its beginning to the last byte of the answer; then it is closed.
        max_connections: Further connections are closed at once.
        reuse_for: A rendered answer is sent again to requests that come within this time: rendering takes the
            interpreter a few milliseconds, which the graph needs as well.
        collectors: ``prometheus_client`` collectors of your own, served with the built-in metrics. They are called on the
            control plane's thread, and must not block. One that raises is logged once and costs only its own metrics. A
            metric whose name exists already is an error at the start.
        panels: Tables of the live page, made of the collectors' figures.
        token: A secret of at least 16 characters. With one, actions need it, and on an address that is not loopback reading
            needs it as well: as ``Authorization: Bearer TOKEN``, or as the password of HTTP Basic, which browsers ask for.
        tls: The files of the certificate (with its chain) and of its key, PEM; ``None``: plain HTTP.
        behind_proxy: Plain HTTP on an address that is not loopback is an error, unless a proxy ends TLS in front of it.
        actions: Whether drain, pause and force may be requested. Needs ``token``.
    """

    host: str = "127.0.0.1"
    port: int = 9100
    patience: timedelta = timedelta(milliseconds=250)
    request_timeout: timedelta = timedelta(seconds=10)
    max_connections: int = 64
    reuse_for: timedelta = timedelta(milliseconds=50)
    collectors: tuple[MetricsCollector, ...] = ()
    panels: tuple[MetricsPanel, ...] = ()
    token: str = field(default="", repr=False)
    tls: tuple[Path, Path] | None = None
    behind_proxy: bool = False
    actions: bool = False

    def __post_init__(self) -> None:
        zero = timedelta(0)
        check_fields(
            "ControlPlane",
            ("host", self.host, bool(self.host), "an address"),
            ("port", self.port, 0 <= self.port <= _MAX_PORT, f"0 to {_MAX_PORT}"),
            ("patience", self.patience, self.patience > zero, "> 0"),
            ("request_timeout", self.request_timeout, self.request_timeout > self.patience, "> patience"),
            ("max_connections", self.max_connections, self.max_connections >= 1, ">= 1"),
            ("reuse_for", self.reuse_for, self.reuse_for >= zero, ">= 0"),
        )
        if problem := self._access_problem():
            raise ValueError(f"ControlPlane: {problem}")

    @property
    def token_to_read(self) -> bool:
        """Whether reading needs the token: clients on other machines may reach it."""
        return self.behind_proxy or not is_loopback(self.host)

    def _access_problem(self) -> str:
        """Why this access is not safe, in words; empty: it is. Does not repeat the token."""
        if self.token and not _TOKEN.fullmatch(self.token):
            return "token must have at least 16 characters, which are visible ASCII characters without spaces"
        if self.actions and not self.token:
            return "actions need a token"
        if self.behind_proxy and not self.token:
            return "behind_proxy needs a token: everyone who can reach the proxy could read"
        if is_loopback(self.host):
            return ""
        missing = [] if self.token else ["a token"]
        if self.tls is None and not self.behind_proxy:
            missing.append("a certificate and its key for TLS (or behind_proxy, if a proxy ends TLS in front of it)")
        if not missing:
            return ""
        return f"host {self.host!r} can be reached from other machines, so it needs {' and '.join(missing)}"


def is_loopback(host: str) -> bool:
    """Whether ``host`` means this machine by definition: ``localhost``, a name below it (RFC 6761), 127.0.0.0/8 or ::1."""
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
