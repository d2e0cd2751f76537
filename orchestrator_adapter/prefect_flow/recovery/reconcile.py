"""Reconciles earlier runs with the server: runs that were killed, or that ended while no API answered.

Works on the records of runs that are over (see ``records``). Every step may be repeated: what the server already has stays
unchanged. If the server is unreachable nothing is raised, and the record stays for the next attempt.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.exceptions import ObjectNotFound

from orchestrator_adapter.prefect_flow.client.api import ask
from orchestrator_adapter.prefect_flow.client.posting import (
    ARTIFACTS,
    BATCH,
    BATCHES,
    EVENTS,
    LOGS,
    ReportItem,
    missing_artifacts,
    missing_events,
    post,
)
from orchestrator_adapter.prefect_flow.recovery.records import RunRecord, RunRecords
from orchestrator_adapter.resilience.retry import Permanent, RetryOk

logger = logging.getLogger("orchestrator_adapter.prefect")

_READ_AGAIN_S = 0.25
_RECORDED_WITHIN_S = 5.0  # from an event's arrival until the server's recorder has made a row of it
_NOT_FINAL = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED, StateType.PAUSED, StateType.CANCELLING]
_PROCESS_GONE = "its process no longer exists; reconciled by {by}"


@dataclass(frozen=True, slots=True)
class ReconciledRun:
    """What was changed on the server for one earlier run.

    Attributes:
        record: The run.
        flow_run_state: The state that its flow run was set to; ``None`` if it was right already.
        task_runs: How many of its task runs were set Crashed.
    """

    record: RunRecord
    flow_run_state: str | None
    task_runs: int


async def reconcile_run(
    client: PrefectClient, records: RunRecords, record: RunRecord, *, by: str
) -> ReconciledRun | None:
    """Report a run that is over, then delete its record. ``None`` if the server does not answer or rejects a call.

    A record with an outcome: the flow run gets that state. A record without one: the run was killed, and gets Crashed.
    ``by`` names the caller in the states' messages. If the flow run no longer exists on the server, the record is deleted.
    """
    try:
        undelivered = records.undelivered(record)
    except (OSError, ValueError):
        logger.exception("undelivered items of run %s cannot be read; the rest is reconciled", record.flow_run_id)
        undelivered = []
    for kind in (EVENTS, LOGS, ARTIFACTS):
        if not await _post_all(client, record.flow_run_id, kind, [item for of, item in undelivered if of == kind]):
            return None
    match await ask(client.read_flow_run(record.flow_run_id)):
        case RetryOk(flow_run):
            pass
        case Permanent(ObjectNotFound()):
            records.delete(record)
            return ReconciledRun(record, None, 0)
        case Permanent(error):  # an invalid API key, for example: it can be corrected, so the record stays
            logger.error("Prefect rejects reading run %s: %s", record.flow_run_id, error)
            return None
        case _:
            return None
    not_final = await _task_runs_not_final(client, record, wait=any(of == EVENTS for of, _ in undelivered))
    if not_final is None:
        return None
    for task_run in not_final:
        crashed = State(type=StateType.CRASHED, name="Crashed", message=_PROCESS_GONE.format(by=by))
        match await ask(client.set_task_run_state(task_run.id, crashed, force=True)):
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
    return ReconciledRun(record, state.name if state is not None else None, len(not_final))


def state_to_set(record: RunRecord, flow_run: FlowRun, *, by: str) -> State[None] | None:
    """The state that the flow run must be set to; ``None`` if it has the right one, or a later attempt is running."""
    if flow_run.run_count > record.attempt:
        return None
    on_server = flow_run.state
    if record.state_type is None:
        if on_server is not None and on_server.is_final():
            return None
        kind = StateType.CANCELLED if on_server is not None and on_server.is_cancelling() else StateType.CRASHED
        return State(type=kind, name=kind.value.capitalize(), message=_PROCESS_GONE.format(by=by))
    kind = StateType(record.state_type)
    reaped = on_server is not None and on_server.type is StateType.CRASHED and kind is not StateType.CRASHED
    if on_server is not None and on_server.is_final() and not reaped:
        return None
    return State(type=kind, name=kind.value.capitalize(), message=record.state_message)


async def _post_all(client: PrefectClient, flow_run_id: UUID, kind: str, items: Sequence[ReportItem]) -> bool:
    if kind != LOGS:
        missing = await (
            missing_events(client, flow_run_id, items) if kind == EVENTS else missing_artifacts(client, items)
        )
        if missing is None:
            return False
        items = missing
    for start in range(0, len(items), BATCHES[kind]):
        batch = items[start : start + BATCHES[kind]]
        answer = await ask(post(client, kind, batch))
        if isinstance(answer, Permanent):
            logger.error("Prefect rejects %d %ss of an earlier run: %s", len(batch), kind, answer.error)
        elif not isinstance(answer, RetryOk):
            return False
    return True


async def _task_runs_not_final(client: PrefectClient, record: RunRecord, *, wait: bool) -> list[TaskRun] | None:
    """The run's task runs without a final state. ``None`` if the server does not answer.

    ``wait``: events have just been posted, so wait until the server has recorded their task runs, for a bounded time.
    """
    deadline = time.monotonic() + (_RECORDED_WITHIN_S if wait else 0.0)
    while True:
        found = await _read_not_final(client, record.flow_run_id)
        if found is None:
            return None
        of_attempt = [run for run in found if run.flow_run_run_count <= record.attempt]
        if not of_attempt or time.monotonic() >= deadline:
            return of_attempt
        await asyncio.sleep(_READ_AGAIN_S)


async def _read_not_final(client: PrefectClient, flow_run_id: UUID) -> list[TaskRun] | None:
    of_this_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    not_final = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=_NOT_FINAL)))
    found: list[TaskRun] = []
    while True:
        page = await ask(
            client.read_task_runs(
                flow_run_filter=of_this_run, task_run_filter=not_final, limit=BATCH, offset=len(found)
            )
        )
        if not isinstance(page, RetryOk):
            return None
        found += page.value
        if len(page.value) < BATCH:
            return found
