"""``DaemonThreads``: an executor whose threads do not keep the process alive. Knows nothing of what it calls."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class DaemonThreads(Executor):
    """Runs calls in daemon threads, for ``loop.run_in_executor``.

    Python waits at its exit for the threads of a ``ThreadPoolExecutor``: one call that hangs then keeps the process alive.
    It does not wait for these threads: a call that still runs when the process ends does not finish. A thread is started when
    no thread is idle, up to ``max_threads``; further calls are queued. Threads end with ``shutdown``.
    """

    def __init__(self, name: str, *, max_threads: int | None = None) -> None:
        """``name`` is the prefix of the threads' names."""
        self._name = name
        self._max_threads = max_threads
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._idle = 0  # threads that wait for a call, minus the calls that are in the queue for them
        self._started = 0
        self._closed = False

    def submit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run ``function`` in a thread. Raises ``RuntimeError`` after ``shutdown``, or if no thread can be started."""
        future: Future[R] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError(f"the threads {self._name!r} are shut down")
            if self._idle > 0:
                self._idle -= 1
            elif self._max_threads is None or self._started < self._max_threads:
                thread = threading.Thread(target=self._work, name=f"{self._name}-{self._started}", daemon=True)
                thread.start()
                self._started += 1
            self._calls.put((future, partial(function, *args, **kwargs)))
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - the interface of Executor
        """Let each thread end after its present call and the queued ones. Never waits."""
        with self._lock:
            self._closed = True
            for _ in range(self._started):
                self._calls.put(None)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            future, function = call
            del call
            if future.set_running_or_notify_cancel():
                self._run(future, function)
            else:
                self._is_idle()
            del future, function  # an idle thread must not keep the last call's objects alive

    def _run(self, future: Future[Any], function: Callable[[], Any]) -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - it is raised where the future is awaited
            self._is_idle()
            future.set_exception(error)
        else:
            self._is_idle()
            future.set_result(result)

    def _is_idle(self) -> None:
        """Called before the future is done: the next call, made in consequence, must find this thread idle."""
        with self._lock:
            self._idle += 1
