from __future__ import annotations

import asyncio

import pytest

from orchestrator_adapter.channels.ledger import Bookkeeping
from orchestrator_adapter.primitives.errors import (
    DeadLetterLimitExceeded,
    EdgeMisuse,
)
from orchestrator_adapter.storage.dead_letter import DeadLetterLimits
from orchestrator_adapter.testing import settle
from tests.orchestrator_adapter.operators.bench import Bench, cancel


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_emit_ingests_before_it_waits() -> None:
    """A source cancelled in ``emit`` on a full edge loses nothing: every item is counted, and the rest is in the outbox."""
    bench = Bench(capacity=1, bookkeeping=Bookkeeping.SOURCE)
    emitting = asyncio.create_task(bench.ends.emit("abc"))
    await settle()
    await cancel(emitting)
    assert bench.account.ingested == 3
    assert bench.ends.sender.pending == 2


async def test_commit_moves_outputs_and_acknowledges_inputs_in_one_step(bench: Bench) -> None:
    """After ``commit`` the inputs are consumed and the outputs emitted, even those that wait for space."""
    bench.feed.offer("abcd")
    batch = bench.ends.receiver.try_recv_many()
    bench.ends.commit([*batch[:3]], acknowledge=3)
    assert (bench.account.consumed, bench.account.emitted, bench.account.violation) == (3, 3, None)
    assert bench.ends.receiver.leased == 1


async def test_a_cancelled_flush_loses_and_repeats_nothing() -> None:
    """A flush cancelled half-way leaves the rest in the outbox. The next flush delivers exactly that, in order."""
    bench = Bench(capacity=2)
    bench.feed.offer("ab")
    bench.ends.commit([item * 2 for item in bench.ends.receiver.try_recv_many()], acknowledge=2)
    bench.feed.offer("cd")
    bench.ends.commit([item * 2 for item in bench.ends.receiver.try_recv_many()], acknowledge=2)
    flushing = asyncio.create_task(bench.ends.flush())
    await settle()
    await cancel(flushing)
    arrived = bench.drain.try_recv_many()
    bench.drain.acknowledge()
    await bench.ends.flush()
    arrived += bench.drain.try_recv_many()
    assert arrived == ["aa", "bb", "cc", "dd"]


async def test_flush_moves_all_outputs_at_once() -> None:
    """A full first output does not keep a second one from getting its items."""
    bench = Bench(outputs=2, capacity=1)
    for sender in bench.ends.senders:
        sender.offer(["x", "y"])
    flushing = asyncio.create_task(bench.ends.flush())
    await settle()
    second = bench.drains[1]
    assert second.try_recv_many() == ["x"]
    second.acknowledge()
    await settle()
    assert second.try_recv_many() == ["y"]
    assert not flushing.done()
    await cancel(flushing)


async def test_flush_raises_beyond_the_dead_letter_limits_after_the_acknowledgement() -> None:
    """The rejected items are acknowledged and counted when ``DeadLetterLimitExceeded`` names the operator."""
    bench = Bench(limits=DeadLetterLimits(max_consecutive=1))
    bench.feed.offer("ab")
    for item in bench.ends.receiver.try_recv_many():
        bench.ends.reject(item, "no good")
    bench.ends.commit([], acknowledge=2)
    with pytest.raises(DeadLetterLimitExceeded, match=r"^operator 'op': "):
        await bench.ends.flush()
    assert (bench.account.consumed, bench.account.rejected, bench.account.violation) == (2, 2, None)
    assert [letter.payload for letter in bench.letters.letters] == ["a", "b"]


async def test_the_single_end_raises_unless_there_is_exactly_one() -> None:
    """A router that uses ``receiver`` or ``sender`` gets an error with the number of its ends."""
    bench = Bench(inputs=2, outputs=0)
    with pytest.raises(EdgeMisuse, match=r"^operator 'op' has 2 inputs; use ends\.receivers$"):
        _ = bench.ends.receiver
    with pytest.raises(EdgeMisuse, match=r"^operator 'op' has 0 outputs; use ends\.senders$"):
        _ = bench.ends.sender


async def test_the_account_balances_with_leases_on_two_inputs() -> None:
    """A join that takes one item of each input and passes both on has no surplus: each item is counted once."""
    bench = Bench(inputs=2)
    bench.feeds[0].offer("ab")
    bench.feeds[1].offer("xy")
    for _ in range(2):
        pair = [await receiver.recv() for receiver in bench.ends.receivers]
        await bench.ends.sender.send_many(pair)
    for receiver in bench.ends.receivers:
        receiver.acknowledge()
    assert (bench.account.violation, bench.account.open, bench.account.consumed) == (None, 0, 4)


async def test_the_account_balances_when_a_batch_is_acknowledged_item_by_item(bench: Bench) -> None:
    """A batch that was passed on may be acknowledged item by item. One output too many is a violation at once."""
    bench.feed.offer("abc")
    batch = await bench.ends.receiver.recv_many()
    bench.ends.sender.offer(batch)
    for _ in batch:
        bench.ends.receiver.acknowledge(1)
    assert bench.account.violation is None
    bench.feed.offer("de")
    await bench.ends.receiver.recv_many()
    bench.ends.sender.offer("def")
    bench.ends.receiver.acknowledge(1)
    assert str(bench.account.violation).startswith("operator 'op': ledger surplus: acknowledged 1 items, but")
