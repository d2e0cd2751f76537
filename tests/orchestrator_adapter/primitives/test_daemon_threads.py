"""``DaemonThreads``: an executor that does not keep the process alive."""

from __future__ import annotations

import threading

import pytest

from orchestrator_adapter.primitives.daemon_threads import DaemonThreads


def test_calls_return_raise_and_reuse_an_idle_thread() -> None:
    """A call that follows the end of another one starts no second thread. Its threads are daemons."""
    threads = DaemonThreads("reused")
    first = threads.submit(threading.current_thread).result(20)
    assert threads.submit(threading.current_thread).result(20) is first
    assert first.daemon
    with pytest.raises(ZeroDivisionError):
        threads.submit(divmod, 1, 0).result(20)
    assert threads.submit(threading.current_thread).result(20) is first
    threads.shutdown()
    first.join(20)
    assert not first.is_alive()


def test_calls_beyond_the_most_threads_are_queued_in_order() -> None:
    """They run when a thread is free."""
    threads, may_end, order = DaemonThreads("bounded", max_threads=1), threading.Event(), list[int]()
    first = threads.submit(may_end.wait, 60)
    others = [threads.submit(order.append, number) for number in range(5)]
    assert order == []
    assert not first.done()
    may_end.set()
    for other in others:
        other.result(20)
    assert order == [0, 1, 2, 3, 4]
    threads.shutdown()


def test_a_call_that_is_cancelled_while_it_is_queued_does_not_run() -> None:
    """The next one does."""
    threads, may_end, ran = DaemonThreads("cancelled", max_threads=1), threading.Event(), list[str]()
    threads.submit(may_end.wait, 60)
    cancelled, other = threads.submit(ran.append, "cancelled"), threads.submit(ran.append, "other")
    assert cancelled.cancel()
    may_end.set()
    other.result(20)
    assert ran == ["other"]
    threads.shutdown()


def test_a_call_after_the_shutdown_is_an_error() -> None:
    """The message names the threads."""
    threads = DaemonThreads("closed")
    threads.shutdown()
    with pytest.raises(RuntimeError, match="the threads 'closed' are shut down"):
        threads.submit(int)
