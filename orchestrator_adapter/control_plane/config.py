"""``ControlPlane``: where a run is to be asked for its health and its figures, and what askers may cost."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

_MAX_PORT = 65_535


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPlane:
    """Where to serve it, and how. It only ever reads, and it asks nobody for a password: mind who can reach the address.

    Attributes:
        host: The address to listen on.
        port: The TCP port; 0 lets the system choose, and the log line ``control_plane`` tells which it chose.
        patience: How long a request waits for the event loop to answer; then the last figures have to do, and the loop
            counts as stalled as soon as it has been silent for the watchdog's threshold (where none runs: for this).
        request_limit: For a whole request, from the connection to the last byte of the answer; then it is hung up on.
        max_connections: Further ones are hung up on at once.
        max_requests_per_s: Further ones wait for their turn, after a burst of as many: an answer costs the interpreter a
            few milliseconds, which the graph wants, too.
    """

    host: str = "127.0.0.1"
    port: int = 9100
    patience: timedelta = timedelta(milliseconds=250)
    request_limit: timedelta = timedelta(seconds=10)
    max_connections: int = 64
    max_requests_per_s: float = 20.0

    def __post_init__(self) -> None:
        zero = timedelta(0)
        problems = [
            f"ControlPlane: {name} must be {bound}, got {value!r}"
            for name, value, good, bound in (
                ("host", self.host, bool(self.host), "an address"),
                ("port", self.port, 0 <= self.port <= _MAX_PORT, f"0 to {_MAX_PORT}"),
                ("patience", self.patience, self.patience > zero, "> 0"),
                ("request_limit", self.request_limit, self.request_limit > self.patience, "> patience"),
                ("max_connections", self.max_connections, self.max_connections >= 1, ">= 1"),
                ("max_requests_per_s", self.max_requests_per_s, self.max_requests_per_s >= 1, ">= 1"),
            )
            if not good
        ]
        if problems:
            raise ValueError("; ".join(problems))
