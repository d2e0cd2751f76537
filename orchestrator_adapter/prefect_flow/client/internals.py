"""Everything undocumented in Prefect 3.8 that this package relies on, in one place.

- The event that carries a task run's state. The server's task run recorder makes rows of such events; Prefect's own task
  engine sends the same. The fallback is ``set_state_by_api``, by the documented client methods.
- The context of a task run, as Prefect's own task engine enters it.
- How a flow's body ends without the engine proposing a state to the server.
- How a flow run's engine learns that the run was suspended, and is prevented from ending the run for it.
- How Prefect's queue of events in this process is bounded.

``test_internals_shape.py`` fails when one of them changes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache
from typing import Any, NoReturn
from uuid import UUID

from prefect import Task
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import Abort

from orchestrator_adapter.prefect_flow.client.text import storable

logger = logging.getLogger("orchestrator_adapter.prefect")

_MADE_BY_THE_SERVER = {
    *("id", "created", "updated", "flow_run_id", "state_id", "state_type", "state_name", "state"),
    *("estimated_start_time_delta", "estimated_run_time"),
}


def task_run_event(
    task_run: TaskRun, before: State[Any] | None, now: State[Any], related: Sequence[dict[str, str]]
) -> dict[str, Any]:
    """The event that makes the server record ``now`` as the state of ``task_run``, as JSON values.

    The event's id is the state's id: an event that is sent twice is recorded once. The server never replaces a newer state
    by an older one, so order does not matter. ``related`` must name the flow run, in the role ``flow-run``.
    """
    message = storable(now.message or "")
    return {
        "id": str(now.id),
        "occurred": now.timestamp.isoformat(),
        "event": f"prefect.task-run.{now.name}",
        "follows": str(before.id) if before is not None else None,
        "payload": {
            "intended": {"from": before.type.value if before is not None else None, "to": now.type.value},
            "initial_state": _state(before) if before is not None else None,
            "validated_state": {**_state(now), "data": None},
            "task_run": task_run.model_dump(mode="json", exclude_none=True, exclude=_MADE_BY_THE_SERVER),
        },
        "resource": {
            "prefect.resource.id": f"prefect.task-run.{task_run.id}",
            "prefect.resource.name": task_run.name,
            "prefect.run-count": str(task_run.run_count),
            "prefect.state-message": message,
            "prefect.state-name": now.name or "",
            "prefect.state-timestamp": now.timestamp.isoformat(),
            "prefect.state-type": now.type.value,
            "prefect.orchestration": "client",  # otherwise the recorder ignores the event
        },
        "related": list(related),
    }


async def set_state_by_api(client: PrefectClient, task_run: TaskRun, state: State[Any]) -> None:
    """The fallback: create the task run if it does not exist, and set its state, by the documented client methods.

    It is slower, and the server dates the state itself. Raises what the client raises.
    """
    task: Task[[], None] = Task(_nothing, name=task_run.task_key, tags=task_run.tags)
    task.task_key = task_run.task_key
    await client.create_task_run(
        task,
        flow_run_id=task_run.flow_run_id,
        dynamic_key=task_run.dynamic_key,
        id=task_run.id,
        name=task_run.name,
        task_inputs=task_run.task_inputs,
        state=state,
    )
    await client.set_task_run_state(task_run.id, state, force=True)


def enter_task_run(task_run: TaskRun, name: str) -> None:
    """Make ``task_run`` the current one, for the rest of the current context; ``name`` is the name of its task.

    From then on Prefect's loggers, ``prefect.runtime``, artifacts, events and nested task runs refer to it, and use the
    client of the flow run. No call to the API is made. Outside a flow run nothing happens.
    """
    flow_run = FlowRunContext.get()
    if flow_run is None:
        return
    TaskRunContext(
        task=_task_named(name, task_run.task_key),
        task_run=task_run,
        parameters={},
        client=flow_run.client,
        result_store=flow_run.result_store,
        persist_result=False,
    ).__enter__()


@cache
def _task_named(name: str, key: str) -> Task[[], None]:
    task: Task[[], None] = Task(_nothing, name=name)
    task.task_key = key
    return task


def exit_without_state(why: str) -> NoReturn:
    """End a flow's body without the engine proposing a state, which takes two minutes if no API answers.

    On the server, the run keeps its state until it is reconciled.
    """
    raise Abort(why)


ENGINE_ABORTED = Abort
"""What the caller of the flow gets then. Prefect's runner treats it as a run that the orchestrator has ended."""


def ignore_suspension() -> bool:
    """Let Prefect's engine ignore that the current flow run is suspended, for the rest of the run.

    It would raise ``Pause`` in every nested task run, and at the end of the flow instead of recording how the run ended. A
    stream cannot be suspended; ``reporting.flow_run_watch`` sets such a run Running again. Returns False if it cannot be
    ignored.
    """
    try:
        context = FlowRunContext.get()
        if context is not None:
            request = context.flow_run_suspension_request
            assert callable(request.mark_requested)
            request.mark_requested = _ignored  # type: ignore[method-assign] # it has no switch
    except Exception:
        logger.exception("Prefect's engine could not be made to ignore a suspension of this run")
        return False
    return True


def _ignored(state: State[Any]) -> None:
    """The flow run was suspended: nothing follows."""


def bound_event_queue(limit: int) -> bool:
    """Bound the queue of events that Prefect itself sends from this process, such as heartbeats.

    By default it has no bound, and grows while no API answers. Returns False if it cannot be bounded.
    """
    try:
        from prefect.events.worker import EventsWorker  # noqa: PLC0415 - if it is missing, only this function fails

        queue = EventsWorker.instance()._queue  # noqa: SLF001 - the queue's own `maxsize` is public
        if queue.maxsize <= 0:
            queue.maxsize = limit
    except Exception:
        logger.exception("Prefect's own event queue could not be bounded")
        return False
    return True


def _state(state: State[Any]) -> dict[str, Any]:
    return {
        "type": state.type.value,
        "name": state.name,
        "message": storable(state.message or ""),
        "state_details": {},
    }


def _nothing() -> None:
    """The body of a task that Prefect never runs."""


def own_state_id(task_run: TaskRun) -> UUID | None:
    """The id of the state that the server has for this task run."""
    return task_run.state.id if task_run.state is not None else task_run.state_id
