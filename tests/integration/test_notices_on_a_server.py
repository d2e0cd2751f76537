"""Alerts as notices on a real Prefect server: one event and one version of an artifact each, also when they are posted again."""

from __future__ import annotations

from uuid import uuid4

import pytest
from prefect import get_client
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.objects import Artifact
from prefect.client.schemas.sorting import ArtifactSort
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter
from prefect.events.schemas.events import ReceivedEvent
from pydantic import BaseModel

from orchestrator_adapter import WiredEnds
from orchestrator_adapter.prefect_flow import compile_flow, run_flow
from orchestrator_adapter.process import NoticeBoard, Pipeline
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import CollectSink, chain
from sda_ops.alerts.notice import ALERT_EVENT, alert_notice
from sda_ops.records.alert import Alert
from sda_ops.records.risk import ConjunctionRisk, ObjectEvidence
from tests.helpers.running import eventually
from tests.scenes.risks import EPOCH_NS, START_NS, screened

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]

SEVERITIES = ("medium", "high", "high")


class Pair(BaseModel):
    """The first object of two pairs."""

    number: int


def alert(number: int, revision: int) -> Alert:
    """Revision ``revision`` of the conjunction of an object with 90000."""
    estimate = screened((number, 90_000), revision + 1, miss_m=500.0 - 100 * revision)
    return Alert(
        conjunction_id=estimate.conjunction_id,
        revision=revision,
        severity=SEVERITIES[revision],  # type: ignore[arg-type] # a severity
        recorded_timestamp=START_NS + revision,
        risk=ConjunctionRisk(
            estimate=estimate,
            status="provisional",
            cause="screened",
            evidence=(
                ObjectEvidence(catalog_number=number, epoch_timestamp=EPOCH_NS),
                ObjectEvidence(catalog_number=90_000, epoch_timestamp=EPOCH_NS),
            ),
            evidence_timestamp=START_NS,
        ),
    )


def alerts_of(pair: Pair) -> list[Alert]:
    return [alert(number, revision) for revision in range(3) for number in (pair.number, pair.number + 1)]


def pipeline_of(pair: Pair) -> Pipeline:
    """An operator that posts three revisions of two conjunctions, two of them twice."""
    board = NoticeBoard()

    async def source(ends: WiredEnds) -> None:
        for each in alerts_of(pair):
            board.post(alert_notice(each))
            await ends.emit([each.revision])
        for each in alerts_of(pair)[:2]:
            board.post(alert_notice(each))

    return Pipeline(chain(source, CollectSink()), notices=board)


alerting = compile_flow("alerting", Pair, pipeline_of, description="Posts alerts.")


async def events_of(client: PrefectClient, each: Alert) -> list[ReceivedEvent]:
    about = EventAnyResourceFilter(id=[alert_notice(each).resource])
    page = await client.read_events(
        EventFilter(event=EventNameFilter(name=[ALERT_EVENT]), any_resource=about), limit=50
    )
    return sorted(page.events, key=lambda event: int(event.payload["revision"]))


async def versions_of(client: PrefectClient, each: Alert) -> list[Artifact]:
    """Oldest first."""
    of_key = ArtifactFilter(key=ArtifactFilterKey(any_=[alert_notice(each).artifact]))
    newest_first = await client.read_artifacts(artifact_filter=of_key, sort=ArtifactSort.CREATED_DESC, limit=50)
    return list(reversed(newest_first))


async def test_three_revisions_of_two_conjunctions_are_events_and_versions_of_artifacts_once_each() -> None:
    """Two revisions are posted twice, and a second run posts all of them again: nothing is there twice."""
    pair = Pair(number=uuid4().int % 10_000 + 10_000)
    for _ in range(2):
        outcome = await run_flow(alerting, pair)
        assert isinstance(outcome.event, events.AllOk)
    async with get_client() as client:
        for number in (pair.number, pair.number + 1):
            expected = [alert_notice(alert(number, revision)) for revision in range(3)]
            found = await eventually(
                lambda number=number: events_of(client, alert(number, 0)),  # type: ignore[misc] # a lambda with a default
                "three events",
                holds=lambda found: len(found) >= 3,
            )
            assert [event.payload["revision"] for event in found] == [0, 1, 2]
            assert [event.resource["conjunction.severity"] for event in found] == list(SEVERITIES)
            assert [event.resource["prefect.resource.name"] for event in found] == [each.title for each in expected]
            related = {resource.role for resource in found[0].related}
            assert {"flow", "flow-run", "pipeline"} <= related
            versions = await versions_of(client, alert(number, 0))
            assert [version.data for version in versions] == [each.markdown for each in expected]
            assert {version.type for version in versions} == {"markdown"}
