from __future__ import annotations

import asyncio
import json
import logging
from datetime import timedelta

import pytest

from orchestrator_adapter.channels.flow_policy import FlowPolicy
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.operators.ends import WiredEnds
from orchestrator_adapter.operators.from_functions import map_items, source_of
from orchestrator_adapter.storage.dead_letter import DeadLetterList
from orchestrator_adapter.supervision import events
from orchestrator_adapter.supervision.events import SupervisionHooks
from orchestrator_adapter.supervision.restart import RestartPolicy
from orchestrator_adapter.testing import CollectSink, FailAt, ManualClock, chain, run_graph, settle
from tests.helpers.log_lines import event_of
from tests.orchestrator_adapter.runtime.scenes import AWAY, advancing, holds, live, takes_one_batch, three


async def test_hooks_are_called_in_order_with_frozen_records() -> None:
    """Spawn, exit, restart, spawn …: the records have operator, instance and cause."""
    seen: list[str] = []
    hooks = SupervisionHooks(
        on_spawn=lambda it: seen.append(f"spawn {it.operator} #{it.instance} {it.role} {','.join(it.upstream)}"),
        on_exit=lambda it: seen.append(f"exit {it.operator} #{it.instance} {it.exit}"),
        on_restart=lambda it: seen.append(f"restart {it.operator} #{it.instance} {it.cause}"),
        on_escalate=lambda it: seen.append(f"escalate {it.operator} {it.kind} {it.cause}"),
        on_shutdown=lambda it: seen.append(f"shutdown {it.phase} {it.reason} {it.grace_s:g}"),
    )
    graph = chain(source_of("ab"), map_items(FailAt({1: AWAY, 3: KeyError("bug")})), CollectSink())
    await run_graph(graph, hooks=hooks, clock=ManualClock(autojump=True))
    assert seen == [
        "spawn source #1 source ",
        "spawn op-1 #1 operator source",
        "spawn sink #1 sink op-1",
        "exit source #1 Ok",
        "exit op-1 #1 Errored(OperatorError: away)",
        "restart op-1 #2 OperatorError: away",
        "spawn op-1 #2 operator source",
        "exit op-1 #2 Panicked(KeyError: 'bug')",
        "escalate op-1 Panicked KeyError: 'bug'",
        "shutdown 1 Panicked: op-1 5",
        "exit sink #1 Ok",
    ]


@pytest.mark.parametrize("error", [ValueError("hook"), SystemExit(9)], ids=["error", "exit"])
async def test_hooks_that_raise_change_nothing(error: BaseException) -> None:
    """If every hook raises, the stream is restarted, drained and balanced as without hooks."""

    def broken(_: object) -> None:
        raise error

    sink = CollectSink()
    event = await run_graph(
        three(source_of(range(5)), map_items(FailAt({3: AWAY})), sink),
        hooks=SupervisionHooks(broken, broken, broken, broken, broken),
    )
    assert isinstance(event, events.AllOk)
    assert sink.items == list(range(5))
    assert event.figures.restarts["op"].total == 1


async def test_every_decision_is_one_json_line_with_stable_fields(caplog: pytest.LogCaptureFixture) -> None:
    """The lines of a run with a restart, an exhausted budget and an abort are JSON with exactly these fields."""

    async def flaky(ends: WiredEnds) -> None:
        raise AWAY

    graph = three(live, flaky, takes_one_batch, policy=RestartPolicy.bounded(1, timedelta(seconds=9)), capacity=2)
    with caplog.at_level(logging.INFO, "orchestrator_adapter.supervisor"):
        await run_graph(graph, clock=ManualClock(), during=advancing(6))
    lines = [json.loads(record.getMessage()) for record in caplog.records]
    fields = {line["event"]: set(line) - {"event", "graph"} for line in map(event_of, caplog.messages)}
    assert fields == {
        "spawn": {"operator", "instance"},
        "restart": {"operator", "instance", "cause", "charged", "backoff_s"},
        "budget_exhausted": {"operator", "instance", "cause"},
        "shutdown": {"phase", "reason", "grace_s"},
        "exit_while_draining": {"operator", "instance", "exit"},
        "abort": {"operator", "instance", "reason"},
        "aborted": {"operator", "instance", "exit"},
        "dead_letter": {"operator", "kind", "items", "message"},
        "ended": {"outcome", "ledger", "ledger_holds", "undelivered", "problems"},
    }
    assert {line["graph"] for line in lines} == {"three"}
    assert [line["event"] for line in lines].count("budget_exhausted") == 1


async def test_no_line_is_logged_per_observation(caplog: pytest.LogCaptureFixture) -> None:
    """Ten thousand items, of which many time out, cause no more lines than ten items."""

    async def hurried(ends: WiredEnds) -> None:
        for number in range(200):
            await ends.emit([number])

    async def wedged(ends: WiredEnds) -> None:
        await ends.shutdown.wait()

    graph = OperatorGraph("late")
    source, sink = graph.add_source("source", hurried), graph.add_sink("sink", wedged)
    graph.connect(source, sink, 1, policy=FlowPolicy.timed(timedelta(milliseconds=1)))
    clock, letters = ManualClock(), DeadLetterList()
    built = graph.build(clock=clock, dead_letters=letters)
    with caplog.at_level(logging.DEBUG, "orchestrator_adapter"):
        running = asyncio.create_task(built.run())
        for _ in range(200):
            await settle(5)
            clock.advance(0.001)
        await settle()
        built.request_shutdown("test")
        event = await running
    assert event.figures.ledger.dead_lettered == letters.total == 200
    assert holds(event)
    assert len(caplog.records) < 20
