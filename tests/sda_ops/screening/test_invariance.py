"""The list does not depend on how it is computed: slices, windows, broad phase, engine, order of the objects, knots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

import numpy as np
import pytest

from sda_ops.astro.propagation import Engine
from sda_ops.screening.approaches import Screening
from sda_ops.screening.geometry.broad import BroadPhaseName
from sda_ops.screening.geometry.screen import ScreeningOptions, merged, screen, screen_window
from sda_ops.screening.objects import ScreenedObjects
from tests.helpers.mixed_objects import START_NS, mixed, needs_real_catalog, rows_of
from tests.helpers.screening_comparison import same_list
from tests.helpers.sizes import LONG

pytestmark = [needs_real_catalog, pytest.mark.usefixtures("numba_once")]

COUNT, HOURS = (1_000, 6.0) if LONG else (300, 0.75)
MISS_M = 50e3
HORIZON = timedelta(hours=HOURS)
FROM_NS = START_NS + 7_654_321_987  # on no boundary of slices or knots
UNTIL_NS = FROM_NS + round(HOURS * 3600e9)
PLAIN = ScreeningOptions(broad_phase="scipy", engine="sgp4")


@pytest.fixture(scope="module")
def objects() -> ScreenedObjects:
    return mixed(COUNT, 11)


@pytest.fixture(scope="module")
def reference(objects: ScreenedObjects) -> Screening:
    screening = screen(objects, FROM_NS, HORIZON, MISS_M, options=PLAIN)
    assert len(screening.approaches) > 20
    assert len(screening.slow_pairs) > 3
    assert screening.ended
    return screening


@pytest.mark.parametrize("slice_s", [20.0, 45.0, 120.0])
def test_the_length_of_a_slice_does_not_change_the_list(
    objects: ScreenedObjects, reference: Screening, slice_s: float
) -> None:
    screening = screen(objects, FROM_NS, HORIZON, MISS_M, options=replace(PLAIN, slice_s=slice_s))
    assert same_list(reference, screening, objects.satrecs) == ""


@pytest.mark.parametrize(("broad_phase", "engine"), [("numba", "sgp4"), ("scipy", "heyoka"), ("auto", "auto")])
def test_both_broad_phases_and_both_engines_give_the_same_list(
    objects: ScreenedObjects, reference: Screening, broad_phase: BroadPhaseName, engine: Engine
) -> None:
    for module in {broad_phase, engine} & {"numba", "heyoka"}:
        pytest.importorskip(module)
    options = ScreeningOptions(broad_phase=broad_phase, engine=engine)
    assert same_list(reference, screen(objects, FROM_NS, HORIZON, MISS_M, options=options), objects.satrecs) == ""


@pytest.mark.parametrize("seed", range(8) if LONG else range(2))
def test_any_cut_into_windows_gives_the_same_list(objects: ScreenedObjects, reference: Screening, seed: int) -> None:
    assert same_list(reference, merged(list(_windows(objects, reference, seed))), objects.satrecs) == ""


def _windows(objects: ScreenedObjects, reference: Screening, seed: int) -> Iterator[Screening]:
    """Windows that tile, cut at random times and at one time of closest approach."""
    rng = np.random.default_rng(seed)
    cuts = [*rng.integers(FROM_NS, UNTIL_NS, 3).tolist(), int(rng.choice(reference.approaches.tca_ns))]
    edges = [FROM_NS, *sorted(cuts), UNTIL_NS]
    for start_ns, end_ns in pairwise(edges):
        yield screen_window(objects, start_ns, end_ns, MISS_M, PLAIN)


def test_the_order_of_the_objects_does_not_change_the_list(objects: ScreenedObjects, reference: Screening) -> None:
    order = np.random.default_rng(3).permutation(len(objects))
    screening = screen(rows_of(objects, order), FROM_NS, HORIZON, MISS_M, options=PLAIN)
    approaches = screening.approaches
    one, other = order[approaches.first], order[approaches.second]
    found = sorted(zip(np.minimum(one, other).tolist(), np.maximum(one, other).tolist(), strict=True))
    expected = sorted(zip(reference.approaches.first.tolist(), reference.approaches.second.tolist(), strict=True))
    assert found == expected
    np.testing.assert_allclose(np.sort(approaches.miss_m), np.sort(reference.approaches.miss_m), atol=1e-3)
    assert sorted(order[each.row] for each in screening.ended) == sorted(each.row for each in reference.ended)


def test_a_smaller_distance_gives_the_part_of_the_list_within_it(
    objects: ScreenedObjects, reference: Screening
) -> None:
    for miss_m in (10e3, 30e3):
        screening = screen(objects, FROM_NS, HORIZON, miss_m, options=PLAIN)
        within = reference.approaches.miss_m <= miss_m
        assert within.any()
        assert screening.approaches.first.tolist() == reference.approaches.first[within].tolist()
        assert screening.approaches.second.tolist() == reference.approaches.second[within].tolist()
        np.testing.assert_allclose(screening.approaches.tca_ns, reference.approaches.tca_ns[within], atol=1e6, rtol=0)


def test_a_run_with_too_long_knots_says_so_repeats_and_has_the_same_list(
    objects: ScreenedObjects, reference: Screening
) -> None:
    screening = screen(objects, FROM_NS, HORIZON, MISS_M, options=replace(PLAIN, knot_s=960.0))
    assert screening.statistics.repeated > 0
    assert screening.statistics.interpolation_error_m <= screening.statistics.interpolation_bound_m
    assert same_list(reference, screening, objects.satrecs) == ""


def test_the_interpolation_error_of_every_run_is_reported_and_within_its_bound(reference: Screening) -> None:
    statistics = reference.statistics
    assert 0.0 < statistics.interpolation_error_m <= statistics.interpolation_bound_m
    assert statistics.candidates >= len(reference.approaches)
