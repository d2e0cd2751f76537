"""For tests of graphs: a manual clock, scripted sources and faults, a sink that collects, one call that runs a graph.

``docs/testing.md`` shows how to use them together.

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
from functools import partial
from typing import Any, TypeAlias

from orchestrator_adapter.channels.control import Control
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.operators.ends import Factory, WiredEnds
from orchestrator_adapter.primitives.clock import Clock, sleep
from orchestrator_adapter.resilience.retry import without_waiting as without_waiting  # noqa: PLC0414 - part of this toolkit
from orchestrator_adapter.runtime.built_graph import BuiltGraph, SupervisionPolicy
from orchestrator_adapter.storage.dead_letter import DeadLetterStore
from orchestrator_adapter.supervision.events import SupervisionHooks, SupervisorEvent

_MINUTES_TO_STOP = 1_000  # of a manual clock; a run that has not ended by then never will


def _is_jump(callback: object) -> bool:
    """Whether it is the callback of a ``ManualClock`` that waits for an idle loop: of this clock or another one."""
    return isinstance(callback, partial) and getattr(callback.func, "__func__", None) is ManualClock._jump_when_idle  # noqa: SLF001 - the class below


class ManualClock:
    """A clock whose time only ``advance`` moves, or ``autojump``. Timers fire by their times, then by their creation.

    With ``autojump``, time jumps to the next timer whenever no task can run, so a test need not move the clock. The clock
    does not see sockets and threads: it does not wait for them. Use ``advance`` in tests that have them.

    Attributes:
        timers_made: How many timers have been set, fired and cancelled ones included.
    """

    def __init__(
        self, *, now_ns: int = 1_767_225_600_000_000_000, autojump: bool = False
    ) -> None:  # 2026-01-01T00:00:00Z
        self.timers_made = 0
        self._monotonic = 0.0
        self._start_ns = now_ns
        self._timers: list[tuple[float, int, _ManualTimer]] = []
        self._autojump = autojump
        self._watching = False  # for the moment at which no task can run

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
        if self._autojump and not self._watching:
            self._watching = True
            asyncio.get_running_loop().call_soon(partial(self._jump_when_idle, idle=False))
        return timer

    def advance(self, seconds: float) -> None:
        """Move time on, firing every timer on the way at its own time."""
        end = self._monotonic + seconds
        while self._timers and self._timers[0][0] <= end:
            at, _, timer = heapq.heappop(self._timers)
            self._monotonic = max(self._monotonic, at)
            timer.fire()
        self._monotonic = end

    def _jump_when_idle(self, *, idle: bool) -> None:
        """Jump to the next timer if nothing else was ready in two consecutive turns; between them the loop polls its sockets."""
        loop: Any = asyncio.get_running_loop()
        # asyncio does not show it otherwise; see `schedules` on its internals.
        is_idle = all(_is_jump(handle._callback) for handle in loop._ready)  # noqa: SLF001 - as above
        if is_idle and idle:
            pending = self.pending_timers
            if not pending:
                self._watching = False
                return
            self.advance(pending[0] - self._monotonic)
        loop.call_soon(partial(self._jump_when_idle, idle=is_idle))

    async def advance_when_idle(self, seconds: float) -> None:
        """Run everything that is ready, move time on, and run everything that this has made ready."""
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
    """Run every ready task, without moving the time."""
    for _ in range(rounds):
        await asyncio.sleep(0)


@dataclass(frozen=True, slots=True)
class Pause:
    """A step of a ``ListSource``: wait this long on the graph's clock, or until the shutdown."""

    duration: timedelta


@dataclass(frozen=True, slots=True)
class Fail:
    """A step of a ``ListSource``: raise this. An ``OSError`` or ``OperatorError`` is an error; any other one a panic."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class UntilShutdown:
    """A step of a ``ListSource``: wait for the shutdown, as a live source does."""


Step: TypeAlias = Sequence[Any] | Pause | Fail | UntilShutdown


class ListSource:
    """A source that follows a script of items (and control items) to emit, pauses and failures. It ends after the last step.

    It is a factory: pass the object itself to ``add_source``. Each step is taken once: after a ``Fail`` the next instance
    continues with the following step. After a shutdown request it emits no more::

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
    """A sink that collects its input in ``items``. It is a factory: pass the object itself to ``add_sink``.

    With ``controls=True`` it collects the control items too, in their place among the items.
    """

    def __init__(self, *, controls: bool = False) -> None:
        self.items: list[Any] = []
        self._controls = controls

    async def __call__(self, ends: WiredEnds) -> None:
        if not self._controls:
            async for batch in ends.receiver.batches():
                self.items.extend(batch)
            return
        async for part in ends.receiver.batches(controls=True):
            self.items.extend([part] if isinstance(part, Control) else part)


class FailAt:
    """A function for ``map_items`` that returns its argument, or raises at the calls that ``script`` names.

    ``script`` maps the number of a call, counted from 1 and across restarts, to the exception that it raises.
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
    """A graph of a source, any number of operators and a sink, with the names ``source``, ``op-1`` … and ``sink``."""
    if not rest:
        raise ValueError("chain: expected a source, any operators, and a sink, got the source only")
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

    ``policy`` says how it is watched and stopped; ``grace`` is a short form for a policy with this grace period.
    ``during`` runs beside the graph and gets the built graph, for example to request a shutdown or to advance the clock;
    what it raises is raised here. After ``limit`` of real time the run counts as hung, and ``TimeoutError`` is raised. In
    both cases the graph is stopped first, so a failing test does not hang.
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
        await _stop(built, running, clock)
        await asyncio.wait({running, beside})
    if not beside.cancelled():
        beside.result()
    return running.result()


async def _stop(built: BuiltGraph, running: asyncio.Task[SupervisorEvent], clock: Clock | None) -> None:
    """End the run if it still runs. The test no longer moves a manual clock, so this does."""
    for _ in range(_MINUTES_TO_STOP):
        if running.done():
            return
        built.request_shutdown("the test is over")
        if isinstance(clock, ManualClock):
            await clock.advance_when_idle(60.0)
        else:
            await asyncio.wait({running}, timeout=0.05)
    running.cancel()
