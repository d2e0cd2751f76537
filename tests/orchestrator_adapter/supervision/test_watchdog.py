"""The loop watchdog: a real thread and a loop that really stands still, each waiting for the other, not for time."""

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


@pytest.mark.parametrize(
    ("lag_s", "reported_beat", "new"), [(0.25, None, False), (0.26, None, True), (0.26, 7.0, False), (0.26, 6.0, True)]
)
def test_a_stall_is_told_once_and_only_beyond_the_threshold(
    lag_s: float,
    reported_beat: float | None,
    new: bool,  # noqa: FBT001 - a table's column
) -> None:
    """One stall has one last beat: told for that beat, it is not told again."""
    assert is_new_stall(lag_s, 0.25, 7.0, reported_beat) is new


async def test_a_loop_that_stands_still_is_noticed_from_outside_with_its_stack() -> None:
    """The stall is told while it lasts, by the watchdog's own thread, and the stack names the function that blocks."""
    with watched() as (told, stalls):
        block_until(told)
    assert len(stalls) == 1
    assert stalls[0].lag_s > 0.02


async def test_a_stall_can_be_read_from_outside_while_it_lasts_and_not_after() -> None:
    """``standing`` is the stall that was told, until the loop beats again; before the first there is none."""
    told, seen = threading.Event(), list[LoopStall | None]()

    def read(stall: LoopStall) -> None:
        if "block_until" in stall.stack:
            seen.append(watchdog.standing)
            told.set()

    watchdog = LoopWatchdog(read, threshold=timedelta(milliseconds=20))
    assert watchdog.standing is None
    watchdog.start()
    try:
        block_until(told)
        await eventually(lambda: watchdog.standing is None, "the next beat")
        afterwards = watchdog.standing
    finally:
        watchdog.stop()
    assert seen[0] is not None
    assert "block_until" in seen[0].stack
    assert afterwards is None
    assert watchdog.standing is None


def block_until(told: threading.Event) -> None:
    """Blocks the event loop, as a computation without an await would."""
    assert told.wait(30)


@contextmanager
def watched() -> Iterator[tuple[threading.Event, list[LoopStall]]]:
    """What is told of ``block_until``, and when; a busy machine may hold up the loop elsewhere, which is not of interest."""
    told, stalls = threading.Event(), list[LoopStall]()

    def tell(stall: LoopStall) -> None:
        if "block_until" in stall.stack:
            stalls.append(stall)
            told.set()

    watchdog = LoopWatchdog(tell, threshold=timedelta(milliseconds=20))
    watchdog.start()
    try:
        yield told, stalls
    finally:
        watchdog.stop()


async def test_the_operator_that_holds_the_loop_is_named_in_the_log_and_counted() -> None:
    """An operator that computes without awaiting is told by name, once, and the run's figures count it."""
    told = threading.Event()
    lines: list[str] = []

    class Listen(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "loop_stall" in record.getMessage() and "block_until" in record.getMessage():
                lines.append(record.getMessage())
                told.set()

    def computes(number: int) -> int:
        if number == 3:
            block_until(told)
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
    assert line["operator"] == "op-1 #1"
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
async def test_the_operator_is_named_on_whose_behalf_the_loop_is_held(
    make: Callable[[Callable[[], None]], Factory],
) -> None:
    """A task that it has started, a callback that it has scheduled, an iterable that it reads: the operator is named."""
    with watched() as (told, stalls):
        event = await chain(make(lambda: block_until(told)), for_each(lambda _: None)).build().run()
    assert isinstance(event, events.AllOk)
    assert [stall.operator for stall in stalls] == ["source #1"]


async def test_a_long_stall_is_told_once() -> None:
    """However often the watchdog looks while the loop stands, it is one stall."""
    looks = threading.Semaphore(0)

    class Counting(LoopWatchdog):
        @property
        def lag_s(self) -> float:
            if threading.get_ident() != self._loop_thread:
                looks.release()
            return super().lag_s

    told: list[LoopStall] = []
    watchdog = Counting(told.append, threshold=timedelta(milliseconds=20))
    watchdog.start()
    try:
        for _ in range(16):
            assert looks.acquire(timeout=30)
    finally:
        watchdog.stop()
    assert watchdog.stalls == len(told)
    assert len([stall for stall in told if "test_a_long_stall_is_told_once" in stall.stack]) == 1


async def test_a_listener_that_fails_does_not_end_the_watch(caplog: pytest.LogCaptureFixture) -> None:
    """What is told of a stall may raise: it is logged, and the next stall is told as well."""
    told = [threading.Event(), threading.Event()]

    def tell(stall: LoopStall) -> None:
        if "block_until" in stall.stack:
            (told[0] if not told[0].is_set() else told[1]).set()
            raise OSError("nobody listens")

    watchdog = LoopWatchdog(tell, threshold=timedelta(milliseconds=20))
    watchdog.start()
    try:
        block_until(told[0])
        while watchdog.lag_s > 0:  # noqa: ASYNC110 - a beat has no event to wait for
            await asyncio.sleep(0)  # let it beat: the next is a stall of its own
        block_until(told[1])
    finally:
        watchdog.stop()
    logged = [record for record in caplog.records if record.name == "orchestrator_adapter.watchdog"]
    assert len(logged) == 2
    assert all("nobody listens" in (record.exc_text or "") for record in logged)


async def test_on_an_event_loop_of_another_make_the_task_itself_is_named() -> None:
    """Where no frame tells on whose behalf the loop runs (uvloop), an operator's own task still names the operator."""

    async def holds_the_loop(ends: WiredEnds) -> None:
        block_until(told)

    with patch("orchestrator_adapter.supervision.watchdog._instance", return_value=""), watched() as (told, stalls):
        await chain(holds_the_loop, for_each(lambda _: None)).build().run(SupervisionPolicy(loop_stall=None))
    assert [stall.operator for stall in stalls] == ["source #1"]


def test_a_handle_that_has_just_finished_names_nobody() -> None:
    """The loop runs on while the watchdog looks: a callback that is at its very end has let go of its handle."""
    ending = SimpleNamespace(f_code=asyncio.Handle._run.__code__, f_locals={"self": None}, f_back=None)
    assert _instance(cast("FrameType", ending)) == ""
    assert _instance(None) == ""


async def test_a_stopped_watchdog_leaves_neither_a_timer_nor_a_thread() -> None:
    """After ``stop`` nothing beats and nothing looks, and there is no lag to tell."""
    watchdog = LoopWatchdog(lambda _: None, threshold=timedelta(milliseconds=20))
    watchdog.start()
    beat, thread = watchdog._beating, watchdog._thread
    watchdog.stop()
    assert beat is not None
    assert beat.cancelled()
    assert thread is not None
    assert not thread.is_alive()
    assert watchdog.lag_s == 0.0


async def test_the_lag_is_what_comes_on_top_of_the_beats_period() -> None:
    """A loop that beats on time has no lag, although its last beat is a period old."""
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


def test_it_watches_unless_told_otherwise_for_a_quarter_of_a_second() -> None:
    """The specification's default threshold."""
    assert SupervisionPolicy().loop_stall == timedelta(milliseconds=250)


async def test_a_threshold_of_nothing_is_refused() -> None:
    """Zero would take every turn of the loop for a stall."""
    with pytest.raises(ValueError, match="threshold must be > 0, got 0:00:00"):
        LoopWatchdog(lambda _: None, threshold=timedelta(0))
