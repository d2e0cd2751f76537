"""Identifies a run in Prefect: ids, names and related resources. Values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID, uuid5

from prefect.client.schemas.objects import FlowRun

from orchestrator_adapter.prefect_flow.client.vocabulary import pipeline_resource


@dataclass(frozen=True, slots=True)
class RunIdentity:
    """A run of a pipeline as one attempt of one flow run.

    Attributes:
        pipeline: The graph's name.
        flow_name: The flow's name.
        flow_run_id: Prefect's id of the run.
        flow_run_name: Its name in the UI.
        flow_id: Prefect's id of the flow.
        deployment_id: Prefect's id of the deployment; ``None`` for a direct call.
        attempt: Counted from 1; higher if Prefect ran the same flow run again.
        tags: The run's tags.
    """

    pipeline: str
    flow_name: str
    flow_run_id: UUID
    flow_run_name: str
    flow_id: UUID
    deployment_id: UUID | None = None
    attempt: int = 1
    tags: tuple[str, ...] = ()

    @classmethod
    def of(cls, flow_run: FlowRun, *, pipeline: str, flow_name: str) -> RunIdentity:
        """The run that Prefect has just started."""
        return cls(
            pipeline=pipeline,
            flow_name=flow_name,
            flow_run_id=flow_run.id,
            flow_run_name=flow_run.name,
            flow_id=flow_run.flow_id,
            deployment_id=flow_run.deployment_id,
            attempt=max(1, flow_run.run_count),
            tags=tuple(sorted(flow_run.tags)),
        )

    @property
    def label(self) -> str:
        """Names the run in messages about a socket or a folder that it uses."""
        return f"flow run {self.flow_run_name!r} ({self.flow_run_id})"

    def task_run_id(self, operator: str, instance: int) -> UUID:
        """The id of an instance's task run. It is deterministic, so reporting an instance twice changes nothing."""
        return uuid5(self.flow_run_id, f"{self.attempt}/{operator}/{instance}")

    def related(self) -> list[dict[str, str]]:
        """The related resources of every event of this run."""
        resources: list[Mapping[str, str]] = [
            _in_role("flow-run", f"prefect.flow-run.{self.flow_run_id}", self.flow_run_name),
            _in_role("flow", f"prefect.flow.{self.flow_id}", self.flow_name),
            {**pipeline_resource(self.pipeline), "prefect.resource.role": "pipeline"},
        ]
        if self.deployment_id is not None:
            resources.append(_in_role("deployment", f"prefect.deployment.{self.deployment_id}", ""))
        resources += [_in_role("tag", f"prefect.tag.{tag}", "") for tag in self.tags]
        return [dict(resource) for resource in resources]

    def related_task_run(self, operator: str, instance: int) -> dict[str, str]:
        """The related resource for an operator's instance."""
        return _in_role("task-run", f"prefect.task-run.{self.task_run_id(operator, instance)}", "")


def _in_role(role: str, resource_id: str, name: str) -> dict[str, str]:
    resource = {"prefect.resource.id": resource_id, "prefect.resource.role": role}
    return resource | {"prefect.resource.name": name} if name else resource
