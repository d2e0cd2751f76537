"""The identity of a run: read from Prefect's flow run, and used in what is reported."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun

from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from tests.helpers.prefect_fakes import IDENTITY


@pytest.mark.parametrize(("run_count", "attempt"), [(0, 1), (1, 1), (2, 2)])
def test_an_identity_is_read_from_the_flow_run(run_count: int, attempt: int) -> None:
    """Attempts count from 1, also if Prefect has not counted yet. Tags are sorted."""
    flow_run = FlowRun(
        id=UUID(int=1),
        name="brave-otter",
        flow_id=UUID(int=2),
        deployment_id=UUID(int=3),
        run_count=run_count,
        tags=["night", "b", "a", "dawn"],
    )
    assert RunIdentity.of(flow_run, pipeline="radar-net", flow_name="sda-ingest") == replace(
        IDENTITY, attempt=attempt, tags=("a", "b", "dawn", "night")
    )


def test_ids_of_task_runs_differ_between_attempts() -> None:
    """For the same attempt they are always the same."""
    second = replace(IDENTITY, attempt=2)
    assert second.task_run_id("poll", 1) != IDENTITY.task_run_id("poll", 1)
    assert second.task_run_id("poll", 1) == replace(IDENTITY, attempt=2).task_run_id("poll", 1)


def test_a_direct_call_is_related_to_no_deployment() -> None:
    """Without tags, it has no related tag either."""
    roles = [resource["prefect.resource.role"] for resource in replace(IDENTITY, deployment_id=None, tags=()).related()]
    assert roles == ["flow-run", "flow", "pipeline"]


def test_a_label_has_the_runs_name_and_id() -> None:
    """Messages about the run's sockets and folders use it."""
    assert IDENTITY.label == "flow run 'brave-otter' (00000000-0000-0000-0000-000000000001)"
