from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_adapter.channels.flow_policy import FlowPolicy
from orchestrator_adapter.channels.ledger import Bookkeeping
from orchestrator_adapter.testing import settle
from tests.helpers.sizes import examples
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
    assert bench.drain.try_recv_many() == ["a"]  # on lease, so that it does not expire
    sending = asyncio.create_task(bench.ends.sender.send("b"))
    await bench.clock.advance_when_idle(0.999)
    assert not sending.done()
    await bench.clock.advance_when_idle(0.001)
    await sending
    assert bench.dead_lettered == [("edge 'op -> out-0': not delivered within 1 s", ["b"])]
    assert bench.output.channel.statistics().dead_lettered == 1
    assert bench.output.channel.statistics().policy_drops == 1
    assert bench.account.shed == 0


async def test_an_item_in_the_edge_is_dead_lettered_when_the_reader_comes_too_late() -> None:
    """The reader takes items after the deadline of the first and before that of the second: it receives the second."""
    bench = Bench(capacity=4, policy=FlowPolicy.timed(timedelta(seconds=1)))
    await bench.ends.sender.send("a")
    await bench.clock.advance_when_idle(0.5)
    await bench.ends.sender.send("b")
    await bench.clock.advance_when_idle(0.5)
    assert await bench.drain.recv_many() == ["b"]
    assert bench.dead_lettered == [("edge 'op -> out-0': not delivered within 1 s", ["a"])]


async def test_a_slow_reader_gets_no_item_older_than_the_deadline() -> None:
    """Twenty items at once, a reader that needs 0.15 s for each, a deadline of 0.2 s: two are delivered, 18 dead-lettered."""
    bench = Bench(capacity=32, policy=FlowPolicy.timed(timedelta(milliseconds=200)))
    await bench.ends.sender.send_many(range(20))
    bench.output.close()
    arrived: list[int] = []
    async for item in bench.drain:
        arrived.append(item)
        await bench.clock.advance_when_idle(0.15)
    assert arrived == [0, 1]
    assert [item for _, items in bench.dead_lettered for item in items] == list(range(2, 20))


async def test_a_reader_that_waits_for_items_gets_no_late_one() -> None:
    """The event loop is late: items expire between the wake-up of the reader and its turn. It goes on waiting."""
    bench = Bench(policy=FlowPolicy.timed(timedelta(seconds=1)))
    reading = asyncio.create_task(bench.drain.recv_many())
    await settle()
    bench.ends.sender.offer("a")
    bench.clock.advance(1)
    await settle()
    assert not reading.done()
    bench.ends.sender.offer("b")
    assert await reading == ["b"]


async def test_a_returned_item_that_is_too_old_is_dead_lettered_with_its_history() -> None:
    """A leased item never expires. Returned by a failed reader, it is not delivered again after its deadline."""
    bench = Bench(policy=FlowPolicy.timed(timedelta(seconds=1)))
    await bench.ends.sender.send_many("ab")
    assert bench.drain.try_recv_many() == ["a", "b"]
    await bench.clock.advance_when_idle(1)
    await bench.ends.sender.send("c")
    assert bench.dead_lettered == []
    bench.output.return_leases("it failed", 3)
    assert bench.drain.try_recv_many() == ["c"]
    assert [items for _, items in bench.dead_lettered] == [["a", "b"]]


async def test_since_ingest_counts_from_the_timestamp_of_the_item() -> None:
    """An item ingested 0.75 s ago has 0.25 s left; one from the future has all of its second, and not more."""
    bench = Bench(policy=FlowPolicy.timed(timedelta(seconds=1), since="ingest"))
    now_ns = bench.clock.now_ns()
    old, new, future = (SimpleNamespace(ingest_timestamp=now_ns + late) for late in (-750_000_000, 0, 10**12))
    await bench.ends.sender.send_many([new, future, old])
    await bench.clock.advance_when_idle(0.25)
    assert bench.drain.try_recv_many(1) == [new]
    assert bench.dead_lettered == [("edge 'op -> out-0': not delivered within 1 s of its ingest", [old])]
    await bench.clock.advance_when_idle(0.75)
    assert bench.drain.try_recv_many(1) == []
    assert bench.dead_lettered[1][1] == [future]


async def test_an_item_that_is_too_old_at_its_arrival_is_not_delivered() -> None:
    """An edge with ``since="ingest"`` drops it although the edge is empty."""
    bench = Bench(policy=FlowPolicy.timed(timedelta(seconds=1), since=lambda item: item))
    await bench.ends.sender.send_many([bench.clock.now_ns() - 10**9, bench.clock.now_ns()])
    assert bench.drain.try_recv_many() == [bench.clock.now_ns()]
    assert bench.output.channel.policy_drops == 1


async def test_items_without_an_ingest_time_are_an_error_that_says_what_to_do() -> None:
    """Nothing is accepted, and the message names the two ways to give an ingest time."""
    bench = Bench(policy=FlowPolicy.timed(timedelta(seconds=1), since="ingest"))
    with pytest.raises(
        TypeError, match=r"expected items with an ingest_timestamp .* got str; or pass a function as since$"
    ):
        await bench.ends.sender.send("a")
    assert bench.account.emitted == 0


async def test_a_timed_edge_with_capacity_for_rate_times_deadline_never_holds_its_writer() -> None:
    """A stuck reader, eight items a second, a deadline of one second, room for eight: each item leaves in time for the next."""
    bench = Bench(capacity=8, policy=FlowPolicy.timed(timedelta(seconds=1), dead_letter=False))
    for number in range(100):
        sending = asyncio.create_task(bench.ends.sender.send(number))
        await settle(5)
        assert sending.done()
        await bench.clock.advance_when_idle(0.125)
    assert bench.output.channel.statistics().occupancy == 8
    assert bench.account.shed == 92


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
    """With ``dead_letter=False`` the late items are counted as shed and not dead-lettered."""
    bench = Bench(capacity=1, policy=FlowPolicy.timed(timedelta(seconds=1), dead_letter=False))
    await bench.ends.sender.send("a")
    sending = asyncio.create_task(bench.ends.sender.send("b"))
    await bench.clock.advance_when_idle(1)
    await sending
    assert (bench.account.shed, bench.output.channel.shed, bench.dead_lettered) == (2, 2, [])


async def test_timed_delivers_an_item_that_gets_space_in_time() -> None:
    """With space before the deadline the item is delivered, and no timer is left that could drop a later one."""
    bench = Bench(capacity=1, policy=FlowPolicy.timed(timedelta(seconds=1)))
    await bench.ends.sender.send("a")
    sending = asyncio.create_task(bench.ends.sender.send("b"))
    await bench.clock.advance_when_idle(0.5)
    assert bench.drain.try_recv_many() == ["a"]
    bench.drain.acknowledge()
    await sending
    assert bench.drain.try_recv_many() == ["b"]
    await bench.clock.advance_when_idle(10)
    assert (bench.clock.pending_timers, bench.dead_lettered) == ([], [])


async def test_the_deadline_counts_from_the_arrival_of_each_item() -> None:
    """An edge that takes one item every 0.4 s delivers those of the first second. The others expire, however it moves."""
    bench = Bench(capacity=1, policy=FlowPolicy.timed(timedelta(seconds=1)))
    sending = asyncio.create_task(bench.ends.sender.send_many("abcde"))
    arrived: list[str] = []
    for _ in range(4):
        await settle()
        arrived += bench.drain.try_recv_many()
        bench.drain.acknowledge()
        await bench.clock.advance_when_idle(0.4)
    await sending
    assert (arrived, [items for _, items in bench.dead_lettered]) == (["a", "b", "c"], [["d"], ["e"]])


async def test_a_cancelled_timed_send_has_not_accepted_its_item() -> None:
    """A caller whose ``send`` was cancelled may send the item again, and it is not delivered twice."""
    bench = Bench(capacity=1, policy=FlowPolicy.timed(timedelta(seconds=10)))
    await bench.ends.sender.send("a")
    sending = asyncio.create_task(bench.ends.sender.send("b"))
    await bench.clock.advance_when_idle(9)
    await cancel(sending)
    assert (bench.ends.sender.pending, bench.account.emitted) == (0, 1)
    assert bench.drain.try_recv_many() == ["a"]
    again = asyncio.create_task(bench.ends.sender.send("b"))
    await bench.clock.advance_when_idle(9)  # its deadline counts from its own start
    assert bench.dead_lettered == []
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


@settings(max_examples=examples(200))
@given(
    capacity=st.integers(1, 5),
    by_ingest=st.booleans(),
    dead_letter=st.booleans(),
    seed=st.integers(0, 9_999),
    steps=st.lists(
        st.sampled_from(["offer", "send", "take", "take", "acknowledge", "fail", "time", "time"]), max_size=60
    ),
)
def test_no_item_is_delivered_after_its_deadline_and_each_is_accounted_for_once(
    capacity: int,
    by_ingest: bool,  # noqa: FBT001 - hypothesis passes names
    dead_letter: bool,  # noqa: FBT001
    seed: int,
    steps: list[str],
) -> None:
    """For any order of sends, takes, failures and steps of the clock; a leased item stays with its reader."""
    rng = random.Random(seed)

    async def scenario() -> None:
        since = "ingest" if by_ingest else "edge"
        policy = FlowPolicy.timed(timedelta(seconds=1), dead_letter=dead_letter, since=since)  # type: ignore[arg-type]
        bench = Bench(capacity=capacity, policy=policy)
        edge, clock, made = bench.output, bench.clock, list[SimpleNamespace]()
        done: list[int] = []
        poison: list[int] = []
        writing: asyncio.Task[None] | None = None

        def make() -> list[SimpleNamespace]:
            count = rng.randrange(4)
            first = len(made)
            ages_ns = [rng.randrange(1_500_000_000) if by_ingest else 0 for _ in range(count)]
            made.extend(
                SimpleNamespace(
                    number=number,
                    ingest_timestamp=clock.now_ns() - age_ns,
                    deadline=clock.monotonic() + 1 - age_ns / 1e9,
                )
                for number, age_ns in enumerate(ages_ns, first)
            )
            return made[first:]

        for step in [*steps, "finish"]:
            match step:
                case "offer" if writing is None or writing.done():
                    bench.ends.sender.offer(make())
                case "send" if writing is None or writing.done():
                    writing = asyncio.create_task(bench.ends.sender.send_many(make()))
                case "take":
                    done += [item.number for item in edge.channel._buffer[edge.channel._head : edge.channel._taken]]
                    for item in bench.drain.try_recv_many(rng.randint(1, 3)):
                        assert item.deadline > clock.monotonic()
                case "acknowledge":
                    count = rng.randint(0, edge.channel.leased)
                    head = edge.channel._head
                    done += [item.number for item in edge.channel._buffer[head : head + count]]
                    bench.drain.acknowledge(count)
                case "fail":
                    poison += [pill.item.number for pill in edge.return_leases("failed", 2)]
                case "time":
                    clock.advance(rng.uniform(0, 0.5))
                    await settle(5)
                case _:
                    while writing is not None and not writing.done():
                        await clock.advance_when_idle(0.5)
            await settle(2)
            edge.pump()
            assert edge.channel.occupancy <= capacity
        held = [item.number for item in edge.channel._buffer[edge.channel._head :] + edge.outbox]
        dropped = [item.number for _, items in bench.dead_lettered for item in items]
        channel = edge.channel
        assert channel.policy_drops == (len(dropped) if dead_letter else bench.account.shed)
        assert channel.dead_lettered == len(dropped) + len(poison)
        assert bench.account.emitted == len(made)
        assert len(done) + len(poison) + len(held) + channel.policy_drops == len(made)
        accounted = sorted(done + poison + held + dropped)
        assert accounted == sorted(set(accounted))
        assert done == sorted(done) or "fail" in steps

    asyncio.run(scenario())
