"""Earlier runs put right, against a server that is not there: also if it goes away at any step, and however often."""

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
    """A server that has a running flow run with one task run alive, and a record of it on disk."""

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
    """Its result, and how long it took."""

    async def main() -> tuple[T, float]:
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(reconcile, "time", SimpleNamespace(monotonic=loop.time))
        return await make, loop.time()

    return run_schedule({}, main)


# Which state it deserves.


def flow_run(now: State[Any] | None, *, attempt: int = 1) -> FlowRun:
    return FlowRun(id=RUN, flow_id=IDENTITY.flow_id, state=now, run_count=attempt)


@pytest.mark.parametrize(
    ("record", "theirs", "expected"),
    [
        # Killed: nobody knows how it would have ended.
        (KILLED, None, (StateType.CRASHED, GONE)),
        (KILLED, StateType.RUNNING, (StateType.CRASHED, GONE)),
        (KILLED, StateType.PENDING, (StateType.CRASHED, GONE)),
        (KILLED, StateType.CANCELLING, (StateType.CANCELLED, GONE)),
        (KILLED, StateType.CRASHED, None),
        (KILLED, StateType.COMPLETED, None),
        (KILLED, StateType.CANCELLED, None),
        # It ended, and nobody could say so.
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
def test_a_run_gets_the_state_on_record_or_the_one_of_a_process_that_was_killed(
    record: RunRecord, theirs: StateType | None, expected: tuple[StateType, str] | None
) -> None:
    """A final state by somebody else stands, but for the Crashed of an automation that took a silent run for dead."""
    told = state_to_set(record, flow_run(state(theirs) if theirs is not None else None), by="me")
    assert (told and (told.type, told.message)) == expected
    assert told is None or told.name == told.type.value.capitalize()


@pytest.mark.parametrize("record", [KILLED, DONE])
@pytest.mark.parametrize(("attempt", "left_alone"), [(0, False), (1, False), (2, True)])
def test_a_flow_run_that_runs_once_more_is_left_alone(record: RunRecord, attempt: int, left_alone: bool) -> None:  # noqa: FBT001
    """Its state is the newer attempt's business."""
    told = state_to_set(record, flow_run(state(StateType.RUNNING), attempt=attempt), by="me")
    assert (told is None) is left_alone


# Putting right.


async def test_a_run_that_was_killed_is_crashed_with_all_its_task_runs(scene: Scene) -> None:
    """Whatever was alive of it; what had ended stays as it was, and so does every other run's."""
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


async def test_a_run_whose_end_nobody_heard_gets_it(tmp_path: Path) -> None:
    """State and message of the record."""
    scene = Scene(tmp_path, DONE)
    assert await scene.reconcile_run() == ReconciledRun(DONE, "Completed", 0)
    now = scene.prefect.flow_run_state(RUN)
    assert (now.type, now.message) == (StateType.COMPLETED, "AllOk")
    assert scene.deleted


async def test_a_run_that_needs_nothing_is_forgotten(tmp_path: Path) -> None:
    """Nothing is set."""
    scene = Scene(tmp_path, DONE)
    scene.prefect.has_flow_run(RUN, state(StateType.COMPLETED, "AllOk"))
    assert await scene.reconcile_run() == ReconciledRun(DONE, None, 0)
    assert scene.prefect.calls == ["read_flow_run", "read_task_runs"]
    assert scene.deleted


async def test_a_run_that_has_gone_from_the_server_is_forgotten(scene: Scene) -> None:
    """Somebody has deleted it, and does not want it back."""
    scene.prefect.flow_runs.clear()
    assert await scene.reconcile_run() == ReconciledRun(KILLED, None, 0)
    assert scene.deleted


@pytest.mark.parametrize("code", [401, 403, 422])
async def test_a_server_that_refuses_us_costs_no_record(code: int, scene: Scene) -> None:
    """A key that is not valid is no word on the run: it is put right once the key is."""
    scene.prefect.raises["read_flow_run"] = answered(code)
    assert await scene.reconcile_run() is None
    assert not scene.deleted
    scene.prefect.raises.clear()
    assert await scene.reconcile_run() == ReconciledRun(KILLED, "Crashed", 0)


async def test_a_task_run_that_has_gone_from_the_server_is_no_obstacle(scene: Scene) -> None:
    """The flow run gets its state, and is forgotten."""
    scene.prefect.has_task_run(1, RUN, state(StateType.RUNNING))
    scene.prefect.raises["set_task_run_state"] = ObjectNotFound(http_exc=answered(404))
    assert await scene.reconcile_run() == ReconciledRun(KILLED, "Crashed", 1)
    assert scene.deleted


async def test_a_newer_attempt_of_the_same_run_is_not_touched(scene: Scene) -> None:
    """Neither its flow run nor its task runs; those of the attempt on record, and before it, are crashed."""
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
    """The server gives 200 at a time."""
    for number in range(1, count + 1):
        scene.prefect.has_task_run(number, RUN, state(StateType.RUNNING))
    assert await scene.reconcile_run() == ReconciledRun(KILLED, "Crashed", count)
    assert set(scene.prefect.task_run_states().values()) == {"Crashed"}


def test_what_was_not_told_is_told_first_events_before_log_lines_in_batches(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order, at most 200 a request, and forgotten only then."""
    untold = [*logs(3), *events(450)]
    scene.records.write_undelivered(KILLED, untold)
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


async def test_what_the_server_has_of_it_is_not_sent_again(scene: Scene) -> None:
    """It may have taken an event without anybody hearing its answer; of a second copy a real one drops whole batches."""
    scene.records.write_undelivered(KILLED, events(120))
    scene.prefect.stored = {str(item["id"]): item for _, item in events(60)}
    assert await scene.reconcile_run() == ReconciledRun(KILLED, "Crashed", 0)
    assert scene.prefect.items(EVENTS) == [item for _, item in events(120)][60:]
    assert scene.prefect.sent_twice == []


async def test_what_the_server_refuses_is_told_in_the_log_and_given_up(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest is put right all the same."""
    scene.records.write_undelivered(KILLED, logs(2))
    scene.prefect.raises["post log"] = answered(422)
    assert await scene.reconcile_run() == ReconciledRun(KILLED, "Crashed", 0)
    assert "Prefect rejects 2 logs of an earlier run: answered 422" in caplog.text
    assert scene.deleted


async def test_what_was_not_told_and_cannot_be_read_does_not_keep_the_rest_from_being_put_right(
    scene: Scene, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A torn file costs what was in it."""
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
"""Every call that it takes to put a run right."""


@pytest.mark.parametrize(
    ("trouble", "away_after"), [*(("away", answers) for answers in range(8)), *((call, None) for call in CALLS)]
)
async def test_a_server_that_fails_at_any_step_gets_all_of_it_the_next_time(
    trouble: str, away_after: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then the record is kept; a repetition ends as an undisturbed one does, and no event is sent twice."""
    monkeypatch.setattr(reconcile, "_RECORDED_WITHIN_S", 0.0)
    scene = Scene(tmp_path)
    untold = [*events(1), *logs(1)]
    scene.records.write_undelivered(KILLED, untold)
    for number in (1, 2):
        scene.prefect.has_task_run(number, RUN, state(StateType.RUNNING))
    scene.prefect.unreachable_after = away_after
    if trouble in CALLS:
        scene.prefect.raises[trouble] = answered(503)
    assert await scene.reconcile_run() is None
    assert scene.kept
    assert scene.records.undelivered(KILLED) == untold
    scene.prefect.unreachable, scene.prefect.unreachable_after, scene.prefect.raises = False, None, {}
    again = await scene.reconcile_run()
    assert again is not None
    assert again.flow_run_state == "Crashed"
    assert set(scene.prefect.task_run_states().values()) == {"Crashed"}
    assert scene.prefect.flow_run_state(RUN).message == GONE
    assert scene.prefect.sent_twice == []
    assert scene.deleted


async def test_a_server_that_is_away_for_the_record_of_a_page_keeps_the_record(scene: Scene) -> None:
    """Half of the task runs are no task runs."""
    for number in range(1, 301):
        scene.prefect.has_task_run(number, RUN, state(StateType.RUNNING))
    scene.prefect.unreachable_after = 2
    assert await scene.reconcile_run() is None
    assert scene.kept
    assert set(scene.prefect.task_run_states().values()) == {"Running"}


def test_task_runs_that_are_just_being_recorded_are_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were told a moment ago: for five seconds nobody is crashed, then whoever is alive still."""
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


def test_nobody_waits_where_all_have_been_recorded_or_nothing_was_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as nothing is alive it goes on; of log lines nothing is recorded at all."""
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


async def test_a_run_that_is_put_right_twice_is_right(scene: Scene) -> None:
    """A record that came back from a backup changes nothing."""
    scene.prefect.has_task_run(1, RUN, state(StateType.RUNNING))
    await scene.reconcile_run()
    scene.records.write(KILLED)
    assert await scene.reconcile_run() == ReconciledRun(KILLED, None, 0)
    assert scene.prefect.calls.count("set_flow_run_state") == scene.prefect.calls.count("set_task_run_state") == 1
