"""``Sender``: the writing end of an edge, as an operator sees it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from orchestrator_adapter.channels.control import Control
from orchestrator_adapter.channels.edge import Edge
from orchestrator_adapter.primitives.errors import EdgeMisuse

T = TypeVar("T")


class Sender(Generic[T]):
    """The writing end of one edge, for one task of one operator. A second task that uses it concurrently is rejected.

    ``send`` and ``send_many`` suspend while the edge is full. ``offer`` never suspends: what does not fit waits in the
    edge's *outbox*, which outlives the operator's instance, until ``WiredEnds.flush`` has moved it.

    They send data only. They raise ``EdgeMisuse`` if the first or last item is a control item, which an operator sends with
    ``WiredEnds.emit_control``, or with ``offer_control`` to one output; to check every item would cost too much.
    """

    __slots__ = ("_edge",)

    def __init__(self, edge: Edge[T]) -> None:
        self._edge = edge

    @property
    def edge(self) -> str:
        """The edge's id, ``upstream -> downstream``."""
        return self._edge.channel.edge

    @property
    def pending(self) -> int:
        """Items that were offered and are not in the edge yet."""
        return len(self._edge.outbox)

    def offer(self, items: Sequence[T]) -> None:
        """Enqueue ``items``, in order, without suspending. From now on the runtime delivers or dead-letters them."""
        self._edge.writing.check()
        if items and (isinstance(items[-1], Control) or isinstance(items[0], Control)):
            raise self._misuse
        self._edge.enqueue(items)

    def offer_control(self, control: Control) -> None:
        """Enqueue a control item without suspending, behind everything that was sent or offered before it."""
        self._edge.writing.check()
        self._edge.enqueue_control(control)

    async def send(self, item: T) -> None:
        """Send one item, suspending while the edge is full, as its flow policy says.

        If it is cancelled, the item was either accepted or not, and nothing else happened. Raises ``ReaderGone``.
        """
        edge = self._edge
        if edge.outbox or edge.channel.reader_gone or not edge.channel.room:
            await self.send_many((item,))
        else:
            edge.writing.check()
            if isinstance(item, Control):
                raise self._misuse
            edge.enqueue((item,))

    async def send_many(self, items: Sequence[T]) -> None:
        """Send ``items`` in order. If it is cancelled, the items that were accepted so far stay accepted.

        On an edge with a deadline, the items that it gives up on are accepted too: they are dead-lettered or shed.
        """
        if items and (isinstance(items[-1], Control) or isinstance(items[0], Control)):
            raise self._misuse
        with self._edge.writing:
            await self._edge.send_many(items)

    @property
    def _misuse(self) -> EdgeMisuse:
        return EdgeMisuse(
            f"edge {self.edge!r}: a control item was sent as data; use `await ends.emit_control(...)`, or "
            "`sender.offer_control(...)` for one output"
        )
