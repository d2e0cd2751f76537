"""Where the time of a screening goes, function by function, and the least time that its two unavoidable parts need."""

from __future__ import annotations

import cProfile
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from pathlib import Path

import numpy as np

from bench.screening.runs import Run
from sda_ops.astro.propagation import Propagator, one_thread
from sda_ops.astro.time import NS_PER_S
from sda_ops.screening.geometry.screen import ScreeningOptions, screen

FUNCTIONS = 14


def table(run: Run) -> None:
    """Print the functions with the most time of their own, and the limits."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        print(process.submit(_profile, run).result())


def _profile(run: Run) -> str:
    one_thread()
    objects = run.prepared()
    _ = objects.satrecs
    screen(objects, run.start_ns, timedelta(minutes=2), run.miss_m, options=run.options)
    horizon = timedelta(hours=run.hours)
    began_s = time.process_time()
    statistics = screen(objects, run.start_ns, horizon, run.miss_m, options=run.options).statistics
    cpu_s = time.process_time() - began_s
    profile = cProfile.Profile(time.process_time)
    profile.enable()
    screen(objects, run.start_ns, horizon, run.miss_m, options=run.options)
    profile.disable()
    own_s_of: dict[tuple[str, int, str], tuple[float, int]] = {}
    for entry in profile.getstats():
        code = entry.code
        place: tuple[str, int, str] = ("", 0, str(code))
        if not isinstance(code, str):
            place = (code.co_filename, code.co_firstlineno, code.co_name)
        own_s_of[place] = (entry.inlinetime, entry.callcount)
    entries = sorted(((own_s, calls, place) for place, (own_s, calls) in own_s_of.items()), reverse=True)
    total_s = sum(entry[0] for entry in entries)
    lines = [
        (
            f"  {len(objects):,} objects, {run.hours:g} h, {run.miss_m / 1e3:g} km: {cpu_s:.2f} s of CPU "
            f"({statistics.broad_phase}, {statistics.engine}); under the profiler {total_s:.2f} s"
        ),
        "  share  own time, s      calls  function",
    ]
    for own_s, calls, (file, line, name) in entries[:FUNCTIONS]:
        where = f"{Path(file).name}:{line} {name}" if line else name
        lines.append(f"  {100.0 * own_s / total_s:4.0f} %  {own_s:11.2f}  {calls:9,}  {where}")
    return "\n".join([*lines, *_limits(run, cpu_s, statistics.pairs)])


def _limits(run: Run, cpu_s: float, pairs: int) -> list[str]:
    """SGP4 at the knots alone, and the states of each object in each slice."""
    objects = run.prepared()
    options: ScreeningOptions = run.options
    knots = np.arange(0, round(run.hours * 3600e9), round(options.knot_s * NS_PER_S)) + run.start_ns
    propagator = Propagator(objects.satrecs, engine=options.engine, max_age=None)
    propagator.propagate(knots[:2])
    began_s = time.process_time()
    for begin in range(0, len(knots), 30):
        propagator.propagate(knots[begin : begin + 30])
    sgp4_s = time.process_time() - began_s
    slices = round(run.hours * 3600.0 / options.slice_s)
    states = np.empty((6, len(objects)))
    knot = np.random.default_rng(0).normal(size=(8, 3 * len(objects)))
    weights = np.ones((2, 8))
    began_s = time.process_time()
    for _ in range(slices):
        np.matmul(weights, knot, out=states.reshape(2, -1))
    states_s = time.process_time() - began_s
    return [
        (
            f"  The least: SGP4 at {len(knots):,} knots {sgp4_s:.2f} s ({100.0 * sgp4_s / cpu_s:.0f} %), the states of all objects in "
            f"{slices:,} slices {states_s:.2f} s ({100.0 * states_s / cpu_s:.0f} %)."
        ),
        (
            f"  The rest is for {len(objects) * slices / 1e6:,.0f} million objects in slices, of which the broad phase returns "
            f"{pairs / 1e6:,.1f} million pairs: {1e9 * (cpu_s - sgp4_s - states_s) / (len(objects) * slices):.0f} ns each."
        ),
    ]
