"""Files and sockets that a forked child of this process closes at once.

A child that runs another program inherits none (PEP 446). A child that only forks, as ``multiprocessing`` does by default on
Linux before Python 3.14, inherits all. It would keep what ends with this process: a lock, a port in use, a connection whose
peer waits for its end. ``os.register_at_fork`` closes them in children of Python's own ``fork``; a fork in C is not noticed.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from weakref import WeakSet

_files: set[int] = set()
_sockets: WeakSet[socket.socket] = WeakSet()


def close_in_forked_children(resource: int | socket.socket) -> None:
    """A forked child closes its copy of ``resource``. Call ``forget`` before a file is closed; a socket needs no call."""
    if isinstance(resource, int):
        _files.add(resource)
    else:
        _sockets.add(resource)


def belongs_here(file: int) -> bool:
    """Whether this process registered ``file``: it is false in a forked child, which has closed its copy."""
    return file in _files


def forget(file: int) -> None:
    """``file`` is about to be closed: its number may be another file's then."""
    _files.discard(file)


def _close_all() -> None:
    for file in _files:
        with suppress(OSError):
            os.close(file)
    _files.clear()
    for each in list(_sockets):
        with suppress(OSError):
            each.close()
    _sockets.clear()


os.register_at_fork(after_in_child=_close_all)
