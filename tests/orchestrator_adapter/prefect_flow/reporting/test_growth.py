"""Memory of the delivery over many restarts: items that are delivered, confirmed and over are released."""

from __future__ import annotations

import asyncio
import gc
import threading
from datetime import timedelta
from itertools import islice
from typing import Any

import pytest
from prefect.client.schemas.objects import StateType

from orchestrator_adapter import source_of
from orchestrator_adapter.prefect_flow.options import Reporting
from orchestrator_adapter.prefect_flow.reporting import reporter as reporter_module
from orchestrator_adapter.prefect_flow.reporting.delivery import Delivery
from orchestrator_adapter.prefect_flow.reporting.outbox import Outbox
from orchestrator_adapter.prefect_flow.reporting.reporter import Reporter
from orchestrator_adapter.prefect_flow.reporting.task_runs import TrackedTaskRun
from orchestrator_adapter.process.pipeline import RunOutcome
from orchestrator_adapter.process.report import ExitCode
from orchestrator_adapter.supervision.events import Decided, Exited, Restarted, Spawned
from orchestrator_adapter.supervision.task_exit import Errored
from orchestrator_adapter.testing import CollectSink, chain
from tests.helpers.figures import all_ok
from tests.helpers.prefect_fakes import EVENTS, IDENTITY, LOGS, NOON, FakePrefect, state
from tests.helpers.running import eventually

NOON_NS = round(NOON.timestamp() * 1e9)
STEP_S = 0.02  # between two restarts
OPERATORS = 3
AT_REST = {"_outboxes": 3, "task_runs._related": 5, "task_runs._alive": OPERATORS}
DELIVERED_KEPT = 1_000  # delivered items of each kind, in case a killed server has lost them


class Slow(FakePrefect):
    """A server that shows events at once, and records task runs from them only on ``record``, the oldest first."""

    def __init__(self) -> None:
        super().__init__()
        self.records = False
        self._recorded = 0

    def record(self, count: int) -> None:
        chosen = list(islice(self.items(EVENTS), self._recorded, self._recorded + count))
        for item in chosen:
            if item["event"].startswith("prefect.task-run."):
                self._record(item)
        self._recorded += len(chosen)


class Run:
    """A source, an operator that fails again and again, and a sink, reported to a fake server."""

    def __init__(self, *, queue: int = 10_000, server: FakePrefect | None = None) -> None:
        self.server = FakePrefect() if server is None else server
        self.now = 0.0
        self.delivery = Delivery(IDENTITY, queue=queue, monotonic=lambda: self.now)
        self._instance = 1
        for operator, role, upstream in (
            ("source", "source", ()),
            ("work", "operator", ("source",)),
            ("sink", "sink", ("work",)),
        ):
            self._note(Spawned(operator, 1, role, upstream, None))

    def restart(self) -> None:
        """Report one failure and its restart."""
        self.now += STEP_S
        self._note(Exited("work", self._instance, Errored(ConnectionError("the partner hung up")), STEP_S))
        self._instance += 1
        cause = "ConnectionError: the partner hung up"
        restarted = Restarted("work", self._instance, cause, self.now, charged=True, backoff_s=0.0)
        self._note(
            Decided("restart", {"operator": "work", "instance": self._instance, "cause": cause}),
            Decided("spawn", {"operator": "work", "instance": self._instance}),
            Spawned("work", self._instance, "operator", ("source",), restarted),
        )

    async def deliver(self) -> None:
        """What the reporter does about ten times a second."""
        await self.delivery.deliver(self.server.client)
        await self.delivery.check(self.server.client)

    async def restarts(self, count: int) -> None:
        for number in range(count):
            self.restart()
            if number % 5 == 0:
                await self.deliver()

    async def quiet_period(self) -> None:
        """Thirty seconds in which nothing happens."""
        for _ in range(60):
            self.now += 0.5
            await self.deliver()

    def _note(self, *records: Spawned | Exited | Decided) -> None:
        for record in records:
            self.delivery.add(record, NOON_NS + round(self.now * 1e9))


def sizes(delivery: Delivery) -> dict[str, int]:
    """The size of every container of the delivery, of its task run tracker and of its outboxes."""
    owners = {
        "": delivery,
        "task_runs.": delivery._task_runs,
        **{f"{kind}s.": box for kind, box in delivery._outboxes.items()},
    }
    return {
        f"{of}{name}": len(value)
        for of, owner in owners.items()
        for name, value in vars(owner).items()
        if hasattr(value, "__len__") and not isinstance(value, str | Outbox)
    }


def not_empty(delivery: Delivery) -> dict[str, int]:
    """The containers that are not empty, except the bounded list of recently delivered items."""
    return {name: size for name, size in sizes(delivery).items() if size and not name.endswith("._recent")}


async def test_confirmed_restarts_do_not_grow_the_delivery() -> None:
    """After 1,500 restarts every container has the size that it had after 600."""
    run = Run()
    await run.restarts(600)
    await run.quiet_period()
    before = sizes(run.delivery)
    await run.restarts(900)
    await run.quiet_period()
    assert sizes(run.delivery) == before
    assert run.delivery.all_delivered
    assert run.delivery.given_up == 0


async def test_no_ended_and_confirmed_task_run_stays_in_memory() -> None:
    """Of 501 instances only the three living ones remain, each with at most two states."""
    others = {
        id(thing): thing for thing in gc.get_objects() if isinstance(thing, TrackedTaskRun)
    }  # those of another reporter that is still ending
    run = Run()
    await run.restarts(500)
    await run.quiet_period()
    gc.collect()
    living = [thing for thing in gc.get_objects() if isinstance(thing, TrackedTaskRun) and id(thing) not in others]
    assert sorted(tracked.task_run.name for tracked in living) == ["sink", "source", "work #501"]
    assert sum(len(tracked.states) for tracked in living) <= 2 * OPERATORS


async def test_delivered_items_are_kept_up_to_a_bound() -> None:
    """The last thousand items of each kind."""
    run = Run()
    await run.restarts(600)
    await run.quiet_period()
    found = sizes(run.delivery)
    assert (found["events._recent"], found["logs._recent"]) == (DELIVERED_KEPT, DELIVERED_KEPT)
    assert not_empty(run.delivery) == AT_REST


async def test_a_long_outage_costs_no_more_memory_than_the_queue() -> None:
    """Beyond it the oldest items are dropped and counted. Once everything is delivered, the queue is empty again."""
    queue = 500
    run = Run(queue=queue)
    await run.quiet_period()
    run.server.unreachable = True
    await run.restarts(600)
    at_worst = sizes(run.delivery)
    assert at_worst["events._queued"] == at_worst["logs._queued"] == queue
    assert run.delivery.given_up > 0
    run.server.unreachable = False
    await run.quiet_period()
    await run.quiet_period()
    assert run.delivery.all_delivered
    assert not_empty(run.delivery) == AT_REST


@pytest.mark.parametrize("outages", [1, 10])
async def test_outages_do_not_grow_the_delivery(outages: int) -> None:
    """After any number of outages, no event stays marked as uncertain."""
    run = Run()
    for _ in range(outages):
        await run.restarts(50)
        run.server.unreachable = True
        await run.restarts(50)
        run.server.unreachable = False
        await run.quiet_period()
    assert run.delivery.all_delivered
    assert not_empty(run.delivery) == AT_REST


@pytest.mark.parametrize("fault", ["loses_events", "records"])
async def test_lost_items_do_not_grow_the_delivery(fault: str) -> None:
    """The server lost the events or recorded no task runs: what is sent again is released once the server shows it."""
    run = Run()
    setattr(run.server, fault, fault == "loses_events")
    await run.restarts(100)
    await run.quiet_period()
    setattr(run.server, fault, fault != "loses_events")
    await run.quiet_period()
    assert run.delivery.all_delivered
    assert not_empty(run.delivery) == AT_REST


async def test_a_late_server_is_not_sent_anything_twice() -> None:
    """It is 15 s late and makes progress: sending again, or using the API, would make it later."""
    server = Slow()
    run = Run(server=server)
    while run.now < 10:
        await run.restarts(5)
        server.record(10)  # of 25
    while run.now < 30:
        run.now += 0.1
        server.record(10)
        await run.deliver()
    assert server.calls.count("create_task_run") == 0
    assert server.sent_twice == []
    assert run.delivery.all_delivered


async def test_lost_items_are_sent_again_although_the_server_makes_progress() -> None:
    """It shows items that were sent long after the lost one, so it will not show the lost one."""
    run = Run()
    run.server.records = False
    run.restart()
    await run.deliver()
    run.server.records = True
    await run.restarts(800)  # 16 s
    assert "create_task_run" in run.server.calls
    await run.quiet_period()
    assert run.delivery.all_delivered


class Hanging(FakePrefect):
    """A server whose answers to posts are delayed until ``answers`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.has_flow_run(IDENTITY.flow_run_id, state(StateType.RUNNING))
        self.asked, self.answers = threading.Event(), threading.Event()

    async def request(self, method: str, path: str, **options: Any) -> None:
        self.asked.set()
        while not self.answers.is_set():  # noqa: ASYNC110 - it is set on another thread
            await asyncio.sleep(0.001)
        await super().request(method, path, **options)


async def test_the_inbox_is_emptied_during_a_long_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Records move to the bounded outboxes, because the inbox has no bound."""
    monkeypatch.setattr(reporter_module, "_GATHER_S", 0.001)
    server = Hanging()
    monkeypatch.setattr(reporter_module, "client_without_retries", server.connected)
    graph = chain(source_of([]), CollectSink())
    reporter = Reporter(IDENTITY, graph, Reporting(artifacts=False, queue=100), on_cancel=print)
    on_decision = reporter.hooks().on_decision
    assert on_decision is not None
    on_decision(Decided("spawn", {}))
    reporter.start(graph.build())
    await eventually(server.asked.is_set, "the first event is in flight")
    for number in range(1_000):
        on_decision(Decided("spawn", {"instance": number}))
    await eventually(lambda: not reporter._inbox, "the inbox is empty")
    assert {len(reporter._delivery._outboxes[kind]) for kind in (EVENTS, LOGS)} == {100}
    server.answers.set()
    await reporter.finish(RunOutcome(all_ok(), ExitCode.OK, ()), timedelta(hours=1))
    assert len(server.items(EVENTS)) == 100


async def test_a_slow_server_does_not_delay_the_end_beyond_the_patience(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``finish`` returns when the patience is over, with the undelivered items."""
    monkeypatch.setattr(reporter_module, "_FINAL_STEP_S", 0.001)
    monkeypatch.setattr(reporter_module, "_MARGIN_S", 5.0)  # a request may take ten
    server = Hanging()
    monkeypatch.setattr(reporter_module, "client_without_retries", server.connected)
    graph = chain(source_of([]), CollectSink())
    reporter = Reporter(IDENTITY, graph, Reporting(artifacts=False), on_cancel=print)
    on_decision = reporter.hooks().on_decision
    assert on_decision is not None
    on_decision(Decided("spawn", {}))
    reporter.start(graph.build())
    delivered = await reporter.finish(RunOutcome(all_ok(), ExitCode.OK, ()), timedelta(milliseconds=1))
    assert [kind for kind, _ in delivered.undelivered] == [EVENTS, LOGS]
    assert not delivered.complete
