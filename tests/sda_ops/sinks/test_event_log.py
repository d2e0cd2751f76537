"""The event log sink in running graphs: durability, rotation, repair, and failures of the disk."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator_adapter import BuiltGraph, DeadLetterKind, DeadLetterList, source_of
from orchestrator_adapter.storage.jsonl import RotatingJsonLines
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.supervision.restart import SINK_DEFAULT
from orchestrator_adapter.testing import chain, run_graph
from sda_ops.records.observation import Observation
from sda_ops.sinks.event_log import EventLogFiles, event_log_sink, read_event_log
from tests.helpers.running import counter, eventually, observations


def logging_to(directory: Path, items: list[Observation], **options: Any) -> Any:
    return chain(source_of(items), event_log_sink(EventLogFiles(directory, **options)))


def log_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("observations-*"))


def other_writer_of(directory: Path) -> subprocess.Popen[str]:
    """Another process that writes the log."""
    command = [sys.executable, "-c", OTHER_WRITER, str(directory)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def disk_that_fills_up(monkeypatch: pytest.MonkeyPatch, capacity: int) -> None:
    """Limit all log files together to ``capacity`` bytes, with a short write before the error."""
    pwrite, left = os.pwrite, [capacity]

    def limited(file: int, data: bytes, offset: int) -> int:
        if Path(f"/proc/self/fd/{file}").readlink().suffix != ".part":
            return pwrite(file, data, offset)
        if not left[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = pwrite(file, memoryview(data)[: left[0]], offset)
        left[0] -= written
        return written

    monkeypatch.setattr(os, "pwrite", limited)


class SlowDisk:
    """Blocks the first ``sync`` of a log until ``release`` is set; counts the durable lines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.syncing = threading.Event()
        self.release = threading.Event()
        self.durable_lines = 0
        sync = RotatingJsonLines.sync
        disk = self

        def slow(writer: RotatingJsonLines) -> None:
            written = writer.lines_written
            disk.syncing.set()
            assert disk.release.wait(20)
            sync(writer)
            disk.durable_lines = written

        monkeypatch.setattr(RotatingJsonLines, "sync", slow)


async def test_every_line_of_the_log_is_the_json_of_one_observation(tmp_path: Path) -> None:
    """The lines are in order, and equal msgspec's JSON byte for byte."""
    sent = observations(500)
    event = await run_graph(logging_to(tmp_path, sent))
    assert list(read_event_log(tmp_path)) == sent
    (file,) = log_files(tmp_path)
    assert file.name == "observations-000001.jsonl"
    assert file.read_bytes() == b"".join(msgspec.json.encode(item) + b"\n" for item in sent)
    assert event.figures.ledger.written == 500
    assert event.figures.counters["sink"] == {"repaired_bytes": 0, "bytes_written": file.stat().st_size}
    assert event.figures.latency is not None
    assert event.figures.latency.count == 500


async def test_no_line_counts_as_written_before_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk syncs, the lines are in the file and "written" is zero; afterwards it counts the durable lines."""
    disk = SlowDisk(monkeypatch)

    async def during(built: BuiltGraph) -> None:
        await eventually(disk.syncing.is_set, "the first sync")
        assert len(list(read_event_log(tmp_path))) > 0
        assert built.ledger().written == 0
        assert built.ledger().balanced
        disk.release.set()

    event = await run_graph(logging_to(tmp_path, observations(50)), during=during)
    assert event.figures.ledger.written == disk.durable_lines == 50


async def test_files_are_rotated_before_they_exceed_the_limit(tmp_path: Path) -> None:
    """No file exceeds the limit or stays unfinished, and no line is lost or split."""
    sent = observations(1_000)
    await run_graph(logging_to(tmp_path, sent, max_bytes=20_000))
    files = log_files(tmp_path)
    assert len(files) > 5
    assert {file.suffix for file in files} == {".jsonl"}
    assert max(file.stat().st_size for file in files) <= 20_000
    assert list(read_event_log(tmp_path)) == sent


async def test_an_incomplete_last_line_is_repaired_at_the_start(tmp_path: Path) -> None:
    """The incomplete line of a killed writer is moved to a file of its own and counted; the log continues in the next file."""
    old, new = observations(20)[:10], observations(20)[10:]
    lines = b"".join(msgspec.json.encode(item) + b"\n" for item in old)
    (tmp_path / "observations-000004.jsonl.part").write_bytes(lines + b'{"observation_id":"to')
    event = await run_graph(logging_to(tmp_path, new))
    assert list(read_event_log(tmp_path)) == [*old, *new]
    assert (tmp_path / "observations-000004.jsonl.torn").read_bytes() == b'{"observation_id":"to'
    assert (tmp_path / "observations-000005.jsonl").exists()
    assert event.figures.counters["sink"]["repaired_bytes"] == 21


OTHER_WRITER = """
import pathlib, sys
from orchestrator_adapter.storage.jsonl import RotatingJsonLines
with RotatingJsonLines(pathlib.Path(sys.argv[1]), stem="observations"):
    print("locked", flush=True)
    sys.stdin.read()
"""


async def test_a_directory_that_another_process_writes_is_rejected_with_its_process_id(tmp_path: Path) -> None:
    """The run ends as BudgetExhausted; every observation is dead-lettered as Undelivered, and none is written."""
    letters = DeadLetterList()
    with other_writer_of(tmp_path) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        event = await run_graph(logging_to(tmp_path, observations(10)), dead_letters=letters)
        other.communicate()
    assert isinstance(event, events.BudgetExhausted)
    assert event.operator == "sink"
    assert f"StoreInUseError: {tmp_path} is being written by process {other.pid} " in event.chain[0]
    assert event.figures.ledger.written == 0
    assert event.figures.ledger.dead_lettered == event.figures.ledger.ingested
    assert {letter.kind for letter in letters.letters} <= {DeadLetterKind.UNDELIVERED}
    assert event.figures.ledger_holds


@pytest.mark.parametrize("capacity", [0, 1, 20_000])
async def test_a_full_disk_ends_the_run_and_every_line_is_written_or_dead_lettered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capacity: int
) -> None:
    """Lines in the log count as written, all others are dead letters, and no line is both."""
    sent, letters = observations(2_000), DeadLetterList()
    disk_that_fills_up(monkeypatch, capacity)
    event = await run_graph(logging_to(tmp_path, sent), dead_letters=letters)
    assert isinstance(event, events.BudgetExhausted)
    assert event.operator == "sink"
    assert event.chain[0] == "WriteFailedError: [Errno 28] No space left on device"
    logged = list(read_event_log(tmp_path))
    ledger = event.figures.ledger
    assert ledger.written == len(logged)
    assert ledger.written + ledger.dead_lettered == ledger.ingested
    assert logged == sent[: len(logged)]
    kept = [letter.payload for letter in letters.letters]
    assert {*logged, *kept} == set(sent[: ledger.ingested])
    assert len(logged) + len(kept) == ledger.ingested
    assert event.figures.ledger_holds
    assert not event.figures.restarts


async def test_of_a_failed_batch_that_is_larger_than_a_file_exactly_the_lines_in_finished_files_are_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines in finished files count as written; the rest is dead-lettered and not in the log."""
    sent, letters = observations(64), DeadLetterList()
    disk_that_fills_up(monkeypatch, 5_000)
    event = await run_graph(logging_to(tmp_path, sent, max_bytes=2_000), dead_letters=letters)
    assert isinstance(event, events.BudgetExhausted)
    logged = list(read_event_log(tmp_path))
    assert 0 < len(logged) < 64
    assert event.figures.ledger.written == len(logged)
    assert {*logged, *(letter.payload for letter in letters.letters)} == set(sent)
    assert len(logged) + letters.total == 64
    assert event.figures.ledger_holds


async def test_lines_that_could_not_be_synced_do_not_count_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failed sync ends the run, and the whole batch is dead-lettered."""

    def broken(writer: RotatingJsonLines) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(RotatingJsonLines, "sync", broken)
    letters = DeadLetterList()
    event = await run_graph(logging_to(tmp_path, observations(10)), dead_letters=letters)
    assert isinstance(event, events.BudgetExhausted)
    assert "OSError: [Errno 5] Input/output error" in event.chain[0]
    assert event.figures.ledger.written == 0
    assert letters.total == event.figures.ledger.ingested == 10


async def test_an_abort_during_a_write_acknowledges_the_lines_that_became_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write is finished first. Its lines are in the log, count as written, and are not dead-lettered as well."""
    disk, letters = SlowDisk(monkeypatch), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        await eventually(disk.syncing.is_set, "the first sync")
        built.request_shutdown("test")
        built.request_shutdown("again")
        await eventually(lambda: built._loop.shutdown.phase == 2, "the abort")
        disk.release.set()

    event = await run_graph(logging_to(tmp_path, observations(64)), dead_letters=letters, during=during)
    assert isinstance(event.figures.exits["sink"], task_exit.Aborted)
    logged = list(read_event_log(tmp_path))
    assert event.figures.ledger.written == len(logged) > 0
    assert {*logged} & {letter.payload for letter in letters.letters} == set()
    assert event.figures.ledger.written + letters.total == event.figures.ledger.ingested
    assert event.figures.ledger_holds


async def test_the_sink_is_never_restarted_by_default(tmp_path: Path) -> None:
    """Its integrity is at stake, so the first failure ends the run."""
    (tmp_path / "log").write_bytes(b"a file, where the folder should be")
    event = await run_graph(logging_to(tmp_path / "log", observations(3)), grace=timedelta(seconds=1))
    assert str(SINK_DEFAULT) == "never"
    assert isinstance(event, events.BudgetExhausted)
    assert "Not a directory" in event.chain[0]
    assert not event.figures.restarts


async def test_metrics_are_available_while_it_runs(tmp_path: Path) -> None:
    """``bytes_written`` can be read before the end."""

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: counter(built, "bytes_written", "sink"), "the figure")
        await eventually(lambda: built.ledger().written == 10, "all ten")
        built.request_shutdown("test")

    async def stream() -> Any:
        for item in observations(10):
            yield item
        await asyncio.get_running_loop().create_future()

    event = await run_graph(chain(source_of(stream()), event_log_sink(EventLogFiles(tmp_path))), during=during)
    assert event.figures.ledger.written == 10
