"""Files and sockets that a forked child does not keep."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator_adapter import close_in_forked_children
from orchestrator_adapter.primitives.forked_children import belongs_here, forget


@contextmanager
def forked_child() -> Iterator[None]:
    """A child that lives until the end of this block."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        os.write(writing, b".")
        signal.pause()
        os._exit(0)
    try:
        os.read(reading, 1)
        yield
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("registered", [True, False])
def test_the_peer_of_a_registered_socket_notices_its_end(registered: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """A child that was forked keeps the connection of any other socket open."""
    ours, peer = socket.socketpair()
    peer.settimeout(20)
    if registered:
        close_in_forked_children(ours)
    with forked_child():
        ours.close()
        peer.setblocking(registered)
        if registered:
            assert peer.recv(1) == b""
        else:
            with pytest.raises(BlockingIOError):
                peer.recv(1)
    peer.close()


def test_a_port_is_free_although_a_child_was_forked() -> None:
    """The next socket can be bound to it at once."""
    first = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    close_in_forked_children(first)
    first.bind(("127.0.0.1", 0))
    with forked_child():
        address = first.getsockname()
        first.close()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second:
            second.bind(address)


def test_a_child_closes_registered_files_only(tmp_path: Path) -> None:
    """It has neither the registered file nor the claim on it; a file that was forgotten stays open."""
    registered, forgotten = (os.open(tmp_path / name, os.O_CREAT | os.O_RDWR) for name in ("a", "b"))
    close_in_forked_children(registered)
    close_in_forked_children(forgotten)
    forget(forgotten)
    if (child := os.fork()) == 0:
        try:
            os.fstat(registered)
        except OSError:
            os.fstat(forgotten)
            os._exit(int(belongs_here(registered)))
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert belongs_here(registered)
    forget(registered)
    os.close(registered)
    os.close(forgotten)
