"""``BuiltGraph``: a wired graph that runs: the public API, and how a run ends and is reported.

``supervision_loop`` supervises the operators, ``operator_run`` has one operator each, ``shutdown`` the phases. Knows nothing
of Prefect.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

from orchestrator_adapter.channels.edge import Edge
from orchestrator_adapter.channels.ledger import LedgerSnapshot, SignalsSnapshot, snapshot
from orchestrator_adapter.graph.plan import Plan, Role
from orchestrator_adapter.operators.blocking import BlockingPools
from orchestrator_adapter.primitives.clock import Clock, SystemClock
from orchestrator_adapter.primitives.decision import Decision
from orchestrator_adapter.primitives.errors import DuplicateRun, describe
from orchestrator_adapter.primitives.event_log import DecisionLog, call_hook, current_run, in_run, new_run_id
from orchestrator_adapter.primitives.metrics import LatencyHistogram
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.resilience.breaker import Breakers
from orchestrator_adapter.runtime.interventions import ForcedState, Interventions
from orchestrator_adapter.runtime.leftovers import Leftovers
from orchestrator_adapter.runtime.operator_run import OperatorRun
from orchestrator_adapter.runtime.shutdown import Phase
from orchestrator_adapter.runtime.status import GraphStatus, operator_status
from orchestrator_adapter.runtime.supervision_loop import SupervisionLoop, SupervisionPolicy
from orchestrator_adapter.runtime.timeline import Timeline
from orchestrator_adapter.runtime.wiring import GraphServices, wire
from orchestrator_adapter.storage.dead_letter import DeadLetterList, DeadLetterStore
from orchestrator_adapter.storage.dead_letter_writer import DeadLetterWriter
from orchestrator_adapter.supervision import supervisor
from orchestrator_adapter.supervision.events import Decided, RunFigures, Straggler, SupervisionHooks, SupervisorEvent
from orchestrator_adapter.supervision.task import INSTANCE
from orchestrator_adapter.supervision.task_exit import Panicked, classify
from orchestrator_adapter.supervision.watchdog import LoopStall, LoopWatchdog

__all__ = ["BuiltGraph", "SupervisionPolicy"]


class BuiltGraph:
    """A wired graph. ``await run()`` runs it once; ``request_shutdown()`` asks it to stop.

    Attributes:
        plan: What was built.
        clock: Its clock.
        dead_letters: Where its dead letters are stored.
        run_id: The ``run`` of its log lines: under Prefect the flow run's id, else its name and the time it was built.
        recent_dead_letters: Its last dead letters, without their items. Any thread may read it.
        event: How the run ended, once it has; also if ``run`` was cancelled and could not return it.
        timeline: Its last decisions. Any thread may read it.
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
        self._supervisor = supervisor.Supervisor(rng)
        self._dead_letter_writer = DeadLetterWriter(self._log, self.dead_letters, self.clock)
        self.recent_dead_letters = self._dead_letter_writer.recent
        self._problems: list[str] = []
        self._requests_before_run: list[str] = []  # their reasons
        self._pools = BlockingPools(plan.name)
        self._leftovers = Leftovers(self._token, self._pools, self.clock)
        self._watchdog: LoopWatchdog | None = None
        self._started_at: float | None = None
        self._closing: OperatorRun | None = None  # its kept resources are being closed
        self._breakers = Breakers(self._log, self.clock)
        services = GraphServices(
            self.clock, rng, self._token, self._dead_letter_writer, self._pools, self._breakers, self._log
        )
        self._runs, self._edges = wire(plan, services)
        self._interventions = Interventions(self._runs, self._breakers, self._token, self._log)
        for run in self._runs.values():
            self._supervisor.watch(run.name, run.vertex.restart_policy, is_source=run.vertex.role is Role.SOURCE)
        self._loop = SupervisionLoop(
            self._runs, self._supervisor, clock=self.clock, log=self._log, token=self._token, leftovers=self._leftovers
        )
        self.timeline = Timeline()
        self._log.listener = self._on_decision

    async def run(
        self, policy: SupervisionPolicy | None = None, *, hooks: SupervisionHooks | None = None
    ) -> SupervisorEvent:
        """Start every operator in topological order, supervise them to the end, and return how the run ended.

        Returns once every task has ended or is named as a straggler, and every item is accounted for. Cancelling the
        caller requests the shutdown (a second time: the abort). The run then ends as usual, ``event`` is set, and the
        cancellation is raised. Raises ``ValueError`` if ``done_when`` names anything but sinks of this graph, and
        ``OSError`` if the folder of a spilling edge cannot be used.
        """
        if self._started_at is not None:
            raise DuplicateRun(f"graph {self.plan.name!r} has run already; build() it again")
        policy = policy or SupervisionPolicy()
        sinks = {run.name for run in self._runs.values() if run.vertex.role is Role.SINK}
        if not policy.done_when <= sinks:
            raise ValueError(f"done_when: expected sinks of {sorted(sinks)}, got {sorted(policy.done_when - sinks)}")
        self._loop.policy = policy
        self._loop.hooks = hooks or SupervisionHooks()
        _open(self._edges.values())
        self._started_at = self.clock.monotonic()
        for reason in self._requests_before_run:
            self.request_shutdown(reason)
        if policy.loop_stall is not None and isinstance(self.clock, SystemClock):
            self._watchdog = LoopWatchdog(self._on_loop_stall, threshold=policy.loop_stall)
            self._watchdog.start()
        try:
            with in_run(self.run_id), self._leftovers.noticing_failures():
                cancelled = await self._loop.run()
        except BaseException:
            await self._loop.abort_all()
            raise
        finally:
            if self._watchdog is not None:
                self._watchdog.stop()
        closing = asyncio.ensure_future(self._close(policy.patience.total_seconds()))
        while not closing.done():
            try:
                await asyncio.wait({closing})
            except asyncio.CancelledError as error:
                cancelled = error
        closing.result()
        self.event = self._settle(self._started_at)
        if cancelled is not None:
            raise cancelled
        return self.event

    def request_shutdown(self, reason: str) -> None:
        """Request the two-phase shutdown. A second request starts its second phase at once.

        If the graph drains already for another reason (its budget is exhausted, its sinks are done), the first request
        lets the drain go on. Call it on the event loop, at any time: after a request before the run no operator is started;
        a request after the run has no effect.
        """
        if self.event is not None:
            return
        if self._started_at is None:
            self._requests_before_run.append(reason)
            return
        self._loop.request_shutdown(reason)

    def pause_source(self, name: str, reason: str) -> bool:
        """Pause a source: it is suspended at its next ``emit`` or ``flush``. Call it on the event loop. False: it is paused already.

        A restart does not end the pause; a shutdown does. Raises ``UnknownName``, or ``CannotIntervene``: it has ended or drains.
        """
        return self._interventions.pause_source(name, reason)

    def resume_source(self, name: str, reason: str) -> bool:
        """End the pause of a source. Call it on the event loop. False: it was not paused. Raises ``UnknownName``."""
        return self._interventions.resume_source(name, reason)

    def force_breaker(self, name: str, state: ForcedState, reason: str) -> None:
        """Force a circuit breaker, or end that with ``auto``. Call it on the event loop. Raises ``UnknownName``."""
        self._interventions.force_breaker(name, state, reason)

    def drain(self, reason: str) -> bool:
        """As the first ``request_shutdown``; without effect, and False, if the graph drains already or has ended."""
        if running := not (self._requests_before_run or self._token.is_set or self.event is not None):
            self.request_shutdown(reason)
        return running

    def record_action(self, who: str, action: str, result: str) -> None:
        """Log what a person has requested, and how it ended. Any thread may call it."""
        self._log(Decision.ACTION, who=who, action=action, result=result)

    @property
    def watchdog(self) -> LoopWatchdog | None:
        """The watchdog of this run's event loop, if there is one. Its figures may be read from any thread."""
        return self._watchdog

    def status(self) -> GraphStatus:
        """The graph as it is now, consistent because it is taken between two steps. Cheap enough for once a second."""
        requested = self._requests_before_run[0] if self._requests_before_run else None
        operators = tuple(operator_status(run, self.clock, self._supervisor) for run in self._runs.values())
        return GraphStatus(
            operators=operators,
            edges={edge_id: edge.statistics() for edge_id, edge in self._edges.items()},
            outboxes={edge_id: edge.outbox_items for edge_id, edge in self._edges.items()},
            ledger=self.ledger(),
            signals=self.signals(),
            latency=_merged_latency(self._runs.values()).summary(),
            breakers=self._breakers.statistics(),
            blocking_pools=self._pools.statistics(),
            restarts=sum(operator.restarts for operator in operators),
            shutting_down=requested if self._loop.shutdown.phase is Phase.RUNNING else self._loop.shutdown.reason,
            verdict=None if self._loop.teardown is None else str(self._loop.teardown),
            loop_lag_s=self._watchdog.lag_s if self._watchdog is not None else 0.0,
            loop_stalls=self._watchdog.stalls if self._watchdog is not None else 0,
        )

    def ledger(self) -> LedgerSnapshot:
        """The ledger as it is now."""
        pending = sum(edge.channel.occupancy + edge.spilled + edge.outbox_items for edge in self._edges.values())
        leased = {run.name: sum(edge.channel.leased_items for edge in run.inputs) for run in self._runs.values()}
        return snapshot((run.account for run in self._runs.values()), pending=pending, leased=leased)

    def signals(self) -> SignalsSnapshot:
        """The control items as they are now. They are no part of the ledger."""
        accounts, edges = [run.account for run in self._runs.values()], self._edges.values()
        return SignalsSnapshot(
            sent=sum(account.signals_out for account in accounts),
            received=sum(account.signals_in for account in accounts),
            undelivered=sum(edge.channel.signals_undelivered for edge in edges),
            in_flight=sum(edge.channel.signals + edge.spilled_signals + edge.outbox_signals for edge in edges),
        )

    # The end.

    async def _close(self, limit_s: float) -> None:
        """Wait for blocking calls, dead-letter what is left, and close the kept resources."""
        left_s = self._loop.shutdown.drain_left_s(self.clock.monotonic(), at_least_s=limit_s)
        for straggler in await self._leftovers.wait_for_threads(left_s):
            self._loop.name_straggler(straggler)
        for run in self._runs.values():
            if not run.has_ended:
                run.account.lease_lost()
                run.finish(done=self._loop.needs_no_more(run))
        for edge in self._edges.values():
            # The accounts are final: a straggler that goes on gets ReaderGone everywhere, and dead-letters nothing.
            edge.channel.reader_done = edge.channel.reader_ignored = False
        for run in reversed(tuple(self._runs.values())):
            if run.name in self._loop.stragglers:
                # It may still use them, and closing them could block this thread too (a disk that does not answer).
                self._problems.append(f"what {run.name!r} kept was not closed: it has not stopped")
            else:
                self._closing = run
                # What a close starts, and itself if it ignores its cancellation, is ended below, or named as a straggler.
                token = None if run.task is None else INSTANCE.set(run.task)
                try:
                    errors = await run.services.kept.close_all(limit_s)
                finally:
                    if token is not None:
                        INSTANCE.reset(token)
                for error in errors:
                    self._problems.append(f"closing what {run.name!r} kept: {describe(error)}")
                    exit_ = classify(error, run.vertex.expected_errors)
                    if isinstance(exit_, Panicked) and self._loop.teardown is None:
                        self._loop.escalate(run.name, run.ends.instance, exit_)
        self._closing = None
        self._pools.shutdown()
        for straggler in await self._leftovers.end_tasks(limit_s):
            self._loop.name_straggler(straggler)

    def _settle(self, started_at: float) -> SupervisorEvent:
        """Name the event, and log it."""
        figures = self._figures(started_at)
        event = supervisor.name_event(figures, self._loop.teardown, self._loop.shutdown.stopped_because)
        self._log_ended(event)
        for violation in figures.violations:
            self._log(Decision.LEDGER_VIOLATION, operator=violation.operator, message=str(violation))
        return event

    def event_of_forced_end(self, stall: LoopStall, reason: str) -> SupervisorEvent:
        """How the run is reported if its process is ended because the loop does not turn. Called on another thread.

        The operator that blocks the loop is a straggler. What is in flight stays in flight: it is neither written nor
        dead-lettered. The event of a run that has ended is that of its end.
        """
        if self.event is not None:
            return self.event
        straggler = Straggler(stall.operator or "the event loop", stall.instance or 0, stall.stack)
        if (closing := self._closing) is not None and stall.instance is None:
            straggler = replace(straggler, operator=closing.name, instance=closing.ends.instance)
        figures = self._figures(self.clock.monotonic() if self._started_at is None else self._started_at)
        others = (each for each in figures.stragglers if each.operator != straggler.operator)
        ended = f"{reason}: the event loop did not turn for {stall.lag_s:.1f} s, so the process was ended"
        figures = replace(figures, stragglers=(*others, straggler), problems=(*figures.problems, ended))
        return supervisor.name_event(figures, self._loop.teardown, self._loop.shutdown.stopped_because or reason)

    def log_forced_end(self, event: SupervisorEvent) -> None:
        """Log an event of ``event_of_forced_end``, after it was written to disk: a log may not answer either."""
        for straggler in event.figures.stragglers:
            self._log(
                Decision.STRAGGLER, operator=straggler.operator, instance=straggler.instance, stack=straggler.stack
            )
        self._log_ended(event)

    def _log_ended(self, event: SupervisorEvent) -> None:
        figures = event.figures
        self._log(
            Decision.ENDED,
            outcome=event.name,
            ledger=figures.ledger.as_dict(),
            ledger_holds=figures.ledger_holds,
            undelivered=figures.undelivered,
            problems=figures.problems,
        )

    def _figures(self, started_at: float) -> RunFigures:
        runs = self._runs.values()
        watchdog = self._watchdog
        return RunFigures(
            restarts=self._supervisor.restarts,
            exits={run.name: run.exit for run in runs if run.exit is not None},
            stragglers=tuple(self._loop.stragglers.values()),
            ledger=self.ledger(),
            signals=self.signals(),
            violations=tuple(run.account.violation for run in runs if run.account.violation is not None),
            undelivered=self._dead_letter_writer.undelivered,
            problems=(*self._dead_letter_writer.problems, *_ignored(runs), *self._leftovers.problems, *self._problems),
            latency=_merged_latency(runs).summary(),
            counters={run.name: dict(run.services.counters) for run in runs if run.services.counters},
            breakers=self._breakers.statistics(),
            elapsed_s=self.clock.monotonic() - started_at,
            loop_stalls=watchdog.stalls if watchdog is not None else 0,
            max_loop_lag_s=watchdog.max_lag_s if watchdog is not None else 0.0,
        )

    def _on_decision(self, decision: Decision, fields: Mapping[str, object]) -> None:
        """Called on the thread that decides: the loop's, or the watchdog's while the loop is blocked."""
        self.timeline.record(decision, fields, self.clock.now_ns())
        call_hook(self._loop.hooks.on_decision, Decided(decision, fields))

    def _on_loop_stall(self, stall: LoopStall) -> None:
        """Called on the watchdog's thread while the loop is blocked."""
        self._log(
            Decision.LOOP_STALL, operator=stall.operator, instance=stall.instance, lag_s=stall.lag_s, stack=stall.stack
        )


def _open(edges: Collection[Edge[Any]]) -> None:
    try:
        for edge in edges:
            edge.open()
    except OSError:
        for edge in edges:
            edge.leave_spilled()
        raise


def _ignored(runs: Iterable[OperatorRun]) -> list[str]:
    return [f"operator {run.name!r} has failed and was ignored: {run.exit}" for run in runs if run.ignored]


def _merged_latency(runs: Iterable[OperatorRun]) -> LatencyHistogram:
    merged = LatencyHistogram()
    for run in runs:
        merged.merge(run.services.latency)
    return merged
