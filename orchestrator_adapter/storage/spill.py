"""``SpillFiles``: a bounded first-in-first-out queue of items in files, for an edge with ``FlowPolicy.spill``.

On disk, in the folder of the policy::

    <edge>/lock                             locked by the process whose run uses the edge
    <edge>/run-<UTC>-<process>/000001.spill   read from here …
    <edge>/run-<UTC>-<process>/000002.spill   … written here

A file begins with ``SPILL1`` and the position of its first unread frame; a frame is its length, its number of items, and a
pickle of them in a list. A file is removed once it is read, so that a queue that is empty has no file. A ``run-…`` folder of
another run has what that run did not deliver; nothing here changes it. Files are for this run only, not for a power cut: they
are not fsynced, and the items of one frame, read already, are in memory.

Everything is synchronous: one call writes or reads one batch, to or from the page cache. Use a local disk.
"""

from __future__ import annotations

import os
import pickle
import re
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zlib import crc32

from orchestrator_adapter.channels.spilling_edge import SpillUnreadable
from orchestrator_adapter.primitives.errors import describe
from orchestrator_adapter.storage.durable import make_directory
from orchestrator_adapter.storage.locks import WriterLock, lock_for_writing

_MAGIC = b"SPILL1\0\0"
_HEADER = struct.Struct("<8sQ")  # magic, position of the first unread frame
_FRAME = struct.Struct("<II")  # bytes of the pickle, items
_FRAME_ITEMS = 256  # at most: a frame is read at once, when the reader has room for its first item
_FILES = 16  # a queue has about so many files when it is full: the space of a read file is free again


@dataclass(frozen=True, slots=True)
class SpillFile:
    """A file with items that were not delivered. ``spilled_items(path)`` reads them."""

    path: Path
    items: int


@dataclass(slots=True)
class _OpenFile:
    path: Path
    file: int
    size: int
    position: int  # of the first unread frame
    items: int  # unread ones


class SpillFiles:
    """The queue of one edge in one run.

    Attributes:
        items: Items in the queue.
        bytes: Bytes on disk.
        spilled: Items ever appended.
        full_because: Why the last ``append`` did not accept everything; ``None`` if it did.
    """

    def __init__(self, folder: Path, edge: str, max_bytes: int) -> None:
        """Opens nothing."""
        self.items = 0
        self.bytes = 0
        self.spilled = 0
        self.full_because: str | None = None
        self._folder = folder / f"{re.sub('[^0-9A-Za-z_.]+', '-', edge)}-{crc32(edge.encode()):08x}"
        self._run_folder = self._folder / f"run-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{os.getpid()}"
        self._max_bytes = max_bytes
        self._lock: WriterLock | None = None
        self._files: deque[_OpenFile] = deque()
        self._full_until_file_is_read = False
        self._made = 0
        self._read: deque[Any] = deque()  # what is left of the frame that was read last

    def open(self) -> tuple[SpillFile, ...]:
        """Lock the edge's folder for this run. Returns the files that other runs left there, oldest first; they stay.

        Raises:
            StoreInUseError: Another run uses it.
            OSError: It cannot be made or written to.
        """
        make_directory(self._folder)
        self._lock = lock_for_writing(self._folder / "lock", self._folder)
        return left_in(self._folder)

    def append(self, items: Sequence[Any]) -> int:
        """Write as many of ``items`` as fit, from the front, and return how many that was; ``full_because`` says why not all.

        After that it accepts nothing until items have been read, or the queue is empty.
        """
        if self.full_because is not None and self.items:
            return 0
        self.full_because, self._full_until_file_is_read = None, False
        accepted = 0
        while written := self._append_frame(items[accepted : accepted + _FRAME_ITEMS]):
            accepted += written
            self.full_because, self._full_until_file_is_read = None, False
        self.items += accepted
        self.spilled += accepted
        return accepted

    def take(self, max_items: int) -> list[Any]:
        """Remove up to ``max_items`` items from the front, and at least one if there is one. Reads one frame at most.

        Raises ``SpillUnreadable`` if that frame cannot be read; its items are then no longer in the queue.
        """
        if not self._read and self.items:
            self._read_frame()
        items = [self._read.popleft() for _ in range(min(max_items, len(self._read)))]
        self.items -= len(items)
        return items

    def close(self) -> tuple[list[Any], tuple[SpillFile, ...]]:
        """Leave the files with unread items on disk, and remove the folder otherwise.

        Returns the items that were in memory, which come first, and those files.
        """
        items, left = list(self._read), tuple(SpillFile(file.path, file.items) for file in self._files)
        for file in self._files:
            os.close(file.file)
        self._read.clear()
        self._files.clear()
        self.items = self.bytes = 0
        if not left and self._made:
            self._remove_folder()
        if self._lock is not None:
            self._lock.release()
        return items, left

    def _append_frame(self, items: Sequence[Any]) -> int:
        """Write one frame of the first ``items``: all of them, or as many of them as fit."""
        while items:
            try:
                pickled = pickle.dumps(list(items), protocol=pickle.HIGHEST_PROTOCOL)
            except Exception as error:  # noqa: BLE001 - foreign code (__reduce__) may raise anything
                self.full_because = f"an item cannot be pickled: {describe(error)}"
            else:
                frame = _FRAME.pack(len(pickled), len(items)) + pickled
                if self.bytes + len(frame) + _HEADER.size <= self._max_bytes:
                    return self._write(frame, len(items))
                self.full_because = f"it has {self.bytes:,} of at most {self._max_bytes:,} bytes"
                self._full_until_file_is_read = True
            items = items[: len(items) // 2]
        return 0

    def _write(self, frame: bytes, items: int) -> int:
        try:
            if not self._files or self._files[-1].size + len(frame) > self._max_bytes // _FILES:
                self._add_file()
            file = self._files[-1]
            try:
                _write_all(file.file, frame, file.size)
            except OSError:
                os.ftruncate(file.file, file.size)
                raise
        except OSError as error:
            self.full_because = str(error)
            return 0
        file.size += len(frame)
        file.items += items
        self.bytes += len(frame)
        return items

    def _add_file(self) -> None:
        self._run_folder.mkdir(parents=True, exist_ok=True)  # again, if a cleaner of temporary files has removed it
        path = self._run_folder / f"{self._made + 1:06}.spill"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._made += 1
        try:
            _write_all(file, _HEADER.pack(_MAGIC, _HEADER.size), 0)
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        self._files.append(_OpenFile(path, file, _HEADER.size, _HEADER.size, 0))
        self.bytes += _HEADER.size

    def _read_frame(self) -> None:
        while not self._files[0].items:  # its only frame could not be written
            self._drop_first_file()
        file = self._files[0]
        if not self._full_until_file_is_read:
            self.full_because = None
        try:
            length, count = _FRAME.unpack(os.pread(file.file, _FRAME.size, file.position))
        except (OSError, struct.error) as error:
            length, count = 0, 0
            items: Any = error
        else:
            items = ValueError("the head of a frame is damaged")
        if not 0 < count <= file.items or file.position + _FRAME.size + length > file.size:
            length, count = 0, file.items  # no later frame of the file can be found
        else:
            items = _unpickled(file.file, length, file.position + _FRAME.size, count)
        file.position += _FRAME.size + length
        file.items -= count
        with suppress(OSError):  # needed only if this process is killed
            os.pwrite(file.file, _HEADER.pack(_MAGIC, file.position), 0)
        if not file.items:
            self._drop_first_file()
        if isinstance(items, Exception):
            self.items -= count
            raise SpillUnreadable(count, f"{file.path} cannot be read: {describe(items)}") from items
        self._read.extend(items)

    def _drop_first_file(self) -> None:
        file = self._files.popleft()
        self.bytes -= file.size
        self.full_because, self._full_until_file_is_read = None, False
        os.close(file.file)
        with suppress(OSError):  # its head says that everything in it was read
            file.path.unlink()

    def _remove_folder(self) -> None:
        with suppress(OSError):  # it is gone, or something else is in it
            self._run_folder.rmdir()


def left_in(folder: Path) -> tuple[SpillFile, ...]:
    """The files below ``folder`` that have undelivered items, oldest first."""
    found = (SpillFile(path, _unread(path)) for path in sorted(folder.rglob("*.spill")))
    return tuple(file for file in found if file.items)


def spilled_items(path: Path) -> Iterator[Any]:
    """The undelivered items of a spill file, or of every one below a folder, in order. Changes no file.

    For the files of a run that was killed, or that ended before they were delivered. Unpickles: read only files that a run
    of your own has written.
    """
    for file in [path] if path.is_file() else sorted(path.rglob("*.spill")):
        with file.open("rb") as opened:
            for frame in _frames(opened.fileno()):
                yield from pickle.loads(os.pread(opened.fileno(), frame.length, frame.position))  # noqa: S301 - see above


def _unread(path: Path) -> int:
    with path.open("rb") as opened:
        return sum(frame.items for frame in _frames(opened.fileno()))


@dataclass(frozen=True, slots=True)
class _Frame:
    position: int  # of its pickle
    length: int
    items: int


def _frames(file: int) -> Iterator[_Frame]:
    """The whole unread frames. A torn last one, whose writer was killed while it wrote it, is not one."""
    size = os.fstat(file).st_size
    head = os.pread(file, _HEADER.size, 0)
    if len(head) < _HEADER.size or not head.startswith(_MAGIC):
        return
    position = _HEADER.unpack(head)[1]
    while len(head := os.pread(file, _FRAME.size, position)) == _FRAME.size:
        length, count = _FRAME.unpack(head)
        position += _FRAME.size
        if position + length > size:
            return
        yield _Frame(position, length, count)
        position += length


def _unpickled(file: int, length: int, position: int, count: int) -> Any:
    """The items of a frame, or the exception that says why they cannot be read."""
    try:
        items = pickle.loads(os.pread(file, length, position))  # noqa: S301 - this process wrote the file
    except Exception as error:  # noqa: BLE001 - foreign code (__setstate__) may raise anything
        return error
    return items if isinstance(items, list) and len(items) == count else ValueError("a frame is damaged")


def _write_all(file: int, data: bytes, position: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(file, data[written:], position + written)
