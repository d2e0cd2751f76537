"""Addresses that sources listen on, IPv4 or IPv6."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

from orchestrator_adapter import OperatorError

Binding: TypeAlias = tuple[socket.AddressFamily, Any]
"""Where a socket is bound: the family and the address, as the standard library has it."""


def local_address(host: str, port: int, kind: socket.SocketKind) -> Binding:
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


@contextmanager
def failures_named(what: str) -> Iterator[None]:
    """A failure to resolve a name or to open a socket becomes an ``OperatorError`` that begins with ``what``."""
    try:
        yield
    except (OSError, UnicodeError) as error:
        raise OperatorError(f"{what}: {error}") from error
