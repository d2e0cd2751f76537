"""Locks on files and directories (flock). The kernel releases a lock when its process ends, however it ends.

Neither other programs nor forked children inherit a locked file (``primitives.forked_children``).
"""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from pathlib import Path

from orchestrator_adapter.primitives.forked_children import belongs_here, close_in_forked_children, forget


def open_for_lock(path: Path, flags: int, *, mode: int = 0o600) -> int:
    """Open a file that may be locked. Close it with ``unlock``."""
    file = os.open(path, flags, mode)
    close_in_forked_children(file)
    return file


def lock(file: int) -> bool:
    """Lock it for this process only; false if another one has locked it. Does not block."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(file: int) -> None:
    """Release the lock and close the file. Does nothing in a forked child, which does not have it.

    The lock is released before, because a child that is just being forked has a copy of the file for a moment.
    """
    if belongs_here(file):
        forget(file)
        fcntl.flock(file, fcntl.LOCK_UN)
        os.close(file)


class StoreInUseError(OSError):
    """Another writer has locked the directory.

    Attributes:
        owner: ``process 4711``, as far as it is known.
    """

    def __init__(self, message: str, *, owner: str) -> None:
        super().__init__(message)
        self.owner = owner


class WriterLock:
    """The lock of a directory's only writer; see ``lock_for_writing``."""

    def __init__(self, files: tuple[int, ...]) -> None:
        self._files = files

    @property
    def held(self) -> bool:
        """Whether it was not released yet."""
        return bool(self._files)

    def release(self) -> None:
        """Another writer may lock the directory now. A second call does nothing, and so does a call in a forked child."""
        for file in self._files:
            unlock(file)
        self._files = ()


def lock_for_writing(lock_file: Path, directory: Path) -> WriterLock:
    """Make this process the only writer of ``directory``. Raises ``StoreInUseError``, which names the other writer.

    The lock file is never removed: a lock on a removed file excludes no other process. Therefore the directory has a shared lock
    as well, which keeps systemd-tmpfiles from cleaning it by age (tmpfiles.d(5), "Age").
    """
    file = open_for_lock(lock_file, os.O_RDWR | os.O_CREAT, mode=0o644)
    if not lock(file):
        owner = _owner(os.pread(file, 32, 0))
        unlock(file)
        raise StoreInUseError(f"{directory} is being written by {owner} (lock file {lock_file.name})", owner=owner)
    try:
        os.ftruncate(file, 0)
        os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
        shared = open_for_lock(directory, os.O_RDONLY | os.O_DIRECTORY)
    except BaseException:
        unlock(file)
        raise
    with suppress(OSError):  # a cleaner is just at work, or the file system has no locks on directories
        fcntl.flock(shared, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return WriterLock((file, shared))


def _owner(content: bytes) -> str:
    """The process that wrote its pid into a lock file. If it has ended, something else has the file locked."""
    text = content.decode(errors="replace").strip()
    if not text.isdecimal():
        return "an unknown process"
    if not is_running(int(text)):
        return f"an unknown process: process {text}, which locked it, has left a child, or runs in another container"
    return f"process {text}"


def is_running(pid: int) -> bool:
    """Whether there is such a process, of any user."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
