"""`ParquetStore`: durability, file names, and the lock."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from orchestrator_adapter.storage.locks import StoreInUseError
from sda_ops.sinks import parquet_store
from sda_ops.sinks.parquet_store import ParquetStore
from tests.helpers.running import observations
from tests.sda_ops.sinks.audit_dataset import SECOND_NS, drafts, kept_ids, part_of, parts


def test_files_and_folders_are_synced_before_a_commit_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent of every new folder is synced, the file before it is renamed, and its folder afterwards."""
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(file: int) -> None:
        done.append(str(Path(f"/proc/self/fd/{file}").readlink()).removeprefix(str(tmp_path)) or "/")
        fsync(file)

    def recorded_rename(path: Path, target: Path) -> Path:
        done.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    store = ParquetStore(tmp_path)
    assert done == ["/"]
    for items in (observations(2)[:1], observations(2)[1:]):
        store.commit([part_of(items)])
    store.close()
    day, hour = "/observations/date=2026-01-01", "/observations/date=2026-01-01/hour=12"
    first = ["/", "/.staging/0.part", "/", "/observations", day, "rename", hour]
    assert done == [*first, "/.staging/0.part", "rename", hour]


def test_a_file_is_one_zstd_row_group(tmp_path: Path) -> None:
    """All columns are compressed, all rows are in one group, and only repeating columns have a dictionary."""
    store = ParquetStore(tmp_path)
    store.commit([part_of(observations(100))])
    store.close()
    group = pq.read_metadata(parts(tmp_path)[0]).row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    assert group.num_rows == 100
    assert {column.compression for column in columns} == {"ZSTD"}
    with_dictionary = {column.path_in_schema for column in columns if column.has_dictionary_page}
    assert with_dictionary == {"source_id", "source_kind", "track_id"}


def test_the_same_rows_twice_are_one_file(tmp_path: Path) -> None:
    """Committing the same rows again changes nothing; other rows make another file."""
    store = ParquetStore(tmp_path)
    for _ in range(2):
        store.commit([part_of(observations(3))])
        assert not drafts(tmp_path)
    store.commit([part_of(observations(2))])
    store.close()
    assert sorted(pl.read_parquet(file).height for file in parts(tmp_path)) == [2, 3]


def test_a_failed_repeat_of_a_commit_does_not_remove_the_first_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same rows are committed again on a disk that has failed since; the first file stays."""
    store = ParquetStore(tmp_path)
    store.commit([part_of(observations(3))])

    def broken(directory: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(parquet_store, "sync_directory", broken)
    with pytest.raises(OSError, match="Input/output error"):
        store.commit([part_of(observations(3))])
    store.close()
    assert len(kept_ids(tmp_path)) == 3
    assert not drafts(tmp_path)


def test_hours_have_two_digits_and_days_are_in_utc(tmp_path: Path) -> None:
    """For a minute after midnight and one before 1970, names sort like times."""
    store = ParquetStore(tmp_path)
    store.commit([part_of(observations(1), first_ns=first_ns) for first_ns in (60 * SECOND_NS, -60 * SECOND_NS)])
    store.close()
    before, after = parts(tmp_path)
    assert before.parent.relative_to(tmp_path) == Path("observations/date=1969-12-31/hour=23")
    assert after.parent.relative_to(tmp_path) == Path("observations/date=1970-01-01/hour=00")
    assert after.name.startswith("part-000100.000000000-")


def test_a_closed_directory_can_be_opened_again(tmp_path: Path) -> None:
    """Closing twice is harmless, a commit after it raises, and the next writer removes leftovers."""
    store = ParquetStore(tmp_path)
    with pytest.raises(StoreInUseError, match=f"is being written by process {os.getpid()} "):
        ParquetStore(tmp_path)
    store.close()
    store.close()
    with pytest.raises(ValueError, match="written to after close"):
        store.commit([part_of(observations(1))])
    (tmp_path / ".staging" / "7.part").write_bytes(b"PAR1 and no more")
    following = ParquetStore(tmp_path)
    assert following.leftovers_removed == 1
    assert not drafts(tmp_path)
    following.close()
