"""What goes wrong in a random graph: an operator fails, hangs or returns where its scenario says so.

``World`` records, outside the code under test, what entered, what was written and which operator did what.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator_adapter.operators.ends import WiredEnds
from orchestrator_adapter.primitives.errors import OperatorError
from tests.chaos.scenario import Fault, Group, Item, Part


class Declared(Exception):
    """An operational error only for an operator that declares it as expected."""


@dataclass(slots=True)
class World:
    """What really happened, as the operators themselves recorded it."""

    stop: Callable[[str], object] = lambda _: None
    released: asyncio.Event = field(default_factory=asyncio.Event)
    entered: dict[str, list[Item]] = field(default_factory=lambda: defaultdict(list))
    written: dict[str, list[Item | Group]] = field(default_factory=lambda: defaultdict(list))
    excused: dict[str, set[Item]] = field(default_factory=lambda: defaultdict(set))  # kept in a state, or leaked
    again: dict[str, Counter[Item | Group]] = field(default_factory=lambda: defaultdict(Counter))
    """Items that a sink has written without acknowledging them: they are redelivered or dead-lettered."""
    leaked: set[str] = field(default_factory=set)  # operators that dropped an item without an outcome
    returned_early: set[str] = field(default_factory=set)  # operators
    last: dict[str, Item | Group] = field(default_factory=dict)  # the last item of each operator
    at_fault: dict[str, set[Item | Group]] = field(default_factory=lambda: defaultdict(set))


class FaultyOperator:
    """The misbehaviour that every operator of a random graph shares."""

    def __init__(self, part: Part, world: World) -> None:
        self.part = part
        self.world = world
        self.calls = 0
        self.returns_early = False

    def look(self, item: Item | Group) -> Fault | None:
        """Misbehave now, if the scenario says so for this call. Returns a fault that only a coroutine can carry out."""
        self.calls += 1
        self.world.last[self.part.name] = item
        fault = self.part.faults.get(self.calls)
        poisonous = isinstance(item, Item) and self.part.poisonous(item)
        if fault is not None or poisonous:
            self.world.at_fault[self.part.name].add(item)
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
                self.returns_early = True
            case _:
                pass

    async def endure(self, seconds: float | None) -> None:
        """Wait. An operator that swallows cancellations does so for a while, or always."""
        overdue = False
        waiting = asyncio.ensure_future(self.world.released.wait() if seconds is None else asyncio.sleep(seconds))
        try:
            while True:
                try:
                    await asyncio.shield(waiting)
                except asyncio.CancelledError:
                    if not self.part.swallow or waiting.cancelled():  # the latter: the event loop is closing
                        raise
                    if self.part.swallow == "late" and not overdue:
                        overdue = True
                        waiting.cancel()
                        waiting = asyncio.ensure_future(asyncio.sleep(0.3))
                else:
                    return
        finally:
            waiting.cancel()

    def return_if_asked(self, ends: WiredEnds) -> bool:
        if not self.returns_early:
            return False
        self.world.returned_early.add(self.part.name)
        for receiver in ends.receivers:  # of a batch, only acknowledged items count as processed
            receiver.acknowledge()
        return True


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
