"""The audit when the disk, the graph or the whole process fails."""

from __future__ import annotations

import errno
import logging
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator_adapter import BuiltGraph, DeadLetterKind, DeadLetterList, OperatorGraph, RestartPolicy, source_of
from orchestrator_adapter.storage import durable
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.supervision.restart import SINK_DEFAULT
from orchestrator_adapter.testing import ListSource, ManualClock, Pause, UntilShutdown, run_graph
from sda_ops.sinks import parquet_store
from sda_ops.sinks.audit import Audit, audit_sink
from sda_ops.sinks.parquet_store import ParquetStore
from tests.helpers.log_lines import event_of
from tests.helpers.running import NOON_NS, eventually, observations
from tests.helpers.support import ROOT
from tests.sda_ops.sinks.audit_dataset import SlowDisk, audited, correlation, drafts, ids_of, kept_ids, parts, queried


@contextmanager
def no_file_longer_than(limit: int) -> Iterator[None]:
    """Let the kernel fail writes beyond ``limit``, after a short write: EFBIG, like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_full_disk_ends_the_run_and_every_row_is_written_or_dead_lettered(tmp_path: Path) -> None:
    """The failed commit leaves no file. Rows in the audit count as written, all others are dead letters."""
    sent, letters = observations(1_064), DeadLetterList()
    graph = audited(tmp_path, ListSource(sent[:64], Pause(timedelta(milliseconds=1)), sent[64:]), capacity=1_000)
    with no_file_longer_than(20_000):
        event = await run_graph(graph, dead_letters=letters)
    assert isinstance(event, events.BudgetExhausted)
    assert event.operator == "sink"
    assert event.chain[0] == "OSError: [Errno 27] File too large"
    kept = kept_ids(tmp_path)
    assert kept == ids_of(sent[: len(kept)])
    assert len(kept) >= 64
    assert event.figures.ledger.written == len(kept)
    dead_lettered = ids_of([letter.payload for letter in letters.letters])
    assert {*kept} & {*dead_lettered} == set()
    assert len(kept) + len(dead_lettered) == event.figures.ledger.ingested
    assert {letter.kind for letter in letters.letters} == {DeadLetterKind.UNDELIVERED}
    assert event.figures.ledger_holds
    assert not drafts(tmp_path)


async def test_a_commit_that_fails_half_way_leaves_no_file(tmp_path: Path) -> None:
    """The second table's folder cannot be created, so the first table's file and all drafts are removed."""
    (tmp_path / "correlations").write_bytes(b"a file, where the folder should be")
    (one,), letters = observations(1), DeadLetterList()
    event = await run_graph(audited(tmp_path, source_of([one, correlation(one)])), dead_letters=letters)
    assert isinstance(event, events.BudgetExhausted)
    assert parts(tmp_path) == []
    assert not drafts(tmp_path)
    assert event.figures.ledger.written == 0
    assert letters.total == 2


async def test_rows_in_a_folder_that_cannot_be_synced_do_not_count_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file name may not survive a power cut then, so the file is removed and no row of the batch is acknowledged."""
    sync = durable.sync_directory

    def broken(directory: Path) -> None:
        if any(directory.glob("*.parquet")):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(directory)

    monkeypatch.setattr(parquet_store, "sync_directory", broken)
    letters = DeadLetterList()
    event = await run_graph(audited(tmp_path, source_of(observations(10))), dead_letters=letters)
    assert isinstance(event, events.BudgetExhausted)
    assert "OSError: [Errno 5] Input/output error" in event.chain[0]
    assert parts(tmp_path) == []
    assert event.figures.ledger.written == 0
    assert letters.total == 10


async def test_an_abort_during_a_commit_acknowledges_the_rows_that_became_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit is finished first. Its rows are in the audit, count as written, and are not dead-lettered as well."""
    disk, letters = SlowDisk(monkeypatch), DeadLetterList()

    async def during(built: BuiltGraph) -> None:
        await eventually(disk.syncing.is_set, "the first commit")
        built.request_shutdown("test")
        built.request_shutdown("again")
        await eventually(lambda: built._loop.shutdown.phase == 2, "the abort")
        disk.release.set()

    event = await run_graph(audited(tmp_path, source_of(observations(64))), dead_letters=letters, during=during)
    assert isinstance(event.figures.exits["sink"], task_exit.Aborted)
    kept = kept_ids(tmp_path)
    assert event.figures.ledger.written == len(kept) > 0
    assert {*kept} & {*ids_of([letter.payload for letter in letters.letters])} == set()
    assert event.figures.ledger.written + letters.total == event.figures.ledger.ingested
    assert event.figures.ledger_holds


async def test_redelivered_rows_are_committed_without_gathering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows are redelivered one at a time, so waiting for more has no use: all are written within the second wait."""
    commit, failures = ParquetStore.commit, [OSError(errno.EIO, "the first time")]

    def failing(store: ParquetStore, given: Any) -> None:
        if failures:
            raise failures.pop()
        commit(store, given)

    monkeypatch.setattr(ParquetStore, "commit", failing)
    clock, sent = ManualClock(now_ns=NOON_NS), observations(10)
    graph = OperatorGraph("again")
    source = graph.add_source("source", ListSource(sent, UntilShutdown()))
    audit = Audit(directory=tmp_path, commit_every=timedelta(seconds=1))
    policy = RestartPolicy.bounded(1, timedelta(seconds=60), backoff=None)
    sink = graph.add_sink("sink", audit_sink(audit), restart_policy=policy)
    graph.connect(source, sink, 64)

    async def during(built: BuiltGraph) -> None:
        await clock.advance_when_idle(1.1)
        await eventually(lambda: built.status().restarts == 1, "the restart")
        await clock.advance_when_idle(1.1)
        await eventually(lambda: built.ledger().written >= 9, "all but the last, which cannot know that it is the last")
        built.request_shutdown("test")

    event = await run_graph(graph, clock=clock, during=during)
    assert sorted(kept_ids(tmp_path)) == sorted(ids_of(sent))
    assert event.figures.ledger.written == 10
    assert event.figures.ledger_holds


async def test_an_item_of_another_type_is_a_panic(tmp_path: Path) -> None:
    """A wrong edge in a topology panics at once; the message names the type, and no row of the batch is written."""
    event = await run_graph(audited(tmp_path, source_of([*observations(2), "a string"])))
    assert isinstance(event, events.Panicked)
    assert "the audit stores Observation, Correlation, CrossSensorUpdate, ConjunctionUpdate; got str" in event.chain[0]
    assert parts(tmp_path) == []
    assert event.figures.ledger_holds


async def test_the_audit_is_never_restarted_by_default(tmp_path: Path) -> None:
    """Its integrity is at stake, so the first failure ends the run."""
    (tmp_path / "audit").write_bytes(b"a file, where the folder should be")
    event = await run_graph(audited(tmp_path / "audit", source_of(observations(3))), grace=timedelta(seconds=1))
    assert str(SINK_DEFAULT) == "never"
    assert isinstance(event, events.BudgetExhausted)
    assert not event.figures.restarts


OTHER_WRITER = """
import pathlib, sys
from sda_ops.sinks.parquet_store import ParquetStore
store = ParquetStore(pathlib.Path(sys.argv[1]))
print("locked", flush=True)
sys.stdin.read()
"""


async def test_a_directory_that_another_process_writes_is_rejected_with_its_process_id(tmp_path: Path) -> None:
    """Two writers would remove each other's drafts. All records of the second one are dead letters."""
    letters = DeadLetterList()
    with child(OTHER_WRITER, tmp_path) as other:
        assert line_of(other) == "locked"
        event = await run_graph(audited(tmp_path, source_of(observations(10))), dead_letters=letters)
        other.communicate()
    assert isinstance(event, events.BudgetExhausted)
    assert f"StoreInUseError: {tmp_path} is being written by process {other.pid} " in event.chain[0]
    assert event.figures.ledger.written == 0
    assert letters.total == event.figures.ledger.ingested
    assert event.figures.ledger_holds


# A hard kill of a real process.

WRITER = """
import asyncio, os, pathlib, sys, time
from datetime import timedelta
from orchestrator_adapter import source_of
from orchestrator_adapter.testing import chain, run_graph
from sda_ops.sinks import parquet_store
from sda_ops.sinks.audit import Audit, audit_sink
from tests.helpers.running import observations

directory, blocked, commits, printed = pathlib.Path(sys.argv[1]), sys.argv[2], 0, -1

def block(name):
    original = getattr(parquet_store, name)
    def then_block(*arguments):
        global commits
        result = original(*arguments)
        commits += arguments[0].suffix == ".part" or any(arguments[0].glob("*.parquet"))
        if commits == 3:
            while printed < 100:  # the event loop has acknowledged 100 rows, but may not have printed it yet
                time.sleep(0.001)
            print("blocked", flush=True)
            time.sleep(60)
        return result
    setattr(parquet_store, name, then_block)

if blocked != "nowhere":
    block(blocked)

async def report(built):
    global printed
    while True:
        if (written := built.ledger().written) != printed:
            print(written, flush=True)
            printed = written
        await asyncio.sleep(0)

sink = audit_sink(Audit(directory=directory, max_rows=50, commit_every=timedelta(0)))
asyncio.run(run_graph(chain(source_of(observations(20_000)), sink, capacity=50), during=report))
"""


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def killed_while_it_writes(directory: Path, blocked: str, *, enough: Callable[[str], bool]) -> int:
    """Kill a writer after a line that is ``enough``; returns the number of acknowledged records that it printed last."""
    with child(WRITER, directory, blocked) as writer:
        assert writer.stdout is not None
        while not enough(line_of(writer)):
            assert writer.poll() is None
        writer.kill()
        rest = writer.stdout.read().split()
    return max((int(word) for word in rest if word.isdigit()), default=0)


@pytest.mark.parametrize(
    ("blocked", "committed", "leftovers"),
    [("_write_durably", 100, 1), ("sync_directory", 150, 0), ("nowhere", None, None)],
    ids=["before the name", "before the acknowledgement", "anywhere"],
)
async def test_after_a_hard_kill_every_acknowledged_row_is_there_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, blocked: str, committed: int | None, leftovers: int | None
) -> None:
    """The dataset is readable and has complete commits only. The next writer removes the draft, logs it, and continues."""
    sent = observations(20_000)
    printed: list[int] = []

    def enough(word: str) -> bool:
        if word.isdigit():
            printed.append(int(word))
        return word == "blocked" or (blocked == "nowhere" and printed[-1] >= 300)

    acknowledged = max(killed_while_it_writes(tmp_path, blocked, enough=enough), *printed)
    kept = kept_ids(tmp_path)
    assert queried(f"SELECT count(*) FROM '{tmp_path}/observations/**/*.parquet'") == [(len(kept),)]
    assert sorted(kept) == sorted(ids_of(sent[: len(kept)]))
    assert acknowledged <= len(kept) <= acknowledged + 100
    left = len(drafts(tmp_path))
    if committed is not None:
        assert (acknowledged, len(kept), left) == (100, committed, leftovers)
    with caplog.at_level(logging.WARNING):
        event = await run_graph(audited(tmp_path, source_of(sent[len(kept) : len(kept) + 500])))
    assert event.figures.counters["sink"]["leftovers_removed"] == left
    assert [event_of(record.message) for record in caplog.records if "leftovers" in record.message] == [
        {"event": "audit_leftovers_removed", "operator": "sink", "instance": 1, "files": left}
    ] * min(left, 1)
    assert sorted(kept_ids(tmp_path)) == sorted(ids_of(sent[: len(kept) + 500]))
    assert not drafts(tmp_path)
