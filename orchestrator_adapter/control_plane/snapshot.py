"""The status of a graph, for another thread. It is taken on the graph's event loop, between two steps, so it is consistent.

A request asks the loop for a fresh status and waits a limited time. A stalled loop does not answer: then the last status is
used. The watchdog's figures can be read from any thread and are always fresh. Without requests nothing runs on the loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

from orchestrator_adapter.control_plane.process_figures import ProcessFigures
from orchestrator_adapter.control_plane.worker_pools import PoolFigures, WorkerPool
from orchestrator_adapter.runtime.built_graph import BuiltGraph
from orchestrator_adapter.runtime.status import GraphStatus


@dataclass(frozen=True, slots=True)
class View:
    """What is known of a graph now.

    Attributes:
        status: The graph between two of its steps.
        age_s: The age of ``status``, seconds.
        silent_s: For how long the event loop has not answered, seconds; 0 if it answered this request.
        threshold_s: The loop counts as stalled when it has not answered for this long, seconds.
        lag_s: How late the loop is now, seconds.
        stalls: How often the loop has stalled, the present stall included.
        blocked_by: The operator instance that blocks the silent loop; empty if that is not known.
        pools: The figures of the run's worker pools, of the same moment as ``status``.
        process: The figures of the process, of the moment of the request: current also while the loop is silent.
    """

    status: GraphStatus
    age_s: float
    silent_s: float
    threshold_s: float
    lag_s: float
    stalls: int
    blocked_by: str
    pools: tuple[PoolFigures, ...] = ()
    process: ProcessFigures = field(default_factory=ProcessFigures.now)


@dataclass(frozen=True, slots=True)
class _Snapshot:
    status: GraphStatus
    pools: tuple[PoolFigures, ...]
    taken_at: float


@dataclass(slots=True, eq=False)
class _Query:
    """One query to the graph's loop, shared by all requests that arrive before the loop begins to answer it."""

    since: float
    answered: asyncio.Future[None]
    begun: bool = False  # set by the graph's thread before it takes the status: later requests need a fresher one
    snapshot: _Snapshot | None = None
    failure: Exception | None = None


class Snapshots:
    """Takes statuses of ``built`` on its loop. Created on that loop, before the run; used on another loop after that."""

    def __init__(self, built: BuiltGraph, *, patience: timedelta, pools: Sequence[WorkerPool] = ()) -> None:
        self._built = built
        self._pools = pools
        self._patience_s = patience.total_seconds()
        self._graph_loop = asyncio.get_running_loop()
        self._latest = self._take()
        self._open: list[_Query] = []  # those that the loop is answering, and at most one that it has not begun
        self._last: _Snapshot | None = None  # of the end; set by the graph's thread

    async def view(self) -> View:
        """The graph now, or as it was when its loop last answered; returns after ``patience`` at the latest.

        If the loop answers, the status is never older than this call. Raises ``RuntimeError`` if taking it failed. After
        ``finish``, it is the last status.
        """
        if self._last is not None:
            return self._view(self._last, silent_since=None)
        if not self._open or self._open[-1].begun:
            self._ask()
        query = self._open[-1]
        await asyncio.wait({query.answered}, timeout=self._patience_s)
        if self._last is not None:
            return self._view(self._last, silent_since=None)
        if query.failure is not None:
            raise RuntimeError("the graph's status could not be taken") from query.failure
        if query.snapshot is not None:
            return self._view(query.snapshot, silent_since=None)
        return self._view(self._latest, silent_since=query.since)

    @property
    def graph_loop(self) -> asyncio.AbstractEventLoop:
        """The graph's event loop."""
        return self._graph_loop

    def latest(self) -> View:
        """The last status that was taken. Waits for nothing."""
        return self._view(self._latest, silent_since=None)

    def finish(self) -> None:
        """Take the last status. Call it on the graph's loop, which will answer no more; then ``release`` on the other one."""
        try:
            self._last = self._take()
        except Exception:  # noqa: BLE001 - a status that cannot be taken has been logged or answered; the end goes on
            self._last = self._latest

    def release(self) -> None:
        """End every wait: there is a last status."""
        for query in self._open:
            if not query.answered.done():
                query.answered.set_result(None)

    def _view(self, snapshot: _Snapshot, *, silent_since: float | None) -> View:
        now = time.monotonic()
        watchdog = self._built.watchdog
        silent_s = 0.0 if silent_since is None else now - silent_since
        lag_s, threshold_s, stalls, blocked_by = silent_s, self._patience_s, 0, ""
        if watchdog is not None:
            lag_s, threshold_s, stalls = watchdog.lag_s, watchdog.threshold_s, watchdog.stalls
            if silent_since is not None:
                silent_s = max(silent_s, lag_s)
                blocked_by = stall.label if (stall := watchdog.current_stall) is not None else ""
        age_s = now - snapshot.taken_at
        return View(snapshot.status, age_s, silent_s, threshold_s, lag_s, stalls, blocked_by, snapshot.pools)

    def _ask(self) -> None:
        here = asyncio.get_running_loop()
        query = _Query(time.monotonic(), here.create_future())
        self._open.append(query)
        with suppress(RuntimeError):  # the graph's loop is closed: it will not answer
            self._graph_loop.call_soon_threadsafe(self._answer, query, here)

    def _answer(self, query: _Query, requester: asyncio.AbstractEventLoop) -> None:
        """Runs on the graph's loop, so it must not raise."""
        query.begun = True
        try:
            query.snapshot = self._take()
        except Exception as error:  # noqa: BLE001 - raised by `view`, on the other loop
            query.failure = error
        with suppress(RuntimeError):  # the requester's loop is closed: no request waits any more
            requester.call_soon_threadsafe(self._answered, query)

    def _answered(self, query: _Query) -> None:
        self._open.remove(query)
        if query.snapshot is not None:
            self._latest = query.snapshot
        if not query.answered.done():
            query.answered.set_result(None)

    def _take(self) -> _Snapshot:
        return _Snapshot(self._built.status(), tuple(pool.statistics() for pool in self._pools), time.monotonic())
