"""The names of our Prefect events and resources. They are stable: automations are built on them.

A decision on an operator is the event ``orchestrator.operator.<decision>``, a decision on the pipeline is
``orchestrator.pipeline.<decision>``; ``<decision>`` is a value of ``primitives.decision.Decision``. The resource of an event
has an id with the same prefix, as in Prefect (``prefect.flow-run.Completed`` has the resource ``prefect.flow-run.<uuid>``).
Pure strings: knows neither Prefect nor when an event is emitted.
"""

from __future__ import annotations

from typing import Final

OPERATOR: Final = "orchestrator.operator"
"""Prefix of the events and the resource ids of operators."""

PIPELINE: Final = "orchestrator.pipeline"
"""Prefix of the events and the resource ids of pipelines; also the label that names an operator's pipeline."""

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
    """The resource of an operator's events: one for all of its instances and runs."""
    return {RESOURCE_ID: f"{OPERATOR}.{pipeline}.{operator}", RESOURCE_NAME: operator, PIPELINE: pipeline}


def pipeline_resource(pipeline: str) -> dict[str, str]:
    """The resource of a pipeline's own events."""
    return {RESOURCE_ID: f"{PIPELINE}.{pipeline}", RESOURCE_NAME: pipeline}


def related_pipeline(pipeline: str) -> dict[str, str]:
    """The pipeline as the related resource of its operators' events."""
    return pipeline_resource(pipeline) | {RESOURCE_ROLE: "pipeline"}
