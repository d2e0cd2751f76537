"""``on_decision``: every decision that is logged as a line is reported as a record."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import Any

import pytest

from orchestrator_adapter import (
    BreakerPolicy,
    BuiltGraph,
    OperatorGraph,
    SupervisionHooks,
    SupervisionPolicy,
    WiredEnds,
    map_items,
    source_of,
)
from orchestrator_adapter.primitives.decision import Decision
from orchestrator_adapter.primitives.event_log import DecisionLog
from orchestrator_adapter.supervision.events import Decided, SupervisorEvent
from orchestrator_adapter.testing import (
    CollectSink,
    Fail,
    FailAt,
    ListSource,
    ManualClock,
    UntilShutdown,
    chain,
    run_graph,
    settle,
)
from tests.helpers.running import FailingStore


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    messages = [record.getMessage() for record in caplog.records if record.name == "orchestrator_adapter.supervisor"]
    return [json.loads(message) for message in messages if message.startswith("{")]


async def decisions_of(graph: OperatorGraph, **options: Any) -> tuple[SupervisorEvent, list[Decided]]:
    reported: list[Decided] = []
    event = await run_graph(graph, hooks=SupervisionHooks(on_decision=reported.append), **options)
    return event, reported


def failing() -> OperatorGraph:
    """Restarted once, then over its budget."""
    return chain(source_of(range(9)), map_items(FailAt({2: OSError("cable"), 4: OSError("cable")})), CollectSink())


def panicking() -> OperatorGraph:
    return chain(source_of(range(9)), map_items(FailAt({2: KeyError("x")})), CollectSink())


async def forgets(ends: WiredEnds) -> None:
    """Takes items, and drops them without an outcome."""
    async for _ in ends.receiver.batches():
        pass


async def opens_a_breaker(ends: WiredEnds) -> None:
    """As an operator with a downstream that fails for a long time."""
    ends.breaker("archive", BreakerPolicy()).force_open("it does not answer")
    async for item in ends.receiver:
        await ends.sender.send(item)


@pytest.mark.parametrize(
    ("graph", "expected"),
    [
        (chain(source_of(range(3)), opens_a_breaker, CollectSink()), {"circuit_breaker"}),
        (chain(source_of(range(3)), CollectSink()), {"spawn", "clean_exit", "ended"}),
        (failing(), {"spawn", "restart", "ended"}),
        (panicking(), {"spawn", "escalate", "shutdown", "ended"}),
        (chain(ListSource([1], Fail(KeyError("x"))), CollectSink()), {"escalate"}),
        (chain(source_of(range(3)), forgets, CollectSink()), {"ledger_violation"}),
    ],
)
async def test_every_decision_that_is_logged_is_reported(
    graph: OperatorGraph, expected: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    """In the same order, with the same name, fields and values. Nothing else is reported."""
    with caplog.at_level(logging.INFO, "orchestrator_adapter"):
        _, reported = await decisions_of(graph)
    logged = lines(caplog)
    assert [decided.decision for decided in reported] == [line["event"] for line in logged]
    for decided, line in zip(reported, logged, strict=True):
        fields = {name: value for name, value in line.items() if name not in {"time", "level", "event", "run", "graph"}}
        assert list(decided.fields) == list(fields)
        assert json.loads(json.dumps(dict(decided.fields), default=str)) == fields
    assert expected <= {decided.decision for decided in reported}


async def test_dead_letters_that_are_lost_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Once for each cause. Every dead letter is reported too."""
    with caplog.at_level(logging.INFO, "orchestrator_adapter"):
        _, reported = await decisions_of(panicking(), dead_letters=FailingStore(1))
    decisions = [decided.decision for decided in reported]
    assert decisions == [line["event"] for line in lines(caplog)]
    assert decisions.count("dead_letters_lost") == 1
    assert "dead_letter" in decisions


async def test_a_shutdown_that_ends_in_aborts_is_reported_step_by_step(caplog: pytest.LogCaptureFixture) -> None:
    """The drain, the second request, each abort with its operator, how the operators ended, the end."""

    async def waits(ends: WiredEnds) -> None:
        await asyncio.Event().wait()

    async def twice(built: BuiltGraph) -> None:
        await settle()
        built.request_shutdown("SIGTERM")
        built.request_shutdown("SIGTERM")

    with caplog.at_level(logging.INFO, "orchestrator_adapter"):
        _, reported = await decisions_of(chain(ListSource(UntilShutdown()), waits, CollectSink()), during=twice)
    steps = [(decided.decision, decided.operator) for decided in reported]
    assert steps[:3] == [("spawn", "source"), ("spawn", "op-1"), ("spawn", "sink")]
    assert steps[3:5] == [("shutdown", None), ("shutdown_again", None)]
    assert steps.index(("abort", "op-1")) < steps.index(("aborted", "op-1")) < steps.index(("ended", None))
    assert [decided.decision for decided in reported] == [line["event"] for line in lines(caplog)]


async def test_a_stall_of_the_loop_is_reported_while_it_lasts() -> None:
    """The watchdog's thread reports it, with the operator that blocks the loop. A busy machine may stall elsewhere too."""
    reported: list[Decided] = []

    def stalls_of_the_operator() -> list[Decided]:
        return [decided for decided in reported if decided.decision == "loop_stall" and decided.operator == "op-1"]

    def stands_still(item: int) -> int:
        while not stalls_of_the_operator():
            pass
        return item

    policy = SupervisionPolicy(loop_stall=timedelta(milliseconds=10))
    graph = chain(source_of([1]), map_items(stands_still), CollectSink())
    await run_graph(graph, policy=policy, hooks=SupervisionHooks(on_decision=reported.append))
    (stall,) = stalls_of_the_operator()
    assert stall.fields["instance"] == 1
    assert "stands_still" in str(stall.fields["stack"])


async def test_a_hook_that_fails_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Every decision is still logged and reported, and the run ends as usual."""
    reported: list[Decided] = []

    def fails(decided: Decided) -> None:
        reported.append(decided)
        raise KeyError("a bug in the hook")

    with caplog.at_level(logging.INFO, "orchestrator_adapter"):
        event = await run_graph(failing(), hooks=SupervisionHooks(on_decision=fails))
    assert event.figures.ledger_holds
    assert [decided.decision for decided in reported] == [line["event"] for line in lines(caplog)]


def test_a_decision_is_frozen() -> None:
    """A listener may keep it."""
    decided = Decided("ended", {})
    with pytest.raises(FrozenInstanceError):
        decided.decision = "spawn"  # type: ignore[misc] # the assignment must fail


def test_a_line_has_the_common_fields_the_graph_and_the_decisions_fields(caplog: pytest.LogCaptureFixture) -> None:
    """In this order. A value that JSON does not have is written as text."""
    with caplog.at_level(logging.INFO, "orchestrator_adapter"):
        log = DecisionLog("radar-net", clock=ManualClock(), run="run-1")
        log(Decision.ABORT, operator="poll", instance=2, reason=timedelta(seconds=5))
    assert list(json.loads(caplog.messages[0]).items()) == [
        *(("time", "2026-01-01T00:00:00.000000Z"), ("level", "INFO"), ("event", "abort"), ("run", "run-1")),
        *(("graph", "radar-net"), ("operator", "poll"), ("instance", 2), ("reason", "0:00:05")),
    ]
