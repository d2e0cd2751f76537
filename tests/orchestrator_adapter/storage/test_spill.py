from __future__ import annotations

import errno
import os
import shutil
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_adapter.channels.spilling_edge import SpillUnreadable
from orchestrator_adapter.storage.locks import StoreInUseError
from orchestrator_adapter.storage.spill import SpillFiles, spilled_items
from tests.helpers.sizes import examples


@pytest.fixture
def files(tmp_path: Path) -> Iterator[SpillFiles]:
    queue = SpillFiles(tmp_path, "a -> b", 1 << 20)
    queue.open()
    yield queue
    queue.close()


def all_of(queue: SpillFiles) -> list[Any]:
    taken: list[Any] = []
    while queue.items:
        taken += queue.take(100)
    return taken


@settings(max_examples=examples(100))
@given(
    max_bytes=st.sampled_from([200, 2_000, 20_000]),
    steps=st.lists(st.one_of(st.integers(1, 400), st.integers(-300, -1)), max_size=30),
)
def test_the_queue_is_a_bounded_fifo(max_bytes: int, steps: list[int]) -> None:
    """Positive steps append so many items, negative ones take: order, counts and the bound on disk are always exact."""
    with TemporaryDirectory() as folder:
        queue, oracle, made = SpillFiles(Path(folder), "a -> b", max_bytes), deque[int](), 0
        queue.open()
        for step in steps:
            if step > 0:
                items = list(range(made, made + step))
                accepted = queue.append(items)
                oracle.extend(items[:accepted])
                made += accepted
                assert (accepted < step) == (queue.full_because is not None)
            else:
                taken = queue.take(-step)
                assert taken == [oracle.popleft() for _ in taken]
                assert bool(taken) or not oracle
            on_disk = sum(path.stat().st_size for path in Path(folder).rglob("*.spill"))
            assert queue.items == len(oracle)
            assert queue.bytes == on_disk <= max_bytes
        assert all_of(queue) == list(oracle)
        assert queue.bytes == 0
        assert queue.close() == ([], ())
        assert [path.name for path in Path(folder).rglob("*") if path.is_file()] == ["lock"]


def test_a_full_queue_accepts_items_again_when_a_file_has_been_read(tmp_path: Path) -> None:
    """The bound is on disk space, which is free again only with a whole file."""
    queue = SpillFiles(tmp_path, "a -> b", 10_000)
    queue.open()
    accepted = queue.append(range(100_000))
    assert 0 < accepted < 100_000
    assert queue.full_because is not None
    assert queue.full_because.endswith("of at most 10,000 bytes")
    assert queue.append([1]) == 0
    assert queue.take(accepted)
    assert queue.append([1]) == 1
    queue.close()


def test_a_full_disk_accepts_nothing_and_loses_nothing(files: SpillFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails half way leaves no trace: the items before it are read back, and later ones after them."""
    files.append(["first"])
    write = os.pwrite

    def half(file: int, data: bytes, position: int) -> int:
        if position > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:90], position)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", half)
        assert files.append(["x" * 1_000]) == 0
        assert files.full_because == "[Errno 28] No space left on device"
        assert files.append(["y"]) == 0
    assert files.take(10) == ["first"]
    assert files.append(["later"]) == 1
    assert files.take(10) == ["later"]
    assert files.bytes == 0


def test_a_disk_that_is_full_from_the_beginning_leaves_no_file(
    files: SpillFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even the head of the first file can be written."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        assert files.append(["first"]) == 0
    assert list(tmp_path.rglob("*.spill")) == []
    assert files.bytes == 0
    assert files.append(["second"]) == 1  # there is space again, and nothing is in the queue that would have to be read
    assert files.full_because is None


def test_the_items_before_one_that_cannot_be_pickled_are_accepted(files: SpillFiles) -> None:
    """The reason names the item's fault."""
    accepted = files.append([1, 2, 3, threading.Lock(), 5])
    assert accepted == 3
    assert files.full_because is not None
    assert files.full_because.startswith("an item cannot be pickled: TypeError: cannot pickle '_thread.lock' object")
    assert all_of(files) == [1, 2, 3]
    assert files.append([threading.Lock()]) == 0  # now nothing is in the queue
    assert files.append([6]) == 1


def test_a_folder_that_a_cleaner_removed_is_made_again(files: SpillFiles, tmp_path: Path) -> None:
    """Items of a removed file are read from the open file; later items have a new one."""
    files.append([1])
    shutil.rmtree(tmp_path)
    assert files.take(1) == [1]
    assert files.append([2]) == 1
    assert files.take(1) == [2]


def test_damaged_items_are_reported_with_their_number(files: SpillFiles, tmp_path: Path) -> None:
    """The frames after a damaged one are read; a file whose frames cannot be found any more is lost as a whole."""
    files.append([1, 2, 3])
    files.append([4])
    (path,) = tmp_path.rglob("*.spill")
    with path.open("r+b") as file:
        file.seek(30)
        file.write(b"\xff" * 4)
    with pytest.raises(SpillUnreadable) as unreadable:
        files.take(1)
    assert unreadable.value.items == 3
    assert files.take(1) == [4]
    files.append([5])
    files.append([6])
    (path,) = tmp_path.rglob("*.spill")
    os.truncate(path, 0)
    with pytest.raises(SpillUnreadable) as unreadable:
        files.take(1)
    assert (unreadable.value.items, files.items) == (2, 0)


def test_a_damaged_number_of_items_loses_no_more_than_the_file_has(files: SpillFiles, tmp_path: Path) -> None:
    """The counts of the queue stay right: two items are lost, and later ones are read."""
    files.append([1, 2])
    (path,) = tmp_path.rglob("*.spill")
    with path.open("r+b") as file:
        file.seek(20)  # the head of the file has 16 bytes; the head of a frame has its length and its number of items
        file.write(b"\x07")
    with pytest.raises(SpillUnreadable) as unreadable:
        files.take(1)
    assert (unreadable.value.items, files.items, files.bytes) == (2, 0, 0)
    files.append([3])
    assert files.take(1) == [3]


def test_a_read_file_that_cannot_be_removed_disturbs_nothing(
    files: SpillFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example in a folder that has become read-only. It counts as read: the next run finds no items in it."""

    def fails(_: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    files.append([1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", fails)
        assert files.take(2) == [1, 2]
    assert (files.items, files.bytes) == (0, 0)
    (path,) = tmp_path.rglob("*.spill")
    assert list(spilled_items(path)) == []


def test_what_a_killed_run_left_is_found_and_not_delivered(tmp_path: Path) -> None:
    """The next run gets the files with the numbers of their unread items; a torn last frame is not counted."""
    killed = SpillFiles(tmp_path, "a -> b", 1 << 20)
    killed.open()
    for start in range(0, 1_000, 10):
        killed.append(range(start, start + 10))
    assert killed.take(15) == list(range(10))
    (path,) = tmp_path.rglob("*.spill")
    os.truncate(path, path.stat().st_size - 1)
    assert killed._lock is not None
    killed._lock.release()  # as the kernel does
    following = SpillFiles(tmp_path, "a -> b", 1 << 20)
    left = following.open()
    assert [(file.path, file.items) for file in left] == [(path, 980)]
    assert following.items == 0
    assert list(spilled_items(path)) == list(spilled_items(tmp_path)) == list(range(10, 990))
    assert following.close() == ([], ())
    assert path.exists()


def test_items_left_at_the_end_stay_in_their_files(files: SpillFiles) -> None:
    """Those of the frame that was read last are returned; the files have the others."""
    files.append(range(10))
    files.append(range(10, 20))
    assert files.take(4) == [0, 1, 2, 3]
    items, (left,) = files.close()
    assert items == [4, 5, 6, 7, 8, 9]
    assert left.items == 10
    assert list(spilled_items(left.path)) == list(range(10, 20))


def test_two_runs_cannot_use_one_folder(files: SpillFiles, tmp_path: Path) -> None:
    """The second is rejected with the owner; another edge may use the folder, also one with a similar name."""
    with pytest.raises(StoreInUseError, match=rf"is being written by process {os.getpid()}"):
        SpillFiles(tmp_path, "a -> b", 1).open()
    other = SpillFiles(tmp_path, "a > b", 1)
    assert other.open() == ()
    other.close()
