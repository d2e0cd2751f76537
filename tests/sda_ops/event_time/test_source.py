"""``watermarked`` around any source: marks behind their items for every call that sends them; full edges, restarts, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from prometheus_client import CollectorRegistry

from orchestrator_adapter import BuiltGraph, Control, Factory, RestartPolicy, WiredEnds, merge
from orchestrator_adapter.graph.operator_graph import OperatorGraph
from orchestrator_adapter.supervision import events
from orchestrator_adapter.testing import CollectSink, Fail, ListSource, ManualClock, Pause, run_graph
from sda_ops.event_time.metrics import EventTimeMetrics
from sda_ops.event_time.promises import PromiseRules, ReadOrder
from sda_ops.event_time.source import OnContact, watermarked
from sda_ops.event_time.watermark import Watermark, least_watermark
from tests.helpers.running import GatedSink, eventually, fed_by
from tests.scenes.restarts import away

MS = 1_000_000
S = 1_000 * MS
NOW = ManualClock().now_ns()
RULES = PromiseRules(
    max_lateness=timedelta(milliseconds=100),
    order=ReadOrder.ARRIVAL,
    idle_after=timedelta(seconds=5),
    least_step=timedelta(0),
)
ALWAYS = RestartPolicy.always(backoff=None)


class Item(NamedTuple):
    """Its event time and its arrival, ns since the start of the clock."""

    event_ns: int
    arrived_ns: int


def times_of(item: Item) -> tuple[int, int]:
    return NOW + item.event_ns, NOW + item.arrived_ns


def at(*milliseconds: int) -> list[Item]:
    """Items that arrived when they were measured."""
    return [Item(ms * MS, ms * MS) for ms in milliseconds]


def mark(milliseconds: int | None, source: str = "source") -> Watermark:
    return Watermark(None if milliseconds is None else NOW + milliseconds * MS, source)


def plain(source: Factory, rules: PromiseRules = RULES, metrics: EventTimeMetrics | None = None) -> Factory:
    """The source without contacts."""
    return watermarked(lambda _: source, rules, times_of=times_of, metrics=metrics)


async def run(source: Factory, **options: Any) -> tuple[list[Any], Any]:
    sink = CollectSink(controls=True)
    options.setdefault("clock", ManualClock(autojump=True))
    event = await run_graph(fed_by(source, sink, policy=ALWAYS), **options)
    assert event.figures.ledger_holds
    return sink.items, event


# Every way to send.


async def _emit(ends: WiredEnds, items: list[Item]) -> None:
    await ends.emit(items)


async def _ingest(ends: WiredEnds, items: list[Item]) -> None:
    ends.ingest(items)
    await ends.flush()


async def _offer(ends: WiredEnds, items: list[Item]) -> None:
    ends.sender.offer(items)
    await ends.flush()


async def _send(ends: WiredEnds, items: list[Item]) -> None:
    for item in items:
        await ends.sender.send(item)


async def _send_many(ends: WiredEnds, items: list[Item]) -> None:
    await ends.senders[0].send_many(items)


@pytest.mark.parametrize("send", [_emit, _ingest, _offer, _send, _send_many])
async def test_a_mark_is_right_behind_the_items_that_it_speaks_of(send: Callable[..., Any]) -> None:
    async def source(ends: WiredEnds) -> None:
        await send(ends, at(500))
        await send(ends, at(700))

    items, _ = await run(plain(source))
    assert items == [*at(500), mark(400), *at(700), mark(600)]


async def test_control_items_of_the_source_itself_pass_in_their_place() -> None:
    """They are not observations: ``times_of`` is not called with one."""

    class Canary(Control):
        pass

    canary = Canary()

    async def source(ends: WiredEnds) -> None:
        await ends.emit([*at(500), canary])
        await ends.emit_control(canary)

    items, _ = await run(plain(source))
    assert items == [*at(500), canary, mark(400), canary]


async def test_a_source_with_the_services_of_its_ends_does_not_notice_the_wrapper() -> None:
    """Name, instance, kept resources, figures, helper tasks, threads."""

    async def source(ends: WiredEnds) -> None:
        kept: list[int] = ends.keep("kept", list)
        kept.append(ends.instance)
        ends.count(f"{ends.name} {kept}")
        assert await ends.start(ends.run_blocking(len, "abc"), name="helper") == 3
        if ends.instance == 1:
            raise away()

    _, event = await run(plain(source))
    assert {"source [1]", "source [1, 2]"} <= event.figures.counters["source"].keys()


# Full edges, restarts, silence.


async def test_marks_wait_behind_their_items_while_the_edge_is_full_and_no_mark_is_idle() -> None:
    """The sink takes nothing for a minute. Then everything arrives in its place."""
    clock, sink = ManualClock(), GatedSink()
    seen = CollectSink(controls=True)
    graph = OperatorGraph("full")
    source = graph.add_source("source", plain(ListSource(at(*range(100, 1_100)), at(2_000))))

    async def tap(ends: WiredEnds) -> None:
        async for part in ends.receiver.batches(controls=True):
            seen.items.extend([part] if isinstance(part, Control) else part)
            if not isinstance(part, Control):
                ends.commit(part, acknowledge=len(part))
                await ends.flush()

    middle = graph.add_operator("tap", tap)
    graph.connect(source, middle, 4)
    graph.connect(middle, graph.add_sink("sink", sink), 4)

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: built.ledger().ingested == 1_000, "the source waits")
        for _ in range(60):
            await clock.advance_when_idle(1.0)
        sink.gate.set()

    event = await run_graph(graph, clock=clock, during=during)
    assert event.figures.ledger_holds
    assert seen.items == [*at(*range(100, 1_100)), mark(999), *at(2_000), mark(1_900)]


async def test_a_failed_source_continues_with_its_mark_and_repeats_nothing() -> None:
    """The item that the second instance brings is older, and moves no mark."""
    source = ListSource(at(500), Fail(away()), at(300), Fail(away()), at(900))
    items, event = await run(plain(source))
    assert items == [*at(500), mark(400), *at(300), *at(900), mark(800)]
    assert event.figures.counters["source"]["late_at_source"] == 1


async def test_a_silent_source_is_idle_after_its_bound_and_returns_with_its_next_item() -> None:
    source = ListSource(at(500), Pause(timedelta(seconds=60)), at(60_000))
    items, _ = await run(plain(source))
    assert items == [*at(500), mark(400), mark(None), *at(60_000), mark(59_900)]


async def test_a_paused_source_becomes_idle_and_returns_with_its_next_item() -> None:
    """So it does not hold windows back. While what it ingested still waits for space in its edge, it is not idle."""
    clock, gate = ManualClock(), asyncio.Event()
    seen: list[Any] = []

    async def sink(ends: WiredEnds) -> None:
        async for part in ends.receiver.batches(controls=True):
            await gate.wait()
            seen.extend([part] if isinstance(part, Control) else part)

    graph = OperatorGraph("paused")
    source = graph.add_source("source", plain(ListSource(at(500, 501, 502, 503), at(70_000))))
    graph.connect(source, graph.add_sink("sink", sink), 2)

    async def during(built: BuiltGraph) -> None:
        async def passed(seconds: int) -> list[Any]:
            for _ in range(seconds):
                await clock.advance_when_idle(1.0)
            return seen[4:]

        await eventually(lambda: built.ledger().ingested == 4, "the edge is full")
        built.pause_source("source", "by a test")
        await passed(20)
        gate.set()
        assert await passed(4) == [mark(403)]
        assert await passed(2) == [mark(403), mark(None)]
        assert await passed(60) == [mark(403), mark(None)]
        built.resume_source("source", "by a test")

    event = await run_graph(graph, clock=clock, during=during)
    assert event.figures.ledger_holds
    assert seen == [*at(500, 501, 502, 503), mark(403), mark(None), *at(70_000), mark(69_900)]


async def test_a_source_that_fails_at_each_start_is_idle() -> None:
    """It never lives long enough for a tick. The time of its backoffs counts."""
    clock, sink = ManualClock(autojump=True), CollectSink(controls=True)
    graph = OperatorGraph("failing")

    async def failing(ends: WiredEnds) -> None:
        raise away()

    source = graph.add_source("source", plain(failing), restart_policy=RestartPolicy.always())
    graph.connect(source, graph.add_sink("sink", sink), 4)

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: sink.items, "the idle mark")
        built.request_shutdown("test")

    await run_graph(graph, clock=clock, during=during)
    assert sink.items == [mark(None)]


async def test_what_a_rate_limit_held_back_is_sent_by_the_next_tick() -> None:
    """Two batches in one instant send one mark; the second promise follows within a second."""
    slow = replace(RULES, least_step=timedelta(milliseconds=100))
    source = ListSource(at(500), at(600), Pause(timedelta(seconds=3)))
    items, _ = await run(plain(source, slow))
    assert items == [*at(500), mark(400), *at(600), mark(500)]


async def test_a_radar_that_is_250_ms_late_against_100_ms_loses_nothing_and_is_counted() -> None:
    """Its observation comes behind the mark that excludes it."""
    source = ListSource([Item(500 * MS, 510 * MS), Item(300 * MS, 550 * MS)], [Item(310 * MS, 560 * MS)])
    items, event = await run(plain(source))
    assert items == [Item(500 * MS, 510 * MS), Item(300 * MS, 550 * MS), mark(400), Item(310 * MS, 560 * MS)]
    assert event.figures.counters["source"]["late_at_source"] == 1


# The least of all sources.


def silent(contact_s: float) -> Callable[[OnContact], Factory]:
    """A source in contact at this time, without data."""

    def make(on_contact: OnContact) -> Factory:
        async def run(ends: WiredEnds) -> None:
            on_contact(NOW + round(contact_s * S))
            await ends.shutdown.wait()

        return run

    return make


@pytest.mark.parametrize(
    ("optical_s", "least_s", "holder"),
    [(30.0, 70.0, "optical"), (5.0, 90.0, "isl")],
)
async def test_the_least_mark_is_that_of_the_slowest_source_and_names_it(
    optical_s: float, least_s: float, holder: str
) -> None:
    """Radar T - 100 ms, optical T - 30 s, ISL T - 10 s give T - 30 s; with optical T - 5 s it is T - 10 s."""
    sink, graph = CollectSink(controls=True), OperatorGraph("least")
    fan_in = graph.add_fan_in("merge", merge(combine={Watermark: least_watermark()}))
    for name, lateness_s in (("radar", 0.1), ("optical", optical_s), ("isl", 10.0)):
        rules = PromiseRules(max_lateness=timedelta(seconds=lateness_s))
        source = graph.add_source(name, watermarked(silent(100.0), rules, times_of=times_of))
        graph.connect(source, fan_in, 4)
    graph.connect(fan_in, graph.add_sink("sink", sink), 4)

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: sink.items, "the least mark")
        first = sink.items[0]
        built.request_shutdown("test")
        assert first == Watermark(NOW + round(least_s * S), holder)

    event = await run_graph(graph, clock=ManualClock(), during=during)
    assert isinstance(event, events.ShutDown)


# Metrics.


async def test_marks_idleness_regressions_and_lags_are_measured() -> None:
    """A timestamp that no histogram can add up is clamped, and costs nothing else."""
    metrics, registry = EventTimeMetrics(sources=["source"]), CollectorRegistry()
    registry.register(metrics)
    values: dict[str, float | None] = {}

    def read(*names: str) -> None:
        values.update({name: registry.get_sample_value(name, {"source": "source"}) for name in names})

    def make(on_contact: OnContact) -> Factory:
        async def run(ends: WiredEnds) -> None:
            on_contact(NOW + S)
            on_contact(NOW)
            await ends.emit([Item(S - 20 * MS, S), Item(2**64, S), Item(S + MS, S)])
            await ends.shutdown.wait_at_most(7.0, ends.clock)  # until it is idle
            read("source_watermark_seconds", "source_idle", "watermark_regressions_total")
            read("source_lag_seconds_count", "clock_skew_observed_total")

        return run

    items, event = await run(watermarked(make, RULES, times_of=times_of, metrics=metrics))
    assert [item for item in items if isinstance(item, Watermark)] == [mark(900), mark(None)]
    assert values == {
        "source_watermark_seconds": pytest.approx((NOW + 900 * MS) / S, abs=1e-6),
        "source_idle": 1,
        "watermark_regressions_total": 1,
        "source_lag_seconds_count": 1,
        "clock_skew_observed_total": 2,
    }
    assert event.figures.counters["source"]["watermark_regressions"] == 1


async def test_a_clock_that_was_set_back_is_logged_once_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    """One line, when the contacts have gone back for ten seconds."""

    def make(on_contact: OnContact) -> Factory:
        async def run(ends: WiredEnds) -> None:
            on_contact(NOW + 3_600 * S)
            for second in range(30):
                on_contact(NOW + second * S)
                await ends.shutdown.wait_at_most(1.0, ends.clock)

        return run

    items, _ = await run(watermarked(make, RULES, times_of=times_of))
    lines = [record.getMessage() for record in caplog.records if "watermark_regression" in record.getMessage()]
    assert len(lines) == 1
    assert '"operator": "source"' in lines[0]
    assert items == [mark(3_600_000 - 100)]
