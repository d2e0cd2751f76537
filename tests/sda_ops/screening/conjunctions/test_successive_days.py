"""Element sets of successive days: identities stay. ``python -m bench.conjunction_identity`` does it with the whole catalogue."""

from __future__ import annotations

from datetime import timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from bench.conjunction_identity import faults, moved_s
from sda_ops.astro.time import NS_PER_DAY, julian_date
from sda_ops.propagation.uncertainty import ElementSetErrors
from sda_ops.screening.assessment.assess import assess
from sda_ops.screening.conjunctions.conjunction_table import ConjunctionTable, Screened
from sda_ops.screening.conjunctions.estimates import estimates_of
from sda_ops.screening.conjunctions.identity import REACH_NS
from sda_ops.screening.geometry.screen import ScreeningOptions, screen
from sda_ops.screening.objects import ScreenedObjects
from tests.helpers.mixed_objects import START_NS, needs_real_catalog, real_objects, rows_of
from tests.helpers.sizes import small_and_long
from tests.scenes.successive_days import a_day_later, perturbed, refitted

OPTIONS = ScreeningOptions(broad_phase="scipy")
pytestmark = needs_real_catalog


@cache
def starlinks(count: int) -> ScreenedObjects:
    """So many Starlinks of nearly one height, which meet each other often, sorted by catalogue number."""
    objects = real_objects()
    named = np.flatnonzero([name.startswith("STARLINK") for name in objects.names])
    by_height = named[np.argsort(objects.columns.no_kozai[named])]
    chosen = by_height[len(by_height) // 2 :][:count]
    return rows_of(objects, chosen[np.argsort(objects.columns.catalog_number[chosen])])


def test_a_refitted_element_set_has_the_state_of_the_old_one_at_its_epoch_and_near_its_orbit_after_it() -> None:
    objects = rows_of(real_objects(), np.random.default_rng(3).choice(len(real_objects()), 200, replace=False))
    later_ns = np.full(len(objects), NS_PER_DAY)
    fit = refitted(objects.columns, later_ns)
    assert fit.converged.mean() > 0.95
    new = fit.columns
    moved_ns = new.epoch_ns - objects.columns.epoch_ns
    assert np.abs(moved_ns[fit.converged] - NS_PER_DAY).max() < 50_000  # the split of an epoch has 40 microseconds
    jd, fraction = julian_date(objects.columns.epoch_ns + NS_PER_DAY + NS_PER_DAY // 4)
    apart_km = [
        np.linalg.norm(np.subtract(a.sgp4(j, f)[1], b.sgp4(j, f)[1]))
        for a, b, j, f in zip(objects.columns.satrecs(), new.satrecs(), jd, fraction, strict=True)
    ]
    assert np.median(np.array(apart_km)[fit.converged]) < 0.5


def test_the_errors_of_a_fit_are_those_that_are_assumed() -> None:
    """The whole errors are a few hundred metres at the epoch: 500 m in-track, 120 m radial, 140 m across."""
    objects = starlinks(300)
    new = perturbed(objects.columns, ElementSetErrors(), np.random.default_rng(1))
    jd, fraction = julian_date(objects.columns.epoch_ns)
    apart_m = [
        1_000 * np.linalg.norm(np.subtract(a.sgp4(j, f)[1], b.sgp4(j, f)[1]))
        for a, b, j, f in zip(objects.columns.satrecs(), new.satrecs(), jd, fraction, strict=True)
    ]
    expected_m = np.sqrt(500.0**2 + 120.0**2 + 140.0**2)
    assert np.sqrt(np.mean(np.square(apart_m))) == pytest.approx(expected_m, rel=0.15)


@small_and_long(("count", "days"), (200, 2), (1_500, 3))
def test_conjunctions_keep_their_ids_from_day_to_day_and_none_is_minted_twice(
    tmp_path: Path, count: int, days: int
) -> None:
    rng = np.random.default_rng(7)
    table = ConjunctionTable(tmp_path / "conjunctions.sqlite")
    table.open()
    objects = starlinks(count)
    horizon = timedelta(hours=28)
    found_again = withdrawn = 0
    for day in range(days):
        if day:
            objects = ScreenedObjects(a_day_later(objects.columns, rng)[0], objects.names, objects.designators)
        now_ns = START_NS + day * NS_PER_DAY
        screening = screen(objects, now_ns - 2 * REACH_NS, horizon, 50_000.0, options=OPTIONS)
        estimates = estimates_of(objects, assess(objects, screening.approaches))
        recorded = table.record(estimates, Screened(screening.start_ns, screening.end_ns), now_ns)
        assert recorded.new > 0
        found_again += recorded.updated
        withdrawn += recorded.withdrawn
    table.close()
    assert found_again > 10 * (days - 1)
    assert withdrawn < found_again
    close, foreign, _ = faults(table.path)
    assert (close, foreign) == (0, 0)
    assert np.quantile(moved_s(table.path), 0.9) < 1.0
