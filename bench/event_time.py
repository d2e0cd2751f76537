"""Watermarks and windows in memory: how soon updates follow the marks that allow them, what marks cost, and where time goes.

Three sources with the latenesses of radars, archives and inter-satellite links, each wrapped by ``watermarked``; ``merge`` with
the least mark; ``fuse``; a sink that counts. Objects are observed in passes of 5 s with ten observations, by random sensors. It
prints figures and asserts nothing.

``--open``: an open loop. Each source emits what is due by the clock, every 10 ms, whether or not the pipeline follows; the
observations are made beforehand (a gigabyte for a minute). For each update it measures the time from the last source's mark that
allows its window to close, to the sink. With ``--cpu`` its clock is the processor time of this process, and time without work is
skipped: other load of the machine changes less then. ``--closed``: as fast as possible, CPU time per observation, and the same
without marks, in turns. ``--profile``: the functions that take the most time.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import logging
import pstats
import selectors
import time
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from operator import attrgetter
from statistics import median
from typing import Any
from uuid import UUID

import msgspec
import numpy as np

from orchestrator_adapter import Clock, Factory, OperatorGraph, SystemClock, WiredEnds, frozen_heap, map_items, merge
from orchestrator_adapter.testing import LoopClock
from sda_ops.correlate.fuse import FusionWindows, fuse
from sda_ops.event_time.metrics import EventTimeMetrics
from sda_ops.event_time.promises import PromiseRules, ReadOrder
from sda_ops.event_time.source import watermarked
from sda_ops.event_time.watermark import Watermark, least_watermark
from sda_ops.records.correlation import Correlation, CrossSensorUpdate, Residuals

NS_PER_S = 1_000_000_000
FEEDS = {"radar": 0.1, "optical": 30.0, "isl": 10.0}
"""Each source's lateness, seconds."""

TICK_S = 0.01
BATCH = 512
RECORDED_S = 120
PASS_NS = 5 * NS_PER_S
PER_PASS = 10
RESIDUALS = Residuals(range_m=1.0)
TIMES = attrgetter("sensor_timestamp", "ingest_timestamp")


def main() -> None:
    logging.disable(logging.CRITICAL)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=int, default=50_000, help="observations per second (default: 50000)")
    parser.add_argument("--seconds", type=float, default=90.0, help="of the open loop (default: 90)")
    parser.add_argument("--records", type=int, default=300_000, help="of the closed loop (default: 300000)")
    parser.add_argument(
        "--rounds", type=int, default=7, help="of the closed loop, in which cases alternate (default: 7)"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="shortens the latenesses, e.g. 0.1 (default: 1)")
    parser.add_argument(
        "--cpu", action="store_true", help="the open loop's clock is the processor time of this process"
    )
    for part in ("open", "closed", "profile"):
        parser.add_argument(f"--{part}", action="store_true", help="only this part, or these")
    args = parser.parse_args()
    everything = not (args.open or args.closed or args.profile)
    if args.closed or everything:
        closed_loop(args.records, args.rounds)
    if args.profile or everything:
        profile(args.records)
    if args.open or everything:
        open_loop(args.rate, args.seconds, args.scale, cpu=args.cpu)


class Scene:
    """Makes the observations: who is observed at a time, and how late they come.

    The catalogue has twice as many objects as are observed at a time: a pass of 5 s, then 5 s without an observation.
    """

    def __init__(self, rate: int) -> None:
        self.made = 0
        self._observed = rate * PASS_NS // NS_PER_S // PER_PASS
        self._rng = np.random.default_rng(16)

    def observations(self, source: str, lateness_s: float, now_ns: int, count: int) -> list[Correlation]:
        """So many correlations that arrive now, measured at random times within the lateness."""
        at_ns = now_ns - (self._rng.random(count) * lateness_s * NS_PER_S).astype(np.int64)
        slots = self._rng.integers(self._observed, size=count)
        passes = (at_ns + slots * PASS_NS // self._observed) // PASS_NS
        numbers = slots + self._observed * (passes % 2)
        base, self.made = self.made, self.made + count
        # As a decoder makes them: UUID(int=...) takes as long as all the rest.
        ids = msgspec.convert([each.to_bytes(16, "big") for each in range(base, self.made)], list[UUID])
        return [
            Correlation(
                each_id,
                source,
                "radar",
                each_ns,
                now_ns,
                now_ns,
                "correlated",
                catalog_number=number,
                residuals=RESIDUALS,
            )
            for each_id, each_ns, number in zip(ids, at_ns.tolist(), numbers.tolist(), strict=True)
        ]


def rules(lateness_s: float) -> PromiseRules:
    return PromiseRules(max_lateness=timedelta(seconds=lateness_s), order=ReadOrder.ARRIVAL, idle_after=None)


def graph_of(
    sources: dict[str, Factory], operator: Factory, sink: Callable[[WiredEnds], Any], *, fused: bool
) -> OperatorGraph:
    """Sources, merge, one operator, a sink."""
    graph = OperatorGraph("event-time")
    both = graph.add_fan_in("merge", merge(combine={Watermark: least_watermark()}))
    for name, source in sources.items():
        graph.connect(graph.add_source(name, source), both, 4_096)
    middle = graph.add_operator("fuse", operator, stateful=fused, expanding=fused)
    graph.connect(both, middle, 4_096)
    graph.connect(middle, graph.add_sink("sink", sink), 16_384)
    return graph


# The open loop.


class Marks(EventTimeMetrics):
    """Records when each source has sent which mark."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.times_ns: defaultdict[str, list[int]] = defaultdict(list)
        self.sent_s: defaultdict[str, list[float]] = defaultdict(list)

    def source_mark(self, mark: Watermark) -> None:
        super().source_mark(mark)
        if mark.time_ns is not None:
            self.times_ns[mark.source].append(mark.time_ns)
            self.sent_s[mark.source].append(self.clock.monotonic())

    def allowed_s(self, end_ns: int) -> float | None:
        """When the last source promised that nothing before this time follows."""
        found = []
        for source, times_ns in self.times_ns.items():
            at = bisect_left(times_ns, end_ns)
            if at == len(times_ns):
                return None
            found.append(self.sent_s[source][at])
        return max(found)


class ProcessorTimeLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is the processor time of this process. It skips time without work."""

    def __init__(self) -> None:
        self.skipping = _Skipping()
        super().__init__(self.skipping)

    def time(self) -> float:
        return time.process_time() + self.skipping.skipped_s


class _Skipping(selectors.SelectSelector):
    skipped_s = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is not None and timeout > 0:
            self.skipped_s += timeout
            timeout = 0
        return super().select(timeout)


def open_loop(rate: int, seconds: float, scale: float, *, cpu: bool) -> None:
    """Sources that follow the clock."""
    loop: asyncio.AbstractEventLoop = ProcessorTimeLoop() if cpu else asyncio.new_event_loop()
    clock = LoopClock() if cpu else SystemClock()
    scene, marks = Scene(rate), Marks(clock)
    arrived: list[tuple[int, float]] = []
    counts = {"observations": 0, "behind_s": 0.0}
    latest = {name: lateness_s * scale for name, lateness_s in FEEDS.items()}
    start_ns, ticks = clock.now_ns(), round(seconds / TICK_S)
    made = {name: _in_ticks(scene, name, lateness_s, start_ns, ticks, rate) for name, lateness_s in latest.items()}
    started, wall = time.process_time(), time.monotonic()

    def source(name: str, lateness_s: float) -> Factory:
        def make(on_contact: Callable[[int], object]) -> Factory:
            async def run(ends: WiredEnds) -> None:
                begun, waiting = clock.monotonic(), made[name]
                for tick in range(1, ticks + 1):
                    await asyncio.sleep(begun + tick * TICK_S - clock.monotonic())
                    counts["behind_s"] = max(counts["behind_s"], clock.monotonic() - begun - tick * TICK_S)
                    for batch in _batches(waiting.popleft()):
                        await ends.emit(batch)
                    on_contact(start_ns + _tick_ns(tick))

            return run

        return watermarked(make, rules(lateness_s), times_of=TIMES, metrics=marks)

    async def sink(ends: WiredEnds) -> None:
        async for batch in ends.receiver.batches():
            now = clock.monotonic()
            updates = [item.end_timestamp for item in batch if isinstance(item, CrossSensorUpdate)]
            counts["observations"] += len(batch) - len(updates)
            arrived.extend((end_ns, now) for end_ns in updates)

    windows = FusionWindows(max_held=10_000_000)
    sources = {name: source(name, lateness_s) for name, lateness_s in latest.items()}
    graph = graph_of(sources, fuse(windows, metrics=marks), sink, fused=True)
    speed_ns = [_sum_ns()]
    with frozen_heap():  # as every process of a pipeline
        event = loop.run_until_complete(graph.build(clock=clock).run())
    loop.close()
    spent, wall = time.process_time() - started, time.monotonic() - wall
    speed_ns.append(_sum_ns())
    delays = np.array([now - at for end, now in arrived if (at := marks.allowed_s(end)) is not None])
    figures = event.figures
    print(f"open loop, {rate:,} observations/s for {seconds:g} s, latenesses {latest}")
    print(f"  {counts['observations'] / seconds:,.0f} observations/s arrived at the sink, {len(arrived):,} updates")
    print(f"  processor {spent / seconds:.0%} of one core (it took {wall:.0f} s)")
    print(f"  this machine, before and after: {speed_ns[0]:.0f} and {speed_ns[1]:.0f} ns for an addition in a loop")
    print(f"  a source was {counts['behind_s'] * 1e3:.0f} ms behind at most")
    print(f"  emission after the mark that allows it: {_quantiles(delays)}, of {len(delays):,} updates")
    print(f"  late {figures.counters['fuse']['late']}, ledger holds: {figures.ledger_holds}")


def _sum_ns() -> float:
    """How fast this machine is at the moment: a shared one may be half as fast a minute later."""
    begun, total, count = time.process_time_ns(), 0, 5_000_000
    for number in range(count):
        total += number
    return (time.process_time_ns() - begun) / count


def _in_ticks(
    scene: Scene, source: str, lateness_s: float, start_ns: int, ticks: int, rate: int
) -> deque[list[Correlation]]:
    """What a source has received at each tick, made beforehand: the collector does not examine it in the run."""
    due = [tick * rate * TICK_S / len(FEEDS) for tick in range(ticks + 1)]
    return deque(
        scene.observations(source, lateness_s, start_ns + _tick_ns(tick), int(due[tick]) - int(due[tick - 1]))
        for tick in range(1, ticks + 1)
    )


def _tick_ns(tick: int) -> int:
    return round(tick * TICK_S * NS_PER_S)


def _quantiles(delays: Any) -> str:
    if not len(delays):
        return "no update"
    p50, p99, most = np.quantile(delays, [0.5, 0.99, 1.0]) * 1e3
    return f"p50 {p50:.0f} ms, p99 {p99:.0f} ms, most {most:.0f} ms"


# The closed loop: made beforehand, two minutes of event time, one mark a second and source. That are many more marks for each
# observation than at the rate of the open loop.


def closed_loop(records: int, rounds: int) -> None:
    """Alternates the cases."""
    made = _recorded(records)
    cases: dict[str, Callable[[], OperatorGraph]] = {
        "with marks, map": lambda: _replayed(made, map_items(lambda each: each), marks=True, fused=False),
        "without marks, map": lambda: _replayed(made, map_items(lambda each: each), marks=False, fused=False),
        "with marks, fuse": lambda: _replayed(made, fuse(FusionWindows(max_held=10_000_000)), marks=True, fused=True),
        "without marks, fuse": lambda: _replayed(
            made, fuse(FusionWindows(max_held=10_000_000)), marks=False, fused=True
        ),
    }
    spent: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(rounds):
        for name, graph in cases.items():
            built = graph().build()
            begun = time.process_time()
            asyncio.run(built.run())
            spent[name].append((time.process_time() - begun) / records)
    print(f"closed loop, {records:,} observations, {rounds} rounds in turns, processor time")
    for name, each in spent.items():
        print(f"  {name:22} {median(each) * 1e6:6.2f} us each, {1 / median(each):9,.0f}/s")
    for operator in ("map", "fuse"):
        pairs = zip(spent[f"with marks, {operator}"], spent[f"without marks, {operator}"], strict=True)
        ratios = [one / other for one, other in pairs]
        print(f"  marks over none, {operator:4}: {median(ratios):.2f} [{min(ratios):.2f} … {max(ratios):.2f}]")


def profile(records: int) -> None:
    """One run of the closed loop."""
    made = _recorded(records)
    built = _replayed(made, fuse(FusionWindows(max_held=10_000_000)), marks=True, fused=True).build()
    measured = cProfile.Profile(time.process_time)
    measured.runcall(asyncio.run, built.run())
    print(f"profile, {records:,} observations")
    pstats.Stats(measured).strip_dirs().sort_stats("tottime").print_stats(18)


def _recorded(records: int) -> dict[str, list[Correlation | Watermark]]:
    scene, start_ns = Scene(records // RECORDED_S), 1_767_268_800_000_000_000
    ticks = round(RECORDED_S / TICK_S)
    recorded: dict[str, list[Correlation | Watermark]] = {}
    for name, lateness_s in FEEDS.items():
        items: list[Correlation | Watermark] = []
        for tick in range(ticks):
            now_ns = start_ns + round(tick * TICK_S * NS_PER_S)
            if tick % 100 == 0:
                items.append(Watermark(now_ns - round(lateness_s * NS_PER_S), name))
            items += scene.observations(name, lateness_s, now_ns, records // ticks // len(FEEDS))
        recorded[name] = items
    return recorded


def _replayed(
    made: dict[str, list[Correlation | Watermark]], operator: Factory, *, marks: bool, fused: bool
) -> OperatorGraph:
    def source(items: Sequence[Correlation | Watermark]) -> Factory:
        sent = list(items) if marks else [each for each in items if isinstance(each, Correlation)]

        async def run(ends: WiredEnds) -> None:
            for batch in _batches(sent):
                await ends.emit(batch)

        return run

    async def sink(ends: WiredEnds) -> None:
        async for _ in ends.receiver.batches():
            pass

    return graph_of({name: source(items) for name, items in made.items()}, operator, sink, fused=fused)


def _batches(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for at in range(0, len(items), BATCH):
        yield items[at : at + BATCH]


if __name__ == "__main__":
    main()
