"""Which operators are marked, and the sentence that says why, on windows made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from orchestrator_adapter.control_plane.bottleneck import EdgeFigures, OperatorFigures, find_bottlenecks
from orchestrator_adapter.control_plane.document import Bottleneck, Shares


def operator(name: str, *, busy: float = 0.0, blocked: float = 0.0, down: float = 0.0, **more: Any) -> OperatorFigures:
    """An operator that was idle for the rest of the time."""
    shares = Shares(busy=busy, idle=max(0.0, 1 - busy - blocked - down), blocked=blocked, down=down)
    return replace(OperatorFigures(name=name, shares=shares), **more)


def source(name: str = "source", *, busy: float = 0.02, blocked: float = 0.98, **more: Any) -> OperatorFigures:
    """A source; by default one whose output makes it wait."""
    return operator(name, busy=busy, blocked=blocked, is_source=True, **more)


def edge(upstream: str, downstream: str, pressure: float = 0.0, **more: Any) -> EdgeFigures:
    """An edge."""
    figures = EdgeFigures(id=f"{upstream} -> {downstream}", upstream=upstream, downstream=downstream, pressure=pressure)
    return replace(figures, **more)


def marked(operators: list[OperatorFigures], edges: list[EdgeFigures]) -> tuple[Bottleneck, ...]:
    """What the rule marks in a window of 10 s."""
    return find_bottlenecks(operators, edges, window_s=10)


def names(operators: list[OperatorFigures], edges: list[EdgeFigures]) -> list[str]:
    """Which operators it marks, the worst first."""
    return [it.operator for it in marked(operators, edges)]


def test_the_slow_operator_of_a_chain_is_marked_with_its_figures() -> None:
    """The operators that wait for it, and those behind it, are not."""
    (found,) = marked(
        [source(), operator("a", busy=0.1, blocked=0.9), operator("b", busy=0.98), operator("sink", busy=0.1)],
        [edge("source", "a", 0.97), edge("a", "b", 0.96), edge("b", "sink")],
    )
    assert found.operator == "b"
    assert found.score == pytest.approx(0.96)
    assert found.reason == (
        "busy for 98 % of the last 10 s while its input 'a -> b' was full for 96 % of it; no output made it wait"
    )


def test_of_two_slow_operators_the_slower_one_is_marked_whether_it_comes_first_or_last() -> None:
    """9 ms before 10 ms: the first is busy for 90 %, and has a full input as well."""
    nine_then_ten = [source(), operator("nine", busy=0.9, blocked=0.1), operator("ten", busy=1.0)]
    assert names(nine_then_ten, [edge("source", "nine", 0.97), edge("nine", "ten", 0.1)]) == ["ten"]
    ten_then_nine = [source(), operator("ten", busy=0.94, blocked=0.06), operator("nine", busy=0.85)]
    assert names(ten_then_nine, [edge("source", "ten", 0.97), edge("ten", "nine", 0.06)]) == ["ten"]


def test_two_operators_that_are_equally_slow_are_both_marked() -> None:
    """Shares that differ by less than 3 % of the window are equal to the rule."""
    equal = [source(), operator("a", busy=0.80, blocked=0.15), operator("b", busy=0.82)]
    assert set(names(equal, [edge("source", "a", 0.97), edge("a", "b", 0.15)])) == {"a", "b"}


def test_the_slow_branch_of_a_fan_out_is_marked() -> None:
    """Not the fan-out that waits for it, and not the other branch."""
    operators = [source(), operator("tee", blocked=0.99), operator("slow", busy=1.0), operator("fast", busy=0.2)]
    edges = [edge("source", "tee", 0.98), edge("tee", "slow", 0.99), edge("tee", "fast")]
    assert names(operators, edges) == ["slow"]


def test_independent_bottlenecks_are_all_marked() -> None:
    """Two feeds that share no operator; and a slow feed's operator in front of a fan-in that another feed saturates."""
    apart = [source("s"), source("t"), operator("a", busy=1.0), operator("b", busy=0.8, down=0.1)]
    assert names(apart, [edge("s", "a", 0.95), edge("t", "b", 0.97)]) == ["a", "b"]
    joined = [
        source("s"),
        source("t"),
        operator("a", busy=0.95, blocked=0.05),
        operator("merge", blocked=1.0),
        operator("c", busy=1.0),
    ]
    edges = [edge("s", "a", 0.95), edge("a", "merge", 0.05), edge("t", "merge", 0.98), edge("merge", "c", 0.99)]
    assert set(names(joined, edges)) == {"a", "c"}


def test_a_join_that_waits_for_one_input_is_not_marked_but_what_it_waits_for() -> None:
    """Its other input is full all the time."""
    operators = [
        source(),
        operator("tee", blocked=0.99),
        operator("slow", busy=1.0),
        operator("fast", busy=0.1, blocked=0.9),
        operator("join", busy=0.3),
    ]
    edges = [
        edge("source", "tee", 0.98),
        edge("tee", "slow", 0.97),
        edge("tee", "fast", 0.97),
        edge("slow", "join"),
        edge("fast", "join", 0.99),
    ]
    assert names(operators, edges) == ["slow"]


@pytest.mark.parametrize(("state", "why"), [("paused", "it is paused"), ("running", "it is slow")])
def test_a_join_that_waits_for_a_source_marks_the_source(state: str, why: str) -> None:
    """The source holds the other input up, through an operator that is idle itself."""
    operators = [
        source("s", busy=1.0, blocked=0.0, state=state),
        operator("behind s"),
        source("t"),
        operator("join", busy=0.05),
    ]
    (found,) = marked(operators, [edge("s", "behind s"), edge("behind s", "join"), edge("t", "join", 0.99)])
    assert found.operator == "s"
    assert found.reason == (
        f"{why}: 'join' waited for its items for 95 % of the last 10 s, while its other input 't -> join' was full for "
        "99 % of it"
    )


def test_a_shed_edge_marks_its_reader_and_says_how_many_items_were_dropped() -> None:
    """Its writer does not wait, so the writer's other readers have nothing to do with it."""
    operators = [
        source(busy=0.9, blocked=0.1),
        operator("tee"),
        operator("preview", busy=0.8),
        operator("log", busy=0.4),
    ]
    edges = [edge("source", "tee"), edge("tee", "preview", 0.9, policy="shed", dropped=1234), edge("tee", "log")]
    (found,) = marked(operators, edges)
    assert found.operator == "preview"
    assert "its input 'tee -> preview' was full for 90 % of it and dropped 1,234 items" in found.reason


def test_a_timed_edge_says_what_it_dropped() -> None:
    """It holds its writer up as well."""
    operators = [source(), operator("late", busy=0.99)]
    (found,) = marked(operators, [edge("source", "late", 0.99, policy="timed", dropped=1)])
    assert found.reason.endswith("was full for 99 % of it and dropped 1 item")


def test_a_spilling_edge_marks_its_reader_and_says_how_many_items_are_on_disk() -> None:
    """Until the files are full its writer does not wait: an operator upstream is not compared with the reader."""
    operators = [source(busy=1.0, blocked=0.0), operator("a", busy=0.3), operator("slow", busy=0.97)]
    spilling = edge("a", "slow", 1.0, policy="spill", spilled=52_000)
    (found,) = marked(operators, [edge("source", "a"), spilling])
    assert found.operator == "slow"
    assert "had items on disk for 100 % of it (now 52,000)" in found.reason
    held = [source(), operator("a", busy=0.3, blocked=0.7), operator("slow", busy=0.97)]
    assert names(held, [edge("source", "a", 0.9), spilling]) == ["slow"]


def test_nothing_is_marked_where_nothing_is_held_up() -> None:
    """A slow source is no bottleneck, neither is a busy operator that keeps up, nor one that is restarting and has an empty input."""
    operators = [
        source(busy=1.0, blocked=0.0),
        operator("busy", busy=0.97),
        operator("sink", down=1.0, state="restarting"),
    ]
    assert names(operators, [edge("source", "busy"), edge("busy", "sink", 0.01)]) == []
    assert names([], []) == []


def test_bursts_of_a_feed_mark_nothing() -> None:
    """An edge that is full for a moment in each burst; an edge that is full for longer, when the feed is mostly silent."""
    short = [source(busy=0.98, blocked=0.02), operator("a", busy=0.1)]
    assert names(short, [edge("source", "a", 0.02)]) == []
    long = [source(busy=0.8, blocked=0.2), operator("a", busy=0.3)]
    assert names(long, [edge("source", "a", 0.2)]) == []


def test_an_operator_that_waits_for_its_restart_says_so() -> None:
    """It cannot work, so the time counts as if it were busy."""
    restarting = operator("a", busy=0.1, down=0.9, state="restarting", restart_in_s=4.21)
    (found,) = marked([source(), restarting], [edge("source", "a", 0.99)])
    assert found.reason == (
        "down for 90 % of the last 10 s while its input 'source -> a' was full for 99 % of it; it has failed, and its next "
        "instance starts in 4.21 s"
    )


def test_an_open_breaker_and_a_full_pool_are_named() -> None:
    """They are why it is slow."""
    waiting = operator(
        "propagate", busy=1.0, open_breakers=("space-track",), notes=("8 calls wait for a worker of pool 'orbits'",)
    )
    (found,) = marked([source(), waiting], [edge("source", "propagate", 0.99)])
    assert "; its circuit breaker 'space-track' is open; 8 calls wait for a worker of pool 'orbits'" in found.reason


def test_a_marked_operator_with_a_slow_output_names_the_output() -> None:
    """It waits for a part of the time."""
    operators = [source(), operator("a", busy=0.8, blocked=0.2), operator("b", busy=0.6)]
    (found,) = marked(operators, [edge("source", "a", 0.97), edge("a", "b", 0.2)])
    assert found.reason.endswith("its outputs made it wait for 20 %, most of all 'a -> b'")


def test_an_operator_that_has_ended_is_not_marked() -> None:
    """It is down for good; what is behind it may still drain."""
    operators = [
        source(state="ok", busy=0.0, blocked=0.3),
        operator("a", busy=0.9),
        operator("b", down=1.0, state="errored"),
    ]
    assert names(operators, [edge("source", "a", 0.3), edge("a", "b", 0.9)]) == ["a"]


def test_an_operator_that_takes_the_event_loop_from_the_others_is_marked_alone() -> None:
    """The operator before it only awaits, but its awaits return late: it is busy all the time, and its input is full."""
    (found,) = marked(
        [
            source(),
            operator("awaits", busy=1.0),
            operator("computes", busy=0.9, on_loop=0.88),
            operator("sink", busy=0.5),
        ],
        [edge("source", "awaits", 0.97), edge("awaits", "computes"), edge("computes", "sink")],
    )
    assert found.operator == "computes"
    assert found.reason == (
        "computed on the event loop for 88 % of the last 10 s, so that every other operator waited for it and "
        "'source -> awaits' was full for 97 % of it; what it computes belongs into a thread or a worker process"
    )


def test_a_busy_event_loop_is_no_bottleneck_while_nothing_is_held_up() -> None:
    assert not names(
        [source(busy=1.0, blocked=0.0), operator("computes", busy=0.9, on_loop=0.9)], [edge("source", "computes")]
    )
