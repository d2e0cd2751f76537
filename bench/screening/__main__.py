"""The screening of a whole catalogue: what it finds, compared with brute force and with others, and what it costs.

It prints tables and asserts nothing. Each screening runs in a process of its own, with everything imported, compiled and read
before its time is measured. CPU time is that of all threads, user and system, which other load disturbs less than wall time.
The cases of a table alternate, A B B A A B …; figures are medians of the rounds with their range, and ratios are medians of the
ratios within each round.

Tables:
  brute-force  random mixed objects, every pair at every second: approaches expected, found, missed, invented
  cost         the catalogue, with and without numba and heyoka, and with two workers: CPU by stage, wall time, memory
  full         the same for a full catalogue with debris
  week         seven days
  slices       lengths of a slice
  growth       with objects, horizon and miss distance; --picture draws the curves
  profile      where the time goes, and the least time that SGP4 and the distances of the pairs need
  against      one and more objects against all, and from how many changed objects on a whole screening is cheaper
  peers        other packages on the same catalogue: time, and the share of the true approaches found
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median

from bench.screening import against, brute_force, peers, profile
from bench.screening.runs import HOW_FULL, Figures, Run, in_turn, with_options
from tests.helpers.mixed_objects import CATALOG

OBJECTS = (1_000, 2_000, 4_000, 8_000, 0)
HOURS = (3.0, 6.0, 12.0, 24.0)
MISS_KM = (1.0, 2.0, 5.0, 10.0, 20.0)
SLICES_S = (60.0, 20.0, 30.0, 40.0, 80.0, 120.0)  # ratios are to the first


def main() -> None:
    logging.disable(logging.CRITICAL)
    args = _arguments()
    run = Run(objects=args.objects, hours=args.hours, miss_m=args.miss_km * 1e3, catalog=args.catalog, seed=args.seed)
    tables: dict[str, Callable[[], None]] = {
        "brute-force": lambda: brute_force.table(
            subsets=args.subsets, objects=args.subset_objects, hours=args.hours, seed=args.seed
        ),
        "cost": lambda: cost(run, args.rounds),
        "full": lambda: full(run, args.rounds),
        "week": lambda: week(run, args.rounds),
        "slices": lambda: slices(run, args.rounds),
        "growth": lambda: growth(run, args.rounds, args.picture),
        "profile": lambda: profile.table(run),
        "against": lambda: against.table(run),
        "peers": lambda: peers.table(run, args.rounds, args.peers),
    }
    print(f"command: python -m bench.screening {' '.join(sys.argv[1:])}", flush=True)
    for name in tables if "all" in args.tables else args.tables:
        print(f"\n{name}", flush=True)
        tables[name]()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.screening", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("brute-force", "cost", "full", "week", "slices", "growth", "profile", "against", "peers", "all")
    parser.add_argument("tables", nargs="*", default=["cost"], metavar="TABLE", help="which (default: cost), or 'all'")
    parser.add_argument(
        "--catalog", type=Path, default=CATALOG, help="the catalogue file (default: the one in SDA_DATA_DIR)"
    )
    parser.add_argument("--objects", type=int, default=0, help="a random part of so many objects (default: 0, all)")
    parser.add_argument(
        "--hours", type=float, default=24.0, help="the horizon (default: 24; the week has seven times it)"
    )
    parser.add_argument("--miss-km", type=float, default=5.0, help="the miss distance (default: 5)")
    parser.add_argument("--rounds", type=int, default=1, help="in which the cases alternate (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="of random parts and copies (default: 0)")
    parser.add_argument("--subsets", type=int, default=3, help="brute-force: how many random subsets (default: 3)")
    parser.add_argument("--subset-objects", type=int, default=300, help="brute-force: objects in each (default: 300)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="growth: draw the curves: .svg or .png")
    parser.add_argument(
        "--peers",
        type=Path,
        default=peers.FOLDER,
        metavar="FOLDER",
        help=f"peers: their own Python environment, made if absent (default: {peers.FOLDER})",
    )
    args = parser.parse_args()
    for name in args.tables:
        if name not in names:
            parser.error(f"there is no table {name!r}: choose from {', '.join(names)}")
    return args


# Tables.


def cost(run: Run, rounds: int) -> None:
    """Engines, broad phases, and two workers."""
    plain = with_options(run, engine="sgp4", broad_phase="scipy")
    cases = {
        "numba, heyoka": with_options(run, engine="heyoka", broad_phase="numba"),
        "numba, sgp4": with_options(run, engine="sgp4", broad_phase="numba"),
        "scipy, heyoka": with_options(run, engine="heyoka", broad_phase="scipy"),
        "scipy, sgp4": plain,
        "two workers": replace(run, workers=2),
        "two workers, scipy, sgp4": replace(plain, workers=2),
    }
    print_cases(in_turn(_installed(cases), rounds))


def full(run: Run, rounds: int) -> None:
    """The full catalogue."""
    print(HOW_FULL)
    run = replace(run, which="full")
    plain = with_options(run, engine="sgp4", broad_phase="scipy")
    print_cases(in_turn({"one process": run, "two workers": replace(run, workers=2), "scipy, sgp4": plain}, rounds))


def week(run: Run, rounds: int) -> None:
    """Seven days."""
    run = replace(run, hours=7.0 * run.hours)
    print_cases(in_turn({"one process": run, "two workers": replace(run, workers=2)}, rounds))


def slices(run: Run, rounds: int) -> None:
    """Lengths of a slice: the list stays the same."""
    figures = in_turn({f"{slice_s:g} s": with_options(run, slice_s=slice_s) for slice_s in SLICES_S}, rounds)
    print_cases(figures)


def growth(run: Run, rounds: int, picture: Path | None) -> None:
    """Growth with objects, horizon and distance."""
    curves: dict[str, list[tuple[float, Figures]]] = {}
    everything = {
        "objects": {f"{objects or 'all'} objects": replace(run, objects=objects) for objects in OBJECTS},
        "horizon, hours": {f"{hours:g} h": replace(run, hours=hours) for hours in HOURS if hours <= run.hours},
        "miss distance, km": {f"{miss_km:g} km": replace(run, miss_m=miss_km * 1e3) for miss_km in MISS_KM},
    }
    for name, cases in everything.items():
        figures = in_turn(cases, rounds)
        print_cases(figures)
        points = []
        for case, each in figures.items():
            value = {
                "objects": float(each[0].objects),
                "horizon, hours": cases[case].hours,
                "miss distance, km": cases[case].miss_m / 1e3,
            }[name]
            points.append((value, sorted(each, key=lambda one: one.cpu_s)[len(each) // 2]))
        curves[name] = points
        for one, other in pairwise(points):
            if other[0] > one[0]:
                power = math.log(other[1].cpu_s / one[1].cpu_s) / math.log(other[0] / one[0])
                print(f"  {name} {one[0]:g} -> {other[0]:g}: CPU time grows with the power {power:.2f}")
    if picture is not None:
        draw(curves, picture)


def draw(curves: dict[str, list[tuple[float, Figures]]], path: Path) -> None:
    """CPU time and approaches over each variable, both on logarithmic axes."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        sys.exit("bench.screening: --picture needs matplotlib: pip install 'sda-stream-orchestrator[plot]'")
    figure = Figure(figsize=(3.6 * len(curves), 3.4), layout="constrained")
    for index, (name, points) in enumerate(curves.items()):
        axes = figure.add_subplot(1, len(curves), index + 1)
        values = [value for value, _ in points]
        axes.loglog(values, [each.cpu_s for _, each in points], "o-", label="CPU time, s")
        axes.loglog(values, [max(1, each.events) / 1e3 for _, each in points], "s--", label="approaches, thousands")
        axes.set_xticks(values, [f"{value:,g}" for value in values], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel(name)
        axes.grid(visible=True, which="both", alpha=0.3)
        axes.legend()
    figure.savefig(path)
    print(f"  drawn: {path}")


# Printing.


def print_cases(figures: dict[str, list[Figures]]) -> None:
    """A row for each case; ratios are to the first case, within each round."""
    width = max(map(len, figures))
    first = next(iter(figures.values()))
    print(
        f"  {'':{width}}  objects   events  slow ended   CPU s (range)          wall s (range)         ratio of CPU"
        "   peak MB (before)   CPU by stage, s"
    )
    for name, each in figures.items():
        one = each[-1]
        ratios = [figure.cpu_s / other.cpu_s for figure, other in zip(each, first, strict=True)]
        stages = ", ".join(f"{stage} {median(f.stages_s[stage] for f in each):.2f}" for stage in one.stages_s)
        print(
            f"  {name:{width}}  {one.objects:>7,} {one.events:>8,} {one.slow_pairs:>5,} {one.ended:>5,}"
            f"   {_range([f.cpu_s for f in each]):20}   {_range([f.wall_s for f in each]):20}   {median(ratios):8.2f}    "
            f"   {max(f.peak_mb for f in each):7.0f} ({max(f.before_mb for f in each):.0f})   {stages}"
        )
    for name, each in figures.items():
        print(f"  {name}: {each[-1].statistics}")
    sys.stdout.flush()


def _range(values: Sequence[float]) -> str:
    text = f"{median(values):.2f}"
    return text if len(values) == 1 else f"{text} ({min(values):.2f}-{max(values):.2f})"


def _installed(cases: dict[str, Run]) -> dict[str, Run]:
    missing = {each for each in ("numba", "heyoka") if importlib.util.find_spec(each) is None}
    for each in sorted(missing):
        print(f"  {each} is not installed: its cases are left out")
    return {name: run for name, run in cases.items() if not missing & {run.options.engine, run.options.broad_phase}}


if __name__ == "__main__":
    main()
