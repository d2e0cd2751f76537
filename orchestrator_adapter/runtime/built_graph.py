"""``BuiltGraph``: a wired plan that runs; it owns every task and carries the supervisor's decisions out.

Top to bottom: the run, one turn of the supervision loop, what an exit means for leases and edges, the two-phase shutdown,
the settlement at the end. Knows nothing of Prefect.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from typing import assert_never

from orchestrator_adapter.channels.channel import Undeliverable
from orchestrator_adapter.channels.ledger import Bookkeeping, LedgerSnapshot, OperatorAccount, snapshot
from orchestrator_adapter.graph.plan import Plan, Role
from orchestrator_adapter.primitives.clock import Clock, SystemClock
from orchestrator_adapter.primitives.decision import Decision
from orchestrator_adapter.primitives.errors import DuplicateRun, ReaderGone, RetryCutShort, Stalled, describe
from orchestrator_adapter.primitives.event_log import DecisionLog, call_hook, current_run, in_run, new_run_id
from orchestrator_adapter.primitives.metrics import LatencyHistogram, RateMeter
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.primitives.wakeup import Wakeup
from orchestrator_adapter.resilience.breaker import Breakers
from orchestrator_adapter.runtime.status import GraphStatus, operator_status
from orchestrator_adapter.runtime.wiring import GraphServices, Slot, wire
from orchestrator_adapter.storage.dead_letter import DeadLetterKind, DeadLetterList, DeadLetterStore
from orchestrator_adapter.storage.dead_letter_writer import DeadLetterWriter
from orchestrator_adapter.supervision import events, supervisor, task_exit
from orchestrator_adapter.supervision.events import (
    Decided,
    Escalated,
    Exited,
    RunFigures,
    ShuttingDown,
    Spawned,
    Straggler,
    SupervisionHooks,
    SupervisorEvent,
)
from orchestrator_adapter.supervision.progress import ProgressWatch
from orchestrator_adapter.supervision.task import Task
from orchestrator_adapter.supervision.task_exit import TaskExit
from orchestrator_adapter.supervision.watchdog import LoopStall, LoopWatchdog

_BLOCKING_THREADS = 4
_REPR_LIMIT = 200  # characters of a leased item's repr in a panic event
_BACKOFF_OF_GRACE = 0.1  # the longest backoff in a drain: several tries, and no spinning through the grace period
_RUNNING, _DRAINING, _ABORTING, _ABANDONING = range(4)  # the phases of a shutdown, as the specification numbers them


@dataclass(frozen=True, slots=True)
class SupervisionPolicy:
    """How a run is watched and how it ends.

    Attributes:
        grace: From the request to stop until what still runs is aborted, overall.
        patience: From an abort until what still runs is named as a straggler.
        loop_stall: An event loop that stands still for longer is logged and counted, with the operator that holds it;
            ``None`` for no watchdog. There is none on a clock that is not the machine's.
        done_when: Names of sinks: once all of them have ended by themselves, the graph is done (``AllOk``), whatever the
            sources still have. Empty: it is done when everything has ended.
    """

    grace: timedelta = timedelta(seconds=5)
    patience: timedelta = timedelta(seconds=1)
    loop_stall: timedelta | None = timedelta(milliseconds=250)
    done_when: frozenset[str] = frozenset()


@dataclass(slots=True)
class _Shutdown:
    """Where the two-phase shutdown stands."""

    phase: int = _RUNNING
    reason: str = ""
    deadline: float | None = None
    requested: bool = False  # somebody asked; a drain may also come of a verdict or of the end rule
    done: bool = False  # by the end rule: nobody asked, and nothing went wrong
    stragglers: dict[str, Straggler] = field(default_factory=dict)


class BuiltGraph:
    """A wired graph. ``await run()`` runs it once; ``request_shutdown()`` asks it to stop.

    Attributes:
        plan: What was built.
        clock: Its time.
        dead_letters: Where its dead letters go.
        run_id: The ``run`` of its log lines: the flow run's id under Prefect, else its name and the time it was built.
        event: How the run ended, once it has; also where ``run`` was itself cancelled and could not return it.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        dead_letters: DeadLetterStore | None = None,
    ) -> None:
        self.plan = plan
        self.clock = SystemClock() if clock is None else clock
        self.dead_letters = DeadLetterList() if dead_letters is None else dead_letters
        self.event: SupervisorEvent | None = None
        rng = random.Random() if rng is None else rng
        self.run_id = current_run() or new_run_id(plan.name)
        self._log = DecisionLog(plan.name, clock=self.clock, run=self.run_id)
        self._token = ShutdownToken()
        self._wakeup = Wakeup()
        self._supervisor = supervisor.Supervisor(rng)
        self._dead_letter_writer = DeadLetterWriter(self._log, self.dead_letters, self.clock)
        self._exits: deque[tuple[Task, TaskExit]] = deque()
        self._shutdown = _Shutdown()
        self._policy = SupervisionPolicy()
        self._hooks = SupervisionHooks()
        self._log.listener = lambda event, fields: call_hook(self._hooks.on_decision, Decided(event, fields))
        self._verdict: supervisor.TeardownCause | None = None
        self._problems: list[str] = []
        self._asked_early: list[str] = []  # reasons of the requests before the run
        self._executor: ThreadPoolExecutor | None = None
        self._watchdog: LoopWatchdog | None = None
        self._started_at: float | None = None
        self._breakers = Breakers(self._log, self.clock)
        services = GraphServices(
            self.clock, rng, self._token, self._dead_letter_writer, self._thread_pool, self._breakers
        )
        self._wiring = wire(plan, services)
        self._slots = self._wiring.slots
        for slot in self._slots.values():
            self._supervisor.watch(slot.name, slot.vertex.restart_policy, is_source=slot.vertex.role is Role.SOURCE)

    async def run(
        self, policy: SupervisionPolicy | None = None, *, hooks: SupervisionHooks | None = None
    ) -> SupervisorEvent:
        """Start every operator in topological order, supervise them to the end, and tell how it ended.

        Returns once every task has ended or is named as a straggler and every item is accounted for. Cancelling the
        caller asks for the shutdown (a second time: for the abort); the run ends as it would otherwise, ``event`` is
        set, and then the cancellation is passed on. Raises ``ValueError`` for an end rule that names no sink of the graph.
        """
        if self._started_at is not None:
            raise DuplicateRun(f"graph {self.plan.name!r} has run already; build() it again")
        self._policy = policy or self._policy
        self._hooks = hooks or self._hooks
        sinks = {slot.name for slot in self._slots.values() if slot.vertex.role is Role.SINK}
        if not self._policy.done_when <= sinks:
            raise ValueError(
                f"done_when: expected sinks of {sorted(sinks)}, got {sorted(self._policy.done_when - sinks)}"
            )
        self._started_at = self.clock.monotonic()
        for reason in self._asked_early:
            self.request_shutdown(reason)
        self._start_watchdog()
        try:
            with in_run(self.run_id):
                cancelled = await self._supervise()
        except BaseException:
            await self._abort_everything()
            raise
        finally:
            if self._watchdog is not None:
                self._watchdog.stop()
        self.event = self._settle()
        if cancelled is not None:
            raise cancelled
        return self.event

    def request_shutdown(self, reason: str) -> None:
        """Ask for the two-phase shutdown. A second request goes to its second phase at once.

        A graph that comes down by itself (its budget is spent, its sinks are done) goes on draining at the first request.
        Callable on the event loop at any time: before the run nothing is then taken in, after it nothing happens.
        """
        if self.event is not None:
            return
        if self._started_at is None:
            self._asked_early.append(reason)
            return
        again, self._shutdown.requested = self._shutdown.requested, True
        if self._shutdown.phase == _RUNNING:
            self._begin_drain(reason)
        elif self._shutdown.phase == _DRAINING:
            self._log(Decision.SHUTDOWN_AGAIN if again else Decision.SHUTDOWN_UNDER_WAY, reason=reason)
            if again:
                self._shutdown.deadline = self.clock.monotonic()
        self._wakeup.wake()

    @property
    def watchdog(self) -> LoopWatchdog | None:
        """Who watches the event loop of this run, if anybody does; what it says may be read from any thread."""
        return self._watchdog

    def status(self) -> GraphStatus:
        """The graph as it is now. Cheap enough for once a second; consistent, since it is taken between two steps."""
        restarts = {operator: history.total for operator, history in self._supervisor.restarts.items()}
        return GraphStatus(
            operators=tuple(
                operator_status(slot, self.clock, restarts=restarts.get(slot.name, 0)) for slot in self._slots.values()
            ),
            edges={edge: channel.statistics() for edge, channel in self._wiring.channels.items()},
            ledger=self.ledger(),
            latency=self._latency().summary(),
            breakers=self._breakers.statistics(),
            restarts=sum(restarts.values()),
            shutting_down=self._why_shutting_down(),
            verdict=None if self._verdict is None else str(self._verdict),
            loop_lag_s=self._watchdog.lag_s if self._watchdog is not None else 0.0,
            loop_stalls=self._watchdog.stalls if self._watchdog is not None else 0,
        )

    def ledger(self) -> LedgerSnapshot:
        """The ledger as it stands now."""
        held = sum(channel.occupancy for channel in self._wiring.channels.values())
        held += sum(sender.held for sender in self._wiring.senders)
        leased = {slot.name: sum(channel.leased for channel in slot.inputs) for slot in self._slots.values()}
        return snapshot((slot.account for slot in self._slots.values()), held=held, leased=leased)

    # The supervision loop.

    async def _supervise(self) -> BaseException | None:
        """Until everything has ended; returns the cancellation that came in between, if one did."""
        for slot in self._slots.values():
            self._spawn(slot, None)
        cancelled: BaseException | None = None
        while not self._finished():
            try:
                await self._wait()
            except BaseException as error:  # noqa: BLE001 - passed on by run(), when no task is left behind
                cancelled = error
                self.request_shutdown("run() was cancelled")
            self._turn()
        return cancelled

    async def _wait(self) -> None:
        if self._exits:
            return
        if (due := self._next_due()) is None:
            await self._wakeup.wait()
        else:
            await self._wakeup.wait_until(due, self.clock)

    def _next_due(self) -> float | None:
        """When something is to be done even if nobody wakes us."""
        now = self.clock.monotonic()
        due: list[float] = []
        for slot in self._slots.values():
            if slot.retired:
                continue  # a long chain ends one operator at a time: what has ended may cost next to nothing
            if slot.restart_at is not None:
                due.append(slot.restart_at)
            if slot.abort_by is not None:
                due.append(slot.abort_by)
            if slot.watch is not None and slot.abort_by is None and self._is_watched(slot):
                due.append(slot.watch.next_look(now))
        if self._shutdown.deadline is not None and self._shutdown.phase < _ABANDONING:
            due.append(self._shutdown.deadline)
        return min(due, default=None)

    def _turn(self) -> None:
        while self._exits:
            task, exit_ = self._exits.popleft()
            self._ended(self._slots[task.name], task, exit_)
        now = self.clock.monotonic()
        for slot in self._slots.values():
            if slot.restart_at is not None and now >= slot.restart_at:
                slot.restart_at = None
                self._spawn(slot, slot.restarted)
            elif slot.watch is not None and slot.task is not None and self._is_watched(slot):
                self._look_at_progress(slot, slot.task, slot.watch, now)
        deadline = self._shutdown.deadline
        if deadline is not None and now >= deadline and self._shutdown.phase < _ABANDONING:
            self._next_phase(now)

    def _finished(self) -> bool:
        waited_for = [slot for slot in self._slots.values() if not slot.retired]
        if self._shutdown.phase >= _ABANDONING:
            waited_for = [slot for slot in waited_for if slot.task is not None and not slot.task.is_alive()]
        return not waited_for

    def _spawn(self, slot: Slot, restarted: events.Restarted | None) -> None:
        slot.ends.instance += 1
        slot.abort_by = None
        if slot.vertex.role is Role.SOURCE and slot.services.ingest_rate is None:
            slot.services.ingest_rate = RateMeter(self.clock.monotonic())
        if slot.watch is not None:
            slot.watch.restart()

        async def body() -> None:
            await slot.ends.flush()  # what an earlier instance handed over and could not deliver
            await slot.vertex.factory(slot.ends)
            await slot.ends.flush()

        slot.task = Task(
            slot.name,
            body,
            clock=self.clock,
            restart_policy=slot.vertex.restart_policy,
            instance=slot.ends.instance,
            expected_errors=slot.vertex.expected_errors,
        )
        slot.task.start(self._noticed)
        self._log(Decision.SPAWN, operator=slot.name, instance=slot.ends.instance)
        call_hook(
            self._hooks.on_spawn,
            Spawned(slot.name, slot.ends.instance, slot.vertex.role.value, slot.upstream, restarted),
        )

    def _noticed(self, task: Task, exit_: TaskExit) -> None:
        self._exits.append((task, exit_))
        self._wakeup.wake()

    def _is_watched(self, slot: Slot) -> bool:
        """Whether its progress is looked at now: not once it is told to stop, or known not to."""
        alive = slot.task is not None and slot.task.is_alive()
        stopping = slot.leaving or self._shutdown.phase >= _ABORTING or slot.name in self._shutdown.stragglers
        return alive and not stopping

    def _look_at_progress(self, slot: Slot, task: Task, watch: ProgressWatch, now: float) -> None:
        """Abort an operator that hangs; one that does not heed that either is a straggler, and the graph comes down."""
        if slot.abort_by is None:
            if watch.stalled(
                now,
                acknowledged=slot.account.consumed,
                has_input=any(channel.occupancy for channel in slot.inputs),
                waits_for_room=slot.ends.waits_for_room,
            ):
                self._log(Decision.STALLED, operator=slot.name, instance=task.instance, stack=task.stack())
                slot.abort_by = now + self._policy.patience.total_seconds()
                task.abort(_stalled(watch))
        elif now >= slot.abort_by:
            slot.abort_by = None
            self._name_straggler(slot, task)
            error = Stalled(f"{_stalled(watch)}, and it would not stop when told to")
            self._bring_down(supervisor.TeardownCause(supervisor.Exhausted(error), slot.name))

    # What an exit means.

    def _ended(self, slot: Slot, task: Task, exit_: TaskExit) -> None:
        if slot.leaving:
            self._retire(slot)  # how it ended was told before; this was only the delivery of what it left
            return
        if slot.abort_by is not None and slot.watch is not None and isinstance(exit_, task_exit.Aborted):
            exit_ = task_exit.Errored(Stalled(_stalled(slot.watch)))
        slot.abort_by = None
        slot.exit = exit_
        # One that was named as a straggler and has stopped after all: the graph comes down for its sake already.
        was_straggler = self._shutdown.stragglers.pop(slot.name, None) is not None
        call_hook(self._hooks.on_exit, Exited(slot.name, task.instance, exit_, task.uptime()))
        repeated_pills, buried = self._settle_leases(slot, exit_)
        decision = self._supervisor.decide(
            slot.name,
            exit_,
            instance=task.instance,
            now=self.clock.monotonic(),
            uptime_s=task.uptime(),
            quarantined=repeated_pills,
            draining=self._token.is_set,
            aborting=was_straggler or self._shutdown.phase >= _ABORTING,
        )
        match decision:
            case supervisor.CloseOutputs():
                self._log(Decision.CLEAN_EXIT, operator=slot.name, instance=task.instance)
                self._retire(slot)
                self._apply_end_rule()
            case supervisor.NoAction():
                drained = Decision.EXIT_WHILE_DRAINING if self._token.is_set else Decision.NOT_WANTED
                name = Decision.ABORTED if isinstance(exit_, task_exit.Aborted) else drained
                self._log(name, operator=slot.name, instance=task.instance, exit=str(exit_))
                self._let_go(slot)
            case supervisor.Restart(restarted):
                self._log(
                    Decision.RESTART,
                    operator=slot.name,
                    instance=restarted.instance,
                    cause=restarted.cause,
                    charged=restarted.charged,
                    backoff_s=restarted.backoff_s,
                )
                call_hook(self._hooks.on_restart, restarted)
                slot.restarted = restarted
                slot.restart_at = self.clock.monotonic() + restarted.backoff_s
                if self._token.is_set:
                    self._hasten(slot, self._policy.grace.total_seconds() * _BACKOFF_OF_GRACE)
            case supervisor.Exhausted(error):
                self._log(Decision.BUDGET_EXHAUSTED, operator=slot.name, instance=task.instance, cause=describe(error))
                self._bring_down(supervisor.TeardownCause(decision, slot.name))
                self._let_go(slot)
            case supervisor.Escalate(panicked):
                self._log(
                    Decision.ESCALATE,
                    operator=slot.name,
                    instance=task.instance,
                    cause=panicked.message,
                    traceback=panicked.traceback,
                )
                self._bring_down(supervisor.TeardownCause(decision, slot.name, leased=buried))
                self._let_go(slot)
            case _:
                assert_never(decision)

    def _settle_leases(self, slot: Slot, exit_: TaskExit) -> tuple[int, tuple[str, ...]]:
        """Acknowledge, give back or bury what the instance held.

        Returns how many pills had cost a restart before, and what a panic held, for people.
        """
        repeated_pills = 0
        buried: tuple[str, ...] = ()
        match exit_:
            case task_exit.Ok():
                for receiver in slot.ends.receivers:
                    receiver.acknowledge(_done_with(receiver.channel.leased, slot.account))
                slot.account.settle()
            case task_exit.Errored(error) if supervisor.contains(error, ReaderGone) or (
                self._token.is_set and supervisor.consists_only_of(error, RetryCutShort)
            ):
                slot.account.lease_lost()  # not the items' fault, and there will be no other instance
            case task_exit.Errored(error):
                slot.account.lease_lost()
                for receiver in slot.ends.receivers:
                    pills = receiver.give_back(describe(error), slot.vertex.max_deliveries)
                    repeated_pills += sum(len(pill.history) > 1 for pill in pills)
                    slot.account.withdrawn(len(pills))
                    self._dead_letter_writer.write(slot.name, pills, DeadLetterKind.POISON_PILL, describe(error))
            case task_exit.Panicked(message):
                slot.account.lease_lost()
                leased = [item for channel in slot.inputs for item in channel.withdraw(leased_only=True)]
                slot.account.withdrawn(len(leased))
                self._dead_letter_writer.write(slot.name, leased, DeadLetterKind.PROCESSING_EXCEPTION, message)
                buried = tuple(_repr(held.item) for held in leased)
            case task_exit.Aborted():
                slot.account.lease_lost()
            case _:
                assert_never(exit_)
        return repeated_pills, buried

    def _bring_down(self, verdict: supervisor.TeardownCause) -> None:
        """The first verdict names the event; the graph drains as far as it can."""
        if self._verdict is None:
            self._verdict = verdict
            call_hook(self._hooks.on_escalate, Escalated(verdict.operator, verdict.kind, verdict.cause))
        if self._shutdown.phase == _RUNNING:
            self._begin_drain(f"{verdict.kind}: {verdict.operator}")

    def _let_go(self, slot: Slot) -> None:
        """The operator has ended for good: retire it, once what it had handed over is delivered to those who still read."""
        slot.restart_at = None
        if slot.ends.has_to_deliver and self._shutdown.phase < _ABORTING:
            slot.leaving = True
            self._turn_writers_away(slot)
            slot.task = Task(
                slot.name,
                slot.ends.deliver,
                clock=self.clock,
                restart_policy=slot.vertex.restart_policy,
                instance=slot.ends.instance,
            )
            slot.task.start(self._noticed)
        else:
            self._retire(slot)

    def _retire(self, slot: Slot) -> None:
        """The operator has ended for good: turn its writers away, end its readers' stream, bury what is stuck."""
        if slot.retired:
            return
        slot.retired = True
        slot.restart_at = None
        self._turn_writers_away(slot)
        for sender in slot.ends.senders:
            stuck = [Undeliverable(item, ()) for item in sender.withdraw_outbox()]
            slot.account.dead_lettered += len(stuck)
            self._dead_letter_writer.write_undelivered(slot.name, stuck, _why_ended(slot))
            sender.close()

    def _turn_writers_away(self, slot: Slot) -> None:
        """Nobody reads its inputs any more: bury what lies in them, and let their writers know."""
        done = self._has_all_it_wanted(slot)
        for receiver, channel in zip(slot.ends.receivers, slot.inputs, strict=True):
            left = channel.withdraw(leased_only=False)
            slot.account.withdrawn(len(left))
            self._dead_letter_writer.write_undelivered(slot.name, left, _why_ended(slot))
            receiver.leave(done=done)

    def _has_all_it_wanted(self, slot: Slot) -> bool:
        """By the end rule: it is a sink that is done, or all that it would write to have all they wanted."""
        if slot.ends.senders:
            return all(sender.channel.reader_done for sender in slot.ends.senders)
        return slot.name in self._policy.done_when and isinstance(slot.exit, task_exit.Ok)

    # Shutting down.

    def _apply_end_rule(self) -> None:
        sinks = self._policy.done_when
        if sinks and self._shutdown.phase == _RUNNING and all(self._slots[sink].retired for sink in sinks):
            self._shutdown.done = True
            self._begin_drain(f"done: {', '.join(sorted(sinks))}")

    def _begin_drain(self, reason: str) -> None:
        grace_s = self._policy.grace.total_seconds()
        self._shutdown.phase, self._shutdown.reason = _DRAINING, reason
        self._shutdown.deadline = self.clock.monotonic() + grace_s
        self._log(Decision.SHUTDOWN, phase=_DRAINING, reason=reason, grace_s=grace_s)
        call_hook(self._hooks.on_shutdown, ShuttingDown(_DRAINING, reason, grace_s))
        self._token.set(reason)
        for slot in self._slots.values():
            if slot.restart_at is not None:
                self._hasten(slot, 0.0)

    def _hasten(self, slot: Slot, at_most_s: float) -> None:
        """Nobody waits out a backoff in a drain: a source is not started again, everybody else is soon."""
        assert slot.restart_at is not None
        if slot.vertex.role is Role.SOURCE:
            self._let_go(slot)
        else:
            slot.restart_at = min(slot.restart_at, self.clock.monotonic() + at_most_s)

    def _next_phase(self, now: float) -> None:
        self._shutdown.phase += 1
        phase, reason = self._shutdown.phase, self._shutdown.reason
        call_hook(self._hooks.on_shutdown, ShuttingDown(phase, reason, self._policy.patience.total_seconds()))
        self._shutdown.deadline = now + self._policy.patience.total_seconds()
        for slot in self._slots.values():
            if slot.retired:
                continue
            if slot.restart_at is not None or slot.task is None:
                self._retire(slot)  # it waited for a restart that will not come
            elif not slot.task.is_alive():
                continue  # it has ended in this very turn of the loop: how, the next turn of ours will see
            elif phase == _ABORTING:
                if not slot.leaving:
                    self._log(Decision.ABORT, operator=slot.name, instance=slot.task.instance, reason=reason)
                slot.abort_by = None
                slot.task.abort(reason)
            else:
                self._name_straggler(slot, slot.task)

    def _name_straggler(self, slot: Slot, task: Task) -> None:
        if slot.name not in self._shutdown.stragglers:
            straggler = Straggler(slot.name, task.instance, task.stack())
            self._shutdown.stragglers[slot.name] = straggler
            self._log(Decision.STRAGGLER, operator=slot.name, instance=task.instance, stack=straggler.stack)

    async def _abort_everything(self) -> None:
        """The supervision itself has failed: a bug of ours. Nothing may be left running all the same."""
        alive = [slot.task for slot in self._slots.values() if slot.task is not None and slot.task.is_alive()]
        for task in alive:
            task.abort("the supervision failed")
        joins = [asyncio.ensure_future(task.join()) for task in alive]
        if joins:
            _, late = await asyncio.wait(joins, timeout=self._policy.patience.total_seconds())
            for join in late:
                join.cancel()
            await asyncio.gather(*joins, return_exceptions=True)

    def _settle(self) -> SupervisorEvent:
        """Everything has ended or is given up on: bury what is left, close what was kept, and name the event."""
        for slot in self._slots.values():
            if not slot.retired:
                slot.account.lease_lost()
                self._retire(slot)
        for channel in self._wiring.channels.values():
            # The books are closed: a straggler that goes on is turned away everywhere, and buries nothing.
            channel.reader_done = False
        for slot in reversed(self._slots.values()):
            if slot.name in self._shutdown.stragglers:
                # It may still use them, and closing under it could hang us with it (a disk that does not answer).
                self._problems.append(f"what {slot.name!r} kept was not closed: it has not stopped")
                continue
            self._problems += [
                f"closing what {slot.name!r} kept: {describe(error)}" for error in slot.ends.close_kept()
            ]
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
        stopped = self._shutdown.phase != _RUNNING and not self._shutdown.done
        figures = self._figures()
        event = supervisor.name_event(figures, self._verdict, self._shutdown.reason if stopped else None)
        self._log(
            Decision.ENDED,
            outcome=event.name,
            ledger=figures.ledger.as_dict(),
            ledger_holds=figures.ledger_holds,
            undelivered=figures.undelivered,
            problems=figures.problems,
        )
        for violation in figures.violations:
            self._log(Decision.LEDGER_VIOLATION, operator=violation.operator, message=str(violation))
        return event

    def _figures(self) -> RunFigures:
        assert self._started_at is not None
        slots = self._slots.values()
        watchdog = self._watchdog
        return RunFigures(
            restarts=self._supervisor.restarts,
            exits={slot.name: slot.exit for slot in slots if slot.exit is not None},
            stragglers=tuple(self._shutdown.stragglers.values()),
            ledger=self.ledger(),
            violations=tuple(slot.account.violation for slot in slots if slot.account.violation is not None),
            undelivered=self._dead_letter_writer.undelivered,
            problems=(*self._dead_letter_writer.problems, *self._problems),
            latency=self._latency().summary(),
            counters={slot.name: dict(slot.services.counters) for slot in slots if slot.services.counters},
            breakers=self._breakers.statistics(),
            elapsed_s=self.clock.monotonic() - self._started_at,
            loop_stalls=watchdog.stalls if watchdog is not None else 0,
            max_loop_lag_s=watchdog.max_lag_s if watchdog is not None else 0.0,
        )

    # Helpers.

    def _why_shutting_down(self) -> str | None:
        if self._shutdown.phase != _RUNNING:
            return self._shutdown.reason
        return self._asked_early[0] if self._asked_early else None

    def _latency(self) -> LatencyHistogram:
        merged = LatencyHistogram()
        for slot in self._slots.values():
            merged.merge(slot.services.latency)
        return merged

    def _start_watchdog(self) -> None:
        if self._policy.loop_stall is not None and isinstance(self.clock, SystemClock):
            self._watchdog = LoopWatchdog(self._loop_stalled, threshold=self._policy.loop_stall)
            self._watchdog.start()

    def _loop_stalled(self, stall: LoopStall) -> None:
        """On the watchdog's thread, while the loop stands still."""
        self._log(
            Decision.LOOP_STALL, operator=stall.operator, instance=stall.instance, lag_s=stall.lag_s, stack=stall.stack
        )

    def _thread_pool(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(_BLOCKING_THREADS, thread_name_prefix=f"{self.plan.name}-blocking")
        return self._executor


def _done_with(leased: int, account: OperatorAccount) -> int:
    """How many leased items an operator is done with that returned while it held them.

    The one item in its hands; of a batch, those that it has passed on or given an outcome. One that aggregates may have
    taken all of them in.
    """
    if leased <= 1 or account.bookkeeping is Bookkeeping.EXPANDING:
        return leased
    return min(leased, account.open)


def _why_ended(slot: Slot) -> str:
    return f"operator {slot.name!r} has ended for good ({slot.exit or 'never stopped'})"


def _stalled(watch: ProgressWatch) -> str:
    return f"no progress for {watch.timeout_s:g} s with input waiting"


def _repr(item: object) -> str:
    """An item for people, cut short; foreign code, so it may fail."""
    try:
        return repr(item)[:_REPR_LIMIT]
    except Exception as error:  # noqa: BLE001 - the supervisor must survive any item
        return f"<{type(item).__name__}, whose repr raised {type(error).__name__}>"
