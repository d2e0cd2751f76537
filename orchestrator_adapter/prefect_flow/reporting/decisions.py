"""The supervisor's decisions as Prefect events and as lines of the flow run's log. Pure; the names are in ``vocabulary``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from math import isfinite
from uuid import uuid4

from orchestrator_adapter.prefect_flow.client.posting import ReportItem
from orchestrator_adapter.prefect_flow.client.text import storable
from orchestrator_adapter.prefect_flow.client.vocabulary import (
    operator_event,
    operator_resource,
    pipeline_event,
    pipeline_resource,
)
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from orchestrator_adapter.prefect_flow.reporting.task_runs import instance_name
from orchestrator_adapter.primitives.decision import is_alarming
from orchestrator_adapter.supervision.events import Decided

_LONGEST_TEXT = 20_000  # characters of a stack or a traceback; Prefect rejects events above 1.5 MB


def decision_event(identity: RunIdentity, decided: Decided, at: datetime) -> ReportItem:
    """The Prefect event of a decision, as JSON values. ``payload`` has the fields of the decision log's line."""
    operator, instance = decided.operator, decided.fields.get("instance")
    related = identity.related()
    if operator is None:
        name, resource = pipeline_event(decided.decision), pipeline_resource(identity.pipeline)
        related = [other for other in related if other["prefect.resource.id"] != resource["prefect.resource.id"]]
    else:
        name, resource = operator_event(decided.decision), operator_resource(identity.pipeline, operator)
        if isinstance(instance, int):
            related.append(identity.related_task_run(operator, instance))
    return {
        "id": str(uuid4()),
        "occurred": at.isoformat(),
        "event": name,
        "resource": resource,
        "related": related,
        "payload": {field: json_value(value) for field, value in decided.fields.items()},
    }


def log_line(identity: RunIdentity, decided: Decided, at: datetime) -> ReportItem:
    """The line of the flow run's log: one sentence. Prefect also shows it with the operator's task run."""
    operator, instance = decided.operator, decided.fields.get("instance")
    line: dict[str, object] = {
        "name": f"supervisor.{operator}" if operator is not None else "supervisor",
        "level": logging.ERROR if is_alarming(decided.decision) else logging.INFO,
        "message": sentence(decided),
        "timestamp": at.isoformat(),
        "flow_run_id": str(identity.flow_run_id),
    }
    if operator is not None and isinstance(instance, int):
        line["task_run_id"] = str(identity.task_run_id(operator, instance))
    return line


def warning_line(identity: RunIdentity, message: str, at: datetime) -> ReportItem:
    """A line of the flow run's log that is not a decision of the supervisor."""
    return {
        "name": "supervisor",
        "level": logging.WARNING,
        "message": message,
        "timestamp": at.isoformat(),
        "flow_run_id": str(identity.flow_run_id),
    }


def sentence(decided: Decided) -> str:
    """``restart radar-01 #2: cause ConnectionError: …, charged True, backoff_s 0.5``."""
    operator, instance = decided.operator, decided.fields.get("instance")
    rest = {name: value for name, value in decided.fields.items() if name not in {"operator", "instance"}}
    words = [decided.decision.replace("_", " ")]
    if operator is not None:
        words.append(instance_name(operator, instance) if isinstance(instance, int) else operator)
    details = ", ".join(f"{name} {_text(value)}" for name, value in rest.items())
    return " ".join(words) + (f": {details}" if details else "")


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(inner)}" for name, inner in value.items() if inner)
    return storable(str(value), limit=_LONGEST_TEXT)


def json_value(value: object) -> object:
    """``value`` as JSON. NaN, infinity and unknown types become text, and all text is made storable."""
    if isinstance(value, Mapping):
        return {str(name): json_value(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_value(inner) for inner in value]
    if value is None or isinstance(value, int) or (isinstance(value, float) and isfinite(value)):
        return value
    return _text(value)
