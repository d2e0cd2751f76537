"""What is screened next."""

from __future__ import annotations

from datetime import timedelta

import numpy as np

from sda_ops.catalog.columns import ElementColumns
from sda_ops.catalog.history import selected
from sda_ops.catalog.synthetic import synthetic_catalog
from sda_ops.screening.conjunctions.coverage import (
    Coverage,
    CoveragePlan,
    ScreenAll,
    ScreenChanged,
    changed_objects,
    covered_after,
    next_step,
    seconds_to_next_window,
)
from sda_ops.screening.objects import ScreenedObjects

MINUTE = 60 * 10**9
HOUR = 60 * MINUTE
T0 = 492_000 * HOUR  # a multiple of three hours
PLAN = CoveragePlan(horizon=timedelta(hours=6), window=timedelta(hours=3), all_above=3)
OBJECTS = ScreenedObjects.of(synthetic_catalog(objects=12, epoch_ns=T0))


def rows_of(rows: list[int]) -> ScreenedObjects:
    """Some of the objects."""
    names = tuple("" for _ in rows)
    return ScreenedObjects(selected(OBJECTS.columns, rows), names, names)


def moved(rows: list[int]) -> ScreenedObjects:
    """All objects, of which these have another mean anomaly."""
    arrays = {name: column.copy() for name, column in OBJECTS.columns.arrays().items()}
    arrays["mo"][rows] += 1e-9
    return ScreenedObjects(ElementColumns.from_arrays(arrays), OBJECTS.names, OBJECTS.designators)


def test_at_first_everything_is_screened_in_whole_windows_that_begin_twenty_minutes_before_now() -> None:
    assert next_step(None, OBJECTS, T0 + 10 * MINUTE, PLAN) == ScreenAll(T0 - 3 * HOUR, T0 + 9 * HOUR)
    assert next_step(None, OBJECTS, T0 + 20 * MINUTE, PLAN) == ScreenAll(T0, T0 + 9 * HOUR)


def test_nothing_is_screened_until_the_horizon_reaches_the_end() -> None:
    coverage = Coverage(OBJECTS, T0, T0 + 9 * HOUR)
    assert next_step(coverage, OBJECTS, T0 + 3 * HOUR, PLAN) is None
    assert seconds_to_next_window(coverage, T0 + HOUR, PLAN) == 2 * 3_600
    later = T0 + 3 * HOUR + 1
    step = next_step(coverage, OBJECTS, later, PLAN)
    assert step == ScreenAll(T0 + 9 * HOUR - 40 * MINUTE, T0 + 12 * HOUR)
    after = covered_after(step, coverage, OBJECTS)
    assert next_step(after, OBJECTS, later, PLAN) is None


def test_a_few_changed_objects_are_screened_against_all() -> None:
    new = moved([4, 7])
    step = next_step(Coverage(OBJECTS, T0, T0 + 9 * HOUR), new, T0 + HOUR, PLAN)
    assert isinstance(step, ScreenChanged)
    assert (step.start_ns, step.end_ns, step.rows.tolist()) == (T0, T0 + 9 * HOUR, [4, 7])
    assert step.numbers == {int(OBJECTS.columns.catalog_number[row]) for row in (4, 7)}


def test_many_changed_objects_are_a_reason_to_screen_everything() -> None:
    step = next_step(Coverage(OBJECTS, T0, T0 + 9 * HOUR), moved([1, 2, 3, 4]), T0 + HOUR, PLAN)
    assert step == ScreenAll(T0, T0 + 9 * HOUR)


def test_the_same_element_sets_in_a_new_version_are_not_screened_again() -> None:
    coverage = Coverage(OBJECTS, T0, T0 + 9 * HOUR)
    again = moved([])
    step = next_step(coverage, again, T0 + HOUR, PLAN)
    assert step is None
    after = covered_after(step, coverage, again)
    assert after is not None
    assert after.objects is again


def test_after_a_pause_longer_than_the_horizon_everything_is_screened() -> None:
    later = T0 + 20 * HOUR
    assert next_step(Coverage(OBJECTS, T0, T0 + 9 * HOUR), OBJECTS, later, PLAN) == ScreenAll(
        T0 + 18 * HOUR, T0 + 27 * HOUR
    )


def test_after_the_clock_was_set_back_everything_is_screened() -> None:
    """A clock that was ahead when the process started has hidden the hours before."""
    step = next_step(None, OBJECTS, T0 + 9 * HOUR, PLAN)
    coverage = covered_after(step, None, OBJECTS)
    assert coverage is not None
    next_window = next_step(coverage, OBJECTS, T0 + 10 * HOUR, PLAN)
    for covered in (coverage, covered_after(next_window, coverage, OBJECTS)):
        assert covered is not None
        assert covered.start_ns == T0 + 6 * HOUR
        assert next_step(covered, OBJECTS, T0 + 6 * HOUR, PLAN) is None
        step = next_step(covered, OBJECTS, T0 + 3 * HOUR, PLAN)
        assert step == ScreenAll(T0, T0 + 9 * HOUR)
        assert next_step(covered_after(step, covered, OBJECTS), OBJECTS, T0 + 3 * HOUR, PLAN) is None


def test_an_object_that_comes_or_goes_has_changed() -> None:
    numbers = OBJECTS.columns.catalog_number
    some = rows_of([0, 1, 2, 5])
    others = rows_of([5, 1, 0, 9])
    assert changed_objects(some.columns, others.columns) == {int(numbers[2]), int(numbers[9])}
    step = next_step(Coverage(some, T0, T0 + 9 * HOUR), rows_of([0, 1, 5]), T0 + HOUR, PLAN)
    assert isinstance(step, ScreenChanged)
    assert (step.rows.tolist(), step.numbers) == ([], {int(numbers[2])})


def test_every_element_counts_as_a_change() -> None:
    for name in OBJECTS.columns.arrays():
        if name == "catalog_number":
            continue
        arrays = {each: column.copy() for each, column in OBJECTS.columns.arrays().items()}
        arrays[name][3] = np.logical_not(arrays[name][3]) if name == "near_earth" else arrays[name][3] + 1.0
        changed = changed_objects(OBJECTS.columns, ElementColumns.from_arrays(arrays))
        assert changed == {int(OBJECTS.columns.catalog_number[3])}, name
