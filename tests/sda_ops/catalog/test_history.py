"""Several element sets of one object: which one is used at a time, and which ones are kept."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sda_ops.astro.time import NS_PER_DAY
from sda_ops.catalog import (
    ElementColumns,
    ElementHistory,
    all_of_each,
    nearest_of_each,
    parse_catalog,
    reader,
    synthetic_catalog,
)
from tests.sda_ops.catalog.catalog_texts import OMM

EPOCH_NS = 1_790_000_000_000_000_000
ONE = ElementColumns.of(synthetic_catalog(objects=20, epoch_ns=EPOCH_NS))


def columns_of(sets: list[tuple[int, int]]) -> ElementColumns:
    """Element sets of these objects with epochs so many days after `EPOCH_NS`."""
    rows = np.zeros(len(sets), dtype=np.intp)
    columns = ElementColumns.from_arrays({name: column[rows] for name, column in ONE.arrays().items()})
    numbers, days = (np.array([each[index] for each in sets], dtype=np.int64) for index in (0, 1))
    return replace(columns, catalog_number=numbers, jdsatepoch=columns.jdsatepoch + days)


@given(
    sets=st.lists(st.tuples(st.integers(1, 5), st.integers(-40, 40)), min_size=1, max_size=30, unique=True),
    day=st.floats(-60, 60),
)
def test_the_nearest_set_of_each_object_is_used(sets: list[tuple[int, int]], day: float) -> None:
    """Of two equally near ones the later. Objects are in the order of their first rows, at any order of the rows."""
    columns = columns_of(sets)
    at_ns = EPOCH_NS + round(day * NS_PER_DAY)
    history = ElementHistory(columns)
    rows = history.rows_at(at_ns).tolist()
    epochs = columns.epoch_ns.tolist()
    order = list(dict.fromkeys(number for number, _ in sets))
    expected = [
        min((abs(epochs[row] - at_ns), -epochs[row], row) for row, (number, _) in enumerate(sets) if number == wanted)[
            2
        ]
        for wanted in order
    ]
    assert rows == expected
    assert (history.objects, history.is_flat) == (len(order), len(order) == len(sets))


def test_a_catalogue_without_objects_has_no_rows() -> None:
    """Nothing is used at any time."""
    history = ElementHistory(ElementColumns.of([]))
    assert (history.objects, history.is_flat, history.rows_at(0).size) == (0, True, 0)


def test_all_sets_are_kept_by_object_and_epoch_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal ones once; of more than the bound the newest, with a remark. The nearest one to a time can be picked."""
    days = [5, 3, 9, 3, 7]
    rows = [{**OMM, "EPOCH": f"2026-03-{day:02}T00:00:00"} for day in days] + [{**OMM, "NORAD_CAT_ID": 7}]
    catalog = parse_catalog(json.dumps(rows, indent=0), file="x")
    every = all_of_each(catalog)
    assert [round(e.satrec.epochdays) - 59 for e in every.element_sets] == [3, 5, 7, 9, 206]
    assert every.remarks == ()
    at_ns = int(ElementColumns.of(every.element_sets).epoch_ns[1]) + NS_PER_DAY // 2
    assert nearest_of_each(catalog, at_ns).element_sets == (every.element_sets[1], every.element_sets[4])
    monkeypatch.setattr(reader, "MAX_SETS_PER_OBJECT", 3)
    bounded = all_of_each(catalog)
    assert bounded.element_sets == every.element_sets[1:]
    assert bounded.remarks == ("x: 1 element sets are dropped: an object may have 3, the newest",)
