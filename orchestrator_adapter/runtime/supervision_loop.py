"""``SupervisionLoop``: starts every operator, waits for exits and deadlines, and carries out what the supervisor decides.

Top to bottom: the loop, what follows from an exit, the two-phase shutdown. Knows nothing of Prefect, and nothing of how a run
is reported.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import assert_never

from orchestrator_adapter.graph.plan import Role
from orchestrator_adapter.primitives.check_fields import check_fields, is_duration
from orchestrator_adapter.primitives.clock import Clock
from orchestrator_adapter.primitives.decision import Decision
from orchestrator_adapter.primitives.errors import Stalled, describe
from orchestrator_adapter.primitives.event_log import DecisionLog, call_hook
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.primitives.wakeup import Wakeup
from orchestrator_adapter.runtime.leftovers import Leftovers
from orchestrator_adapter.runtime.operator_run import OperatorRun, OperatorState
from orchestrator_adapter.runtime.shutdown import Phase, Shutdown
from orchestrator_adapter.supervision import supervisor, task_exit
from orchestrator_adapter.supervision.events import (
    Escalated,
    Exited,
    ShuttingDown,
    Spawned,
    Straggler,
    SupervisionHooks,
)
from orchestrator_adapter.supervision.helpers import bounded
from orchestrator_adapter.supervision.task import Task
from orchestrator_adapter.supervision.task_exit import Panicked, TaskExit

_BACKOFF_OF_GRACE = 0.1  # the longest backoff in a drain, as a share of the grace period: it allows several attempts


@dataclass(frozen=True, slots=True)
class SupervisionPolicy:
    """How a run is watched and how it ends.

    Attributes:
        grace: From the request to stop until what still runs is aborted, overall.
        patience: From an abort until what still runs is named as a straggler.
        loop_stall: An event loop that blocks for longer is logged and counted, with the operator that blocks it; ``None``
            for no watchdog. There is no watchdog on a clock other than the system's.
        done_when: Names of sinks: once all of them have ended by themselves, the graph is done (``AllOk``), whether or not
            the sources have ended. One whose failure is ignored counts as ended. Empty: the graph is done when every
            operator has ended.
    """

    grace: timedelta = timedelta(seconds=5)
    patience: timedelta = timedelta(seconds=1)
    loop_stall: timedelta | None = timedelta(milliseconds=250)
    done_when: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        stall, done_when = self.loop_stall, self.done_when
        check_fields(
            "SupervisionPolicy",
            ("grace", self.grace, is_duration(self.grace), "a timedelta >= 0"),
            ("patience", self.patience, is_duration(self.patience), "a timedelta >= 0"),
            ("loop_stall", stall, stall is None or is_duration(stall, above=timedelta(0)), "a timedelta > 0, or None"),
            ("done_when", done_when, not isinstance(done_when, str), "a set of the names of sinks"),
        )


class SupervisionLoop:
    """Supervises the operators of one graph from the first start to the last exit.

    Attributes:
        policy: How the run is watched and how it ends.
        hooks: What is called on the way.
        shutdown: Where the shutdown stands.
        stragglers: By operator, tasks that did not stop.
        teardown: Why the graph is torn down; ``None`` as long as it is not.
    """

    def __init__(
        self,
        runs: Mapping[str, OperatorRun],
        decide: supervisor.Supervisor,
        *,
        clock: Clock,
        log: DecisionLog,
        token: ShutdownToken,
        leftovers: Leftovers,
    ) -> None:
        self.policy = SupervisionPolicy()
        self.hooks = SupervisionHooks()
        self.shutdown = Shutdown()
        self.stragglers: dict[str, Straggler] = {}
        self.teardown: supervisor.TeardownCause | None = None
        self._runs = runs
        self._supervisor = decide
        self._clock = clock
        self._log = log
        self._token = token
        self._leftovers = leftovers
        self._wakeup = Wakeup()
        self._exits: deque[tuple[Task, TaskExit]] = deque()

    async def run(self) -> BaseException | None:
        """Supervise until every operator has ended; none is started after a request to stop. Returns a cancellation, if one came."""
        for run in self._runs.values():
            if self.shutdown.phase is Phase.RUNNING:
                self._spawn(run)
            else:
                run.finish(done=False)
        cancelled: BaseException | None = None
        while not self._is_finished():
            try:
                await self._wait()
            except BaseException as error:  # noqa: BLE001 - run() raises it when every task has ended
                cancelled = error
                self.request_shutdown("run() was cancelled")
            self._turn()
        return cancelled

    def request_shutdown(self, reason: str) -> None:
        """See ``BuiltGraph.request_shutdown``."""
        before = self.shutdown
        if before.phase is Phase.DRAINING:
            event = Decision.SHUTDOWN_AGAIN if before.requested else Decision.SHUTDOWN_UNDER_WAY
            self._log(event, reason=reason)
        grace_s = self.policy.grace.total_seconds()
        self._enter(before.request(reason, self._clock.monotonic(), grace_s=grace_s))
        self._wakeup.wake()

    async def abort_all(self) -> None:
        """For a failure of the loop itself, which is a bug. No task may be leaked even then."""
        alive = [run.task for run in self._runs.values() if run.task is not None and run.task.is_alive()]
        for task in alive:
            task.abort("the supervision failed")
        joins = [asyncio.ensure_future(task.join()) for task in alive]
        if joins:
            _, late = await asyncio.wait(joins, timeout=self.policy.patience.total_seconds())
            for join in late:
                join.cancel()
            await asyncio.gather(*joins, return_exceptions=True)

    async def _wait(self) -> None:
        if self._exits:
            return
        if (due := self._next_due()) is None:
            await self._wakeup.wait()
        else:
            await self._wakeup.wait_until(due, self._clock)

    def _next_due(self) -> float | None:
        """When the loop must turn next, if no wake-up comes before."""
        now = self._clock.monotonic()
        due = [] if self.shutdown.next_deadline is None else [self.shutdown.next_deadline]
        for run in self._runs.values():
            if run.has_ended:
                continue  # a long chain ends one operator at a time: an ended one must cost almost nothing
            if run.due is not None:
                due.append(run.due)
            elif run.watch is not None and self._is_watched(run):
                due.append(run.watch.next_check(now))
        return min(due, default=None)

    def _turn(self) -> None:
        while self._exits:
            task, exit_ = self._exits.popleft()
            self._handle_exit(self._runs[task.name], task, exit_)
        now = self._clock.monotonic()
        for run in self._runs.values():
            if run.state is OperatorState.RESTARTING:
                if run.due is not None and now >= run.due:
                    self._spawn(run)
            elif run.watch is not None and run.task is not None and self._is_watched(run):
                self._check_progress(run, run.task, now)
        self._enter(self.shutdown.advance(now, patience_s=self.policy.patience.total_seconds()))

    def _is_finished(self) -> bool:
        left = [run for run in self._runs.values() if not run.has_ended]
        if self.shutdown.phase is Phase.ABANDONING:
            left = [run for run in left if run.task is not None and not run.is_alive()]
        return not left

    def _spawn(self, run: OperatorRun) -> None:
        spawned = Spawned(run.name, run.ends.instance + 1, run.vertex.role.value, run.upstream, run.restarted)
        context = call_hook(self.hooks.context_for, spawned)
        run.start(self._on_task_exit, context, patience_s=self.policy.patience.total_seconds())
        self._log(Decision.SPAWN, operator=run.name, instance=spawned.instance)
        call_hook(self.hooks.on_spawn, spawned)

    def _on_task_exit(self, task: Task, exit_: TaskExit) -> None:
        self._exits.append((task, exit_))
        self._wakeup.wake()

    def _is_watched(self, run: OperatorRun) -> bool:
        """Whether its progress is checked: not when it has been asked to stop, or is named as a straggler."""
        stopping = self.shutdown.phase >= Phase.ABORTING or run.name in self.stragglers
        return run.is_alive() and run.state is not OperatorState.DELIVERING and not stopping

    def _check_progress(self, run: OperatorRun, task: Task, now: float) -> None:
        """Abort an operator that hangs. If the abort does not end it, it is a straggler, and the graph is torn down."""
        if run.state is OperatorState.RUNNING:
            if run.has_stalled(now):
                self._log(
                    Decision.STALLED, operator=run.name, instance=task.instance, stack=self._leftovers.stack(task)
                )
                run.abort_stalled(task, straggler_at=now + self.policy.patience.total_seconds())
        elif run.due is not None and now >= run.due:
            run.stop_waiting_for_stalled()
            self.name_straggler(self._leftovers.straggler(task))
            error = Stalled(f"{run.stall_message}, and it did not stop when it was aborted")
            run.record_failure(error)
            self._tear_down(supervisor.TeardownCause(supervisor.Exhausted(error), run.name))

    # What follows from an exit.

    def _handle_exit(self, run: OperatorRun, task: Task, exit_: TaskExit) -> None:
        if run.state is OperatorState.DELIVERING:
            run.finish(done=self.needs_no_more(run))  # its exit is recorded; this task only delivered its outboxes
            return
        exit_ = run.record_exit(exit_)
        if task.strays:
            self._leftovers.record_strays(task)
            self._log(Decision.STRAY_TASKS, operator=run.name, instance=task.instance, tasks=bounded(task.strays))
        # A named straggler may still end. The graph is already being torn down because of it.
        was_straggler = self.stragglers.pop(run.name, None) is not None
        call_hook(self.hooks.on_exit, Exited(run.name, task.instance, exit_, task.uptime()))
        restartable = supervisor.is_restartable(exit_, draining=self._token.is_set)
        repeated_pills, leased = run.settle_leases(exit_, returns=restartable)
        action = self._supervisor.decide(
            run.name,
            exit_,
            instance=task.instance,
            now=self._clock.monotonic(),
            uptime_s=task.uptime(),
            quarantined=repeated_pills,
            draining=self._token.is_set,
            aborting=was_straggler or self.shutdown.phase >= Phase.ABORTING,
        )
        if not isinstance(action, supervisor.CloseOutputs | supervisor.NoAction):
            assert isinstance(exit_, task_exit.Errored | Panicked)
            run.record_failure(exit_.error)
        who = {"operator": run.name, "instance": task.instance}
        match action:
            case supervisor.CloseOutputs():
                self._log(Decision.CLEAN_EXIT, **who)
                run.finish(done=self.needs_no_more(run))
                self._apply_end_rule()
            case supervisor.NoAction():
                drained = Decision.EXIT_WHILE_DRAINING if self._token.is_set else Decision.NOT_WANTED
                self._log(Decision.ABORTED if isinstance(exit_, task_exit.Aborted) else drained, **who, exit=str(exit_))
                self._release(run)
            case supervisor.Restart(restarted):
                self._log(
                    Decision.RESTART,
                    operator=run.name,
                    instance=restarted.instance,
                    cause=restarted.cause,
                    charged=restarted.charged,
                    backoff_s=restarted.backoff_s,
                )
                call_hook(self.hooks.on_restart, restarted)
                run.restart_at(restarted, self._clock.monotonic() + restarted.backoff_s)
                if self._token.is_set:
                    self._cut_backoff_short(run, self.policy.grace.total_seconds() * _BACKOFF_OF_GRACE)
            case supervisor.Ignore(error):
                self._log(Decision.IGNORED, **who, cause=describe(error))
                run.ignored = True
                self._release(run)
                self._apply_end_rule()
            case supervisor.Exhausted(error):
                self._log(Decision.BUDGET_EXHAUSTED, **who, cause=describe(error))
                self._tear_down(supervisor.TeardownCause(action, run.name))
                self._release(run)
            case supervisor.Escalate(panicked):
                self.escalate(run.name, task.instance, panicked, leased)
                self._release(run)
            case _:
                assert_never(action)

    def escalate(self, operator: str, instance: int, panicked: Panicked, leased: tuple[str, ...] = ()) -> None:
        """``operator`` has a bug: tear the graph down."""
        cause, trace = panicked.message, panicked.traceback
        self._log(Decision.ESCALATE, operator=operator, instance=instance, cause=cause, traceback=trace)
        self._tear_down(supervisor.TeardownCause(supervisor.Escalate(panicked), operator, leased=leased))

    def _release(self, run: OperatorRun) -> None:
        deliver = self.shutdown.phase < Phase.ABORTING
        run.release(self._on_task_exit, deliver=deliver, done=self.needs_no_more(run))

    def needs_no_more(self, run: OperatorRun) -> bool:
        """By the end rule: it is a sink that is done, or all its readers are."""
        if run.outputs:
            return run.readers_are_done
        return run.name in self.policy.done_when and isinstance(run.exit, task_exit.Ok)

    def _tear_down(self, cause: supervisor.TeardownCause) -> None:
        """Drain the graph as far as possible. The first cause names the event of the run."""
        if self.teardown is None:
            self.teardown = cause
            call_hook(self.hooks.on_escalate, Escalated(cause.operator, cause.kind, cause.cause))
        self._drain(f"{cause.kind}: {cause.operator}")

    def _apply_end_rule(self) -> None:
        sinks = self.policy.done_when
        if sinks and all(self._runs[sink].has_ended for sink in sinks):
            self._drain(f"done: {', '.join(sorted(sinks))}", done=True)

    # Shutting down.

    def _drain(self, reason: str, *, done: bool = False) -> None:
        now, grace_s = self._clock.monotonic(), self.policy.grace.total_seconds()
        self._enter(self.shutdown.drain(reason, now, grace_s=grace_s, done=done))

    def _enter(self, shutdown: Shutdown) -> None:
        """Act on the phase that ``shutdown`` has reached, if it is a new one."""
        before, self.shutdown = self.shutdown, shutdown
        if shutdown.phase is before.phase:
            return
        limit = self.policy.grace if shutdown.phase is Phase.DRAINING else self.policy.patience
        if shutdown.phase is Phase.DRAINING:
            self._log(
                Decision.SHUTDOWN, phase=int(shutdown.phase), reason=shutdown.reason, grace_s=limit.total_seconds()
            )
        call_hook(self.hooks.on_shutdown, ShuttingDown(int(shutdown.phase), shutdown.reason, limit.total_seconds()))
        if shutdown.phase is Phase.DRAINING:
            self._token.set(shutdown.reason)
            for run in self._runs.values():
                if run.state is OperatorState.RESTARTING:
                    self._cut_backoff_short(run, 0.0)
            return
        for run in self._runs.values():
            self._stop(run)

    def _cut_backoff_short(self, run: OperatorRun, at_most_s: float) -> None:
        """In a drain a source is not restarted, and every other operator restarts within ``at_most_s``."""
        if run.vertex.role is Role.SOURCE:
            self._release(run)
        else:
            assert run.due is not None
            run.due = min(run.due, self._clock.monotonic() + at_most_s)

    def _stop(self, run: OperatorRun) -> None:
        """Abort what still runs, or name it as a straggler, as the phase says."""
        if run.has_ended:
            return
        if run.state in {OperatorState.RESTARTING, OperatorState.WAITING} or run.task is None:
            run.finish(done=self.needs_no_more(run))
        elif not run.is_alive():
            pass  # it has just ended: the next turn handles its exit
        elif self.shutdown.phase is Phase.ABORTING:
            if run.state is not OperatorState.DELIVERING:
                self._log(Decision.ABORT, operator=run.name, instance=run.task.instance, reason=self.shutdown.reason)
            run.stop_waiting_for_stalled()
            run.task.abort(self.shutdown.reason)
        else:
            self.name_straggler(self._leftovers.straggler(run.task))

    def name_straggler(self, straggler: Straggler) -> None:
        """Log and report it, once an operator."""
        if straggler.operator not in self.stragglers:
            self.stragglers[straggler.operator] = straggler
            self._log(Decision.STRAGGLER, **asdict(straggler))
