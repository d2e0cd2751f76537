"""Reconciling earlier runs with a fake server, also if the server fails at any step, any number of times."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import ObjectNotFound

from orchestrator_adapter.prefect_flow.client.posting import ReportItem
from orchestrator_adapter.prefect_flow.recovery import reconcile
from orchestrator_adapter.prefect_flow.recovery.reconcile import ReconciledRun, reconcile_run, state_to_set
from orchestrator_adapter.prefect_flow.recovery.records import RunRecord, RunRecords
from orchestrator_adapter.testing import run_schedule
from tests.helpers.prefect_fakes import EVENTS, IDENTITY, LOGS, FakePrefect, answered, state

T = TypeVar("T")

RUN = IDENTITY.flow_run_id
OTHER_RUN = IDENTITY.flow_id
KILLED = RunRecord(RUN, "brave-otter", "radar-net", attempt=1, pid=4711, started="2026-01-01T12:00:00+00:00")
DONE = replace(KILLED, state_type="COMPLETED", state_message="AllOk", exit_code=0)
GONE = "its process no longer exists; reconciled by me"


def events(count: int) -> list[tuple[str, ReportItem]]:
    return [(EVENTS, {"id": str(UUID(int=number)), "event": "orchestrator.pipeline.ended"}) for number in range(count)]


def logs(count: int) -> list[tuple[str, ReportItem]]:
    return [(LOGS, {"message": str(number)}) for number in range(count)]


class Scene:
    """A fake server with a running flow run, and a record of the run on disk."""

    def __init__(self, folder: Path, record: RunRecord = KILLED) -> None:
        self.prefect = FakePrefect()
        self.prefect.has_flow_run(RUN, state(StateType.RUNNING))
        self.records = RunRecords(folder)
        self.record = record
        self.records.write(record)

    async def reconcile_run(self) -> ReconciledRun | None:
        return await reconcile_run(self.prefect.client, self.records, self.record, by="me")

    @property
    def kept(self) -> bool:
        return list(self.records.all()) == [self.record]

    @property
    def deleted(self) -> bool:
        return not list(self.records.all()) and not self.records.undelivered(self.record)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def in_virtual_time(make: Coroutine[Any, Any, T], monkeypatch: pytest.MonkeyPatch) -> tuple[T, float]:
    """The result of the coroutine, and how long it took."""

    async def main() -> tuple[T, float]:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(reconcile, "time", SimpleNamespace(monotonic=loop.time))
        return await make, loop.time()

    return run_schedule({}, main)


# Which state a run is set to.


def flow_run(now: State[Any] | None, *, attempt: int = 1) -> FlowRun:
    return FlowRun(id=RUN, flow_id=IDENTITY.flow_id, state=now, run_count=attempt)


@pytest.mark.parametrize(
    ("record", "theirs", "expected"),
    [
        # Killed: there is no outcome.
        (KILLED, None, (StateType.CRASHED, GONE)),
        (KILLED, StateType.RUNNING, (StateType.CRASHED, GONE)),
        (KILLED, StateType.PENDING, (StateType.CRASHED, GONE)),
        (KILLED, StateType.CANCELLING, (StateType.CANCELLED, GONE)),
        (KILLED, StateType.CRASHED, None),
        (KILLED, StateType.COMPLETED, None),
        (KILLED, StateType.CANCELLED, None),
        # It ended, and could not report it.
        (DONE, None, (StateType.COMPLETED, "AllOk")),
        (DONE, StateType.RUNNING, (StateType.COMPLETED, "AllOk")),
        (DONE, StateType.CANCELLING, (StateType.COMPLETED, "AllOk")),
        (DONE, StateType.CRASHED, (StateType.COMPLETED, "AllOk")),
        (DONE, StateType.COMPLETED, None),
        (DONE, StateType.FAILED, None),
        (DONE, StateType.CANCELLED, None),
        (replace(DONE, state_type="CRASHED", state_message="bug"), StateType.CRASHED, None),
        (replace(DONE, state_type="CRASHED", state_message="bug"), StateType.RUNNING, (StateType.CRASHED, "bug")),
        (
            replace(DONE, state_type="CANCELLED", state_message="asked"),
            StateType.CRASHED,
            (StateType.CANCELLED, "asked"),
        ),
    ],
)
def test_a_run_is_set_to_its_recorded_state_or_crashed_if_it_was_killed(
    record: RunRecord, theirs: StateType | None, expected: tuple[StateType, str] | None
) -> None:
    """A final state set by another client stays, except Crashed set by an automation on a run that did not crash."""
    found = state_to_set(record, flow_run(state(theirs) if theirs is not None else None), by="me")
    assert (found and (found.type, found.message)) == expected
    assert found is None or found.name == found.type.value.capitalize()


@pytest.mark.parametrize("record", [KILLED, DONE])
@pytest.mark.parametrize(("attempt", "unchanged"), [(0, False), (1, False), (2, True)])
def test_a_flow_run_with_a_newer_attempt_is_not_changed(record: RunRecord, attempt: int, unchanged: bool) -> None:  # noqa: FBT001
    """Its state belongs to the newer attempt."""
    found = state_to_set(record, flow_run(state(StateType.RUNNING), attempt=attempt), by="me")
    assert (found is None) is unchanged


# Reconciling.


async def test_a_killed_run_is_set_crashed_with_its_unfinished_task_runs(scene: Scene) -> None:
    """Finished task runs and those of other runs do not change."""
    alive = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED, StateType.PAUSED, StateType.CANCELLING]
    for number, kind in enumerate([*alive, StateType.COMPLETED, StateType.FAILED], 1):
        scene.prefect.has_task_run(number, RUN, state(kind))
    scene.prefect.has_task_run(8, OTHER_RUN, state(StateType.RUNNING))
    assert await scene.reconcile_run() == ReconciledRun(KILLED, "Crashed", 5)
    assert list(scene.prefect.task_run_states().values()) == [*5 * ["Crashed"], "Completed", "Failed", "Running"]
    assert scene.prefect.flow_run_state(RUN).message == GONE
    first = scene.prefect.task_runs[next(iter(scene.prefect.task_runs))].state
    assert first is not None
    assert first.message == GONE
    assert scene.deleted


async def test_a_run_that_ended_during_an_outage_gets_its_final_state(tmp_path: Path) -> None:
    """State and message come from the record."""
    scene = Scene(tmp_path, DONE)
    assert await scene.reconcile_run() == ReconciledRun(DONE, "Completed", 0)
    now = scene.prefect.flow_run_state(RUN)
    assert (now.type, now.message) == (StateType.COMPLETED, "AllOk")
    assert scene.deleted


async def test_the_record_of_a_run_in_the_right_state_is_deleted(tmp_path: Path) -> None:
    """No state is set."""
    scene = Scene(tmp_path, DONE)
    scene.prefect.has_flow_run(RUN, state(StateType.COMPLETED, "AllOk"))
    assert await scene.reconcile_run() == ReconciledRun(DONE, None, 0)
    assert scene.prefect.calls == ["read_flow_run", "read_task_runs"]
    assert scene.deleted


async def test_the_record_of_a_run_deleted_on_the_server_is_deleted(scene: Scene) -> None:
    """The run is not created again."""
    scene.prefect.flow_runs.clear()
    assert await scene.reconcile_run() == ReconciledRun(KILLED, None, 0)
    assert scene.deleted


@pytest.mark.parametrize("code", [401, 403, 422])
async def test_a_rejected_call_keeps_the_record(code: int, scene: Scene) -> None:
    """An invalid API key says nothing about the run: it is reconciled once the key is valid."""
    scene.prefect.raises["read_flow_run"] = answered(code)
    assert await scene.reconcile_run() is None
    assert not scene.deleted
    scene.prefect.raises.clear()
    assert await scene.reconcile_run() == ReconciledRun(KILLED, "Crashed", 0)


async def test_a_task_run_deleted_on_the_server_does_not_stop_the_reconciliation(scene: Scene) -> None:
    """The flow run gets its state, and the record is deleted."""
    scene.prefect.has_task_run(1, RUN, state(StateType.RUNNING))
    scene.prefect.raises["set_task_run_state"] = ObjectNotFound(http_exc=answered(404))
    assert await scene.reconcile_run() == ReconciledRun(KILLED, "Crashed", 1)
    assert scene.deleted


async def test_a_newer_attempt_of_the_same_run_is_not_changed(scene: Scene) -> None:
    """Only task runs of the recorded attempt, and of earlier ones, are set Crashed."""
    scene.prefect.has_flow_run(RUN, state(StateType.RUNNING), attempt=2)
    scene.prefect.has_task_run(1, RUN, state(StateType.RUNNING), attempt=1)
    scene.prefect.has_task_run(2, RUN, state(StateType.RUNNING), attempt=2)
    scene.prefect.has_task_run(3, RUN, state(StateType.RUNNING), attempt=0)
    assert await scene.reconcile_run() == ReconciledRun(KILLED, None, 2)
    assert list(scene.prefect.task_run_states().values()) == ["Crashed", "Running", "Crashed"]
    assert scene.prefect.flow_run_state(RUN).type is StateType.RUNNING
    assert scene.deleted


@pytest.mark.parametrize("count", [199, 200, 201, 400, 450])
async def test_more_task_runs_than_one_answer_holds_are_all_found(count: int, scene: Scene) -> None:
    """The server returns 200 at a time."""
    for number in range(1, count + 1):
        scene.prefect.has_task_run(number, RUN, state(StateType.RUNNING))
    assert await scene.reconcile_run() == ReconciledRun(KILLED, "Crashed", count)
    assert set(scene.prefect.task_run_states().values()) == {"Crashed"}


def test_undelivered_items_are_posted_first_events_before_log_lines_in_batches(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, at most 200 per request. The record is deleted only after that."""
    undelivered = [*logs(3), *events(450)]
    scene.records.write_undelivered(KILLED, undelivered)
    result, _ = in_virtual_time(scene.reconcile_run(), monkeypatch)
    assert result == ReconciledRun(KILLED, "Crashed", 0)
    assert [(kind, len(batch)) for kind, batch in scene.prefect.posted] == [
        *((EVENTS, 200), (EVENTS, 200), (EVENTS, 50)),
        (LOGS, 3),
    ]
    assert scene.prefect.items(EVENTS) == [item for _, item in events(450)]
    assert scene.prefect.items(LOGS) == [item for _, item in logs(3)]
    assert scene.prefect.calls.index("read_flow_run") > scene.prefect.calls.index("post log")
    assert scene.deleted


async def test_events_that_the_server_has_are_not_posted_again(scene: Scene) -> None:
    """It may have accepted an event although the answer was lost. A real server drops a batch with a second copy."""
    scene.records.write_undelivered(KILLED, events(120))
    scene.prefect.stored = {str(item["id"]): item for _, item in events(60)}
    assert await scene.reconcile_run() == ReconciledRun(KILLED, "Crashed", 0)
    assert scene.prefect.items(EVENTS) == [item for _, item in events(120)][60:]
    assert scene.prefect.sent_twice == []


async def test_rejected_items_are_logged_and_dropped(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """The rest of the run is reconciled."""
    scene.records.write_undelivered(KILLED, logs(2))
    scene.prefect.raises["post log"] = answered(422)
    assert await scene.reconcile_run() == ReconciledRun(KILLED, "Crashed", 0)
    assert "Prefect rejects 2 logs of an earlier run: answered 422" in caplog.text
    assert scene.deleted


async def test_an_unreadable_file_of_undelivered_items_does_not_stop_the_reconciliation(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the items in the torn file are lost."""
    (tmp_path / f"{RUN}.1.untold.jsonl").write_text('{"kind": "ev')
    assert await scene.reconcile_run() == ReconciledRun(KILLED, "Crashed", 0)
    assert "cannot be read" in caplog.text
    assert scene.deleted


CALLS = [
    "read_events",
    "post event",
    "post log",
    "read_flow_run",
    "read_task_runs",
    "set_task_run_state",
    "set_flow_run_state",
]
"""Every call that reconciling a run needs."""


@pytest.mark.parametrize(
    ("fault", "unreachable_after"), [*(("outage", answers) for answers in range(8)), *((call, None) for call in CALLS)]
)
async def test_a_reconciliation_that_fails_at_any_step_is_completed_the_next_time(
    fault: str, unreachable_after: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the record stays. The repetition has the same result as an undisturbed run, and sends no event twice."""
    monkeypatch.setattr(reconcile, "_RECORDED_WITHIN_S", 0.0)
    scene = Scene(tmp_path)
    undelivered = [*events(1), *logs(1)]
    scene.records.write_undelivered(KILLED, undelivered)
    for number in (1, 2):
        scene.prefect.has_task_run(number, RUN, state(StateType.RUNNING))
    scene.prefect.unreachable_after = unreachable_after
    if fault in CALLS:
        scene.prefect.raises[fault] = answered(503)
    assert await scene.reconcile_run() is None
    assert scene.kept
    assert scene.records.undelivered(KILLED) == undelivered
    scene.prefect.unreachable, scene.prefect.unreachable_after, scene.prefect.raises = False, None, {}
    again = await scene.reconcile_run()
    assert again is not None
    assert again.flow_run_state == "Crashed"
    assert set(scene.prefect.task_run_states().values()) == {"Crashed"}
    assert scene.prefect.flow_run_state(RUN).message == GONE
    assert scene.prefect.sent_twice == []
    assert scene.deleted


async def test_an_outage_between_two_pages_of_task_runs_keeps_the_record(scene: Scene) -> None:
    """A partial list of task runs is not used."""
    for number in range(1, 301):
        scene.prefect.has_task_run(number, RUN, state(StateType.RUNNING))
    scene.prefect.unreachable_after = 2
    assert await scene.reconcile_run() is None
    assert scene.kept
    assert set(scene.prefect.task_run_states().values()) == {"Running"}


def test_task_runs_that_the_server_is_still_recording_are_waited_for(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their events have just been posted: for 5 s no task run is set Crashed, then those that are still not final."""
    poll, log = (scene.prefect.has_task_run(number, RUN, state(StateType.RUNNING)) for number in (1, 2))
    scene.records.write_undelivered(KILLED, events(1))

    async def recorded_late() -> ReconciledRun | None:
        loop = asyncio.get_running_loop()
        loop.call_later(2.1, lambda: setattr(scene.prefect.task_runs[poll], "state", state(StateType.COMPLETED)))
        return await scene.reconcile_run()

    result, took_s = in_virtual_time(recorded_late(), monkeypatch)
    assert result == ReconciledRun(KILLED, "Crashed", 1)
    assert scene.prefect.task_run_states() == {"operator-1": "Completed", "operator-2": "Crashed"}
    assert scene.prefect.task_runs[log].state is not None
    assert took_s == 5.0


def test_the_wait_for_recorded_task_runs_ends_early_or_is_skipped(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends once every task run is final. It is skipped if only log lines were posted."""
    poll = scene.prefect.has_task_run(1, RUN, state(StateType.RUNNING))
    scene.records.write_undelivered(KILLED, events(1))

    async def recorded_soon() -> ReconciledRun | None:
        loop = asyncio.get_running_loop()
        loop.call_later(0.6, lambda: setattr(scene.prefect.task_runs[poll], "state", state(StateType.COMPLETED)))
        return await scene.reconcile_run()

    result, took_s = in_virtual_time(recorded_soon(), monkeypatch)
    assert (result, took_s) == (ReconciledRun(KILLED, "Crashed", 0), 0.75)
    scene.records.write(KILLED)
    scene.records.write_undelivered(KILLED, logs(1))
    scene.prefect.has_task_run(1, RUN, state(StateType.RUNNING))
    result, took_s = in_virtual_time(scene.reconcile_run(), monkeypatch)
    assert result is not None
    assert (result.task_runs, took_s) == (1, 0.0)


async def test_reconciling_a_run_twice_changes_nothing(scene: Scene) -> None:
    """A record restored from a backup changes nothing."""
    scene.prefect.has_task_run(1, RUN, state(StateType.RUNNING))
    await scene.reconcile_run()
    scene.records.write(KILLED)
    assert await scene.reconcile_run() == ReconciledRun(KILLED, None, 0)
    assert scene.prefect.calls.count("set_flow_run_state") == scene.prefect.calls.count("set_task_run_state") == 1
