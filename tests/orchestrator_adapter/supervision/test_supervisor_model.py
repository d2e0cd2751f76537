"""``Supervisor`` against a naive implementation of the specification."""

from __future__ import annotations

import random
from datetime import timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from orchestrator_adapter.primitives.errors import DeadLetterLimitExceeded, OperatorError, ReaderGone
from orchestrator_adapter.supervision.restart import AlwaysRestart, Backoff, BoundedRestart, NeverRestart, RestartPolicy
from orchestrator_adapter.supervision.supervisor import (
    Action,
    CloseOutputs,
    Escalate,
    Exhausted,
    NoAction,
    Restart,
    Supervisor,
)
from orchestrator_adapter.supervision.task_exit import Aborted, Errored, Ok, Panicked, TaskExit
from tests.helpers.sizes import examples

HEALTHY_S = 10.0
BACKOFF = Backoff(timedelta(seconds=1), timedelta(seconds=20), timedelta(seconds=HEALTHY_S))
POLICIES = st.one_of(
    st.just(RestartPolicy.never()),
    st.builds(RestartPolicy.always, backoff=st.sampled_from([None, BACKOFF])),
    st.builds(
        RestartPolicy.bounded,
        st.integers(1, 4),
        st.integers(1, 30).map(lambda seconds: timedelta(seconds=seconds)),
        backoff=st.sampled_from([None, BACKOFF]),
    ),
)
UNMENDABLE: list[OperatorError] = [ReaderGone("gone"), DeadLetterLimitExceeded("too many")]


class NaiveOperator:
    """Keeps the whole history, and searches all of it for every answer."""

    def __init__(self, policy: RestartPolicy, *, is_source: bool) -> None:
        self.policy = policy
        self.is_source = is_source
        self.instance = 1
        self.history: list[tuple[float, float, bool, bool]] = []  # start, uptime, charged, a pill was quarantined

    def free(self, *, pill: bool) -> bool:
        """A pill's quarantine is free if the restart just before it did not quarantine a pill."""
        never = isinstance(self.policy.rule, NeverRestart)
        return pill and bool(self.history) and not self.history[-1][3] and not never

    def within_budget(self, now: float) -> bool:
        match self.policy.rule:
            case NeverRestart():
                return False
            case AlwaysRestart():
                return True
            case BoundedRestart(max_restarts, window):
                window_s = window.total_seconds()
                charged = [at for at, _, charged, _ in self.history if charged and at > now - window_s]
                return len(charged) < max_restarts

    def consecutive(self, uptime_s: float) -> int:
        """The number of restarts since the last healthy time, including this one."""
        count = 1
        for before, _ in zip(
            [uptime_s, *(uptime for _, uptime, _, _ in self.history[::-1])], self.history, strict=False
        ):
            if before >= HEALTHY_S:
                break
            count += 1
        return count


class SupervisorAgainstOracle(RuleBasedStateMachine):
    """Any operators, any exits at any times: the supervisor decides as a naive implementation of the specification."""

    @initialize(policies=st.lists(st.tuples(POLICIES, st.booleans()), min_size=1, max_size=3))
    def watch(self, policies: list[tuple[RestartPolicy, bool]]) -> None:
        self.now = 0.0
        self.draining = self.aborting = False
        self.supervisor = Supervisor(random.Random(0))
        self.models: dict[str, NaiveOperator] = {}
        for number, (policy, is_source) in enumerate(policies):
            self.models[f"op-{number}"] = NaiveOperator(policy, is_source=is_source)
            self.supervisor.watch(f"op-{number}", policy, is_source=is_source)

    @rule(seconds=st.integers(0, 60))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds / 2

    @rule()
    def the_graph_is_drained(self) -> None:
        self.draining = True

    @rule()
    def the_graph_is_aborted(self) -> None:
        self.aborting = self.draining

    @rule(which=st.integers(0, 2), exit_=st.sampled_from([Ok(), Aborted(), Panicked("bug", "…", KeyError("bug"))]))
    def ends_for_good(self, which: int, exit_: TaskExit) -> None:
        """These exits do not change the budget."""
        name = self._name(which)
        expected: Action
        match exit_:
            case Ok():
                expected = CloseOutputs()
            case Panicked():
                expected = Escalate(exit_)
            case _:
                expected = NoAction()
        assert self._decide(name, exit_, uptime_s=1.0) == expected

    @rule(which=st.integers(0, 2), error=st.sampled_from(UNMENDABLE), grouped=st.booleans())
    def fails_beyond_repair(self, which: int, error: OperatorError, *, grouped: bool) -> None:
        name = self._name(which)
        raised: BaseException = ExceptionGroup("workers", [OperatorError("x"), error]) if grouped else error
        decision = self._decide(name, Errored(raised), uptime_s=1.0)
        excused = self.draining and (self.models[name].is_source or isinstance(error, ReaderGone))
        assert decision == (NoAction() if self.aborting or excused else Exhausted(raised))

    @rule(which=st.integers(0, 2), uptime_s=st.sampled_from([0.0, 1.0, HEALTHY_S, 100.0]), pills=st.integers(0, 3))
    def fails(self, which: int, uptime_s: float, pills: int) -> None:
        name = self._name(which)
        model = self.models[name]
        error = OperatorError("away")
        decision = self._decide(name, Errored(error), uptime_s=uptime_s, quarantined=pills)
        if self.aborting or (self.draining and model.is_source):
            assert decision == NoAction()
            return
        free = model.free(pill=pills > 0)
        if not free and not model.within_budget(self.now):
            assert decision == Exhausted(error)
            return
        assert isinstance(decision, Restart)
        restarted = decision.restarted
        assert (restarted.operator, restarted.instance) == (name, model.instance + 1)
        assert (restarted.at_monotonic, restarted.charged) == (self.now, not free)
        if model.policy.backoff is None:
            assert restarted.backoff_s == 0
        else:
            assert 1 <= restarted.backoff_s <= min(20, 3 ** model.consecutive(uptime_s))
        model.history.append((self.now + restarted.backoff_s, uptime_s, not free, pills > 0))
        model.instance += 1

    @invariant()
    def the_history_has_every_restart(self) -> None:
        if not hasattr(self, "models"):
            return
        totals = {name: history.total for name, history in self.supervisor.restarts.items()}
        assert totals == {name: len(model.history) for name, model in self.models.items() if model.history}

    def _name(self, which: int) -> str:
        return f"op-{which % len(self.models)}"

    def _decide(self, name: str, exit_: TaskExit, *, uptime_s: float, quarantined: int = 0) -> Action:
        return self.supervisor.decide(
            name,
            exit_,
            instance=self.models[name].instance,
            now=self.now,
            uptime_s=uptime_s,
            quarantined=quarantined,
            draining=self.draining,
            aborting=self.aborting,
        )


TestSupervisorAgainstOracle = SupervisorAgainstOracle.TestCase
TestSupervisorAgainstOracle.settings = settings(max_examples=examples(150), stateful_step_count=40)
