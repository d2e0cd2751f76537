"""For tests of graphs, ours and yours: time set by hand, scripted sources and faults, a sink that collects, one call that
runs a graph to its end. ``docs/testing.md`` shows how they go together.

Example::

    async def test_doubling_keeps_the_order() -> None:
        sink = CollectSink()
        event = await run_graph(chain(source_of([1, 2, 3]), map_items(lambda n: 2 * n), sink))
        assert sink.items == [2, 4, 6]
        assert event.figures.ledger_holds
"""

from __future__ import annotations

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.operators.ends import Factory, WiredEnds
from orchestrator_adapter.primitives.clock import Clock, sleep
from orchestrator_adapter.resilience.retry import without_waiting as without_waiting  # noqa: PLC0414 - it is part of this toolbox
from orchestrator_adapter.runtime.built_graph import BuiltGraph, SupervisionPolicy
from orchestrator_adapter.storage.dead_letter import DeadLetterStore
from orchestrator_adapter.supervision.events import SupervisionHooks, SupervisorEvent

_MINUTES_TO_COME_DOWN = 1_000  # by hand; a run that has not come down by then never will


class ManualClock:
    """A clock whose time only ``advance`` moves. Timers fire in the order of their times, then of their creation.

    Attributes:
        timers_made: How many timers have been set, fired and cancelled ones included.
    """

    def __init__(self, *, now_ns: int = 1_767_225_600_000_000_000) -> None:  # 2026-01-01T00:00:00Z
        self.timers_made = 0
        self._monotonic = 0.0
        self._start_ns = now_ns
        self._timers: list[tuple[float, int, _ManualTimer]] = []

    @property
    def pending_timers(self) -> list[float]:
        """The times at which timers will fire, the next one first; on the scale of ``monotonic``."""
        return sorted(at for at, _, timer in self._timers if timer.is_pending)

    def monotonic(self) -> float:
        return self._monotonic

    def now_ns(self) -> int:
        return self._start_ns + round(self._monotonic * 1e9)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> _ManualTimer:
        timer = _ManualTimer(callback)
        heapq.heappush(self._timers, (self._monotonic + delay_s, self.timers_made, timer))
        self.timers_made += 1
        return timer

    def advance(self, seconds: float) -> None:
        """Move time on, firing every timer on the way at its own time."""
        end = self._monotonic + seconds
        while self._timers and self._timers[0][0] <= end:
            at, _, timer = heapq.heappop(self._timers)
            self._monotonic = max(self._monotonic, at)
            timer.fire()
        self._monotonic = end

    async def advance_when_idle(self, seconds: float) -> None:
        """Let everything that can run now run first, then move time on, and let run what that woke."""
        await settle()
        self.advance(seconds)
        await settle()


class _ManualTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback: Callable[[], None] | None = callback

    @property
    def is_pending(self) -> bool:
        return self._callback is not None

    def cancel(self) -> None:
        self._callback = None

    def fire(self) -> None:
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()


async def settle(rounds: int = 200) -> None:
    """Give every ready task its turns, without letting time pass."""
    for _ in range(rounds):
        await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class Pause:
    """A step of a ``ListSource``: let this much of the clock's time pass. Cut short by shutdown."""

    duration: timedelta


@dataclass(frozen=True, slots=True)
class Fail:
    """A step of a ``ListSource``: raise this. An ``OSError`` or ``OperatorError`` is an error, anything else a panic."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class UntilShutdown:
    """A step of a ``ListSource``: stay, as a live source would, until the graph is asked to stop."""


Step: TypeAlias = Sequence[Any] | Pause | Fail | UntilShutdown


class ListSource:
    """A source that plays a script: lists of items to emit, and what happens in between. Ends after the last step.

    It is a factory: pass the object itself to ``add_source``. A step is taken once, however often the source is
    restarted: after a ``Fail`` the next instance goes on with the step behind it. Once asked to stop, it emits no more::

        ListSource([1, 2], Pause(timedelta(seconds=3)), Fail(OSError("cable")), [3], UntilShutdown())
    """

    def __init__(self, *steps: Step) -> None:
        self._steps = deque(steps)

    async def __call__(self, ends: WiredEnds) -> None:
        while self._steps and not ends.shutdown.is_set:
            match self._steps.popleft():
                case Pause(duration):
                    await ends.unless_shutdown(sleep(ends.clock, duration.total_seconds()))
                case Fail(error):
                    raise error
                case UntilShutdown():
                    await ends.shutdown.wait()
                case items:
                    await ends.emit(items)


class CollectSink:
    """A sink that keeps what it was given in ``items``. It is a factory: pass the object itself to ``add_sink``."""

    def __init__(self) -> None:
        self.items: list[Any] = []

    async def __call__(self, ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches():
            self.items.extend(batch)


class FailAt:
    """A function for ``map_items`` that passes items through and raises what it was told to, where it was told to.

    ``script`` maps the number of a call, counted from 1 and across restarts, to the exception it raises.
    """

    def __init__(self, script: dict[int, BaseException]) -> None:
        self.calls = 0
        self._script = script

    def __call__(self, item: Any) -> Any:
        self.calls += 1
        if (error := self._script.get(self.calls)) is not None:
            raise error
        return item


def chain(source: Factory, *rest: Factory, capacity: int = 64, name: str = "chain") -> OperatorGraph:
    """A graph of one source, any number of operators and, last, a sink; named ``source``, ``op-1`` … and ``sink``."""
    if not rest:
        raise ValueError("chain: expected a source, perhaps operators, and a sink, got the source only")
    graph = OperatorGraph(name)
    last = graph.add_source("source", source)
    for number, factory in enumerate(rest[:-1], 1):
        operator = graph.add_operator(f"op-{number}", factory)
        graph.connect(last, operator, capacity)
        last = operator
    graph.connect(last, graph.add_sink("sink", rest[-1]), capacity)
    return graph


async def run_graph(
    graph: OperatorGraph,
    *,
    clock: Clock | None = None,
    rng: random.Random | None = None,
    dead_letters: DeadLetterStore | None = None,
    hooks: SupervisionHooks | None = None,
    policy: SupervisionPolicy | None = None,
    grace: timedelta | None = None,
    limit: timedelta = timedelta(seconds=30),
    during: Callable[[BuiltGraph], Coroutine[Any, Any, None]] | None = None,
) -> SupervisorEvent:
    """Build ``graph``, run it to its end and return the event.

    ``policy`` says how it is watched and stopped; where it is only the ``grace`` that matters, that will do. ``during`` is
    awaited beside the run, with the built graph: to request a shutdown, say, or to advance the clock. What it raises is
    raised here. A run that takes longer than ``limit`` of real time is taken for hung and raises ``TimeoutError``. In both
    cases the graph is brought down first, whoever else moves the clock: a failing test fails, it does not hang.
    """
    if policy is not None and grace is not None:
        raise ValueError("run_graph: expected a policy or a grace, got both: the policy has a grace of its own")
    policy = policy or (SupervisionPolicy() if grace is None else SupervisionPolicy(grace=grace))
    built = graph.build(clock=clock, rng=rng or random.Random(0), dead_letters=dead_letters)
    running = asyncio.create_task(built.run(policy, hooks=hooks))
    beside = asyncio.create_task(during(built)) if during is not None else running
    try:
        async with asyncio.timeout(limit.total_seconds()):
            await asyncio.wait({running, beside}, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        if beside is not running:
            beside.cancel()
        await _bring_down(built, running, clock)
        await asyncio.wait({running, beside})
    if not beside.cancelled():
        beside.result()
    return running.result()


async def _bring_down(built: BuiltGraph, running: asyncio.Task[SupervisorEvent], clock: Clock | None) -> None:
    """End the run if it has not: drain, abort, abandon, on a clock that nobody else may be moving any more."""
    for _ in range(_MINUTES_TO_COME_DOWN):
        if running.done():
            return
        built.request_shutdown("the test is over")
        if isinstance(clock, ManualClock):
            await clock.advance_when_idle(60.0)
        else:
            await asyncio.wait({running}, timeout=0.05)
    running.cancel()
