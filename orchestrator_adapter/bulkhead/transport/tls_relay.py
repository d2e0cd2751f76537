"""TLS for a worker that reads and writes from two threads, which one TLS connection does not bear (OpenSSL, SSL_read(3)).

A thread owns the TLS connection and passes bytes between it and one end of a local pair of sockets; the worker has the other
end, and does not know the difference.
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
_LATER = (ssl.SSLWantReadError, ssl.SSLWantWriteError)


def connect_tls(host: str, port: int, credentials: Credentials, *, within_s: float) -> socket.socket:
    """A socket whose bytes go through TLS to ``host``, whose certificate has been checked; its timeout is ``within_s``.

    Raises ``OSError`` (``ssl.SSLError`` is one).
    """
    plain = socket.create_connection((host, port), timeout=within_s)
    try:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = worker_context(credentials).wrap_socket(plain, server_hostname=host)
    except BaseException:
        plain.close()
        raise
    ours, pumps = socket.socketpair()
    ours.settimeout(within_s)
    threading.Thread(target=_run, args=(tls, pumps), daemon=True).start()
    return ours


def _run(tls: ssl.SSLSocket, inner: socket.socket) -> None:
    with tls, inner, suppress(OSError):  # whichever side it is: the other sees the end
        tls.setblocking(False)  # noqa: FBT003 - the standard library's signature
        inner.setblocking(False)  # noqa: FBT003 - as above
        _pump(tls, inner)


def _pump(tls: ssl.SSLSocket, inner: socket.socket) -> None:
    """Pass on what comes, in both directions, until one side ends. Holds at most a chunk of each."""
    inward = outward = memoryview(b"")
    while True:
        moved = False
        if not inward:
            with suppress(*_LATER):
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
            with suppress(*_LATER):
                outward = outward[tls.send(outward) :]
                moved = True
        if not moved:
            _wait(tls, inner, inward=bool(inward), outward=bool(outward))


def _wait(tls: ssl.SSLSocket, inner: socket.socket, *, inward: bool, outward: bool) -> None:
    poll = select.poll()
    poll.register(tls, (0 if inward else select.POLLIN) | (select.POLLOUT if outward else 0))
    poll.register(inner, (select.POLLOUT if inward else 0) | (0 if outward else select.POLLIN))
    poll.poll()
