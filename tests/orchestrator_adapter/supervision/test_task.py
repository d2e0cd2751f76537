"""``Task``: how an operator instance ends, and its stack."""

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


async def test_an_operator_that_returns_is_ok() -> None:
    """Its exit is ``Ok``."""

    async def body() -> None:
        pass

    assert await exit_of(body) == Ok()


@pytest.mark.parametrize(
    "error",
    [OperatorError("away"), Stalled("quiet"), OSError("disk"), ConnectionResetError(), TimeoutError()],
    ids=repr,
)
async def test_operational_failures_are_errored(error: Exception) -> None:
    """``OperatorError``, ``OSError`` and their subclasses are operational. The exit has the exception itself."""
    exit_ = await exit_of(raising(error))
    assert isinstance(exit_, Errored)
    assert exit_.error is error


@pytest.mark.parametrize(
    "error", [TypeError("int + str"), KeyError("x"), AssertionError(), ValueError("bad"), RuntimeError()], ids=repr
)
async def test_any_other_exception_is_a_panic(error: Exception) -> None:
    """The exit has its type, its text and its traceback."""
    exit_ = await exit_of(raising(error))
    assert isinstance(exit_, Panicked)
    assert exit_.error is error
    assert exit_.message == describe(error)
    assert "test_task.py" in exit_.traceback
    assert type(error).__name__ in exit_.traceback


async def test_a_task_that_stops_after_abort_is_aborted() -> None:
    """``abort`` ends a waiting task with its reason, even an empty one."""
    for reason in ("shutdown", ""):
        task = task_of(forever)
        task.start()
        await settle()
        task.abort(reason)
        assert await task.join() == Aborted(reason)
        assert not task.is_alive()


async def test_a_body_that_does_not_return_a_coroutine_is_a_panic() -> None:
    """It is the caller's bug: a ``TypeError``."""

    def body() -> Any:
        return None

    exit_ = await exit_of(body)
    assert isinstance(exit_, Panicked)
    assert exit_.message.startswith("TypeError: ")


# Cancellation.


async def test_a_cancellation_without_abort_is_a_panic() -> None:
    """A ``CancelledError`` that escapes without a call of ``abort`` is a bug."""
    exit_ = await exit_of(raising(asyncio.CancelledError()))
    assert isinstance(exit_, Panicked)
    assert exit_.message == "CancelledError"


async def test_expected_errors_do_not_include_such_a_cancellation() -> None:
    """Not even if the operator declares ``BaseException``."""
    exit_ = await exit_of(raising(asyncio.CancelledError()), expected=(BaseException,))
    assert isinstance(exit_, Panicked)


async def test_aborted_before_its_first_step_is_aborted() -> None:
    """Its body never runs, and ``join`` and the callback have the exit."""
    ran: list[int] = []

    async def body() -> None:
        ran.append(1)

    task = task_of(body)
    reported: list[TaskExit] = []
    task.start(lambda _task, exit_: reported.append(exit_))
    task.abort("at once")
    assert await task.join() == Aborted("at once")
    await settle()
    assert reported == [Aborted("at once")]
    assert ran == []


async def test_swallowing_the_cancellation_and_returning_is_aborted() -> None:
    """It stopped because it was asked to."""

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


async def test_a_failure_during_an_abort_is_that_failure() -> None:
    """A failed clean-up is not hidden by the abort: it is ``Errored`` or ``Panicked``."""
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


async def test_a_task_that_swallows_its_cancellation_is_alive_and_has_a_stack() -> None:
    """After ``abort`` it goes on and is alive; ``stack`` shows the line on which it waits."""
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


async def test_the_stack_includes_the_tasks_that_it_started() -> None:
    """A child, a grandchild and a task group are in the stack, under the task's name. An unrelated task is not."""
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

    async def unrelated() -> None:
        await release.wait()

    task = task_of(body)
    other = asyncio.create_task(unrelated(), name="unrelated")
    task.start()
    await settle()
    stack = task.stack()
    assert stack.index("in body") < stack.index("in its task 'child':\n") < stack.index("in its task 'grandchild':\n")
    assert stack.index("in stuck_grandchild") < stack.index("in stream")
    assert "unrelated" not in stack
    release.set()
    assert await task.join() == Ok()
    await other


async def test_cancelling_a_joiner_does_not_affect_the_task() -> None:
    """One joiner is cancelled. The task runs on, and the other joiner gets its exit."""
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


# Exceptions that would stop the loop.


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
async def test_a_system_exit_in_an_operator_does_not_stop_the_loop(error: BaseException) -> None:
    """``sys.exit()`` in an operator is that operator's bug: it panics, and the other tasks run on."""
    other = asyncio.create_task(forever())
    exit_ = await exit_of(raising(error))
    assert isinstance(exit_, Panicked)
    assert not other.done()
    other.cancel()


async def test_an_exception_whose_text_cannot_be_made_still_ends_the_task() -> None:
    """An exception with a broken ``__str__`` is a panic that says so. ``join`` and the callback have it."""

    class BrokenText(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    reported: list[TaskExit] = []
    task = task_of(raising(BrokenText()))
    task.start(lambda _task, exit_: reported.append(exit_))
    exit_ = await task.join()
    await settle()
    assert isinstance(exit_, Panicked)
    assert exit_.message == "BrokenText: <its text raised ZeroDivisionError>"
    assert reported == [exit_]


# Operational failures and bugs.


async def test_expected_errors_are_errored() -> None:
    """A type that the operator declares, or a subclass of it, is operational; its sibling is not."""
    assert isinstance(await exit_of(raising(KeyError("x")), expected=(LookupError,)), Errored)
    assert isinstance(await exit_of(raising(ValueError("x")), expected=(LookupError,)), Panicked)


def test_a_group_is_operational_only_if_every_member_is() -> None:
    """One bug in a group, at any depth, makes it a panic."""
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
    """Outermost first, explicit causes before implicit ones. ``from None`` and a cycle end it."""
    inner, outer = OSError("no route"), OperatorError("archive away")
    outer.__cause__ = inner
    assert cause_chain(outer) == ("OperatorError: archive away", "OSError: no route")
    hidden = OperatorError("on its own")
    hidden.__context__, hidden.__suppress_context__ = inner, True
    assert cause_chain(hidden) == ("OperatorError: on its own",)
    inner.__cause__ = outer
    assert cause_chain(outer) == ("OperatorError: archive away", "OSError: no route")


def test_every_exit_reads_as_text() -> None:
    """The text has the case and its details."""
    assert [str(exit_) for exit_ in (Ok(), Errored(OSError("x")), Panicked("m", "t", KeyError()), Aborted("why"))] == [
        "Ok",
        "Errored(OSError: x)",
        "Panicked(m)",
        "Aborted(why)",
    ]


# Uptime and misuse.


async def test_uptime_runs_from_the_start_to_the_end() -> None:
    """It is 0 before the start, grows with the clock, and is constant after the end."""
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
    """Starting twice, and joining or aborting before the start, raise with name and instance."""
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
    task.abort()  # no effect after the end
