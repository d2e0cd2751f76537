"""Durable writes, which survive a power cut."""

from __future__ import annotations

import errno
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
        if directory.exists():  # mkdir would say "File exists", which does not say what is wrong
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(directory))
        make_directory(directory.parent)
        directory.mkdir(exist_ok=True)
        sync_directory(directory.parent)
