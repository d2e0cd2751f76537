"""How workers on other machines reach the bulkhead."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Network:
    """Workers connect by TCP with TLS; both sides have certificates.

    Attributes:
        host: The name or address by which workers reach this machine. The listener's certificate is issued for it.
        bind: The address to listen on; ``None`` for ``host``.
        port: The port to listen on; 0 for any free port.
    """

    host: str
    bind: str | None = None
    port: int = 0
