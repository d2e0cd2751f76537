"""Tasks that an operator starts end with its instance, and what they raise is its failure."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

from orchestrator_adapter import (
    Backoff,
    BuiltGraph,
    EdgeMisuse,
    OperatorError,
    OperatorGraph,
    RestartPolicy,
    SupervisionPolicy,
    WiredEnds,
    events,
    source_of,
    task_exit,
)
from orchestrator_adapter.process import ExitCode, exit_code
from orchestrator_adapter.supervision.helpers import tasks_in
from orchestrator_adapter.testing import CollectSink, ListSource, ManualClock, UntilShutdown, chain, run_graph, settle
from tests.helpers.log_lines import event_of
from tests.helpers.running import eventually
from tests.orchestrator_adapter.operators.bench import Bench


class Beat:
    """A helper without end. ``alive`` are the instances whose helper runs."""

    def __init__(self) -> None:
        self.alive: set[int] = set()

    async def __call__(self, instance: int) -> None:
        self.alive.add(instance)
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            await asyncio.sleep(0)
            self.alive.discard(instance)


async def fails(error: BaseException) -> None:
    raise error


async def waits() -> None:
    await asyncio.get_running_loop().create_future()


async def ignores_cancellation(end: asyncio.Event) -> None:
    while not end.is_set():
        try:
            await end.wait()
        except asyncio.CancelledError:
            continue


async def pass_all_on(ends: WiredEnds) -> None:
    async for item in ends.receiver:
        ends.commit([item], acknowledge=1)
        await ends.flush()


async def run(
    operator: Callable[[WiredEnds], Any],
    *,
    policy: RestartPolicy | None = None,
    during: Callable[[BuiltGraph], Any] | None = None,
    items: Any = (1, 2, 3),
    graph_policy: SupervisionPolicy | None = None,
    **options: Any,
) -> events.SupervisorEvent:
    graph = OperatorGraph("helpers")
    work = graph.add_operator("work", operator, restart_policy=policy or RestartPolicy.always(backoff=None))
    graph.connect(graph.add_source("source", items if callable(items) else source_of(items)), work, 8)
    graph.connect(work, graph.add_sink("sink", CollectSink()), 8)
    event = await run_graph(graph, during=during, policy=graph_policy, **options)
    assert event.figures.ledger_holds
    return event


async def test_a_helper_ends_with_its_instance_and_the_instance_waits_for_it() -> None:
    """Before the next instance starts, and before the run returns. No problem is reported."""
    beat = Beat()

    async def work(ends: WiredEnds) -> None:
        assert beat.alive == set()
        ends.start(beat(ends.instance), name="beat")
        await asyncio.sleep(0)
        assert beat.alive == {ends.instance}
        if ends.instance < 3:
            raise OperatorError("cable")
        await pass_all_on(ends)

    event = await run(work)
    assert isinstance(event, events.AllOk)
    assert event.figures.restarts["work"].total == 2
    assert beat.alive == set()
    assert event.figures.problems == ()


async def test_an_operational_error_of_a_helper_restarts_the_operator() -> None:
    """The operator is cancelled where it waits, and its exit is the helper's error."""
    cancelled: list[int] = []

    async def work(ends: WiredEnds) -> None:
        if ends.instance == 1:
            ends.start(fails(OSError("heartbeat lost")), name="beat")
            try:
                await waits()
            finally:
                cancelled.append(ends.instance)
        await pass_all_on(ends)

    event = await run(work)
    assert isinstance(event, events.AllOk)
    assert cancelled == [1]
    (restarted,) = event.figures.restarts["work"].recent
    assert restarted.cause == "OSError: heartbeat lost"


@pytest.mark.parametrize("error", [TypeError("bug"), SystemExit(3)], ids=str)
async def test_a_bug_in_a_helper_is_a_panic_of_the_operator(error: BaseException) -> None:
    """At once, although the operator itself would wait for ever; the exit code is 4."""

    async def work(ends: WiredEnds) -> None:
        ends.start(fails(error), name="beat")
        await waits()

    event = await run(work)
    assert isinstance(event, events.Panicked)
    assert event.operator == "work"
    assert type(error).__name__ in event.chain[0]
    assert exit_code(event) == ExitCode.PANICKED


async def test_two_failures_are_reported_together() -> None:
    """An operational error of the operator and a bug of its helper are a panic whose message names both."""

    async def work(ends: WiredEnds) -> None:
        ends.start(fails(TypeError("bug")), name="beat")
        try:
            await waits()
        except asyncio.CancelledError:
            raise OperatorError("cable") from None

    event = await run(work)
    assert isinstance(event, events.Panicked)
    assert "OperatorError: cable; TypeError: bug" in event.chain[0]


async def test_a_helper_that_was_cancelled_or_has_returned_is_no_failure() -> None:
    """Its result can be awaited."""

    async def answer() -> int:
        return 42

    async def work(ends: WiredEnds) -> None:
        ends.start(waits(), name="wait").cancel()
        assert await ends.start(answer(), name="answer") == 42
        await pass_all_on(ends)

    assert isinstance(await run(work), events.AllOk)


async def test_a_helper_is_cancelled_when_the_operator_is_aborted() -> None:
    """The exit of the operator is still its abort."""
    beat = Beat()

    async def work(ends: WiredEnds) -> None:
        ends.start(beat(ends.instance), name="beat")
        await waits()

    async def stop(built: BuiltGraph) -> None:
        await eventually(lambda: beat.alive, "the helper")
        built.request_shutdown("first")
        built.request_shutdown("second")

    event = await run(work, during=stop, items=ListSource([1], UntilShutdown()))
    assert event.figures.exits["work"] == task_exit.Aborted("first")
    assert beat.alive == set()
    assert event.figures.stragglers == ()


async def test_a_helper_that_ignores_its_cancellation_is_a_panic_and_a_straggler() -> None:
    """No second instance starts beside it. It is named with its stack, and the exit code is 5."""
    end, clock = asyncio.Event(), ManualClock(autojump=True)
    instances: list[int] = []

    async def work(ends: WiredEnds) -> None:
        instances.append(ends.instance)
        ends.start(ignores_cancellation(end), name="stubborn")
        await asyncio.sleep(0)
        raise OperatorError("cable")

    try:
        event = await run(work, clock=clock)
    finally:
        end.set()
        await asyncio.sleep(0)
    assert instances == [1]
    assert isinstance(event, events.Panicked)
    assert "its tasks did not stop within 1 s: 'stubborn'" in event.chain[0]
    (straggler,) = event.figures.stragglers
    assert straggler.operator == "work"
    assert "in its task 'stubborn'" in straggler.stack
    assert exit_code(event) == ExitCode.STRAGGLERS


async def test_a_stray_task_is_cancelled_with_its_instance_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    """One log line an instance, and one problem an operator, with the number of tasks and their names."""
    beat, kept = Beat(), list[asyncio.Task[None]]()

    async def work(ends: WiredEnds) -> None:
        assert beat.alive == set()
        kept.append(asyncio.create_task(beat(ends.instance)))
        await asyncio.sleep(0)
        if ends.instance < 3:
            raise OperatorError("cable")
        await pass_all_on(ends)

    with caplog.at_level(logging.ERROR, "orchestrator_adapter.supervisor"):
        event = await run(work)
    assert isinstance(event, events.AllOk)
    assert beat.alive == set()
    assert all(task.cancelled() for task in kept)
    (problem,) = event.figures.problems
    assert problem == (
        "operator 'work' left 3 tasks running, which had to be cancelled (Beat.__call__); "
        "start helper tasks with ends.start"
    )
    lines = [event_of(record.getMessage()) for record in caplog.records]
    assert [line["instance"] for line in lines if line["event"] == "stray_tasks"] == [1, 2, 3]


async def test_a_stray_task_that_has_failed_fails_its_instance() -> None:
    """At the end of the instance, if no other task has received the exception."""
    kept = list[asyncio.Task[None]]()

    async def work(ends: WiredEnds) -> None:
        kept.append(asyncio.create_task(fails(TypeError("the silent panic"))))
        await pass_all_on(ends)

    event = await run(work)
    assert isinstance(event, events.Panicked)
    assert event.chain[0] == "TypeError: the silent panic"


async def test_a_stray_task_that_fails_unreferenced_fails_its_instance_at_once() -> None:
    """The operator itself would wait for ever. The handler of the loop is the previous one again after the run."""
    handler = asyncio.get_running_loop().get_exception_handler()

    async def work(_: WiredEnds) -> None:
        asyncio.create_task(fails(TypeError("the silent panic")))  # noqa: RUF006 - this is the fault under test
        await waits()

    event = await run(work)
    assert isinstance(event, events.Panicked)
    assert event.chain[0] == "TypeError: the silent panic"
    assert asyncio.get_running_loop().get_exception_handler() is handler


async def test_what_is_reported_of_many_tasks_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    """A thousand strays that run, and a thousand that have failed: ten of each are named, with the number of the others."""

    async def work(_: WiredEnds) -> None:
        tasks = [asyncio.create_task(fails(TypeError("long" * 100))) for _ in range(1_000)]
        tasks += [asyncio.create_task(waits()) for _ in range(1_000)]
        await asyncio.wait(tasks[:1_000])
        raise TypeError(f"the operator's own, with {len(tasks)} tasks")

    event = await run(work)
    assert isinstance(event, events.Panicked)
    assert "; and 991 more" in event.traceback
    assert len(event.traceback) < 100_000
    lines = [event_of(record.getMessage()) for record in caplog.records if record.name.endswith("supervisor")]
    (line,) = (line for line in lines if line["event"] == "stray_tasks")
    assert line["tasks"] == ["waits"] * 10 + ["and 990 more"]


async def test_runs_that_overlap_on_one_loop_leave_no_handler() -> None:
    """The first run ends while the second one still runs."""
    handler = asyncio.get_running_loop().get_exception_handler()
    first, second = (chain(ListSource([1], UntilShutdown()), CollectSink()).build() for _ in range(2))
    runs = [asyncio.create_task(first.run()), asyncio.create_task(second.run())]
    for built, running in zip((first, second), runs, strict=True):
        await settle(20)
        built.request_shutdown("enough")
        assert isinstance(await running, events.ShutDown)
    assert asyncio.get_running_loop().get_exception_handler() is handler


async def test_a_task_of_a_kept_resource_that_fails_unreferenced_fails_no_instance() -> None:
    """The resource belongs to no instance. asyncio logs the failure."""

    async def work(ends: WiredEnds) -> None:
        ends.keep("resource", lambda: asyncio.ensure_future(fails(TypeError("of the resource"))).get_name())
        await settle(5)
        await pass_all_on(ends)

    event = await run(work)
    assert isinstance(event, events.AllOk)


async def test_a_task_that_is_awaited_is_no_stray() -> None:
    """Nor one whose exception was handled, nor a task group's."""

    async def work(ends: WiredEnds) -> None:
        task = asyncio.create_task(fails(TypeError("handled")))
        with pytest.raises(TypeError):
            await task
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(0))
        await pass_all_on(ends)

    event = await run(work)
    assert isinstance(event, events.AllOk)
    assert event.figures.problems == ()


@pytest.mark.parametrize("closes", [True, False])
async def test_a_task_of_a_kept_resource_outlives_the_instance_but_not_the_run(closes: bool) -> None:  # noqa: FBT001
    """It ends when the resource is closed. If it does not, it is a stray of the run."""
    beat = Beat()

    def close(task: asyncio.Task[None]) -> Awaitable[object] | None:
        if not closes:
            return None
        task.cancel()
        return asyncio.wait({task})

    async def work(ends: WiredEnds) -> None:
        ends.keep("beat", lambda: asyncio.ensure_future(beat(1)), close)
        await asyncio.sleep(0)
        assert beat.alive == {1}
        if ends.instance < 3:
            raise OperatorError("cable")
        await pass_all_on(ends)

    event = await run(work)
    assert isinstance(event, events.AllOk)
    assert beat.alive == set()
    assert [problem.split(" running")[0] for problem in event.figures.problems] == (
        [] if closes else ["operator 'work' left 1 task"]
    )


async def test_start_outside_an_instance_is_a_misuse() -> None:
    """The coroutine is closed, so that Python does not warn."""
    bench = Bench()
    with pytest.raises(EdgeMisuse, match=r"ends\.start can be called only while an instance runs"):
        bench.ends.start(waits(), name="x")


async def test_start_after_the_end_of_an_instance_is_a_misuse() -> None:
    """A kept resource may call it between two instances: no instance would notice a failure of the helper."""
    ended = asyncio.Event()

    async def work(ends: WiredEnds) -> None:
        if ends.instance == 1:
            asyncio.current_task().add_done_callback(lambda _: ended.set())  # type: ignore[union-attr] # it runs in one
            raise OperatorError("cable")
        await pass_all_on(ends)

    async def start_one(built: BuiltGraph) -> None:
        await ended.wait()
        with pytest.raises(EdgeMisuse, match=r"ends\.start can be called only while an instance runs"):
            built._runs["work"].ends.start(waits(), name="x")  # as an operator's callback has it
        built.request_shutdown("enough")

    source = ListSource([1], UntilShutdown())
    backoff = Backoff(timedelta(hours=1), timedelta(hours=1))
    event = await run(
        work, policy=RestartPolicy.always(backoff=backoff), during=start_one, items=source, clock=ManualClock()
    )
    assert isinstance(event, events.ShutDown)


async def test_a_helper_that_fails_as_the_operator_returns_is_reported_once() -> None:
    """The operator ends in the turn of the event loop in which the helper does, before its failure is noticed."""

    async def work(ends: WiredEnds) -> None:
        returns = asyncio.Event()

        async def release_and_fail() -> None:
            returns.set()
            raise TypeError("bug")

        ends.start(release_and_fail(), name="helper")
        await returns.wait()

    event = await run(work)
    assert isinstance(event, events.Panicked)
    assert event.chain == ("TypeError: bug",)


async def test_a_patience_of_zero_gives_a_helper_one_turn_of_the_loop() -> None:
    """A helper that ends when it is cancelled is no fault."""

    async def work(ends: WiredEnds) -> None:
        ends.start(waits(), name="helper")
        await pass_all_on(ends)

    event = await run(work, graph_policy=SupervisionPolicy(patience=timedelta(0)))
    assert isinstance(event, events.AllOk)


async def test_an_abort_with_a_patience_of_zero_ends_the_run() -> None:
    """The instance that waits for its helper is a straggler at once, and does not block the event loop."""
    end = asyncio.Event()

    async def work(ends: WiredEnds) -> None:
        ends.start(ignores_cancellation(end), name="stubborn")
        await waits()

    async def stop(built: BuiltGraph) -> None:
        await settle(20)
        built.request_shutdown("stop")

    try:
        event = await run(work, during=stop, graph_policy=SupervisionPolicy(grace=timedelta(0), patience=timedelta(0)))
        assert [straggler.operator for straggler in event.figures.stragglers] == ["work"]
    finally:
        end.set()
        await settle(20)


def test_tasks_that_another_thread_starts_do_not_disturb_the_search_for_strays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """asyncio has one set with the tasks of all threads. While it is read it may grow, which is an error in Python."""

    class Growing(set[Any]):
        reads = 0

        def __iter__(self) -> Iterator[Any]:
            self.reads += 1
            if self.reads < 3:
                raise RuntimeError("Set changed size during iteration")
            return super().__iter__()

    async def search() -> int:
        task = asyncio.create_task(waits())
        growing = Growing({task})
        attribute = "_all_tasks" if hasattr(asyncio.tasks, "_all_tasks") else "_scheduled_tasks"
        with monkeypatch.context() as patch:
            patch.setattr(asyncio.tasks, attribute, growing)
            found = tasks_in(lambda _: True)
        task.cancel()
        assert found == {task}
        return growing.reads

    assert asyncio.run(search()) == 3


async def test_the_policy_says_how_long_tasks_may_take_to_end() -> None:
    """``SupervisionPolicy.patience``, on the graph's clock."""
    end, clock = asyncio.Event(), ManualClock(autojump=True)

    async def work(ends: WiredEnds) -> None:
        ends.start(ignores_cancellation(end), name="stubborn")
        await asyncio.sleep(0)

    try:
        event = await run_graph(
            chain(source_of([1]), work), clock=clock, policy=SupervisionPolicy(patience=timedelta(seconds=7))
        )
    finally:
        end.set()
        await asyncio.sleep(0)
    assert isinstance(event, events.Panicked)
    assert "did not stop within 7 s" in event.chain[0]
