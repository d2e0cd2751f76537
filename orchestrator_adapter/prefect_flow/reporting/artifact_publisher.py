"""Publishes a run's artifacts: topology, live status, progress, and the report at the end. Its failure affects nothing else."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

from orchestrator_adapter.control_plane.snapshot import View
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.prefect_flow.client.api import ask
from orchestrator_adapter.prefect_flow.client.text import storable
from orchestrator_adapter.prefect_flow.reporting import artifacts
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity
from orchestrator_adapter.process.pipeline import RunOutcome
from orchestrator_adapter.resilience.retry import RetryDisposition, RetryOk


class ArtifactPublisher:
    """The artifacts of one run. Status and progress are updated in place: a run of any length has four artifacts."""

    def __init__(self, identity: RunIdentity, graph: OperatorGraph) -> None:
        self._identity = identity
        self._graph = graph
        self._published: dict[str, UUID] = {}

    async def refresh(self, client: PrefectClient, view: View) -> RetryDisposition[Any]:
        """Publish the run's current status. The first answer that is not ``RetryOk`` ends the round and is returned."""
        answer: RetryDisposition[Any] = RetryOk(None)
        if "topology" not in self._published:
            answer = await self._publish(
                client, "topology", "markdown", artifacts.topology(self._graph), "operators and channels"
            )
        if isinstance(answer, RetryOk):
            answer = await self._publish(client, "status", "markdown", artifacts.status(view), "live, renewed in place")
        if isinstance(answer, RetryOk):
            ledger = view.status.ledger
            percent = artifacts.settled_percent(ledger)
            answer = await self._publish(client, "settled", "progress", percent, artifacts.settled_text(ledger))
        return answer

    async def report(self, client: PrefectClient, outcome: RunOutcome) -> RetryDisposition[Any]:
        """Publish how the run ended."""
        answer = await self._publish(client, "report", "markdown", artifacts.report(outcome), "how the run ended")
        if isinstance(answer, RetryOk) and "settled" in self._published:
            ledger = outcome.event.figures.ledger
            percent = artifacts.settled_percent(ledger)
            answer = await self._publish(client, "settled", "progress", percent, artifacts.settled_text(ledger))
        return answer

    async def _publish(
        self, client: PrefectClient, what: str, kind: str, data: str | float, description: str
    ) -> RetryDisposition[Any]:
        data = storable(data, limit=len(data)) if isinstance(data, str) else data
        known = self._published.get(what)
        if known is not None:
            # Not `update_artifact`: it emits an event with the whole text for every update, and Prefect's own queue of
            # events sends it twice after an outage.
            update = ArtifactUpdate(data=data, description=description).model_dump(mode="json", exclude_unset=True)
            return await ask(client.request("PATCH", "/artifacts/{id}", path_params={"id": known}, json=update))
        artifact = ArtifactCreate(
            key=artifacts.artifact_key(self._identity.pipeline, what),
            type=kind,
            data=data,
            description=description,
            flow_run_id=self._identity.flow_run_id,
        )
        answer = await ask(client.create_artifact(artifact))
        if isinstance(answer, RetryOk):
            self._published[what] = answer.value.id
        return answer
