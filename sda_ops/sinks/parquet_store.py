"""A store of Parquet files by hour, each of which is complete or absent. It does not know what the rows mean.

On disk, in one directory::

    <table>/date=2026-11-25/hour=13/part-130501.000250000-<digest>.parquet    complete, fsynced, never changed
    .staging/0.part                                                          being written, or left by a hard kill
    .staging/writer.lock                                                     locked (flock) by the writing process

A file is written and fsynced in ``.staging``, which readers of a table do not see, and then renamed to its place. Its name is
the time of its first row and a digest of its bytes. So the same rows twice are one file, different files have different
names, and no file is ever replaced. Everything here is synchronous and for one caller at a time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from orchestrator_adapter import lock_for_writing, make_directory, sync_directory

_STAGING = ".staging"


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one file.

    Attributes:
        table: The name of the table.
        first_ns: The time of the first row, UTC nanoseconds; it decides the file's hour.
        rows: The rows.
        repeating: The columns, by their Parquet path, that are dictionary-encoded.
    """

    table: str
    first_ns: int
    rows: pa.RecordBatch
    repeating: tuple[str, ...]


class ParquetStore:
    """The writer. It owns the directory until `close`.

    Attributes:
        directory: Where the tables are.
        leftovers_removed: How many unfinished files of a killed writer were removed on opening. They were not committed.
        files_written: Files committed since opening.
        bytes_written: Bytes committed since opening.
        rows_written: Rows committed since opening.
    """

    def __init__(self, directory: Path) -> None:
        """Locks the directory (created if missing), and removes the unfinished files of a killed writer.

        Raises:
            StoreInUseError: Another writer has locked it.
            OSError: It cannot be written to.
        """
        self.directory = directory
        self.leftovers_removed = 0
        self.files_written = 0
        self.bytes_written = 0
        self.rows_written = 0
        self._staging = directory / _STAGING
        make_directory(self._staging)
        self._lock = lock_for_writing(self._staging / "writer.lock", directory)
        try:
            for leftover in sorted(self._staging.glob("*.part")):
                leftover.unlink()
                self.leftovers_removed += 1
        except BaseException:
            self.close()
            raise

    def commit(self, parts: Sequence[Part]) -> None:
        """Blocks until every row of every part is on the disk and visible to readers.

        All parts are written and fsynced before the first is renamed; after an error no part is visible. Only a kill between
        two renames leaves some of the parts: complete files of rows that were not acknowledged.

        Raises:
            OSError: The disk is full or broken. The rows can be committed again.
        """
        if not self._lock.held:
            raise ValueError(f"ParquetStore {self.directory}: written to after close")
        drafts: list[Path] = []
        finals: list[Path] = []
        named: list[Path] = []
        written = 0
        try:
            for number, part in enumerate(parts):
                data = _encoded(part)
                drafts.append(self._staging / f"{number}.part")
                finals.append(self.directory / _place(part, data))
                _write_durably(drafts[-1], data)
                written += len(data)
            for draft, final in zip(drafts, finals, strict=True):
                make_directory(final.parent)
                if final.exists():  # the same rows were committed before
                    draft.unlink()
                else:
                    draft.rename(final)
                    named.append(final)
            for folder in {final.parent for final in finals}:
                sync_directory(folder)
        except BaseException:
            for path in (*drafts, *named):
                with suppress(OSError):  # the first error is raised; a draft that stays is removed by the next writer
                    path.unlink(missing_ok=True)
            raise
        self.files_written += len(parts)
        self.bytes_written += written
        self.rows_written += sum(part.rows.num_rows for part in parts)

    def close(self) -> None:
        """Unlocks the directory; a second call does nothing."""
        self._lock.release()


def _encoded(part: Part) -> pa.Buffer:
    """The file's bytes, in memory: for the digest, and so that writing raises the operating system's own errors."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        pa.Table.from_batches([part.rows]),
        sink,
        row_group_size=part.rows.num_rows,
        compression="zstd",
        use_dictionary=list(part.repeating),
        # Times increase in small steps: this makes a file of observations 10 % smaller.
        column_encoding={
            field.name: "DELTA_BINARY_PACKED" for field in part.rows.schema if pa.types.is_timestamp(field.type)
        },
    )
    return sink.getvalue()


def _place(part: Part, data: pa.Buffer) -> Path:
    date, _, time = str(np.datetime64(part.first_ns, "ns")).partition("T")
    name = f"part-{time.replace(':', '')}-{xxhash.xxh3_128_hexdigest(data)}.parquet"
    return Path(part.table, f"date={date}", f"hour={time[:2]}", name)


def _write_durably(path: Path, data: pa.Buffer) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(file, left) :]
        os.fsync(file)
    finally:
        os.close(file)
