"""What is on the disk when a call returns, also after a power cut; and the one writer that a directory has at a time."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def write_durably(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8: complete and on the disk when this returns, or as before. Raises ``OSError``."""
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
    sync_directory(path.parent)  # the name, too, is to survive a power cut


def sync_directory(directory: Path) -> None:
    """A new or renamed entry is only durable once its directory is (fsync(2), "does not necessarily ensure …")."""
    file = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def make_directory(directory: Path) -> None:
    """The directory, and every one above it that is missing: each new entry is on the disk when this returns."""
    if not directory.is_dir():
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)


class StoreInUseError(OSError):
    """Another writer has the directory open; the message names its process."""


def lock_for_writing(lock_file: Path, directory: Path) -> int:
    """The open lock file of ``directory``, held until it is closed. Raises ``StoreInUseError``.

    It is never removed: a lock on a removed file locks nobody out.
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
