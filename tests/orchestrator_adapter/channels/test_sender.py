from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_adapter.channels.receiver import Receiver
from orchestrator_adapter.channels.sender import Sender
from orchestrator_adapter.primitives.errors import (
    EdgeMisuse,
    ReaderGone,
)
from orchestrator_adapter.testing import settle
from tests.helpers.sizes import examples
from tests.orchestrator_adapter.operators.bench import Bench, cancel

pytestmark = pytest.mark.timeout(30)  # seconds: a writer that is not rejected would wait for ever


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_send_suspends_while_the_edge_is_full_and_goes_on_when_there_is_room() -> None:
    """The second item into an edge of one waits until the first is acknowledged, not merely taken."""
    bench = Bench(capacity=1)
    await bench.ends.sender.send("a")
    sending = asyncio.create_task(bench.ends.sender.send("b"))
    await settle()
    assert bench.drain.try_recv_many() == ["a"]
    await settle()
    assert not sending.done()
    bench.drain.acknowledge()
    await sending
    assert bench.drain.try_recv_many() == ["b"]


async def test_a_cancelled_send_has_not_accepted_its_item() -> None:
    """A sender cancelled while the edge is full leaves no trace in the edge, the outbox or the account."""
    bench = Bench(capacity=1)
    await bench.ends.sender.send("a")
    sending = asyncio.create_task(bench.ends.sender.send("b"))
    await settle()
    await cancel(sending)
    assert bench.account.emitted == 1
    assert bench.ends.sender.pending == 0
    assert bench.drain.try_recv_many() == ["a"]
    assert bench.drain.try_recv_many() == []


async def test_a_send_cancelled_in_the_turn_of_its_wake_up_has_not_accepted_its_item() -> None:
    """A sender that is woken and cancelled before it runs has sent nothing, and another item can use the space."""
    bench = Bench(capacity=1)
    await bench.ends.sender.send("a")
    sending = asyncio.create_task(bench.ends.sender.send("b"))
    await settle()
    bench.drain.try_recv_many()
    bench.drain.acknowledge()
    await cancel(sending)
    await bench.ends.sender.send("c")
    assert bench.drain.try_recv_many() == ["c"]


async def test_send_many_cancelled_half_way_has_sent_a_prefix() -> None:
    """Of five items into an edge of two, a cancellation leaves exactly the first two accepted and counted."""
    bench = Bench(capacity=2)
    sending = asyncio.create_task(bench.ends.sender.send_many("abcde"))
    await settle()
    await cancel(sending)
    assert bench.account.emitted == 2
    assert bench.ends.sender.pending == 0
    assert bench.drain.try_recv_many() == ["a", "b"]


async def test_send_many_comes_after_items_that_were_offered_before() -> None:
    """Items in the outbox leave before those of a later ``send_many``."""
    bench = Bench(capacity=2)
    bench.ends.sender.offer("abc")
    sending = asyncio.create_task(bench.ends.sender.send_many("de"))
    arrived: list[str] = []
    while not sending.done() or bench.drain.ready:
        await settle(5)
        arrived += bench.drain.try_recv_many()
    assert "".join(arrived) == "abcde"


async def test_a_waiting_writer_raises_when_its_reader_ends() -> None:
    """A writer that waits for space raises ``ReaderGone`` with the edge's id."""
    bench = Bench(capacity=1)
    await bench.ends.sender.send("a")
    sending = asyncio.create_task(bench.ends.sender.send("b"))
    await settle()
    bench.output.finish()
    with pytest.raises(ReaderGone, match=r"^edge 'op -> out-0': its reader has ended for good$"):
        await sending
    with pytest.raises(ReaderGone):
        await bench.ends.sender.send("c")


async def test_nothing_is_accepted_for_a_reader_that_has_ended(bench: Bench) -> None:
    """Items offered after the reader ended stay in the outbox, and ``flush`` raises. With an empty outbox it does not."""
    bench.output.finish()
    await bench.ends.flush()
    bench.ends.sender.offer(["a"])
    with pytest.raises(ReaderGone):
        await bench.ends.flush()
    assert bench.ends.sender.pending == 1
    assert bench.drain.ready == 0
    assert bench.output.withdraw_outbox() == ["a"]


async def test_a_second_writer_is_rejected() -> None:
    """While one task waits for space on an edge, another task that sends raises, and its item is not accepted."""
    bench = Bench(capacity=1)
    bench.output.channel.push("a")
    sending = asyncio.create_task(bench.ends.sender.send("b"), name="first")
    await settle()
    with pytest.raises(
        EdgeMisuse, match=r"^the writing end of edge 'op -> out-0' is used by task 'first', and at the same time by"
    ):
        await bench.ends.sender.send("c")
    with pytest.raises(
        EdgeMisuse, match=r"^the writing end of edge 'op -> out-0' is used by task 'first', and at the same time by"
    ):
        await bench.ends.emit(["d"])
    assert bench.ends.sender.pending == 0
    assert bench.account.emitted == 0
    await cancel(sending)


async def test_an_operator_may_use_one_task_for_each_edge() -> None:
    """A hand-written router may have a task for each input and output. All of them are woken."""
    bench = Bench(inputs=2, outputs=2, capacity=1)

    async def forward(receiver: Receiver[Any], sender: Sender[Any]) -> None:
        async for item in receiver:
            await sender.send(item)

    forwarding = [
        asyncio.create_task(forward(receiver, sender))
        for receiver, sender in zip(bench.ends.receivers, bench.ends.senders, strict=True)
    ]
    arrived: list[list[str]] = [[], []]
    for letter in "abcd":
        for number, feed in enumerate(bench.feeds):
            feed.offer([f"{letter}{number}"])
        await settle()
        for number, drain in enumerate(bench.drains):
            arrived[number] += drain.try_recv_many()
            drain.acknowledge()
        await settle()
    for edge in bench.inputs:
        edge.close()
    await asyncio.gather(*forwarding)
    assert arrived == [["a0", "b0", "c0", "d0"], ["a1", "b1", "c1", "d1"]]
    assert bench.account.violation is None


@settings(max_examples=examples(60))
@given(
    capacity=st.integers(1, 4),
    seed=st.integers(0, 9_999),
    cancellations=st.integers(0, 12),
)
def test_cancelling_sender_and_receiver_anywhere_loses_and_repeats_nothing(
    capacity: int, seed: int, cancellations: int
) -> None:
    """A writer and a reader that are cancelled at random turns, and go on, transfer the exact stream, in order."""
    rng = random.Random(seed)

    async def scenario() -> None:
        bench = Bench(capacity=capacity)
        arrived: list[int] = []
        next_up = 0

        async def write() -> None:
            nonlocal next_up
            while next_up < 30:
                await bench.ends.sender.send(next_up)
                next_up += 1  # no await in between: accepted means counted
            bench.output.close()

        async def read() -> None:
            while batch := await bench.drain.recv_many(3):
                arrived.extend(batch)
                bench.drain.acknowledge()

        tasks = {write: asyncio.create_task(write()), read: asyncio.create_task(read())}
        for _ in range(cancellations):
            await settle(rng.randrange(6))
            which: Callable[[], Any] = rng.choice([write, read])
            tasks[which].cancel()
            await asyncio.gather(tasks[which], return_exceptions=True)
            tasks[which] = asyncio.create_task(which())
        async with asyncio.timeout(20):
            await asyncio.gather(*tasks.values())
        assert arrived == list(range(30))

    asyncio.run(scenario())
