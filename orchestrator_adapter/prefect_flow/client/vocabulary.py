"""The names under which a pipeline's decisions are Prefect events: stable, for automations and whoever else listens.

An operator's decision is the event ``orchestrator.operator.<decision>``, a pipeline's own ``orchestrator.pipeline.<decision>``;
``<decision>`` is a value of ``primitives.decision.Decision``. Event and resource ids share their prefixes, as Prefect's own do
(``prefect.flow-run.Completed`` happens to ``prefect.flow-run.<uuid>``). Pure strings: knows neither Prefect, nor when anything
is emitted.
"""

from __future__ import annotations

from typing import Final

OPERATOR: Final = "orchestrator.operator"
"""What the events and the resource ids of operators begin with."""

PIPELINE: Final = "orchestrator.pipeline"
"""What the events and the resource ids of pipelines begin with; also the label that names an operator's pipeline."""

RESOURCE_ID: Final = "prefect.resource.id"
RESOURCE_NAME: Final = "prefect.resource.name"
RESOURCE_ROLE: Final = "prefect.resource.role"


def operator_event(decision: str) -> str:
    """The event of a decision on an operator: ``operator_event("restart")`` is ``orchestrator.operator.restart``."""
    return f"{OPERATOR}.{decision}"


def pipeline_event(decision: str) -> str:
    """The event of a decision on a pipeline: ``pipeline_event("ended")`` is ``orchestrator.pipeline.ended``."""
    return f"{PIPELINE}.{decision}"


def operator_resource(pipeline: str, operator: str) -> dict[str, str]:
    """The resource that an operator's events happen to: all of its instances and runs are one resource."""
    return {RESOURCE_ID: f"{OPERATOR}.{pipeline}.{operator}", RESOURCE_NAME: operator, PIPELINE: pipeline}


def pipeline_resource(pipeline: str) -> dict[str, str]:
    """The resource that a pipeline's own events happen to."""
    return {RESOURCE_ID: f"{PIPELINE}.{pipeline}", RESOURCE_NAME: pipeline}


def related_pipeline(pipeline: str) -> dict[str, str]:
    """The pipeline as the related resource of its operators' events."""
    return pipeline_resource(pipeline) | {RESOURCE_ROLE: "pipeline"}
