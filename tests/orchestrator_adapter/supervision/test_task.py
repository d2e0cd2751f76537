from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from orchestrator_adapter.primitives.errors import OperatorError, Stalled, cause_chain, describe
from orchestrator_adapter.supervision.restart import RestartPolicy
from orchestrator_adapter.supervision.task import Task
from orchestrator_adapter.supervision.task_exit import (
    Aborted,
    Errored,
    Ok,
    Panicked,
    TaskExit,
    classify,
)
from orchestrator_adapter.testing import ManualClock, settle

Body = Callable[[], Coroutine[Any, Any, None]]


def task_of(body: Body, *, clock: ManualClock | None = None, expected: tuple[type[BaseException], ...] = ()) -> Task:
    return Task(
        "op", body, clock=clock or ManualClock(), restart_policy=RestartPolicy.never(), expected_errors=expected
    )


async def exit_of(body: Body, *, expected: tuple[type[BaseException], ...] = ()) -> TaskExit:
    task = task_of(body, expected=expected)
    task.start()
    async with asyncio.timeout(20):
        return await task.join()


def raising(error: BaseException) -> Body:
    async def body() -> None:
        raise error

    return body


async def forever() -> None:
    await asyncio.Event().wait()


# The four cases.


async def test_returning_is_ok() -> None:
    """An operator that returns has exited ``Ok``."""

    async def body() -> None:
        pass

    assert await exit_of(body) == Ok()


@pytest.mark.parametrize(
    "error",
    [OperatorError("away"), Stalled("quiet"), OSError("disk"), ConnectionResetError(), TimeoutError()],
    ids=repr,
)
async def test_the_worlds_failures_are_errored(error: Exception) -> None:
    """``OperatorError``, ``OSError`` and their families are expected, and the exception itself is kept."""
    exit_ = await exit_of(raising(error))
    assert isinstance(exit_, Errored)
    assert exit_.error is error


@pytest.mark.parametrize(
    "error", [TypeError("int + str"), KeyError("x"), AssertionError(), ValueError("bad"), RuntimeError()], ids=repr
)
async def test_everything_else_is_a_panic(error: Exception) -> None:
    """A bug is told with its type, its text and where it happened."""
    exit_ = await exit_of(raising(error))
    assert isinstance(exit_, Panicked)
    assert exit_.error is error
    assert exit_.message == describe(error)
    assert "test_task.py" in exit_.traceback
    assert type(error).__name__ in exit_.traceback


async def test_stopping_when_asked_to_is_aborted() -> None:
    """``abort`` ends a waiting task with its reason, even an empty one."""
    for reason in ("shutdown", ""):
        task = task_of(forever)
        task.start()
        await settle()
        task.abort(reason)
        assert await task.join() == Aborted(reason)
        assert not task.is_alive()


async def test_a_factory_that_returns_no_coroutine_is_a_panic() -> None:
    """What is not awaitable is the caller's bug, and is told as one."""

    def body() -> Any:
        return None

    exit_ = await exit_of(body)
    assert isinstance(exit_, Panicked)
    assert exit_.message.startswith("TypeError: ")


# Cancellation.


async def test_a_cancellation_that_nobody_asked_for_is_a_panic() -> None:
    """A ``CancelledError`` that escapes although ``abort`` was never called is a bug, whoever raised it."""
    exit_ = await exit_of(raising(asyncio.CancelledError()))
    assert isinstance(exit_, Panicked)
    assert exit_.message == "CancelledError"


async def test_expected_errors_do_not_excuse_an_unasked_cancellation() -> None:
    """Not even an operator that declares ``BaseException`` gets away with a stray cancellation."""
    exit_ = await exit_of(raising(asyncio.CancelledError()), expected=(BaseException,))
    assert isinstance(exit_, Panicked)


async def test_aborted_before_its_first_step_is_aborted() -> None:
    """A task that never got to run tells the truth as well, and never runs its body."""
    ran: list[int] = []

    async def body() -> None:
        ran.append(1)

    task = task_of(body)
    told: list[TaskExit] = []
    task.start(lambda _task, exit_: told.append(exit_))
    task.abort("at once")
    assert await task.join() == Aborted("at once")
    await settle()
    assert told == [Aborted("at once")]
    assert ran == []


async def test_swallowing_the_cancellation_and_returning_is_aborted() -> None:
    """It stopped because it was asked to, whatever it did with the exception."""

    async def body() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            return

    task = task_of(body)
    task.start()
    await settle()
    task.abort("enough")
    assert await task.join() == Aborted("enough")


async def test_failing_while_being_aborted_is_told_as_that_failure() -> None:
    """A clean-up that fails is not hidden behind the abort: operational or a bug, as it is."""
    for error, kind in ((OSError("fsync"), Errored), (KeyError("x"), Panicked)):

        async def body(error: Exception = error) -> None:
            try:
                await forever()
            finally:
                raise error

        task = task_of(body)
        task.start()
        await settle()
        task.abort()
        assert isinstance(await task.join(), kind)


async def test_a_task_that_swallows_its_cancellation_stays_alive_and_its_stack_names_where() -> None:
    """Asked to stop and going on, it is alive, and ``stack`` shows the line on which it waits."""
    release = asyncio.Event()

    async def deep_inside() -> None:
        await release.wait()

    async def body() -> None:
        while not release.is_set():
            try:
                await deep_inside()
            except asyncio.CancelledError:
                continue

    task = task_of(body)
    task.start()
    await settle()
    task.abort()
    await settle()
    assert task.is_alive()
    stack = task.stack()
    assert "in body" in stack
    assert "in deep_inside" in stack
    assert "await release.wait()" in stack
    assert stack.index("in body") < stack.index("in deep_inside")
    release.set()
    assert await task.join() == Aborted()
    assert task.stack() == ""


async def test_the_stack_shows_the_tasks_it_has_started_wherever_they_are_in_the_loop() -> None:
    """What hangs in a child, a grandchild or a task group is in the stack, under that task's name; a stranger is not."""
    release = asyncio.Event()

    async def stream() -> AsyncIterator[int]:
        await release.wait()
        yield 1

    async def stuck_grandchild() -> None:
        async for _ in stream():
            pass

    async def child() -> None:
        await asyncio.gather(asyncio.create_task(stuck_grandchild(), name="grandchild"))

    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child(), name="child")

    async def stranger() -> None:
        await release.wait()

    task = task_of(body)
    other = asyncio.create_task(stranger(), name="stranger")
    task.start()
    await settle()
    stack = task.stack()
    assert stack.index("in body") < stack.index("in its task 'child':\n") < stack.index("in its task 'grandchild':\n")
    assert stack.index("in stuck_grandchild") < stack.index("in stream")
    assert "stranger" not in stack
    release.set()
    assert await task.join() == Ok()
    await other


async def test_cancelling_someone_who_joins_does_not_touch_the_task() -> None:
    """One joiner is cancelled; the task runs on, and the other joiner learns its exit."""
    release = asyncio.Event()

    async def body() -> None:
        await release.wait()

    task = task_of(body)
    task.start()
    joiners = [asyncio.create_task(task.join()) for _ in range(2)]
    await settle()
    joiners[0].cancel()
    await settle()
    assert task.is_alive()
    release.set()
    assert await joiners[1] == Ok()


# What must not tear the loop.


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
async def test_an_exit_inside_an_operator_does_not_tear_the_loop(error: BaseException) -> None:
    """``sys.exit()`` in an operator is that operator's bug: it panics, and everyone else runs on."""
    other = asyncio.create_task(forever())
    exit_ = await exit_of(raising(error))
    assert isinstance(exit_, Panicked)
    assert not other.done()
    other.cancel()


async def test_an_exception_whose_text_cannot_be_made_still_ends_the_task() -> None:
    """An exception with a broken ``__str__`` is a panic that says so; ``join`` and the callback are told."""

    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    told: list[TaskExit] = []
    task = task_of(raising(Unspeakable()))
    task.start(lambda _task, exit_: told.append(exit_))
    exit_ = await task.join()
    await settle()
    assert isinstance(exit_, Panicked)
    assert exit_.message == "Unspeakable: <its text raised ZeroDivisionError>"
    assert told == [exit_]


# Telling operational failures from bugs.


async def test_expected_errors_are_errored() -> None:
    """A type that the operator declares, or a subclass of it, is operational; its sibling is not."""
    assert isinstance(await exit_of(raising(KeyError("x")), expected=(LookupError,)), Errored)
    assert isinstance(await exit_of(raising(ValueError("x")), expected=(LookupError,)), Panicked)


def test_a_group_is_operational_only_if_all_of_it_is() -> None:
    """One bug in a group, however deep, makes it a panic."""
    away, bug = OperatorError("away"), TypeError("bug")
    assert isinstance(classify(ExceptionGroup("g", [away, ExceptionGroup("inner", [OSError()])])), Errored)
    assert isinstance(classify(ExceptionGroup("g", [away, ExceptionGroup("inner", [away, bug])])), Panicked)
    assert isinstance(classify(BaseExceptionGroup("g", [away, SystemExit()])), Panicked)


async def test_a_failing_task_group_inside_an_operator_is_classified_by_its_members() -> None:
    """An operator that runs workers in a ``TaskGroup`` fails as its workers do."""

    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(raising(OSError("socket"))())
            group.create_task(forever())

    assert isinstance(await exit_of(body), Errored)


def test_the_cause_chain_is_that_of_the_traceback() -> None:
    """Causes come outermost first, explicit ones before implicit ones, ``from None`` ends it, and a loop does too."""
    inner, outer = OSError("refused"), OperatorError("archive away")
    outer.__cause__ = inner
    assert cause_chain(outer) == ("OperatorError: archive away", "OSError: refused")
    hidden = OperatorError("on its own")
    hidden.__context__, hidden.__suppress_context__ = inner, True
    assert cause_chain(hidden) == ("OperatorError: on its own",)
    inner.__cause__ = outer
    assert cause_chain(outer) == ("OperatorError: archive away", "OSError: refused")


def test_every_exit_reads_as_text() -> None:
    """Logs show the case and what it carries."""
    assert [str(exit_) for exit_ in (Ok(), Errored(OSError("x")), Panicked("m", "t", KeyError()), Aborted("why"))] == [
        "Ok",
        "Errored(OSError: x)",
        "Panicked(m)",
        "Aborted(why)",
    ]


# Life.


async def test_uptime_runs_from_the_start_to_the_end() -> None:
    """It is nothing before the start, grows with the clock, and stands still after the end."""
    clock, release = ManualClock(), asyncio.Event()

    async def body() -> None:
        await release.wait()

    task = task_of(body, clock=clock)
    clock.advance(5)
    assert (task.uptime(), task.is_alive()) == (0.0, False)
    task.start()
    await clock.advance_when_idle(2)
    assert (task.uptime(), task.is_alive()) == (2.0, True)
    release.set()
    await task.join()
    await clock.advance_when_idle(3)
    assert (task.uptime(), task.is_alive()) == (2.0, False)


async def test_misuse_of_a_task_names_it() -> None:
    """Starting twice, or joining or aborting what never started, is refused with name and instance."""
    task = task_of(forever)
    with pytest.raises(RuntimeError, match=r"^task op #1 was never started$"):
        await task.join()
    with pytest.raises(RuntimeError, match=r"^task op #1 was never started$"):
        task.abort()
    task.start()
    with pytest.raises(RuntimeError, match=r"^task op #1 was started already$"):
        task.start()
    task.abort()
    await task.join()
    task.abort()  # harmless now
