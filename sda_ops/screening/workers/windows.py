"""A screening as windows in worker processes: in parallel, cancellable, with progress, and resumable by window.

A horizon is cut at absolute multiples of the window's length since the Unix epoch, so that runs with other starts share
their windows. The result does not depend on the cut, nor on the number of workers. It knows nothing of files but the
folder of checkpoints, which it passes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TypeAlias

from orchestrator_adapter import Clock, OperatorError, RestartPolicy, SystemClock, check_fields
from orchestrator_adapter.bulkhead import (
    BatchLost,
    Bulkhead,
    BulkheadEvent,
    BulkheadStatistics,
    HandlerFailed,
    Launcher,
)
from sda_ops.astro.time import NS_PER_S
from sda_ops.screening.approaches import Screening
from sda_ops.screening.geometry.screen import ScreeningOptions, merged
from sda_ops.screening.objects import Rows, ScreenedObjects
from sda_ops.screening.workers.checkpoints import Checkpoints, Window
from sda_ops.screening.workers.encoding import Arrays, screening_of
from sda_ops.screening.workers.worker import (
    ANSWER_SIZE,
    CATALOG,
    VERSION,
    Request,
    catalog_version,
    encoded_request,
    shared_catalog,
)

DEFAULT_WINDOW = timedelta(hours=2)
"""The length of a part of ``screen_window`` (`sda_ops.screening.geometry.screen.PART_S`): longer windows are screened in such parts."""

MAX_ANSWER_BYTES = 256 << 20
"""The largest result of one window that a worker sends: six million close approaches."""

HELD_BYTES = 512 << 20
"""Positions that each worker keeps for later calls with ``rows``: those of three days of 15,000 objects."""

Progress: TypeAlias = Callable[[int, int, float | None], object]
"""Called with the number of finished windows, of all windows, and the estimated seconds left (``None`` at first)."""


class Workers(Protocol):
    """The part of ``orchestrator_adapter.bulkhead.Bulkhead`` that a screening uses."""

    async def call(self, method: str, arrays: Arrays) -> Arrays:
        """Call one worker and return its answer."""
        ...

    async def share(self, key: str, arrays: Arrays) -> None:
        """Send these arrays to every worker, and later to every replacement."""
        ...

    def statistics(self) -> BulkheadStatistics:
        """The current figures."""
        ...


class WindowFailed(OperatorError):
    """A window could not be screened. The windows before it are in the checkpoints, if there are any.

    Attributes:
        window: Which one.
    """

    def __init__(self, window: Window, why: str) -> None:
        super().__init__(f"screening: window {window}: {why}")
        self.window = window


def screening_bulkhead(
    *,
    workers: int = 2,
    launcher: Launcher | None = None,
    answer_within: timedelta = timedelta(minutes=15),
    rebuilds: RestartPolicy | None = None,
    on_event: Callable[[BulkheadEvent], object] | None = None,
) -> Bulkhead:
    """Worker processes for screenings, to be entered with ``async with``. ``launcher`` may place them on a cluster.

    ``answer_within`` bounds the time for one window; a worker that needs longer is killed. ``rebuilds`` bounds how often
    lost workers are replaced: eight times in ten minutes by default. Closing takes about a second at most: a worker that is
    in the middle of a window is killed.
    """
    return Bulkhead(
        "screening",
        "sda_ops.screening.workers.worker:ScreeningWorker",
        workers=workers,
        in_flight=1,  # a window takes a second: a second call in a worker's pipe would only wait there
        answer_within=answer_within,
        rebuilds=RestartPolicy.bounded(8, timedelta(minutes=10)) if rebuilds is None else rebuilds,
        launcher=launcher,
        on_event=on_event,
        drain_within=timedelta(seconds=1),
    )


async def screen_in_windows(
    pool: Workers,
    objects: ScreenedObjects,
    start_ns: int,
    horizon: timedelta,
    miss_distance_m: float,
    *,
    rows: Rows | None = None,
    options: ScreeningOptions | None = None,
    window: timedelta = DEFAULT_WINDOW,
    checkpoints: Path | None = None,
    on_progress: Progress | None = None,
    limits: WorkerLimits | None = None,
    clock: Clock | None = None,
) -> Screening:
    """Screen all objects against each other in ``[start_ns, start_ns + horizon)``, as ``screen`` does, with the same result.

    With ``rows``, screen only these objects against all. Then the workers keep the positions of each window, up to
    `WorkerLimits.held_bytes`, for the next such screening. Of objects that are new or have other element sets by then, only
    those positions are computed. Any worker may be sent any window, so a pool of one worker computes each window's
    positions once, and a larger one up to once in each worker. A horizon that does not fit gains nothing.

    Each worker is sent one window at a time, and a pool serves one screening at a time. With ``checkpoints``, a window is
    finished when it is on the disk, and the windows that are there already are not screened again
    (`sda_ops.screening.workers.checkpoints`). A window whose result is too large for one answer is screened in halves. If a worker is
    lost, its window is repeated. If this is cancelled, no further window is sent: the workers finish the windows that they
    have, or are killed when the bulkhead closes.

    Raises `WindowFailed` if two workers were lost during one window or if its worker failed, ``CheckpointError``, ``ValueError``
    for a horizon or a window that is not above zero and for empty ``rows``, and what ``Bulkhead.call`` and ``Bulkhead.share``
    raise.
    """
    options = options or ScreeningOptions()
    limits = limits or WorkerLimits()
    windows = windows_of(start_ns, horizon, window)
    request = Request(miss_distance_m=float(miss_distance_m), options=options, answer_bytes=limits.answer_bytes)
    if rows is not None and not len(rows):
        raise ValueError("screening: expected at least one object to screen against all, got none")
    finished: dict[Window, Screening] = {}
    store: Checkpoints | None = None
    if checkpoints is not None:
        chosen = None if rows is None else rows.tolist()
        store = Checkpoints(checkpoints, objects.columns, miss_distance_m, (options, chosen))
        finished = await asyncio.to_thread(store.finished, windows)
    if len(finished) < len(windows):
        shared = shared_catalog(objects.columns, niceness=limits.niceness, held_bytes=limits.held_bytes)
        await pool.share(CATALOG, shared)
    calls = _Calls(pool, request, rows, catalog_version(objects.columns))
    width = pool.statistics().workers
    progress = _Progress(windows, finished, on_progress, workers=width, clock=clock or SystemClock())
    remaining = iter([span for span in windows if span not in finished])

    async def screen_next() -> None:
        for span in remaining:  # all tasks share this iterator
            progress.begin(span)
            screening = await calls.screen(span)
            if store is not None:
                await asyncio.to_thread(store.store, span, screening)
            finished[span] = screening
            progress.finish(span)

    progress.report()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(width):
                group.create_task(screen_next())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return merged([finished[span] for span in windows])


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """What a screening may use of each worker's machine.

    Attributes:
        niceness: The least niceness of the worker process, 0 to 19. Local workers have 10 already; 19 leaves the processor to
            everything else that wants it.
        held_bytes: Positions that a worker keeps, 15 MB for two hours of 15,000 objects; 0 for a single screening.
        answer_bytes: The largest result of one window, below the bulkhead's ``max_bytes``; larger ones are halved.
    """

    niceness: int = 0
    held_bytes: int = HELD_BYTES
    answer_bytes: int = MAX_ANSWER_BYTES

    def __post_init__(self) -> None:
        check_fields(
            "WorkerLimits",
            ("niceness", self.niceness, 0 <= self.niceness <= _GREATEST_NICENESS, "in 0..19"),
            ("held_bytes", self.held_bytes, self.held_bytes >= 0, ">= 0"),
            ("answer_bytes", self.answer_bytes, self.answer_bytes >= 1, ">= 1"),
        )


def windows_of(start_ns: int, horizon: timedelta, window: timedelta) -> list[Window]:
    """The windows that tile ``[start_ns, start_ns + horizon)``, cut at absolute multiples of ``window``, in order."""
    check_fields(
        "screening",
        ("horizon", horizon, horizon > timedelta(0), "> 0"),
        ("window", window, window > timedelta(0), "> 0"),
    )
    end_ns, length_ns = start_ns + _ns(horizon), _ns(window)
    cuts = [start_ns, *range((start_ns // length_ns + 1) * length_ns, end_ns, length_ns), end_ns]
    return [Window(*span) for span in pairwise(cuts)]


def halves_of(window: Window, slice_s: float) -> tuple[Window, Window] | None:
    """A window in two, cut at an absolute multiple of the slice's length; ``None`` if no such time is inside it."""
    slice_ns = round(slice_s * NS_PER_S)
    middle_ns = (window.start_ns + window.end_ns) // 2
    cut_ns = round(middle_ns / slice_ns) * slice_ns
    if not window.start_ns < cut_ns < window.end_ns:
        return None
    return Window(window.start_ns, cut_ns), Window(cut_ns, window.end_ns)


def seconds_left(
    spent_s: float, screened_ns: int, *, remaining_ns: int, in_flight_s: float, workers: int
) -> float | None:
    """How long the remaining windows take; ``None`` before the first is screened.

    ``spent_s`` is how long the workers worked on ``screened_ns``, ``in_flight_s`` how long they have worked on windows among
    the remaining ones, and ``workers`` how many of them have one of those.
    """
    if not remaining_ns:
        return 0.0
    if not screened_ns:
        return None
    return max(0.0, spent_s * remaining_ns / screened_ns - in_flight_s) / max(1, workers)


class _Calls:
    """Calls of a pool's workers, one for each window or part of one."""

    def __init__(self, pool: Workers, request: Request, rows: Rows | None, version: int) -> None:
        self._pool = pool
        self._request = request
        self._rows = rows
        self._version = version

    async def screen(self, window: Window) -> Screening:
        """The result of one window. Raises as `screen_in_windows`."""
        method = "screen_window" if self._rows is None else "screen_against"
        arrays = encoded_request(self._request, *window, version=self._version, rows=self._rows)
        try:
            answer = await self._pool.call(method, arrays)
        except BatchLost as error:
            raise WindowFailed(window, f"{error}; a shorter window needs less memory and time") from error
        except HandlerFailed as error:
            raise WindowFailed(window, f"its worker failed: {error.error_type}: {error.error_message}") from error
        if VERSION in answer:
            raise WindowFailed(
                window, "another screening has replaced the catalogue of these workers: give each its own"
            )
        if ANSWER_SIZE in answer:
            return await self._screen_halves(window, int(answer[ANSWER_SIZE][0]))
        return screening_of(answer)

    async def _screen_halves(self, window: Window, size: int) -> Screening:
        halves = halves_of(window, self._request.options.slice_s)
        if halves is None:
            raise WindowFailed(
                window,
                f"its result has {size} bytes, more than the {self._request.answer_bytes} that a worker may send, "
                "and the window cannot be shorter: choose a smaller miss distance",
            )
        return merged([await self.screen(half) for half in halves])


class _Progress:
    """How far a screening is."""

    def __init__(
        self,
        windows: Sequence[Window],
        finished: Collection[Window],
        report: Progress | None,
        *,
        workers: int,
        clock: Clock,
    ) -> None:
        self._all = len(windows)
        self._remaining = [window for window in windows if window not in finished]
        self._call = report
        self._workers = workers
        self._clock = clock
        self._began: dict[Window, float] = {}
        self._spent_s = 0.0
        self._screened_ns = 0

    def begin(self, window: Window) -> None:
        self._began[window] = self._clock.monotonic()

    def finish(self, window: Window) -> None:
        self._spent_s += self._clock.monotonic() - self._began.pop(window)
        self._screened_ns += _length([window])
        self._remaining.remove(window)
        self.report()

    def report(self) -> None:
        if self._call is None:
            return
        now_s = self._clock.monotonic()
        left_s = seconds_left(
            self._spent_s,
            self._screened_ns,
            remaining_ns=_length(self._remaining),
            in_flight_s=sum(now_s - began_s for began_s in self._began.values()),
            workers=min(self._workers, len(self._remaining)),
        )
        self._call(self._all - len(self._remaining), self._all, left_s)


def _length(windows: Iterable[Window]) -> int:
    return sum(window.end_ns - window.start_ns for window in windows)


def _ns(span: timedelta) -> int:
    return span // timedelta(microseconds=1) * 1_000


_GREATEST_NICENESS = 19
