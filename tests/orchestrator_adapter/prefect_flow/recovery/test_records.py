"""Run records on a real disk: written atomically, and other files are not read as records."""

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
    """Every field, before and after the run has ended. There is one file."""
    records = RunRecords(tmp_path / "not" / "yet")
    assert list(records.all()) == []
    assert records.unreadable() == []
    records.write(RECORD)
    assert list(records.all()) == [RECORD]
    ended = records.record_outcome(RECORD, state_type="FAILED", message="BudgetExhausted: \udcff", exit_code=3)
    assert ended == replace(RECORD, state_type="FAILED", state_message="BudgetExhausted: \udcff", exit_code=3)
    assert list(records.all()) == [ended]
    assert len(names(tmp_path / "not" / "yet")) == 1


def test_attempts_of_one_flow_run_are_records_of_their_own(tmp_path: Path) -> None:
    """Deleting one, with its undelivered items, does not affect the other."""
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
    """By the time of the last write, then by name."""
    records = RunRecords(tmp_path)
    for number, at in ((1, 30), (2, 10), (3, 20), (4, 10)):
        record = replace(RECORD, flow_run_id=UUID(int=number))
        records.write(record)
        os.utime(tmp_path / f"{record.flow_run_id}.1.json", (at, at))
    assert [record.flow_run_id.int for record in records.all()] == [2, 4, 3, 1]


def test_undelivered_items_are_read_in_order(tmp_path: Path) -> None:
    """Kind and item of each, also with line ends of any kind in the text. A later write replaces an earlier one."""
    records = RunRecords(tmp_path)
    items = [(EVENTS, {"id": "a", "text": "x\n\u2028\x85y"}), (LOGS, {"message": "\udcff"}), (EVENTS, {"id": "b"})]
    assert records.undelivered(RECORD) == []
    assert records.write_undelivered(RECORD, [(EVENTS, {"id": "earlier"})]) == 1
    assert records.write_undelivered(RECORD, items) == 3
    assert records.undelivered(RECORD) == items
    assert list(records.all()) == []
    assert records.unreadable() == []


def test_without_undelivered_items_there_is_no_file(tmp_path: Path) -> None:
    """Not even an empty file."""
    assert RunRecords(tmp_path).write_undelivered(RECORD, []) == 0
    assert names(tmp_path) == []


@pytest.mark.parametrize("line", ["{", "{}", "null", '["event", {}]', '{"kind": "event"}', "\udcff"])
def test_an_invalid_file_of_undelivered_items_is_a_value_error(line: str, tmp_path: Path) -> None:
    """For any kind of damage, so that the caller can go on without the file."""
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
def test_an_invalid_record_is_skipped_and_listed_as_unreadable(text: str, tmp_path: Path) -> None:
    """Torn, foreign, or of a later version: it is neither read nor removed, and other records are still read."""
    records = RunRecords(tmp_path)
    foreign = tmp_path / "foreign.json"
    foreign.write_bytes(text.encode("utf-8", "surrogateescape"))
    records.write(RECORD)
    assert list(records.all()) == [RECORD]
    assert records.unreadable() == [foreign]
    records.delete(RECORD)
    assert names(tmp_path) == ["foreign.json"]


def test_folders_and_broken_links_are_not_records(tmp_path: Path) -> None:
    """They are listed as unreadable, and the records beside them are read."""
    records = RunRecords(tmp_path)
    records.write(RECORD)
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "gone")
    assert list(records.all()) == [RECORD]
    assert sorted(path.name for path in records.unreadable()) == ["folder.json", "link.json"]


def test_the_unchanged_sample_is_a_valid_record(tmp_path: Path) -> None:
    """So each invalid sample is invalid because of its change."""
    (tmp_path / "x.json").write_text(json.dumps(good()))
    assert [record.flow_run_id for record in RunRecords(tmp_path).all()] == [UUID(int=2)]


@pytest.mark.parametrize("fails", ["os.fsync", "pathlib.Path.replace"])
def test_a_failed_write_keeps_the_former_record_and_leaves_no_draft(
    fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk costs the new content, not the former record."""
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
    """Nor a finished file."""
    with pytest.raises(UnicodeEncodeError):
        write_durably(tmp_path / "x", "\udcff")
    assert names(tmp_path) == []


def test_a_file_is_synced_before_it_is_renamed_and_the_folder_after_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First the draft is synced, then, after the rename, its folder."""
    steps: list[str] = []

    def synced(file: int) -> None:
        steps.append(f"sync {Path(f'/proc/self/fd/{file}').readlink().name}: {names(tmp_path)}")

    monkeypatch.setattr("os.fsync", synced)
    write_durably(tmp_path / "x", "text")
    draft = f"x.{os.getpid()}.part"
    assert steps == [f"sync {draft}: ['{draft}']", f"sync {tmp_path.name}: ['x']"]
    assert (tmp_path / "x").read_text() == "text"


def test_a_record_that_is_deleted_during_the_listing_is_not_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may delete it at any time."""
    records = RunRecords(tmp_path)
    (tmp_path / "gone.json").symlink_to(tmp_path / "nowhere")
    real = Path.lstat

    def lstat(path: Path) -> os.stat_result:
        if path.name == "gone.json":
            path.unlink()
        return real(path)

    monkeypatch.setattr(Path, "lstat", lstat)
    assert (list(records.all()), records.unreadable()) == ([], [])
