"""The rule marks what the bottleneck law says, in random graphs and in ten topologies that run in virtual time."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from orchestrator_adapter import Backoff, OperatorGraph, RestartPolicy, WiredEnds
from orchestrator_adapter.control_plane.bottleneck import EdgeFigures, OperatorFigures, find_bottlenecks
from orchestrator_adapter.control_plane.document import Shares
from orchestrator_adapter.primitives.clock import sleep
from tests.helpers.bottlenecks import NetworkKind, marked_in_virtual_time, trial
from tests.helpers.sizes import small_and_long
from tests.scenes.bottlenecks import CAPACITY, SLOW_S, Scene, feed, scenes, station


@pytest.mark.parametrize("scene", [it for it in scenes() if not it.in_threads], ids=lambda it: it.name)
def test_the_slow_operator_of_each_topology_is_marked(scene: Scene, tmp_path: Path) -> None:
    """It alone, with edges of 32 items, before anything else has filled."""
    marked = marked_in_virtual_time(scene.graph(tmp_path, slow_s=4 * SLOW_S), after_s=5)
    assert {it.operator for it in marked} == scene.truth


@small_and_long("seeds", range(1), range(1, 100))
def test_random_graphs_are_marked_as_the_bottleneck_law_says(seeds: range) -> None:
    """No graph is left out; operators that differ by less than 10 % count as equally slow."""
    wrong = [result for seed in seeds if not (result := trial(seed, NetworkKind.SLOW)).is_right]
    assert wrong == []


@small_and_long("seeds", range(1), range(1, 50))
def test_where_every_operator_follows_the_feeds_nothing_is_marked(seeds: range) -> None:
    """The feeds limit the graph."""
    assert [seed for seed in seeds if not trial(seed, NetworkKind.IDLE, after_s=2.0).is_right] == []


def test_an_item_that_takes_longer_than_the_window_leaves_the_mark_where_it_is(tmp_path: Path) -> None:
    """Its reader is busy, and its edge is full, although neither has ended in the window."""
    chain = scenes()[0].graph(tmp_path, slow_s=30.0)
    (found,) = marked_in_virtual_time(chain, after_s=400)
    assert found.operator == "correlate"
    assert found.score > 0.99


def test_an_operator_that_fails_again_and_again_is_marked_with_its_time_down() -> None:
    """It works for 0.1 s and waits for a second until its next restart; the others need a hundredth of that."""

    async def fails(ends: WiredEnds) -> None:
        async for item in ends.receiver:
            await sleep(ends.clock, 0.1)
            ends.commit([item], acknowledge=1)
            raise OSError("cable")

    graph = OperatorGraph("failing")
    backoff = Backoff(timedelta(seconds=1), timedelta(seconds=1))
    failing = graph.add_operator("failing", fails, restart_policy=RestartPolicy.always(backoff=backoff))
    graph.connect(graph.add_source("source", feed()), failing, CAPACITY)
    graph.connect(failing, graph.add_sink("sink", station(0.001)), CAPACITY)
    (found,) = marked_in_virtual_time(graph, after_s=20)
    assert found.operator == "failing"
    assert found.reason.startswith("down for 9")
    assert "its next instance starts in" in found.reason


def test_a_graph_of_a_thousand_operators_is_examined_in_linear_time() -> None:
    """Every operator of a chain, and of a fan-in of all of them, is examined a few times at most."""

    class Counting(str):
        """A name that counts how often it is looked up."""

        __slots__ = ()
        lookups = 0

        def __hash__(self) -> int:
            Counting.lookups += 1
            return super().__hash__()

    lookups = []
    for size in (500, 1_000):
        names = [Counting(number) for number in range(size)]
        shares = Shares(busy=0.5, idle=0.0, blocked=0.5, down=0.0)
        operators = [OperatorFigures(name=name, shares=shares, is_source=name == "0") for name in names]
        pairs = [*pairwise(names), *((name, names[-1]) for name in names[:-2])]
        edges = [EdgeFigures(id=f"{up} -> {down}", upstream=up, downstream=down, pressure=0.5) for up, down in pairs]
        Counting.lookups = 0
        assert find_bottlenecks(operators, edges, window_s=10)
        lookups.append(Counting.lookups)
    assert lookups[1] < 2.2 * lookups[0]
