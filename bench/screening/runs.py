"""One measured screening in a process of its own: CPU and wall time, stages, peak memory; and the catalogues to screen."""

from __future__ import annotations

import asyncio
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from sda_ops.astro.propagation import one_thread
from sda_ops.catalog.synthetic import synthetic_catalog
from sda_ops.screening.approaches import Screening
from sda_ops.screening.geometry.screen import ScreeningOptions, screen
from sda_ops.screening.objects import ScreenedObjects
from sda_ops.screening.workers.windows import screen_in_windows, screening_bulkhead
from tests.helpers.mixed_objects import CATALOG, DEBRIS, START_NS, joined, objects_of_file, rows_of, with_elements

Which = Literal["active", "full"]

FULL_OBJECTS = 27_000
FULL_ECCENTRIC = 4_300
FULL_VERY_ECCENTRIC = 1_500
"""Objects with an eccentricity above 0.02, and above 0.5: as in CelesTrak's on-orbit catalogue of November 2024, which had
26,834 objects, 4,316 and 1,536."""

HOW_FULL = (
    f"The full catalogue is made: the active one, the debris of Cosmos 2251 and Iridium 33, and copies of both with the node, "
    f"the perigee and the anomaly turned at random, {FULL_OBJECTS:,} in all: copies of eccentric objects until "
    f"{FULL_ECCENTRIC:,} have an eccentricity above 0.02, {FULL_VERY_ECCENTRIC:,} of them above 0.5; the rest are copies of "
    "the debris."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What is screened.

    Attributes:
        which: ``active`` or ``full``.
        objects: A random part of so many objects; 0 means all.
        hours: The horizon.
        miss_m: The miss distance.
        options: The options.
        workers: 0 means in one process, without a bulkhead.
        catalog: The catalogue file.
        seed: Of random parts and copies.
        start_ns: The beginning, UTC.
    """

    which: Which = "active"
    objects: int = 0
    hours: float = 24.0
    miss_m: float = 5e3
    options: ScreeningOptions = ScreeningOptions()  # noqa: RUF009 - it is frozen
    workers: int = 0
    catalog: Path = CATALOG
    seed: int = 0
    start_ns: int = START_NS

    def prepared(self) -> ScreenedObjects:
        """The objects."""
        objects = active(self.catalog) if self.which == "active" else full(self.catalog, self.seed)
        if not 0 < self.objects < len(objects):
            return objects
        rng = np.random.default_rng(self.seed)
        return rows_of(objects, np.sort(rng.choice(len(objects), self.objects, replace=False)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What it cost. With workers, ``cpu_s`` and the memory are those of all processes, the greatest worker's for memory.

    Attributes:
        wall_s: Wall time.
        cpu_s: CPU time of all threads, user and system.
        stages_s: CPU time by stage, and the rest.
        peak_mb: The greatest resident size of the process until the end.
        before_mb: The same before the screening, with the catalogue read and everything imported and compiled.
        objects: How many.
        events: How many approaches.
        slow_pairs: How many.
        ended: How many times without position were reported.
        statistics: Engine, broad phase, pairs, slices and so on, as text.
    """

    wall_s: float
    cpu_s: float
    stages_s: dict[str, float]
    peak_mb: float
    before_mb: float
    objects: int
    events: int
    slow_pairs: int
    ended: int
    statistics: str


def measured(run: Run) -> Figures:
    """The figures of this run, in a new process. Everything is imported, compiled and read before time is measured."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_measure, run).result()


def in_turn(runs: dict[str, Run], rounds: int) -> dict[str, list[Figures]]:
    """Each run in each round, forwards and backwards by turns: A B B A A B …."""
    figures: dict[str, list[Figures]] = {name: [] for name in runs}
    for number in range(rounds):
        for name in list(runs)[:: -1 if number % 2 else 1]:
            figures[name].append(measured(runs[name]))
    return figures


def _measure(run: Run) -> Figures:
    one_thread()
    objects = run.prepared()
    _ = objects.satrecs
    warm = rows_of(objects, np.arange(0, len(objects), max(1, len(objects) // 500)))
    if run.workers:
        return asyncio.run(_measure_workers(run, objects, warm))
    screen(warm, run.start_ns, timedelta(minutes=20), run.miss_m, options=run.options)
    before_mb = _peak_mb(resource.RUSAGE_SELF)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    screening = screen(objects, run.start_ns, timedelta(hours=run.hours), run.miss_m, options=run.options)
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    return _figures(screening, wall_s, cpu_s, before_mb, _peak_mb(resource.RUSAGE_SELF))


async def _measure_workers(run: Run, objects: ScreenedObjects, warm: ScreenedObjects) -> Figures:
    async with screening_bulkhead(workers=run.workers) as pool:
        # A window for each worker, so that each has imported and compiled.
        await screen_in_windows(
            pool,
            warm,
            run.start_ns,
            timedelta(minutes=20 * 4 * run.workers),
            run.miss_m,
            options=run.options,
            window=timedelta(minutes=20),
        )
        pids = list(pool.statistics().pids.values())
        before_mb = max(map(_peak_of_mb, pids))
        began_cpu_s = time.process_time() + sum(map(_cpu_of_s, pids))
        began_s = time.perf_counter()
        screening = await screen_in_windows(
            pool, objects, run.start_ns, timedelta(hours=run.hours), run.miss_m, options=run.options
        )
        wall_s = time.perf_counter() - began_s
        cpu_s = time.process_time() + sum(map(_cpu_of_s, pids)) - began_cpu_s
        return _figures(screening, wall_s, cpu_s, before_mb, max(map(_peak_of_mb, pids)))


def _figures(screening: Screening, wall_s: float, cpu_s: float, before_mb: float, peak_mb: float) -> Figures:
    statistics = screening.statistics
    stages_s = {
        "propagation": statistics.propagation_s,
        "broad": statistics.broad_s,
        "narrow": statistics.narrow_s,
        "refine": statistics.refine_s,
    }
    return Figures(
        wall_s=wall_s,
        cpu_s=cpu_s,
        stages_s=stages_s | {"rest": cpu_s - sum(stages_s.values())},
        peak_mb=peak_mb,
        before_mb=before_mb,
        objects=statistics.objects,
        events=len(screening.approaches),
        slow_pairs=len(screening.slow_pairs),
        ended=len(screening.ended),
        statistics=(
            f"{statistics.broad_phase}, {statistics.engine}, {statistics.slices:,} slices, {statistics.pairs:,} pairs of the "
            f"broad phase, {statistics.candidates:,} candidates, interpolation error "
            f"{statistics.interpolation_error_m:.1f} of at most {statistics.interpolation_bound_m:g} m"
        ),
    )


def _peak_mb(who: int) -> float:
    return resource.getrusage(who).ru_maxrss / 1024.0


def _peak_of_mb(pid: int) -> float:
    """The greatest resident size of a process of this user (Linux)."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return float(line.split()[1]) / 1024.0
    return float("nan")


def _cpu_of_s(pid: int) -> float:
    import psutil  # noqa: PLC0415 - only with workers

    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@cache
def active(path: Path) -> ScreenedObjects:
    """The catalogue, or a generated one of 15,000 objects where the file is absent."""
    if path.is_file():
        return objects_of_file(path)
    return ScreenedObjects.of(synthetic_catalog(objects=15_000, epoch_ns=START_NS))


@cache
def full(path: Path, seed: int) -> ScreenedObjects:
    """See `HOW_FULL`."""
    rng = np.random.default_rng(seed)
    objects = active(path)
    debris = [objects_of_file(each) for each in DEBRIS if each.is_file()]
    known = set(objects.columns.catalog_number.tolist())
    debris = [
        rows_of(each, [row for row, number in enumerate(each.columns.catalog_number.tolist()) if number not in known])
        for each in debris
    ]
    real = joined(objects, *debris)
    eccentricity = real.columns.ecco
    rest = np.flatnonzero(eccentricity <= 0.02) if not debris else np.arange(len(objects), len(real))
    wanted = (
        (np.flatnonzero(eccentricity > 0.5), FULL_VERY_ECCENTRIC - int((eccentricity > 0.5).sum())),
        (
            np.flatnonzero((eccentricity > 0.02) & (eccentricity <= 0.5)),
            FULL_ECCENTRIC - FULL_VERY_ECCENTRIC - int(((eccentricity > 0.02) & (eccentricity <= 0.5)).sum()),
        ),
    )
    copied = [rng.choice(rows, count) for rows, count in wanted if len(rows) and count > 0]
    remaining = FULL_OBJECTS - len(real) - sum(map(len, copied))
    copied.append(rng.choice(rest[eccentricity[rest] <= 0.02], max(0, remaining)))
    return joined(real, turned(rows_of(real, np.concatenate(copied)), rng))


def turned(objects: ScreenedObjects, rng: np.random.Generator) -> ScreenedObjects:
    """Copies with random nodes, perigees and anomalies."""

    def angles() -> npt.NDArray[np.float64]:
        return rng.uniform(0.0, 2.0 * np.pi, len(objects))

    return with_elements(objects, nodeo=angles(), argpo=angles(), mo=angles())


def with_options(run: Run, **options: object) -> Run:
    """The run with other options."""
    return replace(run, options=replace(run.options, **options))  # type: ignore[arg-type] # checked by the dataclass
