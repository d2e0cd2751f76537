"""An append-only JSON Lines store in rotating files. It knows lines and bytes, and nothing of their content.

On disk, in one directory::

    <stem>-000001.jsonl         finished: whole lines, fsynced, never changed again
    <stem>-000002.jsonl.part    the current file
    <stem>-000001.jsonl.torn    the torn last line of file 1, if a hard kill tore one
    <stem>.lock                 locked (flock) by the writing process; contains its pid

A file without ``.part`` is always whole and fsynced: a file is finished by fsync, rename, and fsync of the directory, in
this order. No line is split over two files. Everything is synchronous and for one caller at a time. On an event loop, call it
in a thread if a slow disk must not block the loop.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from orchestrator_adapter.primitives.check_fields import check_fields
from orchestrator_adapter.storage.durable import make_directory, sync_directory
from orchestrator_adapter.storage.locks import lock_for_writing

DEFAULT_MAX_FILE_BYTES = 64 * 1024 * 1024

_PART = ".part"


class WriteFailedError(OSError):
    """A batch could not be written. Its `errno` and `filename` are those of the failed call.

    The accepted part is in the store and must not be written again. The rest is not in the file and can be retried.

    Attributes:
        accepted_bytes: How much of the batch is in the store, from its start and in whole lines. Zero for a batch that is
            no longer than `max_bytes`: only a longer one is written in pieces.
        accepted_lines: The same in lines.
    """

    def __init__(self, cause: OSError, *, accepted_bytes: int, accepted_lines: int) -> None:
        super().__init__(cause.errno, cause.strerror, cause.filename)
        self.accepted_bytes = accepted_bytes
        self.accepted_lines = accepted_lines


class RotatingJsonLines:
    """The writer. It owns the directory's `<stem>` files until `close`.

    Opening repairs the files of a hard kill: a ``.part`` is truncated after its last whole line (the torn rest is kept in a
    ``.torn`` file beside it) and finished. Writing goes on in a new file with the next number.

    Attributes:
        directory: The directory of the files.
        repaired_bytes: The bytes of torn lines that opening moved to ``.torn`` files.
        bytes_written: The bytes accepted since opening.
        lines_written: The lines accepted since opening.
    """

    def __init__(self, directory: Path, *, stem: str, max_bytes: int = DEFAULT_MAX_FILE_BYTES) -> None:
        """Lock the directory, which is made if it is missing, and repair its files.

        Raises:
            StoreInUseError: Another process writes to it.
            OSError: It cannot be written to.
        """
        check_fields(f"RotatingJsonLines '{stem}'", ("max_bytes", max_bytes, max_bytes >= 1, ">= 1"))
        self.directory = directory
        self.repaired_bytes = 0
        self.bytes_written = 0
        self.lines_written = 0
        self._stem = stem
        self._max_bytes = max_bytes
        self._path: Path | None = None
        self._file = -1
        self._size = 0
        self._unsynced = False  # an fsync failed: the next one may succeed although data are lost (fsync(2), NOTES)
        make_directory(directory)
        self._lock = lock_for_writing(directory / f"{stem}.lock", directory)
        try:
            self._number = max((number for number, _ in _files(directory, stem)), default=0)
            for _, path in _files(directory, stem):
                if path.suffix == _PART:
                    self._repair(path)
        except BaseException:
            self._lock.release()
            raise

    @property
    def path(self) -> Path | None:
        """The current ``.part`` file; None before the first line and right after a rotation."""
        return self._path

    @property
    def finished_files(self) -> list[Path]:
        """The finished files in the directory, oldest first, including those of earlier writers."""
        return [path for _, path in _files(self.directory, self._stem) if path.suffix != _PART]

    def write_lines(self, data: bytes, lines: int) -> None:
        """Append whole lines. They survive the end of the process at once, and a power cut after the next `sync`.

        All or nothing: a batch goes into one file, and into a new one if it does not fit the current file. Only a batch
        longer than `max_bytes` is split, at line ends, into pieces that fit; a failure then says how much was accepted.
        A file is longer than `max_bytes` only if a single line is.

        Args:
            data: Lines, each ending in a newline.
            lines: The number of lines.

        Raises:
            WriteFailedError: The disk is full, or broken.
        """
        if not data:
            return
        if not data.endswith(b"\n"):
            raise ValueError(f"RotatingJsonLines '{self._stem}': data must end in a newline, got {data[-20:]!r}")
        if not self._lock.held:
            raise ValueError(f"RotatingJsonLines '{self._stem}': written to after close")
        accepted = 0
        try:
            for stop in self._piece_ends(data):
                self._write_piece(memoryview(data)[accepted:stop])
                accepted = stop
        except OSError as error:
            accepted_lines = data.count(b"\n", 0, accepted)
            self.bytes_written += accepted
            self.lines_written += accepted_lines
            raise WriteFailedError(error, accepted_bytes=accepted, accepted_lines=accepted_lines) from error
        self.bytes_written += len(data)
        self.lines_written += lines

    def sync(self) -> None:
        """Block until every accepted line is on the disk.

        After an error, the lines accepted since the last success may be lost, and a later fsync would not show that. So
        the file keeps its ``.part``, and nothing more is written to it.
        """
        if self._file >= 0:
            try:
                os.fsync(self._file)
            except OSError:
                self._unsynced = True
                raise

    def close(self) -> None:
        """Finish the current file and release the directory. A second call does nothing.

        Raises:
            OSError: The file could not be finished. It stays a ``.part``, which the next writer repairs.
        """
        if not self._lock.held:
            return
        try:
            self._finish()
        finally:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _piece_ends(self, data: bytes) -> Iterator[int]:
        """Where to split a batch, so that each piece fits a file or is a single line."""
        start = 0
        while len(data) - start > self._max_bytes:
            last_newline = data.rfind(b"\n", start, start + self._max_bytes)
            start = (data.index(b"\n", start) if last_newline < 0 else last_newline) + 1
            yield start
        if start < len(data):
            yield len(data)

    def _write_piece(self, piece: memoryview) -> None:
        """Write one piece to one file, at the committed size: this overwrites the rest of a failed write."""
        if self._unsynced:
            raise OSError(errno.EIO, "this file could not be synced or finished before", str(self._path))
        if self._size and self._size + len(piece) > self._max_bytes:
            self._finish()
        if self._file < 0:
            self._begin()
        written = 0
        try:
            while written < len(piece):
                written += os.pwrite(self._file, piece[written:], self._size + written)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(piece)

    def _begin(self) -> None:
        path = self.directory / f"{self._stem}-{self._number + 1:06d}.jsonl{_PART}"
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        self._number += 1
        self._path = path
        self._size = 0
        sync_directory(self.directory)

    def _finish(self) -> None:
        """Give the current file its final name; remove it if it has no line."""
        if self._path is None or self._unsynced:
            return
        os.ftruncate(self._file, self._size)
        try:
            _finalise(self._file, self._path, self._size)
        except OSError:
            self._unsynced = True
            raise
        os.close(self._file)
        self._file = -1
        self._path = None
        self._size = 0

    def _repair(self, part: Path) -> None:
        """Finish a leftover ``.part`` without its torn last line.

        The torn bytes are fsynced in their own file before the truncation. After a kill in between, the repair starts over.
        """
        file = os.open(part, os.O_RDWR)
        try:
            size = os.fstat(file).st_size
            whole = _whole_lines(file, size)
            if whole < size:
                with part.with_suffix(".torn").open("wb") as torn:
                    torn.write(os.pread(file, size - whole, whole))
                    torn.flush()
                    os.fsync(torn.fileno())
                os.ftruncate(file, whole)
                self.repaired_bytes += size - whole
            _finalise(file, part, whole)
        finally:
            os.close(file)


def read_lines(directory: Path, stem: str) -> Iterator[bytes]:
    """All whole lines, oldest first and without their newlines, including those of the ``.part`` file.

    A last line without its newline is torn or still being written, and is skipped.
    """
    for _, path in _files(directory, stem):
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line[:-1]


def _files(directory: Path, stem: str) -> list[tuple[int, Path]]:
    """The store's files with their numbers, finished or not, oldest first."""
    pattern = re.compile(re.escape(stem) + r"-(\d{6,})\.jsonl(\.part)?")
    matches = ((pattern.fullmatch(path.name), path) for path in directory.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


def _finalise(file: int, part: Path, size: int) -> None:
    if size == 0:
        part.unlink()
        return
    final = part.with_suffix("")
    if final.exists():
        raise FileExistsError(f"{final} exists already, and {part.name} would replace it: move one of them away")
    os.fsync(file)
    part.rename(final)
    sync_directory(part.parent)


def _whole_lines(file: int, size: int) -> int:
    """The number of bytes in whole lines."""
    if size == 0:
        return 0
    with mmap.mmap(file, size, access=mmap.ACCESS_READ) as content:
        return content.rfind(b"\n") + 1
