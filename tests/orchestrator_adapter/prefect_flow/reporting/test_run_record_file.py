"""The record that a run writes of itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import StateType

from orchestrator_adapter.prefect_flow.recovery.records import RunRecords
from orchestrator_adapter.prefect_flow.reporting.run_record_file import RunRecordFile
from orchestrator_adapter.storage.claims import Claimed
from tests.helpers.prefect_fakes import EVENTS, IDENTITY, state


def record_file(folder: Path | None) -> RunRecordFile:
    return RunRecordFile(IDENTITY, folder)


def test_a_run_has_a_record_from_its_start_and_the_record_says_how_it_ended(tmp_path: Path) -> None:
    """First the identity of the run; then the outcome. A later outcome replaces an earlier one."""
    file = record_file(tmp_path)
    file.open()
    (started,) = RunRecords(tmp_path).all()
    assert (started.flow_run_id, started.flow_run_name, started.pipeline, started.attempt) == (
        *(IDENTITY.flow_run_id, "brave-otter", "radar-net"),
        1,
    )
    assert (started.state_type, started.exit_code) == (None, None)
    file.record_outcome(state(StateType.COMPLETED, "ShutDown"), 0)
    file.record_outcome(state(StateType.CANCELLED, "ShutDown: by hand"), 0)
    (ended,) = RunRecords(tmp_path).all()
    assert ended == replace(started, state_type="CANCELLED", state_message="ShutDown: by hand", exit_code=0)


def test_a_run_that_did_not_start_has_no_record(tmp_path: Path) -> None:
    """Discarding a record that was never opened is not an error."""
    file = record_file(tmp_path)
    file.discard()
    file.open()
    file.discard()
    assert list(tmp_path.iterdir()) == []


def test_undelivered_items_are_stored_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """If everything was delivered, there is neither a file nor a log line."""
    file = record_file(tmp_path)
    file.open()
    file.write_undelivered(())
    (record,) = RunRecords(tmp_path).all()
    assert RunRecords(tmp_path).undelivered(record) == []
    assert caplog.messages == []
    items = ((EVENTS, {"id": "a"}), (EVENTS, {"id": "b"}))
    file.write_undelivered(items)
    assert RunRecords(tmp_path).undelivered(record) == list(items)
    assert caplog.messages == [
        f"2 events and log lines could not be delivered to Prefect; {tmp_path} keeps them for the next start"
    ]


def test_a_disk_that_fails_costs_the_record_and_not_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While the run goes on, a failed write is logged. At the start it raises, so that the run does not start."""
    file = record_file(tmp_path)
    file.open()

    def full(*_: object, **__: object) -> Any:
        raise OSError(28, "No space left on device")

    for name in ("write", "write_undelivered"):
        monkeypatch.setattr(RunRecords, name, full)
    file.record_outcome(state(StateType.COMPLETED), 0)
    file.write_undelivered(((EVENTS, {}),))
    assert len(caplog.messages) == 2
    assert all("could not be written" in message for message in caplog.messages)
    with pytest.raises(OSError, match="No space left"):
        record_file(tmp_path).open()


def test_without_a_folder_no_method_does_anything() -> None:
    """And none fails."""
    file = record_file(None)
    with file.claimed("radar-net"):
        file.open()
        file.record_outcome(state(StateType.COMPLETED), 0)
        file.write_undelivered(((EVENTS, {}),))
        file.discard()


def test_one_folder_belongs_to_one_run_at_a_time(tmp_path: Path) -> None:
    """A second claim, also by another path, names the owner; after the first run the folder is free."""
    with (
        record_file(tmp_path).claimed("radar-net"),
        pytest.raises(Claimed, match=r"pipeline 'radar-net'.*flow run 'brave-otter'"),
        record_file(tmp_path / "." / ".." / tmp_path.name).claimed("radar-net"),
    ):
        raise AssertionError("two runs have it")
    with record_file(tmp_path).claimed("radar-net"):
        pass
