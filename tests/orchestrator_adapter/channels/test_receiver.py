from __future__ import annotations

import asyncio
from contextvars import Context, copy_context

import pytest

from orchestrator_adapter.primitives.errors import (
    EdgeMisuse,
    EndOfStream,
)
from orchestrator_adapter.testing import settle
from tests.orchestrator_adapter.operators.bench import Bench, cancel

pytestmark = pytest.mark.timeout(30)  # seconds: a reader that is not rejected would wait for ever


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_recv_waits_for_the_first_item_and_no_longer(bench: Bench) -> None:
    """A waiting reader receives pushed items at once, even if the batch is not full."""
    receiving = asyncio.create_task(bench.ends.receiver.recv_many(100))
    await settle()
    assert not receiving.done()
    bench.feed.offer(["a", "b"])
    assert await receiving == ["a", "b"]


async def test_asking_for_the_next_item_acknowledges_the_previous_one(bench: Bench) -> None:
    """The lease on the first item ends with the second ``recv``, not with the first."""
    receiver = bench.ends.receiver
    bench.feed.offer(["a", "b"])
    await receiver.recv()
    assert (receiver.leased, bench.account.consumed) == (1, 0)
    await receiver.recv()
    assert (receiver.leased, bench.account.consumed) == (1, 1)


async def test_a_cancelled_recv_has_taken_nothing(bench: Bench) -> None:
    """A cancelled reader has leased nothing, and the next one gets everything."""
    receiving = asyncio.create_task(bench.ends.receiver.recv())
    await settle()
    await cancel(receiving)
    bench.feed.offer(["a"])
    assert bench.ends.receiver.leased == 0
    assert await bench.ends.receiver.recv() == "a"


async def test_a_recv_cancelled_in_the_turn_of_its_wake_up_has_taken_nothing(bench: Bench) -> None:
    """A reader that is woken and cancelled before it runs again has leased nothing: the item stays in the edge."""
    receiving = asyncio.create_task(bench.ends.receiver.recv())
    await settle()
    bench.feed.offer(["a"])
    await cancel(receiving)
    assert bench.ends.receiver.leased == 0
    assert bench.ends.receiver.try_recv_many() == ["a"]


async def test_end_of_stream_comes_after_everything_that_was_sent(bench: Bench) -> None:
    """Items in the edge when it was closed are read first. Then every ``recv`` raises, with the edge that has ended."""
    bench.feed.offer(["a"])
    bench.input.close()
    assert await bench.ends.receiver.recv() == "a"
    for _ in range(2):
        with pytest.raises(EndOfStream, match=r"^edge 'in-0 -> op' has ended$"):
            await bench.ends.receiver.recv()


async def test_closing_wakes_a_waiting_reader(bench: Bench) -> None:
    """A reader that waits on an empty edge receives the end of stream."""
    receiving = asyncio.create_task(bench.ends.receiver.recv_many())
    await settle()
    bench.input.close()
    assert await receiving == []


async def test_iterating_yields_each_item_once(bench: Bench) -> None:
    """``async for`` over the receiver yields items, over ``batches`` it yields micro-batches, until the end of stream."""
    bench.feed.offer(["a", "b", "c"])
    assert [await anext(aiter(bench.ends.receiver))] == ["a"]
    bench.input.close()
    assert [batch async for batch in bench.ends.receiver.batches(1)] == [["b"], ["c"]]


async def test_a_second_reader_is_rejected(bench: Bench) -> None:
    """Two tasks wait on one end: the second one raises, and the first one is not affected."""
    receiving = asyncio.create_task(bench.ends.receiver.recv(), name="first")
    await settle()
    with pytest.raises(
        EdgeMisuse,
        match=r"^the reading end of edge 'in-0 -> op' is used by task 'first', and at the same time by '.*': every end of an "
        r"edge has exactly one user$",
    ):
        await bench.ends.receiver.recv()
    bench.feed.offer(["a"])
    assert await receiving == "a"


async def test_an_end_that_passes_from_task_to_task_keeps_nothing_of_the_earlier_ones(bench: Bench) -> None:
    """Each of 200 tasks reads an item and starts the next one: the last one's context is that of the first."""

    async def read_and_pass_on(following: int) -> Context:
        bench.feed.offer(["a"])
        assert await bench.ends.receiver.recv() == "a"
        if following == 0:
            return copy_context()
        return await asyncio.create_task(read_and_pass_on(following - 1))

    before = copy_context()
    after = await asyncio.create_task(read_and_pass_on(199))
    assert dict(after.items()) == dict(before.items())


async def test_a_cancelled_reader_frees_its_end(bench: Bench) -> None:
    """After the cancellation of one reader, the next one is not rejected as a second reader."""
    for _ in range(3):
        receiving = asyncio.create_task(bench.ends.receiver.recv())
        await settle()
        await cancel(receiving)


async def test_every_way_to_read_is_rejected_while_another_task_waits_for_items(bench: Bench) -> None:
    """``recv``, ``recv_many`` and ``try_recv_many`` of a second task raise, and the first task's lease stays as it was."""
    bench.feed.offer("a")
    took = asyncio.Event()

    async def worker() -> str:
        assert await bench.ends.receiver.recv() == "a"
        took.set()
        return str(await bench.ends.receiver.recv())

    working = asyncio.create_task(worker(), name="worker")
    await took.wait()
    await settle()
    for take in (bench.ends.receiver.recv, bench.ends.receiver.recv_many):
        with pytest.raises(EdgeMisuse, match=r"is used by task 'worker'"):
            await take()
    with pytest.raises(EdgeMisuse, match=r"is used by task 'worker'"):
        bench.ends.receiver.try_recv_many()
    bench.feed.offer("bc")
    assert await working == "b"
    assert bench.ends.receiver.leased == 1
    assert await bench.ends.receiver.recv() == "c"  # the worker has ended, so the end is free


async def test_a_task_may_read_for_the_task_that_started_it(bench: Bench) -> None:
    """``asyncio.wait_for`` reads in a task of its own on Python 3.11. Such a task is not a second reader."""
    bench.feed.offer("abcd")
    assert await bench.ends.receiver.recv() == "a"
    assert await asyncio.wait_for(bench.ends.receiver.recv(), 60) == "b"
    assert await bench.ends.receiver.recv() == "c"
    assert await bench.ends.unless_shutdown(bench.ends.receiver.recv()) == "d"
    await asyncio.wait_for(bench.ends.sender.send("x"), 60)
    await bench.ends.sender.send("y")
    assert bench.drain.try_recv_many() == ["x", "y"]


async def test_a_task_of_an_earlier_instance_is_rejected_while_its_successor_waits(bench: Bench) -> None:
    """A child task that outlived its parent cannot take an item that the parent's successor waits for."""
    may_read = asyncio.Event()

    async def leaked() -> str:
        await may_read.wait()
        item: str = await bench.ends.receiver.recv()
        return item

    async def instance(children: list[asyncio.Task[str]]) -> None:
        assert await bench.ends.receiver.recv()
        children.append(asyncio.create_task(leaked()))
        await asyncio.sleep(0)

    bench.input.channel.push("a")
    children: list[asyncio.Task[str]] = []
    await asyncio.create_task(instance(children))
    successor = asyncio.create_task(bench.ends.receiver.recv())
    await settle()
    may_read.set()
    with pytest.raises(EdgeMisuse):
        await children[0]
    bench.feed.offer("b")
    assert await successor == "b"
    assert bench.ends.receiver.leased == 1
