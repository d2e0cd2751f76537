"""Identities over successive days: the element sets of a catalogue, and new ones of the same objects on each later day.

Usage: ``python -m bench.conjunction_identity [--objects N] [--days N] [--horizon HOURS] [--miss KM]``. The catalogue is the
real one of March 2026. On each later day every orbit is propagated, refitted at a new epoch some 0.6 to 1.4 days later, and
perturbed by the assumed errors of element sets (``tests/scenes/successive_days.py``). Each day is screened over the same times
that the days before have covered, and one day more, and recorded in a table of conjunctions.

It prints how many conjunctions were found again, how far their times moved, how many are new and how many withdrawn. It checks
that every estimate of the table is nearest in time to its own conjunction, and that no two conjunctions of two objects are
within twenty minutes of each other. The exit code is 1 if one is.

Each day is also recorded in a table of its own, as by another process that begins on that day. It prints how many of the
conjunctions that two such tables share have different ids, and what is to be expected: an id has a bucket of the time, so the
two differ if a bucket's edge lies between two estimates; with edges anywhere, the probability is the mean distance of two
estimates over the width. It prints the same for narrower buckets, in which this happens often enough to be compared.
"""

from __future__ import annotations

import argparse
import sqlite3
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sda_ops.astro.time import NS_PER_DAY, NS_PER_S, Nanoseconds
from sda_ops.catalog.columns import ElementColumns
from sda_ops.catalog.history import selected
from sda_ops.catalog.reader import nearest_of_each, read_catalog
from sda_ops.records.ids import ENCOUNTER_BUCKET_NS
from sda_ops.screening.assessment.assess import assess
from sda_ops.screening.conjunctions.conjunction_table import ConjunctionTable, Screened
from sda_ops.screening.conjunctions.estimates import estimates_of
from sda_ops.screening.conjunctions.identity import REACH_NS, Encounters, match
from sda_ops.screening.geometry.screen import screen
from sda_ops.screening.objects import ScreenedObjects
from tests.helpers.mixed_objects import CATALOG
from tests.scenes.successive_days import a_day_later

_QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)
_NARROW_NS = (1 * NS_PER_S, 10 * NS_PER_S, 60 * NS_PER_S, 600 * NS_PER_S)


def days_of(objects: ScreenedObjects, days: int, rng: np.random.Generator) -> Iterator[ScreenedObjects]:
    """The objects with the element sets of each day."""
    columns = objects.columns
    for day in range(days):
        if day:
            columns, failed = a_day_later(columns, rng)
            print(f"day {day + 1}: {len(columns) - failed} objects refitted, {failed} keep their old set")
        yield ScreenedObjects(columns, objects.names, objects.designators)


def sorted_objects(path: Path, count: int | None, rng: np.random.Generator) -> ScreenedObjects:
    """The catalogue's objects, or some of them, by catalogue number."""
    sets = sorted(nearest_of_each(read_catalog(path), 0).element_sets, key=lambda each: each.catalog_number)
    objects = ScreenedObjects.of(sets)
    if count is None or count >= len(objects):
        return objects
    rows = np.sort(rng.choice(len(objects), count, replace=False))
    return ScreenedObjects(
        selected(objects.columns, rows),
        tuple(objects.names[row] for row in rows.tolist()),
        tuple(objects.designators[row] for row in rows.tolist()),
    )


def start_of(columns: ElementColumns) -> int:
    """The first whole hour after nine of ten epochs."""
    hour_ns = 3_600 * NS_PER_S
    return int(np.quantile(columns.epoch_ns, 0.9)) // hour_ns * hour_ns + hour_ns


def moved_s(path: Path) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """By how much the time of each active conjunction has moved from one estimate to the next, seconds."""
    with sqlite3.connect(path) as db:
        rows = db.execute(
            "SELECT b.tca_timestamp - a.tca_timestamp FROM updates a JOIN updates b "
            "ON a.conjunction = b.conjunction AND b.revision = a.revision + 1 "
            "WHERE a.status = 'active' AND b.status = 'active'"
        ).fetchall()
    return np.abs(np.array(rows, dtype=np.float64).reshape(-1)) / NS_PER_S


def faults(path: Path) -> tuple[int, int, float]:
    """Conjunctions of two objects within reach of each other; estimates nearer to another one; the smallest spacing, minutes."""
    by_pair: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    estimates: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    with sqlite3.connect(path) as db:
        for number, one, other, tca_ns in db.execute(
            "SELECT number, catalog_number_first, catalog_number_second, tca_timestamp FROM conjunctions"
        ):
            by_pair[one, other].append((tca_ns, number))
        for number, one, other, tca_ns in db.execute(
            "SELECT conjunction, catalog_number_first, catalog_number_second, tca_timestamp FROM updates"
        ):
            estimates[one, other].append((tca_ns, number))
    close, foreign, smallest = 0, 0, np.inf
    for pair, conjunctions in by_pair.items():
        times = np.array(sorted(tca_ns for tca_ns, _ in conjunctions))
        if len(times) > 1:
            gaps = np.diff(times)
            close += int((gaps <= REACH_NS).sum())
            smallest = min(smallest, float(gaps.min()) / NS_PER_S / 60.0)
        for tca_ns, number in estimates[pair]:
            nearest = min(conjunctions, key=lambda each: abs(each[0] - tca_ns))
            foreign += nearest[1] != number
    return close, foreign, smallest


@dataclass(frozen=True, slots=True)
class SharedConjunctions:
    """Conjunctions that two tables have made an id for, each by itself.

    Attributes:
        one_ns: ``(n,)``, the times of closest approach of one table's first estimates.
        other_ns: ``(n,)``, those of the other table.
        same_id: ``(n,)``.
    """

    one_ns: Nanoseconds
    other_ns: Nanoseconds
    same_id: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, pairs: Sequence[tuple[Path, Path]]) -> SharedConjunctions:
        """Those of all pairs of tables."""
        times, same = [], []
        for one, other in pairs:
            (known, known_ids), (found, found_ids) = _minted(one), _minted(other)
            matching = match(known, found)
            times.append((known.tca_ns[matching.known], found.tca_ns[matching.found]))
            same.append(known_ids[matching.known] == found_ids[matching.found])
        one_ns, other_ns = (np.concatenate(each) for each in zip(*times, strict=True))
        return cls(one_ns, other_ns, np.concatenate(same))

    def in_different_buckets(self, width_ns: int) -> tuple[int, float]:
        """How many would be with this width, and how many are to be expected with edges anywhere."""
        apart_ns = np.abs(self.one_ns - self.other_ns)
        differ = int((self.one_ns // width_ns != self.other_ns // width_ns).sum())
        return differ, float(np.minimum(apart_ns / width_ns, 1.0).sum())


def _minted(path: Path) -> tuple[Encounters, npt.NDArray[np.str_]]:
    with sqlite3.connect(path) as db:
        rows = db.execute(
            "SELECT catalog_number_first, catalog_number_second, tca_timestamp, id FROM conjunctions"
        ).fetchall()
    one, other, tca_ns = np.array([row[:3] for row in rows], dtype=np.int64).reshape(-1, 3).T
    return Encounters(one, other, tca_ns), np.array([row[3] for row in rows], dtype=np.str_)


def main() -> int:
    """Print the figures. Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=None, help="a random part of the catalogue (default: all)")
    parser.add_argument("--days", type=int, default=2, help="how many days (default: %(default)s)")
    parser.add_argument("--horizon", type=float, default=48.0, help="of each screening, hours (default: %(default)s)")
    parser.add_argument("--miss", type=float, default=5.0, help="miss distance, km (default: %(default)s)")
    args = parser.parse_args()
    rng = np.random.default_rng(2026)
    objects = sorted_objects(CATALOG, args.objects, rng)
    start_ns = start_of(objects.columns)
    horizon = timedelta(hours=args.horizon)
    with tempfile.TemporaryDirectory() as folder:
        table = ConjunctionTable(Path(folder) / "conjunctions.sqlite")
        table.open()
        of_days: list[Path] = []
        for day, of_day in enumerate(days_of(objects, args.days, rng)):
            began = time.process_time()
            now_ns = start_ns + day * NS_PER_DAY
            screening = screen(of_day, now_ns - 2 * REACH_NS, horizon + timedelta(minutes=40), args.miss * 1_000.0)
            estimates = estimates_of(of_day, assess(of_day, screening.approaches))
            screened_s, began = time.process_time() - began, time.process_time()
            alone = ConjunctionTable(Path(folder) / f"day-{day}.sqlite")
            alone.open()
            alone.record(estimates, Screened(screening.start_ns, screening.end_ns), now_ns)
            alone.close()
            of_days.append(alone.path)
            table.mark_passed(now_ns)
            recorded = table.record(estimates, Screened(screening.start_ns, screening.end_ns), now_ns)
            print(
                f"day {day + 1}: {len(estimates)} approaches of {len(of_day)} objects in {args.horizon:g} h below "
                f"{args.miss:g} km; new {recorded.new}, found again {recorded.updated + recorded.unchanged}, "
                f"withdrawn {recorded.withdrawn} (CPU: screening {screened_s:.1f} s, table {time.process_time() - began:.1f} s)"
            )
        table.close()
        moved = moved_s(table.path)
        if len(moved):
            named = ", ".join(
                f"{q:.1%} {value:.3f}" for q, value in zip(_QUANTILES, np.quantile(moved, _QUANTILES), strict=True)
            )
            print(f"|change of the time of closest approach| of {len(moved)} matches, s: {named}")
        if len(of_days) > 1:
            shared = SharedConjunctions.of(list(pairwise(of_days)))
            print(f"conjunctions that two tables of successive days have in common: {len(shared.same_id)}")
            print(f"of these with different ids: {int((~shared.same_id).sum())}")
            for width_ns in (*_NARROW_NS, ENCOUNTER_BUCKET_NS):
                differ, expected = shared.in_different_buckets(width_ns)
                share = expected / len(shared.same_id)
                print(
                    f"in different buckets of {width_ns / NS_PER_S:g} s: {differ}, expected {expected:.2f} ({share:.1e} of them)"
                )
        close, foreign, smallest = faults(table.path)
        print(f"smallest spacing of two conjunctions of two objects: {smallest:.1f} min")
        print(f"conjunctions within {REACH_NS / NS_PER_S / 60:g} min of another one of the same objects: {close}")
        print(f"estimates that are nearer to another conjunction than to their own: {foreign}")
    return 1 if close or foreign else 0


if __name__ == "__main__":
    raise SystemExit(main())
