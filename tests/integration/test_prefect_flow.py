"""``compile_flow`` against a real Prefect server: what the flow run and the task runs say afterwards."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from prefect import get_client
from prefect.client.schemas.filters import FlowFilter, FlowFilterName, FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import FlowRun, TaskRun
from prefect.client.schemas.sorting import FlowRunSort
from pydantic import BaseModel

from flows.ingest import sda_ingest
from flows.settings.ingest import IngestSettings
from orchestrator_adapter import BuiltGraph, OperatorGraph, RestartPolicy, map_items, source_of
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.control_plane.server import CannotListen
from orchestrator_adapter.prefect_flow import compile_flow, run_flow
from orchestrator_adapter.process.pipeline import Pipeline, run_pipeline
from orchestrator_adapter.process.report import ExitCode
from orchestrator_adapter.storage.dead_letter import DeadLetterFile
from orchestrator_adapter.storage.locks import StoreInUseError
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import CollectSink, FailAt
from sda_ops.sinks.event_log import read_event_log
from sda_ops.wire import radar
from tests.helpers.running import eventually
from tests.helpers.support import Addresses

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


async def newest_run(flow_name: str, *, started: bool = True) -> tuple[FlowRun, list[TaskRun]]:
    """The last run of a flow and its task runs, once each of them is final on the server.

    A run that ``started`` has task runs.
    """
    async with get_client() as client:

        async def look() -> tuple[FlowRun, list[TaskRun]]:
            runs: Sequence[FlowRun] = await client.read_flow_runs(
                flow_filter=FlowFilter(name=FlowFilterName(any_=[flow_name])),
                sort=FlowRunSort.EXPECTED_START_TIME_DESC,
                limit=1,
            )
            of_run = FlowRunFilter(id=FlowRunFilterId(any_=[runs[0].id]))
            return runs[0], await client.read_task_runs(flow_run_filter=of_run)

        def is_final(seen: tuple[FlowRun, list[TaskRun]]) -> bool:
            run, tasks = seen
            found = [run.state, *(task.state for task in tasks)]
            return bool(tasks) is started and all(state is not None and state.is_final() for state in found)

        return await eventually(look, f"a run of {flow_name} that has ended", holds=is_final)


def states(tasks: Sequence[TaskRun]) -> dict[str, str]:
    return {task.name: task.state.type.value if task.state is not None else "" for task in tasks}


class Script(BaseModel):
    """What the toy pipeline's operator does, and what the pipeline needs to start."""

    items: int = 10
    error_at: int | None = None
    bug_at: int | None = None
    port: int | None = None
    dead_letters: Path | None = None


def toy_pipeline(script: Script) -> Pipeline:
    failures: dict[int, BaseException] = {}
    if script.error_at is not None:
        failures[script.error_at] = ConnectionError("the partner hung up")
    if script.bug_at is not None:
        failures[script.bug_at] = KeyError("no such field")
    graph = OperatorGraph("toy")
    source = graph.add_source("numbers", source_of(range(script.items)))
    operator = graph.add_operator("work", map_items(FailAt(failures)))
    sink = graph.add_sink("keep", CollectSink(), restart_policy=RestartPolicy.never())
    graph.connect(source, operator, 4)
    graph.connect(operator, sink, 4)
    return Pipeline(
        graph,
        control_plane=ControlPlane(port=script.port) if script.port is not None else None,
        dead_letters=partial(DeadLetterFile, script.dead_letters) if script.dead_letters is not None else None,
    )


toy = compile_flow("toy", Script, toy_pipeline, description="Counts.")


async def test_an_error_shows_as_a_failed_task_run_and_a_second_one_that_completes() -> None:
    """A restarted operator has two task runs, the first Failed with the error; the flow run is Completed."""
    outcome = await run_flow(toy, Script(error_at=3))
    run, tasks = await newest_run("toy")
    assert isinstance(outcome.event, events.AllOk)
    assert run.state is not None
    assert run.state.type.value == "COMPLETED"
    assert run.state.message is not None
    assert run.state.message.startswith("AllOk; ingested 10")
    assert states(tasks) == {"numbers": "COMPLETED", "work": "FAILED", "work #2": "COMPLETED", "keep": "COMPLETED"}
    failed = next(task for task in tasks if task.name == "work")
    assert failed.state is not None
    assert failed.state.message == "ConnectionError: the partner hung up"


async def test_a_panic_shows_as_a_crashed_task_run_with_its_traceback_and_crashes_the_flow_run() -> None:
    """A bug is never restarted: one task run, Crashed, with the line that raised; the flow run is Crashed."""
    outcome = await run_flow(toy, Script(bug_at=3))
    run, tasks = await newest_run("toy")
    assert outcome.exit_code is ExitCode.PANICKED
    assert outcome.event.figures.ledger_holds
    assert run.state is not None
    assert run.state.type.value == "CRASHED"
    assert states(tasks)["work"] == "CRASHED"
    assert "work #2" not in states(tasks)
    crashed = next(task for task in tasks if task.name == "work")
    assert crashed.state is not None
    assert "raise error" in (crashed.state.message or "")


@pytest.mark.parametrize(("taken", "expected"), [("port", CannotListen), ("dead_letters", StoreInUseError)])
async def test_what_prevents_a_start_is_raised_as_it_is_without_prefect(
    taken: str, expected: type[Exception], tmp_path: Path
) -> None:
    """A port or a dead-letter folder in use raises the same ``OSError``, word for word; the flow run is Failed."""
    with socket.create_server(("127.0.0.1", 0)) as listener, closing(DeadLetterFile(tmp_path)):
        script = Script(port=listener.getsockname()[1]) if taken == "port" else Script(dead_letters=tmp_path)
        with pytest.raises(expected) as without:
            await run_pipeline(toy_pipeline(script))
        with pytest.raises(expected) as raised:
            await run_flow(toy, script)
    assert isinstance(raised.value, OSError)
    assert str(raised.value) == str(without.value)
    run, _ = await newest_run("toy", started=False)
    assert run.state is not None
    assert run.state.type.value == "FAILED"
    assert str(without.value) in (run.state.message or "")


async def test_the_flows_parameters_are_the_settings_model() -> None:
    """The UI's form has every section of the settings, with its description."""
    schema = sda_ingest.parameters.model_dump()
    assert schema["properties"]["settings"]["$ref"].endswith("IngestSettings")
    definitions = schema["definitions"]
    assert set(IngestSettings.model_fields) == set(definitions["IngestSettings"]["properties"])
    assert "seconds" in definitions["ShutdownSettings"]["properties"]["grace_s"]["description"]


async def test_sda_ingest_runs_as_a_prefect_flow_and_keeps_what_it_is_sent(tmp_path: Path) -> None:
    """Three sources on real sockets under a Prefect flow: what was sent is in the log, every task run Completed."""
    addresses = Addresses.free(radars=1)
    settings = IngestSettings.model_validate(addresses.settings(tmp_path))
    feeding: list[asyncio.Task[None]] = []

    async def feed(built: BuiltGraph) -> None:
        await eventually(lambda: "port" in built.status().operators[0].counters, "the radar's port")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for number in range(100):
                frame = radar.encode(
                    array_id=1, target_track_id=number, timestamp_ns=time.time_ns(), range_m=1e6, sigma_range_m=30.0
                )
                sock.sendto(frame, ("127.0.0.1", addresses.radars[0]))
        await eventually(lambda: built.ledger().written == 100, "a hundred observations in the log")
        built.request_shutdown("everything is in")

    outcome = await run_flow(
        sda_ingest, settings, on_built=lambda built: feeding.append(asyncio.create_task(feed(built)))
    )
    await feeding[0]
    run, tasks = await newest_run("sda-ingest")
    assert outcome.exit_code is ExitCode.OK
    assert sum(1 for _ in read_event_log(tmp_path / "log")) == 100
    assert run.state is not None
    assert run.state.type.value == "COMPLETED"
    assert (run.state.message or "").startswith("ShutDown: everything is in")
    final = states(tasks)
    assert {name for name in final if not name.startswith("optical")} == {
        *("radar-01", "isl", "merge", "normalize", "validate", "dedup", "event-log")
    }
    assert {state for name, state in final.items() if not name.startswith("optical")} == {"COMPLETED"}
