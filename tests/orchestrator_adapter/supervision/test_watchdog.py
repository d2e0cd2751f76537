"""``LoopWatchdog``, with a real thread and a loop that is really blocked. Each waits for the other, not for time."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType, SimpleNamespace
from typing import cast
from unittest.mock import patch

import pytest

from orchestrator_adapter import Factory, SupervisionPolicy, WiredEnds, for_each, map_items, source_of
from orchestrator_adapter.supervision import events
from orchestrator_adapter.supervision.watchdog import LoopStall, LoopWatchdog, _instance, is_new_stall
from orchestrator_adapter.testing import chain
from tests.helpers.running import eventually

_THRESHOLD = timedelta(milliseconds=100)  # a busy machine may delay a test for longer than 20 ms before it blocks


@pytest.mark.parametrize(
    ("lag_s", "reported_heartbeat", "new"),
    [(0.25, None, False), (0.26, None, True), (0.26, 7.0, False), (0.26, 6.0, True)],
)
def test_a_stall_is_reported_once_and_only_beyond_the_threshold(
    lag_s: float,
    reported_heartbeat: float | None,
    new: bool,  # noqa: FBT001 - a table's column
) -> None:
    """A stall is identified by its last heartbeat: once reported for that heartbeat, it is not reported again."""
    assert is_new_stall(lag_s, 0.25, 7.0, reported_heartbeat) is new


async def test_a_blocked_loop_is_reported_from_the_watchdogs_thread_with_its_stack() -> None:
    """The stall is reported while it lasts, by the watchdog's own thread. The stack names the blocking function."""
    with watched() as (reported, stalls):
        block_until(reported)
    assert len(stalls) == 1
    assert stalls[0].lag_s > 0.02


async def test_the_current_stall_is_readable_while_it_lasts_and_not_after() -> None:
    """``current_stall`` is the reported stall until the next heartbeat, and ``None`` before the first stall."""
    reported, seen = threading.Event(), list[LoopStall | None]()

    def read(stall: LoopStall) -> None:
        if "block_until" in stall.stack:
            seen.append(watchdog.current_stall)
            reported.set()

    watchdog = LoopWatchdog(read, threshold=_THRESHOLD)
    assert watchdog.current_stall is None
    watchdog.start()
    try:
        block_until(reported)
        await eventually(lambda: watchdog.current_stall is None, "the next heartbeat")
        afterwards = watchdog.current_stall
    finally:
        watchdog.stop()
    assert seen[0] is not None
    assert "block_until" in seen[0].stack
    assert afterwards is None
    assert watchdog.current_stall is None


def block_until(reported: threading.Event) -> None:
    """Blocks the event loop, as a computation without an await would."""
    assert reported.wait(30)


@contextmanager
def watched() -> Iterator[tuple[threading.Event, list[LoopStall]]]:
    """The reported stalls of ``block_until``. A busy machine may delay the loop elsewhere; such stalls are ignored."""
    reported, stalls = threading.Event(), list[LoopStall]()

    def report(stall: LoopStall) -> None:
        if "block_until" in stall.stack:
            stalls.append(stall)
            reported.set()

    watchdog = LoopWatchdog(report, threshold=_THRESHOLD)
    watchdog.start()
    try:
        yield reported, stalls
    finally:
        watchdog.stop()


async def test_the_operator_that_blocks_the_loop_is_named_in_the_log_and_counted() -> None:
    """An operator that computes without awaiting is logged by name, once, and the run's figures count the stall."""
    reported = threading.Event()
    lines: list[str] = []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "loop_stall" in record.getMessage() and "block_until" in record.getMessage():
                lines.append(record.getMessage())
                reported.set()

    def computes(number: int) -> int:
        if number == 3:
            block_until(reported)
        return number

    handler = Listen()
    logging.getLogger("orchestrator_adapter.supervisor").addHandler(handler)
    try:
        graph = chain(source_of(range(5)), map_items(computes), for_each(lambda _: None))
        event = await graph.build().run(SupervisionPolicy(loop_stall=timedelta(milliseconds=20)))
    finally:
        logging.getLogger("orchestrator_adapter.supervisor").removeHandler(handler)
    assert isinstance(event, events.AllOk)
    assert event.figures.loop_stalls >= 1
    assert event.figures.max_loop_lag_s > 0.02
    (line,) = map(json.loads, lines)
    assert (line["operator"], line["instance"]) == ("op-1", 1)
    assert "computes" in line["stack"]


def in_a_child(block: Callable[[], None]) -> Factory:
    async def run(ends: WiredEnds) -> None:
        async def child() -> None:
            block()

        async with asyncio.TaskGroup() as group:
            group.create_task(child())

    return run


def in_a_callback(block: Callable[[], None]) -> Factory:
    async def run(ends: WiredEnds) -> None:
        done = asyncio.get_running_loop().create_future()

        def callback() -> None:
            block()
            done.set_result(None)

        asyncio.get_running_loop().call_soon(callback)
        await done

    return run


def in_an_async_iterable(block: Callable[[], None]) -> Factory:
    async def items() -> AsyncIterator[int]:
        block()
        yield 1

    return source_of(items())


@pytest.mark.parametrize("make", [in_a_child, in_a_callback, in_an_async_iterable])
async def test_the_operator_on_whose_behalf_the_loop_runs_is_named(
    make: Callable[[Callable[[], None]], Factory],
) -> None:
    """The operator is named when it started the blocking task, scheduled the blocking callback or reads the iterable."""
    with watched() as (reported, stalls):
        event = await chain(make(lambda: block_until(reported)), for_each(lambda _: None)).build().run()
    assert isinstance(event, events.AllOk)
    assert [(stall.operator, stall.instance) for stall in stalls] == [("source", 1)]


async def test_a_long_stall_is_reported_once() -> None:
    """However often the watchdog checks while the loop is blocked, it reports one stall."""
    checks = threading.Semaphore(0)

    class Counting(LoopWatchdog):
        @property
        def lag_s(self) -> float:
            if threading.get_ident() != self._loop_thread:
                checks.release()
            return super().lag_s

    reported: list[LoopStall] = []
    watchdog = Counting(reported.append, threshold=_THRESHOLD)
    watchdog.start()
    try:
        for _ in range(16):
            assert checks.acquire(timeout=30)
    finally:
        watchdog.stop()
    await eventually(lambda: watchdog.stalls == len(reported), "the thread has ended its last report")
    assert len([stall for stall in reported if "test_a_long_stall_is_reported_once" in stall.stack]) == 1


async def test_the_watchdog_goes_on_when_on_stall_raises(caplog: pytest.LogCaptureFixture) -> None:
    """The exception is logged, and the next stall is reported as well."""
    reported = [threading.Event(), threading.Event()]

    def report(stall: LoopStall) -> None:
        if "block_until" in stall.stack:
            (reported[0] if not reported[0].is_set() else reported[1]).set()
            raise OSError("no listener")

    watchdog = LoopWatchdog(report, threshold=_THRESHOLD)
    watchdog.start()
    try:
        block_until(reported[0])
        while watchdog.lag_s > 0:  # noqa: ASYNC110 - a heartbeat has no event to wait for
            await asyncio.sleep(0)  # the next heartbeat makes the next stall a new one
        block_until(reported[1])
    finally:
        watchdog.stop()

    def logged() -> list[logging.LogRecord]:
        return [record for record in caplog.records if record.name == "orchestrator_adapter.watchdog"]

    await eventually(lambda: len(logged()) == 2, "both are logged")
    assert all("no listener" in (record.exc_text or "") for record in logged())


async def test_on_another_event_loop_the_running_task_names_the_operator() -> None:
    """Without asyncio's frame (uvloop), the name of the running task is used: the operator's own task names the operator."""

    async def blocks_the_loop(ends: WiredEnds) -> None:
        block_until(reported)

    with (
        patch("orchestrator_adapter.supervision.watchdog._instance", return_value=None),
        watched() as (reported, stalls),
    ):
        await chain(blocks_the_loop, for_each(lambda _: None)).build().run(SupervisionPolicy(loop_stall=None))
    assert [(stall.operator, stall.instance) for stall in stalls] == [("source", 1)]


def test_a_handle_that_has_just_finished_names_no_operator() -> None:
    """The loop goes on while the watchdog inspects it: a callback at its end has deleted its reference to the handle."""
    ending = SimpleNamespace(f_code=asyncio.Handle._run.__code__, f_locals={"self": None})
    assert _instance([cast("FrameType", ending)]) is None
    assert _instance([]) is None


def watchdog_threads() -> int:
    return sum(thread.name == "event-loop-watchdog" for thread in threading.enumerate())


async def test_stop_cancels_the_timer_and_the_thread_ends_soon() -> None:
    """After ``stop`` there is no heartbeat and no lag; the thread ends within a quarter of the threshold."""
    before = watchdog_threads()
    watchdog = LoopWatchdog(lambda _: None, threshold=_THRESHOLD)
    watchdog.start()
    timer = watchdog._timer
    watchdog.stop()
    assert timer is not None
    assert timer.cancelled()
    assert watchdog.lag_s == 0.0
    await eventually(lambda: watchdog_threads() <= before, "the thread ends")


async def test_stop_does_not_wait_for_a_stall_that_is_being_reported() -> None:
    """A log that does not answer blocks the watchdog's thread, and not the loop that stops the watchdog."""
    reporting, answer = threading.Event(), threading.Event()

    def report(stall: LoopStall) -> None:
        reporting.set()
        answer.wait()

    watchdog = LoopWatchdog(report, threshold=_THRESHOLD)
    watchdog.start()
    block_until(reporting)
    watchdog.stop()
    assert not answer.is_set()
    answer.set()


async def test_the_lag_excludes_the_heartbeats_period() -> None:
    """A loop whose last heartbeat is one period old has no lag."""
    now = 100.0
    watchdog = LoopWatchdog(lambda _: None, threshold=timedelta(seconds=4), monotonic=lambda: now)
    watchdog.start()
    try:
        now = 101.0
        assert watchdog.lag_s == 0.0
        now = 103.5
        assert watchdog.lag_s == 2.5
    finally:
        watchdog.stop()


def test_the_default_threshold_is_a_quarter_of_a_second() -> None:
    """The specification's default threshold."""
    assert SupervisionPolicy().loop_stall == timedelta(milliseconds=250)


async def test_a_threshold_of_zero_is_rejected() -> None:
    """With zero, every turn of the loop would be a stall."""
    with pytest.raises(ValueError, match=r"threshold must be > 0, got datetime\.timedelta\(0\)"):
        LoopWatchdog(lambda _: None, threshold=timedelta(0))
