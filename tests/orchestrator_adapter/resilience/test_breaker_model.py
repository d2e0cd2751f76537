"""The circuit breaker against a naive implementation of the specification, for any calls at any times."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from itertools import pairwise

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator_adapter.resilience.breaker import (
    BreakerPolicy,
    BreakerState,
    CircuitBreaker,
    Permit,
    Rejection,
    StateChange,
)
from orchestrator_adapter.testing import ManualClock
from tests.helpers.sizes import examples

CLOSED, OPEN, HALF_OPEN = BreakerState
TICK_S = 0.25  # times are whole ticks: exact in binary, so that an edge is an edge
COOLDOWN, WINDOW = 8, 12  # ticks
POLICIES = st.builds(
    BreakerPolicy,
    threshold=st.sampled_from([0.25, 0.5, 1.0]),
    window=st.just(timedelta(seconds=WINDOW * TICK_S)),
    cooldown=st.just(timedelta(seconds=COOLDOWN * TICK_S)),
    min_calls=st.sampled_from([1, 2, 5]),
    max_probe_wait=st.sampled_from([None, timedelta(seconds=5 * TICK_S)]),
)
OUTCOMES = st.sampled_from([True, True, False, False, False, None])


@dataclass(frozen=True)
class Granted:
    at: int
    permit: int


@dataclass(frozen=True)
class Rejected:
    at: int


@dataclass(frozen=True)
class Reported:
    at: int
    permit: int
    succeeded: bool | None


@dataclass(frozen=True)
class Changed:
    """``reported``: false if it was forced into a state that was forced already."""

    at: int
    state: BreakerState
    forced: bool
    reported: bool


class NaiveBreaker:
    """Keeps every event, and searches all of them for every answer."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self.threshold = Fraction(policy.threshold)
        self.min_calls = policy.min_calls
        wait = policy.max_probe_wait
        self.probe_wait = COOLDOWN if wait is None else int(wait.total_seconds() / TICK_S)
        self.history: list[Granted | Rejected | Reported | Changed] = [Changed(0, CLOSED, forced=False, reported=False)]

    @property
    def changes(self) -> list[Changed]:
        return [event for event in self.history if isinstance(event, Changed)]

    @property
    def now_is(self) -> Changed:
        return self.changes[-1]

    @property
    def epoch(self) -> list[Granted | Rejected | Reported | Changed]:
        """The events since the last change."""
        return self.history[len(self.history) - self.history[::-1].index(self.now_is) :]

    def granted_in_epoch(self) -> list[Granted]:
        return [event for event in self.epoch if isinstance(event, Granted)]

    def outcomes(self, now: int) -> list[bool]:
        """Of calls that started and ended in this epoch, within the window; empty while the state is forced."""
        if self.now_is.state is not CLOSED or self.now_is.forced:
            return []
        started = {event.permit for event in self.granted_in_epoch()}
        return [
            event.succeeded
            for event in self.epoch
            if isinstance(event, Reported)
            and event.permit in started
            and event.succeeded is not None
            and event.at > now - WINDOW
        ]

    def ask(self, now: int, permit: int) -> int:
        """The ticks to wait; 0 if the permit is granted."""
        wait = self._wait(now)
        if wait:
            self.history.append(Rejected(now))
        else:
            if self.now_is.state is OPEN:
                self._change(now, HALF_OPEN, forced=False)
            self.history.append(Granted(now, permit))
        return wait

    def _wait(self, now: int) -> int:
        match self.now_is.state:
            case BreakerState.CLOSED:
                return 0
            case BreakerState.OPEN:
                return COOLDOWN if self.now_is.forced else max(0, self.now_is.at + COOLDOWN - now)
            case BreakerState.HALF_OPEN:
                probes = self.granted_in_epoch()
                if not probes or self._has_reported(probes[-1].permit):
                    return 0
                return max(0, probes[-1].at + self.probe_wait - now)

    def report(self, now: int, permit: int, *, succeeded: bool | None) -> None:
        if self._has_reported(permit):
            return
        self.history.append(Reported(now, permit, succeeded))
        if permit not in [granted.permit for granted in self.granted_in_epoch()] or succeeded is None:
            return
        match self.now_is.state:
            case BreakerState.CLOSED:
                outcomes = self.outcomes(now)
                share = Fraction(outcomes.count(False), len(outcomes)) if outcomes else 0
                if len(outcomes) >= self.min_calls and share >= self.threshold:
                    self._change(now, OPEN, forced=False)
            case BreakerState.HALF_OPEN:
                if permit == self.granted_in_epoch()[-1].permit:
                    self._change(now, CLOSED if succeeded else OPEN, forced=False)
            case BreakerState.OPEN:
                raise AssertionError("no permit is granted while it is open")

    def force(self, now: int, state: BreakerState) -> None:
        self._change(now, state, forced=True)

    def release(self, now: int) -> None:
        if self.now_is.forced:
            self._change(now, CLOSED if self.now_is.state is CLOSED else HALF_OPEN, forced=False)

    def _change(self, now: int, state: BreakerState, *, forced: bool) -> None:
        reported = (state, forced) != (self.now_is.state, self.now_is.forced)
        self.history.append(Changed(now, state, forced, reported))

    def _has_reported(self, permit: int) -> bool:
        return any(isinstance(event, Reported) and event.permit == permit for event in self.history)

    def open_ticks(self, now: int) -> int:
        ends = [*(change.at for change in self.changes[1:]), now]
        return sum(end - change.at for change, end in zip(self.changes, ends, strict=True) if change.state is OPEN)

    def openings(self) -> int:
        states = [change.state for change in self.changes]
        return sum(state is OPEN and was is not OPEN for was, state in pairwise(states))

    def edges(self, now: int) -> list[int]:
        """The future times at which a cooldown ends, a probe's wait ends, or an outcome leaves the window."""
        moments = {now + self._wait(now)} if not self.now_is.forced else set()
        moments |= {event.at + WINDOW for event in self.epoch if isinstance(event, Reported)}
        return sorted(moment for moment in moments if moment > now)


class BreakerAgainstOracle(RuleBasedStateMachine):
    """Any calls, reported at any time and in any order, and any forcing: it behaves like the naive implementation."""

    @initialize(policy=POLICIES, watched=st.booleans())
    def begin(self, policy: BreakerPolicy, *, watched: bool) -> None:
        """``watched``: its statistics are compared after each step. Reading them drops old outcomes, so not in every run."""
        self.now = 0
        self.watched = watched
        self.clock = ManualClock()
        self.breaker = CircuitBreaker.with_policy("archive", policy, clock=self.clock)
        self.model = NaiveBreaker(policy)
        self.permits: list[Permit] = []
        self.reported: list[StateChange] = []
        self.breaker.on_change(self.reported.append)

    @rule(ticks=st.integers(1, 6))
    def time_passes(self, ticks: int) -> None:
        self.now += ticks
        self.clock.advance(ticks * TICK_S)

    @precondition(lambda self: self.model.edges(self.now))
    @rule(which=st.integers(0, 2), early=st.sampled_from([0, 0, 1]))
    def time_passes_to_an_edge(self, which: int, early: int) -> None:
        """To exactly that time, or to just before it."""
        edges = self.model.edges(self.now)
        ticks = edges[which % len(edges)] - self.now - early
        if ticks:
            self.time_passes(ticks)

    @rule()
    def request(self) -> None:
        """A rejection says exactly when to ask again."""
        wait = self.model.ask(self.now, len(self.permits))
        answer = self.breaker.ask()
        if wait:
            assert answer == Rejection("archive", self.model.now_is.state, timedelta(seconds=wait * TICK_S))
        else:
            assert isinstance(answer, Permit)
            self.permits.append(answer)

    @rule(outcomes=st.lists(OUTCOMES, min_size=1, max_size=6))
    def calls_end_at_once(self, outcomes: list[bool | None]) -> None:
        for succeeded in outcomes:
            before = len(self.permits)
            self.request()
            if len(self.permits) > before:
                self.report(before, succeeded)

    @rule()
    def it_breaks_and_cools_down(self) -> None:
        """Up to its probe, unless it is forced: random steps seldom get there."""
        self.calls_end_at_once([False] * 5)
        self.time_passes(COOLDOWN)
        self.request()

    @precondition(lambda self: self.permits)
    @rule(back=st.integers(0, 7), succeeded=OUTCOMES)
    def any_permit_reports(self, back: int, succeeded: bool | None) -> None:  # noqa: FBT001 - hypothesis calls by name
        """It may be a second report, or a late one."""
        self.report(max(0, len(self.permits) - 1 - back), succeeded)

    def report(self, permit: int, succeeded: bool | None) -> None:  # noqa: FBT001 - as above
        self.model.report(self.now, permit, succeeded=succeeded)
        {True: Permit.succeeded, False: Permit.failed, None: Permit.release}[succeeded](self.permits[permit])

    @rule(open_=st.booleans())
    def forced(self, *, open_: bool) -> None:
        self.model.force(self.now, OPEN if open_ else CLOSED)
        (self.breaker.force_open if open_ else self.breaker.force_closed)()

    @rule()
    def released(self) -> None:
        self.model.release(self.now)
        self.breaker.release()

    @invariant()
    def the_state_is_that_of_the_history(self) -> None:
        if hasattr(self, "model"):
            assert self.breaker.state is self.model.now_is.state
            if self.watched:
                self.the_figures_are_those_of_the_history()

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.the_figures_are_those_of_the_history()

    def the_figures_are_those_of_the_history(self) -> None:
        model, outcomes, figures = self.model, self.model.outcomes(self.now), self.breaker.statistics()
        assert (figures.state, figures.forced) == (model.now_is.state, model.now_is.forced)
        assert (figures.calls, figures.failures) == (len(outcomes), outcomes.count(False))
        assert figures.rejections == sum(isinstance(event, Rejected) for event in model.history)
        assert figures.opened == model.openings()
        assert figures.open_s == model.open_ticks(self.now) * TICK_S

    @invariant()
    def every_change_is_reported_once(self) -> None:
        if not hasattr(self, "model"):
            return
        changes = self.model.changes
        assert [(change.was, change.state, change.forced) for change in self.reported] == [
            (was.state, change.state, change.forced) for was, change in pairwise(changes) if change.reported
        ]


TestBreakerAgainstOracle = BreakerAgainstOracle.TestCase
TestBreakerAgainstOracle.settings = settings(max_examples=examples(150), stateful_step_count=40)
