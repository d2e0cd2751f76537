"""The outbox against a list: what waits, what is under way, what was dropped, and nothing else happens to an item."""

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


def test_first_in_is_first_out_and_only_an_arrival_lets_go() -> None:
    """What is taken stays in the box, under way, until the server has it; ``take`` then gives the next."""
    box = filled(1, 2, 3)
    assert box.take(2) == numbered(1, 2)
    assert (len(box), box.undelivered(), box.delivered) == (3, numbered(1, 2, 3), 0)
    box.mark_delivered(0.0)
    assert (len(box), box.take(2), box.delivered) == (1, numbered(3), 2)


def test_what_is_under_way_is_taken_again_and_not_what_is_behind_it() -> None:
    """A delivery that was cancelled in the middle goes out again as the same batch, whatever the limit is."""
    box = filled(1, 2, 3)
    assert box.take(2) == box.take(3) == numbered(1, 2)


def test_what_failed_is_first_again_and_in_order() -> None:
    """Also before what has come meanwhile."""
    box = filled(1, 2, 3)
    box.take(2)
    box.put({"id": 4})
    box.return_batch()
    assert box.take(10) == numbered(1, 2, 3, 4)


def test_a_full_box_gives_up_its_oldest_item_and_counts_it() -> None:
    """The newest is what people want to see; a box that is under way altogether can only give up what comes."""
    box = filled(1, 2, 3, capacity=2)
    assert (box.undelivered(), box.dropped) == (numbered(2, 3), 1)
    box.take(2)
    box.put({"id": 4})
    assert (box.undelivered(), box.dropped) == (numbered(2, 3), 2)


def test_what_the_server_refuses_is_gone_and_counted() -> None:
    """It is neither delivered nor tried again."""
    box = filled(1, 2, 3)
    box.take(2)
    box.reject({"id": 1})
    assert (box.undelivered(), box.dropped, box.delivered) == (numbered(2, 3), 1, 0)
    box.mark_delivered(1.0)
    assert (box.undelivered(), box.dropped, box.delivered) == (numbered(3), 1, 1)
    assert box.requeue_delivered(since=0.0) == 1
    assert box.undelivered() == numbered(3, 2)


def test_only_what_has_arrived_since_then_is_sent_again_and_once() -> None:
    """An item that arrived at the very moment is among it; a second call finds nothing."""
    box = filled(1, 2, 3)
    for now in (1.0, 2.0, 3.0):
        box.take(1)
        box.mark_delivered(now)
    assert (box.requeue_delivered(since=2.0), box.undelivered(), box.delivered) == (2, numbered(2, 3), 1)
    assert box.requeue_delivered(since=2.0) == 0
    assert box.requeue_delivered(since=1.0) == 1


def test_what_arrived_is_remembered_up_to_a_bound() -> None:
    """Of 1,500 delivered items the last 1,000 can be sent again: a long run does not grow."""
    box = filled(*range(1_500), capacity=2_000)
    while box:
        box.take(200)
        box.mark_delivered(0.0)
    assert box.requeue_delivered(since=0.0) == 1_000
    assert box.undelivered() == numbered(*range(500, 1_500))


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_box_without_room_is_refused(capacity: int) -> None:
    """The message says what was expected and what came."""
    with pytest.raises(ValueError, match=rf"Outbox: capacity must be >= 1, got {capacity}"):
        Outbox(capacity)


class OutboxModel(RuleBasedStateMachine):
    """Beside it, plain lists of the same; time only moves on."""

    @initialize(capacity=st.integers(1, 5))
    def begin(self, capacity: int) -> None:
        self.capacity = capacity
        self.box = Outbox(capacity)
        self.put_ever, self.now = 0, 0.0
        self.waiting: list[int] = []
        self.under_way: list[int] = []
        self.arrived_at: list[tuple[float, int]] = []
        self.dropped: list[int] = []
        self.gone: list[int] = []  # delivered, and no longer remembered

    def _put(self, number: int) -> None:
        self.box.put({"id": number})
        self._expect(number)

    def _expect(self, number: int) -> None:
        self.waiting.append(number)
        if len(self.waiting) + len(self.under_way) > self.capacity:
            self.dropped.append(self.waiting.pop(0))

    @rule()
    def put(self) -> None:
        self.put_ever += 1
        self._put(self.put_ever)

    @rule(limit=st.integers(1, 6))
    def take(self, limit: int) -> None:
        if not self.under_way:
            self.under_way, self.waiting = self.waiting[:limit], self.waiting[limit:]
        assert self.box.take(limit) == numbered(*self.under_way)

    @rule()
    def failed(self) -> None:
        self.box.return_batch()
        self.waiting, self.under_way = self.under_way + self.waiting, []

    @precondition(lambda self: self.under_way)
    @rule(which=st.integers(0, 5))
    def refused(self, which: int) -> None:
        number = self.under_way.pop(which % len(self.under_way))
        self.box.reject({"id": number})
        self.dropped.append(number)

    @rule(seconds=st.integers(0, 3))
    def arrived(self, seconds: int) -> None:
        self.now += seconds
        self.box.mark_delivered(self.now)
        self.arrived_at += [(self.now, number) for number in self.under_way]
        self.under_way = []

    @rule(ago=st.integers(0, 8))
    def requeue_delivered(self, ago: int) -> None:
        room = self.capacity - len(self.waiting) - len(self.under_way)
        since = [number for at, number in self.arrived_at if at >= self.now - ago]
        again = since[len(since) - min(room, len(since)) :]
        self.gone += since[: len(since) - len(again)]
        self.arrived_at = [(at, number) for at, number in self.arrived_at if at < self.now - ago]
        assert self.box.requeue_delivered(since=self.now - ago) == len(again)
        for number in again:
            self._expect(number)

    @invariant()
    def it_holds_what_the_lists_hold(self) -> None:
        if not hasattr(self, "box"):
            return
        assert self.box.undelivered() == numbered(*self.under_way, *self.waiting)
        assert len(self.box) == len(self.under_way) + len(self.waiting) <= self.capacity
        assert bool(self.box) is bool(self.under_way or self.waiting)
        assert (self.box.dropped, self.box.delivered) == (len(self.dropped), len(self.arrived_at) + len(self.gone))

    @invariant()
    def every_item_is_in_one_place(self) -> None:
        if hasattr(self, "box"):
            delivered = [number for _, number in self.arrived_at]
            everywhere = [*self.waiting, *self.under_way, *delivered, *self.dropped, *self.gone]
            assert sorted(everywhere) == list(range(1, self.put_ever + 1))


TestOutboxModel = OutboxModel.TestCase
TestOutboxModel.settings = settings(max_examples=examples(60), stateful_step_count=30)
