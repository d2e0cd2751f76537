"""A notice as one Prefect event and as one version of an artifact. Pure.

The event's id is made from the notice's key, and the artifact carries the key, so both can be looked up before they are sent.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID, uuid5

from orchestrator_adapter.prefect_flow.client.posting import NOTICE, ReportItem
from orchestrator_adapter.prefect_flow.client.text import storable
from orchestrator_adapter.prefect_flow.client.vocabulary import RESOURCE_ID, RESOURCE_NAME
from orchestrator_adapter.prefect_flow.reporting.decisions import json_value
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from orchestrator_adapter.process.notices import Notice

_NOTICES = UUID("6f0d7a52-6e0b-5a53-9c5e-2c4b8f1d3a77")


def notice_event(identity: RunIdentity, notice: Notice, at: datetime) -> ReportItem:
    """The Prefect event of a notice that was posted at ``at``. Any run of the same pipeline gives it the same id."""
    labels = {str(label): storable(str(value)) for label, value in notice.labels.items()}
    return {
        "id": str(uuid5(_NOTICES, _key(identity, notice))),
        "occurred": at.isoformat(),
        "event": notice.event,
        "resource": labels | {RESOURCE_ID: notice.resource, RESOURCE_NAME: storable(notice.title)},
        "related": identity.related(),
        "payload": {str(name): json_value(value) for name, value in notice.payload.items()},
    }


def notice_artifact(identity: RunIdentity, notice: Notice) -> ReportItem:
    """The version of its artifact."""
    return {
        "key": notice.artifact,
        "type": "markdown",
        "data": storable(notice.markdown),
        "description": storable(notice.title),
        "metadata_": {NOTICE: _key(identity, notice)},
        "flow_run_id": str(identity.flow_run_id),
    }


def _key(identity: RunIdentity, notice: Notice) -> str:
    return f"{identity.pipeline}/{notice.event}/{notice.key}"
