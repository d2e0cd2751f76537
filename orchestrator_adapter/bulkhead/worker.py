"""What runs in a worker process: connect, make the handler, answer calls until it is stopped. Blocking sockets, no event loop.

A separate thread sends large answers while the next request is computed: a handler that holds the GIL (sgp4) does not prevent
the kernel from sending. Another thread watches the connection and ends the process if the connection is lost and the handler
does not return soon, so that no worker outlives its bulkhead.
"""

from __future__ import annotations

import itertools
import os
import queue
import random
import select
import signal
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from importlib import import_module
from operator import attrgetter
from typing import Any, Protocol

from numpy.typing import NDArray

from orchestrator_adapter.bulkhead.errors import Malformed
from orchestrator_adapter.bulkhead.transport.handshake import CHALLENGE_BYTES, PROOF_BYTES, WorkerHandshake
from orchestrator_adapter.bulkhead.transport.invitation import Invitation
from orchestrator_adapter.bulkhead.transport.wire import Arrays, Buffer, Failure, Frame, FrameReader, Message, encode
from orchestrator_adapter.supervision.restart import Backoff

_CONNECT_WITHIN_S = 10.0  # one attempt, handshake included
_RETRY = Backoff(timedelta(milliseconds=50), timedelta(seconds=1))
_ENDS_WITHIN_S = 2.0  # after its connection is lost
_EXIT_CONNECTION_LOST = 75  # EX_TEMPFAIL of sysexits.h
_READ_AT_ONCE = 4 * 1024 * 1024
_SOCKET_BUFFER = 1024 * 1024  # the kernel grants less if it must
# Measured with as many workers as cores: the stream's p99 was 1.37 times its value without load, and 1.14 times with this.
_NICENESS = 10
_INLINE_BYTES = 32 * 1024  # a smaller answer is copied to the kernel faster than a thread wakes up


class Handler(Protocol):
    """Computes answers in a worker process. The bulkhead's ``target``, a callable without arguments, makes it there.

    All methods are called on one thread, one after the other. An exception reaches the caller as ``HandlerFailed``; the
    handler remains in use.
    """

    def share(self, key: str, arrays: Arrays) -> None:
        """Replace the shared state of this key. If it raises, it must keep the former state."""

    def handle(self, method: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
        """Answer a request. The handler owns ``arrays``. It must not change the returned arrays afterwards."""
        ...


def serve(invitation: Invitation) -> None:
    """Run a worker: connect and answer calls. Blocks until the bulkhead stops the worker.

    While the bulkhead cannot be reached, or closes the connection before the worker has authenticated, the worker tries again
    for ``start_within_s`` of its invitation. Raises ``OSError`` after that, if nothing listens there, and if the connection is
    lost later, and ``PeerRejected`` or ``Malformed`` if the peer is not the bulkhead. If the target raises, the exception is reported to the bulkhead and raised here. If the
    connection is lost and the handler does not return within two seconds, the process exits at once.
    """
    with _connected(invitation) as sock, _sender(sock, invitation) as sender:
        sender.send(encode("joined", ticket=os.getpid(), name=socket.gethostname()[:200]))
        try:
            handler = _make(invitation.target)
        except BaseException as error:
            sender.send(encode("failed", failure=_failure(error)))
            raise
        sender.send(encode("ready"))
        for frame in _frames(sock, invitation.max_bytes):
            if frame.header.kind == "stop":
                return
            sender.send(_answer(handler, frame, invitation.max_bytes))
    raise ConnectionError("the connection to the bulkhead is lost")


def ignore_signals() -> None:
    """Ignore SIGINT, SIGTERM and SIGHUP, which stop the pipeline: its drain still needs the workers. Call it in the main thread."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def lower_priority() -> None:
    """Raise this process's niceness, so that the stream has priority when processors are busy."""
    os.nice(_NICENESS)


def _make(target: str) -> Handler:
    module, _, name = target.partition(":")
    handler: Handler = attrgetter(name)(import_module(module))()
    return handler


def _answer(handler: Handler, frame: Frame, max_bytes: int) -> Message:
    header = frame.header
    if header.kind not in {"call", "share"}:
        raise Malformed(f"expected a call, got {header.kind!r}")
    try:
        answer: Arrays = {}
        if header.kind == "share":
            handler.share(header.name, frame.arrays)
        else:
            answer = handler.handle(header.name, frame.arrays)
        return encode("answer", ticket=header.ticket, arrays=answer, max_bytes=max_bytes)
    except Exception as error:  # noqa: BLE001 - it is reported to the caller, in another process
        return encode("failed", ticket=header.ticket, failure=_failure(error))


def _failure(error: BaseException) -> Failure:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return Failure.of(name, str(error), "".join(traceback.format_exception(error)))


def _frames(sock: socket.socket, max_bytes: int) -> Iterator[Frame]:
    """The received frames, until the connection ends."""
    reader = FrameReader(max_bytes=max_bytes, at_once=_READ_AT_ONCE)
    while count := sock.recv_into(reader.buffer()):
        yield from reader.received(count)


@contextmanager
def _connected(invitation: Invitation) -> Iterator[socket.socket]:
    """A connection on which both sides have authenticated each other."""
    sock = _authenticated(invitation)
    done = threading.Event()
    try:
        threading.Thread(target=_exit_after_disconnect, args=(sock.dup(), done), daemon=True).start()
        yield sock
    finally:
        done.set()
        with suppress(OSError):  # it is not connected any more
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()


def _authenticated(invitation: Invitation) -> socket.socket:
    """Connect and authenticate, with a jittered backoff between the attempts."""
    deadline, rng = time.monotonic() + invitation.start_within_s, random.Random()
    for attempt in itertools.count(1):
        try:
            return _try_to_authenticate(invitation)
        except (ssl.SSLCertVerificationError, ConnectionRefusedError):  # another listener, or none
            raise
        except OSError as error:
            delay_s = _RETRY.delay_s(attempt, rng)
            if time.monotonic() + delay_s >= deadline:
                raise ConnectionError(
                    f"the bulkhead did not admit this worker within {invitation.start_within_s:g} s: {error}"
                ) from error
        time.sleep(delay_s)
    raise AssertionError("unreachable")


def _try_to_authenticate(invitation: Invitation) -> socket.socket:
    sock = _connect(invitation)
    try:
        handshake = WorkerHandshake(invitation.token, invitation.key)
        sock.sendall(handshake.hello(_exactly(sock, CHALLENGE_BYTES)))
        handshake.check(_exactly(sock, PROOF_BYTES))
        sock.settimeout(None)
    except BaseException:
        sock.close()
        raise
    return sock


def _connect(invitation: Invitation) -> socket.socket:
    if invitation.credentials is not None:
        from orchestrator_adapter.bulkhead.transport.tls_relay import connect_tls  # noqa: PLC0415 - only TLS needs it

        return connect_tls(invitation.host, invitation.port, invitation.credentials, within_s=_CONNECT_WITHIN_S)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        sock.settimeout(_CONNECT_WITHIN_S)
        sock.connect(invitation.path)
    except BaseException:
        sock.close()
        raise
    return sock


def _exactly(sock: socket.socket, count: int) -> bytes:
    received = bytearray()
    while len(received) < count:
        if not (more := sock.recv(count - len(received))):
            raise ConnectionResetError("the bulkhead closed the connection during the handshake")
        received += more
    return bytes(received)


def _exit_after_disconnect(sock: socket.socket, done: threading.Event) -> None:
    with sock:
        poll = select.poll()
        # poll always reports POLLHUP. On Linux, POLLRDHUP must be requested to see that only the other side has closed.
        poll.register(sock, getattr(select, "POLLRDHUP", 0))
        poll.poll()
    if not done.wait(_ENDS_WITHIN_S):
        os._exit(_EXIT_CONNECTION_LOST)


@contextmanager
def _sender(sock: socket.socket, invitation: Invitation) -> Iterator[_Sender]:
    # The TLS relay needs the GIL for each 16 KiB: a handler that holds the GIL would starve it, so sending does not overlap.
    sender = _Sender(sock, overlap=invitation.credentials is None)
    try:
        yield sender
    finally:
        sender.close()


class _Sender:
    """Sends messages in order, large ones on a separate thread."""

    def __init__(self, sock: socket.socket, *, overlap: bool) -> None:
        self._sock = sock
        self._overlap = overlap
        self._queue: queue.Queue[Message | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        """Send ``message``. May return before it is sent, but not before the sending of the previous message has begun."""
        if message.size <= _INLINE_BYTES and not self._queue.unfinished_tasks:
            self._write(message.buffers)
            return
        self._queue.put(message)
        if not self._overlap:
            self._queue.join()

    def close(self) -> None:
        """Returns when everything has been sent, or sending has failed."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            self._write(message.buffers)
            self._queue.task_done()

    def _write(self, buffers: Sequence[Buffer]) -> None:
        unsent = [memoryview(buffer) for buffer in buffers]
        with suppress(OSError):  # the connection is lost: the reading side reports it
            while unsent:
                sent = self._sock.sendmsg(unsent)
                while unsent and sent >= unsent[0].nbytes:
                    sent -= unsent.pop(0).nbytes
                if unsent and sent:
                    unsent[0] = unsent[0][sent:]
