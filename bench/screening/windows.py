"""What windows in worker processes cost and gain, against the same windows in this process. It only prints figures.

Usage: ``python -m bench.screening.windows [--hours H] [--miss-km D] [--rounds N] [--objects N] [--changed N]``. The catalogue is the real
one of March 2026. Cases take turns: direct, one worker, two workers; ratios are medians of the rounds' ratios. The pool is
started before the time is taken, and every worker has screened one window (the first call loads the compiled broad phase).
"""

from __future__ import annotations

import argparse
import asyncio
import time
from datetime import timedelta
from statistics import median

import numpy as np
import psutil

from sda_ops.catalog import ElementColumns
from sda_ops.catalog.reader import read_catalog
from sda_ops.screening.approaches import Screening
from sda_ops.screening.geometry.ephemeris import PreparedObjects
from sda_ops.screening.geometry.screen import ScreeningOptions, merged, screen_window
from sda_ops.screening.objects import ScreenedObjects
from sda_ops.screening.workers.encoding import arrays_of, screening_of
from sda_ops.screening.workers.windows import (
    DEFAULT_WINDOW,
    WorkerLimits,
    screen_in_windows,
    screening_bulkhead,
    windows_of,
)
from tests.helpers.support import SDA_DATA_DIR
from tests.scenes.truth import REAL_EPOCH_NS

MIB = 1 << 20


async def in_workers(
    workers: int, objects: ScreenedObjects, horizon: timedelta, miss_m: float
) -> tuple[float, float, float, Screening]:
    """Wall s, CPU s of the workers, MiB of the largest worker, and the result."""
    async with screening_bulkhead(workers=workers) as pool:
        await screen_in_windows(
            pool, objects, REAL_EPOCH_NS - workers * HOUR_NS, timedelta(hours=workers), miss_m, window=HOUR
        )
        processes = [psutil.Process(pid) for pid in pool.statistics().pids.values()]
        before = sum(sum(process.cpu_times()[:2]) for process in processes)
        began = time.perf_counter()
        found = await screen_in_windows(pool, objects, REAL_EPOCH_NS, horizon, miss_m)
        wall_s = time.perf_counter() - began
        cpu_s = sum(sum(process.cpu_times()[:2]) for process in processes) - before
        rss = max(process.memory_info().rss for process in processes)
    return wall_s, cpu_s, rss / MIB, found


HOUR = timedelta(hours=1)
HOUR_NS = 3_600_000_000_000


def direct(objects: ScreenedObjects, horizon: timedelta, miss_m: float) -> tuple[float, float, Screening]:
    """Wall s, CPU s and the result of the same windows, one after the other, in this process."""
    began, cpu_began = time.perf_counter(), time.process_time()
    windows = windows_of(REAL_EPOCH_NS, horizon, DEFAULT_WINDOW)
    prepared = PreparedObjects(objects)
    found = merged([screen_window(prepared, *window, miss_m, ScreeningOptions()) for window in windows])
    return time.perf_counter() - began, time.process_time() - cpu_began, found


async def against(objects: ScreenedObjects, horizon: timedelta, miss_m: float, changed: int) -> None:
    """Print the CPU s of one worker that screens 10 objects: from nothing, from held positions, after changes."""
    rows = np.arange(0, len(objects), len(objects) // 10)[:10]
    arrays = {name: column.copy() for name, column in objects.columns.arrays().items()}
    arrays["mo"][:: len(objects) // changed] += 1e-4
    later = ScreenedObjects(ElementColumns.from_arrays(arrays), objects.names, objects.designators)
    limits = WorkerLimits(held_bytes=1 << 30)
    async with screening_bulkhead(workers=1) as pool:
        (pid,) = pool.statistics().pids.values()
        process = psutil.Process(pid)
        for what, catalog in (
            ("nothing is held", objects),
            ("all is held", objects),
            ("all is held", objects),
            (f"{changed} element sets are new", later),
            ("all is held", later),
        ):
            before = sum(process.cpu_times()[:2])
            found = await screen_in_windows(pool, catalog, REAL_EPOCH_NS, horizon, miss_m, rows=rows, limits=limits)
            cpu_s = sum(process.cpu_times()[:2]) - before
            rss = process.memory_info().rss / MIB
            print(
                f"10 objects against all, {what}: CPU {cpu_s:.2f} s, {len(found.approaches)} approaches, {rss:.0f} MiB",
                flush=True,
            )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--miss-km", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--objects", type=int, help="only so many, the first ones of the file")
    parser.add_argument("--changed", type=int, default=100, help="element sets that change between two screenings")
    args = parser.parse_args()
    catalog = read_catalog(SDA_DATA_DIR / "catalog/celestrak_active_2026-03.csv").element_sets[: args.objects]
    objects = ScreenedObjects.of(catalog)
    horizon, miss_m = timedelta(hours=args.hours), args.miss_km * 1e3
    print(f"{len(objects)} objects, {args.hours:g} h, {args.miss_km:g} km, windows of {DEFAULT_WINDOW}")
    asyncio.run(against(objects, horizon, miss_m, args.changed))
    screen_window(objects, REAL_EPOCH_NS, REAL_EPOCH_NS + HOUR_NS, miss_m, ScreeningOptions())
    if not args.rounds:
        return
    overheads, ratios = [], []
    for _ in range(args.rounds):
        wall_s, cpu_s, found = direct(objects, horizon, miss_m)
        print(f"direct     wall {wall_s:6.2f} s  CPU {cpu_s:6.2f} s  {len(found.approaches)} approaches", flush=True)
        walls = []
        for workers in (1, 2):
            pool_wall_s, pool_cpu_s, rss_mib, found = asyncio.run(in_workers(workers, objects, horizon, miss_m))
            walls.append(pool_wall_s)
            print(
                f"{workers} worker{'s' if workers > 1 else ' '}  wall {pool_wall_s:6.2f} s  CPU {pool_cpu_s:6.2f} s  "
                f"{len(found.approaches)} approaches, {rss_mib:.0f} MiB in the largest worker",
                flush=True,
            )
        overheads.append(walls[0] / wall_s - 1.0)
        ratios.append(walls[0] / walls[1])
    print(
        f"one worker against direct: {100 * median(overheads):+.1f} % wall; two workers: {median(ratios):.2f} times as fast"
    )
    began = time.process_time()
    for _ in range(100):
        arrays = arrays_of(found)
    encoded_s = time.process_time() - began
    for _ in range(100):
        screening_of(arrays)
    decoded_s = time.process_time() - began - encoded_s
    size = sum(array.nbytes for array in arrays.values())
    print(
        f"the result as arrays: {size / 1e6:.2f} MB, {encoded_s * 1e4:.0f} µs to encode, {decoded_s * 1e4:.0f} µs to decode"
    )


if __name__ == "__main__":
    main()
