"""Durable writes, which survive a power cut; and a lock that gives a directory one writer at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def write_durably(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8. It is on the disk when this returns; after an ``OSError`` the file is unchanged."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)  # so that the new name survives a power cut, too


def sync_directory(directory: Path) -> None:
    """Fsync ``directory``: only then a new or renamed entry is durable (fsync(2), "does not necessarily ensure …")."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def make_directory(directory: Path) -> None:
    """Make the directory and its missing parents. Each new entry is on the disk when this returns."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


class StoreInUseError(OSError):
    """Another process writes to the directory; the message names it."""


def lock_for_writing(lock_file: Path, directory: Path) -> int:
    """Lock ``directory`` and return the open lock file; closing it releases the lock. Raises ``StoreInUseError``.

    The lock file is never removed: a lock on a removed file excludes no other process.
    """
    file = os.open(lock_file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.pread(file, 32, 0).decode().strip() or "unknown"
        os.close(file)
        raise StoreInUseError(
            f"{directory} is being written by process {owner} (lock file {lock_file.name})"
        ) from error
    os.ftruncate(file, 0)
    os.pwrite(file, f"{os.getpid()}\n".encode(), 0)
    return file
