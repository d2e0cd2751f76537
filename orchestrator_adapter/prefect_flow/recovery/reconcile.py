"""Put right on the server what earlier runs of the pipeline could not: they were killed, or ended while no API answered.

Works on the records of runs that are over (see ``records``). Every step may be repeated: what the server has already, it
keeps. Raises nothing for a server that is away: what is left is left for the next time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID, uuid5

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventIDFilter
from prefect.exceptions import ObjectNotFound

from orchestrator_adapter.prefect_flow.client.api import ask
from orchestrator_adapter.prefect_flow.recovery.outbox import Item
from orchestrator_adapter.prefect_flow.recovery.records import RunRecord, RunRecords
from orchestrator_adapter.resilience.retry import Permanent, RetryOk

logger = logging.getLogger("orchestrator_adapter.prefect")

EVENTS, LOGS = "event", "log"
PATHS = {EVENTS: "/events", LOGS: "/logs/"}
"""Where items of each kind go."""

BATCH = 200
"""Items a request, and rows an answer: the server's own limit."""

_IDS_A_QUESTION = 50  # the server's own limit for events
_LOOK_AGAIN_S = 0.25
_RECORDED_WITHIN_S = 5.0  # from an event's arrival until the server's recorder has made a row of it
_ALIVE = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED, StateType.PAUSED, StateType.CANCELLING]
_GONE = "the process that ran it is gone; put right by {by}"


@dataclass(frozen=True, slots=True)
class ReconciledRun:
    """What was done about one earlier run: the state of its flow run if that was set, and how many task runs were."""

    record: RunRecord
    flow_run_state: str | None
    task_runs: int


async def reconcile_run(
    client: PrefectClient, records: RunRecords, record: RunRecord, *, by: str
) -> ReconciledRun | None:
    """Tell the server of a run that is over, then forget its record. ``None`` if the server is away, or refuses.

    With an outcome on record, the flow run gets that; without one it was killed, and is Crashed. ``by`` says who does
    this, in the messages. A flow run that has gone from the server is forgotten.
    """
    try:
        untold = records.undelivered(record)
    except (OSError, ValueError):
        logger.exception("what run %s has not told cannot be read; the rest is put right", record.flow_run_id)
        untold = []
    for kind in (EVENTS, LOGS):
        if not await _post_all(client, record.flow_run_id, kind, [item for of, item in untold if of == kind]):
            return None
    match await ask(client.read_flow_run(record.flow_run_id)):
        case RetryOk(flow_run):
            pass
        case Permanent(ObjectNotFound()):
            records.delete(record)
            return ReconciledRun(record, None, 0)
        case Permanent(error):  # a key that is not valid, say: it may be mended
            logger.error("Prefect refuses to tell of run %s: %s", record.flow_run_id, error)
            return None
        case _:
            return None
    alive = await _alive_task_runs(client, record, expect_fewer=any(of == EVENTS for of, _ in untold))
    if alive is None:
        return None
    for task_run in alive:
        gone = State(type=StateType.CRASHED, name="Crashed", message=_GONE.format(by=by))
        match await ask(client.set_task_run_state(task_run.id, gone, force=True)):
            case RetryOk() | Permanent(ObjectNotFound()):
                pass
            case _:
                return None
    state = state_to_set(record, flow_run, by=by)
    if state is not None and not isinstance(
        await ask(client.set_flow_run_state(record.flow_run_id, state, force=True)), RetryOk
    ):
        return None
    records.delete(record)
    return ReconciledRun(record, state.name if state is not None else None, len(alive))


def state_to_set(record: RunRecord, flow_run: FlowRun, *, by: str) -> State[None] | None:
    """The state that the flow run ought to be given; ``None`` if it has it, or runs once more."""
    if flow_run.run_count > record.attempt:
        return None
    theirs = flow_run.state
    if record.state_type is None:
        if theirs is not None and theirs.is_final():
            return None
        kind = StateType.CANCELLED if theirs is not None and theirs.is_cancelling() else StateType.CRASHED
        return State(type=kind, name=kind.value.capitalize(), message=_GONE.format(by=by))
    kind = StateType(record.state_type)
    reaped = theirs is not None and theirs.type is StateType.CRASHED and kind is not StateType.CRASHED
    if theirs is not None and theirs.is_final() and not reaped:
        return None
    return State(type=kind, name=kind.value.capitalize(), message=record.state_message)


async def post(client: PrefectClient, kind: str, items: Sequence[Item]) -> None:
    """Give the server items of one kind. Raises what the client raises."""
    # The route is real, but Prefect's own type of all routes does not list it.
    await client.request("POST", PATHS[kind], json=list(items))  # type: ignore[arg-type]


async def missing_events(client: PrefectClient, flow_run_id: UUID, events: Sequence[Item]) -> list[Item] | None:
    """Those events of a run that the server has not kept; ``None`` if it is away or troubled.

    An event that it has is not to be sent again. On SQLite (Prefect 3.8.8, ``_write_sqlite_events``) one that comes twice
    makes the whole batch fail that the server is about to write; it tries five times, and drops the batch: others' events too.
    Nor does SQLite write an event and its resources in one transaction: a server killed between the two has an event that
    nobody finds by what it is about. Such a decision is sent once more, as another event; a task run's row has been made.
    """
    if not events:
        return []
    by_id = await _found(client, events, None)
    if by_id is None:
        return None
    there = [event for event in events if event["id"] in by_id]
    by_run = await _found(client, there, EventAnyResourceFilter(id=[f"prefect.flow-run.{flow_run_id}"]))
    if by_run is None:
        return None
    torn = [event for event in there if event["id"] not in by_run and not _is_task_runs(event)]
    copies = [{**event, "id": str(uuid5(UUID(event["id"]), "again"))} for event in torn]
    copied = await _found(client, copies, None)
    if copied is None:
        return None
    missing = [event for event in events if event["id"] not in by_id]
    return [*(copy for copy in copies if copy["id"] not in copied), *missing]


async def _found(
    client: PrefectClient, events: Sequence[Item], about: EventAnyResourceFilter | None
) -> frozenset[str] | None:
    """The ids of those events that the server finds, by their ids and by what they are about; ``None`` as above."""
    found: set[str] = set()
    for start in range(0, len(events), _IDS_A_QUESTION):
        ids = EventIDFilter(id=[UUID(event["id"]) for event in events[start : start + _IDS_A_QUESTION]])
        question = EventFilter(id=ids) if about is None else EventFilter(id=ids, any_resource=about)
        page = await ask(client.read_events(question, limit=_IDS_A_QUESTION))
        if not isinstance(page, RetryOk):
            return None
        found.update(str(event.id) for event in page.value.events)
    return frozenset(found)


def _is_task_runs(event: Item) -> bool:
    return str(event.get("event")).startswith("prefect.task-run.")


async def _post_all(client: PrefectClient, flow_run_id: UUID, kind: str, items: Sequence[Item]) -> bool:
    if kind == EVENTS:
        to_send = await missing_events(client, flow_run_id, items)
        if to_send is None:
            return False
        items = to_send
    for start in range(0, len(items), BATCH):
        batch = items[start : start + BATCH]
        answer = await ask(post(client, kind, batch))
        if isinstance(answer, Permanent):
            logger.error("Prefect refuses %d %ss of an earlier run: %s", len(batch), kind, answer.error)
        elif not isinstance(answer, RetryOk):
            return False
    return True


async def _alive_task_runs(client: PrefectClient, record: RunRecord, *, expect_fewer: bool) -> list[TaskRun] | None:
    """Its task runs that are not over, once those that are just being recorded have been. ``None``: the server is away."""
    deadline = time.monotonic() + (_RECORDED_WITHIN_S if expect_fewer else 0.0)
    while True:
        found = await _task_runs(client, record.flow_run_id)
        if found is None:
            return None
        alive = [run for run in found if run.flow_run_run_count <= record.attempt]
        if not alive or time.monotonic() >= deadline:
            return alive
        await asyncio.sleep(_LOOK_AGAIN_S)


async def _task_runs(client: PrefectClient, flow_run_id: UUID) -> list[TaskRun] | None:
    """All task runs of a flow run that are not over; ``None``: the server is away."""
    of_this_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    not_over = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=_ALIVE)))
    found: list[TaskRun] = []
    while True:
        page = await ask(
            client.read_task_runs(flow_run_filter=of_this_run, task_run_filter=not_over, limit=BATCH, offset=len(found))
        )
        if not isinstance(page, RetryOk):
            return None
        found += page.value
        if len(page.value) < BATCH:
            return found
