"""What Prefect offers inside an operator, on a real server: all of it belongs to the task run of the instance."""

from __future__ import annotations

import json
import logging
from typing import Any

import httpx
import prefect.runtime
import pytest
from prefect import get_client, get_run_logger, task
from prefect.artifacts import acreate_markdown_artifact, create_markdown_artifact
from prefect.blocks.system import Secret
from prefect.client.schemas.objects import TaskRunResult
from prefect.settings import PREFECT_UI_URL
from prefect.variables import Variable
from pydantic import BaseModel

from orchestrator_adapter import JsonFormatter, OperatorGraph, RestartPolicy, WiredEnds, for_each, source_of
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.control_plane.document import Document, decode
from orchestrator_adapter.prefect_flow import compile_flow, run_flow
from orchestrator_adapter.process import Pipeline
from tests.helpers.prefect_runs import artifacts_of, log_of, newest_run_id, until
from tests.helpers.running import eventually

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


class AtHome(BaseModel):
    """No settings."""


SEEN: list[tuple[str | None, Any, Any]] = []


@task
async def nested() -> None:
    """A task run that an operator starts."""


LINES: list[str] = []
DOCUMENTS: list[Document] = []


class _Lines(logging.Handler):
    """Keeps each line as a process would write it."""

    def emit(self, record: logging.LogRecord) -> None:
        LINES.append(JsonFormatter().format(record))


def page_of_the_run() -> Document:
    (address,) = (json.loads(line)["url"] for line in LINES if json.loads(line)["event"] == "control_plane")
    return decode(httpx.get(f"{address}/graph", timeout=30).content)


async def work(ends: WiredEnds) -> None:
    """Uses Prefect as a task would: in the operator, and in a blocking call. Its first instance fails."""
    get_run_logger().info("instance %d", ends.instance)
    if ends.instance == 1:
        raise OSError("the first one fails")
    await acreate_markdown_artifact("# one", key="at-home-operator")
    secret: Any = await Secret.aload("at-home")  # Prefect's types do not say that it is a Secret
    SEEN.append((prefect.runtime.task_run.name, await Variable.aget("at_home"), secret.get()))
    SEEN.append(await ends.run_blocking(blocking))
    DOCUMENTS.append(await ends.run_blocking(page_of_the_run))
    await nested()
    async for batch in ends.receiver.batches():
        ends.commit(batch, acknowledge=len(batch))
        await ends.flush()


def blocking() -> tuple[str | None, Any, Any]:
    get_run_logger().info("in a thread")
    logging.getLogger("elsewhere").warning("of a library, in a thread")
    create_markdown_artifact("# two", key="at-home-thread")
    secret: Any = Secret.load("at-home")
    return prefect.runtime.task_run.name, Variable.get("at_home"), secret.get()


def at_home_pipeline(_: AtHome) -> Pipeline:
    graph = OperatorGraph("at-home")
    source = graph.add_source("numbers", source_of(range(3)))
    operator = graph.add_operator("work", work, restart_policy=RestartPolicy.always())
    graph.connect(source, operator, 4)
    graph.connect(operator, graph.add_sink("keep", for_each(lambda _: None)), 4)
    return Pipeline(graph, control_plane=ControlPlane(port=0))


at_home = compile_flow("at-home", AtHome, at_home_pipeline, description="Uses Prefect inside an operator.")


async def test_logs_artifacts_variables_and_blocks_in_an_operator_belong_to_its_task_run() -> None:
    """Each instance is a task run of its own: log lines, artifacts and nested task runs are found there."""
    await Variable.aset("at_home", "a variable", overwrite=True)
    await Secret(value="a secret").save("at-home", overwrite=True)
    SEEN.clear()
    LINES.clear()
    DOCUMENTS.clear()
    handler = _Lines()
    logging.root.addHandler(handler)
    logging.root.setLevel(logging.INFO)
    try:
        assert (await run_flow(at_home, AtHome())).exit_code == 0
    finally:
        logging.root.removeHandler(handler)
    assert SEEN == [("work #2", "a variable", "a secret")] * 2
    async with get_client() as client:
        run_id = await newest_run_id(client, "at-home")
        seen = await until(
            client,
            run_id,
            lambda seen: {"work", "work #2"} < seen.states.keys() and len(seen.states) == 5,
            "5 task runs",
        )
        names = {run.id: run.name for run in seen.task_runs}
        lines = await eventually(
            lambda: log_of(client, run_id),
            "the operator's lines",
            holds=lambda lines: {"instance 1", "instance 2", "in a thread"} <= {line.message for line in lines},
        )
        artifacts = {each.key: each for each in await artifacts_of(client, run_id)}
    of_task_run = {line.message: names[line.task_run_id] for line in lines if line.task_run_id in names}
    assert of_task_run["instance 1"] == "work"
    assert of_task_run["instance 2"] == of_task_run["in a thread"] == "work #2"
    second = next(id_ for id_, name in names.items() if name == "work #2")
    assert artifacts["at-home-operator"].task_run_id == artifacts["at-home-thread"].task_run_id == second
    (inner,) = (run for run in seen.task_runs if run.name.startswith("nested"))
    assert inner.task_inputs["__parents__"] == [TaskRunResult(id=second)]
    the_log_joins_with(str(run_id), {str(id_): name for id_, name in names.items()})
    base = PREFECT_UI_URL.value()
    (document,) = DOCUMENTS
    assert base
    assert document.url == f"{base}/runs/flow-run/{run_id}"
    ids = {name: id_ for id_, name in names.items()}
    assert {each.name: each.url for each in document.operators} == {
        "numbers": f"{base}/runs/task-run/{ids['numbers']}",
        "work": f"{base}/runs/task-run/{ids['work #2']}",
        "keep": f"{base}/runs/task-run/{ids['keep']}",
    }


def the_log_joins_with(run_id: str, names: dict[str, str]) -> None:
    """Every line has the run, and each one that names an operator's instance the id of that instance's task run."""
    lines = [line for line in map(json.loads, LINES) if line["run"]]
    assert {line["run"] for line in lines} == {run_id}
    assert {json.loads(line)["event"] for line in LINES if not json.loads(line)["run"]} <= {
        "message"
    }  # before and after it
    of_instances = [line for line in lines if "instance" in line]
    for line in of_instances:
        assert names[line["task_run"]] == line["operator"] + (
            f" #{line['instance']}" if line["instance"] > 1 else ""
        ), line
    assert [names[line["task_run"]] for line in of_instances if line["event"] == "spawn"] == [
        *("numbers", "work", "keep", "work #2")
    ]
    (restart,) = (line for line in lines if line["event"] == "restart")
    assert names[restart["task_run"]] == "work #2"  # the instance that is started
    (foreign,) = (line for line in lines if line.get("logger") == "elsewhere")
    assert names[foreign["task_run"]] == "work #2"
