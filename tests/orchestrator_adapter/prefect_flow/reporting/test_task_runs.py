"""Operator instances as Prefect task runs: their events, what the server confirms, and what is sent again."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import StateType
from prefect.events import Event
from prefect.states import Crashed, Running

from orchestrator_adapter.prefect_flow.client.posting import ReportItem
from orchestrator_adapter.prefect_flow.reporting.task_runs import TaskRunTracker, TrackedTaskRun, instance_name
from orchestrator_adapter.supervision import task_exit
from orchestrator_adapter.supervision.events import Exited, Restarted, Spawned
from orchestrator_adapter.supervision.task_exit import TaskExit
from tests.helpers.prefect_fakes import IDENTITY, NOON, state

S = timedelta(seconds=1)
CABLE = task_exit.Errored(ConnectionError("cable"))


def spawned(operator: str, instance: int = 1, *, upstream: tuple[str, ...] = ()) -> Spawned:
    restarted = Restarted(operator, instance, "OSError", 1.0, charged=True, backoff_s=0.5) if instance > 1 else None
    return Spawned(operator, instance, "operator", upstream, restarted)


def exited(operator: str, instance: int = 1, exit_: TaskExit | None = None) -> Exited:
    return Exited(operator, instance, exit_ or task_exit.Ok(), 1.0)


def tracking(*operators: str, ended_kept: int = 10_000) -> TaskRunTracker:
    """A tracker with these operators alive, sent at 0."""
    tracker = TaskRunTracker(IDENTITY, ended_kept=ended_kept)
    for operator in operators:
        tracker.spawned(spawned(operator), NOON, 0.0)
    return tracker


def begun(tracker: TaskRunTracker, record: Spawned, *, at: datetime = NOON, now: float = 0.0) -> ReportItem:
    """The event of the instance itself."""
    return tracker.spawned(record, at, now)[0]


def only(tracker: TaskRunTracker) -> TrackedTaskRun:
    (run,) = tracker.unconfirmed(sent_before=float("inf"))
    return run


def inputs(item: ReportItem) -> dict[str, list[str]]:
    task_inputs: dict[str, list[dict[str, str]]] = item["payload"]["task_run"]["task_inputs"]
    return {name: [result["id"] for result in results] for name, results in task_inputs.items()}


# Events.


def test_a_started_instance_is_a_running_task_run() -> None:
    """Its event has the operator, the attempt, the role as a tag, and the start time."""
    item = begun(TaskRunTracker(IDENTITY), spawned("poll"))
    run = item["payload"]["task_run"]
    assert item["event"] == "prefect.task-run.Running"
    assert item["resource"]["prefect.resource.id"] == f"prefect.task-run.{IDENTITY.task_run_id('poll', 1)}"
    assert item["payload"]["intended"] == {"from": None, "to": "RUNNING"}
    assert (item["follows"], item["payload"]["initial_state"]) == (None, None)
    assert (run["name"], run["task_key"], run["dynamic_key"], run["tags"]) == (
        "poll",
        "radar-net.poll",
        "1-1",
        ["operator"],
    )
    assert (run["run_count"], run["flow_run_run_count"]) == (1, 1)
    assert run["start_time"] == run["expected_start_time"] == "2026-01-01T12:00:00Z"
    assert item["related"] == IDENTITY.related()


@pytest.mark.parametrize(
    ("exit_", "name", "message"),
    [
        (task_exit.Ok(), "Completed", "end of stream"),
        (CABLE, "Failed", "ConnectionError: cable"),
        (task_exit.Panicked("KeyError: 'x'", "Traceback …", KeyError("x")), "Crashed", "KeyError: 'x'\nTraceback …"),
        (task_exit.Aborted("SIGTERM"), "Cancelled", "SIGTERM"),
    ],
)
def test_an_ended_instance_has_the_state_of_its_exit(exit_: TaskExit, name: str, message: str) -> None:
    """Dated when it ended, following the state before it, with its run time."""
    tracker = TaskRunTracker(IDENTITY)
    began = begun(tracker, spawned("poll"))
    ended = tracker.exited(exited("poll", exit_=exit_), NOON + 90 * S, 90.0)
    assert ended["event"] == f"prefect.task-run.{name}"
    assert ended["resource"]["prefect.state-message"] == message
    assert ended["occurred"] == "2026-01-01T12:01:30+00:00"
    assert ended["follows"] == began["id"]
    assert ended["payload"]["intended"] == {"from": "RUNNING", "to": name.upper()}
    assert ended["payload"]["initial_state"]["name"] == "Running"
    run = ended["payload"]["task_run"]
    assert (run["end_time"], run["total_run_time"]) == ("2026-01-01T12:01:30Z", 90.0)


def test_ids_of_task_runs_are_deterministic() -> None:
    """They depend on flow run, attempt, operator and instance, and on nothing else."""
    ids = {IDENTITY.task_run_id(operator, instance) for operator in ("poll", "log") for instance in (1, 2)}
    assert len(ids) == 4
    item = begun(TaskRunTracker(IDENTITY), spawned("poll", 2))
    assert item["resource"]["prefect.resource.id"] == f"prefect.task-run.{IDENTITY.task_run_id('poll', 2)}"
    assert IDENTITY.task_run_id("poll", 1) == UUID("30c81175-f3d7-55bb-b365-095291de8741")


def test_a_restart_is_a_new_task_run_linked_to_the_one_that_failed() -> None:
    """Its name has the instance number."""
    tracker = tracking("poll")
    tracker.exited(exited("poll", exit_=CABLE), NOON + S, 1.0)
    item = begun(tracker, spawned("poll", 2))
    assert item["payload"]["task_run"]["name"] == "poll #2" == instance_name("poll", 2)
    assert inputs(item) == {"restart of": [str(IDENTITY.task_run_id("poll", 1))]}


def test_an_operator_is_linked_to_the_living_instances_it_reads_from() -> None:
    """The latest of each: not to an ended instance, and not to an unknown operator."""
    tracker = tracking("radar", "optical")
    tracker.exited(exited("radar", exit_=CABLE), NOON, 0.0)
    tracker.spawned(spawned("radar", 2), NOON, 0.0)
    tracker.exited(exited("optical"), NOON, 0.0)
    item = begun(tracker, spawned("merge", upstream=("radar", "optical", "isl")))
    assert inputs(item) == {"radar": [str(IDENTITY.task_run_id("radar", 2))]}


def test_readers_of_a_restarted_operator_are_linked_to_the_new_instance() -> None:
    """Only they. The reader keeps its id, and its message names the instance that it reads from."""
    tracker = tracking("radar", "optical")
    merge = begun(tracker, spawned("merge", upstream=("radar", "optical")))
    begun(tracker, spawned("log", upstream=("merge",)))
    tracker.exited(exited("radar", exit_=CABLE), NOON + S, 1.0)
    _, rewired = tracker.spawned(spawned("radar", 2), NOON + 2 * S, 2.0)
    assert rewired["resource"]["prefect.resource.id"] == merge["resource"]["prefect.resource.id"]
    assert rewired["event"] == "prefect.task-run.Running"
    assert rewired["resource"]["prefect.state-message"] == "reads radar #2"
    assert rewired["occurred"] == "2026-01-01T12:00:02+00:00"
    assert inputs(rewired) == {
        "radar": [str(IDENTITY.task_run_id("radar", 2))],
        "optical": [str(IDENTITY.task_run_id("optical", 1))],
    }


def test_a_reader_keeps_two_states_over_many_restarts_of_its_upstream() -> None:
    """Of all its links the first state and the last are kept, and sent again."""
    tracker = tracking("radar")
    begun(tracker, spawned("merge", upstream=("radar",)))
    for instance in range(2, 50):
        tracker.exited(exited("radar", instance - 1, CABLE), NOON + instance * S, 0.0)
        tracker.spawned(spawned("radar", instance), NOON + instance * S, 0.0)
    (merge,) = [run for run in tracker.unconfirmed(sent_before=0.0) if run.task_run.name == "merge"]
    messages = [item["resource"]["prefect.state-message"] for item in tracker.events_of(merge, 0.0)]
    assert messages == ["", "reads radar #49"]


def test_a_first_instance_changes_no_links() -> None:
    """Also if a reader has started before it: then no link is sent twice."""
    tracker = TaskRunTracker(IDENTITY)
    begun(tracker, spawned("merge", upstream=("radar",)))
    assert len(tracker.spawned(spawned("radar"), NOON, 0.0)) == 1


def test_every_event_of_a_task_run_is_one_that_prefect_accepts() -> None:
    """Started, ended and straggling: each validates as Prefect's own model."""
    tracker = tracking("poll", "log")
    items = [begun(tracker, spawned("radar")), tracker.exited(exited("poll"), NOON, 0.0)]
    for item in (*items, *tracker.end_run(NOON, 0.0)):
        assert Event.model_validate(item).model_dump(mode="json")["payload"] == item["payload"]


# Confirmation.


def test_a_state_on_the_server_is_confirmed_and_an_ended_run_released() -> None:
    """The id of the state decides, not its age."""
    tracker = tracking("poll")
    alive = only(tracker)
    assert tracker.compare([alive], {alive.task_run.id: alive.state}) == []
    assert tracker.all_confirmed
    tracker.exited(exited("poll"), NOON + S, 1.0)
    assert not tracker.all_confirmed
    ended = only(tracker)
    assert tracker.compare([ended], {ended.task_run.id: ended.state}) == []
    assert tracker.all_confirmed
    assert tracker.unconfirmed(sent_before=float("inf")) == []


@pytest.mark.parametrize("theirs", [None, Running(timestamp=NOON), Running(timestamp=NOON - S)])
def test_an_older_state_or_none_on_the_server_means_that_ours_is_missing(theirs: Any) -> None:
    """Also another state with the same time. Each such answer counts as a try."""
    tracker = tracking("poll")
    run = only(tracker)
    for tries in (1, 2):
        assert tracker.compare([run], {run.task_run.id: theirs}) == [run]
        assert run.tries == tries
    assert tracker.compare([run], {}) == [run]
    assert not tracker.all_confirmed


def test_a_newer_state_on_the_server_is_left_unchanged() -> None:
    """Another client has set it: our state is not sent again."""
    tracker = tracking("poll")
    run = only(tracker)
    later = state(StateType.CRASHED, "zombie", at=NOON + timedelta(microseconds=1))
    assert tracker.compare([run], {run.task_run.id: later}) == []
    assert tracker.all_confirmed


def test_a_state_change_is_unconfirmed_and_its_tries_start_at_0() -> None:
    """A confirmed *Running* does not confirm *Completed*."""
    tracker = tracking("poll")
    run = only(tracker)
    tracker.compare([run], {})
    tracker.confirm(run)
    tracker.exited(exited("poll"), NOON + S, 7.0)
    assert only(tracker) is run
    assert (run.confirmed, run.tries, run.sent_at) == (False, 0, 7.0)


def test_unconfirmed_lists_only_runs_sent_before_the_given_time() -> None:
    """That time included. Ended ones come first."""
    tracker = tracking("first")
    tracker.spawned(spawned("second"), NOON, 1.0)
    tracker.spawned(spawned("third"), NOON, 2.0)
    tracker.exited(exited("second"), NOON, 1.0)
    assert [run.task_run.name for run in tracker.unconfirmed(sent_before=1.0)] == ["second", "first"]
    assert tracker.unconfirmed(sent_before=-1.0) == []


def test_events_of_a_run_are_all_its_states_with_the_same_ids() -> None:
    """A server that has lost everything gets every state; a server that has them recognises the ids."""
    tracker = TaskRunTracker(IDENTITY)
    first = begun(tracker, spawned("poll"))
    second = tracker.exited(exited("poll"), NOON + S, 1.0)
    run = only(tracker)
    again = tracker.events_of(run, 9.0)
    assert [item["id"] for item in again] == [first["id"], second["id"]]
    assert [item["event"] for item in again] == ["prefect.task-run.Running", "prefect.task-run.Completed"]
    assert [item["follows"] for item in again] == [None, first["id"]]
    assert again[-1] == second
    assert run.sent_at == 9.0


def test_answers_in_another_order_confirm_the_right_runs() -> None:
    """``log`` first, then ``poll`` with an older state: only ``log`` is confirmed."""
    tracker = tracking("poll", "log")
    running = {run.task_run.name: run.state for run in tracker.unconfirmed(sent_before=0.0)}
    tracker.exited(exited("poll"), NOON + S, 1.0)
    tracker.exited(exited("log"), NOON + S, 1.0)
    poll, log = tracker.unconfirmed(sent_before=1.0)
    answer = {log.task_run.id: log.state, poll.task_run.id: running["poll"]}
    assert tracker.compare([log, poll], answer) == [poll]
    assert tracker.unconfirmed(sent_before=1.0) == [poll]


# The end.


def test_an_instance_alive_at_the_end_of_the_run_is_a_straggler() -> None:
    """It is Crashed with a message. Ended instances do not change, and a second call reports nothing."""
    tracker = tracking("poll", "log")
    tracker.exited(exited("poll"), NOON + S, 1.0)
    (item,) = tracker.end_run(NOON + 2 * S, 2.0)
    assert item["event"] == "prefect.task-run.Crashed"
    assert item["payload"]["task_run"]["name"] == "log"
    assert item["resource"]["prefect.state-message"] == "straggler: it was asked to stop and did not"
    assert tracker.end_run(NOON + 3 * S, 3.0) == []


def test_unconfirmed_ended_runs_are_kept_up_to_a_bound() -> None:
    """Beyond it the oldest are evicted and counted, so an operator that restarts for days does not use more memory."""
    tracker = tracking(ended_kept=3)
    for instance in range(1, 6):
        tracker.spawned(spawned("poll", instance), NOON, 0.0)
        tracker.exited(exited("poll", instance, CABLE), NOON, 0.0)
    assert [run.task_run.name for run in tracker.unconfirmed(sent_before=0.0)] == ["poll #3", "poll #4", "poll #5"]
    assert tracker.evicted == 2


def test_a_state_is_not_shared_between_two_task_runs() -> None:
    """Each has an id of its own. Otherwise the server would treat the second as a repetition."""
    tracker = tracking("poll", "log")
    ids = {tracker.exited(exited(operator), NOON, 0.0)["id"] for operator in ("poll", "log")}
    assert len(ids) == 2
    assert Crashed().id not in ids
