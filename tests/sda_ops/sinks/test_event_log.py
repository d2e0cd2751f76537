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
from sda_ops.sinks.event_log import EventLog, event_log_sink, read_event_log
from tests.helpers.running import counter, eventually, observations


def logging_to(directory: Path, items: list[Observation], **options: Any) -> Any:
    return chain(source_of(items), event_log_sink(EventLog(directory, **options)))


def log_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("observations-*"))


def holder_of(directory: Path) -> subprocess.Popen[str]:
    """Another process that writes the log."""
    command = [sys.executable, "-c", HOLDER, str(directory)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def disk_that_fills_up(monkeypatch: pytest.MonkeyPatch, capacity: int) -> None:
    """Let log files take ``capacity`` bytes in all, with a real short write before the error."""
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
    """Holds the first ``sync`` of a log up until ``release`` is set; counts the lines that are durable."""

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


async def test_every_line_of_the_log_parses_back_to_what_was_sent(tmp_path: Path) -> None:
    """One line an observation, in order, byte for byte msgspec's JSON of it."""
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


async def test_nothing_counts_as_written_before_it_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the disk syncs, the lines are in the file and "written" is zero; afterwards it is what is durable."""
    disk = SlowDisk(monkeypatch)

    async def during(built: BuiltGraph) -> None:
        await eventually(disk.syncing.is_set, "the first sync")
        assert len(list(read_event_log(tmp_path))) > 0
        assert built.ledger().written == 0
        assert built.ledger().balanced
        disk.release.set()

    event = await run_graph(logging_to(tmp_path, observations(50)), during=during)
    assert event.figures.ledger.written == disk.durable_lines == 50


async def test_files_are_finished_before_they_outgrow_the_limit(tmp_path: Path) -> None:
    """No file is longer than the limit, none is left unfinished, no line is lost or split."""
    sent = observations(1_000)
    await run_graph(logging_to(tmp_path, sent, max_bytes=20_000))
    files = log_files(tmp_path)
    assert len(files) > 5
    assert {file.suffix for file in files} == {".jsonl"}
    assert max(file.stat().st_size for file in files) <= 20_000
    assert list(read_event_log(tmp_path)) == sent


async def test_a_torn_last_line_is_repaired_at_the_start(tmp_path: Path) -> None:
    """What a hard kill tore off is put aside and counted; the log goes on in the next file and parses as a whole."""
    old, new = observations(20)[:10], observations(20)[10:]
    lines = b"".join(msgspec.json.encode(item) + b"\n" for item in old)
    (tmp_path / "observations-000004.jsonl.part").write_bytes(lines + b'{"observation_id":"to')
    event = await run_graph(logging_to(tmp_path, new))
    assert list(read_event_log(tmp_path)) == [*old, *new]
    assert (tmp_path / "observations-000004.jsonl.torn").read_bytes() == b'{"observation_id":"to'
    assert (tmp_path / "observations-000005.jsonl").exists()
    assert event.figures.counters["sink"]["repaired_bytes"] == 21


HOLDER = """
import pathlib, sys
from orchestrator_adapter.storage.jsonl import RotatingJsonLines
with RotatingJsonLines(pathlib.Path(sys.argv[1]), stem="observations"):
    print("held", flush=True)
    sys.stdin.read()
"""


async def test_a_directory_that_another_process_writes_is_refused_naming_it(tmp_path: Path) -> None:
    """The run ends as BudgetExhausted with the other's process id; every observation is Undelivered, none written."""
    letters = DeadLetterList()
    with holder_of(tmp_path) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
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
async def test_a_full_disk_brings_the_run_down_with_everything_accounted_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capacity: int
) -> None:
    """What is in the log is what counts as written; the rest is in the dead letters; nothing is in both or in neither."""
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


async def test_a_batch_longer_than_a_file_that_fails_in_the_middle_is_acknowledged_to_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces in finished files count as written and are not buried; the rest is buried and not in the log."""
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


async def test_what_could_not_be_synced_does_not_count_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails to sync brings the run down, and the whole batch is kept in the dead letters."""

    def broken(writer: RotatingJsonLines) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(RotatingJsonLines, "sync", broken)
    letters = DeadLetterList()
    event = await run_graph(logging_to(tmp_path, observations(10)), dead_letters=letters)
    assert isinstance(event, events.BudgetExhausted)
    assert "OSError: [Errno 5] Input/output error" in event.chain[0]
    assert event.figures.ledger.written == 0
    assert letters.total == event.figures.ledger.ingested == 10


async def test_an_abort_in_the_middle_of_a_write_acknowledges_what_became_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write is seen to its end: its lines are in the log and count as written, and are not undelivered as well."""
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
    """The record of what was seen: its first failure is its last."""
    (tmp_path / "log").write_bytes(b"a file, where the folder should be")
    event = await run_graph(logging_to(tmp_path / "log", observations(3)), grace=timedelta(seconds=1))
    assert str(SINK_DEFAULT) == "never"
    assert isinstance(event, events.BudgetExhausted)
    assert "FileExistsError" in event.chain[0]
    assert not event.figures.restarts


async def test_figures_are_shown_while_it_runs(tmp_path: Path) -> None:
    """How much has been written can be read from the outside before the end."""

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: counter(built, "bytes_written", "sink"), "the figure")
        await eventually(lambda: built.ledger().written == 10, "all ten")
        built.request_shutdown("test")

    async def stream() -> Any:
        for item in observations(10):
            yield item
        await asyncio.get_running_loop().create_future()

    event = await run_graph(chain(source_of(stream()), event_log_sink(EventLog(tmp_path))), during=during)
    assert event.figures.ledger.written == 10
