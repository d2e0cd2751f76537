"""Posts events, log lines and artifacts of notices to the server, and finds out which of them the server does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias
from uuid import UUID, uuid5

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventIDFilter

from orchestrator_adapter.prefect_flow.client.api import ask
from orchestrator_adapter.prefect_flow.client.vocabulary import RESOURCE_ID
from orchestrator_adapter.resilience.retry import RetryOk

ReportItem: TypeAlias = Mapping[str, Any]
"""One event, one log line or one artifact of a notice, as JSON values."""

EVENTS, LOGS, ARTIFACTS = "event", "log", "artifact"
"""The kinds of item."""

PATHS = {EVENTS: "/events", LOGS: "/logs/", ARTIFACTS: "/artifacts/"}
"""The route for each kind."""

BATCH = 200
"""Items per request, and rows per answer: the server's own limit."""

BATCHES = {EVENTS: BATCH, LOGS: BATCH, ARTIFACTS: 1}
"""Items per request of each kind. The route of artifacts takes one."""

_LATEST_VERSIONS = 50  # of an artifact: a notice that is sent again is one of the latest

NOTICE = "notice"
"""The field of an artifact's metadata that has the key of its notice."""

_IDS_PER_QUERY = 50  # the server's own limit for events


async def post(client: PrefectClient, kind: str, items: Sequence[ReportItem]) -> None:
    """Send items of one kind to the server, at most as many as ``BATCHES`` says. Raises what the client raises."""
    body = items[0] if kind == ARTIFACTS else list(items)
    # The route exists, but Prefect's own type of all routes does not list it.
    await client.request("POST", PATHS[kind], json=body)  # type: ignore[arg-type]


async def missing_artifacts(client: PrefectClient, artifacts: Sequence[ReportItem]) -> list[ReportItem] | None:
    """Those artifacts of notices that the server does not have; ``None`` if it is unreachable or failing.

    The server gives every new version an id of its own, so it is found by its notice, which is in its metadata.
    """
    missing: list[ReportItem] = []
    for artifact in artifacts:
        of_key = ArtifactFilter(key=ArtifactFilterKey(any_=[artifact["key"]]))
        page = await ask(
            client.read_artifacts(artifact_filter=of_key, sort=ArtifactSort.CREATED_DESC, limit=_LATEST_VERSIONS)
        )
        if not isinstance(page, RetryOk):
            return None
        if artifact["metadata_"][NOTICE] not in {(version.metadata_ or {}).get(NOTICE) for version in page.value}:
            missing.append(artifact)
    return missing


async def missing_events(
    client: PrefectClient, flow_run_id: UUID, events: Sequence[ReportItem]
) -> list[ReportItem] | None:
    """Those events of a run that the server has not stored; ``None`` if the server is unreachable or failing.

    An event that the server has must not be sent again. On SQLite (Prefect 3.8.8, ``_write_sqlite_events``) a second copy
    fails the whole batch that the server is about to write. The server tries five times and then drops the batch, with the
    events of other runs in it.

    SQLite does not write an event and its resources in one transaction either. A server that is killed between the two has
    an event that no query by resource finds. Such a decision is sent again under a new id. A torn event of a task run is
    not sent again: its task run has been recorded.
    """
    if not events:
        return []
    by_id = await _stored(client, events, None)
    if by_id is None:
        return None
    stored = [event for event in events if event["id"] in by_id]
    # The event of a notice may be that of an earlier run: it is found by its own resource.
    own = {event["resource"][RESOURCE_ID] for event in stored if "resource" in event}
    resources = [f"prefect.flow-run.{flow_run_id}", *sorted(own)]
    by_resource = await _stored(client, stored, EventAnyResourceFilter(id=resources))
    if by_resource is None:
        return None
    torn = [event for event in stored if event["id"] not in by_resource and not _is_of_task_run(event)]
    copies = [{**event, "id": str(uuid5(UUID(event["id"]), "again"))} for event in torn]
    copied = await _stored(client, copies, None)
    if copied is None:
        return None
    missing = [event for event in events if event["id"] not in by_id]
    return [*(copy for copy in copies if copy["id"] not in copied), *missing]


async def _stored(
    client: PrefectClient, events: Sequence[ReportItem], resource: EventAnyResourceFilter | None
) -> frozenset[str] | None:
    """The ids of those events that a query by id, and by ``resource`` if given, finds; ``None`` as above."""
    found: set[str] = set()
    for start in range(0, len(events), _IDS_PER_QUERY):
        ids = EventIDFilter(id=[UUID(event["id"]) for event in events[start : start + _IDS_PER_QUERY]])
        query = EventFilter(id=ids) if resource is None else EventFilter(id=ids, any_resource=resource)
        page = await ask(client.read_events(query, limit=_IDS_PER_QUERY))
        if not isinstance(page, RetryOk):
            return None
        found.update(str(event.id) for event in page.value.events)
    return frozenset(found)


def _is_of_task_run(event: ReportItem) -> bool:
    return str(event.get("event")).startswith("prefect.task-run.")
