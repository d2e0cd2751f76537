from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta

import pytest

from orchestrator_adapter.operators.from_functions import map_items, source_of
from orchestrator_adapter.primitives.errors import OperatorError
from orchestrator_adapter.primitives.gc_freeze import frozen_heap
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import (
    CollectSink,
    Deadlock,
    FailAt,
    LeakedTasks,
    LoopClock,
    OutOfTime,
    chain,
    run_every_schedule,
    run_schedule,
)

pytestmark = pytest.mark.usefixtures("_many_schedules")


# The internals of CPython's asyncio: if one of these tests fails on a new Python, its event loop has changed.


def order_of_eight(seed: int) -> list[int]:
    ran: list[int] = []

    async def scenario() -> None:
        async def note(number: int) -> None:
            ran.append(number)

        await asyncio.gather(*(note(number) for number in range(8)))

    run_schedule(seed, scenario)
    return ran


def test_the_seed_decides_the_order_of_ready_callbacks() -> None:
    """Nearly all of 200 seeds give different orders; each is a permutation; the same seed gives the same order."""
    orders = [order_of_eight(seed) for seed in range(200)]
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert len({tuple(order) for order in orders}) > 150
    assert orders == [order_of_eight(seed) for seed in range(200)]


def test_timers_that_are_due_together_are_permuted_too() -> None:
    """Eight timers of one time fire in different orders under different seeds."""

    def order(seed: int) -> tuple[int, ...]:
        fired: list[int] = []

        async def scenario() -> None:
            for number in range(8):
                asyncio.get_running_loop().call_later(1.0, fired.append, number)
            await asyncio.sleep(2.0)

        run_schedule(seed, scenario)
        return tuple(fired)

    assert len({order(seed) for seed in range(100)}) > 50


def test_virtual_hours_pass_without_waiting_and_timers_are_never_early() -> None:
    """A thousand sleeps of an hour; each lasts an hour or a little more of virtual time."""

    async def scenario() -> float:
        clock = LoopClock()
        for _ in range(1_000):
            before, wall_before = clock.monotonic(), clock.now_ns()
            await asyncio.sleep(3_600)
            assert 3_600 <= clock.monotonic() - before < 3_601
            assert clock.now_ns() - wall_before == pytest.approx(3_600e9, rel=1e-3)
        return clock.monotonic()

    assert run_schedule(0, scenario, limit=timedelta(days=60)) >= 3_600_000


def test_a_seeded_loop_is_sometimes_late() -> None:
    """Some of a thousand timers are handled a little late, together with timers that are due shortly after."""

    async def scenario() -> int:
        loop, late = asyncio.get_running_loop(), 0
        for _ in range(1_000):
            before = loop.time()
            await asyncio.sleep(1.0)
            late += loop.time() - before > 1.0001
        return late

    assert 100 < run_schedule(0, scenario) < 500


# Every schedule.


def orders_of(count: int, *, preemptions: int | None = None) -> list[tuple[int, ...]]:
    """The order in which ``count`` callbacks ran, under each schedule."""
    orders: list[tuple[int, ...]] = []

    async def scenario() -> None:
        ran: list[int] = []
        done = asyncio.get_running_loop().create_future()

        def note(number: int) -> None:
            ran.append(number)
            if len(ran) == count:
                done.set_result(None)

        for number in range(count):
            asyncio.get_running_loop().call_soon(note, number)
        await done
        orders.append(tuple(ran))

    assert run_every_schedule(scenario, preemptions=preemptions) == len(orders)
    return orders


def test_every_order_is_run_once() -> None:
    """The 24 orders of four callbacks; without preemptions only asyncio's own order."""
    assert sorted(orders_of(4)) == sorted(itertools.permutations(range(4)))
    assert orders_of(4, preemptions=0) == [(0, 1, 2, 3)]


@pytest.mark.parametrize("preemptions", [1, 2, 3])
def test_a_preemption_is_a_choice_of_another_callback_than_the_oldest(preemptions: int) -> None:
    """Compared with a simple count over all permutations."""
    reachable = set[tuple[int, ...]]()
    for order in itertools.permutations(range(4)):
        left, not_oldest = list(range(4)), 0
        for number in order:
            not_oldest += number != left[0]
            left.remove(number)
        if not_oldest <= preemptions:
            reachable.add(order)
    assert {*orders_of(4, preemptions=preemptions)} == reachable


async def racy() -> None:
    """Correct only in asyncio's own order."""
    ran: list[int] = []
    for number in range(3):
        asyncio.get_running_loop().call_soon(ran.append, number)
    await asyncio.sleep(1)
    assert ran == [0, 1, 2]


def test_the_failed_schedule_is_named_and_can_be_repeated() -> None:
    """The note has the smallest number of preemptions with which it fails; they repeat the failure."""
    with pytest.raises(AssertionError) as caught:
        run_every_schedule(racy)
    (note,) = caught.value.__notes__
    assert note == "again, with: run_schedule({0: 1}, …)"
    with pytest.raises(AssertionError):
        run_schedule({0: 1}, racy)
    run_schedule({}, racy)


def test_more_schedules_than_max_schedules_are_an_error() -> None:
    """The error says what to do."""
    with pytest.raises(OutOfTime, match=r"^expected at most 5 schedules, and there are more; bound the preemptions$"):
        run_every_schedule(racy_but_right, max_schedules=5)


async def racy_but_right() -> None:
    await asyncio.gather(*(asyncio.sleep(0) for _ in range(4)))


def test_consecutive_schedules_leak_no_objects() -> None:
    """After a hundred runs: garbage in cycles is collected, not frozen."""

    class Marked:
        pass

    async def scenario() -> None:
        first, second = Marked(), Marked()
        first.other, second.other = second, first  # type: ignore[attr-defined]
        sink = CollectSink()
        await chain(source_of([first]), sink, capacity=1).build(clock=LoopClock()).run()

    with frozen_heap():
        for seed in range(100):
            run_schedule(seed, scenario)
        left = sum(isinstance(thing, Marked) for thing in gc.get_objects())
    assert left <= 2


def test_it_restores_the_state_of_the_interpreter() -> None:
    """The hook for unraisable exceptions, the filters of warnings, and whether objects are frozen."""
    # Not the number: a frozen object may be freed during the run, for example a thread's.
    frozen, hook, filters = gc.get_freeze_count() > 0, sys.unraisablehook, list(warnings.filters)
    run_schedule(0, racy_but_right)
    run_every_schedule(racy_but_right, preemptions=1)
    assert (gc.get_freeze_count() > 0, sys.unraisablehook, list(warnings.filters)) == (frozen, hook, filters)


# The faults that it finds.


def test_a_lost_wake_up_is_a_deadlock() -> None:
    """A task that waits for an event that is never set: the error names the task."""

    async def scenario() -> None:
        await asyncio.create_task(asyncio.Event().wait(), name="forgotten")

    with pytest.raises(Deadlock, match="forgotten"):
        run_schedule(0, scenario)


@pytest.mark.parametrize("pause_s", [0.0, 1.0])
def test_a_busy_loop_is_out_of_time(pause_s: float) -> None:
    """Also a loop over a timer."""

    async def scenario() -> None:
        while True:  # noqa: ASYNC110 - a loop that never ends is what is tested
            await asyncio.sleep(pause_s)

    with pytest.raises(OutOfTime, match="expected an end within"):
        run_schedule(0, scenario, limit=timedelta(seconds=100), max_callbacks=10_000)


def test_a_task_left_running_is_named() -> None:
    """The error has the name of the task that outlives the coroutine."""

    async def scenario() -> None:
        scenario.task = asyncio.create_task(asyncio.sleep(10), name="detached")  # type: ignore[attr-defined]

    with pytest.raises(LeakedTasks, match=r"still running: .*detached"):
        run_schedule(0, scenario)


def test_an_exception_that_is_never_retrieved_is_an_error() -> None:
    """The task has ended with an exception that no code has retrieved."""

    async def fail() -> None:
        raise OperatorError("unseen")

    async def scenario() -> None:
        task = asyncio.create_task(fail())
        await asyncio.wait({task})

    with pytest.raises(LeakedTasks, match=r"never retrieved.*unseen"):
        run_schedule(0, scenario)


@pytest.mark.parametrize("within", [contextlib.nullcontext, frozen_heap])
def test_garbage_of_earlier_runs_is_not_an_error(within: Callable[[], AbstractContextManager[None]]) -> None:
    """Inside one ``frozen_heap()`` of many runs, and without it."""

    async def forgotten() -> None:
        pass

    class Litter:
        """In a cycle, so that only a collection finds it; with a coroutine that is never awaited."""

        def __init__(self) -> None:
            self.me, self.coroutine = self, forgotten()

    async def scenario() -> None:
        gc.collect()

    with within(), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        Litter()
        run_schedule(0, scenario)


def test_a_coroutine_that_is_never_awaited_is_an_error() -> None:
    """A missing ``await``."""

    async def forgotten() -> None:
        pass

    async def scenario() -> None:
        forgotten()  # type: ignore[unused-coroutine]

    with pytest.raises(LeakedTasks, match=r"forgotten.*never awaited"):
        run_schedule(0, scenario)


def test_the_error_of_the_coroutine_is_raised_and_its_tasks_are_ended() -> None:
    """A leaked task does not hide the error, not even one that ignores its cancellation."""

    async def stubborn() -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()

    async def scenario() -> None:
        scenario.task = asyncio.create_task(stubborn())  # type: ignore[attr-defined]
        await asyncio.sleep(0)
        raise OperatorError("its own")

    with pytest.raises(OperatorError, match="its own"):
        run_schedule(0, scenario)


# Its use.


def test_work_for_an_executor_runs_on_the_loop_a_moment_later() -> None:
    """The result or the error of the function arrives, and virtual time has passed."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        before = loop.time()
        assert await loop.run_in_executor(None, divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, divmod, 7, 0)
        assert loop.time() > before

    run_schedule(3, scenario)


def test_a_graph_under_a_hundred_schedules() -> None:
    """A failing operator on an edge of capacity one delivers every item once and in order."""

    async def scenario() -> None:
        sink = CollectSink()
        failing = FailAt({3: OperatorError("away"), 5: OperatorError("away")})
        built = chain(source_of(range(9)), map_items(failing), sink, capacity=1).build(clock=LoopClock())
        event = await built.run()
        assert isinstance(event, events.AllOk)
        assert event.figures.ledger_holds
        assert sink.items == list(range(9))

    for seed in range(100):
        run_schedule(seed, scenario)
