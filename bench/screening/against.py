"""One object, and more of them, against all from held positions; and from how many on a whole screening is cheaper."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from statistics import median

import numpy as np

from bench.screening.runs import Run
from sda_ops.astro.propagation import one_thread
from sda_ops.screening.geometry.against import screen_against
from sda_ops.screening.geometry.ephemeris import PreparedObjects
from sda_ops.screening.geometry.screen import held_positions, screen

LISTS = (1, 3, 10, 30, 100, 300)
REPETITIONS = 7


def table(run: Run) -> None:
    """Print CPU times."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        print(process.submit(_measure, run).result())


def _measure(run: Run) -> str:
    one_thread()
    objects = run.prepared()
    options = run.options
    end_ns = run.start_ns + round(run.hours * 3600e9)
    prepared = PreparedObjects(objects, engine=options.engine)
    screen(prepared, run.start_ns, timedelta(minutes=2), run.miss_m, options=options)
    began_s = time.process_time()
    whole = screen(prepared, run.start_ns, timedelta(hours=run.hours), run.miss_m, options=options)
    whole_s = time.process_time() - began_s
    began_s = time.process_time()
    ephemeris = held_positions(prepared, run.start_ns, end_ns, options)
    held_s = time.process_time() - began_s
    rng = np.random.default_rng(run.seed)
    lines = [
        (
            f"  {len(objects):,} objects, {run.hours:g} h, {run.miss_m / 1e3:g} km: everything {whole_s:.2f} s of CPU, the held "
            f"positions {held_s:.2f} s (once)"
        ),
        "  objects against all   CPU ms (range)            CPU ms each   approaches   missing from the whole list",
    ]
    pairs = list(zip(whole.approaches.first.tolist(), whole.approaches.second.tolist(), strict=True))
    cost_s: dict[int, float] = {}
    for count in LISTS:
        if count > len(objects):
            continue
        times_s, found, missing = [], 0, 0
        for _ in range(REPETITIONS if count <= 30 else 1):
            rows = rng.choice(len(objects), count, replace=False)
            began_s = time.process_time()
            part = screen_against(ephemeris, rows, run.miss_m, start_ns=run.start_ns, end_ns=end_ns)
            times_s.append(time.process_time() - began_s)
            chosen = set(rows.tolist())
            expected = sum(bool(chosen & set(pair)) for pair in pairs)
            found += len(part.approaches)
            missing += expected - len(part.approaches)
        cost_s[count] = median(times_s)
        lines.append(
            f"  {count:>19}   {1e3 * cost_s[count]:8.0f} ({1e3 * min(times_s):.0f}-{1e3 * max(times_s):.0f})"
            f"{'':12}{1e3 * cost_s[count] / count:8.1f}   {found:>10,}   {missing}"
        )
    lines.append(f"  {_break_even(cost_s, whole_s)}")
    return "\n".join(lines)


def _break_even(cost_s: dict[int, float], whole_s: float) -> str:
    """From how many objects on everything is cheaper, interpolated between the measured lists; `whole_s` is everything."""
    counts = sorted(cost_s)
    for fewer, more in itertools.pairwise(counts):
        if cost_s[more] >= whole_s > cost_s[fewer]:
            share = (whole_s - cost_s[fewer]) / (cost_s[more] - cost_s[fewer])
            return f"break-even: a list of {fewer + share * (more - fewer):.0f} objects costs as much as everything"
    if cost_s[counts[0]] >= whole_s:
        return "break-even: everything costs less than one object"
    slope_s = cost_s[counts[-1]] / counts[-1]
    return (
        f"break-even: beyond {counts[-1]} objects; at {1e3 * slope_s:.1f} ms each it is {whole_s / slope_s:.0f} objects"
    )
