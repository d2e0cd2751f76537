"""Delivery to a server that is not there: each thing once, in order, and again where it may have been lost."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from prefect.client.schemas.objects import StateType

from orchestrator_adapter.prefect_flow.client.posting import post
from orchestrator_adapter.prefect_flow.reporting.delivery import RECORDED_AFTER_S, SHOWN_AFTER_S, Delivery
from orchestrator_adapter.resilience.retry import Permanent, Retry, RetryOk
from orchestrator_adapter.supervision import task_exit
from orchestrator_adapter.supervision.events import Decided, Exited, Spawned
from tests.helpers.prefect_fakes import EVENTS, IDENTITY, LOGS, NOON, FakePrefect, answered, state

NOON_NS = round(NOON.timestamp() * 1e9)
S = 1_000_000_000


class Scene:
    """A delivery and its server, on a clock that is set by hand."""

    def __init__(self, *, queue: int = 1_000) -> None:
        self.now = 100.0
        self.prefect = FakePrefect()
        self.delivery = Delivery(IDENTITY, queue=queue, monotonic=lambda: self.now)

    def spawn(self, *operators: str) -> None:
        for operator in operators:
            self.delivery.add(Spawned(operator, 1, "source", (), None), NOON_NS)

    def exit(self, operator: str) -> None:
        self.delivery.add(Exited(operator, 1, task_exit.Ok(), 1.0), NOON_NS + S)

    def decide(self, *decisions: str) -> None:
        for decision in decisions:
            self.delivery.add(Decided(decision, {}), NOON_NS)

    async def deliver(self) -> bool:
        return await self.delivery.deliver(self.prefect.client)

    async def check(self, **options: Any) -> bool:
        return await self.delivery.check(self.prefect.client, **options)

    async def go_away_and_come_back(self, seconds: float = 10.0) -> None:
        self.prefect.away = True
        self.decide("while_away")
        assert not await self.deliver()
        self.now += seconds
        self.prefect.away = False

    def decisions(self) -> list[str]:
        names = [item["event"] for item in self.prefect.items(EVENTS)]
        return [name.removeprefix("orchestrator.pipeline.") for name in names if name.startswith("orchestrator")]

    def task_run_events(self) -> list[str]:
        return [item["event"] for item in self.prefect.items(EVENTS) if item["event"].startswith("prefect.")]


@pytest.fixture
def scene() -> Scene:
    return Scene()


# Delivery.


async def test_every_record_travels_once_in_order_and_a_decision_as_a_line_too(scene: Scene) -> None:
    """Dated when it happened."""
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


async def test_no_request_has_more_than_two_hundred_items(scene: Scene) -> None:
    """That is the server's limit."""
    scene.decide(*(f"d{number}" for number in range(450)))
    assert await scene.deliver()
    assert [(kind, len(batch)) for kind, batch in scene.prefect.posted] == [
        *((EVENTS, 200), (EVENTS, 200), (EVENTS, 50)),
        *((LOGS, 200), (LOGS, 200), (LOGS, 50)),
    ]
    assert scene.decisions() == [f"d{number}" for number in range(450)]


async def test_a_server_that_is_away_loses_nothing_and_is_told_of_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """One line when it goes, one when it is back, however often it was tried in between."""
    scene.prefect.away = True
    scene.decide("first")
    for _ in range(3):
        assert not await scene.deliver()
        scene.now += 4.0
    scene.decide("second")
    scene.prefect.away = False
    assert await scene.deliver()
    assert await scene.deliver()
    assert scene.decisions() == ["first", "second"]
    assert caplog.messages == [
        "Prefect does not answer; the pipeline runs on and reports later: ConnectError: nobody listens",
        "Prefect answers again after 12.0 s; 0 events are checked, and sent again if it lacks them",
    ]


@pytest.mark.parametrize("lost", [True, False])
async def test_events_of_the_half_minute_before_an_outage_are_sent_again_if_the_server_has_lost_them(
    lost: bool,  # noqa: FBT001
    scene: Scene,
) -> None:
    """With the ids they had, once, and no older one; log lines never. What it has is never sent twice."""
    for at, decision in ((50.0, "old"), (69.0, "too_old"), (70.0, "just"), (99.0, "late")):
        scene.now = at
        scene.decide(decision)
        assert await scene.deliver()
    scene.now = 100.0
    await scene.go_away_and_come_back()
    if lost:
        scene.prefect.shown.clear()
    for _ in range(3):
        assert await scene.deliver()
        scene.now += SHOWN_AFTER_S
    assert scene.decisions()[:5] == ["old", "too_old", "just", "late", "while_away"]
    assert scene.decisions()[5:] == (["just", "late"] if lost else [])
    ids = [item["id"] for item in scene.prefect.items(EVENTS)]
    assert ids[5:] == (ids[2:4] if lost else [])
    assert scene.prefect.twice == []
    assert [item["message"] for item in scene.prefect.items(LOGS)] == ["old", "too old", "just", "late", "while away"]
    assert scene.delivery.idle


async def test_after_a_short_outage_events_wait_until_the_server_shows_what_it_has(scene: Scene) -> None:
    """Eight seconds from its beginning; until then it may have what it does not show. Log lines do not wait."""
    scene.decide("before")
    assert await scene.deliver()
    await scene.go_away_and_come_back(1.0)
    scene.delivery.on_response(RetryOk(None))
    scene.now = 100.0 + SHOWN_AFTER_S - 0.01
    assert await scene.deliver()
    assert scene.decisions() == ["before"]
    assert [item["message"] for item in scene.prefect.items(LOGS)] == ["before", "while away"]
    scene.now += 0.01
    assert await scene.deliver()
    assert scene.decisions() == ["before", "while_away"]
    assert scene.prefect.twice == []


async def test_a_server_that_does_not_say_which_events_it_has_gets_none(scene: Scene) -> None:
    """They wait, in order."""
    scene.decide("before")
    assert await scene.deliver()
    await scene.go_away_and_come_back()
    scene.delivery.on_response(RetryOk(None))
    scene.prefect.raises["read_events"] = answered(503)
    assert not await scene.deliver()
    assert scene.decisions() == ["before"]
    scene.prefect.raises.clear()
    assert await scene.deliver()
    assert scene.decisions() == ["before", "while_away"]


async def test_a_task_run_that_waited_for_the_server_is_not_asked_for_as_soon_as_it_has_arrived(scene: Scene) -> None:
    """It was told just now, however long ago it happened."""
    scene.prefect.away = True
    scene.spawn("poll")
    assert not await scene.deliver()
    scene.now += 60.0
    scene.prefect.away = False
    assert await scene.deliver()
    assert await scene.check()
    assert "read_task_runs" not in scene.prefect.calls
    assert scene.delivery._uncertain == set()


async def test_task_runs_that_were_given_up_are_counted(scene: Scene) -> None:
    """Those that the book forgot because there were too many, too."""
    scene.delivery._task_runs.evicted = 3
    assert scene.delivery.given_up == 3


async def test_a_server_that_nobody_could_reach_has_nothing_and_nobody_waits_for_it(scene: Scene) -> None:
    """A connection that was refused took nothing: the events go out at the first answer."""
    scene.now = 0.0
    scene.prefect.away = True
    scene.decide("first")
    for _ in range(3):
        assert not await scene.deliver()
        scene.now += 5.0
    scene.prefect.away = False
    assert await scene.deliver()
    assert scene.decisions() == ["first"]
    assert "read_events" not in scene.prefect.calls


async def test_a_decision_that_was_torn_by_a_kill_is_sent_again_as_another_event(scene: Scene) -> None:
    """SQLite has it, and nobody finds it by its run; under its own id it would cost others. A whole one is left alone."""
    scene.decide("whole", "torn")
    scene.spawn("poll")
    assert await scene.deliver()
    whole, torn, spawned = (item["id"] for item in scene.prefect.items(EVENTS))
    await scene.go_away_and_come_back()
    scene.prefect.torn = {torn, spawned}
    for _ in range(3):
        assert await scene.deliver()
        scene.now += SHOWN_AFTER_S
    assert scene.decisions() == ["whole", "torn", "while_away", "torn"]
    sent = [item["id"] for item in scene.prefect.items(EVENTS)]
    assert len(set(sent)) == len(sent) == 5
    assert whole in sent
    await scene.go_away_and_come_back()  # soon enough for the torn one to be looked at once more
    for _ in range(3):
        assert await scene.deliver()
        scene.now += SHOWN_AFTER_S
    assert scene.decisions() == ["whole", "torn", "while_away", "torn", "while_away"]
    assert not scene.prefect.twice


async def test_what_a_server_that_is_back_takes_and_drops_is_sent_again(scene: Scene) -> None:
    """Prefect's own clients make it drop batches just then. It is looked at once more; until then not all is told."""
    await scene.go_away_and_come_back()
    scene.prefect.forgetful = True
    assert await scene.deliver()
    scene.prefect.forgetful = False
    assert scene.decisions() == ["while_away"]
    assert not scene.delivery.idle
    for _ in range(2):
        scene.now += SHOWN_AFTER_S
        assert await scene.deliver()
    assert scene.decisions() == ["while_away"] * 2
    assert scene.delivery.idle
    assert not scene.prefect.twice


async def test_an_event_whose_answer_was_lost_is_not_sent_twice(scene: Scene) -> None:
    """The server had taken it, and its answer did not come: it is asked before it gets it again."""
    scene.decide("first")
    scene.prefect.loses_answers = True
    assert not await scene.deliver()
    scene.prefect.loses_answers = False
    for _ in range(3):  # the second time, some time after the server has answered again, it is looked at once more
        scene.now += 60.0
        assert await scene.deliver()
    assert scene.delivery.idle
    assert scene.decisions() == ["first"]
    assert scene.prefect.twice == []


async def test_a_delivery_that_was_cut_short_is_looked_for_before_it_is_made_again(scene: Scene) -> None:
    """Nobody knows what the server has taken: for eight seconds it gets nothing, then what it does not show, once."""
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


async def test_a_second_outage_is_told_as_the_first(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """By whichever call it is noticed."""
    for _ in range(2):
        scene.delivery.on_response(Retry(OSError("away")))
        scene.now += 60.0
        scene.delivery.on_response(Permanent(answered(404)))
        scene.delivery.on_response(RetryOk(None))
    assert len(caplog.messages) == 4
    assert caplog.messages[0].endswith("OSError: away")


async def test_what_the_server_refuses_is_given_up_and_the_rest_delivered(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Each is logged and counted; the log lines are another matter."""
    scene.decide("first", "second")
    scene.prefect.raises["post event"] = answered(422)
    assert await scene.deliver()
    assert scene.delivery.idle
    assert scene.delivery.given_up == 2
    assert caplog.messages == ["Prefect rejects one event, which is dropped: answered 422"] * 2
    assert len(scene.prefect.items(LOGS)) == 2


async def test_one_item_that_is_refused_costs_none_of_those_it_travels_with(scene: Scene) -> None:
    """The server refuses a batch as a whole; then they go one by one."""
    scene.decide("first", "second", "third")
    scene.prefect.refuses = lambda item: "second" in item.get("event", "")
    assert await scene.deliver()
    assert scene.delivery.idle
    assert scene.delivery.given_up == 1
    assert scene.decisions() == ["first", "third"]
    assert len(scene.prefect.items(LOGS)) == 3


async def test_a_troubled_server_gets_the_same_batch_again(scene: Scene) -> None:
    """A 503 is no refusal."""
    scene.decide("first")
    scene.prefect.raises["post log"] = answered(503)
    assert not await scene.deliver()
    assert not scene.delivery.idle
    scene.prefect.raises.clear()
    assert await scene.deliver()
    assert [item["message"] for item in scene.prefect.items(LOGS)] == ["first"]
    assert scene.delivery.given_up == 0


async def test_what_there_is_no_room_for_is_counted() -> None:
    """Of each kind, the oldest."""
    scene = Scene(queue=2)
    scene.decide("first", "second", "third")
    assert scene.delivery.given_up == 2
    await scene.deliver()
    assert scene.decisions() == ["second", "third"]


# Looking whether it arrived.


async def test_what_the_server_shows_is_told(scene: Scene) -> None:
    """Only then: its answer to the event says nothing."""
    scene.spawn("poll")
    assert not scene.delivery.all_delivered
    await scene.deliver()
    assert (scene.delivery.idle, scene.delivery.all_delivered) == (True, False)
    assert await scene.check(after_s=0.0)
    assert scene.delivery.all_delivered


async def test_nobody_asks_before_the_server_can_have_recorded_it(scene: Scene) -> None:
    """Three seconds, unless told otherwise."""
    scene.spawn("poll")
    await scene.deliver()
    scene.now += RECORDED_AFTER_S - 0.01
    assert await scene.check()
    assert scene.prefect.calls == ["post event"]
    scene.now += 0.01
    assert await scene.check()
    assert scene.prefect.calls == ["post event", "read_task_runs"]
    assert RECORDED_AFTER_S == 3.0


async def test_what_the_server_has_lost_is_told_again_and_the_second_time_by_the_api(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """With all its states; each time only once the server would have shown what it has."""
    scene.prefect.forgetful = True
    scene.spawn("poll")
    scene.exit("poll")
    told = ["prefect.task-run.Running", "prefect.task-run.Completed"]
    await scene.deliver()
    scene.now += SHOWN_AFTER_S - 0.01
    assert await scene.check()
    assert scene.delivery.idle
    scene.now += 0.01
    assert await scene.check()
    assert await scene.deliver()
    assert scene.task_run_events() == 2 * told
    scene.now += SHOWN_AFTER_S
    assert await scene.check()
    assert scene.task_run_events() == 2 * told
    assert scene.prefect.task_run_states() == {"poll": "Completed"}
    assert scene.delivery.all_delivered
    assert scene.delivery.given_up == 0
    assert caplog.messages == ["Prefect has not recorded task run poll from its events; its state is set by the API"]


async def test_what_the_server_has_and_does_not_record_is_told_by_the_api_at_once(scene: Scene) -> None:
    """Its recorder has failed: a second copy of the events would not help it."""
    scene.prefect.records = False
    scene.spawn("poll")
    await scene.deliver()
    scene.now += SHOWN_AFTER_S
    assert await scene.check()
    assert scene.delivery.all_delivered
    assert scene.prefect.task_run_states() == {"poll": "Running"}
    assert len(scene.task_run_events()) == 1


async def test_of_what_the_server_has_in_part_the_rest_is_told(scene: Scene) -> None:
    """Its *Running* is there, its *Completed* is lost."""
    scene.spawn("poll")
    await scene.deliver()
    await scene.check(after_s=0.0)
    scene.prefect.forgetful = True
    scene.exit("poll")
    await scene.deliver()
    scene.prefect.forgetful = False
    scene.now += SHOWN_AFTER_S
    assert await scene.check()
    assert await scene.deliver()
    assert scene.task_run_events() == ["prefect.task-run.Running", *2 * ["prefect.task-run.Completed"]]
    assert scene.prefect.twice == []
    assert scene.prefect.task_run_states() == {"poll": "Completed"}


async def test_a_task_run_whose_event_waits_is_not_asked_for(scene: Scene) -> None:
    """The server cannot have it."""
    scene.spawn("poll")
    scene.now += 60.0
    assert await scene.check()
    assert scene.prefect.calls == []


@pytest.mark.parametrize("call", ["create_task_run", "set_task_run_state"])
async def test_a_task_run_that_the_api_refuses_is_given_up_and_counted(
    call: str, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Or it would be asked for ever."""
    scene.prefect.records = False
    scene.spawn("poll")
    await scene.deliver()
    scene.prefect.raises[call] = answered(422)
    scene.now += SHOWN_AFTER_S
    assert await scene.check()
    assert scene.delivery.all_delivered
    assert scene.delivery.given_up == 1
    assert caplog.messages[-1] == "Prefect rejects task run poll, which is dropped: answered 422"


async def test_a_task_run_that_the_api_cannot_take_now_is_tried_again(scene: Scene) -> None:
    """It is neither confirmed nor given up, and its events are not sent twice for that."""
    scene.prefect.records = False
    scene.spawn("poll")
    await scene.deliver()
    scene.prefect.raises["create_task_run"] = answered(503)
    for _ in range(4):
        scene.now += SHOWN_AFTER_S
        await scene.deliver()
        await scene.check()
    assert scene.prefect.calls.count("create_task_run") >= 2
    assert not scene.delivery.all_delivered
    scene.prefect.raises.clear()
    for _ in range(4):
        scene.now += SHOWN_AFTER_S
        await scene.deliver()
        await scene.check()
    assert scene.delivery.all_delivered
    assert (scene.delivery.given_up, scene.prefect.twice) == (0, [])


async def test_at_most_two_hundred_task_runs_are_asked_for_at_once(scene: Scene) -> None:
    """Those that have ended first; the rest the next time."""
    operators = [f"op-{number}" for number in range(250)]
    scene.spawn(*operators)
    await scene.deliver()
    for left in (True, False):
        assert await scene.check(after_s=0.0)
        assert scene.delivery.all_delivered is not left


async def test_a_server_that_does_not_say_what_it_has_is_away(scene: Scene) -> None:
    """Nothing is confirmed, nothing is told again yet."""
    scene.spawn("poll")
    await scene.deliver()
    scene.prefect.away = True
    assert not await scene.check(after_s=0.0)
    assert scene.delivery.idle
    assert not scene.delivery.all_delivered


async def test_a_state_that_somebody_else_has_set_since_stands(scene: Scene) -> None:
    """It is newer than ours."""
    scene.spawn("poll")
    await scene.deliver()
    run = next(iter(scene.prefect.task_runs.values()))
    run.state = state(StateType.CRASHED, "by hand", at=NOON + timedelta(minutes=1))
    assert await scene.check(after_s=0.0)
    assert scene.delivery.all_delivered
    assert scene.prefect.task_run_states() == {"poll": "Crashed"}


# The end.


async def test_whoever_has_not_ended_when_the_run_is_over_is_told_as_a_straggler(scene: Scene) -> None:
    """Dated then."""
    scene.spawn("poll", "log")
    scene.exit("poll")
    scene.delivery.end_run(NOON_NS + 2 * S)
    await scene.deliver()
    assert scene.prefect.task_run_states() == {"poll": "Completed", "log": "Crashed"}
    assert scene.prefect.items(EVENTS)[-1]["occurred"] == "2026-01-01T12:00:02+00:00"


async def test_nothing_is_left_once_all_is_told(scene: Scene) -> None:
    """By a server that has not been away."""
    scene.spawn("poll")
    scene.exit("poll")
    scene.decide("ended")
    await scene.deliver()
    await scene.check(after_s=0.0)
    assert scene.delivery.all_delivered
    assert scene.delivery.undelivered() == []


async def test_what_waits_to_be_delivered_is_not_told_yet(scene: Scene) -> None:
    """Also if every task run is confirmed, or there is none."""
    scene.decide("ended")
    assert not scene.delivery.all_delivered
    await scene.deliver()
    assert scene.delivery.all_delivered


async def test_what_the_server_has_taken_and_does_not_show_is_left(scene: Scene) -> None:
    """Whoever ends now cannot know whether it will."""
    scene.spawn("poll")
    scene.exit("poll")
    await scene.deliver()
    assert scene.delivery.idle
    left = scene.delivery.undelivered()
    assert [(kind, item["id"]) for kind, item in left] == [(EVENTS, item["id"]) for item in scene.prefect.items(EVENTS)]


async def test_what_is_left_is_all_that_the_server_may_not_have(scene: Scene) -> None:
    """What waits, what it has not confirmed, what it may have forgotten; each event once, and each log line."""
    scene.spawn("confirmed", "unconfirmed")
    scene.decide("delivered")
    await scene.deliver()
    scene.prefect.task_runs.pop(IDENTITY.task_run_id("unconfirmed", 1))
    await scene.check(after_s=0.0)
    scene.prefect.away = True
    scene.exit("confirmed")
    scene.decide("while_away")
    await scene.deliver()
    left = scene.delivery.undelivered()
    ids = [item["id"] for kind, item in left if kind == EVENTS]
    assert len(ids) == len(set(ids))
    events = [item for kind, item in left if kind == EVENTS]
    told = [(item["event"].split(".")[-1], item["resource"].get("prefect.resource.name")) for item in events]
    assert sorted(told) == [
        ("Completed", "confirmed"),
        ("Running", "confirmed"),
        ("Running", "unconfirmed"),
        ("delivered", "radar-net"),
        ("while_away", "radar-net"),
    ]
    assert [item["message"] for kind, item in left if kind == LOGS] == ["while away"]
    json.dumps(left)


async def test_an_event_that_was_delivered_more_than_once_is_left_once(scene: Scene) -> None:
    """A task run was told again, confirmed, and then the server went away: it is one event to tell again."""
    scene.prefect.forgetful = True
    scene.spawn("poll")
    await scene.deliver()
    scene.now += SHOWN_AFTER_S
    await scene.check()
    scene.prefect.forgetful = False
    await scene.deliver()
    await scene.check(after_s=0.0)
    assert scene.delivery.all_delivered
    await scene.go_away_and_come_back()
    left = [item for kind, item in scene.delivery.undelivered() if kind == EVENTS]
    assert [item["event"] for item in left] == ["orchestrator.pipeline.while_away", "prefect.task-run.Running"]


async def test_what_is_left_is_put_right_by_whoever_tells_it_next(scene: Scene) -> None:
    """Posted to an empty server in the order that is kept, it makes every task run what it was."""
    scene.prefect.away = True
    scene.spawn("poll", "log")
    scene.exit("poll")
    scene.delivery.end_run(NOON_NS + 2 * S)
    await scene.deliver()
    left = [item for kind, item in scene.delivery.undelivered() if kind == EVENTS]
    server = FakePrefect()
    await post(server.client, EVENTS, left)
    assert server.task_run_states() == {"poll": "Completed", "log": "Crashed"}
    assert len(left) == 4
