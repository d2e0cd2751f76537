"""`ScreeningWorker`: what a worker process stores, and how it answers."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from sda_ops.catalog import ElementColumns
from sda_ops.screening.approaches import Screening
from sda_ops.screening.geometry.screen import screen_window
from sda_ops.screening.workers.checkpoints import Window
from sda_ops.screening.workers.encoding import screening_of
from sda_ops.screening.workers.windows import windows_of
from sda_ops.screening.workers.worker import (
    ANSWER_SIZE,
    CATALOG,
    VERSION,
    Request,
    ScreeningWorker,
    catalog_version,
    encoded_request,
    shared_catalog,
)
from tests.helpers.screening_comparison import same_list
from tests.sda_ops.screening.made_up import assert_same_screening
from tests.sda_ops.screening.small_catalog import HORIZON, MISS_M, OPTIONS, START_NS, WINDOW, small_catalog

OBJECTS = small_catalog()
FIRST, SECOND, THIRD = windows_of(START_NS, HORIZON, WINDOW)
REQUEST = Request(miss_distance_m=MISS_M, options=OPTIONS, answer_bytes=1 << 20)


def moved(rows: list[int]) -> ElementColumns:
    """The columns of `OBJECTS`, with other mean anomalies in these rows."""
    arrays = {name: column.copy() for name, column in OBJECTS.columns.arrays().items()}
    arrays["mo"][rows] += 0.02
    return ElementColumns.from_arrays(arrays)


def worker_with(columns: ElementColumns = OBJECTS.columns, **settings: int) -> ScreeningWorker:
    worker = ScreeningWorker()
    worker.share(CATALOG, shared_catalog(columns, **{"niceness": 0, "held_bytes": 1 << 20, **settings}))
    return worker


def requested(
    columns: ElementColumns = OBJECTS.columns, request: Request = REQUEST, *, window: Window = FIRST, rows: Any = None
) -> dict[str, Any]:
    return encoded_request(request, *window, version=catalog_version(columns), rows=rows)


def against(worker: ScreeningWorker, columns: ElementColumns, rows: list[int], window: Window = FIRST) -> Screening:
    return screening_of(worker.handle("screen_against", requested(columns, window=window, rows=np.array(rows))))


def test_a_window_is_screened_as_in_this_process() -> None:
    """The answer is the screening of that window, to the bit."""
    answer = screening_of(worker_with().handle("screen_window", requested()))
    expected = screen_window(OBJECTS, *FIRST, MISS_M, OPTIONS)
    assert_same_screening(answer, expected, statistics=False)
    assert answer.statistics.objects == 150


def test_a_call_for_another_catalogue_is_answered_with_the_stored_version() -> None:
    """Zero before the first catalogue; a number that depends on every element and on the order of the rows."""
    assert ScreeningWorker().handle("screen_window", requested())[VERSION].tolist() == [0]
    answer = worker_with(moved([149])).handle("screen_window", requested())
    assert list(answer) == [VERSION]
    assert answer[VERSION].tolist() == [catalog_version(moved([149]))] != [catalog_version(OBJECTS.columns)]
    turned = {name: column[::-1] for name, column in OBJECTS.columns.arrays().items()}
    assert catalog_version(ElementColumns.from_arrays(turned)) != catalog_version(OBJECTS.columns) > 0


def test_an_answer_beyond_the_limit_is_its_size() -> None:
    """The size is that of the arrays that would have been sent; at exactly the limit they are sent."""
    worker = worker_with()
    size = sum(array.nbytes for array in worker.handle("screen_window", requested()).values())
    small = Request(miss_distance_m=MISS_M, options=OPTIONS, answer_bytes=100)
    (got,) = worker.handle("screen_window", requested(request=small))[ANSWER_SIZE].tolist()
    assert abs(got - size) < 100  # the digits of the CPU times differ
    assert got > 100


def test_unknown_methods_and_shares_are_rejected() -> None:
    """The error names what was expected and what came; the stored catalogue stays in use."""
    worker = worker_with()
    with pytest.raises(
        ValueError, match=r"expected a call of one of \('screen_window', 'screen_against'\), got 'predict'"
    ):
        worker.handle("predict", requested())
    with pytest.raises(ValueError, match="expected a share of 'catalog', got 'sites'"):
        worker.share("sites", {})
    broken = {**shared_catalog(moved([1]), niceness=0, held_bytes=0), "mo": np.zeros(3)}
    with pytest.raises(ValueError, match="mo must be"):
        worker.share(CATALOG, broken)
    assert "header" in worker.handle("screen_window", requested())


@pytest.mark.parametrize(("wanted", "before", "raised_by"), [(19, 10, 9), (10, 10, 0), (0, 10, 0), (5, 0, 5)])
def test_niceness_is_raised_and_never_lowered(
    wanted: int, before: int, raised_by: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is nicer already stays so."""
    raised: list[int] = []

    def nice(increment: int) -> int:
        raised.append(increment)
        return before + sum(raised)

    monkeypatch.setattr(os, "nice", nice)
    worker_with(niceness=wanted)
    assert sum(raised) == raised_by


def test_held_positions_are_used_again() -> None:
    """Each window is computed once, for any rows and distances."""
    worker = worker_with(held_bytes=64 << 20)
    for rows in ([1], [2, 149], [1]):
        for window in (FIRST, SECOND):
            against(worker, OBJECTS.columns, rows, window)
    assert (worker._held.computed, worker._held.updated, len(worker._held)) == (2, 0, 2)


def test_of_a_new_catalogue_only_changed_and_new_objects_are_computed() -> None:
    """The list is that of a worker that knows only the new catalogue, with other elements, another object and other rows."""
    worker = worker_with(held_bytes=64 << 20)
    against(worker, OBJECTS.columns, [5])
    arrays: dict[str, Any] = {name: column[::-1].copy() for name, column in moved([*range(14)]).arrays().items()}
    arrays["catalog_number"][7] = 123_456
    new = ElementColumns.from_arrays(arrays)
    worker.share(CATALOG, shared_catalog(new, niceness=0, held_bytes=64 << 20))
    for _ in range(2):
        rows = [*range(130, 150)]
        ours = against(worker, new, rows)
        assert same_list(ours, against(worker_with(new), new, rows)) == ""
        assert len(ours.approaches) > 0
    assert (worker._held.computed, worker._held.updated) == (1, 1)


@pytest.mark.parametrize(("held_bytes", "held", "computed"), [(0, 0, 6), (1, 1, 5), (1 << 30, 3, 3)])
def test_held_positions_are_bounded(held_bytes: int, held: int, computed: int) -> None:
    """Nothing is kept with 0, one window with too little, all three with enough; the least recently used one goes first."""
    worker = worker_with(held_bytes=held_bytes)
    for window in (FIRST, SECOND, THIRD, THIRD, FIRST, SECOND):
        against(worker, OBJECTS.columns, [5], window)
    assert (len(worker._held), worker._held.computed) == (held, computed)
