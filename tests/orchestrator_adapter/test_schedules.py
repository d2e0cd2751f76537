from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from datetime import timedelta

import pytest

from orchestrator_adapter import events
from orchestrator_adapter.errors import OperatorError
from orchestrator_adapter.operators import map_items, source_of
from orchestrator_adapter.schedules import Deadlock, LeftBehind, LoopClock, OutOfTime, only_new_garbage, run_schedule
from orchestrator_adapter.testing import CollectSink, FailAt, chain


@pytest.fixture(autouse=True)
def _only_new_garbage() -> Iterator[None]:
    with only_new_garbage():
        yield


# What the module relies on of CPython's asyncio: if one of these fails on a new Python, its event loop has changed.


def order_of_eight(seed: int) -> list[int]:
    ran: list[int] = []

    async def scenario() -> None:
        async def note(number: int) -> None:
            ran.append(number)

        await asyncio.gather(*(note(number) for number in range(8)))

    run_schedule(seed, scenario)
    return ran


def test_ready_callbacks_run_in_the_order_that_the_seed_draws() -> None:
    """Of 200 seeds nearly all give an order of their own, every one a permutation; the same seed gives the same."""
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


def test_virtual_hours_pass_without_waiting_and_timers_never_come_early() -> None:
    """A thousand sleeps of an hour take no time at all, and each lasts an hour or a little more."""

    async def scenario() -> float:
        clock = LoopClock()
        for _ in range(1_000):
            before, wall_before = clock.monotonic(), clock.now_ns()
            await asyncio.sleep(3_600)
            assert 3_600 <= clock.monotonic() - before < 3_601
            assert clock.now_ns() - wall_before == pytest.approx(3_600e9, rel=1e-3)
        return clock.monotonic()

    assert run_schedule(0, scenario, limit=timedelta(days=60)) >= 3_600_000


# What it finds.


def test_a_lost_wake_up_is_a_deadlock() -> None:
    """A task that waits for what nobody will do is raised at once, and the task is named."""

    async def scenario() -> None:
        await asyncio.create_task(asyncio.Event().wait(), name="forgotten")

    with pytest.raises(Deadlock, match="forgotten"):
        run_schedule(0, scenario)


@pytest.mark.parametrize("pause_s", [0.0, 1.0])
def test_a_hang_that_keeps_busy_is_out_of_time(pause_s: float) -> None:
    """Neither a busy loop nor a periodic timer can hide that nothing ends."""

    async def scenario() -> None:
        while True:  # noqa: ASYNC110 - a loop that never ends is what is tested
            await asyncio.sleep(pause_s)

    with pytest.raises(OutOfTime, match="expected an end within"):
        run_schedule(0, scenario, limit=timedelta(seconds=100), max_callbacks=10_000)


def test_a_task_left_running_is_named() -> None:
    """What outlives the coroutine is told, by the task's name."""

    async def scenario() -> None:
        scenario.task = asyncio.create_task(asyncio.sleep(10), name="detached")  # type: ignore[attr-defined]

    with pytest.raises(LeftBehind, match=r"still running: .*detached"):
        run_schedule(0, scenario)


def test_an_exception_that_nobody_took_is_told() -> None:
    """A task that failed unseen is found, although it has ended."""

    async def fail() -> None:
        raise OperatorError("unseen")

    async def scenario() -> None:
        task = asyncio.create_task(fail())
        await asyncio.wait({task})

    with pytest.raises(LeftBehind, match=r"never retrieved.*unseen"):
        run_schedule(0, scenario)


def test_a_coroutine_that_nobody_awaited_is_told() -> None:
    """A forgotten ``await`` is found."""

    async def forgotten() -> None:
        pass

    async def scenario() -> None:
        forgotten()  # type: ignore[unused-coroutine]

    with pytest.raises(LeftBehind, match=r"forgotten.*never awaited"):
        run_schedule(0, scenario)


def test_what_the_coroutine_raises_is_raised_and_the_rest_is_wound_up() -> None:
    """The scenario's own failure is not hidden by what it left running; even a task that will not stop is closed over."""

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


# What it is for.


def test_blocking_work_runs_on_the_loop_a_moment_later() -> None:
    """There are no threads: the function runs on the loop, its result or its error arrives, and time has passed."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        before = loop.time()
        assert await loop.run_in_executor(None, divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, divmod, 7, 0)
        assert loop.time() > before

    run_schedule(3, scenario)


def test_a_graph_under_a_hundred_schedules() -> None:
    """A failing operator on an edge of capacity one delivers everything once and in order, however it is scheduled."""

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
