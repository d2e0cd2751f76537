"""A fake Prefect server: its client's calls work on a few dictionaries, with outages on demand. No time passes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import ArtifactFilter, FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import Artifact, FlowRun, FlowRunPolicy, State, StateType, TaskRun
from prefect.client.schemas.sorting import ArtifactSort
from prefect.events.filters import EventFilter
from prefect.exceptions import ObjectNotFound

from orchestrator_adapter.prefect_flow.client.posting import ARTIFACTS, EVENTS, LOGS, PATHS, ReportItem
from orchestrator_adapter.prefect_flow.reporting.identity import RunIdentity

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
IDENTITY = RunIdentity(
    pipeline="radar-net",
    flow_name="sda-ingest",
    flow_run_id=UUID(int=1),
    flow_run_name="brave-otter",
    flow_id=UUID(int=2),
    deployment_id=UUID(int=3),
    tags=("night",),
)


def state(kind: StateType, message: str = "", *, at: datetime = NOON) -> State[Any]:
    return State(type=kind, name=kind.value.capitalize(), message=message, timestamp=at)


def answered(code: int) -> httpx.HTTPStatusError:
    """What the client raises for an answer with this code."""
    request = httpx.Request("POST", "http://prefect/api")
    return httpx.HTTPStatusError(f"answered {code}", request=request, response=httpx.Response(code, request=request))


class FakePrefect:
    """The content of one server, and how it answers.

    Attributes:
        unreachable: It does not answer.
        unreachable_after: It answers this many more calls, then is unreachable.
        rejects: It answers 422 to a batch that contains an item for which this is true.
        raises: By call, what it raises instead of answering.
        loses_events: It accepts events and stores none, as if killed before it wrote them.
        records: It records task runs from the events that it stores.
        loses_answers: It accepts items, and its answer does not arrive.
        stored: The events that it has stored, by id.
        torn: Ids of events that are stored without their resources, as if killed while it wrote them.
        sent_twice: Ids of events that were sent although they were stored: a real server may drop a batch for it.
        calls: Every call, also those that were not answered.
        posted: Every batch that was accepted, as (kind, items).
        flow_runs: By id.
        task_runs: By id, with their latest states.
        artifacts: By id.
    """

    def __init__(self) -> None:
        self.unreachable = False
        self.unreachable_after: int | None = None
        self.rejects: Callable[[ReportItem], bool] = lambda _: False
        self.raises: dict[str, BaseException] = {}
        self.loses_events = False
        self.records = True
        self.loses_answers = False
        self.stored: dict[str, ReportItem] = {}
        self.torn: set[str] = set()
        self.sent_twice: list[str] = []
        self.calls: list[str] = []
        self.posted: list[tuple[str, list[ReportItem]]] = []
        self.flow_runs: dict[UUID, FlowRun] = {}
        self.task_runs: dict[UUID, TaskRun] = {}
        self.artifacts: dict[UUID, Artifact] = {}

    @property
    def client(self) -> PrefectClient:
        """This server as a connected client."""
        return cast("PrefectClient", self)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[PrefectClient]:
        """Replaces ``client_without_retries``."""
        yield self.client

    def has_flow_run(
        self, flow_run_id: UUID, now: State[Any] | None, *, name: str = "brave-otter", attempt: int = 1
    ) -> None:
        self.flow_runs[flow_run_id] = FlowRun(
            id=flow_run_id, name=name, flow_id=UUID(int=2), state=now, run_count=attempt
        )

    def has_task_run(self, number: int, flow_run_id: UUID, now: State[Any], *, attempt: int = 1) -> UUID:
        task_run = TaskRun(
            id=UUID(int=number),
            name=f"operator-{number}",
            flow_run_id=flow_run_id,
            task_key="operator",
            dynamic_key=str(number),
            flow_run_run_count=attempt,
            state=now,
        )
        self.task_runs[task_run.id] = task_run
        return task_run.id

    def flow_run_state(self, flow_run_id: UUID) -> State[Any]:
        now = self.flow_runs[flow_run_id].state
        assert now is not None
        return now

    def task_run_states(self) -> dict[str, str]:
        """The name of each task run's latest state, by the task run's name."""
        return {run.name: run.state.name or "" for run in self.task_runs.values() if run.state is not None}

    def items(self, kind: str) -> list[ReportItem]:
        """Every accepted item of this kind, in order."""
        return [item for of, batch in self.posted for item in batch if of == kind]

    # Calls of the client.

    async def request(self, method: str, path: str, *, json: Any, path_params: dict[str, UUID] | None = None) -> None:
        if (method, path) == ("PATCH", "/artifacts/{id}"):
            assert path_params is not None
            self._update_artifact(path_params["id"], json)
        elif path == PATHS[ARTIFACTS]:
            self._accept_artifact(json)
        else:
            assert method == "POST"
            self._accept(path, json)

    def _accept_artifact(self, json: ReportItem) -> None:
        """The notice's artifact: every one is a new version."""
        self._called(f"post {ARTIFACTS}")
        if self.rejects(json):
            raise answered(422)
        self.posted.append((ARTIFACTS, [json]))
        made = Artifact.model_validate({"id": uuid4()} | dict(json))
        self.artifacts[made.id] = made
        if self.loses_answers:
            raise httpx.ReadTimeout("the answer was lost")

    async def read_artifacts(
        self, *, artifact_filter: ArtifactFilter, sort: ArtifactSort, limit: int
    ) -> list[Artifact]:
        self._called("read_artifacts")
        assert artifact_filter.key is not None
        assert limit <= 200, "the server rejects more"
        assert sort is ArtifactSort.CREATED_DESC
        keys = artifact_filter.key.any_ or []
        return [made for made in reversed(self.artifacts.values()) if made.key in keys][:limit]

    def _accept(self, path: str, json: Sequence[ReportItem]) -> None:
        kind = next(kind for kind, its in PATHS.items() if its == path)
        self._called(f"post {kind}")
        httpx.Request(
            "POST", f"http://prefect/api{path}", json=json
        )  # raises what the client raises for a value that is not JSON
        if any(map(self.rejects, json)):
            raise answered(422)
        self.posted.append((kind, list(json)))
        if kind == EVENTS and not self.loses_events:
            for item in json:
                if item["id"] in self.stored:
                    self.sent_twice.append(item["id"])
                self.stored[item["id"]] = item
                if self.records and item["event"].startswith("prefect.task-run."):
                    self._record(item)
        if self.loses_answers:
            raise httpx.ReadTimeout("the answer was lost")

    async def read_events(self, filter: EventFilter, *, limit: int) -> SimpleNamespace:  # noqa: A002 - the client's parameter name
        self._called("read_events")
        assert filter.id is not None
        ids = filter.id.id or []
        assert len(ids) <= limit <= 50, "the server rejects more"
        kept = self.stored.keys() - (self.torn if filter.any_resource is not None else set())
        return SimpleNamespace(events=[SimpleNamespace(id=id_) for id_ in ids if str(id_) in kept])

    async def read_flow_run(self, flow_run_id: UUID) -> FlowRun:
        self._called("read_flow_run")
        if flow_run_id not in self.flow_runs:
            raise ObjectNotFound(answered(404))
        return self.flow_runs[flow_run_id]

    async def read_task_runs(
        self,
        *,
        flow_run_filter: FlowRunFilter | None = None,
        task_run_filter: TaskRunFilter | None = None,
        limit: int,
        offset: int = 0,
    ) -> list[TaskRun]:
        self._called("read_task_runs")
        assert limit <= 200, "the server rejects more"
        found = sorted(self.task_runs.values(), key=lambda run: run.id)
        if flow_run_filter is not None and flow_run_filter.id is not None:
            found = [run for run in found if run.flow_run_id in (flow_run_filter.id.any_ or [])]
        if task_run_filter is not None and task_run_filter.id is not None:
            ids = task_run_filter.id.any_ or []
            assert len(ids) <= limit, "otherwise the answer is incomplete"
            found = [run for run in found if run.id in ids]
        if task_run_filter is not None and task_run_filter.state is not None and task_run_filter.state.type is not None:
            types = task_run_filter.state.type.any_ or []
            found = [run for run in found if run.state is not None and run.state.type in types]
        return found[offset : offset + limit]

    async def set_flow_run_state(self, flow_run_id: UUID, state: State[Any], *, force: bool = False) -> None:
        self._called("set_flow_run_state")
        assert force, "otherwise the server's rules may reject the state"
        run = self.flow_runs[flow_run_id]
        if state.type is StateType.RUNNING:  # as the server counts
            run.run_count += not run.empirical_policy.resuming
            run.empirical_policy.resuming = False
        run.state = state

    async def update_flow_run(self, flow_run_id: UUID, *, empirical_policy: FlowRunPolicy) -> None:
        self._called("update_flow_run")
        self.flow_runs[flow_run_id].empirical_policy = empirical_policy

    async def set_task_run_state(self, task_run_id: UUID, state: State[Any], *, force: bool = False) -> None:
        self._called("set_task_run_state")
        assert force, "otherwise the server's rules may reject the state"
        self.task_runs[task_run_id].state = state

    async def create_task_run(self, task: object, *, id: UUID, name: str, state: State[Any], **fields: Any) -> None:  # noqa: A002 - the client's parameter name
        self._called("create_task_run")
        self.task_runs.setdefault(id, TaskRun(id=id, name=name, task_key="", state=state, **fields))

    async def create_artifact(self, artifact: ArtifactCreate) -> Artifact:
        self._called(f"create_artifact {artifact.key}")
        made = Artifact(id=uuid4(), **artifact.model_dump(exclude={"metadata_"}))
        self.artifacts[made.id] = made
        return made

    def _update_artifact(self, artifact_id: UUID, update: dict[str, Any]) -> None:
        made = self.artifacts[artifact_id]
        self._called(f"update_artifact {made.key}")
        made.data, made.description = update["data"], update["description"]

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if self.unreachable_after is not None:
            self.unreachable_after -= 1
            self.unreachable = self.unreachable or self.unreachable_after < 0
        if self.unreachable:
            raise httpx.ConnectError("connection refused")
        if (error := self.raises.get(what)) is not None:
            raise error

    def _record(self, item: ReportItem) -> None:
        """Like the server's recorder: an older state never replaces a newer one."""
        payload, resource = item["payload"], item["resource"]
        known = self.task_runs.get(UUID(resource["prefect.resource.id"].removeprefix("prefect.task-run.")))
        now = State[Any].model_validate(
            payload["validated_state"] | {"id": item["id"], "timestamp": resource["prefect.state-timestamp"]}
        )
        if known is None or known.state is None or known.state.timestamp < now.timestamp:
            flow_run = next(other for other in item["related"] if other["prefect.resource.role"] == "flow-run")
            task_run_id = resource["prefect.resource.id"].removeprefix("prefect.task-run.")
            flow_run_id = flow_run["prefect.resource.id"].removeprefix("prefect.flow-run.")
            recorded = TaskRun.model_validate(payload["task_run"] | {"id": task_run_id, "flow_run_id": flow_run_id})
            recorded.state = now
            self.task_runs[recorded.id] = recorded


__all__ = ["EVENTS", "IDENTITY", "LOGS", "NOON", "FakePrefect", "answered", "state"]
