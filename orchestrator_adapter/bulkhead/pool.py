"""``Bulkhead``: long-lived worker processes that answer requests made of arrays, supervised, behind one small interface.

It runs on the caller's event loop; blocking operations (launch, kill, reap) run on threads. A worker that dies or hangs is
replaced within a budget and another worker answers its calls: callers see only a delay. It knows nothing of what is computed.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

from numpy.typing import NDArray

from orchestrator_adapter.bulkhead.dispatcher import Dispatcher
from orchestrator_adapter.bulkhead.errors import BulkheadClosed, BulkheadExhausted
from orchestrator_adapter.bulkhead.launchers.launcher import Launcher
from orchestrator_adapter.bulkhead.launchers.local import LocalProcesses
from orchestrator_adapter.bulkhead.log import BulkheadLog
from orchestrator_adapter.bulkhead.scheduler import RebuildBudget
from orchestrator_adapter.bulkhead.statistics import BulkheadEvent, BulkheadStatistics, Counters
from orchestrator_adapter.bulkhead.transport.wire import MAX_BYTES, Arrays
from orchestrator_adapter.bulkhead.worker_group import WorkerGroup
from orchestrator_adapter.bulkhead.worker_slot import WorkerSettings
from orchestrator_adapter.primitives.check_fields import check_fields
from orchestrator_adapter.primitives.clock import Clock, SystemClock, Timeout
from orchestrator_adapter.primitives.errors import DuplicateRun
from orchestrator_adapter.supervision.restart import RestartPolicy


class Bulkhead:
    """``async with Bulkhead("propagator", "sda_ops.propagation.worker:PropagationWorker", …) as bulkhead: await bulkhead.call(…)``.

    ``target`` is ``module:name`` of a callable without arguments that makes a ``Handler`` in each of the ``workers``
    processes. Each worker is sent up to ``in_flight`` calls at a time, so that it need not wait for the next one. A worker
    that has been working on one call for ``answer_within`` hangs, and is killed. ``rebuilds`` bounds how often lost workers
    are replaced, all workers together.

    ``start_within`` bounds how long a worker may take to be ready. ``drain_within`` bounds how long closing waits for calls,
    and then for workers to stop. ``max_bytes`` is the largest size of a request or an answer. ``on_event`` is called with every
    decision. Workers are local processes unless ``launcher`` starts them.

    A bulkhead is entered once, on the loop on which it is used. Constructing it opens nothing.
    """

    def __init__(
        self,
        name: str,
        target: str,
        *,
        workers: int = 1,
        in_flight: int = 2,
        answer_within: timedelta,
        rebuilds: RestartPolicy,
        launcher: Launcher | None = None,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        on_event: Callable[[BulkheadEvent], object] | None = None,
        start_within: timedelta = timedelta(seconds=60),
        drain_within: timedelta = timedelta(seconds=5),
        max_bytes: int = MAX_BYTES,
    ) -> None:
        counts = {"workers": workers, "in_flight": in_flight, "max_bytes": max_bytes}
        durations = {"answer_within": answer_within, "start_within": start_within, "drain_within": drain_within}
        check_fields(
            f"bulkhead {name!r}",
            *((what, count, count >= 1, ">= 1") for what, count in counts.items()),
            *((what, span, span > timedelta(0), "> 0") for what, span in durations.items()),
            ("target", target, all(target.partition(":")), "'module:name'"),
        )
        self.name = name
        self._target = target
        self._workers = workers
        self._start_within_s = start_within.total_seconds()
        self._drain_within_s = drain_within.total_seconds()
        self._max_bytes = max_bytes
        self._launcher = launcher
        self._clock = clock or SystemClock()
        self._log = BulkheadLog(name, on_event, self._clock)
        self._budget = RebuildBudget(rebuilds, rng or random.Random())
        self._counters = Counters()
        self._dispatcher = Dispatcher(
            name,
            in_flight=in_flight,
            answer_within_s=answer_within.total_seconds(),
            max_bytes=max_bytes,
            counters=self._counters,
            clock=self._clock,
            log=self._log,
        )
        self._group: WorkerGroup | None = None
        self._entered = self._open = False

    def launch_with(self, launcher: Launcher) -> None:
        """Use ``launcher``, unless the constructor was given one. Only before the bulkhead is entered."""
        if self._entered:
            raise DuplicateRun(f"bulkhead {self.name!r} has been entered; its launcher cannot change any more")
        self._launcher = self._launcher or launcher

    async def __aenter__(self) -> Self:
        """Start the workers. Returns when all are ready. Raises ``OSError`` if one does not start; all are stopped then."""
        if self._entered:
            raise DuplicateRun(f"bulkhead {self.name!r} has been entered before; make another one")
        self._entered = True
        settings = WorkerSettings(
            bulkhead=self.name,
            target=self._target,
            max_bytes=self._max_bytes,
            start_within_s=self._start_within_s,
            launcher=self._launcher or LocalProcesses(),
            clock=self._clock,
            log=self._log,
        )
        self._group = group = WorkerGroup(
            settings,
            workers=self._workers,
            stop_within_s=self._drain_within_s,
            budget=self._budget,
            dispatcher=self._dispatcher,
            counters=self._counters,
        )
        try:
            await group.start()
        except BaseException:
            await _despite_cancellation(self._stop(group))
            raise
        self._open = True
        self._log("bulkhead_ready", workers=self._workers, target=self._target)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Accept no more calls, wait for the present ones, stop the workers, and kill those that do not stop. All bounded."""
        assert self._group is not None
        self._open = False
        try:
            with suppress(TimeoutError):  # the remaining calls are aborted
                async with Timeout(self._clock, self._drain_within_s):
                    await self._dispatcher.wait_until_idle()
        finally:
            await _despite_cancellation(self._stop(self._group))

    async def call(self, method: str, arrays: Arrays) -> dict[str, NDArray[Any]]:
        """Have a worker's handler answer. Suspends until it has; while all places are taken, this is the backpressure.

        Calls begin in the order in which they were made and see all state shared before; several workers may answer in any
        order. The arrays must not change until this returns. The caller owns the returned arrays. If the caller is cancelled,
        the answer is discarded and the worker remains usable.

        Raises ``HandlerFailed`` if the handler raised, ``BatchLost`` if a second worker was lost during the call,
        ``BulkheadExhausted`` if the budget ``rebuilds`` is used up, ``BulkheadClosed`` outside ``async with``, and
        ``TypeError`` or ``ValueError`` for arrays that cannot be sent.
        """
        self._require_open()
        return await self._dispatcher.call(method, arrays)

    async def share(self, key: str, arrays: Arrays) -> None:
        """Give every worker ``arrays`` under ``key``. Returns when each has confirmed. Calls made afterwards see them.

        The arrays are copied and stored: a worker that starts later receives all shared state before its first call. A call
        made before may see them, too. After a cancellation they may be shared or not.

        Raises ``HandlerFailed`` if a handler rejected them, and otherwise as ``call`` does. After a rejection, workers that
        start later receive what was shared under ``key`` before.
        """
        self._require_open()
        await self._dispatcher.share(key, arrays)
        self._raise_if_exhausted()

    def statistics(self) -> BulkheadStatistics:
        """The current figures."""
        ready = self._dispatcher.ready
        return BulkheadStatistics(
            name=self.name,
            workers=self._workers,
            alive=len(ready),
            pids={worker.number: worker.pid for worker in ready if worker.pid is not None},
            hosts={worker.number: worker.host for worker in ready},
            waiting=self._dispatcher.waiting,
            in_flight=self._dispatcher.in_flight,
            exhausted=self._group is not None and self._group.exhausted is not None,
            **asdict(self._counters),
        )

    def _require_open(self) -> None:
        self._raise_if_exhausted()
        if not self._open:
            raise BulkheadClosed(f"bulkhead {self.name!r} is {'closed' if self._entered else 'not open yet'}")

    def _raise_if_exhausted(self) -> None:
        if self._group is not None and self._group.exhausted is not None:
            raise BulkheadExhausted(self._group.exhausted)

    async def _stop(self, group: WorkerGroup) -> None:
        self._dispatcher.close()
        self._dispatcher.abort_calls(
            lambda: BulkheadClosed(f"bulkhead {self.name!r} was closed before it had answered")
        )
        await group.stop()
        counters = self._counters
        self._log(
            "bulkhead_closed",
            calls=counters.calls,
            answered=counters.answered,
            lost=counters.lost,
            restarts=counters.restarts,
        )


async def _despite_cancellation(closing: Awaitable[None]) -> None:
    """Await ``closing``, which is bounded, to its end. If the caller is cancelled, that is raised afterwards."""
    task = asyncio.ensure_future(closing)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
