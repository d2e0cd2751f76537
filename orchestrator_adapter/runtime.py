"""``BuiltGraph``: a plan with its channels, books and tasks; it carries the supervisor's decisions out.

Top to bottom: wiring (passes 3 and 4 of ``build``), the supervision loop, what an exit means for leases and edges,
the two-phase shutdown, the final settlement. Knows nothing of Prefect.
"""

from __future__ import annotations

import json
import random
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any, assert_never

from orchestrator_adapter import events, supervisor, task_exit
from orchestrator_adapter.channel import Channel, EdgeStatistics, Undeliverable
from orchestrator_adapter.clock import Clock, SystemClock
from orchestrator_adapter.dead_letter import DeadLetter, DeadLetterGate, DeadLetterKind, DeadLetterList, DeadLetterStore
from orchestrator_adapter.ends import Receiver, Sender, VertexServices, WiredEnds
from orchestrator_adapter.errors import DuplicateRun, OrchestratorError
from orchestrator_adapter.events import (
    Escalated,
    Exited,
    RunFigures,
    ShuttingDown,
    Spawned,
    Straggler,
    SupervisionHooks,
    SupervisorEvent,
    tell,
)
from orchestrator_adapter.graph import Edge, Plan, Role, Vertex
from orchestrator_adapter.ledger import LedgerSnapshot, OperatorAccount, snapshot
from orchestrator_adapter.metrics import LatencyHistogram, LatencySummary
from orchestrator_adapter.task import Task
from orchestrator_adapter.task_exit import TaskExit
from orchestrator_adapter.wakeup import ShutdownToken, Wakeup

_BLOCKING_THREADS = 4
_REPR_LIMIT = 200  # characters of a leased item's repr in a panic event


@dataclass(frozen=True, slots=True)
class SupervisionPolicy:
    """How a run ends.

    Attributes:
        grace: From the request to stop until what still runs is aborted, overall.
        patience: From the abort until what still runs is named as a straggler.
    """

    grace: timedelta = timedelta(seconds=5)
    patience: timedelta = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class OperatorStatus:
    """One operator at one moment. ``state`` is waiting, running, restarting or how it ended."""

    name: str
    role: Role
    state: str
    instance: int
    uptime_s: float
    consumed: int
    emitted: int
    ended_for_good: bool
    counters: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class GraphStatus:
    """A running graph at one moment: for progress lines, status tables and tests."""

    operators: tuple[OperatorStatus, ...]
    edges: Mapping[str, EdgeStatistics]
    ledger: LedgerSnapshot
    latency: LatencySummary | None
    restarts: int


@dataclass(slots=True)
class _Slot:
    """One vertex with all that belongs to it."""

    vertex: Vertex
    ends: WiredEnds
    account: OperatorAccount
    services: VertexServices
    inputs: list[Channel[Any]]
    outputs: list[Channel[Any]]
    upstream: tuple[str, ...]
    task: Task | None = None
    exit: TaskExit | None = None
    restart_at: float | None = None
    restarted: events.Restarted | None = None
    retired: bool = False

    @property
    def name(self) -> str:
        return self.vertex.name


@dataclass(slots=True)
class _Shutdown:
    """Where the two-phase shutdown stands. Phase 0: nobody asked yet."""

    phase: int = 0
    reason: str = ""
    deadline: float | None = None
    stragglers: list[Straggler] = field(default_factory=list)


class BuiltGraph:
    """A wired graph. ``await run()`` runs it once; ``request_shutdown()`` asks it to stop."""

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
        self._rng = random.Random() if rng is None else rng
        self._token = ShutdownToken()
        self._wakeup = Wakeup(f"supervisor of {plan.name!r}")
        self._supervisor = supervisor.Supervisor(self._rng)
        self._exits: deque[tuple[Task, TaskExit]] = deque()
        self._shutdown = _Shutdown()
        self._policy = SupervisionPolicy()
        self._hooks = SupervisionHooks()
        self._verdict: supervisor.Exhausted | supervisor.Escalate | None = None
        self._verdict_operator = ""
        self._verdict_leased: tuple[str, ...] = ()
        self._undelivered = 0
        self._problems: list[str] = []
        self._executor: ThreadPoolExecutor | None = None
        self._started_at: float | None = None
        self.event: SupervisorEvent | None = None
        """How the run ended, once it has; also where ``run`` itself was cancelled and could not return it."""
        self._channels: dict[str, Channel[Any]] = {}
        self._senders: list[Sender[Any]] = []
        self._slots = self._wire(plan)

    # Passes 3 and 4: every channel, then every operator with its ends.

    def _wire(self, plan: Plan) -> dict[str, _Slot]:
        arrivals = {vertex.name: Wakeup(f"input of {vertex.name!r}") for vertex in plan.order}
        departures = {vertex.name: Wakeup(f"output of {vertex.name!r}") for vertex in plan.order}
        accounts = {vertex.name: OperatorAccount(vertex.name, vertex.bookkeeping) for vertex in plan.order}
        readers: dict[str, list[tuple[Edge, Receiver[Any]]]] = {vertex.name: [] for vertex in plan.order}
        writers: dict[str, list[tuple[Edge, Sender[Any]]]] = {vertex.name: [] for vertex in plan.order}
        for edge in plan.edges:
            up, down = edge.upstream.name, edge.downstream.name
            channel: Channel[Any] = Channel(edge.id, edge.capacity)
            edge_id = edge.id if edge.id not in self._channels else f"{edge.id} ({len(self._channels)})"
            self._channels[edge_id] = channel
            receiver = Receiver(channel, accounts[down], arrivals=arrivals[down], departures=departures[up])
            sender = Sender(
                channel,
                edge.policy,
                accounts[up],
                arrivals=arrivals[down],
                departures=departures[up],
                clock=self.clock,
                bury=partial(self._bury_timed_out, up),
            )
            readers[down].append((edge, receiver))
            writers[up].append((edge, sender))
            self._senders.append(sender)
        slots: dict[str, _Slot] = {}
        for vertex in plan.order:
            name = vertex.name
            services = VertexServices(
                clock=self.clock,
                rng=self._rng,
                shutdown=self._token,
                dead_letters=self.dead_letters,
                account=accounts[name],
                executor=self._thread_pool,
                gate=DeadLetterGate(vertex.dead_letter_limits),
                latency=LatencyHistogram(),
            )
            inputs, outputs = readers.pop(name), writers.pop(name)
            slots[name] = _Slot(
                vertex=vertex,
                ends=WiredEnds(
                    name,
                    [receiver for _, receiver in inputs],
                    [sender for _, sender in outputs],
                    services,
                    arrivals=arrivals[name],
                    departures=departures[name],
                ),
                account=accounts[name],
                services=services,
                inputs=[receiver.channel for _, receiver in inputs],
                outputs=[sender.channel for _, sender in outputs],
                upstream=tuple(edge.upstream.name for edge, _ in inputs),
            )
            self._supervisor.watch(name, vertex.restart_policy, is_source=vertex.role is Role.SOURCE)
        if readers or writers:
            raise OrchestratorError(f"ends left over after wiring: {sorted({*readers, *writers})}")
        return slots

    # Running.

    async def run(
        self, policy: SupervisionPolicy | None = None, *, hooks: SupervisionHooks | None = None
    ) -> SupervisorEvent:
        """Start every operator in topological order, supervise them to the end, and tell how it ended.

        Returns once every task has ended or is named as a straggler and every item is accounted for. Cancelling the
        caller asks for the shutdown (a second time: for the abort); the run ends as it would otherwise, ``event`` is
        set, and then the cancellation is passed on.
        """
        if self._started_at is not None:
            raise DuplicateRun(f"graph {self.plan.name!r} has run already; build() it again")
        self._policy = policy or self._policy
        self._hooks = hooks or self._hooks
        self._started_at = self.clock.monotonic()
        for slot in self._slots.values():
            self._spawn(slot, None)
        cancelled: BaseException | None = None
        while not self._finished():
            try:
                await self._wait()
            except BaseException as error:  # noqa: BLE001 - passed on below, when no task is left behind
                cancelled = error
                self.request_shutdown("run() was cancelled")
            self._turn()
        self.event = self._settle()
        if cancelled is not None:
            raise cancelled
        return self.event

    def request_shutdown(self, reason: str) -> None:
        """Ask for the two-phase shutdown. A second request goes to its second phase at once.

        Callable on the event loop at any time: before the run nothing is then taken in, after it nothing happens.
        """
        if self.event is not None:
            return
        if self._shutdown.phase == 0:
            self._begin_drain(reason)
        elif self._shutdown.phase == 1:
            self._shutdown.deadline = self.clock.monotonic()
        self._wakeup.wake()

    def status(self) -> GraphStatus:
        """The graph as it is now. Cheap enough for once a second; consistent, since it is taken between two steps."""
        return GraphStatus(
            operators=tuple(self._operator_status(slot) for slot in self._slots.values()),
            edges={edge: channel.statistics() for edge, channel in self._channels.items()},
            ledger=self.ledger(),
            latency=self._latency().summary(),
            restarts=sum(history.total for history in self._supervisor.restarts.values()),
        )

    def ledger(self) -> LedgerSnapshot:
        """The ledger as it stands now."""
        held = sum(channel.occupancy for channel in self._channels.values())
        held += sum(sender.held for sender in self._senders)
        return snapshot((slot.account for slot in self._slots.values()), held=held)

    # One turn of the supervision loop.

    def _turn(self) -> None:
        while self._exits:
            task, exit_ = self._exits.popleft()
            self._ended(self._slots[task.name], task, exit_)
        now = self.clock.monotonic()
        for slot in self._slots.values():
            if slot.restart_at is not None and now >= slot.restart_at:
                slot.restart_at = None
                self._spawn(slot, slot.restarted)
        if self._shutdown.phase < 3 and self._shutdown.deadline is not None and now >= self._shutdown.deadline:  # noqa: PLR2004
            self._next_phase(now)

    async def _wait(self) -> None:
        if self._exits:
            return
        due = [slot.restart_at for slot in self._slots.values() if slot.restart_at is not None]
        if self._shutdown.phase < 3 and self._shutdown.deadline is not None:  # noqa: PLR2004 - as in _finished
            due.append(self._shutdown.deadline)
        if due:
            await self._wakeup.wait_until(min(due), self.clock)
        else:
            await self._wakeup.wait()

    def _finished(self) -> bool:
        waited_for = [slot for slot in self._slots.values() if not slot.retired]
        if self._shutdown.phase >= 3:  # noqa: PLR2004 - the phases are numbered in the specification
            waited_for = [slot for slot in waited_for if slot.task is not None and not slot.task.is_alive()]
        return not waited_for

    def _spawn(self, slot: _Slot, restarted: events.Restarted | None) -> None:
        slot.ends.instance += 1

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
        self._log("spawn", operator=slot.name, instance=slot.ends.instance)
        tell(
            self._hooks.on_spawn,
            Spawned(slot.name, slot.ends.instance, slot.vertex.role.value, slot.upstream, restarted),
        )

    def _noticed(self, task: Task, exit_: TaskExit) -> None:
        self._exits.append((task, exit_))
        self._wakeup.wake()

    # What an exit means.

    def _ended(self, slot: _Slot, task: Task, exit_: TaskExit) -> None:
        slot.exit = exit_
        tell(self._hooks.on_exit, Exited(slot.name, task.instance, exit_, task.uptime()))
        repeated_pills = self._settle_leases(slot, exit_)
        decision = self._supervisor.decide(
            slot.name,
            exit_,
            instance=task.instance,
            now=self.clock.monotonic(),
            uptime_s=task.uptime(),
            quarantined=repeated_pills,
            draining=self._token.is_set,
        )
        match decision:
            case supervisor.CloseOutputs():
                self._log("clean_exit", operator=slot.name, instance=task.instance)
                self._retire(slot)
            case supervisor.Record():
                name = "aborted" if isinstance(exit_, task_exit.Aborted) else "exit_while_draining"
                self._log(name, operator=slot.name, instance=task.instance, exit=str(exit_))
                self._retire(slot)
            case supervisor.Restart(restarted):
                if self._shutdown.phase >= 2:  # noqa: PLR2004 - the phases are numbered in the specification
                    self._retire(slot)
                    return
                self._log(
                    "restart",
                    operator=slot.name,
                    instance=restarted.instance,
                    cause=restarted.cause,
                    charged=restarted.charged,
                    backoff_s=restarted.backoff_s,
                )
                tell(self._hooks.on_restart, restarted)
                slot.restarted = restarted
                slot.restart_at = self.clock.monotonic() + restarted.backoff_s
            case supervisor.Exhausted(error):
                cause = task_exit.describe(error)
                self._log("budget_exhausted", operator=slot.name, instance=task.instance, cause=cause)
                self._bring_down(slot, decision, "BudgetExhausted", cause)
            case supervisor.Escalate(panicked):
                self._log(
                    "escalate",
                    operator=slot.name,
                    instance=task.instance,
                    cause=panicked.message,
                    traceback=panicked.traceback,
                )
                self._bring_down(slot, decision, "Panicked", panicked.message)
            case _:
                assert_never(decision)

    def _settle_leases(self, slot: _Slot, exit_: TaskExit) -> int:
        """Acknowledge, give back or bury what the instance held. Returns the pills that had cost a restart before."""
        repeated_pills = 0
        match exit_:
            case task_exit.Ok():
                for receiver in slot.ends.receivers:
                    receiver.acknowledge()
                slot.account.settle()
            case task_exit.Errored(error):
                slot.account.lease_lost()
                for receiver in slot.ends.receivers:
                    pills = receiver.give_back(task_exit.describe(error), slot.vertex.max_deliveries)
                    repeated_pills += sum(len(pill.history) > 1 for pill in pills)
                    slot.account.withdrawn(len(pills))
                    self._bury(slot.name, pills, DeadLetterKind.POISON_PILL, task_exit.describe(error))
            case task_exit.Panicked(message):
                slot.account.lease_lost()
                leased = [item for channel in slot.inputs for item in channel.withdraw(leased_only=True)]
                slot.account.withdrawn(len(leased))
                self._bury(slot.name, leased, DeadLetterKind.PROCESSING_EXCEPTION, message)
                if self._verdict is None:
                    self._verdict_leased = tuple(_repr(held.item) for held in leased)
            case task_exit.Aborted():
                slot.account.lease_lost()
            case _:
                assert_never(exit_)
        return repeated_pills

    def _bring_down(
        self, slot: _Slot, verdict: supervisor.Exhausted | supervisor.Escalate, kind: str, cause: str
    ) -> None:
        if self._verdict is None:
            self._verdict, self._verdict_operator = verdict, slot.name
            tell(self._hooks.on_escalate, Escalated(slot.name, kind, cause))
        self._retire(slot)
        if self._shutdown.phase == 0:
            self._begin_drain(f"{kind}: {slot.name}")

    def _retire(self, slot: _Slot) -> None:
        """The operator has ended for good: end its readers' stream, turn its writers away, bury what is stuck."""
        if slot.retired:
            return
        slot.retired = True
        slot.restart_at = None
        why = f"operator {slot.name!r} has ended for good ({slot.exit or 'never stopped'})"
        for sender in slot.ends.senders:
            stuck = [Undeliverable(item, ()) for item in sender.withdraw_outbox()]
            slot.account.dead_lettered += len(stuck)
            self._bury_undelivered(slot.name, stuck, why)
            sender.close()
        for receiver, channel in zip(slot.ends.receivers, slot.inputs, strict=True):
            left = channel.withdraw(leased_only=False)
            slot.account.withdrawn(len(left))
            self._bury_undelivered(slot.name, left, why)
            receiver.leave()

    # Shutting down.

    def _begin_drain(self, reason: str) -> None:
        grace_s = self._policy.grace.total_seconds()
        self._shutdown.phase, self._shutdown.reason = 1, reason
        self._shutdown.deadline = self.clock.monotonic() + grace_s
        self._log("shutdown", phase=1, reason=reason, grace_s=grace_s)
        tell(self._hooks.on_shutdown, ShuttingDown(1, reason, grace_s))
        self._token.set(reason)
        for slot in self._slots.values():
            if slot.restart_at is not None:  # nobody waits out a backoff while the graph drains
                if slot.vertex.role is Role.SOURCE:
                    self._retire(slot)
                else:
                    slot.restart_at = self.clock.monotonic()

    def _next_phase(self, now: float) -> None:
        self._shutdown.phase += 1
        phase, reason = self._shutdown.phase, self._shutdown.reason
        tell(self._hooks.on_shutdown, ShuttingDown(phase, reason, self._policy.patience.total_seconds()))
        self._shutdown.deadline = now + self._policy.patience.total_seconds()
        for slot in self._slots.values():
            if slot.retired:
                continue
            if slot.restart_at is not None or slot.task is None:
                self._retire(slot)  # it waited for a restart that will not come
            elif not slot.task.is_alive():
                continue  # it has ended in this very turn of the loop: how, the next turn of ours will see
            elif phase == 2:  # noqa: PLR2004 - the phases are numbered in the specification
                self._log("abort", operator=slot.name, instance=slot.task.instance, reason=reason)
                slot.task.abort(reason)
            else:
                straggler = Straggler(slot.name, slot.task.instance, slot.task.stack())
                self._shutdown.stragglers.append(straggler)
                self._log("straggler", operator=slot.name, instance=slot.task.instance, stack=straggler.stack)

    def _settle(self) -> SupervisorEvent:
        """Everything has ended or is given up on: bury what is left, close what was kept, and name the event."""
        for slot in self._slots.values():
            if not slot.retired:
                slot.account.lease_lost()
                self._retire(slot)
        for slot in reversed(self._slots.values()):
            self._problems += [
                f"closing what {slot.name!r} kept: {task_exit.describe(error)}" for error in slot.ends.close_kept()
            ]
        if self._executor is not None:
            self._executor.shutdown(wait=False, cancel_futures=True)
        event = self._name_event()
        ledger = event.figures.ledger
        self._log(
            "ended",
            outcome=type(event).__name__,
            ledger=ledger.as_dict(),
            ledger_holds=event.figures.ledger_holds,
            undelivered=self._undelivered,
            problems=self._problems,
        )
        for violation in event.figures.violations:
            self._log("ledger_violation", operator=violation.operator, message=str(violation))
        return event

    def _name_event(self) -> SupervisorEvent:
        assert self._started_at is not None
        slots = self._slots.values()
        figures = RunFigures(
            restarts=self._supervisor.restarts,
            exits={slot.name: slot.exit for slot in slots if slot.exit is not None},
            stragglers=tuple(self._shutdown.stragglers),
            ledger=self.ledger(),
            violations=tuple(slot.account.violation for slot in slots if slot.account.violation is not None),
            undelivered=self._undelivered,
            problems=tuple(self._problems),
            latency=self._latency().summary(),
            counters={slot.name: dict(slot.services.counters) for slot in slots if slot.services.counters},
            elapsed_s=self.clock.monotonic() - self._started_at,
        )
        match self._verdict:
            case None if self._shutdown.phase == 0:
                return events.AllOk(figures)
            case None:
                return events.ShutDown(figures, self._shutdown.reason)
            case supervisor.Exhausted(error):
                return events.BudgetExhausted(figures, self._verdict_operator, task_exit.cause_chain(error), error)
            case supervisor.Escalate(panicked):
                return events.Panicked(
                    figures,
                    self._verdict_operator,
                    task_exit.cause_chain(panicked.error),
                    panicked.error,
                    panicked.traceback,
                    self._verdict_leased,
                )

    # Helpers.

    def _bury_timed_out(self, operator: str, why: str, items: Sequence[Undeliverable[Any]]) -> None:
        slot = self._slots[operator]
        slot.account.dead_lettered += len(items)
        slot.ends.log_bounded(str(DeadLetterKind.UNDELIVERED), why)
        self._keep_letters(operator, items, DeadLetterKind.UNDELIVERED, why)

    def _bury_undelivered(self, operator: str, items: Sequence[Undeliverable[Any]], why: str) -> None:
        self._undelivered += len(items)
        self._bury(operator, items, DeadLetterKind.UNDELIVERED, why)

    def _bury(self, operator: str, items: Sequence[Undeliverable[Any]], kind: DeadLetterKind, message: str) -> None:
        if items:
            self._log("dead_letter", operator=operator, kind=str(kind), items=len(items), message=message)
            self._keep_letters(operator, items, kind, message)

    def _keep_letters(
        self, operator: str, items: Sequence[Undeliverable[Any]], kind: DeadLetterKind, message: str
    ) -> None:
        now_ns = self.clock.now_ns()
        letters = [
            DeadLetter(
                time_ns=now_ns,
                operator=operator,
                kind=kind,
                message=message,
                attempts=len(held.history),
                payload=held.item,
                history=held.history,
            )
            for held in items
        ]
        try:
            self.dead_letters.append(letters)
        except Exception as error:  # noqa: BLE001 - a store is foreign code; no task may be left behind for its sake
            problem = (
                f"{len(items)} items of {operator!r} could not be kept as dead letters: {task_exit.describe(error)}"
            )
            self._problems.append(problem)
            self._log("dead_letters_lost", operator=operator, items=len(items), cause=task_exit.describe(error))

    def _latency(self) -> LatencyHistogram:
        merged = LatencyHistogram()
        for slot in self._slots.values():
            merged.merge(slot.services.latency)
        return merged

    def _operator_status(self, slot: _Slot) -> OperatorStatus:
        if slot.retired:
            state = type(slot.exit).__name__.lower() if slot.exit is not None else "straggler"
        elif slot.restart_at is not None:
            state = "restarting"
        else:
            state = "running" if slot.task is not None and slot.task.is_alive() else "waiting"
        return OperatorStatus(
            name=slot.name,
            role=slot.vertex.role,
            state=state,
            instance=slot.ends.instance,
            uptime_s=slot.task.uptime() if slot.task is not None else 0.0,
            consumed=slot.account.consumed,
            emitted=slot.account.emitted,
            ended_for_good=slot.retired,
            counters=dict(slot.services.counters),
        )

    def _thread_pool(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(_BLOCKING_THREADS, thread_name_prefix=f"{self.plan.name}-blocking")
        return self._executor

    def _log(self, event: str, **fields: object) -> None:
        """One decision, one JSON line, stable names."""
        quiet = event in {"spawn", "clean_exit", "shutdown", "ended", "restart", "abort", "aborted", "exit_while_draining"}
        record = {"event": event, "graph": self.plan.name, **fields}
        events.logger.log(20 if quiet else 40, json.dumps(record, default=str))


def _repr(item: object) -> str:
    """An item for people, cut short; foreign code, so it may fail."""
    try:
        return repr(item)[:_REPR_LIMIT]
    except Exception as error:  # noqa: BLE001 - the supervisor must survive any item
        return f"<{type(item).__name__}, whose repr raised {type(error).__name__}>"


__all__ = ["BuiltGraph", "GraphStatus", "OperatorStatus", "SupervisionPolicy"]
