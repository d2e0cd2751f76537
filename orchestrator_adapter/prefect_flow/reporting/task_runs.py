"""Operator instances as Prefect task runs: their states, the events that report them, and what the server has confirmed.

Pure: supervision records and the server's answers in, events out; times are given. A task run is *Running* while its instance
lives, and then gets the state that matches the ``TaskExit``. A restart is a new task run, linked to the one that failed.

The tracker is level-triggered: it compares its states with those on the server, and missing ones are sent again. So it does not
matter why one is missing: the server was killed with the event in memory, or an outbox overflowed.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from prefect.client.schemas.objects import State, TaskRun, TaskRunResult
from prefect.states import Crashed, Running

from orchestrator_adapter.prefect_flow.client.internals import task_run_event
from orchestrator_adapter.prefect_flow.client.posting import ReportItem
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from orchestrator_adapter.prefect_flow.states import task_state
from orchestrator_adapter.supervision.events import Exited, Spawned

_ENDED_KEPT = 10_000  # ended task runs that the server has not confirmed; beyond this number the oldest are evicted


@dataclass(slots=True)
class TrackedTaskRun:
    """One task run and the states it went through.

    Attributes:
        task_run: As Prefect has it.
        upstream: The operators that it reads from.
        states: Oldest first; the last is the current one. States that a later one makes irrelevant are not kept.
        confirmed: The server has the current state.
        sent_at: When the current state was last sent, in monotonic seconds.
        tries: How often a query showed that the server does not have it.
        sent_again: The events have been sent a second time.
    """

    task_run: TaskRun
    upstream: tuple[str, ...] = ()
    states: list[State[Any]] = field(default_factory=list)
    confirmed: bool = False
    sent_at: float = 0.0
    tries: int = 0
    sent_again: bool = False

    @property
    def state(self) -> State[Any]:
        """The current state."""
        return self.states[-1]


class TaskRunTracker:
    """Every task run whose latest state may not be on the server.

    Attributes:
        evicted: How many ended task runs were dropped unconfirmed, because there were too many.
    """

    def __init__(self, identity: RunIdentity, *, ended_kept: int = _ENDED_KEPT) -> None:
        self.evicted = 0
        self._identity = identity
        self._related = identity.related()
        self._ended_kept = ended_kept
        self._alive: dict[str, TrackedTaskRun] = {}
        self._ended: OrderedDict[UUID, TrackedTaskRun] = OrderedDict()

    def spawned(self, record: Spawned, at: datetime, now: float) -> list[ReportItem]:
        """An instance started at ``at``; ``now`` is monotonic, in seconds. Returns the events to send.

        After a restart, the operators that read from this one are sent again, linked to the new instance.
        """
        task_run = task_run_of(self._identity, record, at)
        task_run.task_inputs = self._task_inputs(record)
        run = TrackedTaskRun(task_run, record.upstream)
        self._alive[record.operator] = run
        items = [self._change_state(run, Running(timestamp=at), now)]
        if record.restarted is not None:
            items += [
                self._relink(reader, record, at, now)
                for reader in self._alive.values()
                if record.operator in reader.upstream
            ]
        return items

    def exited(self, record: Exited, at: datetime, now: float) -> ReportItem:
        """An instance ended at ``at``. It must have been spawned."""
        return self._end(record.operator, task_state(record.exit), at, now)

    def end_run(self, at: datetime, now: float) -> list[ReportItem]:
        """The run is over: an instance that still lives was asked to stop and did not."""
        return [
            self._end(operator, Crashed(message="straggler: it was asked to stop and did not"), at, now)
            for operator in list(self._alive)
        ]

    def unconfirmed(self, *, sent_before: float) -> list[TrackedTaskRun]:
        """Task runs that were sent before ``sent_before`` and are not confirmed. Ended ones come first."""
        return [
            run
            for run in (*self._ended.values(), *self._alive.values())
            if not run.confirmed and run.sent_at <= sent_before
        ]

    @property
    def all_confirmed(self) -> bool:
        """Whether the server has the current state of every task run."""
        return not self._ended and all(run.confirmed for run in self._alive.values())

    def compare(
        self, asked: Iterable[TrackedTaskRun], answer: Mapping[UUID, State[Any] | None]
    ) -> list[TrackedTaskRun]:
        """Confirm those of ``asked`` whose current state is in the server's ``answer``; returns the others.

        A state on the server that is newer than ours was set by another client, and is left unchanged.
        """
        missing: list[TrackedTaskRun] = []
        for run in asked:
            on_server = answer.get(run.task_run.id)
            if on_server is not None and (on_server.id == run.state.id or on_server.timestamp > run.state.timestamp):
                self.confirm(run)
            else:
                run.tries += 1
                missing.append(run)
        return missing

    def confirm(self, run: TrackedTaskRun) -> None:
        """The server has its current state."""
        run.confirmed = True
        self._ended.pop(run.task_run.id, None)

    def events_of(self, run: TrackedTaskRun, now: float) -> list[ReportItem]:
        """The events of all its states, to be sent again now."""
        run.sent_at = now
        before: list[State[Any] | None] = [None, *run.states[:-1]]
        return [
            task_run_event(run.task_run, was, is_, self._related) for was, is_ in zip(before, run.states, strict=True)
        ]

    def _relink(self, reader: TrackedTaskRun, record: Spawned, at: datetime, now: float) -> ReportItem:
        """Link the reader to the new instance. The failed instance is reached through the new one."""
        reader.task_run.task_inputs[record.operator] = [
            TaskRunResult(id=self._identity.task_run_id(record.operator, record.instance))
        ]
        del reader.states[1:]  # earlier links are of no use any more
        state: State[Any] = Running(message=f"reads {instance_name(record.operator, record.instance)}", timestamp=at)
        return self._change_state(reader, state, now)

    def _task_inputs(self, record: Spawned) -> dict[str, list[Any]]:
        inputs: dict[str, list[Any]] = {
            upstream: [TaskRunResult(id=self._alive[upstream].task_run.id)]
            for upstream in record.upstream
            if upstream in self._alive
        }
        if record.restarted is not None:
            failed = self._identity.task_run_id(record.operator, record.instance - 1)
            inputs["restart of"] = [TaskRunResult(id=failed)]
        return inputs

    def _end(self, operator: str, state: State[Any], at: datetime, now: float) -> ReportItem:
        run = self._alive.pop(operator)
        started = run.task_run.start_time
        run.task_run.end_time = at  # type: ignore[assignment] # pydantic's DateTime is a datetime
        if started is not None:
            run.task_run.total_run_time = at - started
        self._ended[run.task_run.id] = run
        while len(self._ended) > self._ended_kept:
            self._ended.popitem(last=False)
            self.evicted += 1
        return self._change_state(run, state.model_copy(update={"timestamp": at}), now)

    def _change_state(self, run: TrackedTaskRun, state: State[Any], now: float) -> ReportItem:
        before = run.state if run.states else None
        run.states.append(state)
        run.confirmed, run.sent_at, run.tries, run.sent_again = False, now, 0, False
        return task_run_event(run.task_run, before, state, self._related)


def task_run_of(identity: RunIdentity, record: Spawned, at: datetime) -> TaskRun:
    """The task run of an instance that starts at ``at``, without its inputs. The server need not have it."""
    return TaskRun(
        id=identity.task_run_id(record.operator, record.instance),
        name=instance_name(record.operator, record.instance),
        flow_run_id=identity.flow_run_id,
        task_key=f"{identity.pipeline}.{record.operator}",
        dynamic_key=f"{identity.attempt}-{record.instance}",
        tags=[record.role],
        run_count=1,
        flow_run_run_count=identity.attempt,
        expected_start_time=at,
        start_time=at,
    )


def instance_name(operator: str, instance: int) -> str:
    """``radar-01``, then ``radar-01 #2``."""
    return operator if instance == 1 else f"{operator} #{instance}"
