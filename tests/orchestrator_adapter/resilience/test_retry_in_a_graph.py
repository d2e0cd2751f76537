"""``with_retry`` and breakers in a running graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta

import pytest

from orchestrator_adapter import (
    BreakerPolicy,
    BreakerState,
    BuiltGraph,
    CircuitBreaker,
    DeadLetterKind,
    DeadLetterList,
    Factory,
    OperatorGraph,
    RestartPolicy,
    RetryBudget,
    RetryCutShort,
    RetryDisposition,
    RetryPolicy,
    WiredEnds,
    merge,
)
from orchestrator_adapter.primitives.clock import sleep
from orchestrator_adapter.process.report import ExitCode, exit_code, report
from orchestrator_adapter.resilience.retry import (
    Attempt,
    AttemptOutcome,
    Permanent,
    RetryOk,
)
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import (
    CollectSink,
    ListSource,
    ManualClock,
    UntilShutdown,
    chain,
    run_graph,
    settle,
)
from tests.helpers.log_lines import event_of
from tests.helpers.retry_script import (
    MS,
    Op,
    S,
    Script,
    Step,
    away,
)


def polls(op: Callable[[WiredEnds], Op], of: RetryPolicy, *, breaker: str | None = None) -> Factory:
    """A source that emits the pages of ``op`` until the shutdown or an empty page."""

    async def run(ends: WiredEnds) -> None:
        archive = None if breaker is None else ends.breaker(breaker, BREAKER)
        try:
            while isinstance(page := await ends.with_retry(of, op(ends), breaker=archive), RetryOk) and page.value:
                await ends.emit(page.value)
        except RetryCutShort:
            return

    return run


def scripted(*steps: Step) -> Callable[[WiredEnds], Op]:
    """One script for all instances of an operator."""
    script: list[Script] = []

    def op(ends: WiredEnds) -> Op:
        if not script:
            script.append(Script(ends.clock, *steps))
        return script[0]

    return op


BREAKER = BreakerPolicy(min_calls=3, cooldown=10 * S)
FOREVER = RetryPolicy(200 * MS, 15 * S, max_attempts=None)


async def run_on(clock: ManualClock, graph: OperatorGraph) -> events.SupervisorEvent:
    """Run the graph to its end while the clock advances."""

    async def advance_clock(built: BuiltGraph) -> None:
        while built.event is None:
            await settle(20)
            clock.advance(0.5)

    return await run_graph(graph, clock=clock, during=advance_clock)


async def test_attempts_after_the_first_are_counted_and_the_items_arrive() -> None:
    """Two retries for the first page, one for the second, none for the last: ``retry_attempts`` is 3."""
    sink = CollectSink()
    op = scripted(away(), away(), RetryOk([1, 2]), away(), RetryOk([3]), RetryOk([]))
    event = await run_on(ManualClock(), chain(polls(op, FOREVER), sink))
    assert isinstance(event, events.AllOk)
    assert sink.items == [1, 2, 3]
    assert event.figures.counters["source"]["retry_attempts"] == 3
    assert event.figures.restarts == {}
    assert event.figures.ledger_holds


async def test_an_item_that_is_redelivered_in_a_shutdown_is_not_a_poison_pill() -> None:
    """Its sink failed on it before and now gives up because of the shutdown. That is not a failure of the item."""
    letters, clock = DeadLetterList(), ManualClock()

    async def op() -> RetryDisposition[None]:
        return away()

    async def sink(ends: WiredEnds) -> None:
        async for _ in ends.receiver:
            if ends.instance == 1:
                raise OSError("once")
            await ends.with_retry(FOREVER, op)

    graph = OperatorGraph("alerts")
    source = graph.add_source("source", ListSource([1, 2], UntilShutdown()))
    graph.connect(source, graph.add_sink("sink", sink, restart_policy=RestartPolicy.bounded(5, 60 * S)), 8)

    async def during(built: BuiltGraph) -> None:
        await settle()
        assert built.status().restarts == 1
        built.request_shutdown("SIGTERM")

    event = await run_graph(graph, clock=clock, dead_letters=letters, during=during)
    assert isinstance(event, events.ShutDown)
    assert [(letter.payload, letter.kind) for letter in letters.letters] == [
        (item, DeadLetterKind.UNDELIVERED) for item in (1, 2)
    ]
    assert event.figures.ledger_holds


@pytest.mark.parametrize("policy", [RestartPolicy.never(), RestartPolicy.bounded(5, 60 * S)])
async def test_a_sink_that_gives_up_because_of_the_shutdown_did_not_fail(policy: RestartPolicy) -> None:
    """Its downstream is away when the graph is asked to stop: the event is ``ShutDown``, and its items are undelivered."""
    letters, clock, calls = DeadLetterList(), ManualClock(), 0

    async def op() -> RetryDisposition[None]:
        nonlocal calls
        calls += 1
        return away()

    async def sink(ends: WiredEnds) -> None:
        async for _ in ends.receiver:
            await ends.with_retry(FOREVER, op)

    graph = OperatorGraph("alerts")
    source = graph.add_source("source", ListSource([1, 2, 3], UntilShutdown()))
    graph.connect(source, graph.add_sink("sink", sink, restart_policy=policy), 8)

    async def during(built: BuiltGraph) -> None:
        await settle()
        assert calls == 1
        built.request_shutdown("SIGTERM")

    event = await run_graph(graph, clock=clock, dead_letters=letters, during=during)
    assert isinstance(event, events.ShutDown)
    assert exit_code(event) is ExitCode.OK
    assert (event.figures.restarts, calls) == ({}, 1)
    assert [(letter.payload, letter.kind) for letter in letters.letters] == [
        (item, DeadLetterKind.UNDELIVERED) for item in (1, 2, 3)
    ]
    assert event.figures.ledger_holds


async def test_the_retry_counter_is_reported_as_zero_without_a_retry() -> None:
    """A counter is in the report from the start."""
    event = await run_on(ManualClock(), chain(polls(scripted(RetryOk([])), FOREVER), CollectSink()))
    assert report(event)["counters"]["source"] == {"retry_attempts": 0}


async def test_a_source_that_retries_through_an_outage_is_not_restarted(caplog: pytest.LogCaptureFixture) -> None:
    """Twenty minutes without the archive cause no restart and no loss. The breaker opens and closes again; the log, the
    figures and the report have it."""
    clock, sink = ManualClock(), CollectSink()

    def archive(ends: WiredEnds) -> Op:
        async def page() -> RetryDisposition[list[int]]:
            if 5 <= clock.monotonic() < 1205:
                return away()
            await sleep(clock, 1.0)
            return RetryOk([len(sink.items)] if len(sink.items) < 10 else [])

        return page

    graph = chain(polls(archive, FOREVER, breaker="archive"), sink, name="outage")
    with caplog.at_level(logging.INFO, "orchestrator_adapter.supervisor"):
        event = await run_on(clock, graph)
    assert isinstance(event, events.AllOk)
    assert sink.items == list(range(10))
    assert event.figures.elapsed_s > 1200
    assert event.figures.restarts == {}
    breaker = event.figures.breakers["archive"]
    assert (breaker.state, breaker.calls > 0) == (BreakerState.CLOSED, True)
    assert breaker.opened > 20
    assert breaker.open_s > 600
    assert event.figures.counters["source"]["retry_attempts"] < 200
    assert report(event)["breakers"]["archive"] == {
        "state": "closed",
        "forced": False,
        "opened": breaker.opened,
        "open_s": breaker.open_s,
        "rejections": breaker.rejections,
    }
    lines = [event_of(record.getMessage()) for record in caplog.records]
    changes = [line for line in lines if line["event"] == "circuit_breaker"]
    failed_probes = breaker.opened - 1
    logged = failed_probes.bit_length()  # the first, second, fourth, eighth … of them
    assert [change["state"] for change in changes].count("open") == 1 + logged
    assert changes[0] == {
        "event": "circuit_breaker",
        "graph": "outage",
        "breaker": "archive",
        "was": "closed",
        "state": "open",
        "forced": False,
        "reason": "5 of 10 calls in 30 s failed",
    }
    assert changes[1]["reason"] == "10 s of cooldown are over: one probe decides"
    assert changes[-1]["reason"] == "the probe succeeded"


async def test_a_breaker_is_shared_by_name_across_operators_and_restarts() -> None:
    """Two sources and their later instances get the same object. Another name or another graph has another one."""
    seen: list[tuple[str, int, CircuitBreaker]] = []

    async def source(ends: WiredEnds) -> None:
        seen.append((ends.name, ends.instance, ends.breaker("archive", BREAKER)))
        assert ends.breaker("mirror", BREAKER) is not seen[-1][2]
        if ends.instance == 1:
            raise OSError("again")

    def graph() -> OperatorGraph:
        both = OperatorGraph("shared")
        join = both.add_fan_in("join", merge())
        for name in ("left", "right"):
            both.connect(both.add_source(name, source, restart_policy=RestartPolicy.always()), join, 4)
        both.connect(join, both.add_sink("sink", CollectSink()), 4)
        return both

    event = await run_graph(graph())
    assert sorted((name, instance) for name, instance, _ in seen) == [
        ("left", 1),
        ("left", 2),
        ("right", 1),
        ("right", 2),
    ]
    assert len({id(breaker) for _, _, breaker in seen}) == 1
    assert sorted(event.figures.breakers) == ["archive", "mirror"]
    await run_graph(graph())
    assert len({id(breaker) for _, _, breaker in seen}) == 2


async def test_one_name_with_two_policies_is_a_bug_and_brings_the_graph_down() -> None:
    """The error names the breaker and shows both policies."""

    async def source(ends: WiredEnds) -> None:
        ends.breaker("archive", BREAKER)
        ends.breaker("archive", BreakerPolicy())

    event = await run_graph(chain(source, CollectSink()))
    assert isinstance(event, events.Panicked)
    assert str(event.error).startswith("breaker 'archive': expected the policy it was made with, BreakerPolicy(")


async def test_a_permanent_failure_restarts_the_operator() -> None:
    """It is operational: the source is restarted within its budget, and the event names the cause."""
    steps = [Permanent(ValueError("404")), Permanent(ValueError("404"))]
    graph = OperatorGraph("gone")
    source = graph.add_source(
        "source", polls(scripted(*steps), FOREVER), restart_policy=RestartPolicy.bounded(1, timedelta(minutes=1))
    )
    graph.connect(source, graph.add_sink("sink", CollectSink()), 4)
    event = await run_on(ManualClock(), graph)
    assert isinstance(event, events.BudgetExhausted)
    assert event.chain == ("PermanentFailure: ValueError: 404 (after 1 attempt in 0 s)", "ValueError: 404")


async def test_the_graphs_shutdown_ends_a_retry_that_has_no_limit() -> None:
    """A source that waits for its backoff ends at once, without using the grace period."""
    clock = ManualClock()

    async def request_stop(built: BuiltGraph) -> None:
        await clock.advance_when_idle(60.0)
        built.request_shutdown("asked")

    graph = chain(polls(scripted(*[away()] * 1000), FOREVER), CollectSink())
    event = await run_graph(graph, clock=clock, during=request_stop)
    assert isinstance(event, events.ShutDown)
    assert not event.figures.stragglers
    assert event.figures.elapsed_s == 60.0


async def test_a_hook_in_a_graph_receives_each_attempt_and_may_raise() -> None:
    """``on_attempt`` receives each attempt in addition to the counter, and what it raises changes nothing."""
    reported: list[Attempt] = []

    def hook(attempt: Attempt) -> None:
        reported.append(attempt)
        raise KeyError("bug")

    async def source(ends: WiredEnds) -> None:
        op = Script(ends.clock, away(), RetryOk([1]))
        page = await ends.with_retry(FOREVER, op, on_attempt=hook, budget=RetryBudget())
        assert isinstance(page, RetryOk)
        await ends.emit(page.value)

    event = await run_on(ManualClock(), chain(source, CollectSink()))
    assert isinstance(event, events.AllOk)
    assert [attempt.outcome for attempt in reported] == [AttemptOutcome.FAILED, AttemptOutcome.OK]
    assert event.figures.counters["source"]["retry_attempts"] == 1
