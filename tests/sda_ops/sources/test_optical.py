"""Polling an optical archive: fixed interval and long poll, the position, malformed entries, backpressure."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from datetime import timedelta

import pytest

from orchestrator_adapter import (
    BuiltGraph,
    DeadLetter,
    DeadLetterKind,
    DeadLetterList,
)
from orchestrator_adapter.supervision import events, task_exit
from orchestrator_adapter.testing import CollectSink, ManualClock, run_graph, settle
from sda_ops.sources.optical import ArchivePosition, OpticalFeed, optical_source
from sda_ops.wire import optical
from tests.helpers.running import GatedSink, counter, eventually, fed_by
from tests.sda_ops.sources.optical_archive import NOW_NS, Archive, entry, feed, http, ids, when


async def test_polls_at_a_fixed_interval_emit_every_observation_once() -> None:
    """Observations from before the start and later ones arrive once, in order, and no poll asks the archive to wait."""
    sink, clock = CollectSink(), ManualClock()
    async with Archive(entry(1), entry(2)).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: len(sink.items) == 2, "the first poll comes at once")
            await settle()
            assert counter(built, "polls") == 1
            archive.entries.append(entry(3))
            clock.advance(4.999)
            await settle()
            assert counter(built, "polls") == 1
            clock.advance(0.001)
            await eventually(lambda: len(sink.items) == 3, "the second poll comes after the interval")
            built.request_shutdown("test")

        graph = fed_by(optical_source(feed(archive, poll_interval=timedelta(seconds=5))), sink)
        event = await run_graph(graph, clock=clock, during=during)
    assert ids(sink) == ["o-1", "o-2", "o-3"]
    assert [set(request) for request in archive.requests] == [{"since"}] * len(archive.requests)
    assert archive.requests[0]["since"] == NOW_NS - 60 * 10**9 - 1
    assert event.figures.ledger.written == 3
    assert event.figures.ledger_holds


async def test_a_long_poll_waits_at_the_archive() -> None:
    """A poll after one without new observations says how long the archive may wait, and new observations arrive without an interval."""
    sink, clock = CollectSink(), ManualClock()
    async with Archive(entry(1)).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: any("wait_ms" in query for query in archive.requests), "a request that waits")
            await settle()
            before = len(archive.requests)
            archive.entries.append(entry(2))
            archive.added.set()
            await eventually(lambda: len(sink.items) == 2, "the new observation, without any time passing")
            assert archive.requests[before - 1] == {"since": entry(1)["timestamp_ns"], "wait_ms": 20_000}
            await eventually(lambda: len(archive.requests) >= before + 2, "it waits again")
            built.request_shutdown("test")

        graph = fed_by(
            optical_source(feed(archive, long_poll=timedelta(seconds=20), poll_interval=timedelta(seconds=100))), sink
        )
        event = await run_graph(graph, clock=clock, during=during)
    assert ids(sink) == ["o-1", "o-2"]
    assert event.figures.exits["source"] == task_exit.Ok()


async def test_a_page_boundary_inside_one_nanosecond_loses_and_repeats_nothing() -> None:
    """Three observations share a timestamp, and a page of the archive ends between them."""
    sink, clock = CollectSink(), ManualClock()
    at_ns = NOW_NS - 500
    entries = [entry(1), *(entry(number, at_ns=at_ns) for number in (2, 3, 4)), entry(5, at_ns=at_ns + 1)]
    async with Archive(*entries, limit=2).serving() as archive:
        archive.answers.append(http(200, json.dumps(entries[:2]).encode()))
        archive.limit = 4

        async def during(built: BuiltGraph) -> None:
            await when(built, clock, lambda: len(sink.items) >= 5 and len(archive.requests) >= 5, "all five")

        event = await run_graph(fed_by(optical_source(feed(archive)), sink), clock=clock, during=during)
    assert ids(sink) == ["o-1", "o-2", "o-3", "o-4", "o-5"]
    assert archive.requests[1]["since"] == at_ns - 1
    assert event.figures.ledger.ingested == 5


async def test_malformed_entries_are_dead_lettered_once_although_every_page_repeats_them() -> None:
    """Each is one dead letter, with the entry, and the good entries are emitted."""
    sink, letters, clock = CollectSink(), DeadLetterList(), ManualClock()
    bad = [entry(7, ra_rad="east"), {"nothing": "of use"}, "not even an object"]
    async with Archive(entry(1)).serving() as archive:
        page = http(200, json.dumps([*bad, entry(1)]).encode())
        archive.answers.extend([page] * 5)

        async def during(built: BuiltGraph) -> None:
            await when(built, clock, lambda: (counter(built, "polls") or 0) >= 6, "six polls")

        event = await run_graph(
            fed_by(optical_source(feed(archive)), sink), clock=clock, dead_letters=letters, during=during
        )
    assert ids(sink) == ["o-1"]
    assert [json.loads(letter.payload) for letter in letters.letters] == bad
    assert {letter.kind for letter in letters.letters} == {DeadLetterKind.DESERIALIZATION}
    assert event.figures.counters["source"]["decode_errors"] == 3
    assert not event.figures.restarts
    assert event.figures.ledger_holds


async def test_a_page_with_more_malformed_entries_than_are_remembered_is_dead_lettered_once() -> None:
    """A long page does not evict its own entries from the known ones."""
    letters, clock = DeadLetterList(), ManualClock()
    async with Archive(*({"bad": number} for number in range(1_500)), limit=5_000).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await when(built, clock, lambda: (counter(built, "polls") or 0) >= 4, "four polls")

        graph = fed_by(optical_source(feed(archive)), CollectSink())
        await run_graph(graph, clock=clock, dead_letters=letters, during=during)
    assert letters.total == 1_500


async def test_a_page_of_malformed_entries_does_not_block_the_event_loop() -> None:
    """While 5,000 of them are dead-lettered, other tasks run at least once for every 500."""
    turns, clock = 0, ManualClock()
    turn_of_each: list[int] = []

    class Store(DeadLetterList):
        def append(self, letters: Sequence[DeadLetter]) -> None:
            super().append(letters)
            turn_of_each.append(turns)

    async def during(built: BuiltGraph) -> None:
        nonlocal turns
        while len(turn_of_each) < 5_000:
            turns += 1
            await asyncio.sleep(0)
        built.request_shutdown("test")

    async with Archive(*({"bad": number} for number in range(5_000)), limit=5_000).serving() as archive:
        graph = fed_by(optical_source(feed(archive)), CollectSink())
        await run_graph(graph, clock=clock, dead_letters=Store(), during=during)
    assert turn_of_each[-1] - turn_of_each[0] >= 10


async def test_a_timestamp_in_the_future_does_not_hide_later_observations() -> None:
    """It is emitted once, for validate to reject, and observations before it in time are still fetched."""
    sink, clock = CollectSink(), ManualClock()
    far = entry(9, at_ns=2**62)
    async with Archive(entry(1), far).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: len(sink.items) == 2, "the first page")
            archive.entries.insert(1, entry(2))
            polls = len(archive.requests)
            await when(
                built, clock, lambda: len(sink.items) >= 3 and len(archive.requests) > polls + 3, "the later one"
            )

        event = await run_graph(fed_by(optical_source(feed(archive)), sink), clock=clock, during=during)
    assert ids(sink) == ["o-1", "o-9", "o-2"]
    assert event.figures.ledger.ingested == 3


def test_an_observation_ahead_of_the_clock_is_emitted_once() -> None:
    """It is new neither before nor after the position reaches it."""
    early, late = (
        optical.decode_page(json.dumps([entry(n, at_ns=at)]).encode(), ingest_timestamp=0)[0][0]
        for n, at in ((1, 100), (2, 200))
    )
    position = ArchivePosition(50)
    assert position.fresh([early, late]) == [early, late]
    position.advance([early, late], now_ns=150)
    assert (position.timestamp_ns, position.fresh([early, late])) == (100, [])
    position.advance([early, late], now_ns=250)
    assert (position.timestamp_ns, position.fresh([late])) == (200, [])
    assert not position.ahead


async def test_the_ingest_time_is_the_arrival_of_the_page() -> None:
    """A long poll that waits for ten seconds dates its observations by their arrival, not by the request."""
    sink, clock = CollectSink(), ManualClock()
    async with Archive().serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: any("wait_ms" in query for query in archive.requests), "a request that waits")
            clock.advance(10.0)
            archive.entries.append(entry(1))
            archive.added.set()
            await eventually(lambda: sink.items, "the new observation")
            built.request_shutdown("test")

        await run_graph(
            fed_by(optical_source(feed(archive, long_poll=timedelta(seconds=20))), sink), clock=clock, during=during
        )
    assert [item.ingest_timestamp for item in sink.items] == [clock.now_ns()]


def test_all_problems_of_a_feed_are_reported_together() -> None:
    """One error names each invalid field, its bound and its value."""
    negative = timedelta(seconds=-1)
    with pytest.raises(ValueError, match="OpticalFeed") as raised:
        OpticalFeed(
            "", poll_interval=negative, long_poll=negative, timeout=negative, lookback=negative, max_body_bytes=0
        )
    assert [problem.split(" must")[0] for problem in str(raised.value).split("; ")] == [
        f"OpticalFeed: {name}" for name in ("poll_interval", "long_poll", "timeout", "lookback", "max_body_bytes")
    ]


async def test_at_most_one_page_is_in_memory() -> None:
    """While downstream accepts nothing, no further poll is made, however much time passes; then every observation arrives once."""
    sink, clock = GatedSink(), ManualClock()
    async with Archive(*map(entry, range(40)), limit=20).serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: built.ledger().ingested == 20, "the first page")
            for _ in range(100):
                clock.advance(60.0)
                await settle(5)
            assert len(archive.requests) == 1
            assert built.ledger().in_flight == 20
            sink.gate.set()
            await when(built, clock, lambda: len(sink.items) >= 40, "the rest")

        graph = fed_by(optical_source(feed(archive)), sink, capacity=4)
        event = await run_graph(graph, clock=clock, during=during)
    assert ids(sink) == [f"o-{number}" for number in range(40)]
    assert event.figures.ledger_holds


async def test_a_shutdown_cancels_a_long_poll() -> None:
    """The request ends at once, and the source ends without an error."""
    async with Archive().serving() as archive:

        async def during(built: BuiltGraph) -> None:
            await eventually(lambda: any("wait_ms" in query for query in archive.requests), "a request that waits")
            built.request_shutdown("test")

        graph = fed_by(optical_source(feed(archive, long_poll=timedelta(seconds=300))), CollectSink())
        event = await run_graph(graph, clock=ManualClock(), during=during)
    assert event.figures.exits["source"] == task_exit.Ok()
    assert isinstance(event, events.ShutDown)
