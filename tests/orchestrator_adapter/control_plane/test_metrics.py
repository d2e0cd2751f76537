"""Every metric family, in graphs in which everything happens that is counted. No HTTP here."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import re
import resource
import threading
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from orchestrator_adapter import (
    BlockingPool,
    BuiltGraph,
    DeadLetterAs,
    DeadLetterKind,
    FlowPolicy,
    OperatorGraph,
    Reject,
    RestartPolicy,
    SupervisionPolicy,
    WiredEnds,
    map_items,
    sift,
    source_of,
)
from orchestrator_adapter.control_plane.exposition import as_json
from orchestrator_adapter.primitives.metrics import BOUNDS_S
from orchestrator_adapter.testing import (
    CollectSink,
    Fail,
    ListSource,
    ManualClock,
    Pause,
    UntilShutdown,
    chain,
    run_graph,
)
from tests.helpers.metrics import OTHERS, SECTION_13, Everything, Figures, scraped, view
from tests.helpers.running import FailingStore, GatedSink, eventually
from tests.helpers.support import ROOT


async def test_every_family_has_the_expected_values() -> None:
    """Of a graph with every kind of vertex, edge, breaker and dead letter."""
    seen: list[dict[str, Figures]] = []

    async def observe(built: BuiltGraph) -> None:
        seen.append(scraped(built))

    await Everything().run(observe)
    (metrics,) = seen
    assert set(metrics) == SECTION_13 | OTHERS
    assert metrics["operator_restart_total"] == {
        **{(name,): 0 for name in ("feed", "call", "split", "screen", "archive")},
        ("fragile",): 2,
    }
    assert metrics["pipeline_health"] == {("ok",): 1, ("degraded",): 0, ("draining",): 0, ("failing",): 0}
    assert metrics["operator_up"] == {(name,): 1 for name in ("feed", "call", "fragile", "split", "screen", "archive")}
    assert all(uptime > 0 for uptime in metrics["operator_uptime_seconds"].values())
    assert metrics["operator_items_total"] == {  # direction, operator
        ("consumed", "feed"): 0,
        ("emitted", "feed"): 10,
        ("consumed", "call"): 10,
        ("emitted", "call"): 9,
        ("consumed", "fragile"): 9,
        ("emitted", "fragile"): 8,
        ("consumed", "split"): 8,
        ("emitted", "split"): 16,
        ("consumed", "screen"): 0,
        ("emitted", "screen"): 0,
        ("consumed", "archive"): 0,
        ("emitted", "archive"): 0,
    }
    assert metrics["circuit_breaker_state"] == {("partner",): 0, ("broken",): 1}
    assert metrics["circuit_breaker_forced"] == {("partner",): 0, ("broken",): 1}
    assert metrics["circuit_breaker_rejections_total"] == {("partner",): 0, ("broken",): 1}
    assert metrics["circuit_breaker_open_seconds_total"][("partner",)] == 0
    assert metrics["circuit_breaker_open_seconds_total"][("broken",)] > 0
    assert metrics["retry_attempts_total"] == {("call",): 1}
    assert metrics["channel_occupancy"] == {
        ("feed -> call",): 0,
        ("call -> fragile",): 0,
        ("fragile -> split",): 0,
        ("split -> screen",): 2,
        ("split -> archive",): 2,
    }
    assert set(metrics["channel_capacity"].values()) == {16, 2}
    assert metrics["channel_high_water_mark"][("feed -> call",)] == 10
    assert metrics["channel_high_water_mark"][("split -> screen",)] == 2
    assert metrics["source_ingest_rate"][("feed",)] > 0
    assert metrics["source_decode_errors_total"] == {("feed",): 2}
    assert metrics["source_kernel_drops_total"] == {("feed",): 3}
    assert metrics["source_last_item_age_seconds"][("feed",)] > 0
    assert metrics["sink_bytes_written_total"] == {("screen",): 77}
    at_bounds = {(str(bound), "screen"): 100 if bound >= 2 else 0 for bound in BOUNDS_S}
    everything = {("+Inf", "screen"): 100, ("screen",): 100}
    assert metrics["sink_latency_seconds"] == at_bounds | everything
    assert metrics["operator_restarts_left"] == {
        **{(name,): 5 for name in ("feed", "call", "split")},
        ("fragile",): 4,
        ("screen",): 0,
        ("archive",): 0,
    }
    assert metrics["operator_errors_total"] == {("OSError", "fragile"): 2}
    assert metrics["source_paused"] == {("feed",): 0}
    spent = metrics["operator_time_seconds_total"]  # operator, state
    assert len(spent) == 3 * 6
    assert spent["split", "blocked"] > 0
    assert spent["feed", "idle"] == 0
    assert all(spent["call", state] > 0 for state in ("busy", "idle"))
    assert {edge for (edge,), pressure_s in metrics["edge_pressure_seconds_total"].items() if pressure_s} == {
        "split -> screen",
        "split -> archive",
    }
    dead = metrics["dead_letters_total"]  # kind, operator
    assert {labels: count for labels, count in dead.items() if count} == {
        ("Deserialization", "feed"): 2,
        ("ValidationFailed", "call"): 1,
        ("PoisonPill", "fragile"): 1,
        ("Undelivered", "split"): 6,
    }
    assert len(dead) == 6 * len(DeadLetterKind)
    assert metrics["flow_policy_drops_total"] == {
        ("feed -> call", "backpressure"): 0,
        ("call -> fragile", "backpressure"): 0,
        ("fragile -> split", "backpressure"): 0,
        ("split -> screen", "shed"): 6,
        ("split -> archive", "timed"): 6,
    }
    assert metrics["ledger_items"] == {
        ("ingested",): 12,
        ("repeated",): 0,
        ("derived",): 8,
        ("written",): 0,
        ("duplicates",): 0,
        ("rejected",): 1,
        ("discarded",): 0,
        ("absorbed",): 0,
        ("shed",): 6,
        ("dead_lettered",): 9,
        ("in_flight",): 4,
    }
    assert metrics["ledger_balanced"] == {(): 1}
    assert metrics["event_loop_lag_seconds"] == {(): 0.5}
    assert metrics["event_loop_stalls_total"] == {(): 2}
    assert metrics["snapshot_age_seconds"] == {(): 0.25}
    assert metrics["operator_figure"] == {("port", "feed"): 9201, ("decode_errors", "screen"): 4}


def test_a_graph_that_has_not_started_has_zeros_and_no_samples_of_unknown_values() -> None:
    """No age before the first item, no bytes of a sink that does not count them, no breaker."""
    metrics = scraped(chain(source_of([1]), CollectSink()).build())
    assert set(metrics) == SECTION_13 | OTHERS
    assert metrics["operator_up"] == {("source",): 0, ("sink",): 0}
    assert metrics["operator_uptime_seconds"] == {("source",): 0, ("sink",): 0}
    assert metrics["source_ingest_rate"] == metrics["source_decode_errors_total"] == {("source",): 0}
    for absent in (
        *("source_last_item_age_seconds", "source_kernel_drops_total", "sink_bytes_written_total"),
        *("sink_latency_seconds", "circuit_breaker_state", "retry_attempts_total", "operator_figure"),
    ):
        assert metrics[absent] == {}


def test_the_documentation_lists_exactly_these_families_with_their_types() -> None:
    """``docs/control-plane.md`` is the reference."""
    lines = re.findall(
        r"^\| `(\w+)` \| (counter|gauge|histogram) \|", (ROOT / "docs" / "control-plane.md").read_text(), re.MULTILINE
    )
    built = chain(source_of([1]), CollectSink()).build()
    assert dict(lines) == {family["name"]: family["type"] for family in as_json(built.plan, view(built))["metrics"]}
    assert len(lines) == len(SECTION_13 | OTHERS)


# The process, threads, and what waits.


def test_the_figures_of_the_process_are_those_of_the_system() -> None:
    """Memory, file descriptors, threads and processor time; opened files and started threads are counted."""
    built = chain(source_of([1]), CollectSink()).build()
    gc.collect()  # so that it closes nothing in between
    before, end = scraped(built), threading.Event()
    files = [os.open(os.devnull, os.O_RDONLY) for _ in range(10)]
    threads = [threading.Thread(target=end.wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    try:
        after = scraped(built)
    finally:
        end.set()
        for file in files:
            os.close(file)
        for thread in threads:
            thread.join()
    assert after["process_open_fds"][()] - before["process_open_fds"][()] == 10
    assert after["process_threads"][()] - before["process_threads"][()] == 5
    assert after["process_max_fds"][()] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert after["process_resident_memory_bytes"][()] > 1_000_000
    assert after["process_cpu_seconds_total"][()] >= before["process_cpu_seconds_total"][()] > 0


async def test_a_full_edge_shows_what_waits_beyond_it_and_a_pool_its_calls() -> None:
    """Ten items for an edge of two: eight wait in the outbox. One blocking call runs, and one waits for a thread."""
    begun, end = threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        assert end.wait(60)

    async def sink(ends: WiredEnds) -> None:
        await asyncio.gather(ends.run_blocking(call), ends.run_blocking(call))
        async for _ in ends.receiver:
            pass

    async def observe(built: BuiltGraph) -> None:
        await eventually(lambda: begun.is_set() and built.ledger().ingested == 10, "the items and the call")
        seen.append(scraped(built))
        end.set()
        built.request_shutdown("enough")

    seen: list[dict[str, Figures]] = []
    graph = OperatorGraph("waits")
    source = graph.add_source("source", ListSource(list(range(10)), UntilShutdown()))
    last = graph.add_sink("sink", sink, blocking_pool=BlockingPool("disk", threads=1))
    graph.connect(source, last, 2)
    await run_graph(graph, during=observe)
    (metrics,) = seen
    assert metrics["channel_occupancy"] == {("source -> sink",): 2}
    assert metrics["channel_outbox"] == {("source -> sink",): 8}
    assert {name: metrics[name] for name in metrics if name.startswith("blocking_")} == {
        "blocking_pool_threads": {("disk",): 1},
        "blocking_pool_busy": {("disk",): 1},
        "blocking_pool_waiting": {("disk",): 1},
        "blocking_pool_abandoned": {("disk",): 0},
        "blocking_calls_total": {("disk",): 1},
        "blocking_calls_abandoned_total": {("disk",): 0},
    }


# Dead letters by operator and kind.


async def test_the_dead_letters_by_kind_add_up_to_the_ledgers() -> None:
    """Rejected, dead-lettered, poison, leased during a panic, undelivered, expired; also those that the store did not keep."""
    kinds = Counter[DeadLetterKind]()
    for seed in range(40):
        rng = random.Random(seed)
        sink = GatedSink()
        graph = OperatorGraph("dead")
        source = graph.add_source("source", ListSource(list(range(60)), UntilShutdown()))
        check = graph.add_operator("check", sift(_verdicts(rng)))
        work = graph.add_operator("work", map_items(_fails(rng)), restart_policy=RestartPolicy.always(backoff=None))
        graph.connect(source, check, rng.choice([1, 8]))
        graph.connect(check, work, rng.choice([1, 8]))
        policy = rng.choice([FlowPolicy.timed(timedelta(milliseconds=1)), FlowPolicy.shed(), FlowPolicy.backpressure()])
        graph.connect(work, graph.add_sink("sink", sink), 4, policy=policy)
        kept: list[BuiltGraph] = []

        async def during(built: BuiltGraph, kept: list[BuiltGraph] = kept, rng: random.Random = rng) -> None:
            kept.append(built)
            for _ in range(rng.randrange(200)):
                await asyncio.sleep(0)  # a turn of the loop
                _check(built)
            built.request_shutdown("first")
            built.request_shutdown("second")

        event = await run_graph(
            graph,
            during=during,
            dead_letters=FailingStore(rng.randrange(6)),
            policy=SupervisionPolicy(patience=timedelta(milliseconds=50)),
        )
        assert event.figures.ledger.balanced
        kinds += _check(kept[0])
    assert set(kinds) == {
        *(DeadLetterKind.VALIDATION_FAILED, DeadLetterKind.SCHEMA_MISMATCH, DeadLetterKind.POISON_PILL),
        *(DeadLetterKind.PROCESSING_EXCEPTION, DeadLetterKind.UNDELIVERED),
    }


def _check(built: BuiltGraph) -> Counter[DeadLetterKind]:
    """Compare the figures of edges and operators with the ledger. Returns the dead letters by kind."""
    status = built.status()
    by_kind = Counter[DeadLetterKind]()
    for operator in status.operators:
        by_kind.update(operator.dead_letters)
    assert by_kind.total() == status.ledger.dead_lettered + status.ledger.rejected
    assert by_kind[DeadLetterKind.VALIDATION_FAILED] == status.ledger.rejected
    drops = sum(edge.policy_drops for edge in status.edges.values())
    assert status.ledger.shed <= drops <= status.ledger.shed + by_kind[DeadLetterKind.UNDELIVERED]
    return by_kind


def _verdicts(rng: random.Random) -> Callable[[int], Reject | DeadLetterAs | None]:
    def verdict(item: int) -> Reject | DeadLetterAs | None:
        match rng.randrange(8):
            case 0:
                return Reject("rejected")
            case 1:
                return DeadLetterAs(DeadLetterKind.SCHEMA_MISMATCH, "wrong schema")
            case _:
                return None

    return verdict


def _fails(rng: random.Random) -> Callable[[int], int]:
    panics_at = rng.choice([None, 40])

    def work(item: int) -> int:
        if item == panics_at:
            raise KeyError(item)
        if item % 10 == 7:
            raise OSError("poison")
        return item

    return work


async def test_an_item_dead_lettered_because_its_branch_is_done_is_not_a_policy_drop() -> None:
    """It counts as a dead letter, not as a drop of the flow policy."""

    async def first_only(ends: WiredEnds) -> None:
        await ends.receiver.recv()

    async def observe(built: BuiltGraph) -> None:
        await eventually(lambda: built.status().edges["split -> one"].dead_lettered == 9, "the undelivered items")
        metrics = scraped(built)
        assert set(metrics["flow_policy_drops_total"].values()) == {0}
        assert metrics["dead_letters_total"][("Undelivered", "split")] > 0
        observed.append(metrics)
        built.request_shutdown("enough")

    observed: list[Any] = []
    graph = OperatorGraph("branches")
    source = graph.add_source("source", ListSource([1], list(range(9)), UntilShutdown()))
    split = graph.add_fan_out("split")
    graph.connect(source, split, 1)
    graph.connect(split, graph.add_sink("one", first_only), 4, policy=FlowPolicy.shed())
    graph.connect(split, graph.add_sink("two", CollectSink()), 4)
    await run_graph(graph, during=observe, policy=SupervisionPolicy(done_when=frozenset({"one", "two"})))
    assert observed


# The rate.


async def test_the_ingest_rate_counts_all_input_and_continues_across_restarts() -> None:
    """Items, malformed frames, duplicates and discarded items; a restart does not reset it."""
    clock = ManualClock()

    async def odd(ends: WiredEnds) -> None:
        if ends.instance == 1:
            ends.dead_letter(b"x", DeadLetterKind.DESERIALIZATION, "malformed")
            ends.duplicate(2)
            ends.discard(3)
        await script(ends)

    async def observe(built: BuiltGraph) -> None:
        await clock.advance_when_idle(10)
        before = built.status().operators[0]
        assert before.restarts == 0
        assert before.ingest_rate_per_s == pytest.approx((1 + 2 + 3 + 4) / 10, rel=0.2)
        await clock.advance_when_idle(9)
        await clock.advance_when_idle(1)  # the failure was seen at 19 s, and a backoff follows it
        after = built.status().operators[0]
        assert after.restarts == 1
        assert after.ingest_rate_per_s == pytest.approx((10 + 10) / 20, rel=0.2)
        assert built.status().operators[1].ingest_rate_per_s is None
        built.request_shutdown("enough")

    script = ListSource([0] * 4, Pause(timedelta(seconds=15)), Fail(OSError("cable")), [0] * 10, UntilShutdown())
    await run_graph(chain(odd, CollectSink()), clock=clock, during=observe)
