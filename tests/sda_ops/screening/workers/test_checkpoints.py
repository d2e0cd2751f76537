"""`Checkpoints`: finished windows in files, which survive kills and damage and are never mixed."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog import ElementColumns, synthetic_catalog
from sda_ops.screening.workers.checkpoints import CheckpointError, Checkpoints, Window
from tests.sda_ops.screening.made_up import assert_same_screening, made_up_screening

MARCH_10TH_2026_NS = 1_773_100_800 * NS_PER_S
HOUR_NS = 3600 * NS_PER_S
COLUMNS = ElementColumns.of(synthetic_catalog(objects=20, epoch_ns=MARCH_10TH_2026_NS))
WINDOWS = [
    Window(MARCH_10TH_2026_NS + 3 * hour * HOUR_NS, MARCH_10TH_2026_NS + 3 * (hour + 1) * HOUR_NS) for hour in range(3)
]
FIRST, SECOND, THIRD = WINDOWS


@dataclass(frozen=True, slots=True)
class Options:
    """Stands for the options of a screening."""

    slice_s: float = 60.0


def checkpoints(
    folder: Path, *, columns: ElementColumns = COLUMNS, miss_m: float = 5_000.0, slice_s: float = 60.0
) -> Checkpoints:
    return Checkpoints(folder, columns, miss_m, Options(slice_s))


def stored(folder: Path, *windows: Window) -> None:
    for window in windows:
        checkpoints(folder).store(window, made_up_screening(*window))


def test_finished_windows_are_read_back_to_the_bit(tmp_path: Path) -> None:
    """A new run finds the windows that are stored and no other, in a folder that did not exist before."""
    folder = tmp_path / "not" / "there"
    assert checkpoints(folder).finished(WINDOWS) == {}
    stored(folder, FIRST, THIRD)
    found = checkpoints(folder).finished(WINDOWS)
    assert list(found) == [FIRST, THIRD]
    assert_same_screening(found[THIRD], made_up_screening(*THIRD))
    assert {path.name[:34] for path in folder.iterdir()} == {
        "20260310T000000Z_20260310T030000Z_",
        "20260310T060000Z_20260310T090000Z_",
    }


def test_windows_that_do_not_begin_at_a_whole_second_have_files_of_their_own(tmp_path: Path) -> None:
    """A window that is a nanosecond longer is another window."""
    longer = Window(FIRST.start_ns, FIRST.end_ns + 1)
    stored(tmp_path, FIRST)
    assert list(checkpoints(tmp_path).finished([FIRST, longer])) == [FIRST]
    stored(tmp_path, longer)
    assert len(checkpoints(tmp_path).finished([FIRST, longer])) == 2


def test_windows_of_another_screening_are_not_used_and_one_line_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Another catalogue, another miss distance and other options: each finds nothing, and the line says what differs."""
    stored(tmp_path, FIRST, SECOND)
    (tmp_path / "notes.txt").touch()
    changed = {name: column.copy() for name, column in COLUMNS.arrays().items()}
    changed["mo"][7] = np.nextafter(changed["mo"][7], 0.0)
    other = checkpoints(tmp_path, columns=ElementColumns.from_arrays(changed))
    assert other.finished(WINDOWS) == {}
    other.store(FIRST, made_up_screening(*FIRST, seed=2))
    assert checkpoints(tmp_path, miss_m=5_000.5).finished(WINDOWS) == {}
    assert checkpoints(tmp_path, slice_s=90.0).finished(WINDOWS) == {}
    assert [record.getMessage() for record in caplog.records] == [
        f"checkpoints {tmp_path}: windows that are not used: 2 of another catalogue",
        *[
            (
                f"checkpoints {tmp_path}: windows that are not used: 1 of another catalogue, "
                "2 of another miss distance or other options"
            )
        ]
        * 2,
    ]
    assert_same_screening(checkpoints(tmp_path).finished([FIRST])[FIRST], made_up_screening(*FIRST))
    assert_same_screening(other.finished([FIRST])[FIRST], made_up_screening(*FIRST, seed=2))


def test_a_damaged_file_is_reported_and_its_window_is_screened_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A changed bit anywhere, a file that ends early, an empty one, and one that was renamed to another window."""
    stored(tmp_path, FIRST, SECOND)
    path, other = sorted(tmp_path.iterdir())
    content = path.read_bytes()
    damaged = [content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :] for at in range(0, len(content), 97)]
    for data in [*damaged, content[:-1], content[:10], b""]:
        path.write_bytes(data)
        assert list(checkpoints(tmp_path).finished(WINDOWS)) == [SECOND]
    messages = {record.getMessage() for record in caplog.records}
    assert messages == {f"checkpoints {path}: its window is screened again: the file is damaged"}
    caplog.clear()
    other.replace(path)
    assert checkpoints(tmp_path).finished(WINDOWS) == {}
    assert caplog.messages == [
        f"checkpoints {path}: its window is screened again: the file has the window 2026-03-10T03:00:00Z to 2026-03-10T06:00:00Z"
    ]
    stored(tmp_path, FIRST)
    assert list(checkpoints(tmp_path).finished(WINDOWS)) == [FIRST]


@contextmanager
def files_of_at_most(limit_bytes: int) -> Iterator[None]:
    """The kernel writes so many bytes of a file and then no more, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_is_one_clear_line_and_leaves_the_earlier_windows(tmp_path: Path) -> None:
    """The message names the folder, the window and the cause; the part that was written is removed."""
    stored(tmp_path, FIRST)
    with files_of_at_most(100), pytest.raises(CheckpointError) as caught:
        stored(tmp_path, SECOND)
    assert str(caught.value) == (
        f"checkpoints {tmp_path}: the window 2026-03-10T03:00:00Z to 2026-03-10T06:00:00Z could not be written: "
        f"{os.strerror(errno.EFBIG)}; the windows before it are kept"
    )
    assert list(checkpoints(tmp_path).finished(WINDOWS)) == [FIRST]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_a_file_is_a_clear_error(tmp_path: Path) -> None:
    """Reading and writing both say that the folder is not a folder."""
    path = tmp_path / "file"
    path.touch()
    with pytest.raises(CheckpointError, match=f"^checkpoints {path}: Not a directory$"):
        checkpoints(path).finished(WINDOWS)
    with pytest.raises(CheckpointError, match="could not be written: Not a directory"):
        stored(path, FIRST)


def test_an_unfinished_draft_of_a_killed_run_is_not_a_window(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The file under its temporary name is neither read nor reported."""
    stored(tmp_path, FIRST)
    (path,) = tmp_path.iterdir()
    path.replace(path.with_name(f".{path.name}.4711.part"))
    assert checkpoints(tmp_path).finished(WINDOWS) == {}
    assert caplog.messages == []
