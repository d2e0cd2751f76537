"""The outbox, compared with plain lists: every item is queued, in flight, delivered or dropped."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from orchestrator_adapter.prefect_flow.client.posting import ReportItem
from orchestrator_adapter.prefect_flow.reporting.outbox import Outbox
from tests.helpers.sizes import examples


def numbered(*numbers: int) -> list[ReportItem]:
    return [{"id": number} for number in numbers]


def filled(*numbers: int, capacity: int = 10) -> Outbox:
    box = Outbox(capacity)
    for item in numbered(*numbers):
        box.put(item)
    return box


def test_items_leave_in_order_and_only_once_they_are_delivered() -> None:
    """A taken item stays in the outbox, in flight, until the server has it. Then ``take`` returns the next."""
    box = filled(1, 2, 3)
    assert box.take(2) == numbered(1, 2)
    assert (len(box), box.undelivered(), box.delivered) == (3, numbered(1, 2, 3), 0)
    box.mark_delivered(0.0)
    assert (len(box), box.take(2), box.delivered) == (1, numbered(3), 2)


def test_a_batch_in_flight_is_taken_again_unchanged() -> None:
    """A cancelled delivery is repeated with the same batch, for any limit."""
    box = filled(1, 2, 3)
    assert box.take(2) == box.take(3) == numbered(1, 2)


def test_a_returned_batch_is_first_again_and_in_order() -> None:
    """Also before items that were added since."""
    box = filled(1, 2, 3)
    box.take(2)
    box.put({"id": 4})
    box.return_batch()
    assert box.take(10) == numbered(1, 2, 3, 4)


def test_a_full_outbox_drops_its_oldest_item_and_counts_it() -> None:
    """If every item is in flight, it drops the new one."""
    box = filled(1, 2, 3, capacity=2)
    assert (box.undelivered(), box.dropped) == (numbered(2, 3), 1)
    box.take(2)
    box.put({"id": 4})
    assert (box.undelivered(), box.dropped) == (numbered(2, 3), 2)


def test_a_rejected_item_is_dropped_and_counted() -> None:
    """It is neither delivered nor sent again."""
    box = filled(1, 2, 3)
    box.take(2)
    box.reject({"id": 1})
    assert (box.undelivered(), box.dropped, box.delivered) == (numbered(2, 3), 1, 0)
    box.mark_delivered(1.0)
    assert (box.undelivered(), box.dropped, box.delivered) == (numbered(3), 1, 1)
    assert box.requeue_delivered(since=0.0) == 1
    assert box.undelivered() == numbered(3, 2)


def test_only_items_delivered_since_then_are_queued_again_and_once() -> None:
    """An item delivered at exactly that time is included. A second call finds nothing."""
    box = filled(1, 2, 3)
    for now in (1.0, 2.0, 3.0):
        box.take(1)
        box.mark_delivered(now)
    assert (box.requeue_delivered(since=2.0), box.undelivered(), box.delivered) == (2, numbered(2, 3), 1)
    assert box.requeue_delivered(since=2.0) == 0
    assert box.requeue_delivered(since=1.0) == 1


def test_delivered_items_are_kept_up_to_a_bound() -> None:
    """Of 1,500 delivered items the last 1,000 can be sent again, so a long run does not use more memory."""
    box = filled(*range(1_500), capacity=2_000)
    while box:
        box.take(200)
        box.mark_delivered(0.0)
    assert box.requeue_delivered(since=0.0) == 1_000
    assert box.undelivered() == numbered(*range(500, 1_500))


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_below_1_is_an_error(capacity: int) -> None:
    """The message has the expected and the actual value."""
    with pytest.raises(ValueError, match=rf"Outbox: capacity must be >= 1, got {capacity}"):
        Outbox(capacity)


class OutboxModel(RuleBasedStateMachine):
    """The outbox and plain lists with the same content. Time never goes back."""

    @initialize(capacity=st.integers(1, 5))
    def begin(self, capacity: int) -> None:
        self.capacity = capacity
        self.box = Outbox(capacity)
        self.put_ever, self.now = 0, 0.0
        self.queued: list[int] = []
        self.in_flight: list[int] = []
        self.delivered_at: list[tuple[float, int]] = []
        self.dropped: list[int] = []
        self.gone: list[int] = []  # delivered and no longer kept

    def _put(self, number: int) -> None:
        self.box.put({"id": number})
        self._expect(number)

    def _expect(self, number: int) -> None:
        self.queued.append(number)
        if len(self.queued) + len(self.in_flight) > self.capacity:
            self.dropped.append(self.queued.pop(0))

    @rule()
    def put(self) -> None:
        self.put_ever += 1
        self._put(self.put_ever)

    @rule(limit=st.integers(1, 6))
    def take(self, limit: int) -> None:
        if not self.in_flight:
            self.in_flight, self.queued = self.queued[:limit], self.queued[limit:]
        assert self.box.take(limit) == numbered(*self.in_flight)

    @rule()
    def return_batch(self) -> None:
        self.box.return_batch()
        self.queued, self.in_flight = self.in_flight + self.queued, []

    @precondition(lambda self: self.in_flight)
    @rule(which=st.integers(0, 5))
    def reject(self, which: int) -> None:
        number = self.in_flight.pop(which % len(self.in_flight))
        self.box.reject({"id": number})
        self.dropped.append(number)

    @rule(seconds=st.integers(0, 3))
    def mark_delivered(self, seconds: int) -> None:
        self.now += seconds
        self.box.mark_delivered(self.now)
        self.delivered_at += [(self.now, number) for number in self.in_flight]
        self.in_flight = []

    @rule(ago=st.integers(0, 8))
    def requeue_delivered(self, ago: int) -> None:
        room = self.capacity - len(self.queued) - len(self.in_flight)
        since = [number for at, number in self.delivered_at if at >= self.now - ago]
        again = since[len(since) - min(room, len(since)) :]
        self.gone += since[: len(since) - len(again)]
        self.delivered_at = [(at, number) for at, number in self.delivered_at if at < self.now - ago]
        assert self.box.requeue_delivered(since=self.now - ago) == len(again)
        for number in again:
            self._expect(number)

    @invariant()
    def it_has_the_same_content_as_the_lists(self) -> None:
        if not hasattr(self, "box"):
            return
        assert self.box.undelivered() == numbered(*self.in_flight, *self.queued)
        assert len(self.box) == len(self.in_flight) + len(self.queued) <= self.capacity
        assert bool(self.box) is bool(self.in_flight or self.queued)
        assert (self.box.dropped, self.box.delivered) == (len(self.dropped), len(self.delivered_at) + len(self.gone))

    @invariant()
    def every_item_is_in_one_place(self) -> None:
        if hasattr(self, "box"):
            delivered = [number for _, number in self.delivered_at]
            everywhere = [*self.queued, *self.in_flight, *delivered, *self.dropped, *self.gone]
            assert sorted(everywhere) == list(range(1, self.put_ever + 1))


TestOutboxModel = OutboxModel.TestCase
TestOutboxModel.settings = settings(max_examples=examples(60), stateful_step_count=30)
