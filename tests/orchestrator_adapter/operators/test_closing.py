"""Generators and kept resources are closed within the run, and what they raise then is reported."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from orchestrator_adapter import BuiltGraph, SupervisionPolicy, WiredEnds, events, source_of
from orchestrator_adapter.process import ExitCode, exit_code
from orchestrator_adapter.testing import CollectSink, chain, run_graph
from tests.helpers.running import GatedSink, eventually


class Feed:
    """Generators of numbers without end. ``closed`` says whether their ``finally`` has run; it raises ``error``."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.closed = False
        self._error = error

    def plain(self) -> Iterator[int]:
        try:
            yield from range(1_000_000)
        finally:
            self._close()

    async def suspended_at_yield(self) -> AsyncIterator[int]:
        try:
            for number in range(1_000_000):
                yield number
        finally:
            await asyncio.sleep(0)
            self._close()

    async def suspended_at_await(self) -> AsyncIterator[int]:
        try:
            yield 0
            await asyncio.get_running_loop().create_future()
        finally:
            self._close()

    def _close(self) -> None:
        self.closed = True
        if self._error is not None:
            raise self._error


KINDS = pytest.mark.parametrize("generator", [Feed.plain, Feed.suspended_at_yield, Feed.suspended_at_await])


async def stopped(items: Any) -> events.SupervisorEvent:
    sink = GatedSink()

    async def stop(built: BuiltGraph) -> None:
        await eventually(lambda: built.ledger().ingested > 0, "the first item")
        built.request_shutdown("enough")
        sink.gate.set()

    event = await run_graph(chain(source_of(items, batch=1), sink, capacity=1), during=stop)
    assert event.figures.ledger_holds
    return event


@KINDS
async def test_a_generator_is_closed_before_the_run_has_ended(generator: Callable[[Feed], Any]) -> None:
    """Its ``finally`` has run when the event is returned. Without an error there is no problem."""
    feed = Feed()
    event = await stopped(generator(feed))
    assert feed.closed
    assert (event.figures.problems, exit_code(event)) == ((), ExitCode.OK)


@KINDS
async def test_an_operational_error_of_a_closed_generator_is_a_problem_of_the_run(
    generator: Callable[[Feed], Any],
) -> None:
    """Nothing is lost, so the exit code stays 0."""
    event = await stopped(generator(Feed(OSError("offset commit failed"))))
    assert event.figures.problems == ("closing what 'source' kept: OSError: offset commit failed",)
    assert isinstance(event, events.ShutDown)
    assert exit_code(event) == ExitCode.OK


@KINDS
async def test_a_bug_in_a_closed_generator_is_a_panic_of_the_source(generator: Callable[[Feed], Any]) -> None:
    """The exit code is 4."""
    event = await stopped(generator(Feed(TypeError("offsets"))))
    assert isinstance(event, events.Panicked)
    assert (event.operator, event.chain[0]) == ("source", "TypeError: offsets")
    assert exit_code(event) == ExitCode.PANICKED


async def test_a_generator_whose_source_is_restarted_is_closed_only_at_the_end() -> None:
    """The next instance continues with it."""
    feed, inner_sink = Feed(), GatedSink()
    inner = source_of(feed.plain(), batch=1)

    async def fails_once(ends: WiredEnds) -> None:
        if ends.instance == 1:
            running = asyncio.ensure_future(inner(ends))
            await eventually(lambda: ends.account.emitted, "the first item")
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            raise OSError("cable")
        assert not feed.closed
        await inner(ends)

    async def stop(built: BuiltGraph) -> None:
        await eventually(lambda: built.status().restarts, "the restart")
        inner_sink.gate.set()
        await eventually(lambda: built.ledger().written > 10, "items of the second instance")
        built.request_shutdown("enough")

    event = await run_graph(chain(fails_once, inner_sink, capacity=1), during=stop)
    assert feed.closed
    assert isinstance(event, events.ShutDown)
    assert event.figures.ledger_holds


async def test_a_generator_is_closed_although_its_operator_has_failed_for_good() -> None:
    """The sink exhausts the budget; the source's generator is closed and its error is reported."""
    feed = Feed(OSError("offset commit failed"))

    async def full(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        raise OSError("disk full")

    event = await run_graph(chain(source_of(feed.plain(), batch=1), full, capacity=1))
    assert isinstance(event, events.BudgetExhausted)
    assert feed.closed
    assert "closing what 'source' kept: OSError: offset commit failed" in event.figures.problems


async def test_an_iterator_that_is_no_generator_is_not_closed() -> None:
    """A file, for example, belongs to who opened it."""

    class Numbers(Iterator[int]):
        closed = False

        def __next__(self) -> int:
            raise StopIteration

        def close(self) -> None:
            self.closed = True

    numbers = Numbers()
    await run_graph(chain(source_of(numbers), CollectSink()))
    assert not numbers.closed


async def test_a_kept_resource_whose_close_is_a_coroutine_is_awaited() -> None:
    """A close that does not end within the patience is a problem, and the other resources are closed."""
    closed: list[str] = []

    async def close(name: str) -> None:
        await asyncio.sleep(0)
        closed.append(name)

    async def hang(_: str) -> None:
        await asyncio.get_running_loop().create_future()

    async def keeps(ends: WiredEnds) -> None:
        ends.keep("first", lambda: "first", close)
        ends.keep("second", lambda: "second", hang)

    policy = SupervisionPolicy(patience=timedelta(milliseconds=20))
    event = await run_graph(chain(keeps, CollectSink()), policy=policy)
    assert closed == ["first"]
    (problem,) = event.figures.problems
    assert problem == "closing what 'source' kept: TimeoutError: closing 'second' did not end within 0.02 s"


async def test_a_close_that_raises_a_cancellation_is_a_bug_of_its_operator() -> None:
    """For example the result of a task that was cancelled. The run has its event, and the other resources are closed."""
    closed: list[str] = []

    def fail(_: str) -> None:
        raise asyncio.CancelledError

    async def keeps(ends: WiredEnds) -> None:
        ends.keep("first", lambda: "first", closed.append)
        ends.keep("second", lambda: "second", fail)

    event = await run_graph(chain(keeps, CollectSink()))
    assert isinstance(event, events.Panicked)
    assert closed == ["first"]
    assert event.figures.problems == (
        "closing what 'source' kept: RuntimeError: closing 'second' raised CancelledError",
    )


async def test_a_run_that_is_cancelled_while_it_closes_closes_everything() -> None:
    """The event is there; then the cancellation is raised."""
    closing, may_end = asyncio.Event(), asyncio.Event()
    closed: list[str] = []

    async def close(name: str) -> None:
        closing.set()
        await may_end.wait()
        closed.append(name)

    async def keeps(ends: WiredEnds) -> None:
        ends.keep("kept", lambda: "kept", close)

    built = chain(keeps, CollectSink()).build()
    running = asyncio.create_task(built.run(SupervisionPolicy(patience=timedelta(minutes=1))))
    await closing.wait()
    running.cancel()
    await asyncio.sleep(0)
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert closed == ["kept"]
    assert isinstance(built.event, events.AllOk)


@pytest.mark.parametrize("awaited", [False, True])
async def test_a_close_that_exits_the_process_is_a_bug_of_its_operator(awaited: bool) -> None:  # noqa: FBT001 - a case
    """Asyncio would stop the event loop for a ``SystemExit``: the report would be lost, and the other resources left open."""
    closed: list[str] = []

    async def later(_: object) -> None:
        sys.exit(9)

    async def keeps(ends: WiredEnds) -> None:
        ends.keep("first", lambda: "first", closed.append)
        ends.keep("second", lambda: "second", later if awaited else lambda _: sys.exit(9))

    event = await run_graph(chain(keeps, CollectSink()))
    assert exit_code(event) is ExitCode.PANICKED
    assert closed == ["first"]
    assert event.figures.problems == ("closing what 'source' kept: RuntimeError: closing 'second' raised SystemExit",)


async def test_a_close_that_ignores_its_cancellation_is_a_straggler() -> None:
    may_end = asyncio.Event()

    async def stubborn(_: str) -> None:
        while not may_end.is_set():
            with suppress(asyncio.CancelledError):
                await may_end.wait()

    async def keeps(ends: WiredEnds) -> None:
        ends.keep("kept", lambda: "kept", stubborn)

    policy = SupervisionPolicy(patience=timedelta(milliseconds=20))
    event = await run_graph(chain(keeps, CollectSink()), policy=policy)
    may_end.set()
    assert exit_code(event) is ExitCode.STRAGGLERS
    (straggler,) = event.figures.stragglers
    assert straggler.operator == "source"
    assert "in stubborn" in straggler.stack
