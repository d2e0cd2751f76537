from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator_adapter.channels.channel import Channel, EdgeStatistics, Undeliverable
from orchestrator_adapter.channels.control import Control
from orchestrator_adapter.channels.flow_policy import FlowPolicy
from tests.helpers.sizes import examples


def channel_with(*items: str, capacity: int = 8) -> Channel[str]:
    channel: Channel[str] = Channel("up -> down", capacity)
    assert channel.push(items) == len(items)
    return channel


# Room.


def test_push_accepts_from_the_front_what_fits_and_no_more() -> None:
    """Of five items pushed into a channel of three, the first three are accepted."""
    channel = channel_with(capacity=3)
    assert channel.push("abcde") == 3
    assert channel.take(9) == ["a", "b", "c"]


def test_push_one_returns_whether_the_item_fits() -> None:
    """A full channel rejects an item and does not change."""
    channel = channel_with("a", capacity=1)
    assert channel.push(["b"]) == 0
    assert channel.take(9) == ["a"]


def test_leased_items_take_up_room() -> None:
    """Taking an item makes no room: capacity bounds leased and ready items together."""
    channel = channel_with("a", "b", capacity=2)
    channel.take(2)
    assert (channel.room, channel.occupancy) == (0, 2)
    channel.acknowledge(1)
    assert channel.room == 1


def test_a_long_stream_does_not_accumulate_acknowledged_items() -> None:
    """After 100,000 items through a channel of 1,000 the buffer contains at most twice its capacity."""
    channel: Channel[int] = Channel("up -> down", 1_000)
    longest = 0
    for number in range(100_000):
        channel.push((number,))
        if channel.occupancy > 900:
            channel.acknowledge(len(channel.take(7)))
        longest = max(longest, len(channel._buffer))
    assert longest <= 2_000


# Leases.


def test_acknowledging_more_than_is_leased_is_rejected() -> None:
    """The message has the edge, the number acknowledged and the number leased."""
    channel = channel_with("a", "b")
    channel.take(1)
    with pytest.raises(ValueError, match=r"^edge 'up -> down': 2 items acknowledged, but 1 are leased$"):
        channel.acknowledge(2)
    with pytest.raises(ValueError, match=r"-1 items acknowledged"):
        channel.acknowledge(-1)


def test_taking_zero_items_is_rejected() -> None:
    """``take(0)`` raises: an empty list would mean the end of the stream."""
    with pytest.raises(ValueError, match=r"^edge 'up -> down': expected to take at least one item, got max_items=0$"):
        channel_with("a").take(0)


def test_returned_items_are_delivered_again_in_order_one_at_a_time() -> None:
    """After a failure with three leased items, these are delivered one by one, and the items after them as a batch."""
    channel = channel_with("a", "b", "c", "d", "e")
    channel.take(3)
    assert channel.return_leases("boom", 2) == []
    deliveries = []
    while batch := channel.take(9) if channel.ready else []:
        deliveries.append(batch)
        channel.acknowledge(len(batch))
    assert deliveries == [["a"], ["b"], ["c"], ["d", "e"]]
    assert channel.redelivered == 3
    assert channel.received == 5


def test_the_acknowledged_part_of_a_batch_is_not_delivered_again() -> None:
    """Of a batch of three with one acknowledged, only two are returned."""
    channel = channel_with("a", "b", "c")
    channel.take(3)
    channel.acknowledge(1)
    channel.return_leases("boom", 2)
    assert [channel.take(9), channel.take(9)] == [["b"], ["c"]]


def test_an_item_that_fails_too_often_is_a_poison_pill_with_its_history() -> None:
    """The second failed delivery removes the item, with both failures, oldest first. The other items stay."""
    channel = channel_with("a", "pill", "c")
    channel.take(3)
    channel.return_leases("first", 2)
    assert channel.take(1) == ["a"]
    channel.acknowledge(1)
    assert channel.take(9) == ["pill"]
    assert channel.return_leases("second", 2) == [Undeliverable("pill", ("first", "second"))]
    assert channel.take(9) == ["c"]
    assert (channel.dead_lettered, channel.occupancy) == (1, 1)


def test_max_deliveries_of_one_makes_every_leased_item_poison() -> None:
    """With one delivery allowed nothing is redelivered, and items that were not leased stay."""
    channel = channel_with("a", "b", "c")
    channel.take(2)
    assert [gone.item for gone in channel.return_leases("boom", 1)] == ["a", "b"]
    assert channel.take(9) == ["c"]
    assert channel.redelivered == 0


def test_withdrawing_leased_items_leaves_the_ready_ones() -> None:
    """After a panic only the leased items leave the edge, with their history."""
    channel = channel_with("a", "b")
    channel.take(1)
    channel.return_leases("before", 2)
    channel.take(1)
    assert channel.withdraw(leased_only=True) == [Undeliverable("a", ("before",))]
    assert channel.take(9) == ["b"]


def test_ended_means_closed_and_everything_taken() -> None:
    """A closed edge has not ended while an item is ready, and has no longer ended after that item was returned."""
    channel = channel_with("a")
    channel.closed = True
    assert not channel.ended
    channel.take(1)
    assert channel.ended
    channel.return_leases("boom", 2)
    assert not channel.ended


def test_statistics_are_a_frozen_record() -> None:
    """The statistics have every figure, and later moves do not change them."""
    channel = channel_with("a", "b", "c", capacity=4)
    channel.take(2)
    channel.acknowledge(1)
    picture = channel.statistics()
    channel.take(1)
    assert picture == EdgeStatistics(
        occupancy=2,
        leased=1,
        capacity=4,
        sent=3,
        received=2,
        redelivered=0,
        shed=0,
        dead_lettered=0,
        policy_drops=0,
        high_water_mark=3,
    )


def test_items_that_have_left_keep_no_history() -> None:
    """The history of a hundred failed items is dropped when they are acknowledged or dead-lettered: memory stays flat."""
    channel: Channel[int] = Channel("up -> down", 8)
    for number in range(100):
        channel.push([number, -number])
        channel.take(2)
        channel.return_leases("away", 9)
        channel.take(1)
        channel.acknowledge(1)
        channel.take(1)
        channel.withdraw(leased_only=True)
    assert not channel._failures


# Flow policies.


def test_a_timed_policy_needs_a_positive_deadline() -> None:
    """A deadline of zero is rejected, with the value."""
    with pytest.raises(ValueError, match=r"^FlowPolicy\.timed: deadline must be > 0, got 0:00:00$"):
        FlowPolicy.timed(timedelta(0))


@pytest.mark.parametrize(
    ("policy", "text"),
    [
        (FlowPolicy.backpressure(), "backpressure"),
        (FlowPolicy.shed(), "shed"),
        (FlowPolicy.timed(timedelta(milliseconds=250)), "timed 0.25 s, then dead-letter"),
        (FlowPolicy.timed(timedelta(seconds=2), dead_letter=False), "timed 2 s, then shed"),
    ],
)
def test_a_policy_has_a_text(policy: FlowPolicy, text: str) -> None:
    """Each policy's text says what happens when the edge is full."""
    assert str(policy) == text
    assert policy.name in {"backpressure", "shed", "timed"}


# Against an oracle.


@dataclass
class Entry:
    item: int | Mark
    failures: list[str] = field(default_factory=list)

    @property
    def is_control(self) -> bool:
        return isinstance(self.item, Mark)


def data_in(entries: Sequence[Entry]) -> int:
    return sum(not entry.is_control for entry in entries)


@dataclass(frozen=True, slots=True)
class Mark(Control):
    number: int


class ChannelAgainstOracle(RuleBasedStateMachine):
    """A plain list of entries, with the number of leased ones, agrees with the channel at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.channel: Channel[int] = Channel("up -> down", 7)
        self.channel.max_signals = 4
        self.entries: list[Entry] = []
        self.leased = 0  # control items included
        self.signals_received = self.signals_undelivered = 0
        self.numbers = count()
        self.sent = self.received = self.redelivered = self.acknowledged = self.dead = self.highest = 0

    @rule(how_many=st.integers(0, 9))
    def push(self, how_many: int) -> None:
        items = [next(self.numbers) for _ in range(how_many)]
        accepted = self.channel.push(items)
        assert accepted == min(how_many, 7 - data_in(self.entries))
        self.entries += [Entry(item) for item in items[:accepted]]
        self.sent += accepted
        self.highest = max(self.highest, data_in(self.entries))

    @rule()
    def push_control(self) -> None:
        mark = Mark(next(self.numbers))
        fits = len(self.entries) - data_in(self.entries) < 4
        assert self.channel.push_control(mark) == fits
        if fits:
            self.entries.append(Entry(mark))

    @rule(how_many=st.integers(1, 9))
    def take(self, how_many: int) -> None:
        ready = self.entries[self.leased :]
        data = next((at for at, entry in enumerate(ready) if entry.is_control), len(ready))
        expected = ready[:1] if ready and ready[0].failures else ready[: min(how_many, data) or 1]
        control = ready[0].item if ready and ready[0].is_control else None
        assert self.channel.next_control == control
        assert self.channel.take(how_many) == [entry.item for entry in expected]
        self.leased += len(expected)
        again = sum(bool(entry.failures) for entry in expected)
        self.redelivered += again
        self.received += data_in(expected) - again

    @precondition(lambda self: self.leased > 0)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        how_many = data.draw(st.integers(0, self.leased))
        done = self.entries[:how_many]
        assert self.channel.acknowledge(how_many) == how_many - data_in(done)
        del self.entries[:how_many]
        self.leased -= how_many
        self.acknowledged += data_in(done)
        self.signals_received += how_many - data_in(done)

    @rule(max_deliveries=st.integers(1, 3), number=st.integers(0, 99))
    def fail(self, max_deliveries: int, number: int) -> None:
        leased = [entry for entry in self.entries[: self.leased] if not entry.is_control]
        assert self.channel.leased_controls() == [
            entry.item for entry in self.entries[: self.leased] if entry.is_control
        ]
        for entry in leased:
            entry.failures.append(f"failure {number}")
        poison = [entry for entry in leased if len(entry.failures) >= max_deliveries]
        assert self.channel.return_leases(f"failure {number}", max_deliveries) == [
            Undeliverable(entry.item, tuple(entry.failures)) for entry in poison
        ]
        self.entries = [entry for entry in self.entries if entry not in poison]
        self.leased = 0
        self.dead += len(poison)

    @rule(leased_only=st.booleans())
    def withdraw(self, leased_only: bool) -> None:  # noqa: FBT001 - drawn by Hypothesis
        gone = self.entries[: self.leased] if leased_only else self.entries
        self.entries = self.entries[len(gone) :]
        assert self.channel.withdraw(leased_only=leased_only) == [
            Undeliverable(entry.item, tuple(entry.failures)) for entry in gone if not entry.is_control
        ]
        self.leased = 0
        self.dead += data_in(gone)
        self.signals_undelivered += len(gone) - data_in(gone)

    @invariant()
    def figures_agree(self) -> None:
        assert self.channel.statistics() == EdgeStatistics(
            occupancy=data_in(self.entries),
            leased=data_in(self.entries[: self.leased]),
            capacity=7,
            sent=self.sent,
            received=self.received,
            redelivered=self.redelivered,
            shed=0,
            dead_lettered=self.dead,
            policy_drops=0,
            high_water_mark=self.highest,
            signals=len(self.entries) - data_in(self.entries),
            signals_received=self.signals_received,
            signals_undelivered=self.signals_undelivered,
        )
        assert self.channel.room == 7 - data_in(self.entries)
        assert self.channel.ready == len(self.entries) - self.leased
        assert self.channel.ready_items == data_in(self.entries[self.leased :])

    @invariant()
    def nothing_vanishes(self) -> None:
        assert self.sent == self.acknowledged + self.dead + data_in(self.entries)


ChannelAgainstOracle.TestCase.settings = settings(max_examples=examples(150), stateful_step_count=40)
TestChannelAgainstOracle = ChannelAgainstOracle.TestCase
