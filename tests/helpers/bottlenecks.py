"""Runs graphs in virtual time, and marks their bottlenecks from what two statuses of the run say."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import assert_never

from orchestrator_adapter import OperatorGraph
from orchestrator_adapter.control_plane.bottleneck import EdgeFigures, OperatorFigures, find_bottlenecks
from orchestrator_adapter.control_plane.document import Bottleneck, Shares
from orchestrator_adapter.graph.plan import Role
from orchestrator_adapter.primitives.clock import sleep
from orchestrator_adapter.runtime.status import GraphStatus, OperatorStatus
from orchestrator_adapter.testing import ManualClock
from tests.scenes.queueing import TINY_CAPACITIES, Network, Truth, random_network

WINDOW_S = 10.0


def marked_in_virtual_time(graph: OperatorGraph, *, after_s: float) -> tuple[Bottleneck, ...]:
    """Run ``graph`` for ``after_s`` and a window, and mark what limits it in the window."""
    before, after = asyncio.run(_two_statuses(graph, after_s))
    return bottlenecks(graph, before, after)


@dataclass(frozen=True, slots=True)
class Trial:
    """A random network, what limits it, and what the rule has marked."""

    seed: int
    network: Network
    truth: Truth
    marked: tuple[Bottleneck, ...]

    @property
    def is_right(self) -> bool:
        """Whether the rule has marked the right ones."""
        return self.truth.allows([it.operator for it in self.marked])


def trial(seed: int, kind: NetworkKind, *, after_s: float = 20.0) -> Trial:
    """Draw a network from the seed, run it and mark its bottlenecks."""
    rng = random.Random(seed)
    network = kind.draw(rng)
    with TemporaryDirectory() as folder:
        marked = marked_in_virtual_time(network.graph(Path(folder), rng), after_s=after_s)
    return Trial(seed, network, network.truth(), marked)


class NetworkKind(Enum):
    """Kinds of random networks."""

    SLOW = "with one or two slow operators"
    SLOW_TINY = "the same with edges of 1, 2 or 4 items"
    BALANCED = "without a slow operator, with sources that send what is taken"
    IDLE = "without a slow operator, with feeds that all operators can follow"

    def draw(self, rng: random.Random) -> Network:
        """One of them."""
        match self:
            case NetworkKind.SLOW:
                return random_network(rng, slow=rng.choice((1, 2)))
            case NetworkKind.SLOW_TINY:
                return random_network(rng, slow=rng.choice((1, 2)), capacities=TINY_CAPACITIES)
            case NetworkKind.BALANCED:
                return random_network(rng, slow=0, greedy=True)
            case NetworkKind.IDLE:
                return random_network(rng, slow=0, greedy=False)
            case _:
                assert_never(self)


async def _two_statuses(graph: OperatorGraph, after_s: float) -> tuple[GraphStatus, GraphStatus]:
    clock = ManualClock(autojump=True)
    built = graph.build(clock=clock)
    with _quiet():
        running = asyncio.create_task(built.run())
        await sleep(clock, after_s)
        before = built.status()
        await sleep(clock, WINDOW_S)
        after = built.status()
        built.request_shutdown("measured")
        await running
    return before, after


def bottlenecks(
    graph: OperatorGraph, before: GraphStatus, after: GraphStatus, window_s: float = WINDOW_S
) -> tuple[Bottleneck, ...]:
    """What the rule marks in the window between the two statuses."""
    operators, edges = figures(graph, before, after, window_s)
    return find_bottlenecks(operators, edges, window_s=window_s)


def figures(
    graph: OperatorGraph, before: GraphStatus, after: GraphStatus, window_s: float
) -> tuple[list[OperatorFigures], list[EdgeFigures]]:
    """The figures of the window."""
    operators = [
        OperatorFigures(
            name=new.name,
            shares=_shares(old, new, window_s),
            state=new.state,
            is_source=new.role is Role.SOURCE,
            restart_in_s=new.restart_in_s,
        )
        for old, new in zip(before.operators, after.operators, strict=True)
    ]
    edges = [
        EdgeFigures(
            id=it.id,
            upstream=it.upstream.name,
            downstream=it.downstream.name,
            pressure=(after.edges[it.id].pressure_s - before.edges[it.id].pressure_s) / window_s,
            policy=it.policy.name,
            dropped=after.edges[it.id].policy_drops - before.edges[it.id].policy_drops,
            spilled=after.edges[it.id].spilled,
        )
        for it in graph.edges
    ]
    return operators, edges


def _shares(before: OperatorStatus, after: OperatorStatus, window_s: float) -> Shares:
    alive, idle, blocked = (
        (getattr(after.times, name) - getattr(before.times, name)) / window_s
        for name in ("alive_s", "idle_s", "blocked_s")
    )
    return Shares(busy=alive - idle - blocked, idle=idle, blocked=blocked, down=1 - alive)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the log lines of what the graphs drop."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
