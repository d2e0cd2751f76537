"""All workers of one bulkhead: their slots, the listener that they connect to, and the budget for replacing them."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from orchestrator_adapter.bulkhead.dispatcher import Dispatcher
from orchestrator_adapter.bulkhead.errors import BulkheadCannotStart, BulkheadExhausted, Rejection
from orchestrator_adapter.bulkhead.launchers.threads import LauncherThreads
from orchestrator_adapter.bulkhead.scheduler import RebuildBudget
from orchestrator_adapter.bulkhead.statistics import Counters
from orchestrator_adapter.bulkhead.transport.connection import Connection
from orchestrator_adapter.bulkhead.transport.listener import Listener
from orchestrator_adapter.bulkhead.worker_slot import Answer, SlotContext, WorkerInstance, WorkerSettings, WorkerSlot
from orchestrator_adapter.primitives.clock import Timeout
from orchestrator_adapter.primitives.errors import describe


class WorkerGroup:
    """Starts, replaces and stops the workers of one bulkhead. It is the ``SlotOwner`` of their slots.

    Attributes:
        exhausted: Why there are no more workers; ``None`` while the budget ``rebuilds`` is not used up.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        workers: int,
        stop_within_s: float,
        budget: RebuildBudget,
        dispatcher: Dispatcher,
        counters: Counters,
    ) -> None:
        self.exhausted: str | None = None
        self._settings = settings
        self._workers = workers
        self._stop_within_s = stop_within_s
        self._budget = budget
        self._dispatcher = dispatcher
        self._counters = counters
        self._clock = settings.clock
        self._log = settings.log
        self._slots: list[WorkerSlot] = []
        self._stopping = False
        self._invited: dict[bytes, WorkerInstance] = {}
        self._all_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._threads = LauncherThreads(settings.bulkhead, workers=workers)
        self._listener = Listener(
            network=settings.launcher.network,
            clock=settings.clock,
            max_bytes=settings.max_bytes,
            key_of=self._key_of,
            on_admitted=self._on_admitted,
            on_rejected=self._on_rejected,
        )

    async def start(self) -> None:
        """Returns when all workers are ready. Raises ``OSError``, or what the launcher raised; call ``stop`` in any case."""
        try:
            address = await self._listener.open()
        except OSError as error:
            raise BulkheadCannotStart(f"bulkhead {self._settings.bulkhead!r}: {error}") from error
        context = SlotContext(
            settings=self._settings,
            owner=self,
            address=address,
            threads=self._threads,
            invited=self._invited,
            displaced=lambda: self._counters.rejected[Rejection.DISPLACED],
        )
        self._slots = [WorkerSlot(number, context) for number in range(1, self._workers + 1)]
        for slot in self._slots:
            slot.task.add_done_callback(self._on_slot_done)
        await self._all_ready

    async def stop(self) -> None:
        """Stop the workers, kill those that do not stop, and close the listener and the threads. All bounded."""
        self._stopping = True
        for slot in self._slots:
            slot.stop()
        if not await self._slots_done():
            for slot in self._slots:
                slot.abort(f"it did not stop within {self._stop_within_s:g} s")
            if not await self._slots_done():
                self._log("worker_not_stopped", workers=sum(not slot.task.done() for slot in self._slots))
                for slot in self._slots:
                    slot.task.cancel()
                await self._slots_done()  # a cancelled slot still passes its worker to the threads, which must be open
        await self._listener.close()
        await self._threads.close(self._clock, within_s=self._stop_within_s)

    # SlotOwner: what a slot reports.

    def on_ready(self, worker: WorkerInstance) -> None:
        """See ``SlotOwner``."""
        self._dispatcher.add_worker(worker)
        if len(self._dispatcher.ready) == self._workers and not self._all_ready.done():
            self._all_ready.set_result(None)

    def on_answer(self, worker: WorkerInstance, ticket: int, answer: Answer) -> None:
        """See ``SlotOwner``."""
        self._dispatcher.on_answer(worker, ticket, answer)

    def on_lost(self, worker: WorkerInstance, reason: str) -> None:
        """See ``SlotOwner``."""
        self._dispatcher.remove_worker(worker, reason)

    def restart_delay_s(self, worker: WorkerInstance, reason: str) -> float | None:
        """See ``SlotOwner``. A worker that is lost while the bulkhead starts is an error; later the budget decides.

        A worker that other peers kept from connecting is not charged: the budget is for what workers do themselves.
        """
        if self._stopping or self.exhausted is not None:
            return None
        if not self._all_ready.done():
            self._all_ready.set_exception(
                BulkheadCannotStart(
                    f"bulkhead {self._settings.bulkhead!r}: worker-{worker.number} did not start: {reason}"
                )
            )
            return None
        now = self._clock.monotonic()
        delay_s: float | None = 0.0  # a worker that was kept out has already waited for its whole start
        if not worker.kept_out:
            delay_s = self._budget.next_delay_s(now, now - worker.ready_at if worker.ready_at is not None else 0.0)
        if delay_s is None:
            self._exhaust(f"worker-{worker.number} was lost: {reason}")
            return None
        self._counters.restarts += 1
        successor = worker.instance + 1
        self._log("worker_restart", worker=worker.number, instance=successor, cause=reason, backoff_s=delay_s)
        return delay_s

    def _on_slot_done(self, task: asyncio.Task[None]) -> None:
        """A slot fails only if it or the launcher has a bug. Callers must not wait for its worker."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        if not self._all_ready.done():
            self._all_ready.set_exception(error)
        elif self.exhausted is None:
            self._exhaust(f"a worker could not be replaced: {describe(error)}")

    # Callbacks of the listener.

    def _key_of(self, token: bytes) -> bytes | None:
        worker = self._invited.get(token)
        return worker.key if worker is not None else None

    def _on_admitted(self, connection: Connection, token: bytes) -> None:
        self._invited.pop(token).connect(connection)  # an invitation can be used once

    def _on_rejected(self, kind: Rejection, reason: str) -> None:
        self._counters.rejected[kind] += 1
        self._log.connection_rejected(kind, reason)

    def _exhaust(self, cause: str) -> None:
        self.exhausted = message = f"bulkhead {self._settings.bulkhead!r}: the budget for rebuilds is used up: {cause}"
        self._log("bulkhead_exhausted", cause=cause)
        self._dispatcher.abort_calls(lambda: BulkheadExhausted(message))
        for slot in self._slots:
            slot.abort("the bulkhead is exhausted")

    async def _slots_done(self) -> bool:
        """Wait ``stop_within_s`` for all slots. Returns whether they have ended."""
        with suppress(TimeoutError):
            async with Timeout(self._clock, self._stop_within_s):
                if self._slots:
                    await asyncio.wait([slot.task for slot in self._slots])
        return all(slot.task.done() for slot in self._slots)
