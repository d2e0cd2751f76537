"""``python -m flows reconcile``: messages, records and exit code. ``integration/`` has it with a real server."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.schemas.objects import StateType

from flows.__main__ import main
from flows.commands import reconcile as reconcile_command
from orchestrator_adapter.prefect_flow import recovery
from orchestrator_adapter.prefect_flow.recovery.records import RunRecord, RunRecords
from orchestrator_adapter.storage.claims import Owner, claim
from tests.helpers.prefect_fakes import FakePrefect, state

RECORD = RunRecord(UUID(int=9), "brave-otter", "sda-ingest", 1, 4_711, "2026-01-01T12:00:00+00:00")


@pytest.fixture
def prefect(monkeypatch: pytest.MonkeyPatch) -> FakePrefect:
    """A server that answers; ``PREFECT_API_URL`` names it."""

    async def up(*_: object) -> None:
        return None

    prefect = FakePrefect()
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    monkeypatch.setattr(reconcile_command, "wait_for_api", up)
    monkeypatch.setattr(recovery, "client_without_retries", prefect.connected)
    return prefect


def reconcile(folder: Path, *options: str) -> int:
    return main(["reconcile", "--folder", str(folder), *options])


def test_a_killed_run_is_set_crashed_and_its_record_is_removed(
    prefect: FakePrefect, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 0; flow run and task run are Crashed; the second call has nothing to reconcile."""
    RunRecords(tmp_path).write(RECORD)
    prefect.has_flow_run(RECORD.flow_run_id, state(StateType.RUNNING))
    alive = prefect.has_task_run(1, RECORD.flow_run_id, state(StateType.RUNNING))
    assert reconcile(tmp_path) == 0
    named = f"flow run 'brave-otter' ({RECORD.flow_run_id}) of sda-ingest"
    assert capsys.readouterr().out == f"{named}: Crashed; 1 task runs set Crashed\n"
    assert prefect.flow_run_state(RECORD.flow_run_id).type is StateType.CRASHED
    assert prefect.task_runs[alive].state is not None
    assert "python -m flows reconcile" in (prefect.flow_run_state(RECORD.flow_run_id).message or "")
    assert reconcile(tmp_path) == 0
    assert capsys.readouterr().out == f"nothing to reconcile in {tmp_path}\n"


def test_the_record_is_kept_if_the_server_does_not_answer(
    prefect: FakePrefect, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, and the run is named."""
    RunRecords(tmp_path).write(RECORD)
    prefect.unreachable = True
    assert reconcile(tmp_path) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert f"({RECORD.flow_run_id}) of sda-ingest: Prefect does not answer correctly" in printed.err
    assert list(RunRecords(tmp_path).all()) == [RECORD]


def test_a_file_that_is_not_a_record_is_named_and_not_changed(
    prefect: FakePrefect, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1."""
    path = tmp_path / "other.json"
    path.write_text("{}")
    assert reconcile(tmp_path) == 1
    assert capsys.readouterr().err == (f"reconcile: {path} is not a valid record of a run; it is left unchanged\n")
    assert path.read_text() == "{}"


def test_a_folder_that_a_run_uses_is_rejected(
    prefect: FakePrefect, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, with the run's name; no request is sent."""
    owner = Owner.this_process("sda-ingest", run="flow run 'brave-otter'")
    with claim((f"file://{tmp_path.resolve()}",), owner):
        assert reconcile(tmp_path) == 1
    assert f"file://{tmp_path} is in use by {owner}" in capsys.readouterr().err
    assert prefect.calls == []


def test_without_an_api_the_record_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, if no server is named and if it does not answer."""
    RunRecords(tmp_path).write(RECORD)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert reconcile(tmp_path) == 1
    assert "set PREFECT_API_URL" in capsys.readouterr().err
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert reconcile(tmp_path, "--api-wait", "0") == 1
    assert "no Prefect API answers at http://127.0.0.1:9/api (PREFECT_API_URL): " in capsys.readouterr().err
    assert list(RunRecords(tmp_path).all()) == [RECORD]


def test_the_default_folder_is_the_one_in_the_settings(
    prefect: FakePrefect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``prefect.directory``, here from the environment."""
    monkeypatch.setenv("SDA_INGEST__PREFECT__DIRECTORY", str(tmp_path))
    assert main(["reconcile"]) == 0
    assert capsys.readouterr().out == f"nothing to reconcile in {tmp_path}\n"
