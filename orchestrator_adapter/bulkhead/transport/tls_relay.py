"""TLS for a worker that reads and writes from two threads, which one TLS connection does not support (OpenSSL, SSL_read(3)).

A thread owns the TLS connection and relays bytes between it and one end of a local socket pair; the worker uses the other end
like a plain connection.
"""

from __future__ import annotations

import select
import socket
import ssl
import threading
from contextlib import suppress

from orchestrator_adapter.bulkhead.transport.certificates import worker_context
from orchestrator_adapter.bulkhead.transport.invitation import Credentials

_CHUNK = 64 * 1024
_WOULD_BLOCK = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


def connect_tls(host: str, port: int, credentials: Credentials, *, within_s: float) -> socket.socket:
    """A socket whose bytes are relayed through TLS to ``host``, whose certificate was checked. Its timeout is ``within_s``.

    Raises ``OSError`` (``ssl.SSLError`` is a subclass).
    """
    plain = socket.create_connection((host, port), timeout=within_s)
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = worker_context(credentials).wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise
    ours, relayed = socket.socketpair()
    ours.settimeout(within_s)
    threading.Thread(target=_run, args=(tls, relayed), daemon=True).start()
    return ours


def _run(tls: ssl.SSLSocket, inner: socket.socket) -> None:
    with tls, inner, suppress(OSError):  # when one side fails, the other is closed
        tls.setblocking(False)  # noqa: FBT003 - the standard library's signature
        inner.setblocking(False)  # noqa: FBT003 - as above
        _relay(tls, inner)


def _relay(tls: ssl.SSLSocket, inner: socket.socket) -> None:
    """Relay bytes in both directions until one side ends. Buffers at most one chunk per direction."""
    inward = outward = memoryview(b"")
    while True:
        moved = False
        if not inward:
            with suppress(*_WOULD_BLOCK):
                inward = memoryview(tls.recv(_CHUNK))
                if not inward:
                    return
        if inward:
            with suppress(BlockingIOError):
                inward = inward[inner.send(inward) :]
                moved = True
        if not outward:
            with suppress(BlockingIOError):
                outward = memoryview(inner.recv(_CHUNK))
                if not outward:
                    return
        if outward:
            with suppress(*_WOULD_BLOCK):
                outward = outward[tls.send(outward) :]
                moved = True
        if not moved:
            _wait(tls, inner, inward=bool(inward), outward=bool(outward))


def _wait(tls: ssl.SSLSocket, inner: socket.socket, *, inward: bool, outward: bool) -> None:
    poll = select.poll()
    poll.register(tls, (0 if inward else select.POLLIN) | (select.POLLOUT if outward else 0))
    poll.register(inner, (select.POLLOUT if inward else 0) | (0 if outward else select.POLLIN))
    poll.poll()
