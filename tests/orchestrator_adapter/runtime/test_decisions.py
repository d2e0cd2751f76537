"""``on_decision``: what is logged as one line is told as one record, whoever listens and however they fail."""

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
    told: list[Decided] = []
    event = await run_graph(graph, hooks=SupervisionHooks(on_decision=told.append), **options)
    return event, told


def failing() -> OperatorGraph:
    """Restarted once, then over its budget."""
    return chain(source_of(range(9)), map_items(FailAt({2: OSError("cable"), 4: OSError("cable")})), CollectSink())


def panicking() -> OperatorGraph:
    return chain(source_of(range(9)), map_items(FailAt({2: KeyError("x")})), CollectSink())


async def forgets(ends: WiredEnds) -> None:
    """Takes what it is given, and neither passes it on nor says why."""
    async for _ in ends.receiver.batches():
        pass


async def opens_a_breaker(ends: WiredEnds) -> None:
    """As an operator whose downstream fails for long."""
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
async def test_every_decision_that_is_logged_is_told(
    graph: OperatorGraph, expected: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    """In the same order, under the same name, with the same fields and values; and nothing else is."""
    with caplog.at_level(logging.INFO, "orchestrator_adapter"):
        _, told = await decisions_of(graph)
    logged = lines(caplog)
    assert [decided.decision for decided in told] == [line["event"] for line in logged]
    for decided, line in zip(told, logged, strict=True):
        fields = {name: value for name, value in line.items() if name not in {"time", "level", "event", "run", "graph"}}
        assert list(decided.fields) == list(fields)
        assert json.loads(json.dumps(dict(decided.fields), default=str)) == fields
    assert expected <= {decided.decision for decided in told}


async def test_dead_letters_that_are_lost_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Once for their cause, as is every dead letter."""
    with caplog.at_level(logging.INFO, "orchestrator_adapter"):
        _, told = await decisions_of(panicking(), dead_letters=FailingStore(1))
    decisions = [decided.decision for decided in told]
    assert decisions == [line["event"] for line in lines(caplog)]
    assert decisions.count("dead_letters_lost") == 1
    assert "dead_letter" in decisions


async def test_a_shutdown_that_ends_in_aborts_is_told_step_by_step(caplog: pytest.LogCaptureFixture) -> None:
    """The drain, the second request, each abort with whom it concerns, what became of them, the end."""

    async def waits(ends: WiredEnds) -> None:
        await asyncio.Event().wait()

    async def twice(built: BuiltGraph) -> None:
        await settle()
        built.request_shutdown("SIGTERM")
        built.request_shutdown("SIGTERM")

    with caplog.at_level(logging.INFO, "orchestrator_adapter"):
        _, told = await decisions_of(chain(ListSource(UntilShutdown()), waits, CollectSink()), during=twice)
    steps = [(decided.decision, decided.operator) for decided in told]
    assert steps[:3] == [("spawn", "source"), ("spawn", "op-1"), ("spawn", "sink")]
    assert steps[3:5] == [("shutdown", None), ("shutdown_again", None)]
    assert steps.index(("abort", "op-1")) < steps.index(("aborted", "op-1")) < steps.index(("ended", None))
    assert [decided.decision for decided in told] == [line["event"] for line in lines(caplog)]


async def test_a_stall_of_the_loop_is_reported_while_it_lasts() -> None:
    """The watchdog's thread reports it, with the operator that blocks the loop. A busy machine may stall elsewhere too."""
    told: list[Decided] = []

    def stalls_of_the_operator() -> list[Decided]:
        return [decided for decided in told if decided.decision == "loop_stall" and decided.operator == "op-1"]

    def stands_still(item: int) -> int:
        while not stalls_of_the_operator():
            pass
        return item

    policy = SupervisionPolicy(loop_stall=timedelta(milliseconds=10))
    graph = chain(source_of([1]), map_items(stands_still), CollectSink())
    await run_graph(graph, policy=policy, hooks=SupervisionHooks(on_decision=told.append))
    (stall,) = stalls_of_the_operator()
    assert stall.fields["instance"] == 1
    assert "stands_still" in str(stall.fields["stack"])


async def test_a_hook_that_fails_changes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Every decision is still logged and told; the run ends as it would."""
    told: list[Decided] = []

    def fails(decided: Decided) -> None:
        told.append(decided)
        raise KeyError("a bug in the hook")

    with caplog.at_level(logging.INFO, "orchestrator_adapter"):
        event = await run_graph(failing(), hooks=SupervisionHooks(on_decision=fails))
    assert event.figures.ledger_holds
    assert [decided.decision for decided in told] == [line["event"] for line in lines(caplog)]


def test_a_decision_is_frozen() -> None:
    """Whoever is told it may keep it."""
    decided = Decided("ended", {})
    with pytest.raises(FrozenInstanceError):
        decided.decision = "spawn"  # type: ignore[misc] # that is the point


def test_a_line_has_the_common_fields_the_graph_and_the_decisions_fields(caplog: pytest.LogCaptureFixture) -> None:
    """In this order; a value that JSON does not have is written as text."""
    with caplog.at_level(logging.INFO, "orchestrator_adapter"):
        log = DecisionLog("radar-net", clock=ManualClock(), run="run-1")
        log(Decision.ABORT, operator="poll", instance=2, reason=timedelta(seconds=5))
    assert list(json.loads(caplog.messages[0]).items()) == [
        *(("time", "2026-01-01T00:00:00.000000Z"), ("level", "INFO"), ("event", "abort"), ("run", "run-1")),
        *(("graph", "radar-net"), ("operator", "poll"), ("instance", 2), ("reason", "0:00:05")),
    ]
