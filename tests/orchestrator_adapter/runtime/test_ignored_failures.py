"""``RestartPolicy.ignore``: an operator that fails for good and does not bring the graph down."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta
from pathlib import Path

import pytest

from orchestrator_adapter import (
    Control,
    DeadLetterKind,
    DeadLetterList,
    Factory,
    FlowPolicy,
    OperatorError,
    OperatorGraph,
    RestartPolicy,
    SupervisionPolicy,
    WiredEnds,
    events,
    for_each,
    map_items,
    source_of,
)
from orchestrator_adapter.testing import CollectSink, FailAt, ListSource, ManualClock, UntilShutdown, run_graph
from tests.orchestrator_adapter.runtime.scenes import AWAY, holds


class Mark(Control):
    """A control item."""


def beside_the_stream(sidecar: Factory, policy: RestartPolicy, flow: FlowPolicy) -> tuple[OperatorGraph, CollectSink]:
    """A stream of 0 to 99 to a sink, and a fan-out to a sidecar with this restart policy."""
    graph, sink = OperatorGraph("beside"), CollectSink()
    split = graph.add_fan_out("split")
    graph.connect(graph.add_source("source", source_of(range(100), batch=5)), split, 10)
    graph.connect(split, graph.add_sink("sink", sink), 10)
    graph.connect(split, graph.add_sink("sidecar", sidecar, restart_policy=policy), 10, policy=flow)
    return graph, sink


@pytest.mark.parametrize("flow", [FlowPolicy.backpressure(), FlowPolicy.timed(timedelta(hours=1))], ids=str)
@pytest.mark.parametrize("failure", [AWAY, KeyError("bug")], ids=["fails", "panics"])
async def test_the_graph_goes_on_without_an_operator_whose_failure_is_ignored(
    failure: Exception, flow: FlowPolicy, caplog: pytest.LogCaptureFixture
) -> None:
    """Its leased and waiting items are dead-lettered, later ones are shed at its edge, and the stream is complete."""
    letters = DeadLetterList()
    graph, sink = beside_the_stream(for_each(FailAt({8: failure})), RestartPolicy.ignore(), flow)
    with caplog.at_level(logging.ERROR, "orchestrator_adapter.supervisor"):
        event = await run_graph(graph, clock=ManualClock(), dead_letters=letters)
    assert isinstance(event, events.AllOk)
    assert sink.items == list(range(100))
    ledger = event.figures.ledger
    assert ledger.dead_lettered == len(letters.letters) >= 1
    assert ledger.shed >= 70  # at most the seven written before it, and one edge of ten with its outbox, are not shed
    assert ledger.written == 100 + 7
    assert holds(event)
    assert event.figures.problems == (
        f"operator 'sidecar' has failed and was ignored: {event.figures.exits['sidecar']}",
    )
    assert [record.message for record in caplog.records if '"event": "ignored"' in record.message]


async def test_an_ignored_operator_is_restarted_within_its_budget_first() -> None:
    """With one restart admitted, the second failure is the one that is ignored."""
    policy = RestartPolicy.ignore(RestartPolicy.bounded(1, timedelta(seconds=60)))
    assert str(policy) == "bounded(1, 60 s), then ignored"
    graph, sink = beside_the_stream(for_each(FailAt({1: AWAY, 9: AWAY})), policy, FlowPolicy.backpressure())
    event = await run_graph(graph, clock=ManualClock(autojump=True))
    assert isinstance(event, events.AllOk)
    assert event.figures.restarts["sidecar"].total == 1
    assert sink.items == list(range(100))
    assert holds(event)


async def test_the_readers_of_an_ignored_operator_receive_the_end_of_the_stream() -> None:
    """An operator between source and sink fails: the sink ends as at the end of a stream, and the source sheds the rest."""
    letters, sink = DeadLetterList(), CollectSink()
    graph = OperatorGraph("through")
    operator = graph.add_operator(
        "op", map_items(FailAt({3: OperatorError("away")})), restart_policy=RestartPolicy.ignore()
    )
    graph.connect(graph.add_source("source", source_of(range(20), batch=1)), operator, 1)
    graph.connect(operator, graph.add_sink("sink", sink), 1)
    event = await run_graph(graph, clock=ManualClock(), dead_letters=letters)
    assert isinstance(event, events.AllOk)
    assert sink.items == [0, 1]
    assert {letter.kind for letter in letters.letters} == {DeadLetterKind.UNDELIVERED}
    assert event.figures.ledger.shed + len(letters.letters) == 18
    assert holds(event)


@pytest.mark.parametrize("fails_last", [True, False])
async def test_an_ignored_sink_counts_as_ended_for_the_end_rule(fails_last: bool) -> None:  # noqa: FBT001
    """An endless graph is done when the sink has ended and the sidecar has failed, in either order."""
    graph, ended = OperatorGraph("rule"), {"sink": asyncio.Event(), "sidecar": asyncio.Event()}

    async def sink(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        if not fails_last:
            await ended["sidecar"].wait()
        asyncio.current_task().add_done_callback(lambda _: ended["sink"].set())  # type: ignore[union-attr] # it runs in one

    async def sidecar(ends: WiredEnds) -> None:
        await ends.receiver.recv()
        if fails_last:
            await ended["sink"].wait()
        ended["sidecar"].set()
        raise AWAY

    split = graph.add_fan_out("split")
    graph.connect(graph.add_source("source", ListSource([1], UntilShutdown())), split, 4)
    graph.connect(split, graph.add_sink("sink", sink), 4)
    graph.connect(split, graph.add_sink("sidecar", sidecar, restart_policy=RestartPolicy.ignore()), 4)
    policy = SupervisionPolicy(done_when=frozenset({"sink", "sidecar"}))
    event = await run_graph(graph, clock=ManualClock(autojump=True), policy=policy)
    assert isinstance(event, events.AllOk)
    assert holds(event)


async def test_the_graph_goes_on_without_an_ignored_operator_that_returns_early() -> None:
    """What waits for it is dead-lettered, and later items are shed. It is no problem."""
    letters = DeadLetterList()

    async def returns(ends: WiredEnds) -> None:
        await ends.receiver.recv()

    graph, sink = beside_the_stream(returns, RestartPolicy.ignore(), FlowPolicy.backpressure())
    event = await run_graph(graph, clock=ManualClock(), dead_letters=letters)
    assert isinstance(event, events.AllOk)
    assert sink.items == list(range(100))
    ledger = event.figures.ledger
    assert ledger.written == 100 + 1
    assert ledger.shed + ledger.dead_lettered == 99
    assert ledger.dead_lettered == len(letters.letters)
    assert event.figures.problems == ()
    assert holds(event)


@pytest.mark.parametrize("policy", ["shed", "timed", "spill", "a full spill that waits", "a full spill that sheds"])
async def test_every_flow_policy_sheds_what_an_ignored_operator_does_not_read(policy: str, tmp_path: Path) -> None:
    """The stream is complete, control items included, and nothing is left in memory or on disk."""
    flow = {
        "shed": FlowPolicy.shed(),
        "timed": FlowPolicy.timed(timedelta(hours=1)),
        "spill": FlowPolicy.spill(tmp_path),
        "a full spill that waits": FlowPolicy.spill(tmp_path, max_bytes=300),
        "a full spill that sheds": FlowPolicy.spill(tmp_path, max_bytes=300, when_full="shed"),
    }[policy]
    stream = [item for number in range(200) for item in ([number, Mark()] if number % 7 == 0 else [number])]
    graph, sink = OperatorGraph("beside"), CollectSink(controls=True)
    split = graph.add_fan_out("split")
    graph.connect(graph.add_source("source", source_of(stream, batch=5)), split, 10)
    graph.connect(split, graph.add_sink("sink", sink), 10)
    sidecar = graph.add_sink("sidecar", for_each(FailAt({30: AWAY})), restart_policy=RestartPolicy.ignore())
    graph.connect(split, sidecar, 10, policy=flow)
    built = graph.build(clock=ManualClock())
    event = await built.run()
    assert isinstance(event, events.AllOk)
    assert sink.items == stream
    assert holds(event)
    assert event.figures.signals.in_flight == event.figures.ledger.in_flight == 0
    assert event.figures.ledger.shed > 0
    assert set(built.status().outboxes.values()) == {0}
    assert built.status().edges["split -> sidecar"].spilled == 0
