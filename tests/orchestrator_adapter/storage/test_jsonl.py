"""``RotatingJsonLines``: rotation, repair, failures and durability."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_adapter.storage.jsonl import RotatingJsonLines, WriteFailedError, read_lines
from orchestrator_adapter.storage.locks import StoreInUseError

STEM = "events"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.suffix != ".lock")


def contents(directory: Path) -> dict[str, bytes]:
    return {name: (directory / name).read_bytes() for name in names(directory)}


def write(writer: RotatingJsonLines, *batch: bytes) -> None:
    writer.write_lines(b"".join(line + b"\n" for line in batch), len(batch))


def test_a_file_gets_its_final_name_only_when_it_is_finished(tmp_path: Path) -> None:
    """Before `close` its name ends in `.part`, and afterwards not."""
    writer = RotatingJsonLines(tmp_path, stem=STEM)
    assert writer.path is None
    write(writer, b"{}")
    assert writer.path == tmp_path / "events-000001.jsonl.part"
    assert contents(tmp_path) == {"events-000001.jsonl.part": b"{}\n"}
    writer.close()
    assert contents(tmp_path) == {"events-000001.jsonl": b"{}\n"}


def test_a_file_is_finished_before_a_batch_that_does_not_fit(tmp_path: Path) -> None:
    """Exactly `max_bytes` fit; the next byte goes to the next file. Lines stay whole and in order."""
    with RotatingJsonLines(tmp_path, stem=STEM, max_bytes=8) as writer:
        write(writer, b"aaa")
        write(writer, b"bbb")
        assert writer.finished_files == []
        write(writer, b"c")
        assert writer.finished_files == [tmp_path / "events-000001.jsonl"]
        assert (writer.bytes_written, writer.lines_written) == (10, 3)
    assert contents(tmp_path) == {"events-000001.jsonl": b"aaa\nbbb\n", "events-000002.jsonl": b"c\n"}


def test_a_batch_longer_than_a_file_is_split_at_line_ends(tmp_path: Path) -> None:
    """Each piece has as many whole lines as fit. A line that fits no file gets a file of its own."""
    with RotatingJsonLines(tmp_path, stem=STEM, max_bytes=6) as writer:
        write(writer, b"a", b"b", b"c", b"longer than any file", b"d", b"e")
        assert writer.lines_written == 6
    assert contents(tmp_path) == {
        "events-000001.jsonl": b"a\nb\nc\n",
        "events-000002.jsonl": b"longer than any file\n",
        "events-000003.jsonl": b"d\ne\n",
    }


def test_a_writer_without_lines_makes_no_file(tmp_path: Path) -> None:
    """Neither an empty run nor an empty batch makes an empty `.jsonl`."""
    with RotatingJsonLines(tmp_path, stem=STEM) as writer:
        writer.write_lines(b"", 0)
        writer.sync()
    assert names(tmp_path) == []


def test_file_numbers_continue_after_the_highest_number(tmp_path: Path) -> None:
    """Gaps are not filled, other stems do not count, and numbers may have more than six digits."""
    for name in ("events-000003.jsonl", "events-1000000.jsonl", "events-x-2000000.jsonl", "other-3000000.jsonl"):
        (tmp_path / name).write_bytes(b"old\n")
    with RotatingJsonLines(tmp_path, stem=STEM) as writer:
        write(writer, b"new")
        assert writer.path == tmp_path / "events-1000001.jsonl.part"
    assert list(read_lines(tmp_path, STEM)) == [b"old", b"old", b"new"]


def test_a_torn_last_line_is_moved_to_its_own_file_and_the_file_is_finished(tmp_path: Path) -> None:
    """Opening after a hard kill keeps the whole lines and every byte of the torn one, and counts those bytes."""
    (tmp_path / "events-000007.jsonl.part").write_bytes(b"whole\nwhole too\nto")
    with RotatingJsonLines(tmp_path, stem=STEM) as writer:
        assert writer.repaired_bytes == 2
        assert contents(tmp_path) == {"events-000007.jsonl": b"whole\nwhole too\n", "events-000007.jsonl.torn": b"to"}
        write(writer, b"next")
    assert list(read_lines(tmp_path, STEM)) == [b"whole", b"whole too", b"next"]


@pytest.mark.parametrize(("left", "torn"), [(b"", {}), (b"torn", {"events-000001.jsonl.torn": b"torn"})])
def test_a_leftover_file_without_a_whole_line_is_removed(tmp_path: Path, left: bytes, torn: dict[str, bytes]) -> None:
    """Only its torn bytes are kept, if it has any. Its number is not used again."""
    (tmp_path / "events-000001.jsonl.part").write_bytes(left)
    with RotatingJsonLines(tmp_path, stem=STEM) as writer:
        assert writer.repaired_bytes == len(left)
        assert contents(tmp_path) == torn
        write(writer, b"next")
        assert writer.path == tmp_path / "events-000002.jsonl.part"


def test_a_finished_file_is_never_replaced(tmp_path: Path) -> None:
    """A `.part` beside a finished file of the same number raises, and both files stay unchanged."""
    before = {"events-000001.jsonl": b"finished\n", "events-000001.jsonl.part": b"copied here by hand\n"}
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(FileExistsError, match=r"events-000001\.jsonl\.part would replace it"):
        RotatingJsonLines(tmp_path, stem=STEM)
    assert contents(tmp_path) == before


lines = st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"-"))
batches = st.lists(st.lists(lines, max_size=8), max_size=12)


@given(batches, st.integers(1, 40))
def test_the_files_in_order_are_the_lines_in_order(sent: list[list[bytes]], max_bytes: int) -> None:
    """For any batches and any size limit: no line is lost, repeated, reordered or split, and no file exceeds the limit."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with RotatingJsonLines(directory, stem=STEM, max_bytes=max_bytes) as writer:
            for batch in sent:
                write(writer, *batch)
            files = [*writer.finished_files, *([writer.path] if writer.path else [])]
            everything = b"".join(path.read_bytes() for path in files)
            assert everything == b"".join(line + b"\n" for batch in sent for line in batch)
            assert list(read_lines(directory, STEM)) == [line for batch in sent for line in batch]
            assert writer.bytes_written == len(everything)
            assert writer.lines_written == everything.count(b"\n")
        for path in writer.finished_files:
            content = path.read_bytes()
            assert content.endswith(b"\n")
            assert len(content) <= max_bytes or content.count(b"\n") == 1


@given(batches, st.binary(max_size=12).map(lambda torn: torn.replace(b"\n", b"-")), batches)
def test_a_kill_loses_at_most_the_torn_line(
    before: list[list[bytes]],
    torn: bytes,
    after: list[list[bytes]],
) -> None:
    """A copy of the directory of a live writer, with a torn last line, opens and continues with whole lines."""
    with tempfile.TemporaryDirectory() as name:
        live, copy = Path(name, "live"), Path(name, "copy")
        with RotatingJsonLines(live, stem=STEM, max_bytes=30) as writer:
            for batch in before:
                write(writer, *batch)
            part = writer.path
            shutil.copytree(live, copy)
        if part is not None:
            with (copy / part.name).open("ab") as file:
                file.write(torn)
        with RotatingJsonLines(copy, stem=STEM, max_bytes=30) as writer:
            assert writer.repaired_bytes == (len(torn) if part is not None else 0)
            for batch in after:
                write(writer, *batch)
        assert list(read_lines(copy, STEM)) == [line for batch in before + after for line in batch]
        assert not [name for name in names(copy) if name.endswith(".part")]


def test_a_torn_line_is_skipped_by_readers(tmp_path: Path) -> None:
    """A reader beside a live writer gets whole lines only."""
    (tmp_path / "events-000001.jsonl").write_bytes(b"one\n")
    (tmp_path / "events-000002.jsonl.part").write_bytes(b"two\nthr")
    assert list(read_lines(tmp_path, STEM)) == [b"one", b"two"]


def test_data_without_a_final_newline_is_rejected(tmp_path: Path) -> None:
    """The error quotes the end of the data, and nothing is written."""
    with RotatingJsonLines(tmp_path, stem=STEM) as writer:
        with pytest.raises(ValueError, match=r"^RotatingJsonLines 'events': data must end in a newline, got b'two'$"):
            writer.write_lines(b"two", 1)
        assert names(tmp_path) == []


def test_writing_after_close_is_rejected(tmp_path: Path) -> None:
    """Another process may own the directory by then. A second close does nothing."""
    writer = RotatingJsonLines(tmp_path, stem=STEM)
    writer.close()
    writer.close()
    with pytest.raises(ValueError, match=r"^RotatingJsonLines 'events': written to after close$"):
        write(writer, b"late")


def test_a_size_limit_below_one_byte_is_rejected(tmp_path: Path) -> None:
    """The message has the store, the bound and the value."""
    with pytest.raises(ValueError, match=r"^RotatingJsonLines 'events': max_bytes must be >= 1, got 0$"):
        RotatingJsonLines(tmp_path, stem=STEM, max_bytes=0)


def test_a_second_process_is_rejected_and_the_error_names_the_first(tmp_path: Path) -> None:
    """While one process writes, opening the same store in another process fails with the pid of the first one."""
    program = "import sys, pathlib; from orchestrator_adapter.storage.jsonl import *; "
    program += "RotatingJsonLines(pathlib.Path(sys.argv[1]), stem='events')"
    with RotatingJsonLines(tmp_path, stem=STEM) as writer:
        write(writer, b"mine")
        second = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
    assert second.returncode == 1
    assert f"StoreInUseError: {tmp_path} is being written by process {os.getpid()} (lock file" in second.stderr
    assert contents(tmp_path) == {"events-000001.jsonl": b"mine\n"}


def test_a_lock_of_a_process_that_has_ended_is_not_reported_as_its(tmp_path: Path) -> None:
    """Something else has the lock file locked, for example a child that was forked outside Python: the message says so."""
    with subprocess.Popen(["true"]) as ended:
        pass
    with (tmp_path / f"{STEM}.lock").open("w") as lock_file:
        print(ended.pid, file=lock_file, flush=True)
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        with pytest.raises(StoreInUseError) as raised:
            RotatingJsonLines(tmp_path, stem=STEM)
    assert str(raised.value) == (
        f"{tmp_path} is being written by an unknown process: process {ended.pid}, which locked it, has left a child, "
        "or runs in another container (lock file events.lock)"
    )


def test_close_releases_the_directory_although_a_forked_child_lives(tmp_path: Path) -> None:
    """The child neither keeps the lock nor releases it when it closes its copy of the store."""
    writer = RotatingJsonLines(tmp_path, stem=STEM)
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        writer.close()
        os.write(writing, b".")
        signal.pause()
        os._exit(0)
    try:
        os.read(reading, 1)
        with pytest.raises(StoreInUseError):
            RotatingJsonLines(tmp_path, stem=STEM)
        writer.close()
        RotatingJsonLines(tmp_path, stem=STEM).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_a_cleaner_that_respects_locks_leaves_the_directory_alone(tmp_path: Path) -> None:
    """systemd-tmpfiles cleans a directory only if it can lock it (tmpfiles.d(5)); after ``close`` it can."""
    directory = os.open(tmp_path, os.O_RDONLY)
    with (
        RotatingJsonLines(tmp_path, stem=STEM),
        RotatingJsonLines(tmp_path, stem="other"),
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(directory, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(directory)


def test_a_directory_may_be_a_symbolic_link(tmp_path: Path) -> None:
    """The store is where the link points to."""
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    with RotatingJsonLines(tmp_path / "link", stem=STEM) as writer:
        write(writer, b"mine")
    assert contents(tmp_path / "there") == {"events-000001.jsonl": b"mine\n"}


def test_close_releases_the_directory(tmp_path: Path) -> None:
    """Within one process: a second writer is rejected before and admitted after. Other stems are always admitted."""
    writer = RotatingJsonLines(tmp_path, stem=STEM)
    with pytest.raises(StoreInUseError):
        RotatingJsonLines(tmp_path, stem=STEM)
    RotatingJsonLines(tmp_path, stem="other").close()
    writer.close()
    RotatingJsonLines(tmp_path, stem=STEM).close()


FULL_DISK_PROGRAM = """
import errno, pathlib, resource, sys
from orchestrator_adapter.storage.jsonl import RotatingJsonLines, WriteFailedError, read_lines

directory = pathlib.Path(sys.argv[1])
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
with RotatingJsonLines(directory, stem="events", max_bytes=100) as writer:
    writer.write_lines(b"first\\n", 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # the kernel writes ten bytes of a file, and then no more
    try:
        writer.write_lines(b"second\\nthird\\n", 2)
    except WriteFailedError as error:
        assert error.errno == errno.EFBIG, error
        assert (error.accepted_bytes, error.accepted_lines) == (0, 0), vars(error)
    else:
        raise AssertionError("the write succeeded")
    assert writer.path.read_bytes() == b"first\\n", "the short write was not removed"
    assert (writer.bytes_written, writer.lines_written) == (6, 1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    writer.write_lines(b"second\\nthird\\n", 2)
assert list(read_lines(directory, "events")) == [b"first", b"second", b"third"]
"""


def test_a_batch_that_fails_on_a_full_disk_can_be_retried(tmp_path: Path) -> None:
    """A real short write, then a real error from the kernel: no torn line, and no repeated line after the retry."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK_PROGRAM, tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def failing_at(call: int, *, short: int = 0) -> Callable[[int, memoryview, int], int]:
    """A `pwrite` that works until its `call`-th call, then writes `short` bytes once, and then always fails."""
    calls = 0
    pwrite = os.pwrite

    def write_or_fail(file: int, data: memoryview, offset: int) -> int:
        nonlocal calls
        calls += 1
        if calls < call:
            return pwrite(file, data, offset)
        if calls == call and short:
            return pwrite(file, data[:short], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    return write_or_fail


def test_a_failure_in_a_split_batch_says_what_was_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pieces before it are stored, and a retry of the rest completes the batch exactly."""
    batch = b"a\nb\nc\nd\ne\n"
    with RotatingJsonLines(tmp_path, stem=STEM, max_bytes=4) as writer:
        with monkeypatch.context() as patched:
            patched.setattr(os, "pwrite", failing_at(2, short=3))
            with pytest.raises(WriteFailedError) as raised:
                writer.write_lines(batch, 5)
        assert (raised.value.errno, raised.value.accepted_bytes, raised.value.accepted_lines) == (errno.ENOSPC, 4, 2)
        assert (writer.bytes_written, writer.lines_written) == (4, 2)
        assert list(read_lines(tmp_path, STEM)) == [b"a", b"b"]
        writer.write_lines(batch[raised.value.accepted_bytes :], 3)
    assert list(read_lines(tmp_path, STEM)) == [b"a", b"b", b"c", b"d", b"e"]


def test_short_writes_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole batch is written although the kernel accepts one byte at a time."""
    pwrite = os.pwrite
    with RotatingJsonLines(tmp_path, stem=STEM) as writer, monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", lambda file, data, offset: pwrite(file, data[:1], offset))
        write(writer, b"one", b"two")
    assert list(read_lines(tmp_path, STEM)) == [b"one", b"two"]


def test_a_file_that_failed_before_its_first_line_is_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a disk that is full from the start, no empty `.jsonl` remains."""
    with RotatingJsonLines(tmp_path, stem=STEM) as writer, monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", failing_at(1, short=2))
        with pytest.raises(WriteFailedError):
            write(writer, b"one")
    assert names(tmp_path) == []


def test_a_file_is_synced_before_it_gets_its_name_and_its_directory_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order is: fsync of the file, rename, fsync of the directory."""
    writer = RotatingJsonLines(tmp_path, stem=STEM)
    write(writer, b"one")
    steps: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(file: int) -> None:
        steps.append(f"fsync {Path(f'/proc/self/fd/{file}').readlink().name}")
        fsync(file)

    def recorded_rename(path: Path, target: Path) -> Path:
        steps.append(f"rename to {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    writer.close()
    assert steps == ["fsync events-000001.jsonl.part", "rename to events-000001.jsonl", f"fsync {tmp_path.name}"]


def test_a_file_whose_fsync_failed_never_gets_its_final_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux reports a failed write-back once: a later successful fsync proves nothing, so the file stays a ``.part``."""
    lines = RotatingJsonLines(tmp_path, stem="log")
    lines.write_lines(b"1\n", 1)
    with monkeypatch.context() as failing:
        failing.setattr(os, "fsync", _fail_with_eio)
        with pytest.raises(OSError, match="Input/output"):
            lines.sync()
    with pytest.raises(WriteFailedError, match="could not be synced"):
        lines.write_lines(b"2\n", 1)
    lines.close()
    assert [path.name for path in sorted(tmp_path.glob("*.jsonl*"))] == ["log-000001.jsonl.part"]


def _fail_with_eio(_: int) -> None:
    raise OSError(errno.EIO, "Input/output error")
