"""The file of the outbox: kills, a second writer, and every reason why it cannot be used, each as one clear sentence."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from sda_ops.alerts.outbox import store
from sda_ops.alerts.outbox.beside import AlertEditor, AlertReader
from sda_ops.alerts.outbox.file import AlertOutboxError
from sda_ops.alerts.outbox.rules import SubscriberRules
from sda_ops.alerts.outbox.store import AlertOutbox
from tests.sda_ops.alerts.risks import T0, risk

DYNAMICS = SubscriberRules(name="dynamics")


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[AlertOutbox]:
    opened = AlertOutbox(tmp_path / "alerts" / "alerts.sqlite", subscribers=[DYNAMICS])
    opened.open(T0)
    yield opened
    opened.close()


def problem(path: Path) -> str:
    """The message of opening the file."""
    with pytest.raises(AlertOutboxError) as raised:
        AlertOutbox(path).open(T0)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_file_that_is_no_database_is_named_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "alerts.sqlite"
    path.write_bytes(b"no database" * 1_000)
    assert problem(path) == (
        f"outbox of alerts {path}: the file is damaged (file is not a database); "
        "restore it from a backup; without one, see docs/alerts.md, The outbox"
    )
    assert path.read_bytes() == b"no database" * 1_000


def test_a_damaged_page_is_found_when_the_file_is_opened(outbox: AlertOutbox) -> None:
    outbox.record([risk(n, 100_000 + n) for n in range(1, 200)], T0)
    outbox.close()
    with outbox.path.open("r+b") as file:
        file.seek(20 * 4_096)
        file.write(b"\xff" * 20_000)
    assert "the file is damaged" in problem(outbox.path)


def test_a_database_of_another_program_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "alerts.sqlite"
    with closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE birds (name TEXT)")
    before = path.read_bytes()
    expected = f"outbox of alerts {path}: it is another program's database; choose another folder (alerts.directory)"
    assert problem(path) == expected
    assert path.read_bytes() == before
    with pytest.raises(AlertOutboxError, match="another program's database"):
        AlertReader(path)


def test_the_command_line_says_that_a_file_is_empty(tmp_path: Path) -> None:
    """The pipeline makes the file before its tables, so a command may find it like that."""
    path = tmp_path / "alerts.sqlite"
    path.touch()
    with pytest.raises(AlertOutboxError, match="it is empty: the run that makes it has not filled it yet"):
        AlertReader(path)


def test_a_file_of_a_newer_version_is_not_opened(outbox: AlertOutbox) -> None:
    outbox.close()
    with closing(sqlite3.connect(outbox.path)) as other:
        other.execute("PRAGMA user_version = 9")
    assert "expected schema version 1, got 9; use the program that wrote it" in problem(outbox.path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert problem(tmp_path / "file" / "alerts.sqlite").startswith(f"outbox of alerts {tmp_path}/file/alerts.sqlite: ")


def test_a_file_that_may_not_be_written_is_named(outbox: AlertOutbox) -> None:
    assert outbox._db is not None
    outbox._db.execute("PRAGMA query_only = ON")  # the error of a read-only file, also for root
    with pytest.raises(
        AlertOutboxError,
        match=r"attempt to write a readonly database; may this user write to the file and its folder\?",
    ):
        outbox.record([risk()], T0)


def test_a_full_disk_is_named_and_leaves_the_file_as_it_was(outbox: AlertOutbox) -> None:
    outbox.record([risk()], T0)
    assert outbox._db is not None
    outbox._db.execute("PRAGMA max_page_count = 1")  # SQLite's own limit raises the error of a full disk
    many = [risk(n, 100_000 + n) for n in range(1, 500)]
    with pytest.raises(AlertOutboxError, match=r"database or disk is full; free space there, or choose another folder"):
        outbox.record([*many, risk(estimate=2, miss_m=1.0)], T0)
    outbox._db.execute("PRAGMA max_page_count = 1000000")
    (due,) = outbox.due("dynamics", T0, 10)
    assert due.alert.revision == 0
    assert [alert.revision for alert in outbox.record([risk(estimate=2, miss_m=1.0)], T0).alerts] == [1]


def test_a_writer_that_holds_the_file_for_too_long_is_reported_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_LOCKED_S", 0.0)
    outbox = AlertOutbox(tmp_path / "alerts.sqlite", subscribers=[DYNAMICS])
    outbox.open(T0)
    with closing(sqlite3.connect(outbox.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(AlertOutboxError, match="database is locked; another process writes it"):
            outbox.record([risk()], T0)
    assert outbox.record([risk()], T0).pending == 1
    outbox.close()


def test_the_command_line_changes_deliveries_while_the_pipeline_records_and_delivers(outbox: AlertOutbox) -> None:
    """Each of 200 conjunctions is pending or acknowledged at the end, and none is lost."""
    outbox.record([risk(n, 100_000 + n) for n in range(1, 101)], T0)

    def deliver() -> None:
        for _ in range(20):
            due = outbox.due("dynamics", T0, 7)
            outbox.acknowledge(due[1:], T0)
            if due:
                outbox.note_failure(due[0], "HTTP 503", T0)

    def record() -> None:
        for start in range(101, 201, 10):
            outbox.record([risk(n, 100_000 + n) for n in range(start, start + 10)], T0)

    def change() -> None:
        with AlertEditor(outbox.path) as editor:
            for listed in editor.listed()[::3]:
                full_id = str(listed.alert.conjunction_id)
                editor.park(full_id, subscriber=None, reason="a test", now_ns=T0)
                editor.send_again(full_id=full_id, subscriber=None, now_ns=T0)

    with ThreadPoolExecutor() as threads:
        for each in [threads.submit(work) for work in (deliver, record, change, deliver)]:
            each.result()
    with AlertReader(outbox.path) as reader:
        listed = reader.listed()
        assert len(listed) == 200
        assert all((each.pending + each.acknowledged, each.parked) == (1, 0) for each in listed)


KILLED = """
import sys
from pathlib import Path
from sda_ops.alerts.outbox.file import AlertOutboxError
from sda_ops.alerts.outbox.rules import SubscriberRules
from sda_ops.alerts.outbox.store import AlertOutbox
from tests.sda_ops.alerts.risks import T0, risk
outbox = AlertOutbox(Path(sys.argv[1]), subscribers=[SubscriberRules(name="dynamics")])
outbox.open(T0)
estimate = 0
while True:
    estimate += 1
    outbox.record([risk(n, 100_000 + n, estimate=estimate, miss_m=100.0 + 400.0 * (estimate % 2)) for n in range(1, 201)], T0)
    print(estimate, flush=True)
    outbox.acknowledge(outbox.due("dynamics", T0, 50), T0)
"""


def test_a_kill_in_the_middle_of_a_call_leaves_whole_calls(tmp_path: Path) -> None:
    path = tmp_path / "alerts.sqlite"
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert writer.stdout is not None
    for _ in range(4):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)  # it acknowledges, or records the next ones
    done = 4 + len(writer.stdout.read().split())
    writer.wait()
    outbox = AlertOutbox(path, subscribers=[DYNAMICS])
    outbox.open(T0)
    with AlertReader(path) as reader:
        revisions = [[each.alert.revision for each in reader.history(full_id)] for full_id in reader.ids("", 1_000)]
        acknowledged = sum(each.acknowledged for each in reader.listed())
    assert len(revisions) == 200
    assert revisions[0] in (list(range(done)), list(range(done + 1)))  # recorded, but killed before it could print it
    assert all(each == revisions[0] for each in revisions)
    assert acknowledged % 50 == 0
    outbox.close()
