"""The operators of a random graph: ready-made and hand-written ones, which misbehave where their scenario says so.

``World`` keeps, outside everything that is tested, what entered, what was written and who did what.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
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
from orchestrator_adapter.primitives.errors import EndOfStream, OperatorError
from orchestrator_adapter.storage.dead_letter import DeadLetterKind
from tests.chaos.scenario import Fault, Group, Item, Part


class Declared(Exception):
    """Operational only where an operator declares it."""


@dataclass(slots=True)
class World:
    """What really happened, as the operators themselves saw it."""

    stop: Callable[[str], object] = lambda _: None
    released: asyncio.Event = field(default_factory=asyncio.Event)
    entered: dict[str, list[Item]] = field(default_factory=lambda: defaultdict(list))
    written: dict[str, list[Item | Group]] = field(default_factory=lambda: defaultdict(list))
    excused: dict[str, set[Item]] = field(default_factory=lambda: defaultdict(set))  # held in a state, or leaked
    again: dict[str, Counter[Item | Group]] = field(default_factory=lambda: defaultdict(Counter))
    """What a sink has written without acknowledging it: it will come once more, or be buried."""
    leaked: set[str] = field(default_factory=set)  # operators that dropped an item without a word
    left: set[str] = field(default_factory=set)  # operators that returned early
    last: dict[str, Item | Group] = field(default_factory=dict)  # the last item each one looked at
    culprits: dict[str, set[Item | Group]] = field(default_factory=lambda: defaultdict(set))


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


class _Leave(Exception):
    """Return now."""


class _Body:
    def __init__(self, part: Part, world: World) -> None:
        self.part = part
        self.world = world
        self.calls = 0
        self.leaving = False

    # What goes wrong.

    def look(self, item: Item | Group) -> Fault | None:
        """Misbehave at once, where this call is to; returns what only a coroutine can do."""
        self.calls += 1
        self.world.last[self.part.name] = item
        fault = self.part.faults.get(self.calls)
        poisonous = isinstance(item, Item) and self.part.poisonous(item)
        if fault is not None or poisonous:
            self.world.culprits[self.part.name].add(item)
        if poisonous:
            raise OperatorError(f"{item} is poison")
        if fault is None:
            return None
        match fault.kind:
            case "error" | "panic":
                raise _exception(fault.detail, f"call {self.calls}")
            case "cancel":
                raise asyncio.CancelledError(f"call {self.calls}")
            case "stop":
                self.world.stop(f"asked by {self.part.name}")
                return None
            case _:
                return fault

    async def visit(self, item: Item | Group) -> None:
        fault = self.look(item)
        match fault.kind if fault is not None else "":
            case "slow":
                assert fault is not None
                await self.endure(fault.seconds)
            case "stall":
                await self.endure(None)
            case "leave":
                self.leaving = True
            case _:
                pass

    async def endure(self, seconds: float | None) -> None:
        """Wait; what is stubborn swallows every cancellation, for a while or for good."""
        overdue = False
        waiting = asyncio.ensure_future(self.world.released.wait() if seconds is None else asyncio.sleep(seconds))
        try:
            while True:
                try:
                    await asyncio.shield(waiting)
                except asyncio.CancelledError:
                    if not self.part.swallow or waiting.cancelled():  # the latter: the loop is being wound up
                        raise
                    if self.part.swallow == "late" and not overdue:
                        overdue = True
                        waiting.cancel()
                        waiting = asyncio.ensure_future(asyncio.sleep(0.3))
                else:
                    return
        finally:
            waiting.cancel()

    def leave_if_told(self, ends: WiredEnds) -> bool:
        if not self.leaving:
            return False
        self.world.left.add(self.part.name)
        for receiver in ends.receivers:  # of a batch, only what was acknowledged is done with
            receiver.acknowledge()
        return True

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
                # mypy cannot know that the token may be set while we wait.
                if ends.shutdown.is_set or self.leave_if_told(ends):  # type: ignore[redundant-expr]
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
                return map_items(self._looked_at, max_batch=size)
            case "map_batches":
                return map_batches(lambda batch: [self._looked_at(item) for item in batch], max_batch=size)
            case "filter":
                return filter_items(lambda item: part.wanted(self._looked_at(item)), max_batch=size)
            case "sift":
                return sift(lambda item: part.verdict(self._looked_at(item)), max_batch=size)
            case "flat_map":
                return flat_map_items(lambda item: part.outputs(self._looked_at(item)), max_batch=size)
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

    def _looked_at(self, item: Any) -> Any:
        self.look(item)
        return item

    async def _relay(self, ends: WiredEnds) -> None:
        async for item in ends.receiver:
            await self.visit(item)
            await ends.sender.send(item)
            if self.leave_if_told(ends):
                return

    async def _recv_relay(self, ends: WiredEnds) -> None:
        try:
            while not self.leave_if_told(ends):
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
            if self.leave_if_told(ends):
                return

    async def _commit_relay(self, ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(self.part.batch):
            async with asyncio.TaskGroup() as visits:
                for item in batch:
                    visits.create_task(self.visit(item))
            ends.commit(batch, acknowledge=len(batch))
            await ends.flush()
            if self.leave_if_told(ends):
                return

    async def _hasty_relay(self, ends: WiredEnds) -> None:
        """Commits again although what it committed before is not through yet."""
        async for batch in ends.receiver.batches(self.part.batch):
            for item in batch:
                await self.visit(item)
                ends.commit([item], acknowledge=1)
                await asyncio.sleep(0)
            await ends.flush()
            if self.leave_if_told(ends):
                return

    async def _late_relay(self, ends: WiredEnds) -> None:
        """Fails, if it does, when the item has left and is not acknowledged: it leaves again."""
        async for item in ends.receiver:
            await ends.sender.send(item)
            await self.visit(item)
            if self.leave_if_told(ends):
                return

    async def _burst(self, ends: WiredEnds) -> None:
        """Makes two of one, and may fail in between."""
        async for item in ends.receiver:
            for output in self.part.outputs(item):
                await ends.sender.send(output)
                await self.visit(item)
            if self.leave_if_told(ends):
                return

    async def _blocking_relay(self, ends: WiredEnds) -> None:
        async for item in ends.receiver:
            await self.visit(item)
            await ends.sender.send(await ends.run_blocking(lambda same: same, item))
            if self.leave_if_told(ends):
                return

    async def _group(self, ends: WiredEnds) -> None:
        held: list[Item] = ends.keep("held", list)
        async for item in ends.receiver:
            await self.visit(item)
            self.world.excused[self.part.name].add(item)
            held.append(item)
            if len(held) >= self.part.batch:
                self._let_go(ends, held)
            ends.receiver.acknowledge()
            await ends.flush()
            if self.leave_if_told(ends):
                break
        if held:
            self._let_go(ends, held)
            await ends.flush()

    def _let_go(self, ends: WiredEnds, held: list[Item]) -> None:
        ends.sender.offer([Group(tuple(held))])
        self.world.excused[self.part.name] -= {*held}
        held.clear()

    async def _leaky(self, ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(self.part.batch):
            await self.visit(batch[0])
            kept = [item for item in batch if self.part.chance(item, 5)]
            ends.commit(kept, acknowledge=len(batch))
            if len(kept) < len(batch):
                self.world.leaked.add(self.part.name)
                self.world.excused[self.part.name] |= {*batch} - {*kept}
            await ends.flush()
            if self.leave_if_told(ends):
                return

    # Routers by hand.

    async def gather(self, ends: WiredEnds) -> None:
        """A fan-in that takes one of each input before it passes any on: leases on all of them at once."""
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
            if self.leave_if_told(ends):
                return

    async def crew(self, ends: WiredEnds) -> None:
        """A fan-out with a task for each of its outputs."""
        async for batch in ends.receiver.batches(self.part.batch):
            await self.visit(batch[0])
            async with asyncio.TaskGroup() as crew:
                for sender in ends.senders:
                    crew.create_task(sender.send_many(batch))
            if self.leave_if_told(ends):
                return

    # Sinks.

    def sink(self) -> Factory:
        match self.part.kind:
            case "for_each":
                return for_each(self._write)
            case "for_each async":
                return self._leaving(for_each(self._write_after_visit))
            case "for_each_batch":
                return for_each_batch(lambda batch: self._write_all(batch, look=True), max_batch=self.part.batch)
            case "for_each_batch async":
                return self._leaving(for_each_batch(self._write_all_after_visits, max_batch=self.part.batch))
            case "durable":
                return self._durable
            case "hasty":
                return self._hasty
            case kind:
                raise AssertionError(kind)

    def _leaving(self, factory: Factory) -> Factory:
        async def run(ends: WiredEnds) -> None:
            try:
                await factory(ends)
            except _Leave:
                self.leave_if_told(ends)

        return run

    def _write(self, item: Item | Group) -> None:
        self.look(item)
        self.world.written[self.part.name].append(item)

    async def _write_after_visit(self, item: Item | Group) -> None:
        await self.visit(item)
        self.world.written[self.part.name].append(item)
        if self.leaving:
            raise _Leave

    def _write_all(self, batch: list[Any], *, look: bool) -> None:
        if look:
            for item in batch:
                self.look(item)
        self.world.written[self.part.name] += batch

    async def _write_all_after_visits(self, batch: list[Item | Group]) -> None:
        for item in batch:
            await self.visit(item)
        self._write_all(batch, look=False)
        if self.leaving:
            raise _Leave

    async def _hasty(self, ends: WiredEnds) -> None:
        """Writes, and fails, if it does, before it has said so: it writes again."""
        again = self.world.again[self.part.name]
        async for item in ends.receiver:
            self.world.written[self.part.name].append(item)
            again[item] += 1
            await self.visit(item)
            again[item] -= 1
            if self.leave_if_told(ends):
                return

    async def _durable(self, ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches(self.part.batch):
            await ends.acknowledge_after(len(batch), self._write_all, batch, look=True)


class _Iterator(Iterator[Item]):
    """Goes on where it was after it has raised, as a generator would not."""

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
    """The same, waiting in between."""

    def __init__(self, body: _Body, items: list[Item]) -> None:
        self._body = body
        self._items = items
        self._at = 0

    async def __anext__(self) -> Item:
        if self._at == len(self._items) or self._body.leaving:
            raise StopAsyncIteration
        await self._body.visit(self._items[self._at])
        self._at += 1
        self._body.enter(self._items[self._at - 1])
        return self._items[self._at - 1]


def _exception(name: str, text: str) -> BaseException:
    match name:
        case "OperatorError":
            return OperatorError(text)
        case "OSError":
            return OSError(text)
        case "TimeoutError":
            return TimeoutError(text)
        case "ConnectionResetError":
            return ConnectionResetError(text)
        case "group":
            return ExceptionGroup(text, [OperatorError("one"), OSError("two")])
        case "declared":
            return Declared(text)
        case "KeyError":
            return KeyError(text)
        case "AssertionError":
            return AssertionError(text)
        case "StopIteration":
            return StopIteration(text)
        case "SystemExit":
            return SystemExit(text)
        case "mixed group":
            return ExceptionGroup(text, [OperatorError("one"), KeyError("two")])
        case _:
            raise AssertionError(name)
