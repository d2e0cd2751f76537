"""Compares our events with those of Prefect 3.8 itself. Fails when Prefect changes what this package relies on."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from prefect import Flow
from prefect._flow_run_suspension import (
    mark_flow_run_suspension_requested,
    raise_if_flow_run_suspension_requested,
    register_flow_run_suspension_request,
)
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State, StateType, TaskRun, TaskRunResult
from prefect.context import FlowRunContext
from prefect.events import Event
from prefect.events.clients import AssertingEventsClient
from prefect.events.worker import EventsWorker
from prefect.exceptions import Abort
from prefect.results import ResultStore
from prefect.states import Cancelled, Completed, Crashed, Failed, Running, Suspended
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.utilities.engine import emit_task_run_state_change_event

from orchestrator_adapter.prefect_flow.client.internals import (
    ENGINE_ABORTED,
    bound_event_queue,
    exit_without_state,
    ignore_suspension,
    set_state_by_api,
    task_run_event,
)
from tests.helpers.prefect_fakes import IDENTITY, NOON, FakePrefect, state

OURS = ("follows", "related")
"""Fields that differ on purpose: Prefect leaves ``follows`` to its caller, and takes ``related`` from its context."""


def a_task_run(**changes: Any) -> TaskRun:
    fields: dict[str, Any] = {
        "id": UUID(int=9),
        "name": "poll #2",
        "flow_run_id": IDENTITY.flow_run_id,
        "task_key": "radar-net.poll",
        "dynamic_key": "1-2",
        "tags": ["source"],
        "task_inputs": {"restart of": [TaskRunResult(id=UUID(int=8))]},
        "run_count": 1,
        "flow_run_run_count": 1,
        "expected_start_time": NOON,
        "start_time": NOON,
        "end_time": NOON + timedelta(seconds=90),
        "total_run_time": timedelta(seconds=90),
    }
    return TaskRun(**(fields | changes))


CHANGES: list[tuple[State[Any] | None, State[Any]]] = [
    (None, Running(timestamp=NOON)),
    (Running(timestamp=NOON), Completed(message="end of stream", timestamp=NOON)),
    (Running(timestamp=NOON), Failed(message="OSError: cable <- ValueError: \N{SNOWMAN}", timestamp=NOON)),
    (Running(timestamp=NOON), Crashed(message="KeyError\n" + 20_000 * "trace ", timestamp=NOON)),
    (Failed(message=20_000 * "trace ", timestamp=NOON), Cancelled(message=None, timestamp=NOON)),
]


@pytest.mark.parametrize(("before", "now"), CHANGES)
def test_our_event_equals_the_one_of_prefects_own_engine(
    before: State[Any] | None, now: State[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the same task run and states, in every field except those in ``OURS``. The server records events of this shape."""
    monkeypatch.setattr("prefect.utilities.engine.emit_event", Event)  # instead of to a server
    theirs = emit_task_run_state_change_event(a_task_run(), before, now)
    assert theirs is not None
    ours = Event.model_validate(task_run_event(a_task_run(), before, now, IDENTITY.related()))
    expected = theirs.model_dump(mode="json", exclude=set(OURS))
    assert ours.model_dump(mode="json", exclude=set(OURS)) == expected


def test_our_event_has_the_fields_that_prefect_leaves_to_the_caller() -> None:
    """The state before, and every related resource, with the flow run in its role."""
    before: State[Any] = Running(timestamp=NOON)
    now: State[Any] = Completed(timestamp=NOON)
    item = task_run_event(a_task_run(), before, now, IDENTITY.related())
    assert (item["follows"], item["id"]) == (str(before.id), str(now.id))
    assert item["related"] == IDENTITY.related()
    (flow_run,) = [other for other in item["related"] if other["prefect.resource.role"] == "flow-run"]
    assert flow_run["prefect.resource.id"] == f"prefect.flow-run.{IDENTITY.flow_run_id}"


async def test_the_fallback_creates_the_task_run_and_sets_its_state() -> None:
    """By the documented client methods. An existing task run only gets the state."""
    prefect = FakePrefect()
    done = state(StateType.COMPLETED, "end of stream")
    for _ in range(2):
        await set_state_by_api(prefect.client, a_task_run(), done)
    (run,) = prefect.task_runs.values()
    assert (run.id, run.name, run.flow_run_id, run.dynamic_key) == (UUID(int=9), "poll #2", IDENTITY.flow_run_id, "1-2")
    assert run.task_inputs == {"restart of": [TaskRunResult(id=UUID(int=8))]}
    assert run.state is done
    assert prefect.calls == 2 * ["create_task_run", "set_task_run_state"]


def test_exiting_without_a_state_raises_the_documented_exception() -> None:
    """It is Prefect's ``Abort``, with the reason."""
    assert ENGINE_ABORTED is Abort
    with pytest.raises(ENGINE_ABORTED, match="no answer"):
        exit_without_state("no answer")


class Queue:
    def __init__(self, maxsize: int) -> None:
        self.maxsize = maxsize


class Worker:
    def __init__(self, queue: Queue) -> None:
        self._queue = queue


@pytest.mark.parametrize(("already", "expected"), [(0, 7), (3, 3)])
def test_prefects_own_event_queue_is_bounded_unless_it_has_a_bound(
    already: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An existing bound is not changed."""
    queue = Queue(already)
    monkeypatch.setattr(EventsWorker, "instance", lambda: Worker(queue))
    assert bound_event_queue(7)
    assert queue.maxsize == expected


def test_a_prefect_without_such_a_queue_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The function returns False and does not raise."""
    monkeypatch.setattr(EventsWorker, "instance", object)
    assert not bound_event_queue(7)
    assert "could not be bounded" in caplog.text


def test_prefects_real_event_worker_has_the_queue_that_is_bounded() -> None:
    """The attribute that this package relies on exists. The worker is never started, so nothing is sent."""
    worker = EventsWorker(AssertingEventsClient, client_options=(("unused", None),))
    assert isinstance(worker._queue.maxsize, int)


def test_a_suspension_of_the_run_is_ignored_by_prefects_engine() -> None:
    """The engine's observer marks the run as suspended, and the engine would raise ``Pause`` at the end of the flow."""
    flow: Flow[[], None] = Flow(no_body, name="any")
    runner: ThreadPoolTaskRunner[object] = ThreadPoolTaskRunner()
    client = PrefectClient("http://127.0.0.1:1/api")
    with FlowRunContext(flow=flow, client=client, task_runner=runner, result_store=ResultStore()) as context:
        request = context.flow_run_suspension_request
        with register_flow_run_suspension_request(IDENTITY.flow_run_id, request):
            assert ignore_suspension()
            assert mark_flow_run_suspension_requested(IDENTITY.flow_run_id, Suspended())
        raise_if_flow_run_suspension_requested()


def no_body() -> None:
    """The body of a flow that is never run."""
