"""What an operator sees of control items at the ends of its edges, and what its edges do with them."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import pytest

from orchestrator_adapter import Control, EdgeMisuse, FlowPolicy, ReaderGone
from orchestrator_adapter.channels.control import runs
from orchestrator_adapter.channels.ledger import Bookkeeping
from orchestrator_adapter.testing import settle
from tests.orchestrator_adapter.operators.bench import Bench, cancel


@dataclass(frozen=True, slots=True)
class Mark(Control):
    number: int = 0


def fed(*entries: object, bench: Bench | None = None) -> Bench:
    """A bench whose input has these items and control items."""
    bench = bench or Bench(capacity=8)
    for entry in entries:
        if isinstance(entry, Control):
            bench.feed.offer_control(entry)
        else:
            bench.feed.offer([entry])
    return bench


async def drained(bench: Bench, output: int = 0) -> list[object]:
    """Everything in this output, control items included."""
    bench.outputs[output].close()
    seen: list[object] = []
    async for part in bench.drains[output].batches(controls=True):
        seen.extend([part] if isinstance(part, Control) else part)
    return seen


# An operator that knows nothing of control items.


async def test_a_batch_ends_before_a_control_item() -> None:
    """The reader gets the items on both sides in two batches, and never the control item."""
    bench = fed("a", "b", Mark(), "c")
    assert await bench.ends.receiver.recv_many() == ["a", "b"]
    assert await bench.ends.receiver.recv_many() == ["c"]


async def test_a_control_item_follows_what_its_reader_has_sent_for_the_items_before() -> None:
    """It is sent when the reader asks for the next batch, behind the outputs of the batch before it, to every output."""
    bench = fed("a", Mark(1), Mark(2), "b", bench=Bench(outputs=2, capacity=8, bookkeeping=Bookkeeping.EXPANDING))
    async for batch in bench.ends.receiver.batches():
        for sender in bench.ends.senders:
            sender.offer(batch)
        bench.input.close()
    for output in (0, 1):
        assert await drained(bench, output) == ["a", Mark(1), Mark(2), "b"]
    assert (bench.account.signals_in, bench.account.signals_out) == (2, 4)
    assert (bench.account.consumed, bench.account.emitted) == (2, 4)


async def test_a_control_item_alone_wakes_its_reader_and_is_forwarded_at_once() -> None:
    """It does not wait for the next item of data."""
    bench = Bench()
    reading = asyncio.create_task(bench.ends.receiver.recv_many())
    await settle()
    bench.feed.offer_control(Mark())
    await settle()
    assert (bench.output.channel.signals, reading.done()) == (1, False)
    await cancel(reading)
    assert bench.account.signals_in == 1


async def test_a_reader_waits_while_its_output_has_no_room_for_a_control_item() -> None:
    """It takes nothing more from its input until the control item is in the output; if it is cancelled, that waits there."""
    bench = fed(Mark(1), Mark(2), "a")
    bench.output.channel.max_signals = 1
    reading = asyncio.create_task(bench.ends.receiver.recv_many())
    await settle()
    assert (reading.done(), bench.output.outbox) == (False, [Mark(2)])
    await cancel(reading)
    assert bench.drain.try_recv_many(controls=True) == Mark(1)
    bench.drain.acknowledge()
    assert await bench.ends.receiver.recv_many() == ["a"]
    await bench.ends.flush()
    assert bench.drain.try_recv_many(controls=True) == Mark(2)


async def test_end_of_stream_comes_after_the_last_control_item() -> None:
    """A control item at the end is forwarded before the reader gets the empty batch."""
    bench = fed("a", Mark())
    bench.input.close()
    await bench.ends.receiver.recv_many()
    assert not bench.ends.receiver.ended
    assert await bench.ends.receiver.recv_many() == []
    assert await drained(bench) == [Mark()]


async def test_a_control_item_behind_a_suspect_is_not_taken_with_it() -> None:
    """After a failure items come one at a time, and the control items keep their places between them."""
    bench = fed("a", "b", Mark(), "c")
    await bench.ends.receiver.recv_many()
    bench.input.return_leases("away", 3)
    seen = [await bench.ends.receiver.recv_many() for _ in range(3)]
    assert seen == [["a"], ["b"], ["c"]]
    assert bench.input.channel.redelivered == 2


async def test_ready_counts_data_only() -> None:
    """``ready`` and ``room`` are figures of the data."""
    bench = fed(Mark(), "a", Mark(), "b")
    assert (bench.ends.receiver.ready, bench.ends.receiver.room) == (2, 6)
    assert bench.input.channel.statistics().occupancy == 2


# An operator that reads control items.


async def test_an_operator_that_reads_control_items_gets_each_alone_in_its_place() -> None:
    """What it sends before its next call is in front of the control item."""
    bench = fed("a", Mark(1), "b", bench=Bench(capacity=8, bookkeeping=Bookkeeping.EXPANDING))
    bench.input.close()
    async for batch in bench.ends.receiver.batches(controls=True):
        if isinstance(batch, Control):
            bench.ends.commit(["summary"], acknowledge=0)
        else:
            bench.ends.commit(batch, acknowledge=len(batch))
    assert await drained(bench) == ["a", "summary", Mark(1), "b"]
    assert bench.account.derived == 1
    assert bench.account.violation is None


async def test_an_acknowledged_control_item_is_not_forwarded() -> None:
    """``acknowledge`` consumes it, and ``emit_control`` sends another one in its place."""
    bench = fed(Mark(1), "a")
    assert await bench.ends.receiver.recv_many(controls=True) == Mark(1)
    bench.ends.receiver.acknowledge()
    await bench.ends.emit_control(Mark(100))
    assert await bench.ends.receiver.recv_many(controls=True) == ["a"]
    assert await drained(bench) == [Mark(100)]


async def test_a_leased_control_item_is_delivered_again_and_is_no_poison_pill() -> None:
    """However often its reader fails, it comes again in its place, and nothing is dead-lettered."""
    bench = fed("a", Mark(), "b")
    receiver = bench.ends.receiver
    await receiver.recv_many(controls=True)
    for _ in range(5):
        assert await receiver.recv_many(controls=True) == Mark()
        assert bench.input.return_leases("failed at the control item", 1) == []
    assert await receiver.recv_many(controls=True) == Mark()
    assert await receiver.recv_many(controls=True) == ["b"]
    assert bench.input.channel.dead_lettered == 0
    assert bench.account.signals_in == 1


async def test_poison_between_control_items_leaves_them_in_place() -> None:
    """An item that leaves the edge as a poison pill moves no control item to another place."""
    bench = fed("a", "pill", Mark(1), "b", Mark(2))
    bench.input.channel.take(2)
    bench.input.channel.take(1)  # not what a receiver does: leases of both kinds
    assert [gone.item for gone in bench.input.return_leases("away", 1)] == ["a", "pill"]
    bench.input.close()
    seen = [part async for part in bench.ends.receiver.batches(controls=True)]
    assert seen == [Mark(1), ["b"], Mark(2)]


async def test_what_was_sent_for_a_control_item_is_derived_when_it_is_acknowledged() -> None:
    """A failure at the next item does not count it as repeated."""
    bench = fed(Mark(), "a", bench=Bench(bookkeeping=Bookkeeping.EXPANDING))
    await bench.ends.receiver.recv_many(controls=True)
    bench.ends.commit(["summary"], acknowledge=0)
    await bench.ends.receiver.recv_many(controls=True)
    assert (bench.account.derived, bench.account.open) == (1, 0)


async def test_an_operator_that_reads_control_items_waits_for_space_too() -> None:
    """Its next call forwards the control item, and takes nothing before that is in the output."""
    bench = fed(Mark(1), Mark(2), "a")
    bench.output.channel.max_signals = 1
    receiver = bench.ends.receiver
    assert await receiver.recv_many(controls=True) == Mark(1)
    assert await receiver.recv_many(controls=True) == Mark(2)
    reading = asyncio.create_task(receiver.recv_many(controls=True))
    await settle()
    assert not reading.done()
    bench.drain.try_recv_many(controls=True)
    bench.drain.acknowledge()
    assert await reading == ["a"]


# Fan-ins by hand.


async def test_waiting_for_items_forwards_the_control_items_that_come_next() -> None:
    """A fan-in that waits lets a control item of a silent input pass, and goes on waiting."""
    bench = Bench(inputs=2)
    waiting = asyncio.create_task(bench.ends.wait_for_items())
    await settle()
    bench.feeds[1].offer_control(Mark())
    await settle()
    assert (bench.output.channel.signals, waiting.done()) == (1, False)
    bench.feeds[0].offer(["a"])
    await waiting


async def test_a_control_item_that_arrives_while_a_fan_in_waits_for_space_is_forwarded() -> None:
    """It is not overlooked, although its reader was not waiting for it."""
    bench = Bench(inputs=2)
    bench.output.channel.max_signals = 1
    fed(Mark(1), Mark(2), bench=bench)
    waiting = asyncio.create_task(bench.ends.wait_for_items())
    await settle()
    bench.feeds[1].offer_control(Mark(3))
    for number in (1, 2, 3):
        await settle()
        assert bench.drain.try_recv_many(controls=True) == Mark(number)
        bench.drain.acknowledge()
    await cancel(waiting)


async def test_waiting_for_items_does_not_pass_a_lease() -> None:
    """A control item behind a leased item stays: the next read acknowledges that item and forwards it."""
    bench = Bench(inputs=2)
    fed("a", Mark(), bench=bench)
    receiver = bench.ends.receivers[0]
    assert receiver.try_recv_many() == ["a"]
    await bench.ends.wait_for_items()
    assert bench.output.channel.signals == 0
    assert receiver.try_recv_many() == []
    assert bench.output.channel.signals == 1


# Sending.


async def test_a_source_sends_control_items_among_its_items_in_their_place() -> None:
    """They are neither ingested nor emitted."""
    bench = Bench(inputs=0, capacity=8, bookkeeping=Bookkeeping.SOURCE)
    await bench.ends.emit([Mark(1), "a", "b", Mark(2), Mark(3), "c"])
    await bench.ends.emit([Mark(4)])
    assert (bench.account.ingested, bench.account.emitted, bench.account.signals_out) == (3, 3, 4)
    assert await drained(bench) == [Mark(1), "a", "b", Mark(2), Mark(3), "c", Mark(4)]


@pytest.mark.parametrize("items", [[Mark()], [1, Mark()], [Mark(), 1]])
async def test_a_control_item_that_is_sent_as_data_is_rejected(items: list[object]) -> None:
    """The message says what to call instead."""
    bench = Bench(capacity=8)
    with pytest.raises(
        EdgeMisuse, match=r"^edge 'op -> out-0': a control item was sent as data; use `await ends\.emit_control"
    ):
        bench.ends.sender.offer(items)
    with pytest.raises(EdgeMisuse, match="a control item was sent as data"):
        await bench.ends.sender.send_many(items)
    with pytest.raises(EdgeMisuse, match="a control item was sent as data"):
        await bench.ends.sender.send(Mark())
    assert bench.account.emitted == 0


async def test_a_full_edge_has_room_for_control_items() -> None:
    """A control item takes no room: it enters an edge that is full of data, and data enters one with control items."""
    bench = Bench(capacity=1)
    bench.ends.sender.offer(["a"])
    await bench.ends.emit_control(Mark())
    assert bench.output.channel.statistics().high_water_mark == 1
    bench.drain.try_recv_many()
    bench.drain.acknowledge()
    await bench.ends.sender.send("b")
    assert await drained(bench) == [Mark(), "b"]


async def test_an_edge_has_a_bound_for_control_items() -> None:
    """An edge without a reader takes as many as its capacity, at least 64. One more waits, and the writer with it."""
    bench = Bench(capacity=100)
    for number in range(100):
        await bench.ends.emit_control(Mark(number))
    sending = asyncio.create_task(bench.ends.emit_control(Mark(100)))
    await settle()
    assert not sending.done()
    assert Bench(capacity=1).output.channel.max_signals == 64
    bench.drain.try_recv_many(controls=True)
    bench.drain.acknowledge()
    await sending


@pytest.mark.parametrize("policy", [FlowPolicy.shed(), FlowPolicy.timed(timedelta(seconds=1))])
async def test_a_policy_drops_the_data_around_a_control_item_only(policy: FlowPolicy) -> None:
    """On a full edge the control items are kept in their order, and the items that do not fit are dropped."""
    bench = Bench(capacity=1, policy=policy, bookkeeping=Bookkeeping.SOURCE)
    sending = asyncio.create_task(bench.ends.emit(["a", "b", Mark(1), "c", Mark(2)]))
    await settle()
    bench.clock.advance(2)
    await sending
    assert await drained(bench) == [*(["a"] if policy.name == "shed" else []), Mark(1), Mark(2)]
    dropped = bench.output.channel.policy_drops
    assert dropped == (2 if policy.name == "shed" else 3)
    assert bench.output.channel.signals_sent == 2


async def test_an_item_that_is_too_old_moves_no_control_item() -> None:
    """Items that leave a timed edge in front of control items and between them leave these in their places."""
    bench = Bench(capacity=8, policy=FlowPolicy.timed(timedelta(seconds=1)), bookkeeping=Bookkeeping.SOURCE)
    await bench.ends.emit(["old", Mark(1), "old too", Mark(2)])
    bench.clock.advance(2)
    await bench.ends.emit(["new", Mark(3), "last"])
    assert await drained(bench) == [Mark(1), Mark(2), "new", Mark(3), "last"]
    assert bench.output.channel.dead_lettered == 2


async def test_a_control_item_that_waits_at_a_timed_edge_has_no_deadline() -> None:
    """Its writer waits without a timer."""
    bench = Bench(policy=FlowPolicy.timed(timedelta(seconds=1)))
    bench.output.channel.max_signals = 0
    sending = asyncio.create_task(bench.ends.emit_control(Mark()))
    await settle()
    assert (sending.done(), bench.clock.pending_timers) == (False, [])
    await cancel(sending)


async def test_items_behind_a_control_item_of_a_timed_edge_have_their_deadlines() -> None:
    """A full edge gives up the item behind a control item at its deadline, and a returned control item keeps its place."""
    bench = Bench(capacity=1, policy=FlowPolicy.timed(timedelta(seconds=1)), bookkeeping=Bookkeeping.SOURCE)
    await bench.ends.emit([Mark(1), "old"])
    sending = asyncio.create_task(bench.ends.emit(["new"]))
    await settle()
    assert bench.drain.try_recv_many(controls=True) == Mark(1)
    bench.output.return_leases("away", 1)
    await settle()
    assert bench.clock.pending_timers == [1.0]
    bench.clock.advance(1)
    await sending
    assert bench.output.channel.dead_lettered == 2
    assert await drained(bench) == [Mark(1)]


async def test_control_items_that_cannot_be_delivered_are_counted_and_are_no_dead_letters() -> None:
    """If the reader ends for good, those in its edge and those that wait are undelivered; the sum is exact."""
    bench = Bench(capacity=1, bookkeeping=Bookkeeping.SOURCE)
    bench.output.channel.max_signals = 1
    bench.ends.ingest(["a", Mark(1), Mark(2), "b", Mark(3)])
    unread = bench.output.channel.withdraw(leased_only=False)
    bench.output.finish()
    with pytest.raises(ReaderGone):
        await bench.ends.flush()
    assert [gone.item for gone in unread] == ["a"]
    assert bench.output.withdraw_outbox() == ["b"]
    statistics = bench.output.channel.statistics()
    assert (statistics.signals_sent, statistics.signals_undelivered, statistics.signals) == (3, 3, 0)


def test_items_are_cut_into_data_and_control_items() -> None:
    """The runs are in order, and none is empty but that of no items at all."""
    assert list(runs([])) == [[]]
    assert list(runs([1, 2])) == [[1, 2]]
    assert list(runs([Mark(1)])) == [Mark(1)]
    assert list(runs([1, Mark(1), Mark(2), 2, 3])) == [[1], Mark(1), Mark(2), [2, 3]]
