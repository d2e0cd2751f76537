"""A bulkhead's workers as long-lived task runs: on a process pool of this machine, or on a Dask or a Ray cluster.

Each worker is one task run (``propagator worker-1``; after a restart ``propagator worker-1 #2``). It is *Running* while it
lives, *Completed* when it was asked to stop, *Crashed* when it was lost. Prefect places the worker and shows it; its data does
not pass through Prefect. If no API answers, the worker is a plain local process: the pipeline does not wait for Prefect.

Each worker has a task runner of its own, because a process pool that lost a process cannot be used again.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future as ConcurrentFuture
from typing import Any
from uuid import UUID

import httpx
from prefect import Flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound
from prefect.futures import PrefectWrappedFuture
from prefect.states import Crashed
from prefect.task_runners import ProcessPoolTaskRunner, TaskRunner

from orchestrator_adapter.bulkhead import Invitation, Launcher, LocalProcesses, Network, WorkerHandle
from orchestrator_adapter.bulkhead.worker import ignore_signals, lower_priority, serve
from orchestrator_adapter.prefect_flow.client.api import ask, client_without_retries
from orchestrator_adapter.prefect_flow.client.text import storable
from orchestrator_adapter.primitives.errors import MissingExtra, describe
from orchestrator_adapter.resilience.retry import Permanent, RetryOk

logger = logging.getLogger("orchestrator_adapter.prefect")

_API_ANSWERS_WITHIN_S = 3.0
_ENDS_WITHIN_S = 5.0  # from the end of a worker until its task run has its final state
_REPORT_FOR_S = 60.0  # a server may be unreachable, or may not have recorded the task run yet
_REPORT_EVERY_S = 1.0


@task(name="bulkhead worker", persist_result=False, cache_policy=NO_CACHE)
def bulkhead_worker(invitation: bytes) -> None:
    """Serve as a worker until asked to stop."""
    serve(Invitation.from_bytes(invitation))


def process_pool() -> ProcessPoolTaskRunner:
    """A task runner for one worker on this machine. Signals that stop the flow do not stop the worker."""
    return ProcessPoolTaskRunner(max_workers=1, initializer=_prepare_process)


def dask_launcher(address: str, *, network: Network) -> TaskRunnerLauncher:
    """Workers on the Dask cluster whose scheduler is at ``address``; they connect back to ``network``.

    Give each Dask worker one thread (``--nthreads 1``) and one process: each of our workers occupies one for its whole life.
    Raises ``MissingExtra`` without the extra ``dask``.
    """
    try:
        from prefect_dask.task_runners import DaskTaskRunner  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise _missing("dask") from error
    return TaskRunnerLauncher(lambda: DaskTaskRunner(address=address), network=network)


def ray_launcher(address: str, *, network: Network) -> TaskRunnerLauncher:
    """Workers on the Ray cluster at ``address``; they connect back to ``network``.

    Raises ``MissingExtra`` without the extra ``ray``.
    """
    try:
        from prefect_ray.task_runners import RayTaskRunner  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise _missing("ray") from error
    return TaskRunnerLauncher(lambda: RayTaskRunner(address=address), network=network)


class TaskRunnerLauncher:
    """Launches workers as task runs of the flow run in which it was created; outside a flow run, as plain processes.

    ``make_task_runner`` creates a task runner for one worker. ``network`` says how workers connect back; ``None`` for workers
    on this machine.
    """

    def __init__(
        self, make_task_runner: Callable[[], TaskRunner[Any]] = process_pool, *, network: Network | None = None
    ) -> None:
        self._make_task_runner = make_task_runner
        self._network = network
        self._context = contextvars.copy_context()
        self._plain: Launcher = LocalProcesses(network=network)

    @property
    def network(self) -> Network | None:
        return self._network

    def launch(self, invitation: Invitation) -> WorkerHandle:
        return self._context.copy().run(self._launch, invitation)

    def _launch(self, invitation: Invitation) -> WorkerHandle:
        if (why := asyncio.run(_why_no_task_run())) is not None:
            logger.warning("%s runs as a plain process, not as a task run: %s", invitation.title, why)
            return self._plain.launch(invitation)
        runner = self._make_task_runner()
        # New threads and processes inherit this thread's mask: the flow's signals must not reach the worker.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        try:
            runner.__enter__()
            worker = bulkhead_worker.with_options(task_run_name=invitation.title.replace("{", "{{").replace("}", "}}"))
            with _context_for_worker():
                future = runner.submit(worker, {"invitation": invitation.to_bytes()})
        except Exception as error:
            _close(runner)
            if invitation.instance == 1:
                raise OSError(f"{invitation.title}: {type(runner).__name__} could not place it: {error}") from error
            logger.exception("%s runs as a plain process, not as a task run: it could not be placed", invitation.title)
            return self._plain.launch(invitation)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return TaskRunWorker(invitation.title, runner, future)


class TaskRunWorker:
    """A worker that is a task run."""

    def __init__(self, title: str, runner: TaskRunner[Any], future: PrefectWrappedFuture[Any, Any]) -> None:
        self._title = title
        self._runner = runner
        self._future = future
        self._context = contextvars.copy_context()

    def is_alive(self) -> bool:
        # A Ray future cannot be queried without waiting. Such a worker that does not start is found by the start timeout.
        done: Callable[[], bool] = getattr(self._future.wrapped_future, "done", lambda: False)
        return not done()

    def kill(self, pid: int | None) -> None:  # noqa: ARG002 - the pool knows its process; on a cluster a pid is of no use
        for process in processes_of(self._runner):
            process.kill()
        cancel: Callable[[], object] = getattr(self._future.wrapped_future, "cancel", lambda: None)
        cancel()  # otherwise Dask would run it again on another worker

    def stopped(self, crashed: str | None) -> None:
        ending = threading.Thread(target=self._context.run, args=(self._end, crashed), name=self._title, daemon=True)
        ending.start()
        ending.join(_ENDS_WITHIN_S)

    def _end(self, crashed: str | None) -> None:
        if crashed is None:
            self._future.wait(timeout=_ENDS_WITHIN_S)
        else:
            if (why := _failure(self._future)) is not None:
                logger.warning("%s: %s", self._title, describe(why))
            asyncio.run(_report_crashed(self._future.task_run_id, self._title, crashed))
        _close(self._runner)


def _context_for_worker() -> FlowRunContext:
    """The context of the flow run, for a worker: without the settings, which may be secret, and without the flow's function.

    A task runner pickles the context. Pickling the function would include everything it refers to, or fail on it.
    """
    context = FlowRunContext.get()
    assert context is not None
    assert context.flow is not None
    assert context.flow_run is not None
    stand_in: Flow[[], None] = Flow(_nothing, name=context.flow.name)
    flow_run = context.flow_run.model_copy(update={"parameters": {}})
    return context.model_copy(update={"flow": stand_in, "flow_run": flow_run, "parameters": {}})


def _nothing() -> None:
    """The body of a flow that is never run."""


def processes_of(runner: TaskRunner[Any]) -> list[Any]:
    """The processes of a process pool's task runner; empty for any other task runner.

    Neither Prefect nor ``concurrent.futures`` documents how to get them. A test fails when this changes.
    """
    executor = getattr(runner, "_executor", None)
    return list((getattr(executor, "_processes", None) or {}).values())


def _failure(future: PrefectWrappedFuture[Any, Any]) -> BaseException | None:
    """Why the task run did not start or did not end, if the task runner reports it."""
    wrapped = future.wrapped_future
    if not isinstance(wrapped, ConcurrentFuture) or not wrapped.done() or wrapped.cancelled():
        return None
    return wrapped.exception()


async def _why_no_task_run() -> str | None:
    """Why a worker cannot be a task run now; ``None`` if it can."""
    if FlowRunContext.get() is None:
        return "there is no flow run"
    async with client_without_retries() as client:
        answer = await ask(client.hello(), within_s=_API_ANSWERS_WITHIN_S)
    return None if isinstance(answer, RetryOk) else f"Prefect's API does not answer: {answer}"


async def _report_crashed(task_run_id: UUID, title: str, why: str) -> None:
    """Set the task run Crashed. Prefect itself leaves the task run of a killed process Running for ever."""
    state: State[Any] = Crashed(message=storable(f"the worker was lost: {why}"))
    deadline = time.monotonic() + _REPORT_FOR_S
    async with client_without_retries() as client:
        while time.monotonic() < deadline:
            match await ask(client.set_task_run_state(task_run_id, state, force=True)):
                case RetryOk():
                    return
                case Permanent(error) if not _is_unknown(error):
                    logger.error("Prefect rejects the Crashed state of %s: %s", title, error)
                    return
                case _:
                    await asyncio.sleep(_REPORT_EVERY_S)
    logger.error("the Crashed state of %s could not be reported to Prefect", title)


def _is_unknown(error: BaseException) -> bool:
    """Whether the server does not have the task run yet: it creates it some time after the worker's first event."""
    return isinstance(error, ObjectNotFound) or (
        isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.NOT_FOUND
    )


def _close(runner: TaskRunner[Any]) -> None:
    try:
        runner.__exit__(None, None, None)
    except Exception:
        logger.exception("a task runner could not be closed and is abandoned")


def _prepare_process() -> None:
    """Prepare the worker's process, before its task."""
    ignore_signals()
    lower_priority()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


def _missing(extra: str) -> MissingExtra:
    return MissingExtra(
        f"workers on {extra.capitalize()} need an extra: pip install 'sda-stream-orchestrator[{extra}]'"
    )
