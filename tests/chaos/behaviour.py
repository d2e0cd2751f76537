"""The operators of a random graph: ready-made and hand-written ones, which misbehave where their scenario says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, assert_never

from orchestrator_adapter.graph.plan import Role
from orchestrator_adapter.operators.ends import Factory, WiredEnds
from orchestrator_adapter.operators.from_functions import (
    filter_items,
    flat_map_items,
    for_each,
    for_each_batch,
    map_batches,
    map_items,
    sift,
    source_of,
)
from orchestrator_adapter.operators.routers import broadcast, merge, partition
from orchestrator_adapter.primitives.errors import EndOfStream
from orchestrator_adapter.storage.dead_letter import DeadLetterKind
from tests.chaos.faulty import FaultyOperator, World
from tests.chaos.scenario import Group, Item, Part


def make(part: Part, world: World) -> Factory:
    """The factory of this vertex."""
    body = _Body(part, world)
    match part.role:
        case Role.SOURCE:
            return body.source()
        case Role.OPERATOR:
            return body.operator()
        case Role.SINK:
            return body.sink()
        case Role.FAN_IN if part.kind == "gather":
            return body.gather
        case Role.FAN_IN:
            return merge(max_batch=part.batch)
        case Role.FAN_OUT if part.kind == "crew":
            return body.crew
        case Role.FAN_OUT if part.kind == "broadcast":
            return broadcast(max_batch=part.batch)
        case Role.FAN_OUT:
            return partition(body.key, everywhere=lambda item: bool(item.everywhere), max_batch=part.batch)
        case _:
            assert_never(part.role)


class _ReturnEarly(Exception):
    """Raised in a callback: the operator returns now."""


class _Body(FaultyOperator):
    # Sources.

    def source(self) -> Factory:
        part = self.part
        items = [Item(part.name, number) for number in range(part.count)]
        match part.kind:
            case "list":
                return source_of(_Iterator(self, items), batch=part.batch)
            case "stream":
                return source_of(_Stream(self, items))
            case "emit":
                return self._emitting(items, self._plainly)
            case "paced":
                return self._emitting(items, WiredEnds.unless_shutdown)
            case kind:
                raise AssertionError(kind)

    def enter(self, *items: Item) -> None:
        self.world.entered[self.part.name] += items

    @staticmethod
    async def _plainly(ends: WiredEnds, work: Any) -> None:
        await work

    def _emitting(self, items: list[Item], wait: Callable[[WiredEnds, Any], Any]) -> Factory:
        async def run(ends: WiredEnds) -> None:
            at: list[int] = ends.keep("position", lambda: [0])
            while at[0] < len(items) and not ends.shutdown.is_set:
                batch = items[at[0] : at[0] + self.part.batch]
                await wait(ends, self.visit(batch[0]))
                # mypy does not know that the token may be set during the wait.
                if ends.shutdown.is_set or self.return_if_asked(ends):  # type: ignore[redundant-expr]
                    return
                if self.part.malformed(batch[0]):
                    ends.reject(batch[0], "malformed")
                    self.enter(batch[0])
                    at[0] += 1
                elif self.part.kind == "emit" and batch[0].number % 13 == 12:
                    ends.dead_letter(batch[0], DeadLetterKind.DESERIALIZATION, "garbled", must_keep=False)
                    self.enter(batch[0])
                    at[0] += 1
                else:
                    good = batch[:1] if self.part.kind == "emit" else batch
                    at[0] += len(good)
                    self.enter(*good)
                    await ends.emit(good)

        return run

    # Operators.

    def operator(self) -> Factory:
        part, size = self.part, self.part.batch
        match part.kind:
            case "map":
                return map_items(self._examined, max_batch=size)
            case "map_batches":
                return map_batches(lambda batch: [self._examined(item) for item in batch], max_batch=size)
            case "filter":
                return filter_items(lambda item: part.wanted(self._examined(item)), max_batch=size)
            case "sift":
                return sift(lambda item: part.verdict(self._examined(item)), max_batch=size)
            case "flat_map":
                return flat_map_items(lambda item: part.outputs(self._examined(item)), max_batch=size)
            case "relay":
                return self._relay
            case "recv relay":
                return self._recv_relay
            case "batch relay":
                return self._batch_relay
            case "commit relay":
                return self._commit_relay
            case "hasty relay":
                return self._hasty_relay
            case "late relay":
                return self._late_relay
            case "burst":
                return self._burst
            case "blocking relay":
                return self._blocking_relay
            case "group":
                return self._group
            case "leaky":
                return self._leaky
            case kind:
                raise AssertionError(kind)

    def key(self, item: Item) -> tuple[str, int]:
        self.look(item)
        return self.part.key(item)

    def _examined(self, item: Any) -> Any:
        self.look(item)
        return item

    async def _relay(self, ends: WiredEnds) -> None:
        async for item in ends.receiver:
            await self.visit(item)
            await ends.sender.send(item)
            if self.return_if_asked(ends):
                return

    async def _recv_relay(self, ends: WiredEnds) -> None:
        try:
            while not self.return_if_asked(ends):
                item = await ends.receiver.recv()
                await self.visit(item)
                await ends.sender.send(item)
                ends.receiver.acknowledge()
        except EndOfStream:
            return

    async def _batch_relay(self, ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(self.part.batch):
            for item in batch:
                await self.visit(item)
            await ends.sender.send_many(batch)
            if self.return_if_asked(ends):
                return

    async def _commit_relay(self, ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(self.part.batch):
            async with asyncio.TaskGroup() as visits:
                for item in batch:
                    visits.create_task(self.visit(item))
            ends.commit(batch, acknowledge=len(batch))
            await ends.flush()
            if self.return_if_asked(ends):
                return

    async def _hasty_relay(self, ends: WiredEnds) -> None:
        """Commits again although its earlier outputs are still in the outbox."""
        async for batch in ends.receiver.batches(self.part.batch):
            for item in batch:
                await self.visit(item)
                ends.commit([item], acknowledge=1)
                await asyncio.sleep(0)
            await ends.flush()
            if self.return_if_asked(ends):
                return

    async def _late_relay(self, ends: WiredEnds) -> None:
        """May fail after it has sent an item and before it acknowledges it: the item is sent again."""
        async for item in ends.receiver:
            await ends.sender.send(item)
            await self.visit(item)
            if self.return_if_asked(ends):
                return

    async def _burst(self, ends: WiredEnds) -> None:
        """Makes two items from one, and may fail between them."""
        async for item in ends.receiver:
            for output in self.part.outputs(item):
                await ends.sender.send(output)
                await self.visit(item)
            if self.return_if_asked(ends):
                return

    async def _blocking_relay(self, ends: WiredEnds) -> None:
        async for item in ends.receiver:
            await self.visit(item)
            await ends.sender.send(await ends.run_blocking(lambda same: same, item))
            if self.return_if_asked(ends):
                return

    async def _group(self, ends: WiredEnds) -> None:
        members: list[Item] = ends.keep("members", list)
        async for item in ends.receiver:
            await self.visit(item)
            self.world.excused[self.part.name].add(item)
            members.append(item)
            if len(members) >= self.part.batch:
                self._emit_group(ends, members)
            ends.receiver.acknowledge()
            await ends.flush()
            if self.return_if_asked(ends):
                break
        if members:
            self._emit_group(ends, members)
            await ends.flush()

    def _emit_group(self, ends: WiredEnds, members: list[Item]) -> None:
        ends.sender.offer([Group(tuple(members))])
        self.world.excused[self.part.name] -= {*members}
        members.clear()

    async def _leaky(self, ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(self.part.batch):
            await self.visit(batch[0])
            kept = [item for item in batch if self.part.chance(item, 5)]
            ends.commit(kept, acknowledge=len(batch))
            if len(kept) < len(batch):
                self.world.leaked.add(self.part.name)
                self.world.excused[self.part.name] |= {*batch} - {*kept}
            await ends.flush()
            if self.return_if_asked(ends):
                return

    # Hand-written routers.

    async def gather(self, ends: WiredEnds) -> None:
        """A fan-in that takes one item of each input before it passes any on: it has leases on all inputs at once."""
        while True:
            taken = [item for receiver in ends.receivers for item in receiver.try_recv_many(1)]
            if not taken:
                if all(receiver.ended for receiver in ends.receivers):
                    return
                await ends.wait_for_items()
                continue
            for item in taken:
                await self.visit(item)
            await ends.sender.send_many(taken)
            for receiver in ends.receivers:
                receiver.acknowledge()
            if self.return_if_asked(ends):
                return

    async def crew(self, ends: WiredEnds) -> None:
        """A fan-out with one task for each output."""
        async for batch in ends.receiver.batches(self.part.batch):
            await self.visit(batch[0])
            async with asyncio.TaskGroup() as crew:
                for sender in ends.senders:
                    crew.create_task(sender.send_many(batch))
            if self.return_if_asked(ends):
                return

    # Sinks.

    def sink(self) -> Factory:
        match self.part.kind:
            case "for_each":
                return for_each(self._write)
            case "for_each async":
                return self._returning(for_each(self._write_after_visit))
            case "for_each_batch":
                return for_each_batch(lambda batch: self._write_all(batch, look=True), max_batch=self.part.batch)
            case "for_each_batch async":
                return self._returning(for_each_batch(self._write_all_after_visits, max_batch=self.part.batch))
            case "durable":
                return self._durable
            case "hasty":
                return self._hasty
            case kind:
                raise AssertionError(kind)

    def _returning(self, factory: Factory) -> Factory:
        async def run(ends: WiredEnds) -> None:
            try:
                await factory(ends)
            except _ReturnEarly:
                self.return_if_asked(ends)

        return run

    def _write(self, item: Item | Group) -> None:
        self.look(item)
        self.world.written[self.part.name].append(item)

    async def _write_after_visit(self, item: Item | Group) -> None:
        await self.visit(item)
        self.world.written[self.part.name].append(item)
        if self.returns_early:
            raise _ReturnEarly

    def _write_all(self, batch: list[Any], *, look: bool) -> None:
        if look:
            for item in batch:
                self.look(item)
        self.world.written[self.part.name] += batch

    async def _write_all_after_visits(self, batch: list[Item | Group]) -> None:
        for item in batch:
            await self.visit(item)
        self._write_all(batch, look=False)
        if self.returns_early:
            raise _ReturnEarly

    async def _hasty(self, ends: WiredEnds) -> None:
        """May fail after it has written an item and before it acknowledges it: the item is written again."""
        again = self.world.again[self.part.name]
        async for item in ends.receiver:
            self.world.written[self.part.name].append(item)
            again[item] += 1
            await self.visit(item)
            again[item] -= 1
            if self.return_if_asked(ends):
                return

    async def _durable(self, ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(self.part.batch):
            await ends.acknowledge_after(len(batch), self._write_all, batch, look=True)


class _Iterator(Iterator[Item]):
    """Continues where it was after it has raised. A generator cannot."""

    def __init__(self, body: _Body, items: list[Item]) -> None:
        self._body = body
        self._items = items
        self._at = 0

    def __next__(self) -> Item:
        if self._at == len(self._items):
            raise StopIteration
        self._body.look(self._items[self._at])
        self._at += 1
        self._body.enter(self._items[self._at - 1])
        return self._items[self._at - 1]


class _Stream(AsyncIterator[Item]):
    """As ``_Iterator``, with waits between the items."""

    def __init__(self, body: _Body, items: list[Item]) -> None:
        self._body = body
        self._items = items
        self._at = 0

    async def __anext__(self) -> Item:
        if self._at == len(self._items) or self._body.returns_early:
            raise StopAsyncIteration
        await self._body.visit(self._items[self._at])
        self._at += 1
        self._body.enter(self._items[self._at - 1])
        return self._items[self._at - 1]
