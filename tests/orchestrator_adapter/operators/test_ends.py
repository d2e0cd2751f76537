from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from datetime import timedelta
from typing import Any

import pytest

from orchestrator_adapter.primitives.errors import (
    OperatorError,
    PermanentFailure,
)
from orchestrator_adapter.resilience.retry import Permanent, Retry, RetryDisposition, RetryOk, RetryPolicy
from orchestrator_adapter.storage.dead_letter import DeadLetterKind
from orchestrator_adapter.testing import settle, without_waiting
from tests.helpers.log_lines import event_of
from tests.orchestrator_adapter.operators.bench import Bench, cancel


@pytest.fixture
def bench() -> Bench:
    return Bench()


async def test_outcomes_are_counted_and_dead_letters_stored(bench: Bench) -> None:
    """Duplicates and discards are counted; rejects and dead letters are counted, and stored with their reason."""
    bench.ends.duplicate(2)
    bench.ends.discard()
    bench.ends.reject("r", "out of range")
    bench.ends.dead_letter("d", DeadLetterKind.SCHEMA_MISMATCH, "no such field", attempts=3)
    account = bench.account
    assert (account.duplicates, account.discarded, account.rejected, account.dead_lettered) == (2, 1, 1, 1)
    assert [(letter.kind, letter.message, letter.attempts, letter.payload) for letter in bench.letters.letters] == [
        (DeadLetterKind.VALIDATION_FAILED, "out of range", 1, "r"),
        (DeadLetterKind.SCHEMA_MISMATCH, "no such field", 3, "d"),
    ]


async def test_dead_letters_are_logged_at_a_bounded_rate(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A hundred rejects in one second are one line; the next line has the number that was suppressed."""
    with caplog.at_level(logging.WARNING, "orchestrator_adapter.operator"):
        for _ in range(100):
            bench.ends.reject("r", "out of range")
        bench.clock.advance(1)
        bench.ends.reject("r", "out of range")
    lines = [event_of(record.getMessage()) for record in caplog.records]
    assert [line["not_logged_since_last"] for line in lines] == [0, 99]
    assert lines[0] | {"not_logged_since_last": 0} == {
        "event": "dead_letter",
        "operator": "op",
        "kind": "ValidationFailed",
        "message": "out of range",
        "instance": bench.ends.instance,
        "not_logged_since_last": 0,
    }


# Resources, threads, retries.


async def test_kept_resources_are_made_once_and_closed_in_reverse(bench: Bench) -> None:
    """``keep`` returns the same object again. They are closed in reverse order, and an error does not stop the others."""
    closed: list[str] = []

    def failing(name: str) -> None:
        closed.append(name)
        raise OSError("busy")

    assert bench.ends.keep("a", lambda: "first", closed.append) == "first"
    assert bench.ends.keep("a", lambda: "second", closed.append) == "first"
    bench.ends.keep("b", lambda: "b", failing)
    bench.ends.keep("c", lambda: "c", closed.append)
    problems = await bench.services.kept.close_all(20)
    assert closed == ["c", "b", "first"]
    assert [str(problem) for problem in problems] == ["busy"]
    assert await bench.services.kept.close_all(20) == []


async def test_a_resource_whose_make_failed_is_made_at_the_next_call(bench: Bench) -> None:
    """If ``make`` raises, nothing is kept, and the restarted instance calls it again."""

    def failing() -> str:
        raise OSError("port taken")

    with pytest.raises(OSError, match="port taken"):
        bench.ends.keep("socket", failing)
    assert bench.ends.keep("socket", lambda: "open") == "open"


async def test_blocking_work_runs_in_another_thread(bench: Bench) -> None:
    """``run_blocking`` runs in a thread, and returns the result or raises the exception."""
    assert await bench.ends.run_blocking(threading.get_ident) != threading.get_ident()
    with pytest.raises(OSError, match="disk"):
        await bench.ends.run_blocking(_fail, OSError("disk"))


async def test_a_blocking_function_that_raises_stop_iteration_does_not_hang(bench: Bench) -> None:
    """``run_blocking(next, empty)`` raises. A future with a ``StopIteration`` would never complete."""
    async with asyncio.timeout(20):
        with pytest.raises(RuntimeError, match="a blocking function raised StopIteration"):
            await bench.ends.run_blocking(next, iter([]))


async def test_a_cancelled_write_is_completed_and_acknowledged(bench: Bench) -> None:
    """If it is cancelled while the thread writes, ``acknowledge_after`` acknowledges first, and then raises."""
    begun, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def write() -> None:
        loop.call_soon_threadsafe(begun.set)
        may_end.wait(20)

    bench.feed.offer("ab")
    bench.ends.receiver.try_recv_many()
    writing = asyncio.create_task(bench.ends.acknowledge_after(2, write))
    await begun.wait()
    for _ in range(3):
        writing.cancel()
        await settle()
    assert not writing.done()
    assert bench.ends.receiver.leased == 2
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert bench.ends.receiver.leased == 0


async def test_a_failed_write_acknowledges_nothing(bench: Bench) -> None:
    """If the function raises, every item stays leased."""
    bench.feed.offer("ab")
    bench.ends.receiver.try_recv_many()
    with pytest.raises(OSError, match="disk full"):
        await bench.ends.acknowledge_after(2, _fail, OSError("disk full"))
    assert bench.ends.receiver.leased == 2


async def test_unless_shutdown_returns_what_the_work_returns(bench: Bench) -> None:
    """Work that ends before a shutdown returns its result or raises its exception, and leaks no task."""
    before = asyncio.all_tasks()
    assert await bench.ends.unless_shutdown(_give("page")) == "page"
    with pytest.raises(OperatorError, match="rejected"):
        await bench.ends.unless_shutdown(_raise(OperatorError("rejected")))
    assert asyncio.all_tasks() == before


async def test_unless_shutdown_cancels_the_work_at_a_shutdown(bench: Bench) -> None:
    """Work that would wait for ever is cancelled, and the result is ``None``."""
    before = asyncio.all_tasks()
    working = asyncio.create_task(bench.ends.unless_shutdown(asyncio.Event().wait()))
    await settle()
    bench.shutdown.set("test")
    assert await working is None
    assert asyncio.all_tasks() == before


async def test_unless_shutdown_passes_on_how_cancelled_work_ends(bench: Bench) -> None:
    """An error in the clean-up of the work is raised. A result that it returns in spite of the cancellation is returned."""

    async def failing() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise KeyError("clean-up")

    async def ignoring() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "received nevertheless"
        raise AssertionError

    working = [
        asyncio.create_task(bench.ends.unless_shutdown(failing())),
        asyncio.create_task(bench.ends.unless_shutdown(ignoring())),
    ]
    await settle()
    bench.shutdown.set("test")
    failed, result = await asyncio.gather(*working, return_exceptions=True)
    assert isinstance(failed, KeyError)
    assert result == "received nevertheless"


async def test_unless_shutdown_cancelled_from_outside_leaks_no_task(bench: Bench) -> None:
    """Its own cancellation is raised, and the work is cancelled too."""
    before = asyncio.all_tasks()
    working = asyncio.create_task(bench.ends.unless_shutdown(asyncio.Event().wait()))
    await settle()
    await cancel(working)
    assert asyncio.all_tasks() == before


async def test_a_downstream_that_sometimes_fails_is_logged_once_a_second(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand calls within a second, of which many fail once, are one line. The next second has one line of its state."""
    bench = Bench()
    once = RetryPolicy(timedelta(milliseconds=1), timedelta(milliseconds=1), max_attempts=2)
    failures = itertools.cycle([True, False, False])

    async def flaky() -> RetryDisposition[int]:
        return Retry(ConnectionError("reset")) if next(failures) else RetryOk(1)

    async def rejecting() -> RetryDisposition[int]:
        return Permanent(ValueError("404"))

    def logged() -> list[dict[str, Any]]:
        return [event_of(line.message) for line in caplog.records if "downstream_" in line.message]

    with caplog.at_level(logging.INFO), without_waiting():
        for _ in range(1_000):
            await bench.ends.with_retry(once, flaky)
        assert logged() == [
            {
                "event": "downstream_failing",
                "operator": "op",
                "downstream": "op",
                "attempt": 1,
                "error": "ConnectionError: reset",
            }
        ]
        bench.clock.advance(1.0)
        for _ in range(4):
            with pytest.raises(PermanentFailure):
                await bench.ends.with_retry(once, rejecting)
        assert len(logged()) == 1
        await bench.ends.with_retry(once, flaky)
    assert logged()[1:] == [{"event": "downstream_answers", "operator": "op", "downstream": "op", "attempt": 2}]


def _fail(error: Exception) -> None:
    raise error


async def _give(value: str) -> str:
    return value


async def _raise(error: Exception) -> None:
    raise error
