"""Which flow run this is, as Prefect tells it and as it is told to Prefect."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun

from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from tests.helpers.prefect_fakes import IDENTITY


@pytest.mark.parametrize(("run_count", "attempt"), [(0, 1), (1, 1), (2, 2)])
def test_an_identity_is_what_prefect_has_just_started(run_count: int, attempt: int) -> None:
    """Attempts count from 1, also where Prefect has not counted yet; tags come in one order."""
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
    """The second attempt's instances are not the first one's; asked again, they are the same."""
    second = replace(IDENTITY, attempt=2)
    assert second.task_run_id("poll", 1) != IDENTITY.task_run_id("poll", 1)
    assert second.task_run_id("poll", 1) == replace(IDENTITY, attempt=2).task_run_id("poll", 1)


def test_a_direct_call_is_related_to_no_deployment() -> None:
    """Nor to tags that it has not."""
    roles = [resource["prefect.resource.role"] for resource in replace(IDENTITY, deployment_id=None, tags=()).related()]
    assert roles == ["flow-run", "flow", "pipeline"]


def test_what_it_is_called_names_it_and_its_id() -> None:
    """For people who meet its socket or its folder."""
    assert IDENTITY.label == "flow run 'brave-otter' (00000000-0000-0000-0000-000000000001)"
