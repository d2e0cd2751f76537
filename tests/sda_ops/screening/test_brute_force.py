"""The list of close approaches compared with that of brute force: every pair at every second, then SGP4's own minimum."""

from __future__ import annotations

from datetime import timedelta

import pytest

from sda_ops.screening.geometry.screen import ScreeningOptions, screen
from tests.helpers.brute_force import BruteForce, brute_force
from tests.helpers.mixed_objects import START_NS, mixed, needs_real_catalog
from tests.helpers.screening_comparison import compared
from tests.helpers.sizes import small_and_long

MISS_M = (5e3, 20e3, 50e3)

pytestmark = [needs_real_catalog, pytest.mark.usefixtures("numba_once")]


@small_and_long(
    ("count", "hours", "seed"),
    (350, 0.75, 3),
    *((300, 24.0, seed) for seed in range(4, 7)),
    (450, 1.0, 1),
    (1_000, 2.0, 2),
)
def test_no_approach_is_missed_and_none_is_invented(count: int, hours: float, seed: int) -> None:
    objects = mixed(count, seed)
    start_ns = START_NS + seed * 17_123_456_789
    horizon = timedelta(hours=hours)
    truth = brute_force(objects.satrecs, start_ns, start_ns + round(hours * 3600e9), max(MISS_M))
    assert len(truth.fast(max(MISS_M))) > 20
    assert truth.slow(max(MISS_M)) or truth.contacts
    assert truth.failed_s, "no object of this population decays"
    for miss_m in MISS_M:
        for broad_phase in ("auto", "scipy") if miss_m == max(MISS_M) else ("auto",):
            options = ScreeningOptions(broad_phase=broad_phase)
            screening = screen(objects, start_ns, horizon, miss_m, options=options)
            comparison = compared(truth, screening, objects.satrecs)
            assert comparison.faults == "", f"{miss_m / 1e3:g} km, {broad_phase}"
            assert comparison.found == comparison.expected
            assert comparison.tca_s <= 1e-3
            assert comparison.range_m <= 1e-3
    _objects_that_end_are_reported(truth, {each.row for each in screening.ended})


def _objects_that_end_are_reported(truth: BruteForce, ended: set[int]) -> None:
    assert set(truth.failed_s) == ended
