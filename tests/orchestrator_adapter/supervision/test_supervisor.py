"""``Supervisor``: exits in, decisions out, time given."""

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
FIVE_A_MINUTE = RestartPolicy.bounded(5, timedelta(seconds=60), backoff=None)


class Watched:
    """A supervisor with one operator."""

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
def test_ok_aborted_and_panicked_do_not_depend_on_the_policy(policy: RestartPolicy, draining: bool) -> None:  # noqa: FBT001 - a parameter of the table
    """Ok closes outputs, Aborted is recorded, Panicked escalates, with any policy, draining or not."""
    assert Watched(policy).decide(Ok(), draining=draining) == CloseOutputs()
    assert Watched(policy).decide(Aborted(), draining=draining) == NoAction()
    assert Watched(policy).decide(BUG, draining=draining) == Escalate(BUG)


def test_a_failure_within_the_budget_restarts() -> None:
    """The decision has the next instance, the cause, the time, and that the budget was charged."""
    record = restarted(Watched(FIVE_A_MINUTE).decide(now=12.5)).restarted
    assert (record.operator, record.instance, record.cause) == ("op", 2, "OperatorError: the archive is away")
    assert (record.at_monotonic, record.charged, record.backoff_s) == (12.5, True, 0.0)


def test_the_sixth_failure_in_the_window_exhausts_the_budget() -> None:
    """Five restarts, then ``Exhausted`` with the last error. A window later a restart is admitted again."""
    watched = Watched(FIVE_A_MINUTE)
    assert [type(watched.decide(now=float(at))) for at in range(5)] == [Restart] * 5
    assert watched.decide(now=59.0) == Exhausted(FAILURE.error)
    assert isinstance(watched.decide(now=60.0), Restart)


def test_never_restarts_not_even_after_a_quarantine() -> None:
    """The first failure exhausts the budget, also if it quarantined a pill, and no restart is recorded."""
    assert Watched(RestartPolicy.never()).decide() == Exhausted(FAILURE.error)
    watched = Watched(RestartPolicy.never())
    assert watched.decide(quarantined=1) == Exhausted(FAILURE.error)
    assert watched.supervisor.restarts == {}


def test_each_operator_has_its_own_budget() -> None:
    """One operator's failures do not charge another's budget."""
    watched = Watched(FIVE_A_MINUTE)
    watched.supervisor.watch("other", RestartPolicy.bounded(1, timedelta(seconds=60)), is_source=False)
    for _ in range(5):
        watched.decide()
    decision = watched.supervisor.decide("other", FAILURE, instance=1, now=0.0, uptime_s=1.0)
    assert isinstance(decision, Restart)


@pytest.mark.parametrize("error", [DeadLetterLimitExceeded("op: too many"), ReaderGone("edge 'a -> b'")], ids=repr)
def test_errors_that_a_restart_cannot_fix_exhaust_the_budget_at_once(error: OperatorError) -> None:
    """Too many dead letters and a reader that has ended are not restarted, not even with ``always``."""
    assert Watched(RestartPolicy.always()).decide(Errored(error)) == Exhausted(error)
    group = ExceptionGroup("workers", [OperatorError("late"), error])
    assert Watched(RestartPolicy.always()).decide(Errored(group)) == Exhausted(group)


def test_an_operator_whose_readers_are_done_is_not_restarted() -> None:
    """By the end rule this is not a failure, with any policy. In a group it does not excuse other errors."""
    done = ReaderDone("edge 'a -> b'")
    assert Watched(RestartPolicy.never()).decide(Errored(done)) == NoAction()
    assert Watched(RestartPolicy.never()).decide(Errored(ExceptionGroup("branches", [done, done]))) == NoAction()
    mixed = ExceptionGroup("branches", [done, OSError("disk")])
    assert Watched(RestartPolicy.always()).decide(Errored(mixed)) == Exhausted(mixed)


def test_a_restart_counts_from_its_start() -> None:
    """With a backoff of 10 s, a restart decided at 0 s is in a window of one minute until 70 s."""
    ten = Backoff(timedelta(seconds=10), timedelta(seconds=10))
    one_a_minute = RestartPolicy.bounded(1, timedelta(seconds=60), backoff=ten)
    watched = Watched(one_a_minute)
    assert restarted(watched.decide(now=0.0)).restarted.backoff_s == 10.0
    assert watched.decide(now=69.9) == Exhausted(FAILURE.error)
    watched = Watched(one_a_minute)
    watched.decide(now=0.0)
    assert isinstance(watched.decide(now=70.0), Restart)


# Poison pills.


def test_a_pill_costs_one_restart_and_not_two() -> None:
    """The failure that made the item a suspect is charged; the failure that quarantines it is not."""
    watched = Watched(RestartPolicy.bounded(1, timedelta(seconds=60)))
    assert restarted(watched.decide()).restarted.charged
    assert not restarted(watched.decide(quarantined=1)).restarted.charged
    assert watched.decide() == Exhausted(FAILURE.error)


def test_a_flood_of_pills_exhausts_the_budget() -> None:
    """With five restarts a minute, five pills pass and the sixth brings the graph down."""
    watched = Watched(FIVE_A_MINUTE)
    for _ in range(5):
        assert isinstance(watched.decide(), Restart)
        assert isinstance(watched.decide(quarantined=1), Restart)
    assert watched.decide() == Exhausted(FAILURE.error)


def test_a_flood_of_pills_in_one_batch_exhausts_the_budget_too() -> None:
    """Pills that became suspects by one common failure cost one restart each."""
    watched = Watched(FIVE_A_MINUTE)
    charged = [restarted(watched.decide()).restarted.charged]
    charged += [restarted(watched.decide(quarantined=1)).restarted.charged for _ in range(5)]
    assert charged == [True, False, True, True, True, True]
    assert watched.decide(quarantined=1) == Exhausted(FAILURE.error)


# Draining.


def test_sources_are_not_restarted_while_draining() -> None:
    """The failure of a source in a shutdown is recorded. An operator is restarted to finish its drain."""
    assert Watched(FIVE_A_MINUTE, is_source=True).decide(draining=True) == NoAction()
    assert isinstance(Watched(FIVE_A_MINUTE).decide(draining=True), Restart)


def test_an_ended_reader_is_not_a_failure_while_draining() -> None:
    """An operator without a reader is recorded, also if the error is in a group."""
    gone = ReaderGone("edge 'a -> b'")
    assert Watched(RestartPolicy.never()).decide(Errored(gone), draining=True) == NoAction()
    group = ExceptionGroup("workers", [gone])
    assert Watched(RestartPolicy.never()).decide(Errored(group), draining=True) == NoAction()


def test_a_sink_that_fails_while_draining_still_exhausts_its_budget() -> None:
    """A sink that cannot write its items makes the run fail, also in a shutdown."""
    assert Watched(RestartPolicy.never()).decide(draining=True) == Exhausted(FAILURE.error)


def test_a_failure_during_the_drain_is_decided_with_its_backoff() -> None:
    """A persistent failure must not restart continuously in the grace period. The runtime may shorten the delay."""
    watched = Watched(RestartPolicy.always(backoff=Backoff(timedelta(seconds=1), timedelta(seconds=9))))
    assert restarted(watched.decide(draining=True)).restarted.backoff_s >= 1.0


# Backoff.


def test_the_backoff_grows_and_starts_over_after_a_healthy_time() -> None:
    """With the draw pinned to its upper bound: 3 s, 9 s, and 3 s again after an uptime of 30 s, but not of 29.9 s."""

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


def test_the_history_counts_all_restarts_and_keeps_the_last_hundred() -> None:
    """After 250 restarts the total is 250, and the newest 100 are kept."""
    watched = Watched(RestartPolicy.always())
    for at in range(250):
        watched.decide(now=float(at))
    history = watched.supervisor.restarts["op"]
    assert history.total == 250
    assert [record.at_monotonic for record in history.recent] == [float(at) for at in range(150, 250)]
