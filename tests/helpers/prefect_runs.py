"""Starts flow runs for tests, and reads what Prefect's own client shows of them.

Knows the server (``prefect_server``) and the command line, not the pipelines' internals.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

import httpx
import yaml  # type: ignore[import-untyped]  # it comes with Prefect, its stubs do not
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
    LogFilter,
    LogFilterFlowRunId,
)
from prefect.client.schemas.objects import Artifact, FlowRun, Log, TaskRun
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter
from prefect.events.schemas.events import ReceivedEvent

from orchestrator_adapter.prefect_flow.client.vocabulary import OPERATOR, PIPELINE
from tests.helpers.prefect_server import PrefectServer
from tests.helpers.running import eventually
from tests.helpers.support import ROOT, flows_process

T = TypeVar("T")

Decisions: TypeAlias = Counter[tuple[str, str, int]]
"""The count of each (decision, operator or "", instance or 0)."""

TOY = "toy-stream/toy-stream"
INGEST = "sda-ingest/sda-ingest"
FUSION = "sda-fusion/sda-fusion"
_PAGE = 200  # rows per answer: the server's own limit
_EVENT_PAGE = 50  # the server's limit for events; it rejects the client's own default
_NEVER_S = 90.0
_WRITTEN_S = 90.0  # ten times what was measured


async def _eventually(
    look: Callable[[], Awaitable[T]], holds: Callable[[T], object], what: str, *, limit_s: float = _NEVER_S
) -> T:
    """``eventually`` of a server that may be away: a look without an answer does not hold."""

    async def answered() -> T | None:
        try:
            return await look()
        except httpx.TransportError:
            return None
        except httpx.HTTPStatusError as error:
            if error.response.status_code < httpx.codes.INTERNAL_SERVER_ERROR:
                raise
            return None

    seen = await eventually(answered, what, holds=lambda seen: seen is not None and holds(seen), limit_s=limit_s)
    assert seen is not None
    return seen


@dataclass(frozen=True, slots=True)
class Seen:
    """A flow run as the server shows it.

    Attributes:
        flow_run: With its state.
        task_runs: All task runs, oldest first.
        events: The events of decisions, oldest first.
    """

    flow_run: FlowRun
    task_runs: Sequence[TaskRun]
    events: Sequence[ReceivedEvent]

    @property
    def state(self) -> str:
        """The type of the flow run's state, such as ``COMPLETED``."""
        return state_of(self.flow_run)

    @property
    def message(self) -> str:
        return (self.flow_run.state.message if self.flow_run.state is not None else None) or ""

    @property
    def states(self) -> dict[str, str]:
        """The states of the task runs, by name; a name that occurs twice has both states."""
        found: dict[str, str] = {}
        for run in self.task_runs:
            found[run.name] = f"{found[run.name]}, {state_of(run)}" if run.name in found else state_of(run)
        return found

    @property
    def over(self) -> bool:
        """Whether the flow run and every task run have ended."""
        runs: list[FlowRun | TaskRun] = [self.flow_run, *self.task_runs]
        return all(run.state is not None and run.state.is_final() for run in runs)

    @property
    def decisions(self) -> Decisions:
        """How many events each decision has."""
        return Counter(
            (
                event.event.rpartition(".")[2],
                event.resource.name or "" if event.event.startswith(OPERATOR) else "",
                int(event.payload.get("instance") or 0),  # none where the operator of a loop stall is unknown
            )
            for event in self.events
        )

    def task_run(self, name: str) -> TaskRun:
        """The only task run of this name."""
        (found,) = (run for run in self.task_runs if run.name == name)
        return found


def state_of(run: FlowRun | TaskRun) -> str:
    return run.state.type.value if run.state is not None else ""


async def look(client: PrefectClient, flow_run_id: UUID) -> Seen:
    """Everything that the server shows of a run."""
    flow_run = await client.read_flow_run(flow_run_id)
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    task_runs: list[TaskRun] = []
    while len(page := await client.read_task_runs(flow_run_filter=of_run, limit=_PAGE, offset=len(task_runs))):
        task_runs += page
    answer = await client.read_events(
        EventFilter(
            event=EventNameFilter(prefix=[f"{OPERATOR}.", f"{PIPELINE}."]),
            any_resource=EventAnyResourceFilter(id=[f"prefect.flow-run.{flow_run_id}"]),
        ),
        limit=_EVENT_PAGE,
    )
    events = list(answer.events)
    while answer.next_page is not None:
        answer = await client.read_events_page(str(answer.next_page))
        events += answer.events
    return Seen(
        flow_run,
        sorted(task_runs, key=lambda run: (str(run.start_time), run.name)),
        sorted(events, key=lambda event: event.occurred),
    )


async def until(
    client: PrefectClient, flow_run_id: UUID, holds: Callable[[Seen], object], what: str, *, limit_s: float = _NEVER_S
) -> Seen:
    """Read the run until it ``holds``."""
    return await _eventually(lambda: look(client, flow_run_id), holds, what, limit_s=limit_s)


async def until_over(
    client: PrefectClient, flow_run_id: UUID, decisions: Callable[[], Decisions] | None = None
) -> Seen:
    """Read the run until it has ended, with every task run and its last event.

    With ``decisions``, go on until each of them is an event, and each start of an operator a finished task run: the server
    writes every five seconds, and not in order. After 90 s the run is returned as it is, and the caller must judge it.
    """
    # One small request a look, until the run has ended; then all of it.
    await _eventually(
        lambda: client.read_flow_run(flow_run_id),
        lambda run: run.state is not None and run.state.is_final(),
        "the run has ended",
    )
    seen = await until(
        client,
        flow_run_id,
        lambda seen: seen.over and seen.task_runs and seen.decisions["ended", "", 0],
        "the run is over, with every task run and its last event",
    )

    def lacks_something(decisions: Decisions) -> bool:
        started = sum(count for (decision, _, _), count in decisions.items() if decision == "spawn")
        return bool(decisions - seen.decisions) or not seen.over or len(seen.task_runs) < started

    if decisions is None:
        return seen

    async def look_again() -> Seen:
        nonlocal seen
        seen = await look(client, flow_run_id)
        return seen

    with suppress(AssertionError):
        await _eventually(look_again, lambda _: not lacks_something(decisions()), "all of it", limit_s=_WRITTEN_S)
    return seen


async def log_of(client: PrefectClient, flow_run_id: UUID) -> list[Log]:
    """The run's log lines, oldest first."""
    of_run = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
    lines: list[Log] = []
    while len(page := await client.read_logs(of_run, limit=_PAGE, offset=len(lines))):
        lines += page
    return lines


async def artifacts_of(client: PrefectClient, flow_run_id: UUID) -> list[Artifact]:
    """The run's artifacts, the newest version of each."""
    of_run = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    return await client.read_artifacts(artifact_filter=of_run, limit=_PAGE)


async def newest_run_id(client: PrefectClient, flow_name: str, *, other_than: set[UUID] | None = None) -> UUID:
    """Wait for the only run of a flow that is not in ``other_than``, and return its id."""

    async def ids() -> list[UUID]:
        names = {flow.id: flow.name for flow in await client.read_flows()}
        found = await client.read_flow_runs(limit=_PAGE)
        return [run.id for run in found if names.get(run.flow_id) == flow_name and run.id not in (other_than or set())]

    (newest,) = await _eventually(ids, bool, f"a run of {flow_name}")
    return newest


class Installation:
    """On a running server: a work pool, every pipeline deployed, and ``python -m flows worker`` as a process.

    Attributes:
        server: The server.
        log: The output of the worker and its flow runs.
    """

    def __init__(self, server: PrefectServer, folder: Path, *, worker: Mapping[str, str] | None = None) -> None:
        self.server = server
        self.log = folder / "worker.log"
        self._folder = folder
        self._worker_settings = {"PREFECT_WORKER_QUERY_SECONDS": "1", **(worker or {})}
        self._worker: subprocess.Popen[bytes] | None = None

    def deploy(self) -> None:
        """Deploy everything in ``prefect.yaml``, and the toy flow, with Prefect's command line."""
        plan = yaml.safe_load((ROOT / "prefect.yaml").read_text())
        ingest = next(each for each in plan["deployments"] if each["name"] == "sda-ingest")
        plan["deployments"].append(
            ingest | {"name": "toy-stream", "entrypoint": "tests/integration/toy_flow.py:toy", "description": "A toy."}
        )
        path = self._folder / "prefect.yaml"
        path.write_text(yaml.safe_dump(plan))
        self.prefect("work-pool", "create", "sda", "--type", "process", "--overwrite")
        self.prefect("--no-prompt", "deploy", "--all", "--prefect-file", str(path))

    def prefect(self, *arguments: str) -> str:
        """Run a command of Prefect's command line, which must succeed; returns its output."""
        done = subprocess.run(
            [sys.executable, "-m", "prefect", *arguments],
            cwd=ROOT,
            env=dict(self.server.environment),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    def start_worker(self) -> None:
        assert self._worker is None, "it is already running"
        with self.log.open("ab") as log:
            self._worker = flows_process(
                ["worker", "--name", "tests"],
                {},
                extra={**self.server.environment, **self._worker_settings},
                stdout=log,
                stderr=log,
            )

    def stop_worker(self) -> int:
        """Stop it with SIGTERM, as a service manager would; returns its exit code."""
        assert self._worker is not None
        worker, self._worker = self._worker, None
        if worker.poll() is None:
            worker.send_signal(signal.SIGTERM)
        return worker.wait(_NEVER_S)

    @property
    def worker_lives(self) -> bool:
        return self._worker is not None and self._worker.poll() is None


async def start(client: PrefectClient, deployment: str, settings: Mapping[str, Any]) -> UUID:
    """Create a run, as the UI does; a worker starts it."""
    found = await client.read_deployment_by_name(deployment)
    run = await client.create_flow_run_from_deployment(found.id, parameters={"settings": dict(settings)})
    return run.id
