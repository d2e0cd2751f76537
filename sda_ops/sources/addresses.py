"""Addresses that sources listen on, IPv4 or IPv6."""

from __future__ import annotations

import socket
from typing import Any


def local_address(host: str, port: int, kind: socket.SocketKind) -> tuple[socket.AddressFamily, Any]:
    """Family and address to bind for ``host``, an address or a name; empty for every IPv4 address.

    A name with both kinds of address means IPv4, because every sender can reach it. Raises ``OSError``, and
    ``UnicodeError`` for a name that IDNA cannot encode.
    """
    entries = socket.getaddrinfo(host or None, port, type=kind, flags=socket.AI_PASSIVE)
    family, _, _, _, address = min(entries, key=lambda entry: entry[0] != socket.AF_INET)
    return family, address


def bracketed(host: str) -> str:
    """``host`` as in a URL: an IPv6 address has brackets."""
    return f"[{host}]" if ":" in host else host
