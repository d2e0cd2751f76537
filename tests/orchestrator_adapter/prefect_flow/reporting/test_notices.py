"""Notices on a fake server: one event and one artifact each, through outages, lost answers and restarts of the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from prefect.client.schemas.objects import StateType

from orchestrator_adapter.prefect_flow.client.posting import ARTIFACTS
from orchestrator_adapter.prefect_flow.recovery.reconcile import reconcile_run
from orchestrator_adapter.prefect_flow.recovery.records import RunRecord, RunRecords
from orchestrator_adapter.prefect_flow.reporting.delivery import Delivery
from orchestrator_adapter.prefect_flow.reporting.notices import notice_artifact, notice_event
from orchestrator_adapter.prefect_flow.reporting.reporter import Reporter
from orchestrator_adapter.process import NoticeBoard
from tests.helpers.notices import notice
from tests.helpers.prefect_delivery import NOON_NS, Scene
from tests.helpers.prefect_fakes import EVENTS, IDENTITY, LOGS, NOON, FakePrefect, state
from tests.helpers.prefect_reporter import LONG, Run
from tests.helpers.running import eventually

LATER = replace(IDENTITY, flow_run_id=UUID(int=77), flow_run_name="later-lion")


def seen(prefect: FakePrefect) -> tuple[list[object], list[str]]:
    """The numbers of the notices whose events the server got, and the text of every artifact, both in order."""
    numbers = [item["payload"]["number"] for item in prefect.items(EVENTS) if item["event"] == "thing.seen"]
    return numbers, [str(item["data"]) for item in prefect.items(ARTIFACTS)]


def test_an_event_has_the_notices_labels_and_the_runs_resources() -> None:
    """What is not JSON becomes text. The artifact has the notice's text, and belongs to the flow run."""
    event = notice_event(IDENTITY, notice(1), NOON)
    assert event["event"] == "thing.seen"
    assert event["resource"] == {
        "prefect.resource.id": "thing.a",
        "prefect.resource.name": "thing a, 1",
        "thing.colour": "red",
    }
    assert event["related"] == IDENTITY.related()
    assert event["payload"] == {"number": 1, "share": "inf"}
    artifact = notice_artifact(IDENTITY, notice(1))
    assert artifact == {
        "key": "thing-a",
        "type": "markdown",
        "data": "# 1",
        "description": "thing a, 1",
        "metadata_": {"notice": "radar-net/thing.seen/1"},
        "flow_run_id": str(IDENTITY.flow_run_id),
    }


def test_the_id_of_an_event_depends_on_the_notices_key_and_the_pipeline_only() -> None:
    """A later run of the pipeline gives it the same id; another pipeline or another key does not."""
    same = notice_event(LATER, replace(notice(1), markdown="other", title="other"), NOON)["id"]
    assert notice_event(IDENTITY, notice(1), NOON)["id"] == same
    others = [(IDENTITY, notice(2)), (replace(IDENTITY, pipeline="other"), notice(1))]
    assert same not in [notice_event(identity, each, NOON)["id"] for identity, each in others]


async def test_notices_are_delivered_once_each_in_order() -> None:
    """Also those that are posted twice."""
    scene = Scene()
    for number in (1, 2, 1, 3):
        scene.delivery.add_notice(notice(number), NOON_NS, artifact=True)
        assert await scene.deliver()
    assert seen(scene.prefect) == ([1, 2, 3], ["# 1", "# 2", "# 3"])
    assert scene.prefect.sent_twice == []
    assert scene.delivery.all_delivered


async def test_a_later_run_does_not_deliver_again_what_an_earlier_one_has() -> None:
    """For example because it was killed before it noted that the notice was posted."""
    scene = Scene()
    scene.delivery.add_notice(notice(1), NOON_NS, artifact=True)
    await scene.deliver()
    later = Delivery(LATER, queue=10, monotonic=lambda: scene.now)
    for number in (1, 2):
        later.add_notice(notice(number), NOON_NS, artifact=True)
    assert await later.deliver(scene.prefect.client)
    assert seen(scene.prefect) == ([1, 2], ["# 1", "# 2"])


def lose_answers(prefect: FakePrefect, *, lost: bool) -> None:
    prefect.loses_answers = lost


def be_away(prefect: FakePrefect, *, lost: bool) -> None:
    prefect.unreachable = lost


@pytest.mark.parametrize("fault", [lose_answers, be_away])
async def test_an_outage_loses_no_notice_and_repeats_none(fault: Callable[..., None]) -> None:
    """The server is away, or accepts everything and its answers are lost."""
    scene = Scene()
    fault(scene.prefect, lost=True)
    for number in range(5):
        scene.delivery.add_notice(notice(number), NOON_NS, artifact=True)
        assert not await scene.deliver()
        scene.now += 10.0
    fault(scene.prefect, lost=False)
    for _ in range(5):
        scene.now += 10.0
        await scene.deliver()
    assert scene.delivery.all_delivered
    assert seen(scene.prefect) == ([0, 1, 2, 3, 4], [f"# {number}" for number in range(5)])
    assert scene.prefect.sent_twice == []


async def test_an_artifact_that_the_server_rejects_costs_only_itself() -> None:
    """It is dropped and counted; its event and the other notices arrive."""
    scene = Scene()
    scene.prefect.rejects = lambda item: item.get("data") == "# 1"
    for number in range(3):
        scene.delivery.add_notice(notice(number), NOON_NS, artifact=True)
    assert await scene.deliver()
    assert seen(scene.prefect) == ([0, 1, 2], ["# 0", "# 2"])
    assert scene.delivery.given_up == 1


async def test_many_artifacts_do_not_hold_up_the_events_of_the_run() -> None:
    """Of 50 notices, one delivery sends all events and 20 artifacts; a decision that comes then is sent by the next one."""
    scene = Scene()
    for number in range(50):
        scene.delivery.add_notice(notice(number), NOON_NS, artifact=True)
    assert await scene.deliver()
    assert [len(found) for found in seen(scene.prefect)] == [50, 20]
    assert scene.delivery.has_artifacts
    scene.decide("restart")
    assert await scene.deliver()
    assert scene.decisions() == ["restart"]
    assert len(seen(scene.prefect)[1]) == 40
    assert await scene.deliver()
    assert seen(scene.prefect)[1] == [f"# {number}" for number in range(50)]
    assert scene.delivery.all_delivered


async def test_notices_that_the_server_never_got_are_delivered_by_the_next_start(tmp_path: Path) -> None:
    """They are beside the run's record; reconciling delivers them, and again changes nothing."""
    scene = Scene()
    scene.prefect.has_flow_run(IDENTITY.flow_run_id, state(StateType.RUNNING))
    scene.delivery.add_notice(notice(1), NOON_NS, artifact=True)
    await scene.deliver()
    scene.prefect.unreachable = True
    scene.delivery.add_notice(notice(2), NOON_NS, artifact=True)
    await scene.deliver()
    undelivered = scene.delivery.undelivered()
    scene.prefect.unreachable = False
    records = RunRecords(tmp_path)
    record = RunRecord(IDENTITY.flow_run_id, "brave-otter", "radar-net", 1, 1, "2026-01-01T12:00:00+00:00")
    for _ in range(2):
        records.write(record)
        records.write_undelivered(record, undelivered)
        assert await reconcile_run(scene.prefect.client, records, record, by="me") is not None
    assert seen(scene.prefect) == ([1, 2], ["# 1", "# 2"])


@pytest.mark.usefixtures("_no_pauses", "_no_thread_is_leaked")
@pytest.mark.parametrize("artifacts", [True, False])
async def test_the_reporter_delivers_what_operators_post(monkeypatch: pytest.MonkeyPatch, artifacts: bool) -> None:  # noqa: FBT001 - pytest passes it by name
    """Before it starts, while it runs, and just before its end. Without artifacts, events only."""
    run = Run(artifacts=artifacts)
    monkeypatch.setattr(
        "orchestrator_adapter.prefect_flow.reporting.reporter.client_without_retries", run.prefect.connected
    )
    board = NoticeBoard()
    run.reporter = Reporter(IDENTITY, run.graph, run.options, on_cancel=lambda _: None, notices=board)
    board.post(notice(1))
    run.start()
    await eventually(lambda: seen(run.prefect)[0] == [1], "the first notice")
    board.post(notice(2))
    await eventually(lambda: seen(run.prefect)[0] == [1, 2], "the second notice")
    board.post(notice(3))
    assert (await run.finish(LONG)).complete
    assert seen(run.prefect) == ([1, 2, 3], ["# 1", "# 2", "# 3"] if artifacts else [])


@pytest.mark.usefixtures("_no_pauses", "_no_thread_is_leaked")
async def test_dropped_notices_are_a_line_of_the_flow_runs_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """With their number."""
    run = Run()
    monkeypatch.setattr(
        "orchestrator_adapter.prefect_flow.reporting.reporter.client_without_retries", run.prefect.connected
    )
    board = NoticeBoard(1)
    run.reporter = Reporter(IDENTITY, run.graph, run.options, on_cancel=lambda _: None, notices=board)
    for number in range(4):
        board.post(notice(number))
    run.start()
    await run.finish(LONG)
    assert seen(run.prefect)[0] == [3]
    assert [line["message"] for line in run.prefect.items(LOGS)] == ["3 notices were dropped: too many at once"]
