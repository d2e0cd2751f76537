"""Reservations: names that one process at a time can have, and that no other process can take away or remove.

On Linux a reservation is a Unix socket whose name is in no file system (unix(7), "abstract"): a cleaner of temporary files cannot
remove it, and the kernel frees it when its process ends, however it ends. Other systems have no such names.
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import struct
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from orchestrator_adapter.primitives.forked_children import close_in_forked_children

_BACKLOG = 4096  # each failed attempt to reserve a name stays in the queue
_CREDENTIALS = struct.Struct("3i")
_RETRY_FOR_S = 0.3  # a program that is just being started has a copy for a moment
_RETRY_EVERY_S = 0.05


@dataclass(frozen=True, slots=True)
class Taken:
    """Another process of this user, or another part of this process, has the name.

    Attributes:
        pid: Its process id; ``None`` if it is unknown.
    """

    pid: int | None


def reserve(key: str) -> socket.socket | Taken | None:
    """Reserve the name of ``key`` for this user, until the socket is closed; ``None`` if reservations are not available here.

    A name that a process of another user has does not count: it could only be there to disturb. Two processes exclude each
    other if they see the same file systems and network (the same namespaces, for containers). Blocks for at most 0.3 s.
    """
    if sys.platform != "linux":
        return None
    name = _name(key)
    deadline = time.monotonic() + _RETRY_FOR_S
    while True:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(name)
            sock.listen(_BACKLOG)
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE:
                return None
        else:
            close_in_forked_children(sock)
            return sock
        pid, uid = _holder(name)
        if uid not in {None, os.geteuid()}:
            return None
        if time.monotonic() >= deadline:
            return Taken(pid)
        time.sleep(_RETRY_EVERY_S)


def _name(key: str) -> bytes:
    file_systems = ""
    with suppress(OSError):  # /proc is not mounted
        file_systems = str(Path("/proc/self/ns/mnt").readlink())
    content = "\0".join((str(os.geteuid()), file_systems, key))
    return b"\0orchestrator-" + hashlib.sha256(os.fsencode(content)).hexdigest()[:40].encode()


def _holder(name: bytes) -> tuple[int | None, int | None]:
    """Process and user that listen on the name, if they can be known."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # noqa: FBT003 - the standard library's signature
        try:
            probe.connect(name)
            pid, uid, _ = _CREDENTIALS.unpack(
                probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
            )
        except OSError:  # it has just been freed, or its queue is full
            return None, None
    return pid or None, uid
