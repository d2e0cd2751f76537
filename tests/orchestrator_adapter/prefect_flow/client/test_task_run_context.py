"""An operator's instance runs in the context of its own task run. The client of the flow run here has no server to reach."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Iterator
from datetime import UTC, datetime

import prefect.runtime
import pytest
from prefect import Flow, get_run_logger
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext, TaskRunContext
from prefect.results import ResultStore
from prefect.task_runners import ThreadPoolTaskRunner

from orchestrator_adapter.prefect_flow.client.internals import enter_task_run
from orchestrator_adapter.prefect_flow.reporting.task_runs import task_run_of
from orchestrator_adapter.supervision.events import Spawned
from tests.helpers.prefect_fakes import IDENTITY

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def _nothing() -> None:
    """The body of a flow that is never run."""


@pytest.fixture
def client() -> Iterator[PrefectClient]:
    client = PrefectClient("http://127.0.0.1:1/api")
    flow: Flow[[], None] = Flow(_nothing, name=IDENTITY.flow_name)
    flow_run = FlowRun(id=IDENTITY.flow_run_id, name=IDENTITY.flow_run_name, flow_id=IDENTITY.flow_id)
    runner: ThreadPoolTaskRunner[object] = ThreadPoolTaskRunner()
    with (
        runner,
        FlowRunContext(flow=flow, flow_run=flow_run, client=client, task_runner=runner, result_store=ResultStore()),
    ):
        yield client


def in_instance(number: int) -> contextvars.Context:
    context = contextvars.copy_context()
    record = Spawned("poll", number, "source", (), None)
    context.run(enter_task_run, task_run_of(IDENTITY, record, NOON), record.operator)
    return context


@pytest.mark.usefixtures("client")
def test_in_an_instance_s_context_prefect_s_runtime_names_its_task_run_and_its_flow_run() -> None:
    """The id is the one under which the instance is reported; a restarted instance has its own."""
    for number, name in ((1, "poll"), (2, "poll #2")):
        context = in_instance(number)
        task_run = prefect.runtime.task_run
        assert context.run(getattr, task_run, "id") == str(IDENTITY.task_run_id("poll", number))
        assert context.run(getattr, task_run, "name") == name
        assert context.run(getattr, task_run, "task_name") == "poll"
        assert context.run(getattr, task_run, "tags") == ["source"]
        assert context.run(getattr, prefect.runtime.flow_run, "id") == str(IDENTITY.flow_run_id)


@pytest.mark.usefixtures("client")
def test_in_an_instance_s_context_a_logger_is_the_task_run_s() -> None:
    """Its lines carry the ids of the task run and of the flow run."""
    logger = in_instance(1).run(get_run_logger)
    assert logger.name == "prefect.task_runs"
    assert isinstance(logger, logging.LoggerAdapter)
    assert logger.extra is not None
    assert logger.extra["task_run_id"] == str(IDENTITY.task_run_id("poll", 1))
    assert logger.extra["flow_run_id"] == str(IDENTITY.flow_run_id)


def test_an_instance_uses_the_client_of_its_flow_run(client: PrefectClient) -> None:
    """No other connection is opened for it, and the context outside is unchanged."""
    entered = in_instance(1).run(TaskRunContext.get)
    assert entered is not None
    assert entered.client is client
    assert TaskRunContext.get() is None


def test_outside_a_flow_run_no_task_run_is_entered() -> None:
    """A reporter in a test has no flow run."""
    assert in_instance(1).run(TaskRunContext.get) is None
