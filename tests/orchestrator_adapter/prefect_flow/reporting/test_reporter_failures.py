"""The reporter's thread under failures: bugs, a thread that fails or hangs, and an unreachable server."""

from __future__ import annotations

import asyncio
import inspect
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from prefect.client.schemas.objects import StateType

from orchestrator_adapter.prefect_flow.recovery.records import RunRecords
from orchestrator_adapter.prefect_flow.reporting import reporter as module
from orchestrator_adapter.prefect_flow.reporting.artifact_publisher import ArtifactPublisher
from orchestrator_adapter.prefect_flow.reporting.delivery import Delivery
from orchestrator_adapter.prefect_flow.reporting.reporter import DeliveryReport, Reporter
from orchestrator_adapter.supervision.events import Decided
from tests.helpers.prefect_fakes import EVENTS, LOGS, FakePrefect, state
from tests.helpers.prefect_reporter import EARLIER, ENDED, LONG, MS, POLL, Run
from tests.helpers.running import eventually

pytestmark = pytest.mark.usefixtures("_no_pauses", "_no_thread_is_leaked")


# What it survives.


@pytest.mark.parametrize("broken", ["publisher", "records", "check", "deliver"])
async def test_a_bug_in_one_side_task_ends_neither_it_nor_the_others(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged and tried again, and everything else is reported as usual."""
    run = Run(directory=tmp_path)
    monkeypatch.setattr(module, "client_without_retries", run.prefect.connected)
    failures = 3

    def fails_at_first(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def fail() -> None:
            nonlocal failures
            failures -= 1
            if failures >= 0:
                raise KeyError("a bug")

        def method(self: Any, *arguments: Any) -> Any:
            fail()
            return real(self, *arguments)

        async def awaited(self: Any, *arguments: Any) -> Any:  # the bug is raised where the result is awaited
            fail()
            return await real(self, *arguments)

        monkeypatch.setattr(owner, name, awaited if inspect.iscoroutinefunction(real) else method)

    owner, name = {
        "publisher": (ArtifactPublisher, "refresh"),
        "records": (RunRecords, "all"),
        "check": (Reporter, "_check_flow_run"),
        "deliver": (Delivery, "deliver"),
    }[broken]
    RunRecords(tmp_path).write(EARLIER)
    run.prefect.has_flow_run(EARLIER.flow_run_id, state(StateType.RUNNING))
    fails_at_first(owner, name)
    run.note(POLL)
    run.start()
    run.note(ENDED)
    await eventually(lambda: run.prefect.task_run_states() == {"poll": "Completed"}, "the task run is reported")
    await eventually(lambda: len(run.prefect.artifacts) == 3, "the artifacts are published")
    await eventually(
        lambda: run.prefect.flow_run_state(EARLIER.flow_run_id).type is StateType.CRASHED,
        "the earlier run is reconciled",
    )
    assert "failed; it is tried again" in caplog.text
    assert (await run.finish()).complete


@pytest.mark.parametrize(("owner", "name"), [(Reporter, "_check_flow_run"), (ArtifactPublisher, "report")])
async def test_a_bug_in_the_final_update_does_not_affect_the_flow_runs_state(
    owner: type, name: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The delivery counts as complete, so the flow run gets its state."""

    async def broken(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(owner, name, broken)
    run.note(POLL, ENDED)
    run.start()
    assert await run.finish() == DeliveryReport(complete=True, cancelled=False, api_answers=True, undelivered=())


async def test_a_server_that_answers_but_is_late_gets_the_final_state(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does not show yet is kept for the next start; the final state is sent now."""
    monkeypatch.setattr(
        "orchestrator_adapter.prefect_flow.reporting.delivery.SHOWN_AFTER_S", 60.0
    )  # nothing is sent again
    run.prefect.records = False
    run.note(POLL, ENDED)
    run.start()
    delivered = await run.finish(MS)
    assert (delivered.complete, delivered.api_answers) == (False, True)
    assert [kind for kind, _ in delivered.undelivered] == [EVENTS, EVENTS]


async def test_the_end_of_the_run_does_not_interrupt_a_delivery(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery in flight when the graph ends is awaited, so nothing is sent or queried a second time."""
    taken, proceed = threading.Event(), threading.Event()
    request = FakePrefect.request

    async def slow(self: FakePrefect, method: str, path: str, *, json: Any) -> None:
        await request(self, method, path, json=json)
        taken.set()
        await asyncio.to_thread(proceed.wait, 20)

    monkeypatch.setattr(FakePrefect, "request", slow)
    run.note(POLL, ENDED)
    run.start()
    await eventually(taken.is_set, "a delivery is in flight")
    waiting = asyncio.create_task(run.finish())
    await eventually(run.reporter._ending.is_set, "the end has begun")
    proceed.set()
    assert (await waiting).complete
    assert run.prefect.sent_twice == []
    assert "read_events" not in run.prefect.calls


async def test_a_final_update_that_is_not_answered_is_abandoned(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a bounded time; what was delivered counts as delivered."""

    async def hangs(*_: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(module, "_FINAL_STEP_S", 0.01)
    monkeypatch.setattr(ArtifactPublisher, "report", hangs)
    run.start()
    assert (await run.finish()).complete


async def test_a_thread_that_fails_returns_what_it_could_not_deliver(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For any exception; ``finish`` does not wait, and the inbox no longer grows."""

    def no_client() -> None:
        raise SystemExit("any failure")

    monkeypatch.setattr(module, "client_without_retries", no_client)
    run.note(POLL, Decided("first", {}))
    run.start()
    await eventually(run.reporter._result.done, "the thread has failed")
    run.note(Decided("second", {}))
    assert len(run.reporter._inbox) == 0
    delivered = await run.finish()
    assert (delivered.complete, delivered.cancelled) == (False, False)
    assert [item.get("event") for kind, item in delivered.undelivered if kind == EVENTS] == [
        *("prefect.task-run.Running", "orchestrator.pipeline.first")
    ]
    assert "the Prefect reporter has failed; the pipeline runs on without it" in caplog.text


async def test_a_thread_that_does_not_end_is_abandoned_and_may_end_later(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """``finish`` returns after the patience and a margin. If the thread ends later, that is not an error."""
    proceed = threading.Event()

    @asynccontextmanager
    async def hangs() -> Any:
        proceed.wait(20)
        yield run.prefect.client

    monkeypatch.setattr(module, "client_without_retries", hangs)
    monkeypatch.setattr(module, "_MARGIN_S", 0.01)
    run.start()
    assert await run.finish(MS) == DeliveryReport(complete=False, cancelled=False, api_answers=False, undelivered=())
    assert "does not end and is abandoned" in caplog.text
    proceed.set()
    await eventually(run.reporter._result.done, "the thread ends")
    assert run.reporter._result.result().complete


async def test_a_caller_that_is_cancelled_while_it_waits_for_the_end_does_not_break_the_thread(run: Run) -> None:
    """The thread still delivers the rest."""
    run.prefect.unreachable = True
    run.note(POLL, ENDED)
    run.start()
    waiting = asyncio.create_task(run.finish())
    await eventually(lambda: run.reporter._outcome is not None and run.prefect.calls, "the thread is ending")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    run.prefect.unreachable = False
    await eventually(run.reporter._result.done, "the thread ends")
    assert run.prefect.task_run_states() == {"poll": "Completed"}


# An unreachable server.


async def test_the_end_waits_for_an_unreachable_server_for_the_given_patience(run: Run) -> None:
    """Then every item is undelivered, each once."""
    run.prefect.unreachable = True
    run.note(POLL, Decided("first", {}), ENDED)
    run.start()
    delivered = await run.finish(20 * MS)
    assert not delivered.complete
    assert [kind for kind, _ in delivered.undelivered] == [*3 * [EVENTS], LOGS]
    assert len({item["id"] for kind, item in delivered.undelivered if kind == EVENTS}) == 3


async def test_stop_waiting_ends_the_wait_at_once(run: Run) -> None:
    """The patience was an hour. A second call, after the end, does nothing."""
    run.prefect.unreachable = True
    run.note(POLL)
    run.start()
    ending = asyncio.create_task(run.finish(LONG))
    await eventually(lambda: run.prefect.calls.count("post event") > 3, "several attempts were made")
    assert not ending.done()
    run.reporter.stop_waiting()
    async with asyncio.timeout(60):
        assert not (await ending).complete
    run.reporter.stop_waiting()


async def test_a_server_that_is_back_within_the_patience_gets_everything(run: Run) -> None:
    """``finish`` then returns at once."""
    run.prefect.unreachable = True
    run.note(POLL, ENDED)
    run.start()
    ending = asyncio.create_task(run.finish(LONG))
    await eventually(lambda: run.prefect.calls.count("post event") > 3, "several attempts were made")
    run.prefect.unreachable = False
    async with asyncio.timeout(60):
        assert (await ending).complete
    assert run.prefect.task_run_states() == {"poll": "Completed"}
