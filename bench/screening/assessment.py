"""What the assessment of close approaches costs, and how many reach which maximum probability. It only prints figures.

Usage: ``python -m bench.screening.assessment [--catalog FILE] [--hours H] [--miss-km D] [--rounds N]``. One screening of the
catalogue gives the approaches; then CPU time of the assessment alone, one thread, medians of the rounds. Kinds of slow pairs
are those of a horizon of at least six hours.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from statistics import median

import numpy as np

from sda_ops.catalog.reader import newest_of_each, read_catalog
from sda_ops.propagation.uncertainty import ElementSetErrors
from sda_ops.screening.assessment.assess import Conjunctions, assess
from sda_ops.screening.assessment.assumptions import Assumptions
from sda_ops.screening.assessment.formations import PairKind, assess_slow_pairs
from sda_ops.screening.assessment.orbit_classes import OrbitClass
from sda_ops.screening.geometry.screen import screen
from sda_ops.screening.objects import ScreenedObjects
from tests.helpers.support import SDA_DATA_DIR

ACTIVE = SDA_DATA_DIR / "catalog/celestrak_active_2026-03.csv"
THRESHOLDS = (1e-2, 1e-3, 1e-4, 1e-5)


def cpu_s(call: Callable[[], object], rounds: int) -> float:
    figures = []
    for _ in range(rounds):
        started = time.process_time()
        call()
        figures.append(time.process_time() - started)
    return median(figures)


def print_counts(found: Conjunctions) -> None:
    print("Pmax at least        " + "".join(f"{threshold:>9.0e}" for threshold in THRESHOLDS))
    for name, rows in (("all", np.ones(len(found), dtype=np.bool_)), ("without fleets", found.listed)):
        counts = [int((found.max_probability[rows] >= threshold).sum()) for threshold in THRESHOLDS]
        print(f"{name:21}" + "".join(f"{count:9,}" for count in counts))
    pairs = Counter(
        "-".join(sorted((OrbitClass(first).name, OrbitClass(second).name)))
        for first, second in zip(found.orbit_class_first.tolist(), found.orbit_class_second.tolist(), strict=True)
    )
    print("by class:", ", ".join(f"{name} {count:,}" for name, count in pairs.most_common(6)))
    fleets = Counter(found.fleets[index] for index in found.fleet_first[found.same_fleet].tolist())
    print("inside a fleet:", ", ".join(f"{name} {count:,}" for name, count in fleets.most_common(6)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--catalog", type=Path, default=ACTIVE)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--miss-km", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    objects = ScreenedObjects.of(newest_of_each(read_catalog(args.catalog)).element_sets)
    start_ns = int(np.median(objects.columns.epoch_ns))
    screening = screen(objects, start_ns, timedelta(hours=args.hours), args.miss_km * 1e3)
    approaches, slow = screening.approaches, screening.slow_pairs
    print(f"{len(objects):,} objects, {args.hours:g} h, {args.miss_km:g} km: {len(approaches):,} approaches")
    assessed_slow = assess_slow_pairs(objects, slow)
    with_errors = Assumptions(errors=ElementSetErrors())
    for name, call in (
        ("maximum probability", lambda: assess(objects, approaches, slow_pairs=assessed_slow)),
        ("and Foster's", lambda: assess(objects, approaches, slow_pairs=assessed_slow, assumptions=with_errors)),
        (f"{len(slow):,} slow pairs", lambda: assess_slow_pairs(objects, slow)),
    ):
        print(f"{name:20} {cpu_s(call, args.rounds):6.3f} s of CPU")
    print_counts(assess(objects, approaches, slow_pairs=assessed_slow))
    kinds = Counter(PairKind(kind).name.lower() for kind in assessed_slow.kind.tolist())
    print("slow pairs:", ", ".join(f"{count} {name}" for name, count in kinds.most_common()))


if __name__ == "__main__":
    main()
