"""Restarts without end, and a link to Prefect that does not grow with them: what is told, confirmed and over is let go."""

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
AT_REST = {"_outboxes": 2, "book._related": 5, "book._alive": OPERATORS}
KEPT_AFTERWARDS = 1_000  # delivered items of a kind, for a server that is killed and forgets them


class Slow(FakePrefect):
    """One that shows events at once, and makes task runs of them when it is told to: the oldest first, so many."""

    def __init__(self) -> None:
        super().__init__()
        self.records = False
        self._recorded = 0

    def record(self, count: int) -> None:
        late = list(islice(self.items(EVENTS), self._recorded, self._recorded + count))
        for item in late:
            if item["event"].startswith("prefect.task-run."):
                self._record(item)
        self._recorded += len(late)


class Run:
    """A source, an operator that fails again and again, and a sink; told to a server that takes what it is brought."""

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
        """One failure and all that follows from it."""
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
        """What the link does every tenth of a second."""
        await self.delivery.deliver(self.server.client)
        await self.delivery.check(self.server.client)

    async def restarts(self, count: int) -> None:
        for number in range(count):
            self.restart()
            if number % 5 == 0:
                await self.deliver()

    async def quiet_period(self) -> None:
        """Half a minute in which nothing happens."""
        for _ in range(60):
            self.now += 0.5
            await self.deliver()

    def _note(self, *records: Spawned | Exited | Decided) -> None:
        for record in records:
            self.delivery.add(record, NOON_NS + round(self.now * 1e9))


def held(delivery: Delivery) -> dict[str, int]:
    """How much is in every container that the delivery has, its book's and its outboxes' included."""
    owners = {
        "": delivery,
        "book.": delivery._task_runs,
        **{f"{kind}s.": box for kind, box in delivery._outboxes.items()},
    }
    return {
        f"{of}{name}": len(value)
        for of, owner in owners.items()
        for name, value in vars(owner).items()
        if hasattr(value, "__len__") and not isinstance(value, str | Outbox)
    }


def busy(delivery: Delivery) -> dict[str, int]:
    """The containers that have something in them, but for what was delivered last: that is bounded."""
    return {name: size for name, size in held(delivery).items() if size and not name.endswith("._recent")}


async def test_restarts_that_the_server_shows_leave_nothing_behind() -> None:
    """After 1,500 restarts the delivery holds, container by container, what it held after 600."""
    run = Run()
    await run.restarts(600)
    await run.quiet_period()
    before = held(run.delivery)
    await run.restarts(900)
    await run.quiet_period()
    assert held(run.delivery) == before
    assert run.delivery.all_delivered
    assert run.delivery.given_up == 0


async def test_no_ended_task_run_is_referred_to_from_anywhere() -> None:
    """Of 501 instances those of the three operators that live are left, each with the states that still say something."""
    others = {
        id(thing): thing for thing in gc.get_objects() if isinstance(thing, TrackedTaskRun)
    }  # a link's that still ends, say
    run = Run()
    await run.restarts(500)
    await run.quiet_period()
    gc.collect()
    living = [thing for thing in gc.get_objects() if isinstance(thing, TrackedTaskRun) and id(thing) not in others]
    assert sorted(told.task_run.name for told in living) == ["sink", "source", "work #501"]
    assert sum(len(told.states) for told in living) <= 2 * OPERATORS


async def test_what_was_delivered_is_remembered_up_to_a_bound() -> None:
    """A thousand items of each kind, of however many there were."""
    run = Run()
    await run.restarts(600)
    await run.quiet_period()
    found = held(run.delivery)
    assert (found["events._recent"], found["logs._recent"]) == (KEPT_AFTERWARDS, KEPT_AFTERWARDS)
    assert busy(run.delivery) == AT_REST


async def test_a_server_that_is_away_for_long_costs_what_the_queue_holds() -> None:
    """Beyond it the oldest goes, and is counted; once the server is back and all is told, that is gone, too."""
    queue = 500
    run = Run(queue=queue)
    await run.quiet_period()
    run.server.unreachable = True
    await run.restarts(600)
    at_worst = held(run.delivery)
    assert at_worst["events._queued"] == at_worst["logs._queued"] == queue
    assert run.delivery.given_up > 0
    run.server.unreachable = False
    await run.quiet_period()
    await run.quiet_period()
    assert run.delivery.all_delivered
    assert busy(run.delivery) == AT_REST


@pytest.mark.parametrize("outages", [1, 10])
async def test_outages_leave_nothing_behind(outages: int) -> None:
    """However often the server goes away and comes back: what was in doubt is settled, and forgotten."""
    run = Run()
    for _ in range(outages):
        await run.restarts(50)
        run.server.unreachable = True
        await run.restarts(50)
        run.server.unreachable = False
        await run.quiet_period()
    assert run.delivery.all_delivered
    assert busy(run.delivery) == AT_REST


@pytest.mark.parametrize("trouble", ["loses_events", "records"])
async def test_a_server_that_lost_what_it_was_told_leaves_nothing_behind(trouble: str) -> None:
    """It forgot the events, or made no task runs of them: what had to be told again is forgotten like the rest, once shown."""
    run = Run()
    setattr(run.server, trouble, trouble == "loses_events")
    await run.restarts(100)
    await run.quiet_period()
    setattr(run.server, trouble, trouble != "loses_events")
    await run.quiet_period()
    assert run.delivery.all_delivered
    assert busy(run.delivery) == AT_REST


async def test_a_server_that_is_behind_is_not_told_anything_twice() -> None:
    """A quarter of a minute behind, and getting on: telling it again, or by the API, would put it further behind."""
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


async def test_what_a_server_has_lost_is_told_again_although_it_gets_on() -> None:
    """It shows what was told long after: this one it will not show any more."""
    run = Run()
    run.server.records = False
    run.restart()
    await run.deliver()
    run.server.records = True
    await run.restarts(800)  # a quarter of a minute
    assert "create_task_run" in run.server.calls
    await run.quiet_period()
    assert run.delivery.all_delivered


class Hanging(FakePrefect):
    """One that takes its time over what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.has_flow_run(IDENTITY.flow_run_id, state(StateType.RUNNING))
        self.asked, self.answers = threading.Event(), threading.Event()

    async def request(self, method: str, path: str, **options: Any) -> None:
        self.asked.set()
        while not self.answers.is_set():  # noqa: ASYNC110 - it is set on another thread
            await asyncio.sleep(0.001)
        await super().request(method, path, **options)


async def test_the_inbox_is_emptied_while_the_server_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens during one long request is taken in, to where there is a bound: the inbox has none."""
    monkeypatch.setattr(reporter_module, "_GATHER_S", 0.001)
    server = Hanging()
    monkeypatch.setattr(reporter_module, "client_without_retries", server.connected)
    graph = chain(source_of([]), CollectSink())
    its = Reporter(IDENTITY, graph, Reporting(artifacts=False, queue=100), on_cancel=print)
    tell = its.hooks().on_decision
    assert tell is not None
    tell(Decided("spawn", {}))
    its.start(graph.build())
    await eventually(server.asked.is_set, "the first event is on its way")
    for number in range(1_000):
        tell(Decided("spawn", {"instance": number}))
    await eventually(lambda: not its._inbox, "the inbox is empty")
    assert {len(box) for box in its._delivery._outboxes.values()} == {100}
    server.answers.set()
    await its.finish(RunOutcome(all_ok(), ExitCode.OK, ()), timedelta(hours=1))
    assert len(server.items(EVENTS)) == 100


async def test_a_server_that_takes_its_time_does_not_keep_the_end_from_saying_what_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end comes when the patience is at its end, not when the server is; what was not told is named, to be kept."""
    monkeypatch.setattr(reporter_module, "_FINAL_STEP_S", 0.001)
    monkeypatch.setattr(reporter_module, "_MARGIN_S", 5.0)  # a request may take ten
    server = Hanging()
    monkeypatch.setattr(reporter_module, "client_without_retries", server.connected)
    graph = chain(source_of([]), CollectSink())
    its = Reporter(IDENTITY, graph, Reporting(artifacts=False), on_cancel=print)
    tell = its.hooks().on_decision
    assert tell is not None
    tell(Decided("spawn", {}))
    its.start(graph.build())
    told = await its.finish(RunOutcome(all_ok(), ExitCode.OK, ()), timedelta(milliseconds=1))
    assert [kind for kind, _ in told.undelivered] == [EVENTS, LOGS]
    assert not told.complete
