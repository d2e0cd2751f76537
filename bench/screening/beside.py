"""The stream beside a screening: the latency of the audit's rows while the catalogue is screened, relative to while it is not.

The whole ``sda-fusion`` runs in this process and receives observations over real sockets from a simulator process. In turns,
nothing is screened, and every element set of the real catalogue is replaced, so that everything is screened again: by the
worker processes, with the assessment, the table of conjunctions, and a row of the audit for each revision. A turn of the
second kind lasts until the last of these rows is on the disk. The latencies are those of ``bench.isolation``: from ingest to
the fsynced commit, counted by the time of ingest.

It only prints figures. Other load on the machine affects every one of them; see ``bench.isolation``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from unittest.mock import patch

import numpy as np

from bench.isolation import Recorder, beating
from flows.settings.fusion import FusionSettings
from flows.topologies.from_settings import supervision_policy
from flows.topologies.fusion import Orbits, build_topology, orbits_of
from flows.topologies.screening import CatalogScreening, screening_of
from orchestrator_adapter import BuiltGraph
from orchestrator_adapter.process import Pipeline
from orchestrator_adapter.runtime import wiring
from sda_ops.catalog.columns import ElementColumns
from sda_ops.catalog.elements import ElementSet
from sda_ops.simulate.catalog_file import omm_json
from tests.helpers.alerting import of_time
from tests.helpers.fusion import FusionPlace, all_listen, conducted, go
from tests.helpers.running import counter, eventually
from tests.scenes.truth import catalog

OPTICAL_HZ, ISL_HZ = 50.0, 100.0
SETTLE_S, TAIL_S = 1.0, 1.0
MOVED_RAD = 1e-5  # 70 metres along the orbit: nearly every conjunction gets a revision


@dataclass(frozen=True, slots=True)
class Version:
    """A version of the catalogue."""

    number: int
    element_sets: Sequence[ElementSet]
    columns: ElementColumns


class MovedCatalog:
    """A catalogue. When the benchmark asks for it, all its orbits move."""

    def __init__(self, element_sets: Sequence[ElementSet]) -> None:
        self.current = Version(1, element_sets, ElementColumns.of(element_sets))
        self._listeners: list[Callable[[Version], object]] = []

    async def load(self) -> None:
        """There is a version."""

    def on_change(self, listener: Callable[[Version], object]) -> Callable[[], None]:
        """Call ``listener`` with each later version."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def move(self) -> None:
        """The next version."""
        old = self.current
        moved_rad = np.random.default_rng(old.number).normal(0.0, MOVED_RAD, len(old.columns))
        columns = {**old.columns.arrays(), "mo": old.columns.mo + moved_rad}
        self.current = Version(old.number + 1, old.element_sets, ElementColumns.from_arrays(columns))
        for listener in self._listeners:
            listener(self.current)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn's rows of the audit: their latencies, and how late the event loop was."""

    elapsed_s: float
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
    audit: Recorder
    catalog: MovedCatalog

    async def screened(self, screenings: int) -> None:
        """Wait until there were so many screenings, and every revision is in the audit."""

        def done() -> bool:
            rows, updates = (
                counter(self.graph, "rows", "conjunctions"),
                counter(self.graph, "conjunction_updates", "screen"),
            )
            return (counter(self.graph, "screenings", "screen") or 0) >= screenings and rows == updates

        await eventually(done, "a screening", limit_s=600.0)
        await asyncio.sleep(0.5)  # the gauge of the updates follows the screening
        await eventually(done, "its rows", limit_s=600.0)

    async def quiet(self, seconds: float) -> Turn:
        """Measure so many seconds without a screening."""
        return await self._turn(lambda: asyncio.sleep(seconds))

    async def screening(self) -> Turn:
        """Measure while everything is screened once."""
        screenings = counter(self.graph, "screenings", "screen") or 0
        self.catalog.move()
        return await self._turn(lambda: self.screened(screenings + 1))

    async def _turn(self, during: Callable[[], Awaitable[None]]) -> Turn:
        await asyncio.sleep(SETTLE_S)
        from_ns = time.time_ns()
        async with beating() as lags_s:
            await during()
        to_ns = time.time_ns()
        await asyncio.sleep(TAIL_S)
        rows, lags_ms = self.audit.latencies_ms(from_ns, to_ns), np.array(lags_s) * 1e3
        p50, p99 = np.quantile(rows, [0.5, 0.99])
        lag_p99 = float(np.quantile(lags_ms, 0.99))
        return Turn((to_ns - from_ns) / 1e9, rows.size, p50, p99, rows.max(), lag_p99, lags_ms.max())


def main() -> None:
    """Run the benchmark; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.screening.beside", description=(__doc__ or "").split("\n\n", maxsplit=1)[0]
    )
    parser.add_argument("--pairs", type=int, default=3, help="pairs of turns (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=15.0, help="turns without a screening (default: %(default)s)")
    parser.add_argument("--rate", type=float, default=3_000.0, help="observations a second (default: %(default)s)")
    parser.add_argument("--hours", type=float, default=24.0, help="the horizon (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="screening workers (default: %(default)s)")
    parser.add_argument(
        "--commit-every-ms", type=float, default=10.0, help="commit interval of the audit (default: %(default)s)"
    )
    parser.add_argument("--folder", type=Path, help="a disk to write to (default: where temporary files go)")
    args = parser.parse_args()
    logging.getLogger("orchestrator_adapter").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        asyncio.run(_run(FusionPlace.free(Path(name)), args))


async def _run(place: FusionPlace, args: argparse.Namespace) -> None:
    element_sets = of_time(catalog()[0], time.time_ns())
    place.catalog.write_bytes(omm_json(element_sets))
    settings = FusionSettings.model_validate(
        place.settings(
            audit={"directory": str(place.folder / "audit"), "commit_every_s": args.commit_every_ms / 1e3},
            screening={
                "directory": str(place.folder / "screening"),
                "horizon_s": args.hours * 3_600.0,
                "workers": args.workers,
            },
        )
    )
    moved = MovedCatalog(element_sets)
    parts = orbits_of(settings)
    screening = screening_of(settings.screening, moved)
    orbits = Orbits(parts.catalog, parts.pool, parts.propagator, screening)
    pipeline = Pipeline(
        build_topology(settings, orbits),
        supervision_policy(settings.shutdown),
        preparations=(screening.prepare,),
        bulkheads=(orbits.pool, screening.pool),
    )
    recorders: list[Recorder] = []

    def recorder() -> Recorder:
        recorders.append(Recorder())
        return recorders[-1]

    async def conduct(graph: BuiltGraph) -> None:
        audit = dict(zip([vertex.name for vertex in graph.plan.order], recorders, strict=True))["audit"]
        stage = Stage(graph, audit, moved)
        await all_listen(graph)
        go(simulator)
        await eventually(lambda: graph.status().ledger.written > 2 * args.rate, "a warm pipeline", limit_s=120.0)
        await stage.screened(1)
        gc.collect()
        gc.freeze()
        await _turns(stage, screening, args)

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


async def _turns(stage: Stage, screening: CatalogScreening, args: argparse.Namespace) -> None:
    objects = len(stage.catalog.current.element_sets)
    print(f"{os.cpu_count()} cores; {args.rate:,.0f} observations/s; {objects:,} objects, {args.hours:g} h")
    print("  screening    seconds        rows   p50 ms   p99 ms   max ms | loop lag p99, max ms | revisions")
    quiet: list[Turn] = []
    busy: list[Turn] = []
    for _ in range(args.pairs):
        quiet.append(await stage.quiet(args.seconds))
        _row("no", quiet[-1], "")
        before = screening.table.held().updates
        busy.append(await stage.screening())
        _row("of all", busy[-1], f"{screening.table.held().updates - before:,}")
    for name in ("p50_ms", "p99_ms"):
        ratios = [getattr(b, name) / getattr(a, name) for a, b in zip(quiet, busy, strict=True)]
        print(f"  {name[:3]} with / without: {median(ratios):.2f} [{min(ratios):.2f} … {max(ratios):.2f}]")


def _row(name: str, turn: Turn, revisions: str) -> None:
    print(
        f"  {name:10} {turn.elapsed_s:9.1f} {turn.rows:11,} {turn.p50_ms:8.1f} {turn.p99_ms:8.1f} {turn.max_ms:8.1f} |"
        f" {turn.lag_p99_ms:12.1f} {turn.lag_max_ms:8.1f} | {revisions}",
        flush=True,
    )


if __name__ == "__main__":
    main()
