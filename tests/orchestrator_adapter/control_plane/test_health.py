"""The rules of ``/health``, as a pure function, and the health of real graphs."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from orchestrator_adapter import (
    BuiltGraph,
    GraphStatus,
    OperatorGraph,
    OperatorStatus,
    RestartPolicy,
    Role,
    SupervisionPolicy,
    WiredEnds,
    map_items,
    source_of,
)
from orchestrator_adapter.control_plane import Health, HealthStatus, health_of
from orchestrator_adapter.testing import CollectSink, Fail, ListSource, UntilShutdown, chain, run_graph
from tests.helpers.running import GatedSink, eventually


def running() -> GraphStatus:
    """A graph of a source and a sink that has not started: nothing is wrong."""
    return chain(ListSource(UntilShutdown()), CollectSink()).build().status()


def with_source(status: GraphStatus, **changes: Any) -> GraphStatus:
    source, *others = status.operators
    return replace(status, operators=(replace(source, **changes), *others))


OK = Health(HealthStatus.OK, ())
ENDED = {"ended_for_good": True, "state": "ok", "exit": "Ok"}
FAILED = {"ended_for_good": True, "state": "errored", "exit": "Errored(OSError: cable)"}


def failing(*reasons: str) -> Health:
    return Health(HealthStatus.FAILING, reasons)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, OK),
        (ENDED, OK),
        (
            ENDED | {"endless": True},
            failing("source 'source' has ended unexpectedly: Ok, and was declared endless"),
        ),
        (FAILED, failing("source 'source' has ended unexpectedly: Errored(OSError: cable)")),
        (
            FAILED | {"state": "straggler", "exit": None},
            failing("source 'source' has ended unexpectedly: it never stopped"),
        ),
        (FAILED | {"ended_for_good": False}, OK),
        (FAILED | {"role": Role.OPERATOR}, OK),
        (FAILED | {"has_done_its_part": True}, OK),
        (ENDED | {"endless": True, "has_done_its_part": True}, OK),
    ],
)
def test_only_a_source_that_failed_or_was_declared_endless_has_ended_unexpectedly(
    changes: dict[str, Any], expected: Health
) -> None:
    """Not a source at the end of its input, one that is restarted, one whose readers are done, nor an operator."""
    assert health_of(with_source(running(), **changes)) == expected


@pytest.mark.parametrize("changes", [ENDED | {"endless": True}, FAILED])
def test_during_a_shutdown_the_end_of_a_source_is_expected(changes: dict[str, Any]) -> None:
    """The health is ``draining``, with the reason of the shutdown."""
    status = replace(with_source(running(), **changes), shutting_down="SIGTERM")
    assert health_of(status) == Health(HealthStatus.DRAINING, ("shutting down: SIGTERM",))
    assert health_of(status).ok


@pytest.mark.parametrize("reason", ["", "SIGTERM"])
def test_a_shutdown_without_a_reason_is_draining(reason: str) -> None:
    """An empty reason counts."""
    assert health_of(replace(running(), shutting_down=reason)).status is HealthStatus.DRAINING


def test_the_operator_that_brings_the_graph_down_is_reported_during_the_drain() -> None:
    """The health is ``failing``, not ``draining``."""
    status = replace(running(), shutting_down="Panicked: op-1", verdict="operator 'op-1' brings the graph down")
    assert health_of(status) == failing("operator 'op-1' brings the graph down")
    assert not health_of(status).ok


@pytest.mark.parametrize(
    ("silent_s", "blocked_by", "expected"),
    [
        (0.0, "op-1 #1", OK),
        (0.49, "op-1 #1", OK),
        (0.5, "op-1 #1", failing("event loop has not answered for 0.50 s; op-1 #1 blocks it")),
        (12.3, "", failing("event loop has not answered for 12.30 s")),
    ],
)
def test_a_loop_is_stalled_from_the_threshold_on(silent_s: float, blocked_by: str, expected: Health) -> None:
    """The operator that blocks it is named, if it is known."""
    assert health_of(running(), silent_s=silent_s, threshold_s=0.5, blocked_by=blocked_by) == expected


def test_every_reason_is_listed() -> None:
    """The verdict, the source and the stalled loop."""
    status = with_source(running(), **FAILED)
    assert len(health_of(replace(status, verdict="down"), silent_s=1.0).reasons) == 3


# Real graphs.


def two_sources(first: Any, *, endless: bool, policy: RestartPolicy | None = None) -> OperatorGraph:
    """``first``, beside a source that runs until the shutdown, into one sink."""
    graph = OperatorGraph("two")
    source = graph.add_source("first", first, endless=endless, restart_policy=policy or RestartPolicy.never())
    other = graph.add_source("other", ListSource(UntilShutdown()), endless=True)
    merge = graph.add_fan_in("merge")
    graph.connect(source, merge, 4)
    graph.connect(other, merge, 4)
    graph.connect(merge, graph.add_sink("sink", CollectSink()), 4)
    return graph


def operator(built: BuiltGraph, name: str) -> OperatorStatus:
    return next(status for status in built.status().operators if status.name == name)


@pytest.mark.parametrize("endless", [True, False])
async def test_the_end_of_a_source_is_unexpected_only_if_it_was_declared_endless(endless: bool) -> None:  # noqa: FBT001 - a case
    """The run goes on in both cases; after a shutdown request the health is ``draining``."""

    async def observe(built: BuiltGraph) -> None:
        await eventually(lambda: operator(built, "first").ended_for_good, "the first source's end")
        seen.append(health_of(built.status()))
        built.request_shutdown("enough")
        seen.append(health_of(built.status()))

    seen: list[Health] = []
    await run_graph(two_sources(source_of([1, 2]), endless=endless), during=observe)
    unexpected = failing("source 'first' has ended unexpectedly: Ok, and was declared endless")
    assert seen == [unexpected if endless else OK, Health(HealthStatus.DRAINING, ("shutting down: enough",))]


async def test_a_source_that_is_restarted_has_not_ended() -> None:
    """The health is ``ok`` between its instances and afterwards; the status has the last instance's exit."""

    async def observe(built: BuiltGraph) -> None:
        await eventually(lambda: operator(built, "first").restarts == 1, "the restart")
        assert health_of(built.status()) == OK
        await eventually(lambda: operator(built, "first").state == "running", "the second instance")
        assert health_of(built.status()) == OK
        assert operator(built, "first").exit == "Errored(OSError: cable)"
        built.request_shutdown("enough")

    source = ListSource([1], Fail(OSError("cable")), UntilShutdown())
    await run_graph(
        two_sources(source, endless=True, policy=RestartPolicy.bounded(1, timedelta(minutes=1))), during=observe
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("x"), "operator 'op-1' brings the graph down (Panicked): KeyError: 'x'"),
        (OSError("disk"), "operator 'op-1' brings the graph down (BudgetExhausted): OSError: disk"),
    ],
)
async def test_the_operator_that_brings_a_real_graph_down_is_named_while_the_rest_drains(
    error: Exception, reason: str
) -> None:
    """After a panic and after an exhausted budget, with the operator and the cause."""

    def fails(item: int) -> int:
        if item == 3:
            raise error
        return item

    async def observe(built: BuiltGraph) -> None:
        await eventually(lambda: built.status().verdict is not None, "the verdict")
        seen.append(health_of(built.status()))
        sink.gate.set()

    seen: list[Health] = []
    sink = GatedSink()
    graph = OperatorGraph("fails")
    source = graph.add_source("source", ListSource([1, 2, 3], UntilShutdown()), endless=True)
    middle = graph.add_operator("op-1", map_items(fails), restart_policy=RestartPolicy.never())
    graph.connect(source, middle, 8)
    graph.connect(middle, graph.add_sink("sink", sink), 8)
    event = await run_graph(graph, during=observe)
    assert seen == [failing(reason)]
    assert event.figures.ledger_holds


async def test_a_graph_whose_end_rule_is_met_is_draining() -> None:
    """The end of its endless source is expected, and the reason names the sink."""

    async def first_only(ends: WiredEnds) -> None:
        await ends.receiver.recv()

    async def observe(built: BuiltGraph) -> None:
        await eventually(lambda: built.status().shutting_down is not None, "the end rule")
        seen.append(health_of(built.status()))

    async def stays_a_while(ends: WiredEnds) -> None:
        await ends.emit([1])
        await ends.shutdown.wait()
        await eventually(lambda: seen, "a look")

    seen: list[Health] = []
    graph = OperatorGraph("done")
    source = graph.add_source("source", stays_a_while, endless=True)
    graph.connect(source, graph.add_sink("sink", first_only), 4)
    await run_graph(graph, during=observe, policy=SupervisionPolicy(done_when=frozenset({"sink"})))
    assert seen == [Health(HealthStatus.DRAINING, ("shutting down: done: sink",))]


async def test_a_source_whose_only_reader_is_done_is_expected_to_end() -> None:
    """It ends with ``ReaderDone`` while the other branch goes on."""

    async def first_only(ends: WiredEnds) -> None:
        await ends.receiver.recv()

    async def observe(built: BuiltGraph) -> None:
        await eventually(lambda: operator(built, "one").ended_for_good, "the first branch's end")
        assert operator(built, "one").state == "errored"
        assert operator(built, "one").has_done_its_part
        seen.append(health_of(built.status()))
        built.request_shutdown("enough")

    async def emits(ends: WiredEnds) -> None:
        while not ends.shutdown.is_set:
            await ends.emit([1])

    seen: list[Health] = []
    graph = OperatorGraph("branches")
    one = graph.add_source("one", emits, endless=True)
    graph.connect(one, graph.add_sink("first", first_only), 4)
    two = graph.add_source("two", ListSource(UntilShutdown()), endless=True)
    graph.connect(two, graph.add_sink("second", CollectSink()), 4)
    policy = SupervisionPolicy(done_when=frozenset({"first", "second"}), grace=timedelta(seconds=5))
    await run_graph(graph, during=observe, policy=policy)
    assert seen == [OK]


def test_a_shutdown_request_before_the_run_is_in_the_status() -> None:
    """The first reason counts."""
    built = chain(ListSource(UntilShutdown()), CollectSink()).build()
    built.request_shutdown("too early")
    built.request_shutdown("again")
    assert built.status().shutting_down == "too early"
