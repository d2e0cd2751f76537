"""`screen_in_windows`: the same list from any cut into windows, through workers that are slow, lost, killed or cancelled."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_adapter.bulkhead import BatchLost, BulkheadStatistics, HandlerFailed
from orchestrator_adapter.testing import ManualClock
from sda_ops.astro.time import NS_PER_S
from sda_ops.catalog import ElementColumns
from sda_ops.screening.approaches import Screening
from sda_ops.screening.geometry.screen import merged, screen, screen_window
from sda_ops.screening.objects import ScreenedObjects
from sda_ops.screening.workers.checkpoints import CheckpointError, Checkpoints, Window
from sda_ops.screening.workers.encoding import Arrays, arrays_of
from sda_ops.screening.workers.windows import (
    WindowFailed,
    WorkerLimits,
    halves_of,
    screen_in_windows,
    screening_bulkhead,
    seconds_left,
    windows_of,
)
from sda_ops.screening.workers.worker import ScreeningWorker
from tests.helpers.running import eventually
from tests.helpers.screening_comparison import same_list
from tests.helpers.support import ROOT
from tests.sda_ops.screening.made_up import assert_same_screening
from tests.sda_ops.screening.small_catalog import HORIZON, MISS_M, OPTIONS, START_NS, WINDOW, small_catalog

OBJECTS = small_catalog()
MINUTE_NS = 60 * NS_PER_S


class InlineWorkers:
    """Handlers in this process. While ``blocked``, calls wait for `release`.

    Attributes:
        requests: The method and the window of each call.
        at_once: The greatest number of calls at a time.
        on_call: Called with the number of each call; what it raises, the call raises.
    """

    def __init__(self, count: int = 1, *, on_call: Callable[[int], object] | None = None) -> None:
        self.handlers = [ScreeningWorker() for _ in range(count)]
        self.free = [*self.handlers]
        self.requests: list[tuple[str, Window]] = []
        self.at_once = 0
        self.on_call = on_call or (lambda number: None)
        self.blocked = False
        self.waiting: list[asyncio.Future[None]] = []

    async def call(self, method: str, arrays: Arrays) -> Arrays:
        number = len(self.requests)
        self.requests.append((method, Window(*arrays["screening.window"].tolist())))
        handler = self.free.pop()
        self.at_once = max(self.at_once, len(self.handlers) - len(self.free))
        try:
            self.on_call(number)
            if self.blocked:
                self.waiting.append(asyncio.get_running_loop().create_future())
                await self.waiting[-1]
            else:
                await asyncio.sleep(0)
            return handler.handle(method, arrays)
        finally:
            self.free.append(handler)

    async def share(self, key: str, arrays: Arrays) -> None:
        for handler in self.handlers:
            handler.share(key, arrays)

    def statistics(self) -> BulkheadStatistics:
        return replace(screening_bulkhead().statistics(), workers=len(self.handlers))

    @property
    def windows(self) -> list[Window]:
        return [window for _, window in self.requests]


async def screened(pool: Any, **options: Any) -> Screening:
    """The small catalogue through ``pool``."""
    return await screen_in_windows(
        pool, OBJECTS, START_NS, HORIZON, MISS_M, **{"options": OPTIONS, "window": WINDOW, **options}
    )


@pytest.fixture(scope="module")
def whole() -> Screening:
    """The list of one run without windows."""
    screening = screen(OBJECTS, START_NS, HORIZON, MISS_M, options=OPTIONS)
    assert (len(screening.approaches), len(screening.slow_pairs), len(screening.ended)) == (50, 2, 1)
    return screening


@pytest.fixture(scope="module")
def expected() -> Screening:
    """The list of an undisturbed run in three windows."""
    return merged([screen_window(OBJECTS, *span, MISS_M, OPTIONS) for span in windows_of(START_NS, HORIZON, WINDOW)])


def assert_same_list(ours: Screening, theirs: Screening) -> None:
    """To the bit, but for the CPU times."""
    assert_same_screening(ours, theirs, statistics=False)


# Windows.


@given(
    start_ns=st.integers(-(10**18), 2 * 10**18),
    horizon=st.timedeltas(timedelta(microseconds=1), timedelta(days=30)),
    window=st.timedeltas(timedelta(minutes=10), timedelta(days=2)),
)
def test_windows_tile_the_horizon_and_are_cut_at_absolute_times(
    start_ns: int, horizon: timedelta, window: timedelta
) -> None:
    """Nothing is left out or covered twice, none is empty, and every inner cut is a multiple of the window's length."""
    windows = windows_of(start_ns, horizon, window)
    assert (windows[0].start_ns, windows[-1].end_ns) == (
        start_ns,
        start_ns + horizon // timedelta(microseconds=1) * 1000,
    )
    assert all(one.end_ns == next_one.start_ns for one, next_one in pairwise(windows))
    assert all(one.start_ns < one.end_ns for one in windows)
    length_ns = window // timedelta(microseconds=1) * 1000
    assert all(one.end_ns % length_ns == 0 for one in windows[:-1])
    assert all(one.end_ns - one.start_ns <= length_ns for one in windows)


def test_two_runs_that_overlap_share_their_windows() -> None:
    """A run that begins 100 minutes later has the same windows but for its first and its last one."""
    hours = timedelta(hours=1)
    first = windows_of(START_NS, 24 * hours, 3 * hours)
    later = windows_of(START_NS + 100 * MINUTE_NS, 24 * hours, 3 * hours)
    assert later[1:-1] == first[1:]


@pytest.mark.parametrize(
    ("horizon", "window", "message"),
    [
        (timedelta(0), timedelta(hours=1), "screening: horizon must be > 0"),
        (timedelta(hours=1), timedelta(hours=-1), "screening: window must be > 0"),
    ],
)
def test_a_horizon_or_window_that_is_not_above_zero_is_rejected(
    horizon: timedelta, window: timedelta, message: str
) -> None:
    """The error names which."""
    with pytest.raises(ValueError, match=message):
        windows_of(0, horizon, window)


def test_halves_are_cut_between_slices() -> None:
    """At an absolute multiple of the slice's length near the middle; a window inside one slice has no halves."""
    hour = Window(START_NS, START_NS + 60 * MINUTE_NS)
    assert halves_of(hour, 60.0) == (
        Window(hour.start_ns, hour.start_ns + 30 * MINUTE_NS),
        Window(hour.start_ns + 30 * MINUTE_NS, hour.end_ns),
    )
    odd = Window(START_NS + 1, START_NS + 3 * MINUTE_NS)
    assert {half % MINUTE_NS for half in (halves_of(odd, 60.0) or [odd])[0]} == {1, 0}
    assert halves_of(Window(START_NS, START_NS + MINUTE_NS), 60.0) is None
    assert halves_of(Window(START_NS + 1, START_NS + MINUTE_NS - 1), 60.0) is None


@pytest.mark.parametrize(
    ("screened_ns", "remaining_ns", "in_flight_s", "workers", "expected_s"),
    [
        (6, 18, 0.0, 1, 30.0),  # a quarter took 10 s
        (6, 18, 0.0, 2, 15.0),
        (6, 18, 9.0, 3, 7.0),  # others have worked on their windows for 9 s
        (6, 6, 11.0, 1, 0.0),  # longer than expected
        (0, 18, 5.0, 2, None),
        (24, 0, 0.0, 0, 0.0),
    ],
)
def test_the_time_left_is_that_of_the_remaining_windows_at_the_rate_so_far(
    screened_ns: int, remaining_ns: int, in_flight_s: float, workers: int, expected_s: float | None
) -> None:
    """Unknown before the first window, zero at the end; what workers have done of their windows counts."""
    left_s = seconds_left(10.0, screened_ns, remaining_ns=remaining_ns, in_flight_s=in_flight_s, workers=workers)
    assert left_s == expected_s


# The list.


@pytest.mark.parametrize(("workers", "minutes"), [(1, 30), (2, 30), (3, 17), (2, 600)])
async def test_the_list_is_that_of_one_run_without_windows(workers: int, minutes: int, whole: Screening) -> None:
    """For any number of workers and any cut; docked objects and an object that decays are in it once."""
    pool = InlineWorkers(workers)
    ours = await screened(pool, window=timedelta(minutes=minutes))
    assert same_list(ours, whole) == ""
    assert ours.ended == whole.ended
    np.testing.assert_array_equal(ours.slow_pairs.minima, whole.slow_pairs.minima)
    np.testing.assert_allclose(ours.slow_pairs.contact_s, whole.slow_pairs.contact_s, rtol=0, atol=1e-6)
    assert pool.at_once == min(workers, len(pool.requests))
    assert pool.windows == windows_of(START_NS, HORIZON, timedelta(minutes=minutes))


async def test_chosen_objects_against_all_are_their_part_of_the_list(whole: Screening) -> None:
    """Every approach and slow pair of one of them and no other; the windows' positions are computed once."""
    rows = np.array([148, 3, 20, 3])
    pool = InlineWorkers()
    for _ in range(2):
        ours = await screened(pool, rows=rows, limits=WorkerLimits(held_bytes=64 << 20))
        for found, every in ((ours.approaches, whole.approaches), (ours.slow_pairs, whole.slow_pairs)):
            involved = np.isin(every.first, rows) | np.isin(every.second, rows)
            assert involved.any()
            np.testing.assert_array_equal(found.first, every.first[involved])
            np.testing.assert_array_equal(found.second, every.second[involved])
        involved = np.isin(whole.approaches.first, rows) | np.isin(whole.approaches.second, rows)
        np.testing.assert_allclose(ours.approaches.miss_m, whole.approaches.miss_m[involved], rtol=0, atol=1e-3)
    assert [method for method, _ in pool.requests] == ["screen_against"] * 6
    assert pool.handlers[0]._held.computed == 3


async def test_no_objects_against_all_is_an_error() -> None:
    """It is raised before any worker is called."""
    pool = InlineWorkers()
    with pytest.raises(ValueError, match="expected at least one object to screen against all, got none"):
        await screened(pool, rows=np.empty(0, dtype=np.intp))
    assert pool.requests == []


async def test_progress_counts_windows_and_estimates_the_time_left() -> None:
    """One worker, three windows of 10 s each: unknown at first, then 20, 10 and 0 s."""
    clock = ManualClock()
    reports: list[tuple[int, int, float | None]] = []
    await screened(
        InlineWorkers(on_call=lambda _: clock.advance(10.0)),
        clock=clock,
        on_progress=lambda *report: reports.append(report),
    )
    assert reports == [(0, 3, None), (1, 3, 20.0), (2, 3, 10.0), (3, 3, 0.0)]


async def test_a_cancelled_screening_sends_no_further_window() -> None:
    """Two of three windows are with the workers when it is cancelled; the third is never sent."""
    pool = InlineWorkers(2)
    pool.blocked = True
    screening = asyncio.create_task(screened(pool))
    await eventually(lambda: len(pool.waiting) == 2, "two windows with the workers")
    screening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await screening
    assert len(pool.requests) == 2
    assert all(future.cancelled() for future in pool.waiting)


# What goes wrong.


def lost(number: int) -> None:
    if number == 1:
        raise BatchLost("bulkhead 'screening': screen_window: two workers were lost", method="screen_window", losses=2)


def failed(number: int) -> None:
    if number == 1:
        raise HandlerFailed("…", error_type="MemoryError", error_message="8 GiB", remote_traceback="Traceback")


@pytest.mark.parametrize(
    ("on_call", "why"),
    [
        (
            lost,
            "bulkhead 'screening': screen_window: two workers were lost; a shorter window needs less memory and time",
        ),
        (failed, "its worker failed: MemoryError: 8 GiB"),
    ],
)
async def test_a_window_that_cannot_be_screened_is_named(on_call: Callable[[int], object], why: str) -> None:
    """The error is one line with the window and the cause, and no further window is sent."""
    pool = InlineWorkers(on_call=on_call)
    with pytest.raises(WindowFailed) as caught:
        await screened(pool)
    second = windows_of(START_NS, HORIZON, WINDOW)[1]
    assert caught.value.window == second
    assert str(caught.value) == f"screening: window 2026-03-10T00:30:00Z to 2026-03-10T01:00:00Z: {why}"
    assert pool.windows[-1] == second


async def test_two_screenings_in_one_pool_fail_instead_of_mixing_catalogues() -> None:
    """The one whose catalogue was replaced says so."""
    others = ScreenedObjects.of([])
    pool = InlineWorkers()

    async def replace_the_catalog() -> None:
        await screen_in_windows(pool, others, START_NS, WINDOW, MISS_M, options=OPTIONS)

    tasks: list[asyncio.Task[None]] = []
    pool.on_call = lambda number: tasks.append(asyncio.create_task(replace_the_catalog())) if number == 0 else None
    pool.free *= 3
    with pytest.raises(WindowFailed, match="another screening has replaced the catalogue of these workers"):
        await screened(pool)
    await asyncio.gather(*tasks)


async def test_a_result_that_is_too_large_for_one_answer_comes_in_parts(whole: Screening) -> None:
    """The window is screened in halves, and those again, with the same list; the pool does one part at a time."""
    pool = InlineWorkers()
    sizes = {name: array.nbytes for name, array in arrays_of(whole).items()}
    header_bytes = sizes.pop("header")
    limits = WorkerLimits(answer_bytes=header_bytes + sum(sizes.values()) // 3)
    ours = await screened(pool, window=HORIZON, limits=limits)
    assert same_list(ours, whole) == ""
    assert len(pool.requests) > 3
    assert pool.at_once == 1


async def test_a_result_that_is_too_large_for_one_slice_is_a_clear_error() -> None:
    """The error names the shortest window, the size, and what to do."""
    with pytest.raises(WindowFailed) as caught:
        await screened(InlineWorkers(), limits=WorkerLimits(answer_bytes=1))
    assert re.fullmatch(
        r"screening: window 2026-03-10T00:00:00Z to 2026-03-10T00:01:00Z: its result has \d+ bytes, more than the 1 that a "
        r"worker may send, and the window cannot be shorter: choose a smaller miss distance",
        str(caught.value),
    )


# Checkpoints.


@pytest.mark.parametrize("interrupted_at", [0, 1, 2])
async def test_an_interrupted_run_continues_with_the_windows_that_are_missing(
    interrupted_at: int, tmp_path: Path, expected: Screening
) -> None:
    """The list is that of an uninterrupted run, and the finished windows are not sent again."""

    def interrupt(number: int) -> None:
        if number == interrupted_at:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        await screened(InlineWorkers(on_call=interrupt), checkpoints=tmp_path)
    pool = InlineWorkers()
    reports: list[tuple[int, int, float | None]] = []
    ours = await screened(pool, checkpoints=tmp_path, on_progress=lambda *report: reports.append(report))
    assert_same_list(ours, expected)
    assert pool.windows == windows_of(START_NS, HORIZON, WINDOW)[interrupted_at:]
    assert reports[0] == (interrupted_at, 3, None)
    again = InlineWorkers()
    assert_same_screening(await screened(again, checkpoints=tmp_path), ours)
    assert again.requests == []


async def test_a_resumed_run_with_another_catalogue_or_distance_uses_no_window_of_the_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It screens every window, says so in one line, and has the list of its own catalogue and distance."""
    await screened(InlineWorkers(), checkpoints=tmp_path)
    arrays: dict[str, Any] = {name: column.copy() for name, column in OBJECTS.columns.arrays().items()}
    arrays["mo"] += 0.01
    moved = ScreenedObjects(ElementColumns.from_arrays(arrays), OBJECTS.names, OBJECTS.designators)
    for objects, miss_m in ((moved, MISS_M), (OBJECTS, 0.9 * MISS_M)):
        pool = InlineWorkers()
        caplog.clear()
        ours = await screen_in_windows(
            pool, objects, START_NS, HORIZON, miss_m, options=OPTIONS, window=WINDOW, checkpoints=tmp_path
        )
        assert same_list(ours, screen(objects, START_NS, HORIZON, miss_m, options=OPTIONS)) == ""
        assert len(ours.approaches) > 10
        assert len(pool.requests) == 3
        assert len(caplog.records) == 1


async def test_a_disk_that_is_full_ends_the_run_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`CheckpointError`, not an exception group, after the first window; no further window is sent."""

    def full(*_: object) -> None:
        raise CheckpointError(f"checkpoints …: {os.strerror(errno.ENOSPC)}")

    monkeypatch.setattr(Checkpoints, "store", full)
    pool = InlineWorkers()
    with pytest.raises(CheckpointError, match=r"^checkpoints …: No space left on device$"):
        await screened(pool, checkpoints=tmp_path)
    assert len(pool.requests) == 1


# Real processes.


async def test_a_killed_worker_costs_the_repetition_of_its_window_only(expected: Screening) -> None:
    """It is killed in the middle of the second window: the list is complete, and the other windows are screened once."""
    loop = asyncio.get_running_loop()
    async with screening_bulkhead(workers=1) as pool:

        def kill() -> None:
            assert pool.statistics().in_flight == 1
            (pid,) = pool.statistics().pids.values()
            os.kill(pid, signal.SIGKILL)

        ours = await screened(pool, on_progress=lambda done, *_: loop.call_soon(kill) if done == 1 else None)
        figures = pool.statistics()
    assert_same_list(ours, expected)
    assert (figures.calls, figures.answered, figures.lost) == (3, 3, 0)
    assert (figures.restarts, figures.resubmitted) == (1, 1)


async def test_a_cancelled_screening_ends_its_worker() -> None:
    """Cancelled after the first of 18 windows, the pool closes although its worker is in the middle of another."""
    reached = asyncio.Event()
    pids: list[int] = []
    async with screening_bulkhead(workers=1) as pool:
        pids += pool.statistics().pids.values()
        options: dict[str, Any] = {"window": timedelta(minutes=5), "limits": WorkerLimits(niceness=19)}
        screening = asyncio.create_task(
            screened(pool, on_progress=lambda done, *_: reached.set() if done else None, **options)
        )
        await reached.wait()
        niceness = {os.getpriority(os.PRIO_PROCESS, pid) for pid in pids}
        screening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await screening
        assert pool.statistics().calls == 2
    assert niceness == {19}
    await eventually(lambda: not any(psutil.pid_exists(pid) for pid in pids), "the end of its process")


KILLED = """
import asyncio, os, signal
from pathlib import Path
from tests.sda_ops.screening.small_catalog import *

async def main():
    async with screening_bulkhead(workers=1) as pool:
        await screen_in_windows(
            pool, small_catalog(), START_NS, HORIZON, MISS_M, options=OPTIONS, window=WINDOW, checkpoints=Path(FOLDER),
            on_progress=lambda done, *_: os.kill(os.getpid(), signal.SIGKILL) if done == 2 else None,
        )

asyncio.run(main())
"""


async def test_a_run_whose_process_was_killed_is_continued_by_another_process(
    tmp_path: Path, expected: Screening
) -> None:
    """`kill -9` after the second of three windows: the next process screens the third one only, with the same list."""
    script = KILLED.replace("FOLDER", repr(str(tmp_path))).replace(
        "from pathlib",
        "from sda_ops.screening.workers.windows import screen_in_windows, screening_bulkhead\nfrom pathlib",
    )
    process = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], cwd=ROOT, check=False, stdout=sys.stderr
    )
    assert process.returncode == -signal.SIGKILL
    pool = InlineWorkers()
    assert_same_list(await screened(pool, checkpoints=tmp_path), expected)
    assert pool.windows == windows_of(START_NS, HORIZON, WINDOW)[2:]
