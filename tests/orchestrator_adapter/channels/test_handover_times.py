"""How long items wait in a channel, and how long its reader holds a batch: on a clock that the test advances."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_adapter import Control, FlowPolicy
from orchestrator_adapter.channels.channel import Channel
from orchestrator_adapter.channels.flow_policy import Timed
from orchestrator_adapter.channels.timed_edge import TimedChannel
from orchestrator_adapter.primitives.metrics import BOUNDS_S, LatencyFigures, cumulative_counts, quantile_s
from orchestrator_adapter.testing import ManualClock
from tests.orchestrator_adapter.operators.bench import Bench


class Mark(Control):
    """A control item."""


def channel_of(capacity: int = 1_000) -> tuple[Channel[object], ManualClock]:
    clock = ManualClock()
    return Channel("a -> b", capacity, clock), clock


def waits(channel: Channel[object]) -> LatencyFigures:
    return channel.times.waits.figures()


def batches(channel: Channel[object]) -> LatencyFigures:
    return channel.times.batches.figures()


def measured(figures: LatencyFigures) -> dict[float, int]:
    """How many, by the least of the bounds that is no shorter."""
    up_to = cumulative_counts(figures)
    each = [now - before for before, now in zip((0, *up_to), up_to, strict=False)]
    return {bound: count for bound, count in zip((*BOUNDS_S, float("inf")), each, strict=True) if count}


def test_a_wait_is_from_the_acceptance_until_the_reader_takes_the_item() -> None:
    """One item waits two seconds, the next one half a second; both are counted at exactly these bounds."""
    channel, clock = channel_of()
    for wait_s in (2, 0.5):
        channel.push(["item"])
        clock.advance(wait_s)
        channel.take(10)
        clock.advance(1)
        channel.acknowledge(1)
    assert measured(waits(channel)) == {2: 1, 0.5: 1}
    assert waits(channel).sum_s == 2.5


def test_a_batch_is_measured_from_the_take_to_the_acknowledgement_of_all_of_it() -> None:
    """Partial acknowledgements do not end it: the batch takes one and two seconds. How it waited before does not matter."""
    channel, clock = channel_of()
    channel.push([1, 2, 3])
    clock.advance(60)
    channel.take(3)
    clock.advance(1)
    channel.acknowledge(2)
    assert batches(channel).count == 0
    clock.advance(1)
    channel.acknowledge(1)
    assert measured(batches(channel)) == {2: 1}


def test_a_batch_that_is_returned_is_not_measured_and_its_redelivery_is() -> None:
    """The failed attempt took ten seconds; the redelivered items take one second each. The wait is that of the first delivery."""
    channel, clock = channel_of()
    channel.push([1, 2])
    clock.advance(5)
    channel.take(2)
    clock.advance(10)
    assert channel.return_leases("OSError", 5) == []
    for _ in range(2):
        assert len(channel.take(2)) == 1
        clock.advance(1)
        channel.acknowledge(1)
    assert measured(batches(channel)) == {1: 2}
    assert measured(waits(channel)) == {5: 2}


def test_a_poison_pill_shifts_no_measurement() -> None:
    """The two leased items become poison. The marked one behind them is taken after three seconds, not earlier."""
    channel, clock = channel_of()
    channel.push([1, 2])
    channel.take(2)
    channel.push([3])
    clock.advance(2)
    assert [pill.item for pill in channel.return_leases("OSError", 1)] == [1, 2]
    clock.advance(3)
    assert channel.take(5) == [3]
    clock.advance(10)
    channel.acknowledge(1)
    assert measured(waits(channel)) == {0.0002: 2, 5: 1}
    assert batches(channel).count == 1
    assert measured(batches(channel)) == {10: 1}


def test_withdrawn_items_are_not_measured() -> None:
    """Neither the leased batch nor the item that still waits; the channel goes on measuring afterwards."""
    channel, clock = channel_of()
    channel.push([1, 2])
    channel.take(1)
    clock.advance(1)
    channel.withdraw(leased_only=True)
    assert batches(channel).count == 0
    channel.withdraw(leased_only=False)
    channel.push([3])
    clock.advance(30)
    channel.take(1)
    clock.advance(5)
    channel.acknowledge(1)
    assert measured(waits(channel)) == {0.0002: 1, 30: 1}
    assert measured(batches(channel)) == {5: 1}


def test_control_items_are_in_no_figure() -> None:
    """They wait in their place, and the items around them are counted with their own times."""
    channel, clock = channel_of()
    channel.push_control(Mark())
    channel.push([1])
    clock.advance(2)
    channel.take(9)
    clock.advance(50)
    channel.acknowledge(1)
    channel.take(9)
    clock.advance(1)
    channel.acknowledge(1)
    assert measured(waits(channel)) == {60: 1}
    assert measured(batches(channel)) == {1: 1}


@pytest.mark.parametrize(
    ("items", "taken", "wait_s"),
    [("oonnn", "n", 5), ("nnonn", "n", 3)],
    ids=["the items in front of the marked one expire", "the marked one expires"],
)
def test_an_item_that_expires_is_not_measured(items: str, taken: str, wait_s: int) -> None:
    """The middle one of five is marked. On a timed edge it may expire, or move up. Then the times are those of the others."""
    clock = ManualClock()
    ages_s = {"o": 18, "n": 0, "z": 0}
    now_ns = clock.now_ns()
    timed = Timed(timedelta(seconds=20), dead_letter=False, since=lambda item: now_ns - ages_s[item] * 10**9)
    channel: TimedChannel[str] = TimedChannel("a -> b", 10, timed, clock)
    channel.push(items)
    clock.advance(2)
    assert [expired.item for expired in channel.expire()] == ["o"] * items.count("o")
    channel.push("z")
    clock.advance(3)
    assert channel.take(1) == [taken]
    assert len(channel.take(9)) == 5 - items.count("o")
    figures = channel.times.waits.figures()
    assert figures.sum_s == figures.count * wait_s > 0


# Sampling.


def test_fast_single_items_are_sampled_and_the_counts_are_right() -> None:
    """Of 100,000 batches of one item at 2 us each, about one in 4,096 is measured; each stands for those between."""
    channel, clock = channel_of()
    reads = clock.monotonic
    calls = 0

    def counted() -> float:
        nonlocal calls
        calls += 1
        return reads()

    clock.monotonic = counted  # type: ignore[method-assign]  # the test counts its calls
    for _ in range(100_000):
        channel.push(["item"])
        channel.take(1)
        clock.advance(2e-6)
        channel.acknowledge(1)
    assert calls < 100_000 / 4_096 * 4 * 2
    assert 0 <= 100_000 - batches(channel).count < 10_000
    assert 0 <= 100_000 - waits(channel).count < 10_000


def test_slow_single_items_are_all_measured() -> None:
    """At 20 a second there is no need to sample. The first one that comes after a fast burst is measured, once someone has looked."""
    channel, clock = channel_of()
    for _ in range(1_000):
        channel.push(["item"])
        channel.take(1)
        channel.acknowledge(1)
    channel.times.measure_next()
    before = batches(channel).count
    for _ in range(100):
        channel.push(["item"])
        clock.advance(0.25)
        channel.take(1)
        clock.advance(0.05)
        channel.acknowledge(1)
    assert measured(batches(channel))[0.05] >= 100
    assert batches(channel).count == 1_100
    assert before < 1_000
    assert measured(waits(channel))[0.5] >= 100


@given(st.lists(st.integers(1, 256), min_size=1, max_size=20), st.integers(0, 2**32))
def test_every_item_is_counted_once_whatever_the_batches_are(sizes: list[int], seed: int) -> None:
    """The counts of batches, times their sizes, are the items, but for those since the last measurement."""
    rng, (channel, clock) = Random(seed), channel_of(100_000)
    items = 0
    for size in sizes * 20:
        channel.push(range(size))
        clock.advance(rng.choice([0, 1e-5, 1e-3]))
        assert len(channel.take(size)) == size
        clock.advance(rng.choice([0, 1e-5, 1e-3]))
        channel.acknowledge(size)
        items += size
    assert items - 8_192 <= waits(channel).count <= items
    assert sum(batches(channel).counts) <= items


def test_the_share_of_small_batches_is_that_of_all_batches() -> None:
    """Batches of 2 items (1 us) and of 20 items (20 us) alternate at random: half of the counted batches are small ones."""
    rng, (channel, clock) = Random(3), channel_of()
    for _ in range(40_000):
        size, needs_s = rng.choice([(2, 1e-6), (20, 20e-6)])
        channel.push(range(size))
        channel.take(size)
        clock.advance(needs_s)
        channel.acknowledge(size)
    figures = batches(channel)
    assert figures.count == pytest.approx(40_000, rel=0.1)
    small = sum(figures.counts[:40])
    assert quantile_s(figures, 0.99) == pytest.approx(20e-6, rel=0.05)
    assert small / figures.count == pytest.approx(0.5, abs=0.1)


def test_without_a_clock_nothing_is_measured() -> None:
    """A channel alone need not have one."""
    channel: Channel[object] = Channel("a -> b", 4)
    channel.push([1])
    channel.times.measure_next()
    channel.take(1)
    channel.acknowledge(1)
    channel.withdraw(leased_only=False)
    channel.push([2])
    channel.take(1)
    channel.acknowledge(1)
    assert (waits(channel).count, batches(channel).count) == (0, 0)


async def test_an_item_on_disk_waits_from_its_acceptance(tmp_path: Path) -> None:
    """A spilling edge of one item: the second one comes into the channel when the first is acknowledged, after three seconds."""
    bench = Bench(policy=FlowPolicy.spill(tmp_path), capacity=1)
    bench.output.open()
    sender, drain = bench.ends.sender, bench.drain
    await sender.send(1)
    assert await drain.recv_many(1) == [1]
    await sender.send(2)
    await sender.send(3)
    bench.clock.advance(3)
    assert await drain.recv_many(1) == [2]
    assert measured(bench.output.statistics().wait) == {0.0002: 1, 5: 1}
    assert bench.output.statistics().wait.sum_s == 3
