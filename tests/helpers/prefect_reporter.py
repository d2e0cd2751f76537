"""A reporter that is about to report a graph to a fake server."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path
from uuid import UUID

from prefect.client.schemas.objects import StateType

from orchestrator_adapter import source_of
from orchestrator_adapter.prefect_flow.options import Reporting
from orchestrator_adapter.prefect_flow.recovery.records import RunRecord
from orchestrator_adapter.prefect_flow.reporting.reporter import DeliveryReport, Reporter
from orchestrator_adapter.process.pipeline import RunOutcome
from orchestrator_adapter.process.report import ExitCode
from orchestrator_adapter.supervision import task_exit
from orchestrator_adapter.supervision.events import Decided, Exited, Spawned
from orchestrator_adapter.testing import CollectSink, chain
from tests.helpers.figures import all_ok
from tests.helpers.prefect_fakes import EVENTS, IDENTITY, FakePrefect, state

MS = timedelta(milliseconds=1)
LONG = timedelta(hours=1)
OUTCOME = RunOutcome(all_ok(), ExitCode.OK, ())
RUN = IDENTITY.flow_run_id
POLL = Spawned("poll", 1, "source", (), None)
ENDED = Exited("poll", 1, task_exit.Ok(), 1.0)
EARLIER = RunRecord(UUID(int=7), "old-owl", "radar-net", attempt=1, pid=1, started="2026-01-01T12:00:00+00:00")


class Run:
    """A reporter that is about to report a graph, and its fake server."""

    def __init__(self, *, directory: Path | None = None, artifacts: bool = True) -> None:
        self.prefect = FakePrefect()
        self.prefect.has_flow_run(RUN, state(StateType.RUNNING))
        self.graph = chain(source_of([]), CollectSink())
        self.built = self.graph.build()
        self.cancelled: list[tuple[str, int]] = []
        self.options = Reporting(directory=directory, artifacts=artifacts, status_every=MS, look_every=MS)
        self.reporter = Reporter(IDENTITY, self.graph, self.options, on_cancel=self._cancel)

    def _cancel(self, reason: str) -> None:
        self.cancelled.append((reason, threading.get_ident()))

    def note(self, *records: Spawned | Exited | Decided) -> None:
        hooks = self.reporter.hooks()
        assert hooks.on_spawn is not None
        assert hooks.on_exit is not None
        assert hooks.on_decision is not None
        for record in records:
            match record:
                case Spawned():
                    hooks.on_spawn(record)
                case Exited():
                    hooks.on_exit(record)
                case Decided():
                    hooks.on_decision(record)

    def start(self) -> None:
        self.reporter.start(self.built)

    async def finish(self, patience: timedelta = LONG) -> DeliveryReport:
        return await self.reporter.finish(OUTCOME, patience)

    def delivered(self) -> list[str]:
        return [item["event"] for item in self.prefect.items(EVENTS)]
