"""``OperatorRun``: one vertex over all its instances: its state, its task, its leases and its edges.

Carries out what ``SupervisionLoop`` decides. Does not know restart budgets, hooks, the log or other operators.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from contextvars import Context
from enum import StrEnum
from typing import assert_never

from orchestrator_adapter.channels.channel import Undeliverable
from orchestrator_adapter.channels.edge import Side, flush, readers_are_done
from orchestrator_adapter.channels.ledger import Bookkeeping, OperatorAccount
from orchestrator_adapter.graph.plan import Role, Vertex
from orchestrator_adapter.operators.ends import WiredEnds
from orchestrator_adapter.operators.pause import Pause
from orchestrator_adapter.operators.services import VertexServices
from orchestrator_adapter.primitives.errors import Failures, ReaderGone, Stalled, describe
from orchestrator_adapter.primitives.metrics import RateMeter
from orchestrator_adapter.primitives.stopwatch import Stopwatch
from orchestrator_adapter.storage.dead_letter import DeadLetterKind
from orchestrator_adapter.supervision import task_exit
from orchestrator_adapter.supervision.events import Restarted
from orchestrator_adapter.supervision.progress import ProgressWatch
from orchestrator_adapter.supervision.task import Task
from orchestrator_adapter.supervision.task_exit import TaskExit

_REPR_LIMIT = 200  # characters of a leased item's repr in a panic event


class OperatorState(StrEnum):
    """Where an operator is in its life."""

    WAITING = "waiting"
    """No instance has been started."""
    RUNNING = "running"
    """An instance runs, or it has ended and its exit is not processed yet."""
    STALLED = "stalled"
    """An instance was aborted because it made no progress; at ``due`` it becomes a straggler."""
    RESTARTING = "restarting"
    """The next instance starts at ``due``."""
    DELIVERING = "delivering"
    """The operator has ended for good, and a task delivers what its outboxes contain."""
    ENDED = "ended"
    """The operator has ended for good, its edges are closed and its account is final."""


_TRANSITIONS = {
    OperatorState.WAITING: {OperatorState.RUNNING, OperatorState.ENDED},
    OperatorState.RUNNING: set(OperatorState) - {OperatorState.WAITING, OperatorState.RUNNING},
    OperatorState.STALLED: set(OperatorState) - {OperatorState.WAITING, OperatorState.STALLED},
    OperatorState.RESTARTING: {OperatorState.RUNNING, OperatorState.DELIVERING, OperatorState.ENDED},
    OperatorState.DELIVERING: {OperatorState.ENDED},
    OperatorState.ENDED: set[OperatorState](),
}


class OperatorRun:
    """One vertex over all its instances.

    Attributes:
        vertex: The declaration.
        ends: What its instances receive.
        services: What the runtime lends it.
        inputs: The edges it reads.
        outputs: The edges it writes.
        watch: Its progress timeout, if it has one.
        state: Where it is in its life.
        due: When a restart is due, or when a stalled instance becomes a straggler; monotonic seconds.
        task: Its latest task.
        exit: How its latest ended instance ended.
        restarted: Why it is being restarted.
        ignored: It has failed for good, and its policy ignores that.
        failures: The failures of its instances.
        alive: For how long a task of it has run: an instance, or what delivers its outboxes.
        idle: For how long it has waited for input.
        blocked: For how long it has waited for space in its outputs.
    """

    def __init__(self, vertex: Vertex, *, inputs: Side, outputs: Side, services: VertexServices) -> None:
        self.vertex = vertex
        self.ends = WiredEnds(vertex.name, inputs=inputs, outputs=outputs, services=services)
        self.services = services
        if vertex.role is Role.SOURCE:
            services.pause = Pause(services.shutdown, inputs.waiting)
        self.inputs = tuple(inputs.edges)
        self.outputs = tuple(outputs.edges)
        timeout = vertex.progress_timeout
        self.watch = ProgressWatch(timeout.total_seconds()) if timeout is not None else None
        self.state = OperatorState.WAITING
        self.due: float | None = None
        self.task: Task | None = None
        self.exit: TaskExit | None = None
        self.restarted: Restarted | None = None
        self.ignored = False
        self.failures = Failures()
        self.alive = Stopwatch(services.clock)
        self.idle = inputs.waiting
        self.blocked = outputs.waiting
        self._space_available = outputs.wakeup

    @property
    def name(self) -> str:
        return self.vertex.name

    @property
    def account(self) -> OperatorAccount:
        """The operator's account."""
        return self.services.account

    @property
    def upstream(self) -> tuple[str, ...]:
        """The operators that write its inputs, by name."""
        return tuple(edge.writer.account.operator for edge in self.inputs)

    @property
    def has_ended(self) -> bool:
        """It has ended for good and its edges are closed."""
        return self.state is OperatorState.ENDED

    @property
    def waits_for_space(self) -> bool:
        """It is suspended because an output is full."""
        return self._space_available.awaited

    @property
    def readers_are_done(self) -> bool:
        """It has readers, and none of them needs more items."""
        return readers_are_done(self.outputs)

    def is_alive(self) -> bool:
        """Its latest task runs."""
        return self.task is not None and self.task.is_alive()

    # Transitions.

    def start(
        self, on_exit: Callable[[Task, TaskExit], None], context: Context | None = None, *, patience_s: float = 1.0
    ) -> Task:
        """Start the next instance, in ``context`` if it is given. Its tasks must end within ``patience_s`` of its end."""
        self._enter(OperatorState.RUNNING)
        self.ends.instance += 1
        self.services.blocking.instance = self.ends.instance
        if self.vertex.role is Role.SOURCE and self.services.ingest_rate is None:
            self.services.ingest_rate = RateMeter(self.services.clock.monotonic())
        if self.watch is not None:
            self.watch.restart()

        async def body() -> None:
            await self.ends.flush()  # what an earlier instance offered and could not deliver
            await self.vertex.factory(self.ends)
            await self.ends.flush()

        self.task = Task(
            self.name,
            body,
            clock=self.services.clock,
            restart_policy=self.vertex.restart_policy,
            instance=self.ends.instance,
            expected_errors=self.vertex.expected_errors,
            patience_s=patience_s,
            owner=self.services.shutdown,
        )
        self.services.start_helper = self.task.start_helper

        def ended(task: Task, exit_: TaskExit) -> None:
            self.services.start_helper = None
            on_exit(task, exit_)

        self._start_task(self.task, ended, context)
        return self.task

    def _start_task(
        self, task: Task, on_exit: Callable[[Task, TaskExit], None], context: Context | None = None
    ) -> None:
        def ended(task: Task, exit_: TaskExit) -> None:
            self.alive.stop()
            on_exit(task, exit_)

        self.alive.start()
        task.start(ended, context)

    def has_stalled(self, now: float) -> bool:
        """Whether the running instance has made no progress for its progress timeout."""
        return self.watch is not None and self.watch.stalled(
            now,
            acknowledged=self.account.consumed + self.account.signals_in,
            has_input=any(edge.channel.occupancy or edge.channel.signals for edge in self.inputs),
            waits_for_space=self.waits_for_space,
        )

    def abort_stalled(self, task: Task, straggler_at: float) -> None:
        """Abort an instance that has stalled. At ``straggler_at`` it is a straggler."""
        self._enter(OperatorState.STALLED, straggler_at)
        task.abort(self.stall_message)

    def stop_waiting_for_stalled(self) -> None:
        """A stalled instance is now a straggler, or is aborted for another reason."""
        if self.state is OperatorState.STALLED:
            self._enter(OperatorState.RUNNING)

    @property
    def stall_message(self) -> str:
        """Why a stalled instance is aborted."""
        assert self.watch is not None
        return f"no progress for {self.watch.timeout_s:g} s with input waiting"

    def record_exit(self, exit_: TaskExit) -> TaskExit:
        """Record how an instance has ended. The abort of a stalled instance is an error, not an abort."""
        if self.state is OperatorState.STALLED and isinstance(exit_, task_exit.Aborted):
            exit_ = task_exit.Errored(Stalled(self.stall_message))
        self.exit = exit_
        return exit_

    def record_failure(self, error: BaseException) -> None:
        """An instance has failed with ``error``, and that was not part of a shutdown."""
        self.failures.record(error, self.services.clock.now_ns())

    def restart_at(self, restarted: Restarted, due: float) -> None:
        """Start the next instance at ``due``."""
        self.restarted = restarted
        self._enter(OperatorState.RESTARTING, due)

    def release(self, on_exit: Callable[[Task, TaskExit], None], *, deliver: bool, done: bool) -> None:
        """The operator has ended for good: deliver what its outboxes contain (if ``deliver``), then finish.

        ``done`` says that it needs no more items.
        """
        if not (deliver and any(edge.outbox and not edge.channel.reader_gone for edge in self.outputs)):
            self.finish(done=done)
            return
        self._enter(OperatorState.DELIVERING)
        self._close_inputs(done=done)
        self.task = Task(
            self.name,
            self._deliver,
            clock=self.services.clock,
            restart_policy=self.vertex.restart_policy,
            instance=self.ends.instance,
        )
        self._start_task(self.task, on_exit)

    def finish(self, *, done: bool) -> None:
        """The operator has ended for good: close its inputs, dead-letter its outboxes and close its outputs."""
        if self.has_ended:
            return
        self._enter(OperatorState.ENDED)
        self._close_inputs(done=done)
        for edge in self.outputs:
            stuck = [Undeliverable(item, ()) for item in edge.withdraw_outbox()]
            self.account.dead_lettered += len(stuck)
            self.services.dead_letter_writer.write_undelivered(self.name, stuck, self._why_ended)
            edge.close()

    def _enter(self, state: OperatorState, due: float | None = None) -> None:
        assert state in _TRANSITIONS[self.state], f"operator {self.name!r}: {self.state} -> {state}"
        self.state = state
        self.due = due

    # Leases and edges.

    def settle_leases(self, exit_: TaskExit, *, returns: bool) -> tuple[int, tuple[str, ...]]:
        """Acknowledge, return or dead-letter the leased items of the instance that has ended with ``exit_``.

        With ``returns=False`` the items of a failed instance stay leased: no other instance will follow. Returns how many
        poison pills had already cost a restart, and the reprs of the items that a panic had leased.
        """
        match exit_:
            case task_exit.Ok():
                for edge in self.inputs:
                    edge.acknowledge(_processed(edge.channel.leased, self.account))
                self.account.settle()
                return 0, ()
            case task_exit.Errored(error):
                self.account.lease_lost()
                return (self._return_leases(describe(error)) if returns else 0), ()
            case task_exit.Panicked(message):
                self.account.lease_lost()
                leased = [item for edge in self.inputs for item in edge.channel.withdraw(leased_only=True)]
                self.account.withdrawn(len(leased))
                writer = self.services.dead_letter_writer
                writer.write(self.name, leased, DeadLetterKind.PROCESSING_EXCEPTION, message)
                return 0, tuple(_repr(undeliverable.item) for undeliverable in leased)
            case task_exit.Aborted():
                self.account.lease_lost()
                return 0, ()
            case _:
                assert_never(exit_)

    def _return_leases(self, failure: str) -> int:
        repeated_pills = 0
        for edge in self.inputs:
            pills = edge.return_leases(failure, self.vertex.max_deliveries)
            repeated_pills += sum(len(pill.history) > 1 for pill in pills)
            self.account.withdrawn(len(pills))
            self.services.dead_letter_writer.write(self.name, pills, DeadLetterKind.POISON_PILL, failure)
        return repeated_pills

    def _close_inputs(self, *, done: bool) -> None:
        for edge in self.inputs:
            unread = edge.channel.withdraw(leased_only=False)
            self.account.withdrawn(len(unread))
            self.services.dead_letter_writer.write_undelivered(self.name, unread, self._why_ended)
            if spilled := edge.leave_spilled():
                self.account.withdrawn(spilled.count)
                in_memory = [Undeliverable(item, ()) for item in spilled.items]
                self.services.dead_letter_writer.write_undelivered(self.name, in_memory, self._why_ended)
                self.services.dead_letter_writer.write_undelivered_files(self.name, spilled.files, self._why_ended)
            edge.finish(done=done, ignored=not done and self.vertex.restart_policy.ignores)

    async def _deliver(self) -> None:
        """Flush every outbox whose reader has not ended."""
        while pending := [edge for edge in self.outputs if edge.outbox and not edge.channel.reader_gone]:
            with suppress(ReaderGone):  # a reader has ended while this waited: go on with the others
                await flush(pending, self._space_available, self.services.clock)

    @property
    def _why_ended(self) -> str:
        return f"operator {self.name!r} has ended for good ({self.exit or 'never stopped'})"


def _processed(leased: int, account: OperatorAccount) -> int:
    """How many of its ``leased`` items an operator has processed that returned without acknowledging them.

    A single item, or of a batch those that it has passed on or given an outcome. An operator that aggregates may have
    taken in all of them.
    """
    if leased <= 1 or account.bookkeeping is Bookkeeping.EXPANDING:
        return leased
    return min(leased, account.open)


def _repr(item: object) -> str:
    """The item's repr, truncated. It is foreign code, so it may raise."""
    try:
        return repr(item)[:_REPR_LIMIT]
    except Exception as error:  # noqa: BLE001 - the supervisor must survive any item
        return f"<{type(item).__name__}, whose repr raised {type(error).__name__}>"
