from __future__ import annotations

import asyncio
import itertools
import logging
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator_adapter.channels.channel import Channel, FlowPolicy, Undeliverable
from orchestrator_adapter.channels.edge import Edge, Side
from orchestrator_adapter.channels.ledger import Bookkeeping, OperatorAccount
from orchestrator_adapter.channels.receiver import Receiver
from orchestrator_adapter.channels.sender import Sender
from orchestrator_adapter.operators.ends import WiredEnds
from orchestrator_adapter.operators.routers import merge
from orchestrator_adapter.operators.services import VertexServices
from orchestrator_adapter.primitives.errors import (
    DeadLetterLimitExceeded,
    EdgeMisuse,
    EndOfStream,
    OperatorError,
    PermanentFailure,
    ReaderGone,
)
from orchestrator_adapter.primitives.event_log import BoundedLog, DecisionLog
from orchestrator_adapter.primitives.metrics import LatencyHistogram
from orchestrator_adapter.primitives.shutdown_token import ShutdownToken
from orchestrator_adapter.resilience.breaker import Breakers
from orchestrator_adapter.resilience.retry import Permanent, Retry, RetryDisposition, RetryOk, RetryPolicy
from orchestrator_adapter.storage.dead_letter import DeadLetterGate, DeadLetterKind, DeadLetterLimits, DeadLetterList
from orchestrator_adapter.storage.dead_letter_writer import DeadLetterWriter
from orchestrator_adapter.testing import ManualClock, settle, without_waiting
from tests.helpers.log_lines import event_of
from tests.helpers.sizes import examples


class Bench:
    """One operator with any number of inputs and outputs, and the far ends of its edges in the test's hands."""

    def __init__(
        self,
        inputs: int = 1,
        outputs: int = 1,
        *,
        capacity: int = 4,
        policy: FlowPolicy | None = None,
        bookkeeping: Bookkeeping = Bookkeeping.CONSERVING,
        limits: DeadLetterLimits | None = None,
    ) -> None:
        self.clock = ManualClock()
        self.account = OperatorAccount("op", bookkeeping)
        self.letters = DeadLetterList()
        self.dead_lettered: list[tuple[str, list[Any]]] = []
        self.shutdown = ShutdownToken()
        self.pool: ThreadPoolExecutor | None = None
        self.services = VertexServices(
            clock=self.clock,
            rng=random.Random(0),
            shutdown=self.shutdown,
            dead_letter_writer=DeadLetterWriter(DecisionLog("graph"), self.letters, self.clock),
            account=self.account,
            executor=self._executor,
            breakers=Breakers(DecisionLog("graph"), self.clock),
            gate=DeadLetterGate(limits),
            log=BoundedLog("op", self.clock),
            latency=LatencyHistogram(),
        )
        sides = Side(self.account), Side(self.account)
        self.inputs = [
            self._edge(f"in-{number} -> op", capacity, None, writer=_side(f"in-{number}"), reader=sides[0])
            for number in range(inputs)
        ]
        self.outputs = [
            self._edge(f"op -> out-{number}", capacity, policy, writer=sides[1], reader=_side(f"out-{number}"))
            for number in range(outputs)
        ]
        self.feeds: list[Sender[Any]] = [Sender(edge) for edge in self.inputs]
        self.drains: list[Receiver[Any]] = [Receiver(edge) for edge in self.outputs]
        self.ends = WiredEnds("op", inputs=sides[0], outputs=sides[1], services=self.services)

    @property
    def input(self) -> Edge[Any]:
        return self.inputs[0]

    @property
    def output(self) -> Edge[Any]:
        return self.outputs[0]

    @property
    def feed(self) -> Sender[Any]:
        return self.feeds[0]

    @property
    def drain(self) -> Receiver[Any]:
        return self.drains[0]

    def _edge(self, name: str, capacity: int, policy: FlowPolicy | None, *, writer: Side, reader: Side) -> Edge[Any]:
        return Edge(
            Channel(name, capacity),
            policy or FlowPolicy.backpressure(),
            writer=writer,
            reader=reader,
            clock=self.clock,
            dead_letter=self._dead_letter,
        )

    def _dead_letter(self, why: str, items: Sequence[Undeliverable[Any]]) -> None:
        self.dead_lettered.append((why, [undeliverable.item for undeliverable in items]))

    def _executor(self) -> ThreadPoolExecutor:
        self.pool = self.pool or ThreadPoolExecutor(1)
        return self.pool


def _side(operator: str) -> Side:
    return Side(OperatorAccount(operator, Bookkeeping.EXPANDING))


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


# Receiving.


async def test_recv_waits_for_the_first_item_and_no_longer(bench: Bench) -> None:
    """A waiting reader gets what was pushed meanwhile at once, without the batch being full."""
    receiving = asyncio.create_task(bench.ends.receiver.recv_many(100))
    await settle()
    assert not receiving.done()
    bench.feed.offer(["a", "b"])
    assert await receiving == ["a", "b"]


async def test_asking_for_the_next_item_acknowledges_the_one_before(bench: Bench) -> None:
    """The lease on the first item ends with the second ``recv``, not with the first."""
    receiver = bench.ends.receiver
    bench.feed.offer(["a", "b"])
    await receiver.recv()
    assert (receiver.leased, bench.account.consumed) == (1, 0)
    await receiver.recv()
    assert (receiver.leased, bench.account.consumed) == (1, 1)


async def test_cancelled_in_recv_nothing_was_taken(bench: Bench) -> None:
    """A cancelled reader has leased nothing, and the next one gets everything."""
    receiving = asyncio.create_task(bench.ends.receiver.recv())
    await settle()
    await cancel(receiving)
    bench.feed.offer(["a"])
    assert bench.ends.receiver.leased == 0
    assert await bench.ends.receiver.recv() == "a"


async def test_cancelled_in_the_same_turn_as_the_arrival_nothing_was_taken(bench: Bench) -> None:
    """A reader that is woken and cancelled before it runs again has leased nothing: the item stays in the edge."""
    receiving = asyncio.create_task(bench.ends.receiver.recv())
    await settle()
    bench.feed.offer(["a"])
    await cancel(receiving)
    assert bench.ends.receiver.leased == 0
    assert bench.ends.receiver.try_recv_many() == ["a"]


async def test_end_of_stream_comes_after_everything_that_was_sent(bench: Bench) -> None:
    """What lay in the edge when it was closed is read first; then ``recv`` says which edge has ended, every time."""
    bench.feed.offer(["a"])
    bench.input.close()
    assert await bench.ends.receiver.recv() == "a"
    for _ in range(2):
        with pytest.raises(EndOfStream, match=r"^edge 'in-0 -> op' has ended$"):
            await bench.ends.receiver.recv()


async def test_closing_wakes_a_waiting_reader(bench: Bench) -> None:
    """A reader that waits on an empty edge sees it end."""
    receiving = asyncio.create_task(bench.ends.receiver.recv_many())
    await settle()
    bench.input.close()
    assert await receiving == []


async def test_iterating_yields_each_item_once(bench: Bench) -> None:
    """``async for`` over the receiver gives the items, over ``batches`` the micro-batches, up to the end."""
    bench.feed.offer(["a", "b", "c"])
    assert [await anext(aiter(bench.ends.receiver))] == ["a"]
    bench.input.close()
    assert [batch async for batch in bench.ends.receiver.batches(1)] == [["b"], ["c"]]


async def test_a_second_reader_is_refused(bench: Bench) -> None:
    """Two tasks that wait on one end: the second is told so, and the first is not disturbed."""
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


async def test_a_cancelled_reader_leaves_the_place_free(bench: Bench) -> None:
    """After the cancellation of one reader the next one is not taken for a second."""
    for _ in range(3):
        receiving = asyncio.create_task(bench.ends.receiver.recv())
        await settle()
        await cancel(receiving)


# Sending.


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


async def test_cancelled_in_send_the_item_was_not_accepted() -> None:
    """A sender cancelled while the edge is full leaves no trace: neither in the edge, nor in hand, nor in the books."""
    bench = Bench(capacity=1)
    await bench.ends.sender.send("a")
    sending = asyncio.create_task(bench.ends.sender.send("b"))
    await settle()
    await cancel(sending)
    assert bench.account.emitted == 1
    assert bench.ends.sender.pending == 0
    assert bench.drain.try_recv_many() == ["a"]
    assert bench.drain.try_recv_many() == []


async def test_cancelled_in_the_same_turn_as_the_room_the_item_was_not_accepted() -> None:
    """A sender that is woken by room and cancelled before it runs has sent nothing, and the room can be used."""
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
    """Of five items into an edge of two, a cancellation leaves exactly the first two accepted and booked."""
    bench = Bench(capacity=2)
    sending = asyncio.create_task(bench.ends.sender.send_many("abcde"))
    await settle()
    await cancel(sending)
    assert bench.account.emitted == 2
    assert bench.ends.sender.pending == 0
    assert bench.drain.try_recv_many() == ["a", "b"]


async def test_send_many_is_in_order_behind_what_was_offered_before() -> None:
    """Items offered and still in hand leave before those of a later ``send_many``."""
    bench = Bench(capacity=2)
    bench.ends.sender.offer("abc")
    sending = asyncio.create_task(bench.ends.sender.send_many("de"))
    arrived: list[str] = []
    while not sending.done() or bench.drain.ready:
        await settle(5)
        arrived += bench.drain.try_recv_many()
    assert "".join(arrived) == "abcde"


async def test_a_reader_gone_for_good_is_named_to_a_waiting_writer() -> None:
    """A writer that waits for room raises ``ReaderGone`` with the edge's name when the reader leaves."""
    bench = Bench(capacity=1)
    await bench.ends.sender.send("a")
    sending = asyncio.create_task(bench.ends.sender.send("b"))
    await settle()
    bench.output.finish()
    with pytest.raises(ReaderGone, match=r"^edge 'op -> out-0': its reader has ended for good$"):
        await sending
    with pytest.raises(ReaderGone):
        await bench.ends.sender.send("c")


async def test_nothing_is_accepted_for_a_reader_that_is_gone(bench: Bench) -> None:
    """What is offered after the reader left stays in hand, to be buried, and ``flush`` raises; with nothing it does not."""
    bench.output.finish()
    await bench.ends.flush()
    bench.ends.sender.offer(["a"])
    with pytest.raises(ReaderGone):
        await bench.ends.flush()
    assert bench.ends.sender.pending == 1
    assert bench.drain.ready == 0
    assert bench.output.withdraw_outbox() == ["a"]


async def test_a_second_writer_is_refused() -> None:
    """While one task waits for room on an edge, another that sends there is told so, and its item is not taken over."""
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


async def test_a_task_may_use_an_end_on_behalf_of_the_one_that_started_it(bench: Bench) -> None:
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


async def test_one_task_for_each_edge_is_as_it_should_be() -> None:
    """A hand-written router may have a task for each of its inputs and outputs; all of them are woken."""
    bench = Bench(inputs=2, outputs=2, capacity=1)

    async def carry(receiver: Receiver[Any], sender: Sender[Any]) -> None:
        async for item in receiver:
            await sender.send(item)

    carrying = [
        asyncio.create_task(carry(receiver, sender))
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
    await asyncio.gather(*carrying)
    assert arrived == [["a0", "b0", "c0", "d0"], ["a1", "b1", "c1", "d1"]]
    assert bench.account.violation is None


async def test_books_close_although_two_inputs_are_on_lease_at_once() -> None:
    """A join that takes one of each input and passes both on is no surplus: each item is accounted for once."""
    bench = Bench(inputs=2)
    bench.feeds[0].offer("ab")
    bench.feeds[1].offer("xy")
    for _ in range(2):
        pair = [await receiver.recv() for receiver in bench.ends.receivers]
        await bench.ends.sender.send_many(pair)
    for receiver in bench.ends.receivers:
        receiver.acknowledge()
    assert (bench.account.violation, bench.account.open, bench.account.consumed) == (None, 0, 4)


async def test_books_close_although_a_batch_is_acknowledged_piecemeal(bench: Bench) -> None:
    """What was passed on of a batch may be acknowledged item by item; one output more than that is seen at once."""
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


# Flow policies.


async def test_shed_drops_what_does_not_fit_and_counts_it() -> None:
    """Of five items into an edge of two, three are shed: counted on the edge and in the books, none kept in hand."""
    bench = Bench(capacity=2, policy=FlowPolicy.shed(), bookkeeping=Bookkeeping.SOURCE)
    await bench.ends.emit("abcde")
    assert bench.drain.try_recv_many() == ["a", "b"]
    assert bench.output.channel.statistics().shed == 3
    assert (bench.account.ingested, bench.account.shed) == (5, 3)
    assert bench.ends.sender.pending == 0
    assert bench.dead_lettered == []


async def test_a_shedding_writer_that_never_waits_still_lets_its_reader_run() -> None:
    """A writer in a tight loop on a full edge gives the loop a turn at each drop: its reader is not starved."""
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
    """At 0.999 s the item still waits; at 1 s it is buried, with the edge and the time in the reason."""
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


async def test_a_wait_that_ends_in_time_leaves_no_timer_behind() -> None:
    """Items that got room in time leave nothing on the clock that could still fire."""
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


async def test_timed_may_shed_instead() -> None:
    """With ``dead_letter=False`` the late item is counted as shed and buried nowhere."""
    bench = Bench(capacity=1, policy=FlowPolicy.timed(timedelta(seconds=1), dead_letter=False))
    await bench.ends.sender.send("a")
    sending = asyncio.create_task(bench.ends.sender.send("b"))
    await bench.clock.advance_when_idle(1)
    await sending
    assert (bench.account.shed, bench.output.channel.shed, bench.dead_lettered) == (1, 1, [])


async def test_timed_delivers_what_gets_room_in_time() -> None:
    """Room before the deadline delivers the item, and no timer is left that could drop a later one."""
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


async def test_the_deadline_starts_anew_whenever_the_edge_moves() -> None:
    """An edge that takes one item every 0.9 s never times out at 1 s; when it stops, all that is left goes at once."""
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


async def test_cancelled_in_a_timed_send_the_item_was_not_accepted() -> None:
    """As on any edge: a caller that gave up on its ``send`` may send again, and nothing is delivered twice."""
    bench = Bench(capacity=1, policy=FlowPolicy.timed(timedelta(seconds=10)))
    await bench.ends.sender.send("a")
    sending = asyncio.create_task(bench.ends.sender.send("b"))
    await bench.clock.advance_when_idle(9)
    await cancel(sending)
    assert (bench.ends.sender.pending, bench.account.emitted) == (0, 1)
    again = asyncio.create_task(bench.ends.sender.send("b"))
    await bench.clock.advance_when_idle(9)  # it waits from its own beginning on, not from that of the one before
    assert bench.dead_lettered == []
    assert bench.drain.try_recv_many() == ["a"]
    bench.drain.acknowledge()
    await again
    assert bench.drain.try_recv_many() == ["b"]


async def test_cancelled_in_a_timed_emit_the_items_stay_in_the_runtimes_hands() -> None:
    """What a source emits is ingested at once: cancelled, it is in hand, and the next ``flush`` delivers it."""
    bench = Bench(capacity=1, policy=FlowPolicy.timed(timedelta(seconds=1)), bookkeeping=Bookkeeping.SOURCE)
    emitting = asyncio.create_task(bench.ends.emit("ab"))
    await settle()
    await cancel(emitting)
    assert bench.ends.sender.pending == 1
    bench.drain.try_recv_many()
    bench.drain.acknowledge()
    await bench.ends.flush()
    assert bench.drain.try_recv_many() == ["b"]


# Emit, commit, flush.


async def test_emit_has_ingested_before_it_waits() -> None:
    """A source cancelled in ``emit`` on a full edge loses nothing: all is booked, and what did not fit is in hand."""
    bench = Bench(capacity=1, bookkeeping=Bookkeeping.SOURCE)
    emitting = asyncio.create_task(bench.ends.emit("abc"))
    await settle()
    await cancel(emitting)
    assert bench.account.ingested == 3
    assert bench.ends.sender.pending == 2


async def test_commit_moves_outputs_and_acknowledges_inputs_in_one_step(bench: Bench) -> None:
    """After ``commit`` the inputs are consumed and the outputs emitted, even those that wait for room."""
    bench.feed.offer("abcd")
    batch = bench.ends.receiver.try_recv_many()
    bench.ends.commit([*batch[:3]], acknowledge=3)
    assert (bench.account.consumed, bench.account.emitted, bench.account.violation) == (3, 3, None)
    assert bench.ends.receiver.leased == 1


async def test_cancelled_in_flush_nothing_is_lost_and_nothing_repeated() -> None:
    """A flush cancelled half-way leaves the rest in hand; the next one delivers exactly that, in order."""
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


async def test_flush_raises_beyond_the_dead_letter_limits_after_the_books_are_closed() -> None:
    """The rejected items are acknowledged and booked when ``DeadLetterLimitExceeded`` names the operator."""
    bench = Bench(limits=DeadLetterLimits(max_consecutive=1))
    bench.feed.offer("ab")
    for item in bench.ends.receiver.try_recv_many():
        bench.ends.reject(item, "no good")
    bench.ends.commit([], acknowledge=2)
    with pytest.raises(DeadLetterLimitExceeded, match=r"^operator 'op': "):
        await bench.ends.flush()
    assert (bench.account.consumed, bench.account.rejected, bench.account.violation) == (2, 2, None)
    assert [letter.payload for letter in bench.letters.letters] == ["a", "b"]


async def test_single_ends_say_so_when_there_are_several() -> None:
    """A router that asks for *the* input or output is told how many it has."""
    bench = Bench(inputs=2, outputs=0)
    with pytest.raises(EdgeMisuse, match=r"^operator 'op' has 2 inputs; use ends\.receivers$"):
        _ = bench.ends.receiver
    with pytest.raises(EdgeMisuse, match=r"^operator 'op' has 0 outputs; use ends\.senders$"):
        _ = bench.ends.sender


# Fan-in.


async def test_merge_serves_every_input_in_turn() -> None:
    """An input that is always full does not starve another: of the first four batches of one, two are the other's."""
    bench = Bench(inputs=2, capacity=8)
    bench.feeds[0].offer(["a"] * 8)
    bench.feeds[1].offer(["b"] * 2)
    merging = asyncio.create_task(merge(max_batch=1)(bench.ends))
    await settle()
    assert "".join(bench.drain.try_recv_many(4)) == "abab"
    await cancel(merging)


async def test_arrival_returns_for_any_input_and_when_all_have_ended() -> None:
    """One ended input is not enough to return; an item on the other is, and so is the end of both."""
    bench = Bench(inputs=2)
    waiting = asyncio.create_task(bench.ends.wait_for_items())
    bench.inputs[0].close()
    await settle()
    assert not waiting.done()
    bench.feeds[1].offer(["x"])
    await waiting
    bench.ends.receivers[1].try_recv_many()
    bench.inputs[1].close()
    await bench.ends.wait_for_items()


@settings(max_examples=examples(40))
@given(
    lengths=st.lists(st.integers(0, 20), min_size=2, max_size=4),
    capacity=st.integers(1, 5),
    max_batch=st.integers(1, 5),
    seed=st.integers(0, 999),
)
def test_merge_loses_nothing_and_keeps_each_inputs_order(
    lengths: list[int], capacity: int, max_batch: int, seed: int
) -> None:
    """Whatever the interleaving of writers and reader, every item of every input arrives once and in its order."""
    rng = random.Random(seed)

    async def scenario() -> list[tuple[int, int]]:
        bench = Bench(inputs=len(lengths), capacity=capacity)

        async def write(way: int, length: int) -> None:
            for number in range(length):
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
                await bench.feeds[way].send((way, number))
            bench.inputs[way].close()

        async def relay() -> None:
            await merge(max_batch=max_batch)(bench.ends)
            bench.output.close()

        writers = [asyncio.create_task(write(way, length)) for way, length in enumerate(lengths)]
        relaying = asyncio.create_task(relay())
        async with asyncio.timeout(20):
            arrived = [item async for item in bench.drain]
            await asyncio.gather(relaying, *writers)
        return arrived

    arrived = asyncio.run(scenario())
    for way, length in enumerate(lengths):
        assert [number for from_way, number in arrived if from_way == way] == list(range(length))


@settings(max_examples=examples(60))
@given(
    capacity=st.integers(1, 4),
    seed=st.integers(0, 9_999),
    cancellations=st.integers(0, 12),
)
def test_cancelling_sender_and_receiver_anywhere_loses_and_repeats_nothing(
    capacity: int, seed: int, cancellations: int
) -> None:
    """A writer and a reader that are cancelled at arbitrary turns and go on arrive at the exact stream, in order."""
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


# Named outcomes.


async def test_outcomes_are_booked_and_the_dead_are_kept(bench: Bench) -> None:
    """Duplicates and discards are counted; rejects and dead letters are counted and kept with their reason."""
    bench.ends.duplicate(2)
    bench.ends.discard()
    bench.ends.reject("r", "out of range")
    bench.ends.dead_letter("d", DeadLetterKind.SCHEMA_MISMATCH, "no such field", attempts=3)
    account = bench.account
    assert (account.duplicates, account.discarded, account.rejected, account.dead_lettered) == (2, 1, 1, 1)
    assert [(letter.kind, letter.message, letter.attempts, letter.payload) for letter in bench.letters.letters] == [
        (DeadLetterKind.VALIDATION_FAILED, "out of range", 1, "r"),
        (DeadLetterKind.SCHEMA_MISMATCH, "no such field", 3, "d"),
    ]


async def test_dead_letters_are_logged_at_a_bounded_rate(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A hundred rejects in one second are one line; the next line says how many were left out."""
    with caplog.at_level(logging.WARNING, "orchestrator_adapter.operator"):
        for _ in range(100):
            bench.ends.reject("r", "out of range")
        bench.clock.advance(1)
        bench.ends.reject("r", "out of range")
    lines = [event_of(record.getMessage()) for record in caplog.records]
    assert [line["not_logged_since_last"] for line in lines] == [0, 99]
    assert lines[0] | {"not_logged_since_last": 0} == {
        "event": "dead_letter",
        "operator": "op",
        "kind": "ValidationFailed",
        "message": "out of range",
        "instance": bench.ends.instance,
        "not_logged_since_last": 0,
    }


# The world around.


async def test_kept_resources_are_made_once_and_closed_in_reverse(bench: Bench) -> None:
    """``keep`` gives the same object again; closing goes backwards, and one that fails stops none."""
    closed: list[str] = []

    def refuse(name: str) -> None:
        closed.append(name)
        raise OSError("busy")

    assert bench.ends.keep("a", lambda: "first", closed.append) == "first"
    assert bench.ends.keep("a", lambda: "second", closed.append) == "first"
    bench.ends.keep("b", lambda: "b", refuse)
    bench.ends.keep("c", lambda: "c", closed.append)
    problems = bench.services.kept.close_all()
    assert closed == ["c", "b", "first"]
    assert [str(problem) for problem in problems] == ["busy"]
    assert bench.services.kept.close_all() == []


async def test_a_resource_that_could_not_be_made_is_made_the_next_time(bench: Bench) -> None:
    """A failing ``make`` keeps nothing: the restarted instance tries again."""

    def refuse() -> str:
        raise OSError("port taken")

    with pytest.raises(OSError, match="port taken"):
        bench.ends.keep("socket", refuse)
    assert bench.ends.keep("socket", lambda: "open") == "open"


async def test_blocking_work_runs_in_a_thread_of_its_own(bench: Bench) -> None:
    """``run_blocking`` runs elsewhere and hands back result and exception."""
    assert await bench.ends.run_blocking(threading.get_ident) != threading.get_ident()
    with pytest.raises(OSError, match="disk"):
        await bench.ends.run_blocking(_fail, OSError("disk"))


async def test_a_blocking_function_that_raises_stop_iteration_does_not_hang(bench: Bench) -> None:
    """``run_blocking(next, empty)`` raises: a ``StopIteration`` set into a future would be waited for without end."""
    async with asyncio.timeout(20):
        with pytest.raises(RuntimeError, match="a blocking function raised StopIteration"):
            await bench.ends.run_blocking(next, iter([]))


async def test_a_durable_write_is_acknowledged_although_cancelled(bench: Bench) -> None:
    """Cancelled while the thread writes, ``acknowledge_after`` acknowledges first and passes the cancellation on then."""
    begun, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def write() -> None:
        loop.call_soon_threadsafe(begun.set)
        may_end.wait(20)

    bench.feed.offer("ab")
    bench.ends.receiver.try_recv_many()
    writing = asyncio.create_task(bench.ends.acknowledge_after(2, write))
    await begun.wait()
    for _ in range(3):
        writing.cancel()
        await settle()
    assert not writing.done()
    assert bench.ends.receiver.leased == 2
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert bench.ends.receiver.leased == 0


async def test_a_failed_write_acknowledges_nothing(bench: Bench) -> None:
    """If the function raises, everything stays on lease."""
    bench.feed.offer("ab")
    bench.ends.receiver.try_recv_many()
    with pytest.raises(OSError, match="disk full"):
        await bench.ends.acknowledge_after(2, _fail, OSError("disk full"))
    assert bench.ends.receiver.leased == 2


async def test_unless_shutdown_returns_what_the_work_returns(bench: Bench) -> None:
    """Work that ends before a shutdown gives its result or its exception, and leaves no task behind."""
    before = asyncio.all_tasks()
    assert await bench.ends.unless_shutdown(_give("page")) == "page"
    with pytest.raises(OperatorError, match="refused"):
        await bench.ends.unless_shutdown(_raise(OperatorError("refused")))
    assert asyncio.all_tasks() == before


async def test_unless_shutdown_gives_up_when_shutdown_is_asked_for(bench: Bench) -> None:
    """Work that would wait for ever is cancelled, and the answer is ``None``."""
    before = asyncio.all_tasks()
    working = asyncio.create_task(bench.ends.unless_shutdown(asyncio.Event().wait()))
    await settle()
    bench.shutdown.set("test")
    assert await working is None
    assert asyncio.all_tasks() == before


async def test_unless_shutdown_does_not_swallow_what_the_work_raises_while_it_is_cancelled(bench: Bench) -> None:
    """A bug in the work's clean-up comes out, and so does a result it came to in spite of the cancellation."""

    async def clumsy() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError("clean-up")

    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "received all the same"
        raise AssertionError

    working = [
        asyncio.create_task(bench.ends.unless_shutdown(clumsy())),
        asyncio.create_task(bench.ends.unless_shutdown(stubborn())),
    ]
    await settle()
    bench.shutdown.set("test")
    failed, came = await asyncio.gather(*working, return_exceptions=True)
    assert isinstance(failed, KeyError)
    assert came == "received all the same"


async def test_unless_shutdown_cancelled_from_outside_leaves_no_task_behind(bench: Bench) -> None:
    """Its own cancellation passes through, and the work is cancelled with it."""
    before = asyncio.all_tasks()
    working = asyncio.create_task(bench.ends.unless_shutdown(asyncio.Event().wait()))
    await settle()
    await cancel(working)
    assert asyncio.all_tasks() == before


# The shutdown token.


async def test_the_token_wakes_everyone_and_keeps_its_first_reason() -> None:
    """All waiters are woken, callbacks called once, at once if late; a second reason changes nothing."""
    token = ShutdownToken()
    called: list[str] = []
    token.on_set(lambda: called.append("early"))
    waiting = [asyncio.create_task(token.wait()) for _ in range(3)]
    await settle()
    token.set("SIGTERM")
    token.set("SIGINT")
    token.on_set(lambda: called.append("late"))
    await asyncio.gather(*waiting)
    await token.wait()
    assert (token.reason, called) == ("SIGTERM", ["early", "late"])


async def test_a_failing_shutdown_callback_does_not_stop_the_others() -> None:
    """Whatever one operator's callback raises, the next one is called."""
    token = ShutdownToken()
    called: list[str] = []
    token.on_set(lambda: _fail(ValueError("callback")))
    token.on_set(lambda: called.append("second"))
    token.set("test")
    assert called == ["second"]


def _fail(error: Exception) -> None:
    raise error


async def _give(value: str) -> str:
    return value


async def _raise(error: Exception) -> None:
    raise error


async def test_a_downstream_that_fails_now_and_then_is_told_of_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """Every second call fails once: a thousand calls within a second are one line, and the next second tells how it is."""
    bench = Bench()
    once = RetryPolicy(timedelta(milliseconds=1), timedelta(milliseconds=1), max_attempts=2)
    failures = itertools.cycle([True, False, False])

    async def flaky() -> RetryDisposition[int]:
        return Retry(ConnectionError("reset")) if next(failures) else RetryOk(1)

    async def refusing() -> RetryDisposition[int]:
        return Permanent(ValueError("404"))

    def told() -> list[dict[str, Any]]:
        return [event_of(line.message) for line in caplog.records if "downstream_" in line.message]

    with caplog.at_level(logging.INFO), without_waiting():
        for _ in range(1_000):
            await bench.ends.with_retry(once, flaky)
        assert told() == [
            {
                "event": "downstream_failing",
                "operator": "op",
                "downstream": "op",
                "attempt": 1,
                "error": "ConnectionError: reset",
            }
        ]
        bench.clock.advance(1.0)
        for _ in range(4):
            with pytest.raises(PermanentFailure):
                await bench.ends.with_retry(once, refusing)
        assert len(told()) == 1
        await bench.ends.with_retry(once, flaky)
    assert told()[1:] == [{"event": "downstream_answers", "operator": "op", "downstream": "op", "attempt": 2}]
