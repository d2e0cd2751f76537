"""Delivery to a fake server: each item once, in order, and again if it may have been lost."""

from __future__ import annotations

import asyncio
import json

import pytest

from orchestrator_adapter.prefect_flow.client.posting import post
from orchestrator_adapter.prefect_flow.reporting.delivery import SHOWN_AFTER_S
from orchestrator_adapter.resilience.retry import Permanent, Retry, RetryOk
from tests.helpers.prefect_delivery import NOON_NS, S, Scene
from tests.helpers.prefect_fakes import EVENTS, IDENTITY, LOGS, FakePrefect, answered


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_every_record_is_delivered_once_in_order_and_a_decision_also_as_a_log_line(scene: Scene) -> None:
    """Each is dated when it happened."""
    scene.spawn("poll")
    scene.decide("first", "second")
    scene.exit("poll")
    assert not scene.delivery.idle
    assert await scene.deliver()
    assert scene.delivery.idle
    assert [item["event"].split(".")[-1] for item in scene.prefect.items(EVENTS)] == [
        *("Running", "first", "second", "Completed")
    ]
    assert [item["message"] for item in scene.prefect.items(LOGS)] == ["first", "second"]
    assert scene.prefect.items(EVENTS)[-1]["occurred"] == "2026-01-01T12:00:01+00:00"
    assert await scene.deliver()
    assert len(scene.prefect.posted) == 2


async def test_no_request_has_more_than_200_items(scene: Scene) -> None:
    """This is the server's limit."""
    scene.decide(*(f"d{number}" for number in range(450)))
    assert await scene.deliver()
    assert [(kind, len(batch)) for kind, batch in scene.prefect.posted] == [
        *((EVENTS, 200), (EVENTS, 200), (EVENTS, 50)),
        *((LOGS, 200), (LOGS, 200), (LOGS, 50)),
    ]
    assert scene.decisions() == [f"d{number}" for number in range(450)]


async def test_an_unreachable_server_loses_nothing_and_is_logged_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """One line when it becomes unreachable and one when it answers again, for any number of attempts in between."""
    scene.prefect.unreachable = True
    scene.decide("first")
    for _ in range(3):
        assert not await scene.deliver()
        scene.now += 4.0
    scene.decide("second")
    scene.prefect.unreachable = False
    assert await scene.deliver()
    assert await scene.deliver()
    assert scene.decisions() == ["first", "second"]
    assert caplog.messages == [
        "Prefect does not answer; the pipeline runs on and reports later: ConnectError: connection refused",
        "Prefect answers again after 12.0 s; 0 events are checked, and sent again if it lacks them",
    ]


@pytest.mark.parametrize("lost", [True, False])
async def test_events_of_the_30_s_before_an_outage_are_sent_again_if_the_server_has_lost_them(
    lost: bool,  # noqa: FBT001
    scene: Scene,
) -> None:
    """With the same ids, once, and no older event. Log lines are not. An event that the server has is not sent again."""
    for at, decision in ((50.0, "old"), (69.0, "too_old"), (70.0, "just"), (99.0, "late")):
        scene.now = at
        scene.decide(decision)
        assert await scene.deliver()
    scene.now = 100.0
    await scene.have_an_outage()
    if lost:
        scene.prefect.stored.clear()
    for _ in range(3):
        assert await scene.deliver()
        scene.now += SHOWN_AFTER_S
    assert scene.decisions()[:5] == ["old", "too_old", "just", "late", "during_outage"]
    assert scene.decisions()[5:] == (["just", "late"] if lost else [])
    ids = [item["id"] for item in scene.prefect.items(EVENTS)]
    assert ids[5:] == (ids[2:4] if lost else [])
    assert scene.prefect.sent_twice == []
    assert [item["message"] for item in scene.prefect.items(LOGS)] == [
        "old",
        "too old",
        "just",
        "late",
        "during outage",
    ]
    assert scene.delivery.idle


async def test_after_a_short_outage_events_wait_until_the_server_shows_what_it_has(scene: Scene) -> None:
    """They wait 8 s from the start of the outage, because it may have events that it does not show yet. Log lines do not wait."""
    scene.decide("before")
    assert await scene.deliver()
    await scene.have_an_outage(1.0)
    scene.delivery.on_response(RetryOk(None))
    scene.now = 100.0 + SHOWN_AFTER_S - 0.01
    assert await scene.deliver()
    assert scene.decisions() == ["before"]
    assert [item["message"] for item in scene.prefect.items(LOGS)] == ["before", "during outage"]
    scene.now += 0.01
    assert await scene.deliver()
    assert scene.decisions() == ["before", "during_outage"]
    assert scene.prefect.sent_twice == []


async def test_no_event_is_sent_while_a_query_for_uncertain_events_fails(scene: Scene) -> None:
    """The events stay queued, in order."""
    scene.decide("before")
    assert await scene.deliver()
    await scene.have_an_outage()
    scene.delivery.on_response(RetryOk(None))
    scene.prefect.raises["read_events"] = answered(503)
    assert not await scene.deliver()
    assert scene.decisions() == ["before"]
    scene.prefect.raises.clear()
    assert await scene.deliver()
    assert scene.decisions() == ["before", "during_outage"]


async def test_a_task_run_that_was_queued_for_long_is_not_read_back_at_once_after_delivery(scene: Scene) -> None:
    """The time to wait counts from the delivery, not from when it happened."""
    scene.prefect.unreachable = True
    scene.spawn("poll")
    assert not await scene.deliver()
    scene.now += 60.0
    scene.prefect.unreachable = False
    assert await scene.deliver()
    assert await scene.check()
    assert "read_task_runs" not in scene.prefect.calls
    assert scene.delivery._uncertain == set()


async def test_evicted_task_runs_are_counted_as_given_up(scene: Scene) -> None:
    """The tracker evicts them when there are too many."""
    scene.delivery._task_runs.evicted = 3
    assert scene.delivery.given_up == 3


async def test_events_are_sent_at_the_first_answer_after_refused_connections(scene: Scene) -> None:
    """A refused connection has transferred nothing, so no query and no wait is needed."""
    scene.now = 0.0
    scene.prefect.unreachable = True
    scene.decide("first")
    for _ in range(3):
        assert not await scene.deliver()
        scene.now += 5.0
    scene.prefect.unreachable = False
    assert await scene.deliver()
    assert scene.decisions() == ["first"]
    assert "read_events" not in scene.prefect.calls


async def test_a_decision_that_a_kill_has_torn_is_sent_again_under_a_new_id(scene: Scene) -> None:
    """SQLite has the event, but no query by run finds it; a copy with the same id would fail a batch. Whole events stay."""
    scene.decide("whole", "torn")
    scene.spawn("poll")
    assert await scene.deliver()
    whole, torn, spawned = (item["id"] for item in scene.prefect.items(EVENTS))
    await scene.have_an_outage()
    scene.prefect.torn = {torn, spawned}
    for _ in range(3):
        assert await scene.deliver()
        scene.now += SHOWN_AFTER_S
    assert scene.decisions() == ["whole", "torn", "during_outage", "torn"]
    sent = [item["id"] for item in scene.prefect.items(EVENTS)]
    assert len(set(sent)) == len(sent) == 5
    assert whole in sent
    await scene.have_an_outage()  # soon enough for the torn event to be checked again
    for _ in range(3):
        assert await scene.deliver()
        scene.now += SHOWN_AFTER_S
    assert scene.decisions() == ["whole", "torn", "during_outage", "torn", "during_outage"]
    assert not scene.prefect.sent_twice


async def test_events_that_a_restarted_server_accepts_and_drops_are_sent_again(scene: Scene) -> None:
    """Prefect's own clients make it drop batches at that time. Until the events are checked again, delivery is not idle."""
    await scene.have_an_outage()
    scene.prefect.loses_events = True
    assert await scene.deliver()
    scene.prefect.loses_events = False
    assert scene.decisions() == ["during_outage"]
    assert not scene.delivery.idle
    for _ in range(2):
        scene.now += SHOWN_AFTER_S
        assert await scene.deliver()
    assert scene.decisions() == ["during_outage"] * 2
    assert scene.delivery.idle
    assert not scene.prefect.sent_twice


async def test_an_event_whose_answer_was_lost_is_not_sent_twice(scene: Scene) -> None:
    """The server accepted the event and its answer was lost: the server is queried before the event is sent again."""
    scene.decide("first")
    scene.prefect.loses_answers = True
    assert not await scene.deliver()
    scene.prefect.loses_answers = False
    for _ in range(3):  # the second time, the event is checked because of the outage
        scene.now += 60.0
        assert await scene.deliver()
    assert scene.delivery.idle
    assert scene.decisions() == ["first"]
    assert scene.prefect.sent_twice == []


async def test_an_interrupted_delivery_is_queried_before_it_is_repeated(scene: Scene) -> None:
    """The server may have accepted the events: for 8 s nothing is sent, then once what it does not show."""
    scene.decide("first")
    scene.prefect.raises["post event"] = asyncio.CancelledError()
    with pytest.raises(asyncio.CancelledError):
        await scene.deliver()
    scene.prefect.raises.clear()
    assert await scene.deliver()
    assert scene.decisions() == []
    assert not scene.delivery.idle
    scene.now += SHOWN_AFTER_S
    assert await scene.deliver()
    assert scene.decisions() == ["first"]
    assert "read_events" in scene.prefect.calls


async def test_a_second_outage_is_logged_like_the_first(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """The answer to any call detects it."""
    for _ in range(2):
        scene.delivery.on_response(Retry(OSError("away")))
        scene.now += 60.0
        scene.delivery.on_response(Permanent(answered(404)))
        scene.delivery.on_response(RetryOk(None))
    assert len(caplog.messages) == 4
    assert caplog.messages[0].endswith("OSError: away")


async def test_a_rejected_item_is_dropped_and_the_rest_delivered(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Each rejected event is logged and counted; the log lines are delivered."""
    scene.decide("first", "second")
    scene.prefect.raises["post event"] = answered(422)
    assert await scene.deliver()
    assert scene.delivery.idle
    assert scene.delivery.given_up == 2
    assert caplog.messages == ["Prefect rejects one event, which is dropped: answered 422"] * 2
    assert len(scene.prefect.items(LOGS)) == 2


async def test_a_rejected_item_does_not_affect_the_others_in_its_batch(scene: Scene) -> None:
    """The server rejects a batch as a whole; its items are then sent one by one."""
    scene.decide("first", "second", "third")
    scene.prefect.rejects = lambda item: "second" in item.get("event", "")
    assert await scene.deliver()
    assert scene.delivery.idle
    assert scene.delivery.given_up == 1
    assert scene.decisions() == ["first", "third"]
    assert len(scene.prefect.items(LOGS)) == 3


async def test_a_failing_server_gets_the_same_batch_again(scene: Scene) -> None:
    """A 503 is not a rejection."""
    scene.decide("first")
    scene.prefect.raises["post log"] = answered(503)
    assert not await scene.deliver()
    assert not scene.delivery.idle
    scene.prefect.raises.clear()
    assert await scene.deliver()
    assert [item["message"] for item in scene.prefect.items(LOGS)] == ["first"]
    assert scene.delivery.given_up == 0


async def test_items_dropped_from_a_full_outbox_are_counted() -> None:
    """Of each kind, the oldest is dropped."""
    scene = Scene(queue=2)
    scene.decide("first", "second", "third")
    assert scene.delivery.given_up == 2
    await scene.deliver()
    assert scene.decisions() == ["second", "third"]


# The end.


async def test_an_instance_alive_at_the_end_of_the_run_is_reported_as_a_straggler(scene: Scene) -> None:
    """It is dated at the end of the run."""
    scene.spawn("poll", "log")
    scene.exit("poll")
    scene.delivery.end_run(NOON_NS + 2 * S)
    await scene.deliver()
    assert scene.prefect.task_run_states() == {"poll": "Completed", "log": "Crashed"}
    assert scene.prefect.items(EVENTS)[-1]["occurred"] == "2026-01-01T12:00:02+00:00"


async def test_nothing_is_undelivered_once_all_is_confirmed(scene: Scene) -> None:
    """If the server was reachable all the time."""
    scene.spawn("poll")
    scene.exit("poll")
    scene.decide("ended")
    await scene.deliver()
    await scene.check(after_s=0.0)
    assert scene.delivery.all_delivered
    assert scene.delivery.undelivered() == []


async def test_a_queued_item_counts_as_not_delivered(scene: Scene) -> None:
    """Also if there is no unconfirmed task run."""
    scene.decide("ended")
    assert not scene.delivery.all_delivered
    await scene.deliver()
    assert scene.delivery.all_delivered


async def test_accepted_items_that_the_server_does_not_show_are_undelivered(scene: Scene) -> None:
    """A run that ends now cannot know whether the server will show them."""
    scene.spawn("poll")
    scene.exit("poll")
    await scene.deliver()
    assert scene.delivery.idle
    rest = scene.delivery.undelivered()
    assert [(kind, item["id"]) for kind, item in rest] == [(EVENTS, item["id"]) for item in scene.prefect.items(EVENTS)]


async def test_undelivered_is_everything_that_the_server_may_not_have(scene: Scene) -> None:
    """Queued items, unconfirmed task runs, and what it may have lost: each event and each log line once."""
    scene.spawn("confirmed", "unconfirmed")
    scene.decide("delivered")
    await scene.deliver()
    scene.prefect.task_runs.pop(IDENTITY.task_run_id("unconfirmed", 1))
    await scene.check(after_s=0.0)
    scene.prefect.unreachable = True
    scene.exit("confirmed")
    scene.decide("during_outage")
    await scene.deliver()
    rest = scene.delivery.undelivered()
    ids = [item["id"] for kind, item in rest if kind == EVENTS]
    assert len(ids) == len(set(ids))
    events = [item for kind, item in rest if kind == EVENTS]
    found = [(item["event"].split(".")[-1], item["resource"].get("prefect.resource.name")) for item in events]
    assert sorted(found) == [
        ("Completed", "confirmed"),
        ("Running", "confirmed"),
        ("Running", "unconfirmed"),
        ("delivered", "radar-net"),
        ("during_outage", "radar-net"),
    ]
    assert [item["message"] for kind, item in rest if kind == LOGS] == ["during outage"]
    json.dumps(rest)


async def test_an_event_that_was_delivered_twice_is_undelivered_once(scene: Scene) -> None:
    """A task run was sent again and confirmed, then the server became unreachable: its event is listed once."""
    scene.prefect.loses_events = True
    scene.spawn("poll")
    await scene.deliver()
    scene.now += SHOWN_AFTER_S
    await scene.check()
    scene.prefect.loses_events = False
    await scene.deliver()
    await scene.check(after_s=0.0)
    assert scene.delivery.all_delivered
    await scene.have_an_outage()
    rest = [item for kind, item in scene.delivery.undelivered() if kind == EVENTS]
    assert [item["event"] for item in rest] == ["orchestrator.pipeline.during_outage", "prefect.task-run.Running"]


async def test_undelivered_events_posted_later_give_every_task_run_its_state(scene: Scene) -> None:
    """They are posted to an empty server, in the same order."""
    scene.prefect.unreachable = True
    scene.spawn("poll", "log")
    scene.exit("poll")
    scene.delivery.end_run(NOON_NS + 2 * S)
    await scene.deliver()
    rest = [item for kind, item in scene.delivery.undelivered() if kind == EVENTS]
    server = FakePrefect()
    await post(server.client, EVENTS, rest)
    assert server.task_run_states() == {"poll": "Completed", "log": "Crashed"}
    assert len(rest) == 4
