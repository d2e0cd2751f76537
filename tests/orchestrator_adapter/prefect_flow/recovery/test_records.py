"""What outlives a run, on a real disk: whole or not at all, and nothing foreign taken for it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from uuid import UUID

import pytest

from orchestrator_adapter.prefect_flow.recovery.records import RunRecord, RunRecords
from orchestrator_adapter.storage.durable import write_durably
from tests.helpers.prefect_fakes import EVENTS, LOGS

RECORD = RunRecord(
    flow_run_id=UUID(int=1),
    flow_run_name="brave-otter",
    pipeline="radar-net",
    attempt=1,
    pid=4711,
    started="2026-01-01T12:00:00+00:00",
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Every field, before and after the run has ended; there is one file of it."""
    records = RunRecords(tmp_path / "not" / "yet")
    assert list(records.all()) == []
    assert records.unreadable() == []
    records.write(RECORD)
    assert list(records.all()) == [RECORD]
    settled = records.record_outcome(RECORD, state_type="FAILED", message="BudgetExhausted: \udcff", exit_code=3)
    assert settled == replace(RECORD, state_type="FAILED", state_message="BudgetExhausted: \udcff", exit_code=3)
    assert list(records.all()) == [settled]
    assert len(names(tmp_path / "not" / "yet")) == 1


def test_attempts_of_one_flow_run_are_records_of_their_own(tmp_path: Path) -> None:
    """Forgetting one, with what it has not told, leaves the other."""
    records, second = RunRecords(tmp_path), replace(RECORD, attempt=2)
    for record in (RECORD, second):
        records.write(record)
        records.write_undelivered(record, [(EVENTS, {"attempt": record.attempt})])
    records.delete(RECORD)
    assert list(records.all()) == [second]
    assert records.undelivered(RECORD) == []
    assert records.undelivered(second) == [(EVENTS, {"attempt": 2})]
    records.delete(second)
    records.delete(second)
    assert names(tmp_path) == []


def test_the_oldest_record_comes_first(tmp_path: Path) -> None:
    """By when it was last written, then by name."""
    records = RunRecords(tmp_path)
    for number, at in ((1, 30), (2, 10), (3, 20), (4, 10)):
        record = replace(RECORD, flow_run_id=UUID(int=number))
        records.write(record)
        os.utime(tmp_path / f"{record.flow_run_id}.1.json", (at, at))
    assert [record.flow_run_id.int for record in records.all()] == [2, 4, 3, 1]


def test_what_was_not_told_comes_back_in_order(tmp_path: Path) -> None:
    """Kind and item of each, also of text with line ends of every kind; the last that was kept counts."""
    records = RunRecords(tmp_path)
    items = [(EVENTS, {"id": "a", "text": "x\n\u2028\x85y"}), (LOGS, {"message": "\udcff"}), (EVENTS, {"id": "b"})]
    assert records.undelivered(RECORD) == []
    assert records.write_undelivered(RECORD, [(EVENTS, {"id": "earlier"})]) == 1
    assert records.write_undelivered(RECORD, items) == 3
    assert records.undelivered(RECORD) == items
    assert list(records.all()) == []
    assert records.unreadable() == []


def test_nothing_untold_leaves_no_file(tmp_path: Path) -> None:
    """Not even an empty one."""
    assert RunRecords(tmp_path).write_undelivered(RECORD, []) == 0
    assert names(tmp_path) == []


@pytest.mark.parametrize("line", ["{", "{}", "null", '["event", {}]', '{"kind": "event"}', "\udcff"])
def test_a_broken_file_of_what_was_not_told_is_a_value_error(line: str, tmp_path: Path) -> None:
    """Whatever is wrong with it: whoever puts the run right goes on without it."""
    records = RunRecords(tmp_path)
    records.write_undelivered(RECORD, [(EVENTS, {"id": "a"})])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes() + line.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"."):
        records.undelivered(RECORD)


def good() -> dict[str, object]:
    return {"version": 1, **asdict(RECORD), "flow_run_id": str(UUID(int=2))}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        json.dumps(good())[:-20],
        "null",
        "[]",
        json.dumps(good() | {"version": 2}),
        json.dumps({name: value for name, value in good().items() if name != "version"}),
        json.dumps({name: value for name, value in good().items() if name != "pid"}),
        json.dumps(good() | {"flow_run_id": "brave-otter"}),
        json.dumps(good() | {"flow_run_id": 7}),
        json.dumps(good() | {"colour": "red"}),
        "\udcff",
    ],
)
def test_what_is_no_record_is_passed_over_and_named(text: str, tmp_path: Path) -> None:
    """Torn, foreign, or of a version to come: it is neither read nor removed, and hides no other."""
    records = RunRecords(tmp_path)
    foreign = tmp_path / "foreign.json"
    foreign.write_bytes(text.encode("utf-8", "surrogateescape"))
    records.write(RECORD)
    assert list(records.all()) == [RECORD]
    assert records.unreadable() == [foreign]
    records.delete(RECORD)
    assert names(tmp_path) == ["foreign.json"]


def test_folders_and_links_to_nowhere_are_no_records_either(tmp_path: Path) -> None:
    """They are named, and the records beside them are read."""
    records = RunRecords(tmp_path)
    records.write(RECORD)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "gone")
    assert list(records.all()) == [RECORD]
    assert sorted(path.name for path in records.unreadable()) == ["folder.json", "link.json"]


def test_a_good_record_is_none_of_those(tmp_path: Path) -> None:
    """So that what they are refused for is what is wrong with them."""
    (tmp_path / "x.json").write_text(json.dumps(good()))
    assert [record.flow_run_id for record in RunRecords(tmp_path).all()] == [UUID(int=2)]


@pytest.mark.parametrize("fails", ["os.fsync", "pathlib.Path.replace"])
def test_a_write_that_fails_leaves_what_was_there_and_no_draft(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk costs the news, not the record before it."""
    records = RunRecords(tmp_path)
    records.write(RECORD)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(fails, full)
        with pytest.raises(OSError, match="No space left"):
            records.record_outcome(RECORD, state_type="COMPLETED", message="", exit_code=0)
    assert list(records.all()) == [RECORD]
    assert names(tmp_path) == [f"{RECORD.flow_run_id}.1.json"]


def test_text_that_cannot_be_encoded_leaves_no_draft(tmp_path: Path) -> None:
    """Nor a file."""
    with pytest.raises(UnicodeEncodeError):
        write_durably(tmp_path / "x", "\udcff")
    assert names(tmp_path) == []


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_before_this_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Synced: the draft, then, once it is renamed, the folder."""
    steps: list[str] = []

    def synced(file: int) -> None:
        steps.append(f"sync {Path(f'/proc/self/fd/{file}').readlink().name}: {names(tmp_path)}")

    monkeypatch.setattr("os.fsync", synced)
    write_durably(tmp_path / "x", "text")
    draft = f"x.{os.getpid()}.part"
    assert steps == [f"sync {draft}: ['{draft}']", f"sync {tmp_path.name}: ['x']"]
    assert (tmp_path / "x").read_text() == "text"


def test_a_record_that_is_forgotten_while_they_are_listed_is_not_among_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may do so at any time."""
    records = RunRecords(tmp_path)
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    real = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        if path.name == "gone.json":
            path.unlink()
        return real(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    assert (list(records.all()), records.unreadable()) == ([], [])
