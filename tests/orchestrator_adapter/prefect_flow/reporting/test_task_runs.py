"""Operator instances as Prefect task runs: what is told of each, when the server has it, and what is told again."""

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


def book(*operators: str, ended_kept: int = 10_000) -> TaskRunTracker:
    """With these alive, told at 0."""
    its = TaskRunTracker(IDENTITY, ended_kept=ended_kept)
    for operator in operators:
        its.spawned(spawned(operator), NOON, 0.0)
    return its


def begun(its: TaskRunTracker, record: Spawned, *, at: datetime = NOON, now: float = 0.0) -> ReportItem:
    """The event of the instance itself."""
    return its.spawned(record, at, now)[0]


def only(its: TaskRunTracker) -> TrackedTaskRun:
    (told,) = its.unconfirmed(sent_before=float("inf"))
    return told


def inputs(item: ReportItem) -> dict[str, list[str]]:
    task_inputs: dict[str, list[dict[str, str]]] = item["payload"]["task_run"]["task_inputs"]
    return {name: [result["id"] for result in results] for name, results in task_inputs.items()}


# What is told.


def test_an_instance_that_starts_is_a_task_run_that_runs() -> None:
    """Its event names the operator, the attempt, the role as a tag, and since when."""
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
def test_an_instance_that_ends_is_in_the_state_its_exit_deserves(exit_: TaskExit, name: str, message: str) -> None:
    """Dated when it ended, after the state before it, with how long it ran."""
    its = TaskRunTracker(IDENTITY)
    began = begun(its, spawned("poll"))
    ended = its.exited(exited("poll", exit_=exit_), NOON + 90 * S, 90.0)
    assert ended["event"] == f"prefect.task-run.{name}"
    assert ended["resource"]["prefect.state-message"] == message
    assert ended["occurred"] == "2026-01-01T12:01:30+00:00"
    assert ended["follows"] == began["id"]
    assert ended["payload"]["intended"] == {"from": "RUNNING", "to": name.upper()}
    assert ended["payload"]["initial_state"]["name"] == "Running"
    run = ended["payload"]["task_run"]
    assert (run["end_time"], run["total_run_time"]) == ("2026-01-01T12:01:30Z", 90.0)


def test_ids_of_task_runs_are_the_same_for_whoever_asks() -> None:
    """They depend on flow run, attempt, operator and instance, on each, and on nothing else."""
    ids = {IDENTITY.task_run_id(operator, instance) for operator in ("poll", "log") for instance in (1, 2)}
    assert len(ids) == 4
    told = begun(TaskRunTracker(IDENTITY), spawned("poll", 2))
    assert told["resource"]["prefect.resource.id"] == f"prefect.task-run.{IDENTITY.task_run_id('poll', 2)}"
    assert IDENTITY.task_run_id("poll", 1) == UUID("30c81175-f3d7-55bb-b365-095291de8741")


def test_a_restart_is_a_new_task_run_linked_to_the_one_that_failed() -> None:
    """And named so."""
    its = book("poll")
    its.exited(exited("poll", exit_=CABLE), NOON + S, 1.0)
    item = begun(its, spawned("poll", 2))
    assert item["payload"]["task_run"]["name"] == "poll #2" == instance_name("poll", 2)
    assert inputs(item) == {"restart of": [str(IDENTITY.task_run_id("poll", 1))]}


def test_an_operator_is_linked_to_the_instances_it_reads_from_now() -> None:
    """The latest of each that is alive: not one that has ended, not one that was never told."""
    its = book("radar", "optical")
    its.exited(exited("radar", exit_=CABLE), NOON, 0.0)
    its.spawned(spawned("radar", 2), NOON, 0.0)
    its.exited(exited("optical"), NOON, 0.0)
    item = begun(its, spawned("merge", upstream=("radar", "optical", "isl")))
    assert inputs(item) == {"radar": [str(IDENTITY.task_run_id("radar", 2))]}


def test_who_reads_from_an_operator_that_was_restarted_is_told_again_as_reading_from_the_new_instance() -> None:
    """Nobody else is; it runs on under the same id, and says whom it reads."""
    its = book("radar", "optical")
    merge = begun(its, spawned("merge", upstream=("radar", "optical")))
    begun(its, spawned("log", upstream=("merge",)))
    its.exited(exited("radar", exit_=CABLE), NOON + S, 1.0)
    _, rewired = its.spawned(spawned("radar", 2), NOON + 2 * S, 2.0)
    assert rewired["resource"]["prefect.resource.id"] == merge["resource"]["prefect.resource.id"]
    assert rewired["event"] == "prefect.task-run.Running"
    assert rewired["resource"]["prefect.state-message"] == "reads radar #2"
    assert rewired["occurred"] == "2026-01-01T12:00:02+00:00"
    assert inputs(rewired) == {
        "radar": [str(IDENTITY.task_run_id("radar", 2))],
        "optical": [str(IDENTITY.task_run_id("optical", 1))],
    }


def test_a_reader_of_an_operator_that_restarts_for_days_does_not_grow() -> None:
    """Of all its rewirings the first state and the last are kept, and told again."""
    its = book("radar")
    begun(its, spawned("merge", upstream=("radar",)))
    for instance in range(2, 50):
        its.exited(exited("radar", instance - 1, CABLE), NOON + instance * S, 0.0)
        its.spawned(spawned("radar", instance), NOON + instance * S, 0.0)
    (merge,) = [told for told in its.unconfirmed(sent_before=0.0) if told.task_run.name == "merge"]
    messages = [item["resource"]["prefect.state-message"] for item in its.events_of(merge, 0.0)]
    assert messages == ["", "reads radar #49"]


def test_a_first_instance_rewires_nobody_although_somebody_reads_from_it() -> None:
    """Operators start in topological order, but a graph that does not is told no edge twice."""
    its = TaskRunTracker(IDENTITY)
    begun(its, spawned("merge", upstream=("radar",)))
    assert len(its.spawned(spawned("radar"), NOON, 0.0)) == 1


def test_every_event_of_a_task_run_is_one_that_prefect_accepts() -> None:
    """Spawned, ended and abandoned: each validates as Prefect's own model."""
    its = book("poll", "log")
    items = [begun(its, spawned("radar")), its.exited(exited("poll"), NOON, 0.0)]
    for item in (*items, *its.end_run(NOON, 0.0)):
        assert Event.model_validate(item).model_dump(mode="json")["payload"] == item["payload"]


# What the server has.


def test_what_the_server_has_is_confirmed_and_an_ended_one_forgotten() -> None:
    """By the id of its state, however old that is."""
    its = book("poll")
    alive = only(its)
    assert its.compare([alive], {alive.task_run.id: alive.state}) == []
    assert its.all_confirmed
    its.exited(exited("poll"), NOON + S, 1.0)
    assert not its.all_confirmed
    ended = only(its)
    assert its.compare([ended], {ended.task_run.id: ended.state}) == []
    assert its.all_confirmed
    assert its.unconfirmed(sent_before=float("inf")) == []


@pytest.mark.parametrize("theirs", [None, Running(timestamp=NOON), Running(timestamp=NOON - S)])
def test_an_older_state_on_the_server_or_none_is_missing_ours(theirs: Any) -> None:
    """Also one of the very same time that is not ours; each such answer counts as a try."""
    its = book("poll")
    told = only(its)
    for tries in (1, 2):
        assert its.compare([told], {told.task_run.id: theirs}) == [told]
        assert told.tries == tries
    assert its.compare([told], {}) == [told]
    assert not its.all_confirmed


def test_a_newer_state_on_the_server_stands() -> None:
    """Somebody else has set it, and knows why: ours is not told again."""
    its = book("poll")
    told = only(its)
    later = state(StateType.CRASHED, "zombie", at=NOON + timedelta(microseconds=1))
    assert its.compare([told], {told.task_run.id: later}) == []
    assert its.all_confirmed


def test_a_change_makes_it_unconfirmed_and_its_tries_start_over() -> None:
    """What was confirmed of *Running* says nothing of *Completed*."""
    its = book("poll")
    told = only(its)
    its.compare([told], {})
    its.confirm(told)
    its.exited(exited("poll"), NOON + S, 7.0)
    assert only(its) is told
    assert (told.confirmed, told.tries, told.sent_at) == (False, 0, 7.0)


def test_only_what_was_told_long_enough_ago_is_asked_for() -> None:
    """Up to the very moment; those that have ended come first."""
    its = book("first")
    its.spawned(spawned("second"), NOON, 1.0)
    its.spawned(spawned("third"), NOON, 2.0)
    its.exited(exited("second"), NOON, 1.0)
    assert [told.task_run.name for told in its.unconfirmed(sent_before=1.0)] == ["second", "first"]
    assert its.unconfirmed(sent_before=-1.0) == []


def test_what_is_told_again_is_every_state_with_the_ids_it_had() -> None:
    """A server that has lost all of it gets the whole story; one that has it recognises the ids."""
    its = TaskRunTracker(IDENTITY)
    first = begun(its, spawned("poll"))
    second = its.exited(exited("poll"), NOON + S, 1.0)
    told = only(its)
    again = its.events_of(told, 9.0)
    assert [item["id"] for item in again] == [first["id"], second["id"]]
    assert [item["event"] for item in again] == ["prefect.task-run.Running", "prefect.task-run.Completed"]
    assert [item["follows"] for item in again] == [None, first["id"]]
    assert again[-1] == second
    assert told.sent_at == 9.0


def test_answers_that_come_in_another_order_confirm_what_they_are_of() -> None:
    """An answer of ``log`` first, then of ``poll`` with its older state: only ``log`` is confirmed."""
    its = book("poll", "log")
    running = {told.task_run.name: told.state for told in its.unconfirmed(sent_before=0.0)}
    its.exited(exited("poll"), NOON + S, 1.0)
    its.exited(exited("log"), NOON + S, 1.0)
    poll, log = its.unconfirmed(sent_before=1.0)
    answer = {log.task_run.id: log.state, poll.task_run.id: running["poll"]}
    assert its.compare([log, poll], answer) == [poll]
    assert its.unconfirmed(sent_before=1.0) == [poll]


# The end.


def test_who_has_not_ended_when_the_run_has_is_a_straggler() -> None:
    """Crashed, and said so; who has ended is left as it is, and there is nobody a second time."""
    its = book("poll", "log")
    its.exited(exited("poll"), NOON + S, 1.0)
    (item,) = its.end_run(NOON + 2 * S, 2.0)
    assert item["event"] == "prefect.task-run.Crashed"
    assert item["payload"]["task_run"]["name"] == "log"
    assert item["resource"]["prefect.state-message"] == "straggler: it was asked to stop and did not"
    assert its.end_run(NOON + 3 * S, 3.0) == []


def test_ended_runs_that_nobody_confirms_are_kept_up_to_a_bound() -> None:
    """Beyond it the oldest are given up, and counted; an operator that restarts for days does not grow."""
    its = book(ended_kept=3)
    for instance in range(1, 6):
        its.spawned(spawned("poll", instance), NOON, 0.0)
        its.exited(exited("poll", instance, CABLE), NOON, 0.0)
    assert [told.task_run.name for told in its.unconfirmed(sent_before=0.0)] == ["poll #3", "poll #4", "poll #5"]
    assert its.evicted == 2


def test_a_state_is_not_shared_between_two_task_runs() -> None:
    """Each has an id of its own, or the server would take the second for a repetition."""
    its = book("poll", "log")
    ids = {its.exited(exited(operator), NOON, 0.0)["id"] for operator in ("poll", "log")}
    assert len(ids) == 2
    assert Crashed().id not in ids
