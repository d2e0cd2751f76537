"""The rules of ``/health``, as a pure function, and what a real graph shows of itself for them to judge."""

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
from orchestrator_adapter.control_plane import Health, HealthStatus, judge
from orchestrator_adapter.testing import CollectSink, Fail, ListSource, UntilShutdown, chain, run_graph
from tests.helpers.running import GatedSink, eventually


def running() -> GraphStatus:
    """A graph of a source and a sink that has not begun: everything in order."""
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
    ("changes", "verdict"),
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
def test_only_a_source_that_has_ended_badly_or_was_to_have_no_end_is_missed(
    changes: dict[str, Any], verdict: Health
) -> None:
    """Not one that ends at the end of its input, that is restarted, whose readers have had enough, nor any operator."""
    assert judge(with_source(running(), **changes)) == verdict


@pytest.mark.parametrize("changes", [ENDED | {"endless": True}, FAILED])
def test_no_source_is_missed_in_a_graph_that_was_told_to_stop(changes: dict[str, Any]) -> None:
    """Then they are all to end, and the verdict is that it drains, with the reason."""
    status = replace(with_source(running(), **changes), shutting_down="SIGTERM")
    assert judge(status) == Health(HealthStatus.DRAINING, ("shutting down: SIGTERM",))
    assert judge(status).ok


@pytest.mark.parametrize("reason", ["", "SIGTERM"])
def test_a_shutdown_without_a_word_is_one_too(reason: str) -> None:
    """An empty reason is a reason."""
    assert judge(replace(running(), shutting_down=reason)).status is HealthStatus.DRAINING


def test_what_brings_the_graph_down_is_told_although_it_drains() -> None:
    """A verdict is no drain that somebody asked for."""
    status = replace(running(), shutting_down="Panicked: op-1", verdict="operator 'op-1' brings the graph down")
    assert judge(status) == failing("operator 'op-1' brings the graph down")
    assert not judge(status).ok


@pytest.mark.parametrize(
    ("silent_s", "held_by", "verdict"),
    [
        (0.0, "op-1 #1", OK),
        (0.49, "op-1 #1", OK),
        (0.5, "op-1 #1", failing("event loop has not answered for 0.50 s; op-1 #1 holds it")),
        (12.3, "", failing("event loop has not answered for 12.30 s")),
    ],
)
def test_a_loop_is_stalled_from_the_threshold_on(silent_s: float, held_by: str, verdict: Health) -> None:
    """And whoever holds it is named, where that is known."""
    assert judge(running(), silent_s=silent_s, threshold_s=0.5, held_by=held_by) == verdict


def test_every_reason_is_told() -> None:
    """The verdict, each source that is missed, and the loop: one does not hide the other."""
    status = with_source(running(), **FAILED)
    assert len(judge(replace(status, verdict="down"), silent_s=1.0).reasons) == 3


# What real graphs show.


def two_sources(first: Any, *, endless: bool, policy: RestartPolicy | None = None) -> OperatorGraph:
    """``first``, beside one that stays, into one sink."""
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
async def test_a_source_that_returns_is_missed_only_if_it_was_to_stay(endless: bool) -> None:  # noqa: FBT001 - a case
    """The run goes on either way; once it is told to stop, nothing is wrong any more."""

    async def look(built: BuiltGraph) -> None:
        await eventually(lambda: operator(built, "first").ended_for_good, "the first source's end")
        seen.append(judge(built.status()))
        built.request_shutdown("enough")
        seen.append(judge(built.status()))

    seen: list[Health] = []
    await run_graph(two_sources(source_of([1, 2]), endless=endless), during=look)
    missed = failing("source 'first' has ended unexpectedly: Ok, and was declared endless")
    assert seen == [missed if endless else OK, Health(HealthStatus.DRAINING, ("shutting down: enough",))]


async def test_a_source_that_is_restarted_is_not_missed() -> None:
    """Between its instances, and from the next one on, all is in order; how the last one ended can be read."""

    async def look(built: BuiltGraph) -> None:
        await eventually(lambda: operator(built, "first").restarts == 1, "the restart")
        assert judge(built.status()) == OK
        await eventually(lambda: operator(built, "first").state == "running", "the second instance")
        assert judge(built.status()) == OK
        assert operator(built, "first").exit == "Errored(OSError: cable)"
        built.request_shutdown("enough")

    source = ListSource([1], Fail(OSError("cable")), UntilShutdown())
    await run_graph(
        two_sources(source, endless=True, policy=RestartPolicy.bounded(1, timedelta(minutes=1))), during=look
    )


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (KeyError("x"), "operator 'op-1' brings the graph down (Panicked): KeyError: 'x'"),
        (OSError("disk"), "operator 'op-1' brings the graph down (BudgetExhausted): OSError: disk"),
    ],
)
async def test_the_operator_that_brings_the_graph_down_is_named_while_the_rest_drains(
    error: Exception, reason: str
) -> None:
    """A panic and an exhausted budget fail, with the operator and the cause."""

    def fails(item: int) -> int:
        if item == 3:
            raise error
        return item

    async def look(built: BuiltGraph) -> None:
        await eventually(lambda: built.status().verdict is not None, "the verdict")
        seen.append(judge(built.status()))
        sink.gate.set()

    seen: list[Health] = []
    sink = GatedSink()
    graph = OperatorGraph("fails")
    source = graph.add_source("source", ListSource([1, 2, 3], UntilShutdown()), endless=True)
    middle = graph.add_operator("op-1", map_items(fails), restart_policy=RestartPolicy.never())
    graph.connect(source, middle, 8)
    graph.connect(middle, graph.add_sink("sink", sink), 8)
    event = await run_graph(graph, during=look)
    assert seen == [failing(reason)]
    assert event.figures.ledger_holds


async def test_sinks_that_have_all_they_want_are_a_drain_and_miss_no_source() -> None:
    """The end rule is nobody's fault: an endless source ends with it, and the reason says whose doing it is."""

    async def first_only(ends: WiredEnds) -> None:
        await ends.receiver.recv()

    async def look(built: BuiltGraph) -> None:
        await eventually(lambda: built.status().shutting_down is not None, "the end rule")
        seen.append(judge(built.status()))

    async def stays_a_while(ends: WiredEnds) -> None:
        await ends.emit([1])
        await ends.shutdown.wait()
        await eventually(lambda: seen, "a look")

    seen: list[Health] = []
    graph = OperatorGraph("done")
    source = graph.add_source("source", stays_a_while, endless=True)
    graph.connect(source, graph.add_sink("sink", first_only), 4)
    await run_graph(graph, during=look, policy=SupervisionPolicy(done_when=frozenset({"sink"})))
    assert seen == [Health(HealthStatus.DRAINING, ("shutting down: done: sink",))]


async def test_a_source_whose_only_reader_has_had_enough_is_not_missed() -> None:
    """It ends with ``ReaderDone`` while the other branch goes on, and that is as it should be."""

    async def first_only(ends: WiredEnds) -> None:
        await ends.receiver.recv()

    async def look(built: BuiltGraph) -> None:
        await eventually(lambda: operator(built, "one").ended_for_good, "the first branch's end")
        assert operator(built, "one").state == "errored"
        assert operator(built, "one").has_done_its_part
        seen.append(judge(built.status()))
        built.request_shutdown("enough")

    async def talks(ends: WiredEnds) -> None:
        while not ends.shutdown.is_set:
            await ends.emit([1])

    seen: list[Health] = []
    graph = OperatorGraph("branches")
    one = graph.add_source("one", talks, endless=True)
    graph.connect(one, graph.add_sink("first", first_only), 4)
    two = graph.add_source("two", ListSource(UntilShutdown()), endless=True)
    graph.connect(two, graph.add_sink("second", CollectSink()), 4)
    policy = SupervisionPolicy(done_when=frozenset({"first", "second"}), grace=timedelta(seconds=5))
    await run_graph(graph, during=look, policy=policy)
    assert seen == [OK]


def test_a_shutdown_asked_for_before_the_run_is_a_drain() -> None:
    """Nothing will be taken in, and the status says why."""
    built = chain(ListSource(UntilShutdown()), CollectSink()).build()
    built.request_shutdown("too early")
    built.request_shutdown("again")
    assert built.status().shutting_down == "too early"
