"""``Receiver``: the reading end of an edge, as an operator sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Generic, TypeVar

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
        """Items that can be taken without waiting."""
        return self._channel.ready

    @property
    def leased(self) -> int:
        """Items that were received and are not acknowledged yet."""
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

    def acknowledge(self, count: int | None = None) -> None:
        """Mark the oldest ``count`` leased items (default: all) as processed: they are never delivered again."""
        self._edge.acknowledge(count)

    def try_recv_many(self, max_items: int = MAX_BATCH) -> list[T]:
        """Take up to ``max_items`` ready items without waiting; perhaps none. Acknowledges the previous ones."""
        self._edge.reading.check()
        self._edge.acknowledge()
        return self._channel.take(max_items)

    async def recv_many(self, max_items: int = MAX_BATCH) -> list[T]:
        """Take up to ``max_items`` ready items, in order. Waits only for the first. An empty list is the end of stream.

        Acknowledges the previous items. If it is cancelled while it waits, nothing was taken.
        """
        edge = self._edge
        edge.reading.check()
        edge.acknowledge()
        if self._channel.ready or await edge.wait_for_items():
            return self._channel.take(max_items)
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

    def batches(self, max_items: int = MAX_BATCH) -> AsyncIterator[list[T]]:
        """Every item, in adaptive micro-batches. Asking for the next batch acknowledges the previous one."""
        return _Batches(self, max_items)


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
