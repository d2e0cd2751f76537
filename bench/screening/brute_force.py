"""Random mixed subsets of the real catalogue: the screening compared with brute force, at three distances."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from sda_ops.screening.geometry.screen import ScreeningOptions, screen
from tests.helpers.brute_force import brute_force
from tests.helpers.mixed_objects import ABSENT, START_NS, mixed
from tests.helpers.screening_comparison import Comparison, compared

MISS_KM = (5.0, 20.0, 50.0)


@dataclass(frozen=True, slots=True)
class Subset:
    """One random subset at one distance."""

    seed: int
    objects: int
    miss_km: float
    comparison: Comparison
    ended: int
    slow_pairs: int
    brute_cpu_s: float
    cpu_s: float
    distances: int


def table(*, subsets: int, objects: int, hours: float, seed: int, processes: int = 2) -> None:
    """Print a row for each subset and distance, and the sums. Takes a minute of CPU for 300 objects and 24 hours."""
    if ABSENT:
        print(f"  left out: real data absent: {', '.join(ABSENT)} (set SDA_DATA_DIR)")
        return
    print(
        f"  {subsets} subsets of {objects} objects (low, sun-synchronous, one Starlink shell, geosynchronous, eccentric, "
        f"debris, docked, decaying), {hours:g} h, all pairs at 1 s steps, then SGP4's own minimum"
    )
    print(
        "  seed objects   km   expected    found  missed unscreened invented   TCA, s  range, m   slow minima missed"
        "  pairs wrong ended   CPU: brute force, screening"
    )
    sums = {miss_km: [0] * 7 for miss_km in MISS_KM}
    worst = [0.0, 0.0]
    with ProcessPoolExecutor(processes) as pool:
        for each in _flat(pool.map(partial(_subset, objects, hours), range(seed, seed + subsets))):
            one = each.comparison
            slow_missed = len(one.slow_missed) + len(one.contacts_missed)
            figures = (
                one.expected,
                one.found,
                len(one.missed),
                len(one.unscreened),
                len(one.invented),
                one.slow_expected,
                slow_missed + len(one.slow_invented),
            )
            sums[each.miss_km] = [a + b for a, b in zip(sums[each.miss_km], figures, strict=True)]
            worst = [max(worst[0], one.tca_s), max(worst[1], one.range_m)]
            print(
                f"  {each.seed:>4} {each.objects:>7} {each.miss_km:>4g} {one.expected:>10,} {one.found:>8,} {len(one.missed):>7} "
                f"{len(one.unscreened):>10} {len(one.invented):>8}  {one.tca_s:8.1e} {one.range_m:8.1e}  {one.slow_expected:>11} "
                f"{slow_missed:>6} {each.slow_pairs:>6} {len(one.slow_invented):>5} {each.ended:>5}   "
                f"{each.brute_cpu_s:.1f}, {each.cpu_s:.2f}"
            )
            if one.faults:
                print(f"       {one.faults}")
            sys.stdout.flush()
    for miss_km, (expected, found, missed, unscreened, invented, slow, wrong) in sums.items():
        print(
            f"  sum at {miss_km:g} km: {found:,} of {expected:,} found, {missed} missed, {unscreened} in reported gaps, {invented} "
            f"invented; {slow} slow minima, {wrong} slow pairs missed or wrong"
        )
    print(f"  greatest differences: {worst[0]:.1e} s, {worst[1]:.1e} m")


def _flat(subsets: Iterator[list[Subset]]) -> Iterator[Subset]:
    for each in subsets:
        yield from each


def _subset(objects: int, hours: float, seed: int) -> list[Subset]:
    population = mixed(objects, 1_000 + seed)
    start_ns = START_NS + seed * 3_717_123_456_789  # another part of the day for each
    began_s = time.process_time()
    truth = brute_force(population.satrecs, start_ns, start_ns + round(hours * 3600e9), max(MISS_KM) * 1e3)
    brute_cpu_s = time.process_time() - began_s
    screen(population, start_ns, timedelta(minutes=5), 5e3)  # imports and compiles
    results = []
    for miss_km in MISS_KM:
        began_s = time.process_time()
        screening = screen(population, start_ns, timedelta(hours=hours), miss_km * 1e3, options=ScreeningOptions())
        cpu_s = time.process_time() - began_s
        results.append(
            Subset(
                seed,
                len(population),
                miss_km,
                compared(truth, screening, population.satrecs),
                len(screening.ended),
                len(screening.slow_pairs),
                brute_cpu_s,
                cpu_s,
                truth.samples,
            )
        )
    return results
