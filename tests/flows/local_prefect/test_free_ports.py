"""Ports for servers that are still to start."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from flows.local_prefect import processes as prefect_processes
from flows.local_prefect.processes import HOST, free_ports


def test_no_port_is_one_that_the_system_may_give_to_somebody_else() -> None:
    """A connection of another process would sit on it for as long as it lasts, and the server could not start again."""
    with ExitStack() as held:
        handed_out = [held.enter_context(socket.create_server((HOST, 0))).getsockname()[1] for _ in range(200)]
    assert max(free_ports(200)) < min(handed_out)


def test_each_can_be_listened_on_at_once() -> None:
    """By TCP and UDP, all of them together: no two are the same."""
    with ExitStack() as held:
        for port in free_ports(50):
            held.enter_context(socket.create_server((HOST, port)))
            held.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).bind((HOST, port))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_what_is_taken_is_passed_over_and_too_few_is_an_error(
    kind: socket.SocketKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port in use by either protocol is not free; and nobody gets fewer than were asked for."""
    (taken, free) = free_ports(2)
    monkeypatch.setattr(prefect_processes, "_NEVER_HANDED_OUT", (taken, free))
    with socket.socket(socket.AF_INET, kind) as user:
        user.bind((HOST, taken))
        if kind == socket.SOCK_STREAM:
            user.listen()
        assert free_ports(1) == [free]
        with pytest.raises(OSError, match=r"fewer than 2 ports of 127\.0\.0\.1 are free"):
            free_ports(2)
