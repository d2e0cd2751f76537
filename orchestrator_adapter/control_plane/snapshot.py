"""The graph as seen from another thread: consistent, because it is taken on the graph's own event loop between two steps.

Whoever wants to look asks the loop for a fresh status and waits a little. A loop that stands still does not answer; then the
last status has to do, and what the watchdog says, which can be read from any thread, is as fresh as ever. While nobody asks,
nothing is done on the graph's loop.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from orchestrator_adapter.runtime.built_graph import BuiltGraph
from orchestrator_adapter.runtime.status import GraphStatus


@dataclass(frozen=True, slots=True)
class View:
    """What can be said of a graph now.

    Attributes:
        status: The graph between two of its steps.
        age_s: How long ago that was, seconds.
        silent_s: For how long the event loop has not answered, seconds; 0 if it just has.
        threshold_s: From how long a silence on it is stalled, seconds.
        lag_s: How late the loop is now, seconds.
        stalls: How often it has been stalled, now included.
        held_by: The operator's instance that holds the silent loop; empty where nobody knows (yet).
    """

    status: GraphStatus
    age_s: float
    silent_s: float
    threshold_s: float
    lag_s: float
    stalls: int
    held_by: str


@dataclass(frozen=True, slots=True)
class _Snapshot:
    status: GraphStatus
    taken_at: float


@dataclass(slots=True, eq=False)
class _Question:
    """Put to the graph's loop once, for all who ask before it begins to answer."""

    since: float
    answered: asyncio.Future[None]
    begun: bool = False  # set by the graph's thread, before it looks: who comes after that wants a fresher answer
    snapshot: _Snapshot | None = None
    failure: Exception | None = None


class Snapshots:
    """Fetches statuses of ``built`` from its loop. Made on that loop, before the run; used on another one from then on."""

    def __init__(self, built: BuiltGraph, *, patience: timedelta) -> None:
        self._built = built
        self._patience_s = patience.total_seconds()
        self._graph_loop = asyncio.get_running_loop()
        self._latest = self._take()
        self._open: list[_Question] = []  # those that are being answered, and at most one behind them
        self._released = False

    async def view(self) -> View:
        """The graph now, or as it was when its loop last answered; after ``patience`` at the latest.

        The status is never from before the call if the loop answers. Raises ``RuntimeError`` if there is none to be had.
        """
        if not self._open or self._open[-1].begun:
            self._ask()
        question = self._open[-1]
        if not self._released:
            await asyncio.wait({question.answered}, timeout=self._patience_s)
        if question.failure is not None:
            raise RuntimeError("the graph's status could not be taken") from question.failure
        if question.snapshot is not None:
            return self._view(question.snapshot, silent_since=None)
        return self._view(self._latest, silent_since=question.since)

    def release(self) -> None:
        """Let nobody wait any longer: the graph's loop will not answer."""
        self._released = True
        for question in self._open:
            if not question.answered.done():
                question.answered.set_result(None)

    def _view(self, snapshot: _Snapshot, *, silent_since: float | None) -> View:
        now = time.monotonic()
        watchdog = self._built.watchdog
        silent_s = 0.0 if silent_since is None else now - silent_since
        lag_s, threshold_s, stalls, held_by = silent_s, self._patience_s, 0, ""
        if watchdog is not None:
            lag_s, threshold_s, stalls = watchdog.lag_s, watchdog.threshold_s, watchdog.stalls
            if silent_since is not None:
                silent_s = max(silent_s, lag_s)
                held_by = stall.label if (stall := watchdog.current_stall) is not None else ""
        return View(snapshot.status, now - snapshot.taken_at, silent_s, threshold_s, lag_s, stalls, held_by)

    def _ask(self) -> None:
        here = asyncio.get_running_loop()
        question = _Question(time.monotonic(), here.create_future())
        self._open.append(question)
        with suppress(RuntimeError):  # the graph's loop is closed: it will not answer
            self._graph_loop.call_soon_threadsafe(self._answer, question, here)

    def _answer(self, question: _Question, asker: asyncio.AbstractEventLoop) -> None:
        """On the graph's loop. Nothing that goes wrong here may become its problem."""
        question.begun = True
        try:
            question.snapshot = self._take()
        except Exception as error:  # noqa: BLE001 - raised where it was asked for
            question.failure = error
        with suppress(RuntimeError):  # the asker's loop is closed: nobody waits any more
            asker.call_soon_threadsafe(self._answered, question)

    def _answered(self, question: _Question) -> None:
        self._open.remove(question)
        if question.snapshot is not None:
            self._latest = question.snapshot
        if not question.answered.done():
            question.answered.set_result(None)

    def _take(self) -> _Snapshot:
        return _Snapshot(self._built.status(), time.monotonic())
