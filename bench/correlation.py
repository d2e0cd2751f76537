"""How often correlations are right: simulated truth on the full catalogue, by sensor and orbit class, with causes of errors.

It only prints figures. It simulates scenes of some minutes at several ages of the element sets, in each of the three truths
of ``tests.scenes.truth``. A share of the objects is removed from the catalogue; observations of them should be UCTs. For every
observation with another outcome it prints the cause, and it names the objects with the most of them. ``d2/m`` is the mean
squared Mahalanobis distance of right correlations per measured component: 1 if the assumed covariance is correct, less if it
is too wide.

``--throughput`` measures the speed instead (``correlation_speed``).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import get_args

from bench import correlation_speed
from sda_ops.astro.time import NS_PER_DAY
from sda_ops.catalog import ElementSet
from sda_ops.records.observation import SourceKind
from tests.scenes.truth import (
    REAL_CATALOG,
    REAL_EPOCH_NS,
    Evaluated,
    OrbitClass,
    Outcome,
    Rates,
    Scene,
    Truth,
    catalog,
    orbit_class,
    scene,
)

OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
NEAR_M = (1e3, 5e3, 20e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--catalog", type=Path, default=REAL_CATALOG, help="any catalogue file (default: the real one)")
    parser.add_argument(
        "--truth", nargs="+", choices=get_args(Truth), default=get_args(Truth), help="default: all three"
    )
    parser.add_argument(
        "--days", nargs="+", type=float, default=[0.5, 1.5, 3.0], help="days after 2026-03-10T04Z, one scene each"
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="simulated time of each scene (default: 3)")
    parser.add_argument(
        "--rates", nargs=3, type=float, default=[180.0, 60.0, 80.0], metavar=("RADAR", "OPTICAL", "ISL")
    )
    parser.add_argument(
        "--missing", type=float, default=0.05, help="share of objects removed from the catalogue (default: 0.05)"
    )
    parser.add_argument("--seed", type=int, default=6)
    parser.add_argument("--offenders", type=int, default=12, help="objects to name in each truth (default: 12)")
    parser.add_argument("--throughput", action="store_true", help="measure the speed instead")
    parser.add_argument(
        "--rounds", type=int, default=7, help="rounds of --throughput, in which cases alternate (default: 7)"
    )
    args = parser.parse_args()
    if args.throughput:
        _in_one_thread()
        correlation_speed.measure(args.catalog, rounds=args.rounds, seed=args.seed)
        return
    element_sets, which = catalog(args.catalog)
    print(
        f"catalogue: {which}; {args.missing:.0%} of them missing; scenes of {args.minutes:g} min, {args.days} days after epoch"
    )
    for truth in args.truth:
        scenes = []
        for days in args.days:
            _progress(f"truth {truth}, {days:g} days after epoch …")
            at_ns = REAL_EPOCH_NS + round(days * NS_PER_DAY)
            rates = Rates(*args.rates)
            scenes.append(
                scene(
                    truth,
                    element_sets,
                    at_ns=at_ns,
                    length_s=args.minutes * 60.0,
                    rates=rates,
                    missing=args.missing,
                    seed=args.seed,
                )
            )
        show(truth, scenes, element_sets, args.days, args.offenders)


# The output.


def show(
    truth: Truth, scenes: Sequence[Scene], element_sets: Sequence[ElementSet], days: Sequence[float], offenders: int
) -> None:
    classes = {elements.catalog_number: orbit_class(elements) for elements in element_sets}
    names = {elements.catalog_number: elements.name for elements in element_sets}
    print(f"\n== truth: {truth} ==")
    for title, is_missing in (("in the catalogue", False), ("missing from it", True)):
        print(f"{title:22}{'number':>9}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES) + f"{'d2/m':>8}")
        groups = _grouped(scenes, classes, is_missing=is_missing)
        for (kind, orbit), evaluated in sorted(groups.items()):
            _row(f"  {kind:8} {orbit}", evaluated)
        for age, one in zip(days, scenes, strict=True):
            of_scene = _grouped([one], classes, is_missing=is_missing)
            for kind in get_args(SourceKind):
                _row(f"  {kind:8} all, day {age:g}", of_scene.get((kind, "all"), []))
    _explain(scenes, names, classes, offenders)


def _grouped(
    scenes: Sequence[Scene], classes: Mapping[int, OrbitClass], *, is_missing: bool
) -> dict[tuple[SourceKind, str], list[Evaluated]]:
    groups: dict[tuple[SourceKind, str], list[Evaluated]] = defaultdict(list)
    for one in scenes:
        for evaluated in one.evaluated:
            if (evaluated.seen.number in one.missing) == is_missing:
                for key in (classes[evaluated.seen.number], "all"):
                    groups[evaluated.kind, key].append(evaluated)
    return groups


def _row(title: str, group: Sequence[Evaluated]) -> None:
    if not group:
        return
    outcomes = Counter(evaluated.outcome for evaluated in group)
    shares = "".join(f"{outcomes[outcome] / len(group):>11.3%}" for outcome in OUTCOMES)
    right = [evaluated.correlation for evaluated in group if evaluated.outcome == "right"]
    fit = fmean((found.mahalanobis_squared or 0.0) / found.components for found in right) if right else 0.0
    print(f"{title:22}{len(group):>9,}{shares}" + (f"{fit:>8.2f}" if right else ""))


def _explain(
    scenes: Sequence[Scene], names: Mapping[int, str], classes: Mapping[int, OrbitClass], offenders: int
) -> None:
    """Print the causes of all wrong outcomes, and the objects with the most of them."""
    causes: dict[tuple[str, SourceKind], Counter[str]] = defaultdict(Counter)
    pairs: dict[tuple[int, int], list[float]] = defaultdict(list)
    alone: dict[int, list[Evaluated]] = defaultdict(list)
    for one in scenes:
        for evaluated in one.evaluated:
            number, time_ns = evaluated.seen.number, evaluated.correlation.sensor_timestamp
            is_missing = number in one.missing
            if evaluated.outcome == ("uct" if is_missing else "right"):
                continue
            group: str = "missing, but correlated" if is_missing else evaluated.outcome
            if not one.neighbours.known(number, time_ns):
                causes[group, evaluated.kind]["its element set is too old or gives no state"] += 1
                continue
            rival = _rival(evaluated)
            if rival is None:
                causes[group, evaluated.kind]["outside its own gate, and in no other gate"] += 1
                alone[number].append(evaluated)
                continue
            distance_m = one.neighbours.distance_m(number, rival, time_ns)
            within = next((f"within {bound / 1e3:g} km" for bound in NEAR_M if distance_m < bound), "farther")
            outside = "" if is_missing or number in evaluated.correlation.candidates else "outside its own gate; "
            causes[group, evaluated.kind][f"{outside}another one {within}"] += 1
            pairs[min(number, rival), max(number, rival)].append(distance_m)
    print("causes:")
    for (group, kind), counts in sorted(causes.items()):
        print(f"  {group} ({kind}): " + ", ".join(f"{count:,} {cause}" for cause, count in counts.most_common()))
    total = sum(map(len, pairs.values()))
    print(f"pairs of objects that can be confused: {total:,} observations of {len(pairs):,} pairs; those with most:")
    for (one_number, other), distances_m in sorted(pairs.items(), key=lambda item: -len(item[1]))[:offenders]:
        print(
            f"  {len(distances_m):>5}  {names[one_number]} ({one_number}, {classes[one_number]}) and {names[other]} ({other}),"
            f" {median(distances_m) / 1e3:.3f} km apart"
        )
    if alone:
        print(f"outside their own gates: {sum(map(len, alone.values())):,} of {len(alone):,} objects; those with most:")
        for number, found in sorted(alone.items(), key=lambda item: -len(item[1]))[: offenders // 2]:
            kinds = ", ".join(f"{count} {kind}" for kind, count in Counter(one.kind for one in found).items())
            neighbours = scenes[0].neighbours
            nearest, distance_m = neighbours.nearest(number, found[0].correlation.sensor_timestamp)
            print(
                f"  {len(found):>5}  {names[number]} ({number}, {classes[number]}): {kinds};"
                f" nearest {names[nearest]}, {distance_m / 1e3:,.1f} km"
            )


def _rival(evaluated: Evaluated) -> int | None:
    """The likeliest candidate other than the true object."""
    return next((number for number in evaluated.correlation.candidates if number != evaluated.seen.number), None)


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _in_one_thread() -> None:
    """Restart with one thread for numpy's libraries, which read these variables when they are loaded."""
    if os.environ.get("OMP_NUM_THREADS") != "1":
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        os.execve(sys.executable, [sys.executable, "-m", "bench.correlation", *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
