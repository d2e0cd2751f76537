"""Operator instances as Prefect task runs: what each is, what has been told of it, and whether the server has it.

Pure: supervision records and the server's answers in, events out, times given. An instance's task run is *Running* while it
lives and ends in the state that its ``TaskExit`` deserves; a restart is a new task run, linked to the one that failed.

The book is level-triggered: whatever happened on the way (a server that was killed with the event in its memory, an outbox
that overflowed), the caller looks from time to time what the server has, and what is missing is told again.
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
from orchestrator_adapter.prefect_flow.recovery.outbox import Item
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from orchestrator_adapter.prefect_flow.states import task_state
from orchestrator_adapter.supervision.events import Exited, Spawned

_ENDED_KEPT = 10_000  # ended runs that the server has not confirmed; beyond it the oldest are given up


@dataclass(slots=True)
class TrackedTaskRun:
    """One task run and the states it went through.

    Attributes:
        task_run: As Prefect has it.
        upstream: The operators that it reads from.
        states: Oldest first; the last is the present one. Of those between, only what makes a difference is kept.
        confirmed: The server has the last one.
        sent_at: When it was last told, monotonic seconds.
        tries: How often the server was found not to have it.
        sent_again: The events of the last one have been sent a second time.
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
        """The present one."""
        return self.states[-1]


class TaskRunTracker:
    """Every task run that the server may not know the latest of.

    Attributes:
        forgotten: Ended task runs that were given up unconfirmed, because there were too many.
    """

    def __init__(self, identity: RunIdentity, *, ended_kept: int = _ENDED_KEPT) -> None:
        self.evicted = 0
        self._identity = identity
        self._related = identity.related()
        self._ended_kept = ended_kept
        self._alive: dict[str, TrackedTaskRun] = {}
        self._ended: OrderedDict[UUID, TrackedTaskRun] = OrderedDict()

    def spawned(self, record: Spawned, at: datetime, now: float) -> list[Item]:
        """An instance has started, at ``at``; ``now`` is monotonic, in seconds.

        Those that read from an operator that was restarted are told again, as reading from its new instance.
        """
        told = TrackedTaskRun(
            TaskRun(
                id=self._identity.task_run_id(record.operator, record.instance),
                name=instance_name(record.operator, record.instance),
                flow_run_id=self._identity.flow_run_id,
                task_key=f"{self._identity.pipeline}.{record.operator}",
                dynamic_key=f"{self._identity.attempt}-{record.instance}",
                tags=[record.role],
                task_inputs=self._task_inputs(record),
                run_count=1,
                flow_run_run_count=self._identity.attempt,
                expected_start_time=at,
                start_time=at,
            ),
            record.upstream,
        )
        self._alive[record.operator] = told
        items = [self._enter(told, Running(timestamp=at), now)]
        if record.restarted is not None:
            items += [
                self._relink(reader, record, at, now)
                for reader in self._alive.values()
                if record.operator in reader.upstream
            ]
        return items

    def exited(self, record: Exited, at: datetime, now: float) -> Item:
        """An instance has ended. It must have been spawned."""
        return self._end(record.operator, task_state(record.exit), at, now)

    def abandoned(self, at: datetime, now: float) -> list[Item]:
        """The run is over: who is still alive was asked to stop and did not."""
        return [
            self._end(operator, Crashed(message="a straggler: asked to stop, and it did not"), at, now)
            for operator in list(self._alive)
        ]

    def unconfirmed(self, *, sent_before: float) -> list[TrackedTaskRun]:
        """Those that the server ought to have by now, because they were told before then."""
        return [
            told
            for told in (*self._ended.values(), *self._alive.values())
            if not told.confirmed and told.sent_at <= sent_before
        ]

    @property
    def all_confirmed(self) -> bool:
        """Whether the server has the present state of every task run."""
        return not self._ended and all(told.confirmed for told in self._alive.values())

    def compare(
        self, asked: Iterable[TrackedTaskRun], answer: Mapping[UUID, State[Any] | None]
    ) -> list[TrackedTaskRun]:
        """Confirm those of ``asked`` that the server has, by its ``answer``; returns those it has not.

        A state on the server that is newer than ours is somebody else's word, and stands.
        """
        missing: list[TrackedTaskRun] = []
        for told in asked:
            theirs = answer.get(told.task_run.id)
            if theirs is not None and (theirs.id == told.state.id or theirs.timestamp > told.state.timestamp):
                self.confirm(told)
            else:
                told.tries += 1
                missing.append(told)
        return missing

    def confirm(self, told: TrackedTaskRun) -> None:
        """The server has it."""
        told.confirmed = True
        self._ended.pop(told.task_run.id, None)

    def events_of(self, told: TrackedTaskRun, now: float) -> list[Item]:
        """Everything there is to tell of it, once more."""
        told.sent_at = now
        before: list[State[Any] | None] = [None, *told.states[:-1]]
        return [
            task_run_event(told.task_run, was, is_, self._related) for was, is_ in zip(before, told.states, strict=True)
        ]

    def _relink(self, reader: TrackedTaskRun, record: Spawned, at: datetime, now: float) -> Item:
        """Draw the edge from the new instance instead of the one that failed, which leads to the new one."""
        reader.task_run.task_inputs[record.operator] = [
            TaskRunResult(id=self._identity.task_run_id(record.operator, record.instance))
        ]
        del reader.states[1:]  # earlier rewirings are history that nobody reads
        state: State[Any] = Running(message=f"reads {instance_name(record.operator, record.instance)}", timestamp=at)
        return self._enter(reader, state, now)

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

    def _end(self, operator: str, state: State[Any], at: datetime, now: float) -> Item:
        told = self._alive.pop(operator)
        started = told.task_run.start_time
        told.task_run.end_time = at  # type: ignore[assignment] # pydantic's DateTime is a datetime
        if started is not None:
            told.task_run.total_run_time = at - started
        self._ended[told.task_run.id] = told
        while len(self._ended) > self._ended_kept:
            self._ended.popitem(last=False)
            self.evicted += 1
        return self._enter(told, state.model_copy(update={"timestamp": at}), now)

    def _enter(self, told: TrackedTaskRun, state: State[Any], now: float) -> Item:
        before = told.state if told.states else None
        told.states.append(state)
        told.confirmed, told.sent_at, told.tries, told.sent_again = False, now, 0, False
        return task_run_event(told.task_run, before, state, self._related)


def instance_name(operator: str, instance: int) -> str:
    """``radar-01``, then ``radar-01 #2``."""
    return operator if instance == 1 else f"{operator} #{instance}"
