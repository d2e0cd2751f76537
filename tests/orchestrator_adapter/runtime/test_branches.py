"""Branches of a fan-out are independent up to their own edge and policy."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from orchestrator_adapter import (
    BuiltGraph,
    Control,
    DeadLetterList,
    Factory,
    FlowPolicy,
    OperatorGraph,
    RestartPolicy,
    WiredEnds,
    broadcast,
    events,
    map_items,
    partition,
    source_of,
    spilled_items,
)
from orchestrator_adapter.primitives.clock import sleep
from orchestrator_adapter.primitives.decision import Decision
from orchestrator_adapter.storage.locks import StoreInUseError
from orchestrator_adapter.testing import CollectSink, FailAt, ManualClock, run_graph, settle
from tests.helpers.support import ROOT

ITEMS = 5_000
CAPACITY = 64


class Stuck:
    """A sink that takes one batch and then waits until ``go``; ``items`` is what it has received after that."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.items: list[Any] = []

    async def __call__(self, ends: WiredEnds) -> None:
        self.items += await ends.receiver.recv_many(8)
        await self.go.wait()
        async for batch in ends.receiver.batches(8):
            self.items += batch


def two_branches(router: Factory, stuck: Factory, other: Factory, policy: FlowPolicy) -> OperatorGraph:
    """A source of ``ITEMS`` numbers, a fan-out, and two sinks; ``policy`` is that of the edge to ``stuck``."""
    graph = OperatorGraph("branches")
    split = graph.add_fan_out("split", router)
    graph.connect(graph.add_source("source", source_of(range(ITEMS), batch=32)), split, CAPACITY)
    graph.connect(split, graph.add_sink("stuck", stuck), CAPACITY, policy=policy)
    graph.connect(split, graph.add_sink("other", other), CAPACITY)
    return graph


def policies(folder: Path) -> dict[str, FlowPolicy]:
    return {
        "backpressure": FlowPolicy.backpressure(),
        "shed": FlowPolicy.shed(),
        "spill": FlowPolicy.spill(folder),
        "full spill that sheds": FlowPolicy.spill(folder, max_bytes=1_000, when_full="shed"),
        "full spill that waits": FlowPolicy.spill(folder, max_bytes=1_000),
    }


@pytest.mark.parametrize("name", ["backpressure", "shed", "spill", "full spill that sheds", "full spill that waits"])
@pytest.mark.parametrize("router", [broadcast, lambda: partition(lambda item: item)])
async def test_a_stuck_branch_holds_the_other_only_if_its_policy_says_so(
    router: Callable[[], Factory], name: str, tmp_path: Path
) -> None:
    """With backpressure, the other branch stops after the stuck edge's capacity and two batches. With the others it gets all."""
    stuck, other, built_graphs = Stuck(), CollectSink(), list[BuiltGraph]()
    graph = two_branches(router(), stuck, other, policies(tmp_path)[name])
    expected = ITEMS if router().__qualname__.startswith("broadcast") else None

    async def check(built: BuiltGraph) -> None:
        built_graphs.append(built)
        arrived = -1
        while arrived < (arrived := len(other.items)):
            await settle(500)
        if name in {"backpressure", "full spill that waits"}:
            assert len(other.items) < ITEMS / 4
        else:
            assert built.status().operators[0].ended_for_good
            assert expected is None or len(other.items) == expected
        assert built.ledger().balanced
        stuck.go.set()

    event = await run_graph(graph, clock=ManualClock(), during=check)
    assert isinstance(event, events.AllOk)
    assert event.figures.ledger_holds
    assert other.items == sorted(other.items)
    assert stuck.items == sorted(stuck.items)
    assert expected is None or len(other.items) == expected
    if "shed" in name:
        assert event.figures.ledger.shed > 0
    else:
        assert sorted({*stuck.items, *other.items}) == list(range(ITEMS))
        assert expected is None or stuck.items == other.items
    assert list_files(tmp_path) == []


def list_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.spill"))


async def test_a_timed_branch_with_capacity_for_its_deadline_holds_no_other() -> None:
    """Eight items a second, a deadline of one second, room for eight: the other branch gets each item at once."""
    clock, other, stuck = ManualClock(autojump=True), list[float](), Stuck()

    async def paced(ends: WiredEnds) -> None:
        for _ in range(100):
            await ends.emit([ends.clock.monotonic()])
            await sleep(ends.clock, 0.125)

    async def record(ends: WiredEnds) -> None:
        async for sent_at in ends.receiver:
            other.append(ends.clock.monotonic() - sent_at)

    graph, letters = OperatorGraph("timed"), DeadLetterList()
    split = graph.add_fan_out("split")
    graph.connect(graph.add_source("source", paced), split, 4)
    timed = FlowPolicy.timed(timedelta(seconds=1))
    graph.connect(split, graph.add_sink("stuck", stuck), 9, policy=timed)  # one item is on lease
    graph.connect(split, graph.add_sink("other", record), 4)
    built: list[BuiltGraph] = []

    async def release_stuck(graph: BuiltGraph) -> None:
        built.append(graph)
        while len(other) < 100:
            await sleep(clock, 1.0)
        stuck.go.set()

    event = await run_graph(graph, clock=clock, during=release_stuck, dead_letters=letters)
    assert event.figures.ledger_holds
    assert other == [0.0] * 100
    assert letters.total == event.figures.ledger.dead_lettered
    assert letters.total + len(stuck.items) == 100


@dataclass(frozen=True, slots=True)
class Mark(Control):
    after: int


async def test_control_items_keep_their_order_on_a_spilling_edge(tmp_path: Path) -> None:
    """A control item reaches the sink of each branch after the items before it, and none is lost on disk."""

    async def marked(ends: WiredEnds) -> None:
        for number in range(1_000):
            await ends.emit([number])
            if number % 100 == 99:
                await ends.emit_control(Mark(number))

    stuck, other = Stuck(), CollectSink()
    graph = OperatorGraph("marks")
    split = graph.add_fan_out("split")
    graph.connect(graph.add_source("source", marked), split, 8)
    graph.connect(split, graph.add_sink("stuck", stuck), 8, policy=FlowPolicy.spill(tmp_path))
    graph.connect(split, graph.add_sink("other", other), 8)

    async def check(built: BuiltGraph) -> None:
        while not built.status().operators[0].ended_for_good:
            await settle(100)
        await settle(500)
        assert built.ledger().balanced
        assert built.signals().balanced
        assert built.status().edges["split -> stuck"].signals == 10
        stuck.go.set()

    event = await run_graph(graph, clock=ManualClock(), during=check)
    assert isinstance(event, events.AllOk)
    assert event.figures.ledger_holds
    assert stuck.items == other.items == list(range(1_000))


async def test_a_reader_that_fails_is_restarted_beside_its_spilled_items(tmp_path: Path) -> None:
    """Returned leases come before the spilled items, and a poison pill makes room for the next of them."""
    collected = CollectSink()
    once = RestartPolicy.bounded(3, timedelta(seconds=60))
    graph = OperatorGraph("failing")
    failing = graph.add_operator(
        "failing", map_items(FailAt({10: OSError("away"), 11: OSError("away")})), restart_policy=once
    )
    graph.connect(graph.add_source("source", source_of(range(500))), failing, 8, policy=FlowPolicy.spill(tmp_path))
    graph.connect(failing, graph.add_sink("sink", collected), 8)
    event = await run_graph(graph, clock=ManualClock(autojump=True))
    assert event.figures.ledger_holds
    assert event.figures.ledger.dead_lettered == 1
    assert collected.items == [number for number in range(500) if number != 9]


async def test_a_drain_delivers_the_spilled_items_within_its_grace(tmp_path: Path) -> None:
    """A shutdown is requested while most items are on disk: the reader gets all of them, then the end of the stream."""
    stuck, other = Stuck(), CollectSink()
    graph = two_branches(broadcast(), stuck, other, FlowPolicy.spill(tmp_path))

    async def stop(built: BuiltGraph) -> None:
        while not built.status().edges["split -> stuck"].spilled:
            await settle(10)
        built.request_shutdown("enough")
        stuck.go.set()

    event = await run_graph(graph, clock=ManualClock(autojump=True), during=stop)
    assert isinstance(event, events.ShutDown)
    assert event.figures.ledger_holds
    assert event.figures.undelivered == 0
    assert stuck.items == other.items
    assert list_files(tmp_path) == []


async def test_spilled_items_that_are_left_at_the_end_are_counted_and_stay_in_their_files(tmp_path: Path) -> None:
    """The drain ends without the stuck reader. The next run logs how many items are there, and delivers none of them."""
    letters = DeadLetterList()
    graph = two_branches(broadcast(), Stuck(), CollectSink(), FlowPolicy.spill(tmp_path))

    async def stop(built: BuiltGraph) -> None:
        while not built.status().operators[0].ended_for_good:
            await settle(100)
        built.request_shutdown("enough")

    event = await run_graph(graph, clock=ManualClock(autojump=True), during=stop, dead_letters=letters)
    assert event.figures.ledger_holds
    left = list(spilled_items(tmp_path))
    assert left == list(range(ITEMS - len(left), ITEMS))
    assert event.figures.ledger.dead_lettered == event.figures.undelivered == ITEMS  # with those in the edge
    in_files = [letter.payload for letter in letters.letters if isinstance(letter.payload, dict)]
    assert in_files == [{"spill_file": str(path), "items": len(left)} for path in list_files(tmp_path)]
    assert len(letters.letters) - 1 + len(left) == ITEMS

    decisions: list[events.Decided] = []
    collected = CollectSink()
    again = two_branches(broadcast(), collected, CollectSink(), FlowPolicy.spill(tmp_path))
    await run_graph(again, clock=ManualClock(), hooks=events.SupervisionHooks(on_decision=decisions.append))
    (found,) = [decided for decided in decisions if decided.decision == Decision.SPILL_LEFT]
    assert (found.fields["items"], found.fields["files"]) == (len(left), 1)
    assert collected.items == list(range(ITEMS))


async def test_a_folder_that_another_run_uses_is_rejected_before_the_start(tmp_path: Path) -> None:
    """The message names the owner, and nothing has been started."""
    stuck = Stuck()
    graph = two_branches(broadcast(), stuck, CollectSink(), FlowPolicy.spill(tmp_path))

    async def second(_: BuiltGraph) -> None:
        collected = CollectSink()
        with pytest.raises(StoreInUseError, match="is being written by process"):
            await two_branches(broadcast(), collected, CollectSink(), FlowPolicy.spill(tmp_path)).build().run()
        assert collected.items == []
        stuck.go.set()

    assert (await run_graph(graph, clock=ManualClock(), during=second)).figures.ledger_holds


KILLED = """
import asyncio, os, signal, sys
from orchestrator_adapter import FlowPolicy, OperatorGraph, source_of

async def hangs(ends):
    await ends.receiver.recv_many(1)
    await asyncio.Event().wait()

async def killed(ends):
    async for _ in ends.receiver.batches():
        pass
    os.kill(os.getpid(), signal.SIGKILL)

graph = OperatorGraph("killed")
split = graph.add_fan_out("split")
graph.connect(graph.add_source("source", source_of(range(1_000))), split, 16)
graph.connect(split, graph.add_sink("stuck", hangs), 16, policy=FlowPolicy.spill(sys.argv[1]))
graph.connect(split, graph.add_sink("other", killed), 16)
asyncio.run(graph.build().run())
"""


def test_the_items_of_a_killed_process_are_found(tmp_path: Path) -> None:
    """After ``kill -9`` the files have every item that was spilled, and the folder can be used again."""
    ended = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=ROOT, timeout=60, check=False)
    assert ended.returncode == -9
    assert list(spilled_items(tmp_path)) == list(range(16, 1_000))
    graph = two_branches(broadcast(), CollectSink(), CollectSink(), FlowPolicy.spill(tmp_path))
    assert asyncio.run(run_graph(graph)).figures.ledger_holds
    assert len(list(spilled_items(tmp_path))) == 984


def test_the_policy_is_drawn_and_described() -> None:
    """With folder, bound and what happens then."""
    graph = two_branches(broadcast(), Stuck(), CollectSink(), FlowPolicy.spill("run/spill", when_full="shed"))
    assert "64 items, spill to run/spill, at most 1 GiB, then shed" in graph.describe()
    assert re.search(r'-->\|"64 · spill to run/spill, at most 1 GiB, then shed"\|', graph.to_mermaid())
