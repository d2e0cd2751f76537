"""The reporter's thread, with a fake server: what it delivers, and which failures it survives."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.schemas.objects import StateType

from orchestrator_adapter.prefect_flow.recovery.records import RunRecords
from orchestrator_adapter.prefect_flow.reporting import reporter as module
from orchestrator_adapter.prefect_flow.reporting.delivery import Delivery
from orchestrator_adapter.prefect_flow.reporting.reporter import DeliveryReport
from orchestrator_adapter.supervision.events import Decided, Exited, Spawned
from tests.helpers.prefect_fakes import IDENTITY, LOGS, state
from tests.helpers.prefect_reporter import EARLIER, ENDED, LONG, OUTCOME, POLL, RUN, Run
from tests.helpers.running import eventually

pytestmark = pytest.mark.usefixtures("_no_pauses", "_no_thread_is_leaked")


# From the start to the end.


async def test_a_run_is_reported_from_its_first_instance_to_its_report(run: Run) -> None:
    """Records from before the thread started are included; at the end the server shows everything."""
    run.note(POLL)
    run.start()
    run.note(Decided("first", {}))
    await eventually(lambda: len(run.prefect.artifacts) == 3, "topology, status and progress are published")
    run.note(ENDED, Decided("ended", {"outcome": "AllOk"}))
    assert await run.finish() == DeliveryReport(complete=True, cancelled=False, api_answers=True, undelivered=())
    assert run.delivered() == [
        *("prefect.task-run.Running", "orchestrator.pipeline.first"),
        *("prefect.task-run.Completed", "orchestrator.pipeline.ended"),
    ]
    assert [item["message"] for item in run.prefect.items(LOGS)] == ["first", "ended: outcome AllOk"]
    assert run.prefect.task_run_states() == {"poll": "Completed"}
    assert {made.key for made in run.prefect.artifacts.values()} == {
        f"radar-net-{what}" for what in ("topology", "status", "settled", "report")
    }
    assert run.prefect.sent_twice == []


async def test_a_run_that_ends_before_the_thread_has_started_is_reported(run: Run) -> None:
    """``finish`` waits for the thread."""
    run.note(POLL, ENDED)
    run.start()
    assert (await run.finish()).complete
    assert run.prefect.task_run_states() == {"poll": "Completed"}


async def test_an_instance_alive_at_the_end_is_reported_as_a_straggler(run: Run) -> None:
    """Its task run is set Crashed."""
    run.note(POLL)
    run.start()
    assert (await run.finish()).complete
    assert run.prefect.task_run_states() == {"poll": "Crashed"}


async def test_without_artifacts_none_are_published(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither during the run nor at the end."""
    run = Run(artifacts=False)
    monkeypatch.setattr(module, "client_without_retries", run.prefect.connected)
    run.start()
    await eventually(lambda: run.prefect.calls.count("read_flow_run") > 3, "the run's state is read")
    assert (await run.finish()).complete
    assert run.prefect.artifacts == {}


async def test_an_abandoned_run_delivers_what_is_there_and_ends(run: Run) -> None:
    """It has no outcome: no report is published, and an unreachable server is not waited for."""
    run.prefect.unreachable = True
    run.note(POLL, Decided("first", {}))
    run.start()
    run.reporter.abandon()
    delivered = await asyncio.wrap_future(run.reporter._result)
    assert not delivered.complete
    run.prefect.unreachable = False
    assert run.prefect.artifacts == {}


# What it costs the data plane.


async def test_a_hook_only_appends(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It appends the record with its time. Everything that is sent is built on the reporter's thread."""
    threads: list[str] = []
    add = Delivery.add

    def recorded(delivery: Delivery, record: Any, at_ns: int) -> None:
        threads.append(threading.current_thread().name)
        add(delivery, record, at_ns)

    monkeypatch.setattr(Delivery, "add", recorded)
    records: list[Spawned | Exited | Decided] = [POLL, Decided("first", {}), ENDED]
    before_ns = time.time_ns()
    run.note(*records)
    assert [record for _, record in run.reporter._inbox] == records
    assert all(one is other for (_, one), other in zip(run.reporter._inbox, records, strict=True))
    assert all(before_ns <= at_ns <= time.time_ns() for at_ns, _ in run.reporter._inbox)
    assert run.reporter._delivery.idle
    run.start()
    run.note(Decided("ended", {}))
    await run.finish()
    assert threads == 4 * ["prefect-reporter"]


async def test_no_hook_is_installed_for_restarts_escalations_and_shutdowns(run: Run) -> None:
    """They are reported as decisions; a second hook would report them twice."""
    hooks = run.reporter.hooks()
    assert (hooks.on_restart, hooks.on_escalate, hooks.on_shutdown) == (None, None, None)


# The flow run's state on the server.


@pytest.mark.parametrize("kind", [StateType.CANCELLING, StateType.CANCELLED])
async def test_a_cancellation_is_passed_on_once_on_the_data_planes_loop(kind: StateType, run: Run) -> None:
    """Also if it is read several times; the delivery report says that there was one."""
    run.start()
    await eventually(lambda: run.prefect.calls, "the flow run is read")
    assert run.cancelled == []
    run.prefect.has_flow_run(RUN, state(kind, "by hand"))
    await eventually(lambda: run.cancelled, "the cancellation is passed on")
    seen = run.prefect.calls.count("read_flow_run")
    await eventually(lambda: run.prefect.calls.count("read_flow_run") > seen + 3, "the flow run is read again")
    assert (await run.finish()).cancelled
    assert run.cancelled == [("cancelled in Prefect: by hand", threading.get_ident())]


async def test_a_cancellation_at_the_very_end_is_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the last check, although no check before it has seen it."""
    run = Run()
    run.reporter._options = replace(run.reporter._options, look_every=LONG)
    monkeypatch.setattr(module, "client_without_retries", run.prefect.connected)
    run.start()
    await eventually(lambda: "read_flow_run" in run.prefect.calls, "the flow run is read")
    run.prefect.has_flow_run(RUN, state(StateType.CANCELLING))
    assert (await run.finish()).cancelled


NEITHER_RUNNING_NOR_CANCELLED = [*({*StateType} - {StateType.RUNNING, StateType.CANCELLING, StateType.CANCELLED})]


@pytest.mark.parametrize("kind", sorted(NEITHER_RUNNING_NOR_CANCELLED))
async def test_a_live_run_that_was_set_to_another_state_is_set_running_again(kind: StateType, run: Run) -> None:
    """The state's message and a line of the run's log say so; no attempt is counted; the pipeline is not stopped."""
    run.prefect.has_flow_run(RUN, state(kind, "by hand"))
    run.start()
    await eventually(lambda: run.prefect.flow_run_state(RUN).type is StateType.RUNNING, "it is Running again")
    assert run.prefect.flow_runs[RUN].run_count == 1
    message = run.prefect.flow_run_state(RUN).message or ""
    assert message.endswith("cancel the run to stop it")
    assert not (await run.finish()).cancelled
    assert run.cancelled == []
    (line,) = [line["message"] for line in run.prefect.items(LOGS) if line["level"] == logging.WARNING]
    name = kind.value.capitalize()
    assert line == f"the run was set {name} in Prefect (by hand) and is set Running again: {message}"


async def test_a_state_is_set_back_again_if_the_server_did_not_answer(run: Run) -> None:
    """The run is found in the same state at the next look, and set back then."""
    run.prefect.has_flow_run(RUN, state(StateType.PAUSED))
    run.prefect.raises["set_flow_run_state"] = httpx.ReadTimeout("no answer")
    run.start()
    await eventually(lambda: run.prefect.calls.count("set_flow_run_state") > 2, "it is tried several times")
    del run.prefect.raises["set_flow_run_state"]
    await eventually(lambda: run.prefect.flow_run_state(RUN).type is StateType.RUNNING, "it is Running again")
    await run.finish()


async def test_a_cancelled_run_is_not_set_running_again(run: Run) -> None:
    """While it drains, its worker may set it Crashed."""
    run.prefect.has_flow_run(RUN, state(StateType.CANCELLING))
    run.start()
    await eventually(lambda: run.cancelled, "the cancellation is passed on")
    run.prefect.has_flow_run(RUN, state(StateType.CRASHED))
    seen = run.prefect.calls.count("read_flow_run")
    await eventually(lambda: run.prefect.calls.count("read_flow_run") > seen + 2, "the flow run is read again")
    assert (await run.finish()).cancelled
    assert run.prefect.flow_run_state(RUN).type is StateType.CRASHED


async def test_a_run_that_has_ended_is_not_set_running_again(run: Run) -> None:
    """Its final state is about to be sent."""
    run.prefect.has_flow_run(RUN, state(StateType.CRASHED, "Reaped"))
    run.reporter._outcome = OUTCOME
    run.start()
    assert (await run.finish()).complete
    assert run.prefect.flow_run_state(RUN).message == "Reaped"


async def test_a_flow_run_without_a_state_changes_nothing(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does a flow run that was deleted; this is logged once."""
    run.prefect.has_flow_run(RUN, None)
    run.start()
    await eventually(lambda: run.prefect.calls.count("read_flow_run") > 2, "the flow run is read")
    run.prefect.flow_runs.clear()
    seen = run.prefect.calls.count("read_flow_run")
    await eventually(lambda: run.prefect.calls.count("read_flow_run") > seen + 2, "the flow run is read again")
    assert (await run.finish()) == DeliveryReport(complete=True, cancelled=False, api_answers=True, undelivered=())
    deleted = f"flow run {RUN} was deleted in Prefect; the pipeline runs on and is not shown"
    assert caplog.messages.count(deleted) == 1


# Earlier runs.


async def test_earlier_runs_are_reconciled_and_the_current_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An earlier attempt of the same flow run is an earlier run. An invalid file is logged and kept."""
    run = Run(directory=tmp_path)
    run.reporter._identity = replace(IDENTITY, attempt=2)
    monkeypatch.setattr(module, "client_without_retries", run.prefect.connected)
    records = RunRecords(tmp_path)
    mine = replace(EARLIER, flow_run_id=RUN, attempt=2)
    first = replace(mine, attempt=1)
    for record in (mine, first, EARLIER):
        records.write(record)
    (tmp_path / "foreign.json").write_text("{}")
    run.prefect.has_flow_run(RUN, state(StateType.RUNNING), attempt=2)
    run.prefect.has_flow_run(EARLIER.flow_run_id, state(StateType.RUNNING))
    task_run = run.prefect.has_task_run(1, EARLIER.flow_run_id, state(StateType.RUNNING))
    run.prefect.unreachable = True
    run.start()
    await eventually(lambda: run.prefect.calls.count("read_flow_run") > 5, "several attempts were made")
    assert len(list(records.all())) == 3
    run.prefect.unreachable = False
    await eventually(lambda: list(records.all()) == [mine], "the others are reconciled")
    await run.finish()
    assert run.prefect.flow_run_state(RUN).type is StateType.RUNNING
    assert run.prefect.flow_run_state(EARLIER.flow_run_id).message == (
        f"its process no longer exists; reconciled by flow run 'brave-otter' ({RUN})"
    )
    task_run_state = run.prefect.task_runs[task_run].state
    assert task_run_state is not None
    assert task_run_state.type is StateType.CRASHED
    assert f"{tmp_path / 'foreign.json'} is not a valid record of a run; it is left unchanged" in caplog.messages
    expected = f"earlier run old-owl ({EARLIER.flow_run_id}): set to Crashed, 1 of its task runs to Crashed"
    assert [line for line in caplog.messages if line.startswith("earlier run")] == [expected]
