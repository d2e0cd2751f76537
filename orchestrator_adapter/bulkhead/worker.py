"""What runs in a worker process: connect, make the handler, answer until told to stop. Blocking sockets, no event loop.

An answer is sent by a thread of its own, so that the next request is computed meanwhile: a handler that holds the GIL (sgp4)
does not keep the kernel from sending. Another thread only watches the connection: when it is gone, nobody is left to compute
for, and a worker that does not come to its senses is ended, so that none outlives its bulkhead.
"""

from __future__ import annotations

import os
import queue
import select
import signal
import socket
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from operator import attrgetter
from typing import Any, Protocol

from numpy.typing import NDArray

from orchestrator_adapter.bulkhead.errors import Malformed, Refused
from orchestrator_adapter.bulkhead.transport.handshake import CHALLENGE_BYTES, VERDICT_BYTES, WorkerHandshake
from orchestrator_adapter.bulkhead.transport.invitation import Invitation
from orchestrator_adapter.bulkhead.transport.wire import Arrays, Failure, Frame, FrameReader, Message, Piece, encode

_CONNECT_WITHIN_S = 10.0
_COMES_TO_ITS_SENSES_WITHIN_S = 2.0
_ORPHANED = 75  # the exit code: EX_TEMPFAIL of sysexits.h
_READ_AT_ONCE = 4 * 1024 * 1024
_SOCKET_BUFFER = 1024 * 1024  # the kernel grants less if it must
_NICENESS = (
    10  # with as many workers as cores the stream's p99 was 1.37 times what it is without load, and 1.14 with this
)
_INLINE_BYTES = 32 * 1024  # so small an answer is in the kernel's buffer sooner than a thread is woken


class Handler(Protocol):
    """What computes. It lives in the worker process, in which it was made by a callable without arguments.

    Everything is called on one thread, one after the other. What it raises is told to the caller as ``HandlerFailed``; it
    goes on being used.
    """

    def share(self, key: str, arrays: Arrays) -> None:
        """Take state that every worker holds, in place of what had this key. Raising, keep the former."""

    def handle(self, method: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
        """Answer a request. The arrays are its own; those returned must not be changed afterwards."""
        ...


def serve(invitation: Invitation) -> None:
    """Be a worker until told to stop. Blocks for as long as that takes.

    Raises ``OSError`` if the bulkhead cannot be reached or goes away, ``Refused`` or ``Malformed`` if it is not one, and
    whatever the target raises when the handler is made, after telling the bulkhead. If the bulkhead goes away while the
    handler computes and that takes longer than two seconds, the process is ended on the spot.
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
    raise ConnectionError("the bulkhead has gone away")


def ignore_signals() -> None:
    """What stops the pipeline (SIGINT, SIGTERM) is not for its workers. In a process's main thread only."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def step_back() -> None:
    """Let the stream go first where processors are short; where they are not, this process computes as fast as ever."""
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
    except Exception as error:  # noqa: BLE001 - it is the caller's, in another process
        return encode("failed", ticket=header.ticket, failure=_failure(error))


def _failure(error: BaseException) -> Failure:
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return Failure.of(name, str(error), "".join(traceback.format_exception(error)))


def _frames(sock: socket.socket, max_bytes: int) -> Iterator[Frame]:
    """What comes, until the connection ends."""
    reader = FrameReader(max_bytes=max_bytes, at_once=_READ_AT_ONCE)
    while count := sock.recv_into(reader.room()):
        yield from reader.took(count)


@contextmanager
def _connected(invitation: Invitation) -> Iterator[socket.socket]:
    """A connection on which both sides know each other."""
    sock = _connect(invitation)
    done = threading.Event()
    try:
        handshake = WorkerHandshake(invitation.token, invitation.key)
        sock.sendall(handshake.hello(_exactly(sock, CHALLENGE_BYTES)))
        handshake.check(_exactly(sock, VERDICT_BYTES))
        sock.settimeout(None)
        threading.Thread(target=_leave_when_alone, args=(sock.dup(), done), daemon=True).start()
        yield sock
    finally:
        done.set()
        with suppress(OSError):  # it is gone already
            sock.shutdown(socket.SHUT_RDWR)
        sock.close()


def _connect(invitation: Invitation) -> socket.socket:
    if invitation.credentials is not None:
        from orchestrator_adapter.bulkhead.transport.tls_relay import connect_tls  # noqa: PLC0415 - only beyond one machine

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
            raise Refused("the bulkhead closed the connection instead of letting us in")
        received += more
    return bytes(received)


def _leave_when_alone(sock: socket.socket, done: threading.Event) -> None:
    with sock:
        poll = select.poll()
        # Hang-ups are always told; the other side's closing alone is one on Linux only if asked for.
        poll.register(sock, getattr(select, "POLLRDHUP", 0))
        poll.poll()
    if not done.wait(_COMES_TO_ITS_SENSES_WITHIN_S):
        os._exit(_ORPHANED)


@contextmanager
def _sender(sock: socket.socket, invitation: Invitation) -> Iterator[_Sender]:
    # TLS is written by a thread that needs the GIL for each 16 KiB: a handler that holds it would starve it.
    sender = _Sender(sock, overlap=invitation.credentials is None)
    try:
        yield sender
    finally:
        sender.close()


class _Sender:
    """Sends messages in order, the large ones on a thread of its own."""

    def __init__(self, sock: socket.socket, *, overlap: bool) -> None:
        self._sock = sock
        self._overlap = overlap
        self._queue: queue.Queue[Message | None] = queue.Queue(maxsize=1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def send(self, message: Message) -> None:
        """Send it; may return before that has happened, but not before the one before it is on its way."""
        if message.size <= _INLINE_BYTES and not self._queue.unfinished_tasks:
            self._write(message.pieces)
            return
        self._queue.put(message)
        if not self._overlap:
            self._queue.join()

    def close(self) -> None:
        """Returns when everything has been sent, or cannot be."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (message := self._queue.get()) is not None:
            self._write(message.pieces)
            self._queue.task_done()

    def _write(self, pieces: Sequence[Piece]) -> None:
        left = [memoryview(piece) for piece in pieces]
        with suppress(OSError):  # the connection is gone: the reading side says so
            while left:
                sent = self._sock.sendmsg(left)
                while left and sent >= left[0].nbytes:
                    sent -= left.pop(0).nbytes
                if left and sent:
                    left[0] = left[0][sent:]
