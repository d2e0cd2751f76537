"""The supervisor with its budgets against a naive model that remembers everything: stateful, with given time."""

from __future__ import annotations

import random
from datetime import timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from orchestrator_adapter.errors import OperatorError
from orchestrator_adapter.restart import RestartKind, RestartPolicy
from orchestrator_adapter.supervisor import CloseOutputs, Escalate, Exhausted, Record, Restart, Supervisor
from orchestrator_adapter.task_exit import Aborted, Errored, Ok, classify

POLICIES = st.one_of(
    st.just(RestartPolicy.never()),
    st.just(RestartPolicy.always()),
    st.builds(
        RestartPolicy.bounded,
        st.integers(1, 4),
        st.integers(1, 20).map(lambda seconds: timedelta(seconds=seconds)),
    ),
)


class SupervisorAgainstModel(RuleBasedStateMachine):
    """Two operators, one of them a source. The model keeps every charged restart for ever and counts anew each time."""

    def __init__(self) -> None:
        super().__init__()
        self.supervisor = Supervisor(random.Random(0))
        self.policies: dict[str, RestartPolicy] = {}
        self.charged: dict[str, list[float]] = {"source": [], "operator": []}
        self.total = {"source": 0, "operator": 0}
        self.pill_paid = {"source": False, "operator": False}
        self.now = 0.0

    @initialize(source=POLICIES, operator=POLICIES)
    def watch(self, source: RestartPolicy, operator: RestartPolicy) -> None:
        self.policies = {"source": source, "operator": operator}
        for name, policy in self.policies.items():
            self.supervisor.watch(name, policy, is_source=name == "source")

    @rule(seconds=st.integers(0, 8))
    def pass_time(self, seconds: int) -> None:
        self.now += seconds

    @rule(name=st.sampled_from(["source", "operator"]), quarantined=st.integers(0, 2), draining=st.booleans())
    def fail(self, name: str, quarantined: int, draining: bool) -> None:  # noqa: FBT001 - Hypothesis passes by name
        decision = self.decide(name, Errored(OperatorError("away")), quarantined=quarantined, draining=draining)
        if draining and name == "source":
            assert decision == Record()
            return
        policy = self.policies[name]
        free = quarantined > 0 and self.pill_paid[name] and policy.kind is not RestartKind.NEVER
        if not free and not self.has_room(name):
            assert isinstance(decision, Exhausted)
            return
        assert isinstance(decision, Restart)
        assert decision.restarted.charged is not free
        if not free:
            self.charged[name].append(self.now)
        self.pill_paid[name] = quarantined == 0
        self.total[name] += 1

    @rule(name=st.sampled_from(["source", "operator"]), draining=st.booleans())
    def end(self, name: str, draining: bool) -> None:  # noqa: FBT001 - as above
        assert self.decide(name, Ok(), draining=draining) == CloseOutputs()
        assert self.decide(name, Aborted("asked"), draining=draining) == Record()
        assert isinstance(self.decide(name, classify(KeyError("bug")), draining=draining), Escalate)

    @rule(name=st.sampled_from(["source", "operator"]))
    def fail_while_everything_is_aborted(self, name: str) -> None:
        assert self.decide(name, Errored(OperatorError("away")), aborting=True) == Record()

    @invariant()
    def every_restart_is_counted(self) -> None:
        counted = {name: history.total for name, history in self.supervisor.restarts.items()}
        assert counted == {name: total for name, total in self.total.items() if total}

    def has_room(self, name: str) -> bool:
        policy = self.policies[name]
        if policy.kind is RestartKind.BOUNDED:
            window_s = policy.window.total_seconds()
            return sum(self.now - at < window_s for at in self.charged[name]) < policy.max_restarts
        return policy.kind is RestartKind.ALWAYS

    def decide(
        self,
        name: str,
        exit_: Ok | Aborted | Errored | object,
        *,
        quarantined: int = 0,
        draining: bool = False,
        aborting: bool = False,
    ) -> object:
        return self.supervisor.decide(
            name,
            exit_,  # type: ignore[arg-type] # the four exits, put more loosely
            instance=1,
            now=self.now,
            uptime_s=1.0,
            quarantined=quarantined,
            draining=draining,
            aborting=aborting,
        )


TestSupervisorAgainstModel = SupervisorAgainstModel.TestCase
TestSupervisorAgainstModel.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
