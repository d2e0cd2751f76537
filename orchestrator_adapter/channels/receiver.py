"""``Receiver``: the reading end of an edge, as an operator sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Generic, Literal, TypeVar, overload

from orchestrator_adapter.channels.control import Control
from orchestrator_adapter.channels.edge import Edge
from orchestrator_adapter.primitives.errors import EndOfStream

T = TypeVar("T")

MAX_BATCH = 256
"""Items in an adaptive micro-batch by default: enough to amortise the event loop."""


class Receiver(Generic[T]):
    """The reading end of one edge, for one task of one operator. A second task that uses it concurrently is rejected.

    What has been received is leased: the next ``recv`` or ``recv_many`` acknowledges it, or an earlier ``acknowledge``.
    If the operator fails before that, the items are delivered again. If an operator returns before its input has ended,
    its one leased item counts as processed; of a leased batch, only the acknowledged items do, and the rest is
    undelivered.

    Control items are forwarded by the call that reads past them: it acknowledges what came before, sends the control item
    to every output of the operator (a sink has none), and goes on. So an operator that never thinks of them keeps them in
    their place: what it has sent for the items before is in front of them. Batches end before a control item.

    An operator that acts on control items reads with ``controls=True``. It then gets each of them alone, in its place, as
    a lease like any other: after a failure it is delivered again. The next call forwards it, behind what the operator has
    sent in between. ``acknowledge()`` before that consumes it instead.
    """

    __slots__ = ("_channel", "_edge")

    def __init__(self, edge: Edge[T]) -> None:
        self._edge = edge
        self._channel = edge.channel

    @property
    def edge(self) -> str:
        """The edge's id, ``upstream -> downstream``. A fan-in distinguishes its inputs by it."""
        return self._channel.edge

    @property
    def ready(self) -> int:
        """Items that can be taken without waiting. Control items are not counted."""
        return self._channel.ready_items

    @property
    def next_control(self) -> Control | None:
        """The control item that comes next, if one does. It stays in the edge."""
        return self._channel.next_control

    @property
    def leased(self) -> int:
        """Items that were received and are not acknowledged yet, or 1 for a control item."""
        return self._channel.leased

    @property
    def room(self) -> int:
        """How many more items fit into the edge."""
        return self._channel.room

    @property
    def closed(self) -> bool:
        """The writer has finished. Items may still be ready."""
        return self._channel.closed

    @property
    def ended(self) -> bool:
        """The writer has finished and everything has been taken."""
        return self._channel.ended

    def take_control(self) -> None:
        """Take and acknowledge ``next_control``, without forwarding it. Acknowledges the previous items."""
        self._edge.reading.check()
        self._edge.acknowledge()
        if self._channel.next_control is not None:
            self._channel.take(1)
            self._edge.acknowledge()

    async def wait_for_arrival(self) -> None:
        """Suspend until something arrives at any input of the operator, or an input ends."""
        await self._edge.items_available.wait()

    def acknowledge(self, count: int | None = None) -> None:
        """Mark the oldest ``count`` leased items (default: all) as processed: they are never delivered again."""
        self._edge.acknowledge(count)

    @overload
    def try_recv_many(self, max_items: int = ..., *, controls: Literal[False] = ...) -> list[T]: ...

    @overload
    def try_recv_many(self, max_items: int = ..., *, controls: Literal[True]) -> list[T] | Control: ...

    def try_recv_many(self, max_items: int = MAX_BATCH, *, controls: bool = False) -> list[T] | Control:
        """Take up to ``max_items`` ready items without waiting; perhaps none. Acknowledges the previous ones.

        It forwards control items without suspending: call ``WiredEnds.flush`` or ``WiredEnds.wait_for_items`` in every turn.
        With several inputs, call it in every turn for each, whether or not ``ready`` says that it has items.
        """
        edge, channel = self._edge, self._channel
        edge.reading.check()
        if not channel.controls:
            edge.acknowledge()
            return channel.take(max_items)
        edge.acknowledge_and_forward()
        while (control := channel.next_control) is not None:
            if controls:
                channel.take(1)
                return control
            edge.forward_next()
        return channel.take(max_items)

    @overload
    async def recv_many(self, max_items: int = ..., *, controls: Literal[False] = ...) -> list[T]: ...

    @overload
    async def recv_many(self, max_items: int = ..., *, controls: Literal[True]) -> list[T] | Control: ...

    async def recv_many(self, max_items: int = MAX_BATCH, *, controls: bool = False) -> list[T] | Control:
        """Take up to ``max_items`` ready items, in order. Waits only for the first. An empty list is the end of stream.

        Acknowledges the previous items. If it is cancelled while it waits, nothing was taken. While it forwards a control
        item, it waits for space in the outputs as ``WiredEnds.flush`` does.
        """
        edge, channel = self._edge, self._channel
        edge.reading.check()
        if not channel.controls:
            edge.acknowledge()
        elif edge.acknowledge_and_forward():
            await edge.flush_outputs()
            edge.acknowledge()  # nothing is leased; a timed edge drops what has become too old
        while channel.ready or await edge.wait_for_items():
            if not channel.controls or (control := channel.next_control) is None:
                return channel.take(max_items)
            if controls:
                channel.take(1)
                return control
            edge.forward_next()
            await edge.flush_outputs()
            edge.acknowledge()  # as above
        return []

    async def recv(self) -> T:
        """Take the next item; otherwise as ``recv_many``. Raises ``EndOfStream`` at the end of the stream."""
        batch = await self.recv_many(1)
        if not batch:
            raise EndOfStream(f"edge {self.edge!r} has ended")
        return batch[0]

    def __aiter__(self) -> AsyncIterator[T]:
        """Every item, one at a time. Asking for the next one acknowledges the previous one."""
        return _Items(self)

    @overload
    def batches(self, max_items: int = ..., *, controls: Literal[False] = ...) -> AsyncIterator[list[T]]: ...

    @overload
    def batches(self, max_items: int = ..., *, controls: Literal[True]) -> AsyncIterator[list[T] | Control]: ...

    def batches(
        self, max_items: int = MAX_BATCH, *, controls: bool = False
    ) -> AsyncIterator[list[T]] | AsyncIterator[list[T] | Control]:
        """Every item, in adaptive micro-batches. Asking for the next batch acknowledges the previous one.

        With ``controls=True`` also every control item, in its place and alone::

            async for batch in ends.receiver.batches(controls=True):
                if isinstance(batch, Control):
                    ends.commit(windows.close(batch), acknowledge=0)  # in front of the control item
                else:
                    ends.commit(windows.add(batch), acknowledge=len(batch))
                await ends.flush()
        """
        return _BatchesAndControls(self, max_items) if controls else _Batches(self, max_items)


class _Items(AsyncIterator[T]):
    # Iterators, not async generators: a generator that an exception leaves stays open until the event loop closes it.
    def __init__(self, receiver: Receiver[T]) -> None:
        self._receiver = receiver

    async def __anext__(self) -> T:
        if batch := await self._receiver.recv_many(1):
            return batch[0]
        raise StopAsyncIteration


class _Batches(AsyncIterator[list[T]]):
    def __init__(self, receiver: Receiver[T], max_items: int) -> None:
        self._receiver = receiver
        self._max_items = max_items

    async def __anext__(self) -> list[T]:
        if batch := await self._receiver.recv_many(self._max_items):
            return batch
        raise StopAsyncIteration


class _BatchesAndControls(AsyncIterator[list[T] | Control]):
    def __init__(self, receiver: Receiver[T], max_items: int) -> None:
        self._receiver = receiver
        self._max_items = max_items

    async def __anext__(self) -> list[T] | Control:
        batch = await self._receiver.recv_many(self._max_items, controls=True)
        if isinstance(batch, Control) or batch:
            return batch
        raise StopAsyncIteration
