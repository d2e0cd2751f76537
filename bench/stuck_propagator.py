"""The audit beside a stuck propagator: the p99 latency of its rows while the propagator is stuck, relative to while it works.

The whole ``sda-fusion`` runs in this process and receives 10,000 observations a second over real sockets from a simulator
process. In turns, the propagator works, and its only worker is stopped (SIGSTOP) for so long that nothing is propagated: what
waits for it is written to disk. After that the worker goes on, and the next turn begins when everything on disk has been
correlated. The latencies are those of ``bench.isolation``: from ingest to the fsynced commit, counted by the time of ingest.

It only prints figures. Other load on the machine affects every one of them; see ``bench.isolation``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np

from bench.isolation import Recorder, beating
from flows.settings.fusion import FusionSettings
from flows.topologies.from_settings import supervision_policy
from flows.topologies.fusion import Orbits, build_topology, orbits_of
from orchestrator_adapter import BuiltGraph, EdgeStatistics
from orchestrator_adapter.process import Pipeline
from orchestrator_adapter.runtime import wiring
from sda_ops.catalog.synthetic import synthetic_catalog
from sda_ops.simulate.catalog_file import omm_json
from tests.helpers.fusion import FusionPlace, all_listen, conducted, go, stopped_at_work
from tests.helpers.running import eventually

BRANCH = "tee -> propagate"
OBJECTS = 1_000
OPTICAL_HZ, ISL_HZ = 50.0, 100.0
SETTLE_S, TAIL_S = 1.0, 1.0


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn's rows of the audit: their latencies, and how late the event loop was."""

    rows: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    lag_p99_ms: float
    lag_max_ms: float


@dataclass(slots=True)
class Stage:
    """The running graph."""

    graph: BuiltGraph
    orbits: Orbits
    audit: Recorder

    @property
    def branch(self) -> EdgeStatistics:
        """The edge to the propagator."""
        return self.graph.status().edges[BRANCH]

    async def turn(self, seconds: float) -> Turn:
        """Measure so many seconds."""
        await asyncio.sleep(SETTLE_S)
        from_ns = time.time_ns()
        async with beating() as lags_s:
            await asyncio.sleep(seconds)
        to_ns = time.time_ns()
        await asyncio.sleep(TAIL_S)
        rows, lags_ms = self.audit.latencies_ms(from_ns, to_ns), np.array(lags_s) * 1e3
        p50, p99 = np.quantile(rows, [0.5, 0.99])
        return Turn(rows.size, p50, p99, rows.max(), float(np.quantile(lags_ms, 0.99)), lags_ms.max())

    async def stuck_turn(self, seconds: float) -> tuple[Turn, EdgeStatistics]:
        """Measure while the worker is stopped; returns what was on disk at the end."""
        pid = await stopped_at_work(self.orbits.pool)
        await eventually(lambda: self.branch.spilled, "items on disk", limit_s=120.0)
        turn = await self.turn(seconds)
        on_disk = self.branch
        os.kill(pid, signal.SIGCONT)
        return turn, on_disk


def main() -> None:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.stuck_propagator", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("--pairs", type=int, default=2, help="pairs of turns, working and stuck (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of each turn (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=10_000.0, help="observations a second (default: %(default)s)")
    parser.add_argument(
        "--commit-every-ms", type=float, default=10.0, help="commit interval of the audit (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="a disk to write to (default: where temporary files go)")
    args = parser.parse_args()
    logging.getLogger("orchestrator_adapter").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        asyncio.run(_run(FusionPlace.free(Path(name)), args))


async def _run(place: FusionPlace, args: argparse.Namespace) -> None:
    place.catalog.write_bytes(omm_json(synthetic_catalog(objects=OBJECTS, epoch_ns=time.time_ns())))
    settings = FusionSettings.model_validate(
        place.settings(
            propagator={"answer_within_s": 3_600.0},  # a stopped worker is not replaced
            audit={"directory": str(place.folder / "audit"), "commit_every_s": args.commit_every_ms / 1e3},
        )
    )
    orbits = orbits_of(settings)
    pipeline = Pipeline(
        build_topology(settings, orbits), supervision_policy(settings.shutdown), bulkheads=(orbits.pool,)
    )
    recorders: list[Recorder] = []

    def recorder() -> Recorder:
        recorders.append(Recorder())
        return recorders[-1]

    async def conduct(graph: BuiltGraph) -> None:
        audit = dict(zip([vertex.name for vertex in graph.plan.order], recorders, strict=True))["audit"]
        stage = Stage(graph, orbits, audit)
        await all_listen(graph)
        go(simulator)
        await eventually(lambda: graph.status().ledger.written > 2 * args.rate, "a warm pipeline", limit_s=120.0)
        gc.collect()
        gc.freeze()
        await _turns(stage, args)

    rate_hz = (args.rate - OPTICAL_HZ - ISL_HZ) / 3
    with patch.object(wiring, "LatencyHistogram", recorder):
        simulator = place.simulator(
            *("--rate-radar", str(rate_hz), "--rate-optical", str(OPTICAL_HZ), "--rate-isl", str(ISL_HZ))
        )
        try:
            outcome = await conducted(pipeline, conduct)
        finally:
            simulator.terminate()
            simulator.wait()
    figures = outcome.event.figures
    print(f"  {outcome.event.name}; ledger holds: {figures.ledger_holds}; {figures.ledger}")


async def _turns(stage: Stage, args: argparse.Namespace) -> None:
    print(f"{os.cpu_count()} cores; {args.rate:,.0f} observations/s; turns of {args.seconds:g} s; {OBJECTS:,} objects")
    print("  propagator        rows   p50 ms   p99 ms   max ms | loop lag p99, max ms | on disk")
    working: list[Turn] = []
    stuck: list[Turn] = []
    for pair in range(args.pairs):
        if pair:
            await eventually(lambda: not stage.branch.spilled, "an empty disk", limit_s=600.0)
        working.append(await stage.turn(args.seconds))
        _row("working", working[-1], "")
        turn, on_disk = await stage.stuck_turn(args.seconds)
        stuck.append(turn)
        _row("stuck", turn, f"{on_disk.spilled:,} items, {on_disk.spilled_bytes / 1e6:.0f} MB")
    ratios = [b.p99_ms / a.p99_ms for a, b in zip(working, stuck, strict=True)]
    print(
        f"  p99 with the propagator stuck / working: {median(ratios):.2f} [{min(ratios):.2f} … {max(ratios):.2f}]"
        "  (at most 1.25)"
    )


def _row(name: str, turn: Turn, on_disk: str) -> None:
    print(
        f"  {name:10} {turn.rows:11,} {turn.p50_ms:8.1f} {turn.p99_ms:8.1f} {turn.max_ms:8.1f} |"
        f" {turn.lag_p99_ms:12.1f} {turn.lag_max_ms:8.1f} | {on_disk}",
        flush=True,
    )


if __name__ == "__main__":
    main()
