"""Screening in workers and assessment together: the records that the operator writes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from sda_ops.astro.time import NS_PER_S, Floats, julian_date
from sda_ops.records.conjunction import ConjunctionEstimate
from sda_ops.screening.assessment.assess import assess
from sda_ops.screening.assessment.orbit_classes import OrbitClass
from sda_ops.screening.conjunctions.estimates import estimates_of
from sda_ops.screening.conjunctions.screener import WorkerScreener
from sda_ops.screening.geometry.screen import screen
from sda_ops.screening.objects import ScreenedObjects
from sda_ops.screening.workers.windows import WorkerLimits
from tests.helpers.mixed_objects import rows_of
from tests.sda_ops.screening.small_catalog import HORIZON, MISS_M, OPTIONS, START_NS, WINDOW, small_catalog
from tests.sda_ops.screening.workers.test_windows import InlineWorkers

END_NS = START_NS + HORIZON // timedelta(microseconds=1) * 1_000


@pytest.fixture(scope="module")
def objects() -> ScreenedObjects:
    """Sorted by catalogue number, as the operator makes them."""
    some = small_catalog()
    return rows_of(some, np.argsort(some.columns.catalog_number))


def screener() -> WorkerScreener:
    return WorkerScreener(
        workers=InlineWorkers(), miss_distance_m=MISS_M, window=WINDOW, options=OPTIONS, limits=WorkerLimits()
    )


async def test_the_records_are_those_of_a_screening_in_one_piece(objects: ScreenedObjects) -> None:
    found = await screener().screen(objects, START_NS, END_NS, None)
    whole = screen(objects, START_NS, HORIZON, MISS_M, options=OPTIONS)
    assert len(found.estimates) == len(whole.approaches) > 20
    assert [each.tca_timestamp for each in found.estimates] == pytest.approx(
        whole.approaches.tca_ns.tolist(), abs=1_000
    )
    assert [each.miss_m for each in found.estimates] == pytest.approx(whole.approaches.miss_m.tolist(), abs=1e-3)
    assert len(found.slow_pairs) == len(whole.slow_pairs) > 0
    numbers = objects.columns.catalog_number
    slow = zip(numbers[whole.slow_pairs.first].tolist(), numbers[whole.slow_pairs.second].tolist(), strict=True)
    assert set(found.slow_pairs) == set(slow)
    for each, i, j in zip(found.estimates, whole.approaches.first, whole.approaches.second, strict=True):
        assert (each.catalog_number_first, each.catalog_number_second) == (numbers[i], numbers[j])
        assert each.catalog_number_first < each.catalog_number_second
        parts_m = (each.miss_radial_m, each.miss_in_track_m, each.miss_cross_track_m)
        assert np.linalg.norm(parts_m) == pytest.approx(each.miss_m, abs=0.01)
        assert each.epoch_first_timestamp == objects.columns.epoch_ns[i]
        assert each.age_second_s == pytest.approx(
            (each.tca_timestamp - each.epoch_second_timestamp) / NS_PER_S, abs=1e-6
        )
        assert 0.0 < each.max_probability <= 1.0
        assert each.orbit_class_first in OrbitClass.__members__
        assert each.probability is None


async def test_the_states_are_those_of_the_element_sets_at_the_closest_approach(objects: ScreenedObjects) -> None:
    """SGP4 itself has the position; the velocity is the position's derivative: the distance does not change at that time."""
    numbers = objects.columns.catalog_number.tolist()
    for each in (await screener().screen(objects, START_NS, END_NS, None)).estimates:
        state = states_of(each)
        for which, number in enumerate((each.catalog_number_first, each.catalog_number_second)):
            row = numbers.index(number)
            jd, fraction = julian_date(np.array([each.tca_timestamp]))
            _, r_km, v_km_s = objects.satrecs[row].sgp4(jd[0], fraction[0])
            assert state[which, 0] == pytest.approx(np.multiply(r_km, 1e3), abs=1e-3)
            assert state[which, 1] == pytest.approx(np.multiply(v_km_s, 1e3), abs=20.0)  # SGP4's own is less accurate
        relative_m, relative_m_s = state[1] - state[0]
        assert np.linalg.norm(relative_m) == pytest.approx(each.miss_m, abs=1e-3)
        assert np.linalg.norm(relative_m_s) == pytest.approx(each.relative_speed_m_s, abs=1e-2)
        assert abs(relative_m @ relative_m_s) < 1e-3 * each.relative_speed_m_s**2  # within a millisecond of the minimum
        row = numbers.index(each.catalog_number_second)
        assert each.designator_second == objects.designators[row]


def states_of(estimate: ConjunctionEstimate) -> Floats:
    """``(2, 2, 3)``: position and velocity of the first object, and of the second."""
    axes = ("x_m", "y_m", "z_m", "vx_m_s", "vy_m_s", "vz_m_s")
    values = [getattr(estimate, f"{which}_{axis}") for which in ("first", "second") for axis in axes]
    return np.array(values, dtype=np.float64).reshape(2, 2, 3)


async def test_one_object_against_all_gives_its_part_of_the_records(objects: ScreenedObjects) -> None:
    every = await screener().screen(objects, START_NS, END_NS, None)
    row = int(np.flatnonzero(objects.columns.catalog_number == every.estimates[0].catalog_number_second)[0])
    number = int(objects.columns.catalog_number[row])
    part = await screener().screen(objects, START_NS, END_NS, np.array([row]))
    expected = [each for each in every.estimates if number in (each.catalog_number_first, each.catalog_number_second)]
    assert [each.catalog_number_first for each in part.estimates] == [each.catalog_number_first for each in expected]
    assert [each.tca_timestamp for each in part.estimates] == pytest.approx(
        [each.tca_timestamp for each in expected], abs=1_000
    )


async def test_an_object_that_decays_is_named_with_time_and_reason(objects: ScreenedObjects) -> None:
    found = await screener().screen(objects, START_NS, END_NS, None)
    (why,) = found.unscreened
    named, _, rest = why.partition(" from ")
    when, _, reason = rest.partition(": ")
    assert int(named.split()[0]) in objects.columns.catalog_number
    began = datetime.fromisoformat(when)
    start = datetime.fromtimestamp(START_NS // NS_PER_S, UTC)
    assert start <= began < start + HORIZON
    assert len(reason.split()) > 2
    (without,) = found.without_position
    assert without.catalog_number == int(named.split()[0])
    assert without.from_ns // NS_PER_S == int(began.timestamp())
    assert without.until_ns > without.from_ns


def test_objects_that_are_not_sorted_are_rejected(objects: ScreenedObjects) -> None:
    reverse = rows_of(objects, np.arange(len(objects))[::-1])
    approaches = screen(reverse, START_NS, WINDOW, MISS_M, options=OPTIONS).approaches
    with pytest.raises(ValueError, match="sorted by catalogue number"):
        estimates_of(reverse, assess(reverse, approaches))
