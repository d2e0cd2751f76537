"""One worker's life: launch, handshake, frames, death, replacement.

``WorkerSlot`` supervises one worker number and ``WorkerInstance`` is one process in it. They know nothing of calls: their
``SlotOwner`` receives the answers and decides whether a lost worker is replaced.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from orchestrator_adapter.bulkhead.errors import Malformed
from orchestrator_adapter.bulkhead.launchers.launcher import Launcher, WorkerHandle
from orchestrator_adapter.bulkhead.launchers.threads import LauncherThreads
from orchestrator_adapter.bulkhead.log import BulkheadLog
from orchestrator_adapter.bulkhead.transport.connection import Connection
from orchestrator_adapter.bulkhead.transport.handshake import KEY_BYTES, TOKEN_BYTES
from orchestrator_adapter.bulkhead.transport.invitation import Invitation
from orchestrator_adapter.bulkhead.transport.listener import Address
from orchestrator_adapter.bulkhead.transport.wire import Failure, Frame, Message, encode
from orchestrator_adapter.primitives.clock import Clock, sleep

Answer: TypeAlias = dict[str, NDArray[Any]] | Failure

_POLL_S = 0.05  # how often a worker that has not connected yet is checked for being alive


class SlotOwner(Protocol):
    """What a slot reports to, on the event loop."""

    def on_ready(self, worker: WorkerInstance) -> None:
        """The worker can be sent calls."""

    def on_answer(self, worker: WorkerInstance, ticket: int, answer: Answer) -> None:
        """The worker has answered. Raise ``Malformed`` to close its connection."""

    def on_lost(self, worker: WorkerInstance, reason: str) -> None:
        """The connection of a worker that was ready has ended."""

    def restart_delay_s(self, worker: WorkerInstance, reason: str) -> float | None:
        """The worker has ended because of ``reason``. Seconds until its successor is launched; ``None`` for no successor."""
        ...


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What is the same for all workers of one bulkhead; see ``Bulkhead``."""

    bulkhead: str
    target: str
    max_bytes: int
    start_within_s: float
    launcher: Launcher
    clock: Clock
    log: BulkheadLog


@dataclass(frozen=True, slots=True)
class SlotContext:
    """What the slots of one bulkhead share.

    Attributes:
        invited: The instances that have an unused invitation, by its token.
        displaced: How many pending handshakes were closed because there were too many.
    """

    settings: WorkerSettings
    owner: SlotOwner
    address: Address
    threads: LauncherThreads
    invited: dict[bytes, WorkerInstance]
    displaced: Callable[[], int]


class WorkerInstance:
    """One worker process, from its invitation to its end.

    Attributes:
        number: The worker's number in the bulkhead, counted from 1.
        instance: 1 for the first process with this number; each restart adds 1.
        ended: Done when its connection has ended; the result is the reason.
        ready_at: Monotonic seconds; ``None`` before it was ready.
        stopping: The bulkhead has stopped it, so the end of its connection is no loss.
        handle: Set by the launching thread, unless the instance was disowned before.
        kept_out: It ran and could not connect in time, while other peers' connections displaced pending handshakes.
    """

    def __init__(self, number: int, instance: int, context: SlotContext) -> None:
        self.number = number
        self.instance = instance
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.ready_at: float | None = None
        self.stopping = False
        self.handle: WorkerHandle | None = None
        self.kept_out = False
        self.key = secrets.token_bytes(KEY_BYTES)
        self.pid: int | None = None
        self.host = ""
        self._context = context
        self._connection: Connection | None = None
        self._launch_logged = False
        self._disowned = False
        self._lock = threading.Lock()  # guards handle and _disowned

    @property
    def connected(self) -> bool:
        """Whether it has connected and authenticated at any time."""
        return self._connection is not None

    def launch(self, invitation: Invitation) -> None:
        """Launch the process. Called on a thread. If the instance has been disowned by then, the process is killed."""
        handle = self._context.settings.launcher.launch(invitation)
        with self._lock:
            if not self._disowned:
                self.handle = handle
                return
        handle.kill(None)
        handle.stopped("it is not needed any more")

    def disown(self) -> None:
        """A launch that has not returned yet must kill its process itself."""
        with self._lock:
            self._disowned = True

    def log_launched(self) -> None:
        """Log it once: a worker may connect before the launching thread returns."""
        if not self._launch_logged:
            self._launch_logged = True
            self._context.settings.log("worker_launched", worker=self.number, instance=self.instance)

    def connect(self, connection: Connection) -> None:
        """It has authenticated."""
        self._connection = connection
        connection.on_frame = self._on_frame
        connection.lost.add_done_callback(lambda lost: self._on_connection_lost(lost.result()))

    def send(self, message: Message) -> None:
        """Send it a message. Only after it has connected."""
        assert self._connection is not None
        self._connection.send(message)

    def stop(self) -> None:
        """Send it the message to stop."""
        self.stopping = True
        self.send(encode("stop"))

    def close(self, reason: str) -> None:
        """Close its connection, if it has one."""
        if self._connection is not None:
            self._connection.close(reason)

    def abort(self, reason: str) -> None:
        """Close its connection, or stop waiting for it to connect. The slot then kills the process."""
        self.stopping = False
        if self._connection is not None:
            self._connection.close(reason)
        elif not self.ended.done():
            self.ended.set_result(reason)

    def _on_frame(self, frame: Frame) -> None:
        """Raises ``Malformed`` if the worker may not send this frame now."""
        header, ready = frame.header, self.ready_at is not None
        match header.kind:
            case "joined" if self.pid is None:
                self.pid, self.host = header.ticket, header.name
                self.log_launched()
            case "ready" if self.pid is not None and not ready:
                self.ready_at = self._context.settings.clock.monotonic()
                self._context.owner.on_ready(self)
                self._context.settings.log(
                    "worker_ready", worker=self.number, instance=self.instance, pid=self.pid, host=self.host
                )
            case "failed" if header.failure is not None and not ready:
                failure = header.failure
                target = self._context.settings.target
                raise Malformed(f"the handler {target!r} could not be made: {failure.type}: {failure.message}")
            case "answer" if ready:
                self._context.owner.on_answer(self, header.ticket, frame.arrays)
            case "failed" if header.failure is not None and ready:
                self._context.owner.on_answer(self, header.ticket, header.failure)
            case kind:
                raise Malformed(f"a worker may not send {kind!r} now")

    def _on_connection_lost(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)
        if self.ready_at is not None:
            self._context.owner.on_lost(self, reason)


class WorkerSlot:
    """Keeps one worker of this number running, one instance after the other, until it is stopped or may not be restarted."""

    def __init__(self, number: int, context: SlotContext) -> None:
        self.number = number
        self._context = context
        self._current: WorkerInstance | None = None
        self._stopping = False
        self._aborted = False
        self.task = asyncio.create_task(self._supervise(), name=f"bulkhead-{context.settings.bulkhead}-worker-{number}")

    def stop(self) -> None:
        """Stop the worker; if none is ready, cancel launching one."""
        self._stopping = True
        worker = self._current
        if worker is not None and worker.ready_at is not None and not worker.ended.done():
            worker.stop()
        else:
            self.task.cancel()

    def abort(self, reason: str) -> None:
        """Close the worker's connection, so that it is killed, and launch no successor."""
        self._aborted = True
        if self._current is not None:
            self._current.abort(reason)

    async def _supervise(self) -> None:
        for instance in itertools.count(1):
            worker = WorkerInstance(self.number, instance, self._context)
            reason = await self._run(worker)
            delay_s = self._context.owner.restart_delay_s(worker, reason)
            if delay_s is None:
                return
            if delay_s:
                await sleep(self._context.settings.clock, delay_s)
            if self._aborted:  # during the backoff
                return

    async def _run(self, worker: WorkerInstance) -> str:
        """Launch a worker and follow it until it has ended. Returns the reason of its end."""
        context = self._context
        token = secrets.token_bytes(TOKEN_BYTES)
        context.invited[token] = worker
        self._current = worker
        reason = "it is not needed any more"
        try:
            await context.threads.run(partial(worker.launch, self._invitation(worker, token)))
            if worker.handle is not None:
                worker.log_launched()
                reason = await self._until_ended(worker, worker.handle)
        except OSError as error:
            reason = f"it could not be launched: {error}"
        finally:
            # After a cancellation the launch may still be running: either the handle is set by now, and the process is
            # killed below, or the launching thread kills it.
            worker.disown()
            context.invited.pop(token, None)
            self._current = None
            worker.close(reason)
            if worker.handle is not None:
                await self._kill_and_reap(worker, worker.handle, reason)
        return reason

    def _invitation(self, worker: WorkerInstance, token: bytes) -> Invitation:
        settings, address = self._context.settings, self._context.address
        return Invitation(
            bulkhead=settings.bulkhead,
            worker=worker.number,
            instance=worker.instance,
            target=settings.target,
            token=token,
            key=worker.key,
            max_bytes=settings.max_bytes,
            path=address.path,
            host=address.host,
            port=address.port,
            credentials=address.credentials,
            start_within_s=settings.start_within_s,
        )

    async def _until_ended(self, worker: WorkerInstance, handle: WorkerHandle) -> str:
        clock, start_within_s = self._context.settings.clock, self._context.settings.start_within_s
        deadline = clock.monotonic() + start_within_s
        displaced_before = self._context.displaced()
        while worker.ready_at is None and not worker.ended.done():
            if not worker.connected and not handle.is_alive():
                return "it ended before it had connected"
            if clock.monotonic() >= deadline:
                displaced = self._context.displaced() - displaced_before
                worker.kept_out = displaced > 0 and not worker.connected
                why = f": {displaced} pending handshakes were displaced by other connections" if worker.kept_out else ""
                return f"it was not ready within {start_within_s:g} s{why}"
            await asyncio.wait({worker.ended}, timeout=_POLL_S)
        return await asyncio.shield(worker.ended)

    async def _kill_and_reap(self, worker: WorkerInstance, handle: WorkerHandle, reason: str) -> None:
        """Returns when it has been killed. A successor does not wait until it has been reaped, which may take long."""
        threads, log = self._context.threads, self._context.settings.log
        in_order = worker.stopping and worker.ended.done()
        if in_order or (self._stopping and worker.ready_at is None):
            log("worker_stopped", worker=worker.number, instance=worker.instance)
        else:
            log("worker_lost", worker=worker.number, instance=worker.instance, pid=worker.pid, cause=reason)
        killed = None if in_order else asyncio.ensure_future(threads.run(partial(handle.kill, worker.pid)))
        threads.reap(partial(handle.stopped, None if in_order else reason), after=killed)
        if killed is not None:
            await asyncio.shield(killed)  # if this task is cancelled, reaping still waits for it
