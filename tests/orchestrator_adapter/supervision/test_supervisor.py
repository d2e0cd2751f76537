from __future__ import annotations

import random
from datetime import timedelta

import pytest

from orchestrator_adapter.primitives.errors import DeadLetterLimitExceeded, OperatorError, ReaderDone, ReaderGone
from orchestrator_adapter.supervision.restart import Backoff, RestartPolicy
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

FAILURE = Errored(OperatorError("the archive is away"))
BUG = Panicked("KeyError: 'x'", "Traceback …", KeyError("x"))
FIVE_A_MINUTE = RestartPolicy.bounded(5, timedelta(seconds=60))


class Desk:
    """One watched operator; exits go in, decisions come out."""

    def __init__(self, policy: RestartPolicy, *, is_source: bool = False) -> None:
        self.supervisor = Supervisor(random.Random(0))
        self.supervisor.watch("op", policy, is_source=is_source)
        self.instance = 0

    def decide(
        self,
        exit_: TaskExit = FAILURE,
        *,
        now: float = 0.0,
        uptime_s: float = 1.0,
        quarantined: int = 0,
        draining: bool = False,
    ) -> Action:
        self.instance += 1
        return self.supervisor.decide(
            "op",
            exit_,
            instance=self.instance,
            now=now,
            uptime_s=uptime_s,
            quarantined=quarantined,
            draining=draining,
        )


def restarted(decision: Action) -> Restart:
    assert isinstance(decision, Restart)
    return decision


# The table.


@pytest.mark.parametrize("draining", [False, True])
@pytest.mark.parametrize("policy", [RestartPolicy.never(), RestartPolicy.always(), FIVE_A_MINUTE], ids=str)
def test_what_needs_no_policy(policy: RestartPolicy, draining: bool) -> None:  # noqa: FBT001 - a parameter of the table
    """Ok closes outputs, Aborted is recorded, Panicked escalates: whatever the policy, draining or not."""
    assert Desk(policy).decide(Ok(), draining=draining) == CloseOutputs()
    assert Desk(policy).decide(Aborted(), draining=draining) == NoAction()
    assert Desk(policy).decide(BUG, draining=draining) == Escalate(BUG)


def test_a_failure_within_the_budget_restarts() -> None:
    """The decision carries the next instance, the cause, the time, and that the budget was charged."""
    record = restarted(Desk(FIVE_A_MINUTE).decide(now=12.5)).restarted
    assert (record.operator, record.instance, record.cause) == ("op", 2, "OperatorError: the archive is away")
    assert (record.at_monotonic, record.charged, record.backoff_s) == (12.5, True, 0.0)


def test_the_sixth_failure_in_the_window_exhausts_the_budget() -> None:
    """Five restarts, then ``Exhausted`` with the last error; after a window's length it would have been another."""
    desk = Desk(FIVE_A_MINUTE)
    assert [type(desk.decide(now=float(at))) for at in range(5)] == [Restart] * 5
    assert desk.decide(now=59.0) == Exhausted(FAILURE.error)
    assert isinstance(desk.decide(now=60.0), Restart)


def test_never_means_never() -> None:
    """The first failure exhausts a ``never``, although a pill was quarantined with it, and no restart is recorded."""
    assert Desk(RestartPolicy.never()).decide() == Exhausted(FAILURE.error)
    desk = Desk(RestartPolicy.never())
    assert desk.decide(quarantined=1) == Exhausted(FAILURE.error)
    assert desk.supervisor.restarts == {}


def test_budgets_are_one_operators_own() -> None:
    """One operator's failures leave another's budget whole."""
    desk = Desk(FIVE_A_MINUTE)
    desk.supervisor.watch("other", RestartPolicy.bounded(1, timedelta(seconds=60)), is_source=False)
    for _ in range(5):
        desk.decide()
    decision = desk.supervisor.decide("other", FAILURE, instance=1, now=0.0, uptime_s=1.0)
    assert isinstance(decision, Restart)


@pytest.mark.parametrize("error", [DeadLetterLimitExceeded("op: too many"), ReaderGone("edge 'a -> b'")], ids=repr)
def test_what_no_restart_can_mend_exhausts_at_once(error: OperatorError) -> None:
    """A bad deployment and a reader that is gone for good are not restarted, not even under ``always``."""
    assert Desk(RestartPolicy.always()).decide(Errored(error)) == Exhausted(error)
    group = ExceptionGroup("workers", [OperatorError("late"), error])
    assert Desk(RestartPolicy.always()).decide(Errored(group)) == Exhausted(group)


def test_an_operator_whose_readers_have_all_they_wanted_is_let_go() -> None:
    """By the end rule nothing is wrong: recorded under any policy; among other errors it excuses none of them."""
    done = ReaderDone("edge 'a -> b'")
    assert Desk(RestartPolicy.never()).decide(Errored(done)) == NoAction()
    assert Desk(RestartPolicy.never()).decide(Errored(ExceptionGroup("branches", [done, done]))) == NoAction()
    mixed = ExceptionGroup("branches", [done, OSError("disk")])
    assert Desk(RestartPolicy.always()).decide(Errored(mixed)) == Exhausted(mixed)


def test_a_restart_counts_from_when_it_begins() -> None:
    """With a backoff of 10 s, a restart decided at 0 s is in the window of a minute until 70 s."""
    ten = Backoff(timedelta(seconds=10), timedelta(seconds=10))
    one_a_minute = RestartPolicy.bounded(1, timedelta(seconds=60), backoff=ten)
    desk = Desk(one_a_minute)
    assert restarted(desk.decide(now=0.0)).restarted.backoff_s == 10.0
    assert desk.decide(now=69.9) == Exhausted(FAILURE.error)
    desk = Desk(one_a_minute)
    desk.decide(now=0.0)
    assert isinstance(desk.decide(now=70.0), Restart)


# Poison pills.


def test_a_pill_costs_one_restart_and_not_two() -> None:
    """The failure that made the suspect is charged, the one that quarantines it is not."""
    desk = Desk(RestartPolicy.bounded(1, timedelta(seconds=60)))
    assert restarted(desk.decide()).restarted.charged
    assert not restarted(desk.decide(quarantined=1)).restarted.charged
    assert desk.decide() == Exhausted(FAILURE.error)


def test_a_flood_of_pills_exhausts_the_budget() -> None:
    """With five a minute, five pills pass and the sixth brings the graph down."""
    desk = Desk(FIVE_A_MINUTE)
    for _ in range(5):
        assert isinstance(desk.decide(), Restart)
        assert isinstance(desk.decide(quarantined=1), Restart)
    assert desk.decide() == Exhausted(FAILURE.error)


def test_a_flood_of_pills_in_one_batch_exhausts_the_budget_too() -> None:
    """Pills that became suspects by one common failure cost one restart each all the same."""
    desk = Desk(FIVE_A_MINUTE)
    charged = [restarted(desk.decide()).restarted.charged]
    charged += [restarted(desk.decide(quarantined=1)).restarted.charged for _ in range(5)]
    assert charged == [True, False, True, True, True, True]
    assert desk.decide(quarantined=1) == Exhausted(FAILURE.error)


# Draining.


def test_sources_stay_down_while_draining() -> None:
    """A source that fails after the shutdown began is recorded, an operator is restarted to finish its drain."""
    assert Desk(FIVE_A_MINUTE, is_source=True).decide(draining=True) == NoAction()
    assert isinstance(Desk(FIVE_A_MINUTE).decide(draining=True), Restart)


def test_a_gone_reader_is_no_failure_while_draining() -> None:
    """The graph is coming down: an operator that has nobody to deliver to is recorded, also where a group says it."""
    gone = ReaderGone("edge 'a -> b'")
    assert Desk(RestartPolicy.never()).decide(Errored(gone), draining=True) == NoAction()
    group = ExceptionGroup("workers", [gone])
    assert Desk(RestartPolicy.never()).decide(Errored(group), draining=True) == NoAction()


def test_a_sink_that_fails_while_draining_still_exhausts_its_budget() -> None:
    """Draining excuses no sink: what it could not write is a failed run."""
    assert Desk(RestartPolicy.never()).decide(draining=True) == Exhausted(FAILURE.error)


def test_a_failure_during_the_drain_is_decided_with_its_backoff() -> None:
    """A persistent failure is not to spin through the grace period: how long it really waits is the runtime's business."""
    desk = Desk(RestartPolicy.always(backoff=Backoff(timedelta(seconds=1), timedelta(seconds=9))))
    assert restarted(desk.decide(draining=True)).restarted.backoff_s >= 1.0


# Backoff.


def test_the_backoff_grows_in_a_row_and_starts_over_after_a_healthy_spell() -> None:
    """With the draw pinned to its upper bound: 3 s, 9 s, and 3 s again after 30 s of health; 29.9 s are no health."""

    class Highest(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    supervisor = Supervisor(Highest())
    backoff = Backoff(timedelta(seconds=1), timedelta(seconds=60))
    supervisor.watch("op", RestartPolicy.always(backoff=backoff), is_source=False)
    delays = [
        restarted(supervisor.decide("op", FAILURE, instance=1, now=0.0, uptime_s=uptime_s)).restarted.backoff_s
        for uptime_s in (1.0, 29.9, 30.0, 1.0)
    ]
    assert delays == [3.0, 9.0, 3.0, 9.0]


# History.


def test_the_history_counts_all_restarts_and_tells_the_last_hundred() -> None:
    """After 250 restarts the total says so, and memory holds the newest 100."""
    desk = Desk(RestartPolicy.always())
    for at in range(250):
        desk.decide(now=float(at))
    history = desk.supervisor.restarts["op"]
    assert history.total == 250
    assert [record.at_monotonic for record in history.recent] == [float(at) for at in range(150, 250)]
