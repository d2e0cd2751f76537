from __future__ import annotations

import asyncio
from datetime import timedelta

from orchestrator_adapter.channels.channel import FlowPolicy
from orchestrator_adapter.channels.ledger import Bookkeeping
from orchestrator_adapter.testing import settle
from tests.orchestrator_adapter.operators.bench import Bench, cancel


async def test_shed_drops_what_does_not_fit_and_counts_it() -> None:
    """Of five items into an edge of two, three are shed: counted on the edge and in the account, none left in the outbox."""
    bench = Bench(capacity=2, policy=FlowPolicy.shed(), bookkeeping=Bookkeeping.SOURCE)
    await bench.ends.emit("abcde")
    assert bench.drain.try_recv_many() == ["a", "b"]
    assert bench.output.channel.statistics().shed == 3
    assert (bench.account.ingested, bench.account.shed) == (5, 3)
    assert bench.ends.sender.pending == 0
    assert bench.dead_lettered == []


async def test_a_shedding_writer_does_not_starve_its_reader() -> None:
    """A writer in a tight loop on a full edge yields to the event loop at each drop, so that its reader runs."""
    bench = Bench(capacity=2, policy=FlowPolicy.shed(), bookkeeping=Bookkeeping.SOURCE)
    arrived: list[int] = []

    async def read() -> None:
        while True:
            arrived.extend(await bench.drain.recv_many())

    reading = asyncio.create_task(read())
    for number in range(100):
        await bench.ends.emit([number])
    await cancel(reading)
    assert len(arrived) > 40
    assert arrived == sorted(arrived)


async def test_timed_waits_up_to_its_deadline_and_then_dead_letters() -> None:
    """At 0.999 s the item still waits. At 1 s it is dead-lettered, with the edge and the time in the reason."""
    bench = Bench(capacity=1, policy=FlowPolicy.timed(timedelta(seconds=1)))
    await bench.ends.sender.send("a")
    sending = asyncio.create_task(bench.ends.sender.send("b"))
    await bench.clock.advance_when_idle(0.999)
    assert not sending.done()
    await bench.clock.advance_when_idle(0.001)
    await sending
    assert bench.dead_lettered == [("edge 'op -> out-0' was full for 1 s", ["b"])]
    assert bench.output.channel.statistics().dead_lettered == 1
    assert bench.account.shed == 0


async def test_a_wait_that_ends_in_time_leaves_no_timer() -> None:
    """Items that got space in time leave no pending timer on the clock."""
    bench = Bench(capacity=1, policy=FlowPolicy.timed(timedelta(hours=1)))
    bench.output.channel.push("x")
    for number in range(10):
        sending = asyncio.create_task(bench.ends.sender.send(number))
        await settle(5)
        assert not sending.done()
        bench.drain.try_recv_many()
        bench.drain.acknowledge()
        await sending
    assert (bench.clock.timers_made, bench.clock.pending_timers) == (10, [])


async def test_timed_can_shed_instead_of_dead_lettering() -> None:
    """With ``dead_letter=False`` the late item is counted as shed and not dead-lettered."""
    bench = Bench(capacity=1, policy=FlowPolicy.timed(timedelta(seconds=1), dead_letter=False))
    await bench.ends.sender.send("a")
    sending = asyncio.create_task(bench.ends.sender.send("b"))
    await bench.clock.advance_when_idle(1)
    await sending
    assert (bench.account.shed, bench.output.channel.shed, bench.dead_lettered) == (1, 1, [])


async def test_timed_delivers_an_item_that_gets_space_in_time() -> None:
    """With space before the deadline the item is delivered, and no timer is left that could drop a later one."""
    bench = Bench(capacity=1, policy=FlowPolicy.timed(timedelta(seconds=1)))
    await bench.ends.sender.send("a")
    sending = asyncio.create_task(bench.ends.sender.send("b"))
    await bench.clock.advance_when_idle(0.5)
    assert bench.drain.try_recv_many() == ["a"]
    bench.drain.acknowledge()
    await sending
    await bench.clock.advance_when_idle(10)
    assert bench.drain.try_recv_many() == ["b"]
    assert bench.dead_lettered == []


async def test_the_deadline_starts_again_whenever_an_item_moves() -> None:
    """An edge that takes one item every 0.9 s never times out at 1 s. When it stops, all items that are left time out together."""
    bench = Bench(capacity=1, policy=FlowPolicy.timed(timedelta(seconds=1)))
    sending = asyncio.create_task(bench.ends.sender.send_many("abcde"))
    arrived: list[str] = []
    for _ in range(3):
        await bench.clock.advance_when_idle(0.9)
        arrived += bench.drain.try_recv_many()
        bench.drain.acknowledge()
        await settle()
    assert (arrived, bench.dead_lettered) == (["a", "b", "c"], [])
    await bench.clock.advance_when_idle(1)
    await sending
    assert [items for _, items in bench.dead_lettered] == [["e"]]


async def test_a_cancelled_timed_send_has_not_accepted_its_item() -> None:
    """A caller whose ``send`` was cancelled may send the item again, and it is not delivered twice."""
    bench = Bench(capacity=1, policy=FlowPolicy.timed(timedelta(seconds=10)))
    await bench.ends.sender.send("a")
    sending = asyncio.create_task(bench.ends.sender.send("b"))
    await bench.clock.advance_when_idle(9)
    await cancel(sending)
    assert (bench.ends.sender.pending, bench.account.emitted) == (0, 1)
    again = asyncio.create_task(bench.ends.sender.send("b"))
    await bench.clock.advance_when_idle(9)  # its deadline counts from its own start
    assert bench.dead_lettered == []
    assert bench.drain.try_recv_many() == ["a"]
    bench.drain.acknowledge()
    await again
    assert bench.drain.try_recv_many() == ["b"]


async def test_a_cancelled_timed_emit_keeps_its_items_in_the_outbox() -> None:
    """What a source emits is ingested at once. If it is cancelled, the items are in the outbox for the next ``flush``."""
    bench = Bench(capacity=1, policy=FlowPolicy.timed(timedelta(seconds=1)), bookkeeping=Bookkeeping.SOURCE)
    emitting = asyncio.create_task(bench.ends.emit("ab"))
    await settle()
    await cancel(emitting)
    assert bench.ends.sender.pending == 1
    bench.drain.try_recv_many()
    bench.drain.acknowledge()
    await bench.ends.flush()
    assert bench.drain.try_recv_many() == ["b"]
