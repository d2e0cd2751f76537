"""A bulkhead whose listener cannot be opened, or that listens on every address."""

from __future__ import annotations

import asyncio
import re
import socket

import pytest

from orchestrator_adapter.bulkhead import BulkheadCannotStart, LocalProcesses, Network
from orchestrator_adapter.bulkhead.transport.listener import Listener
from orchestrator_adapter.primitives.clock import SystemClock
from tests.orchestrator_adapter.bulkhead.bulkhead_handlers import bulkhead

SETTINGS = "(Network.bind is the address to listen on, by default Network.host, and Network.port the port)"


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.1", "it is not an address of this machine"),  # RFC 5737: for documentation only
        ("no-such-host.invalid", r"the name cannot be resolved \(.*\)"),
        ("x" * 80, "it is neither a host name nor an address"),
    ],
)
async def test_an_address_that_cannot_be_used_is_one_plain_line(host: str, why: str) -> None:
    """A foreign address, an unknown name, and a name that is too long: the address, the reason and the settings."""
    pool = bulkhead(launcher=LocalProcesses(network=Network(host)))
    with pytest.raises(BulkheadCannotStart) as raised:
        await pool.__aenter__()
    message = f"bulkhead 'toy': cannot listen on '{host}', port 0: "
    assert re.fullmatch(re.escape(message) + why + re.escape(f" {SETTINGS}"), str(raised.value))


async def test_a_taken_port_is_one_plain_line() -> None:
    """The message names the port, and says that port 0 takes any free one."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        pool = bulkhead(launcher=LocalProcesses(network=Network("127.0.0.1", port=port)))
        with pytest.raises(BulkheadCannotStart) as raised:
            await pool.__aenter__()
    assert str(raised.value) == (
        f"bulkhead 'toy': cannot listen on '127.0.0.1', port {port}: another socket listens there: "
        f"choose another port, or port 0 for any free one {SETTINGS}"
    )


def test_every_invalid_field_of_a_network_is_reported_at_once() -> None:
    """An empty host, an empty address and a port that does not exist."""
    with pytest.raises(ValueError, match="Network: host must be a host name") as raised:
        Network("", bind="", port=65_536)
    assert str(raised.value) == (
        "Network: host must be a host name or an address, in ASCII, got ''; "
        "Network: bind must be an address, or None, got ''; Network: port must be 0 to 65535, got 65536"
    )


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
async def test_two_colons_listen_on_every_ipv4_and_ipv6_address() -> None:
    """Peers reach the listener by 127.0.0.1 and by ::1."""
    listener = Listener(
        network=Network("localhost", bind="::"),
        clock=SystemClock(),
        max_bytes=1,
        key_of=lambda _: None,
        on_admitted=lambda _, __: None,
        on_rejected=lambda _, __: None,
    )
    address = await listener.open()
    try:
        for host in ("127.0.0.1", "::1"):
            (await asyncio.to_thread(socket.create_connection, (host, address.port), 20)).close()
    finally:
        await listener.close()
