"""Whether the rule marks the slow operator on a real clock, where all operators share one event loop and one core.

A chain of a source, three operators and a sink: one operator is slow, in one of four ways, and the others await 1 ms for each
batch of 8 items. It prints every operator's shares and asserts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from itertools import pairwise

import numpy as np

from orchestrator_adapter import OperatorGraph, RestartPolicy, VertexId, WiredEnds
from orchestrator_adapter.bulkhead import Bulkhead
from orchestrator_adapter.primitives.clock import SystemClock, sleep
from tests.helpers.bottlenecks import bottlenecks, figures
from tests.scenes.bottlenecks import CAPACITY, feed, in_a_thread, station, wait

_SLOW_S = 0.005  # for an item
_QUICK_S = 0.000_125
_FIRST_S = 2.0


class Worker:
    """The slow work in a worker process."""

    def handle(self, method: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Compute for the requested seconds."""
        _compute(float(arrays["seconds"][0]))
        return {"done": np.ones(1)}


def _compute(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


async def _on_the_loop(_: WiredEnds, seconds: float) -> None:
    _compute(seconds)


async def _run(work: Callable[[WiredEnds, float], Awaitable[None]], place: int, seconds: float) -> bool:
    graph = OperatorGraph("real time")
    ids: list[VertexId] = [graph.add_source("source", feed())]
    slow = f"operator {place}"
    for number in range(1, 4):
        name = f"operator {number}"
        factory = station(_SLOW_S, work=work) if name == slow else station(_QUICK_S, work=wait)
        ids.append(graph.add_operator(name, factory))
    ids.append(graph.add_sink("sink", station(_QUICK_S)))
    for upstream, downstream in pairwise(ids):
        graph.connect(upstream, downstream, CAPACITY)
    clock = SystemClock()
    built = graph.build(clock=clock)
    running = asyncio.create_task(built.run())
    await sleep(clock, _FIRST_S)
    before, began = built.status(), clock.monotonic()
    await sleep(clock, seconds)
    after, window_s = built.status(), clock.monotonic() - began
    built.request_shutdown("measured")
    await running
    marked = bottlenecks(graph, before, after, window_s)
    for it in figures(graph, before, after, window_s)[0]:
        shares = it.shares
        print(
            f"    {it.name:12} busy {shares.busy:4.0%}  idle {shares.idle:4.0%}  blocked {shares.blocked:4.0%}"
            f"{'  slow' if it.name == slow else ''}{'  marked' if it.name in {m.operator for m in marked} else ''}"
        )
    return [it.operator for it in marked] == [slow]


async def _all(seconds: float) -> None:
    pool = Bulkhead(
        "slow",
        "bench.bottleneck_real_time:Worker",
        workers=1,
        answer_within=timedelta(seconds=10),
        rebuilds=RestartPolicy.bounded(5, timedelta(minutes=1)),
    )

    async def in_a_worker(_: WiredEnds, seconds: float) -> None:
        await pool.call("work", {"seconds": np.array([seconds])})

    ways = {
        "awaits": wait,
        "works in a thread": in_a_thread,
        "works in a worker process": in_a_worker,
        "computes on the loop": _on_the_loop,
    }
    async with pool:
        for way, work in ways.items():
            for place in (1, 2, 3):
                print(f"operator {place} {way}:", flush=True)
                right = await _run(work, place, seconds)
                print(f"  {'right' if right else 'WRONG'}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run each way, at each place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="the window")
    asyncio.run(_all(parser.parse_args(arguments).seconds))


if __name__ == "__main__":
    main()
