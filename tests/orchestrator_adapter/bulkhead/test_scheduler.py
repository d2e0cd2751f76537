from __future__ import annotations

import random
from datetime import timedelta

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator_adapter.bulkhead.errors import Malformed
from orchestrator_adapter.bulkhead.scheduler import Loss, RebuildBudget, Scheduler
from orchestrator_adapter.supervision.restart import Backoff, RestartPolicy
from tests.helpers.sizes import examples


def scheduler(*workers: int, in_flight: int = 2, calls: int = 0) -> Scheduler:
    """With these workers ready and calls 1, 2, … queued."""
    made = Scheduler(in_flight=in_flight)
    for worker in workers:
        made.add_worker(worker)
    for ticket in range(1, calls + 1):
        made.submit(ticket)
    return made


def assigned(of: Scheduler, now: float = 0.0) -> list[tuple[int, int]]:
    return [(assignment.worker, assignment.ticket) for assignment in of.assign(now)]


def test_calls_are_assigned_in_order_to_the_least_busy_worker_and_the_rest_is_queued() -> None:
    """Five calls, two workers, two places each: one call is queued until a place is free."""
    calls = scheduler(1, 2, calls=5)
    assert assigned(calls) == [(1, 1), (2, 2), (1, 3), (2, 4)]
    assert (calls.waiting, calls.in_flight) == (1, 4)
    assert calls.answered(2, 2, now=1.0)
    assert assigned(calls) == [(2, 5)]
    assert assigned(calls) == []


def test_only_the_oldest_call_is_charged_with_a_lost_worker_and_all_are_requeued_in_order() -> None:
    """All calls of the worker are requeued first. If the oldest call loses a second worker, only that call is given up."""
    calls = scheduler(1, calls=3, in_flight=3)
    calls.submit(4)
    assert assigned(calls) == [(1, 1), (1, 2), (1, 3)]
    assert calls.remove_worker(1) == Loss(resubmitted=1, requeued=(2, 3), given_up=None)
    calls.add_worker(1)
    assert assigned(calls) == [(1, 1), (1, 2), (1, 3)]
    assert calls.remove_worker(1) == Loss(resubmitted=None, requeued=(2, 3), given_up=1)
    calls.add_worker(1)
    assert assigned(calls) == [(1, 2), (1, 3), (1, 4)]
    assert calls.remove_worker(1) == Loss(resubmitted=2, requeued=(3, 4), given_up=None)


def test_an_abandoned_call_keeps_its_place_until_it_is_answered_and_is_never_resubmitted() -> None:
    """The worker still works on it. If the worker is lost, the call is dropped; a queued one leaves the queue."""
    calls = scheduler(1, calls=3)
    assert assigned(calls) == [(1, 1), (1, 2)]
    calls.abandon(1)
    calls.abandon(3)
    assert (calls.waiting, calls.in_flight) == (0, 1)
    calls.submit(4)
    assert assigned(calls) == []
    assert not calls.answered(1, 1, now=1.0)
    assert assigned(calls) == [(1, 4)]
    calls.abandon(2)
    assert calls.remove_worker(1) == Loss(resubmitted=None, requeued=(4,), given_up=None)


def test_abandoning_a_call_that_has_ended_changes_nothing() -> None:
    """A caller may be cancelled just as its answer arrives."""
    calls = scheduler(1, calls=1)
    assigned(calls)
    assert calls.answered(1, 1, now=1.0)
    calls.abandon(1)
    assert (calls.waiting, calls.in_flight) == (0, 0)


def test_a_share_takes_no_place_of_a_call_and_a_loss_during_it_charges_no_call() -> None:
    """It is answered in order; calls queued behind it are requeued without a charge if the worker is lost."""
    calls = scheduler(1, calls=1)
    calls.share(1, 100, now=0.0)
    assert assigned(calls) == [(1, 1)]
    calls.submit(2)
    calls.submit(3)
    assert assigned(calls) == [(1, 2)]
    assert not calls.answered(1, 100, now=1.0, shared=True)
    assert assigned(calls) == []
    calls.share(1, 101, now=1.0)
    assert calls.answered(1, 1, now=2.0)
    assert assigned(calls) == [(1, 3)]
    assert calls.answered(1, 2, now=2.0)
    assert calls.remove_worker(1) == Loss(resubmitted=None, requeued=(3,), given_up=None)


@pytest.mark.parametrize("ticket", [2, 3, 0])
def test_an_answer_out_of_order_is_malformed(ticket: int) -> None:
    """A worker must answer the oldest call first, and only calls that it was sent."""
    calls = scheduler(1, calls=2)
    assigned(calls)
    with pytest.raises(Malformed, match=f"expected an answer to 1, got one to {ticket}"):
        calls.answered(1, ticket, now=1.0)
    with pytest.raises(Malformed, match="expected an answer to nothing"):
        scheduler(1).answered(1, 1, now=0.0)


def test_a_calls_time_counts_from_when_it_became_the_oldest() -> None:
    """A call queued behind another one is not being worked on; its time begins when it is the oldest."""
    calls = scheduler(1, 2, calls=3)
    assert calls.next_deadline(10.0) is None
    assert assigned(calls, now=5.0) == [(1, 1), (2, 2), (1, 3)]
    assert calls.next_deadline(10.0) == 15.0
    assert calls.overdue(14.999, 10.0) == ()
    assert calls.overdue(15.0, 10.0) == (1, 2)
    calls.answered(1, 1, now=14.0)
    assert calls.overdue(23.999, 10.0) == (2,)
    assert calls.overdue(24.0, 10.0) == (1, 2)
    calls.answered(1, 3, now=24.0)
    calls.remove_worker(2)
    assert calls.next_deadline(10.0) is None


def test_idle_time_of_a_worker_does_not_count() -> None:
    """A call sent to a worker after a long pause has the full time."""
    calls = scheduler(1, calls=1)
    assigned(calls, now=0.0)
    calls.answered(1, 1, now=1.0)
    calls.submit(2)
    assigned(calls, now=100.0)
    assert calls.next_deadline(10.0) == 110.0


def test_the_budget_admits_a_bounded_number_of_rebuilds_in_its_window() -> None:
    """Two per minute: the third is admitted only when the first is a minute old."""
    budget = RebuildBudget(RestartPolicy.bounded(2, timedelta(seconds=60), backoff=None), random.Random(0))
    assert [budget.next_delay_s(now, 0.0) for now in (0.0, 1.0, 59.9, 60.0, 60.5)] == [0.0, 0.0, None, 0.0, None]
    assert RebuildBudget(RestartPolicy.never(), random.Random(0)).next_delay_s(0.0, 0.0) is None


def test_the_backoff_grows_with_consecutive_losses_and_is_reset_after_a_healthy_uptime() -> None:
    """Drawn at its upper bound: 3, 9, 10 s, and 3 s again after half a minute of uptime."""
    backoff = Backoff(timedelta(seconds=1), timedelta(seconds=10), healthy_after=timedelta(seconds=30))

    class Upper(random.Random):
        def uniform(self, a: float, b: float) -> float:
            return b

    budget = RebuildBudget(RestartPolicy.always(backoff=backoff), Upper())
    assert [budget.next_delay_s(0.0, uptime) for uptime in (0.0, 1.0, 29.9, 30.0, 0.0)] == [3.0, 9.0, 10.0, 3.0, 9.0]


class EveryCall(RuleBasedStateMachine):
    """Calls, losses and cancellations in any order, compared with a simple model."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(in_flight=2)
        self.pipes: dict[int, list[int]] = {}
        self.alive: set[int] = set()  # calls that have not ended
        self.losses: dict[int, int] = {}  # how many workers were lost with each call as their oldest
        self.next = 0

    def send(self) -> None:
        for assignment in self.scheduler.assign(0.0):
            self.pipes[assignment.worker].append(assignment.ticket)

    @rule()
    def call(self) -> None:
        self.next += 1
        self.alive.add(self.next)
        self.losses[self.next] = 0
        self.scheduler.submit(self.next)
        self.send()

    @rule(worker=st.integers(1, 3))
    def add_worker(self, worker: int) -> None:
        if worker not in self.pipes:
            self.pipes[worker] = []
            self.scheduler.add_worker(worker)
            self.send()

    @precondition(lambda self: any(self.pipes.values()))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([worker for worker, pipe in self.pipes.items() if pipe]))
        ticket = self.pipes[worker].pop(0)
        assert self.scheduler.answered(worker, ticket, 0.0) == (ticket in self.alive)
        self.alive.discard(ticket)
        self.send()

    @precondition(lambda self: self.pipes)
    @rule(data=st.data())
    def remove_worker(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.pipes)))
        pipe = self.pipes.pop(worker)
        loss = self.scheduler.remove_worker(worker)
        expected = [ticket for ticket in pipe if ticket in self.alive]
        if pipe and pipe[0] in self.alive:
            self.losses[pipe[0]] += 1
            if self.losses[pipe[0]] == 2:
                assert loss.given_up == pipe[0]
                self.alive.remove(expected.pop(0))
            else:
                assert loss.resubmitted == pipe[0]
        assert [ticket for ticket in (loss.resubmitted, *loss.requeued) if ticket is not None] == expected
        self.send()

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.alive)))
        self.alive.remove(ticket)
        self.scheduler.abandon(ticket)
        self.send()

    @invariant()
    def every_call_is_in_one_place(self) -> None:
        sent = [ticket for pipe in self.pipes.values() for ticket in pipe]
        assert len(sent) == len(set(sent))
        assert self.scheduler.in_flight == len(self.alive & set(sent))
        assert self.scheduler.waiting == len(self.alive - set(sent))
        assert all(len(pipe) <= 2 for pipe in self.pipes.values())
        if self.scheduler.waiting:
            assert all(len(pipe) == 2 for pipe in self.pipes.values())


TestEveryCall = EveryCall.TestCase
TestEveryCall.settings = settings(max_examples=examples(60), stateful_step_count=40, deadline=None)
