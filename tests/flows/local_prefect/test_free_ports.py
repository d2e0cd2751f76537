"""Ports for servers that are still to start."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from flows.local_prefect import processes as prefect_processes
from flows.local_prefect.processes import HOST, free_ports


def test_no_free_port_is_in_the_range_of_outgoing_connections() -> None:
    """Else another process's connection could take the port while the server restarts."""
    with ExitStack() as sockets:
        ephemeral = [sockets.enter_context(socket.create_server((HOST, 0))).getsockname()[1] for _ in range(200)]
    assert max(free_ports(200)) < min(ephemeral)


def test_all_free_ports_can_be_used_at_once() -> None:
    """For TCP and for UDP: no two are the same."""
    with ExitStack() as sockets:
        for port in free_ports(50):
            sockets.enter_context(socket.create_server((HOST, port)))
            sockets.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).bind((HOST, port))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_taken_ports_are_left_out_and_too_few_are_an_error(
    kind: socket.SocketKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that is in use for TCP or for UDP is not free."""
    (taken, free) = free_ports(2)
    monkeypatch.setattr(prefect_processes, "_NOT_EPHEMERAL", (taken, free))
    with socket.socket(socket.AF_INET, kind) as user:
        user.bind((HOST, taken))
        if kind == socket.SOCK_STREAM:
            user.listen()
        assert free_ports(1) == [free]
        with pytest.raises(OSError, match=r"fewer than 2 ports of 127\.0\.0\.1 are free"):
            free_ports(2)
