"""How workers on other machines reach the bulkhead."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator_adapter.primitives.check_fields import check_fields

_MAX_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Network:
    """Workers connect by TCP with TLS; both sides have certificates.

    Attributes:
        host: The name or address by which workers reach this machine, in ASCII (an international name as ``xn--…``). The
            listener's certificate is issued for it.
        bind: The address to listen on; ``None`` for ``host``. ``0.0.0.0`` is every IPv4 address, ``::`` every address.
        port: The port to listen on; 0 for any free port.
    """

    host: str
    bind: str | None = None
    port: int = 0

    def __post_init__(self) -> None:
        check_fields(
            "Network",
            ("host", self.host, self.host and self.host.isascii(), "a host name or an address, in ASCII"),
            ("bind", self.bind, self.bind != "", "an address, or None"),
            ("port", self.port, 0 <= self.port <= _MAX_PORT, f"0 to {_MAX_PORT}"),
        )
