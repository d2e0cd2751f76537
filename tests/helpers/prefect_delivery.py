"""A delivery to a fake server, on a clock that is set by hand."""

from __future__ import annotations

from typing import Any

from orchestrator_adapter.prefect_flow.reporting.delivery import Delivery
from orchestrator_adapter.supervision import task_exit
from orchestrator_adapter.supervision.events import Decided, Exited, Spawned
from tests.helpers.prefect_fakes import EVENTS, IDENTITY, NOON, FakePrefect

NOON_NS = round(NOON.timestamp() * 1e9)
S = 1_000_000_000
"""Nanoseconds of a second."""


class Scene:
    """A delivery and its fake server, on a clock that is set by hand."""

    def __init__(self, *, queue: int = 1_000) -> None:
        self.now = 100.0
        self.prefect = FakePrefect()
        self.delivery = Delivery(IDENTITY, queue=queue, monotonic=lambda: self.now)

    def spawn(self, *operators: str) -> None:
        for operator in operators:
            self.delivery.add(Spawned(operator, 1, "source", (), None), NOON_NS)

    def exit(self, operator: str) -> None:
        self.delivery.add(Exited(operator, 1, task_exit.Ok(), 1.0), NOON_NS + S)

    def decide(self, *decisions: str) -> None:
        for decision in decisions:
            self.delivery.add(Decided(decision, {}), NOON_NS)

    async def deliver(self) -> bool:
        return await self.delivery.deliver(self.prefect.client)

    async def check(self, **options: Any) -> bool:
        return await self.delivery.check(self.prefect.client, **options)

    async def have_an_outage(self, seconds: float = 10.0) -> None:
        self.prefect.unreachable = True
        self.decide("during_outage")
        assert not await self.deliver()
        self.now += seconds
        self.prefect.unreachable = False

    def decisions(self) -> list[str]:
        names = [item["event"] for item in self.prefect.items(EVENTS)]
        return [name.removeprefix("orchestrator.pipeline.") for name in names if name.startswith("orchestrator")]

    def task_run_events(self) -> list[str]:
        return [item["event"] for item in self.prefect.items(EVENTS) if item["event"].startswith("prefect.")]
