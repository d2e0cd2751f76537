"""Reading task runs back from a fake server: what is confirmed, what is sent again, and when."""

from __future__ import annotations

from datetime import timedelta

import pytest
from prefect.client.schemas.objects import StateType

from orchestrator_adapter.prefect_flow.reporting.delivery import RECORDED_AFTER_S, SHOWN_AFTER_S
from tests.helpers.prefect_delivery import Scene
from tests.helpers.prefect_fakes import NOON, answered, state


@pytest.fixture
def scene() -> Scene:
    return Scene()


async def test_a_task_run_is_delivered_once_the_server_shows_it(scene: Scene) -> None:
    """The server's answer to the event does not suffice."""
    scene.spawn("poll")
    assert not scene.delivery.all_delivered
    await scene.deliver()
    assert (scene.delivery.idle, scene.delivery.all_delivered) == (True, False)
    assert await scene.check(after_s=0.0)
    assert scene.delivery.all_delivered


async def test_a_task_run_is_not_read_back_before_the_server_can_have_recorded_it(scene: Scene) -> None:
    """The default is 3 s."""
    scene.spawn("poll")
    await scene.deliver()
    scene.now += RECORDED_AFTER_S - 0.01
    assert await scene.check()
    assert scene.prefect.calls == ["post event"]
    scene.now += 0.01
    assert await scene.check()
    assert scene.prefect.calls == ["post event", "read_task_runs"]
    assert RECORDED_AFTER_S == 3.0


async def test_a_lost_task_run_is_sent_again_and_the_second_time_set_by_the_api(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """With all its states; each time only after the server would have shown what it has."""
    scene.prefect.loses_events = True
    scene.spawn("poll")
    scene.exit("poll")
    sent = ["prefect.task-run.Running", "prefect.task-run.Completed"]
    await scene.deliver()
    scene.now += SHOWN_AFTER_S - 0.01
    assert await scene.check()
    assert scene.delivery.idle
    scene.now += 0.01
    assert await scene.check()
    assert await scene.deliver()
    assert scene.task_run_events() == 2 * sent
    scene.now += SHOWN_AFTER_S
    assert await scene.check()
    assert scene.task_run_events() == 2 * sent
    assert scene.prefect.task_run_states() == {"poll": "Completed"}
    assert scene.delivery.all_delivered
    assert scene.delivery.given_up == 0
    assert caplog.messages == ["Prefect has not recorded task run poll from its events; its state is set by the API"]


async def test_a_task_run_that_the_server_does_not_record_is_set_by_the_api_at_once(scene: Scene) -> None:
    """The server has the events and its recorder has failed: sending the events again would not help."""
    scene.prefect.records = False
    scene.spawn("poll")
    await scene.deliver()
    scene.now += SHOWN_AFTER_S
    assert await scene.check()
    assert scene.delivery.all_delivered
    assert scene.prefect.task_run_states() == {"poll": "Running"}
    assert len(scene.task_run_events()) == 1


async def test_only_the_missing_states_of_a_task_run_are_sent_again(scene: Scene) -> None:
    """The server has *Running* and has lost *Completed*."""
    scene.spawn("poll")
    await scene.deliver()
    await scene.check(after_s=0.0)
    scene.prefect.loses_events = True
    scene.exit("poll")
    await scene.deliver()
    scene.prefect.loses_events = False
    scene.now += SHOWN_AFTER_S
    assert await scene.check()
    assert await scene.deliver()
    assert scene.task_run_events() == ["prefect.task-run.Running", *2 * ["prefect.task-run.Completed"]]
    assert scene.prefect.sent_twice == []
    assert scene.prefect.task_run_states() == {"poll": "Completed"}


async def test_a_task_run_whose_event_is_queued_is_not_read_back(scene: Scene) -> None:
    """The server cannot have it yet."""
    scene.spawn("poll")
    scene.now += 60.0
    assert await scene.check()
    assert scene.prefect.calls == []


@pytest.mark.parametrize("call", ["create_task_run", "set_task_run_state"])
async def test_a_task_run_that_the_api_rejects_is_dropped_and_counted(
    call: str, scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise it would be read back for ever."""
    scene.prefect.records = False
    scene.spawn("poll")
    await scene.deliver()
    scene.prefect.raises[call] = answered(422)
    scene.now += SHOWN_AFTER_S
    assert await scene.check()
    assert scene.delivery.all_delivered
    assert scene.delivery.given_up == 1
    assert caplog.messages[-1] == "Prefect rejects task run poll, which is dropped: answered 422"


async def test_a_failed_api_call_for_a_task_run_is_tried_again(scene: Scene) -> None:
    """The task run is neither confirmed nor dropped, and its events are not sent twice."""
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
    assert (scene.delivery.given_up, scene.prefect.sent_twice) == (0, [])


async def test_at_most_200_task_runs_are_read_back_at_once(scene: Scene) -> None:
    """The rest are read the next time."""
    operators = [f"op-{number}" for number in range(250)]
    scene.spawn(*operators)
    await scene.deliver()
    for more in (True, False):
        assert await scene.check(after_s=0.0)
        assert scene.delivery.all_delivered is not more


async def test_an_unanswered_read_back_confirms_nothing(scene: Scene) -> None:
    """Nothing is sent again yet either."""
    scene.spawn("poll")
    await scene.deliver()
    scene.prefect.unreachable = True
    assert not await scene.check(after_s=0.0)
    assert scene.delivery.idle
    assert not scene.delivery.all_delivered


async def test_a_newer_state_set_by_another_client_is_left_unchanged(scene: Scene) -> None:
    """Our older state then counts as delivered."""
    scene.spawn("poll")
    await scene.deliver()
    run = next(iter(scene.prefect.task_runs.values()))
    run.state = state(StateType.CRASHED, "by hand", at=NOON + timedelta(minutes=1))
    assert await scene.check(after_s=0.0)
    assert scene.delivery.all_delivered
    assert scene.prefect.task_run_states() == {"poll": "Crashed"}
