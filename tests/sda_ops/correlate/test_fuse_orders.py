"""One set of observations in many orders of arrival: the effective updates are the same, or differ by what was too late.

Three sources with marks, ``merge`` with the least mark, and ``fuse``, as a graph. Each source delivers its items with delays up
to its lateness, and promises each second that nothing follows from before that.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import timedelta
from random import Random
from typing import Any
from unittest.mock import patch
from uuid import UUID

from orchestrator_adapter import Control, DeadLetterList, OperatorGraph, merge, source_of
from orchestrator_adapter.testing import CollectSink, ManualClock, run_graph
from sda_ops.astro.time import NS_PER_S
from sda_ops.correlate import fuse as fuse_module
from sda_ops.correlate.fuse import FusionWindows, fuse
from sda_ops.event_time.changes import Added, Retract
from sda_ops.event_time.segmentation import Session
from sda_ops.event_time.watermark import Watermark, least_watermark
from sda_ops.event_time.windows import EventTimeWindows
from sda_ops.records.correlation import Correlation
from tests.helpers.running import NOON_NS
from tests.helpers.sizes import small_and_long
from tests.scenes.windows import Feed, arriving, effective_updates, observed
from tests.sda_ops.event_time.windows_model import Item, segment

ORDERS = 20
WINDOWS = FusionWindows(
    gap=timedelta(seconds=2),
    longest=timedelta(seconds=15),
    allowed_lateness=timedelta(seconds=3),
    late="dead_letter",
    max_held=10_000_000,
)
SESSION = Session(gap_ns=2 * NS_PER_S, longest_ns=15 * NS_PER_S)

size = small_and_long(
    ("events", "seconds", "orders"),
    (1_000, 60.0, range(ORDERS)),
    *((100_000, 6_000.0, range(first, first + 5)) for first in range(0, ORDERS, 5)),
)
"""Of eight objects, each of which is observed twice a second. Every part is compared with the definition, so the long ones are
comparable as well."""


async def fused(
    rng: Random, events: Sequence[Correlation], *, slower: float = 1.0
) -> tuple[list[Any], list[Correlation], Any]:
    """One order of arrival: what ``fuse`` sends, which correlations were too late, and its figures.

    With ``slower`` items are delayed by more than their source promises.
    """
    graph, sink, letters = OperatorGraph("orders"), CollectSink(), DeadLetterList(capacity=10_000_000)
    both = graph.add_fan_in("merge", merge(combine={Watermark: least_watermark()}))
    for feed, timeline in arriving(rng, events, slower=slower).items():
        graph.connect(graph.add_source(feed.source_id, source_of(list(with_marks(feed, timeline)))), both, 64)
    fusion = graph.add_operator("fuse", fuse(WINDOWS), stateful=True, expanding=True)
    graph.connect(both, fusion, 64)
    graph.connect(fusion, graph.add_sink("sink", sink), 64)
    event = await run_graph(graph, clock=ManualClock(), dead_letters=letters, limit=timedelta(minutes=5))
    assert event.figures.ledger_holds
    return sink.items, [letter.payload for letter in letters.letters], event.figures


def with_marks(feed: Feed, timeline: Iterable[tuple[float, Correlation]]) -> Iterable[Correlation | Control]:
    """The items, and at each full second of arrival the promise of a source that is in contact."""
    second = 0
    for arrival_s, item in timeline:
        while second < arrival_s:
            yield Watermark(NOON_NS + round((second - feed.lateness_s) * NS_PER_S), feed.source_id)
            second += 1
        yield item


def defined(events: Iterable[Correlation]) -> set[tuple[int, int, int, tuple[UUID, ...]]]:
    """The updates by definition: each object's observations, sorted, in sessions; those with several sensors."""
    of: defaultdict[int, list[Item]] = defaultdict(list)
    known: dict[Item, Correlation] = {}
    for each in events:
        assert each.catalog_number is not None
        item = Item(each.sensor_timestamp, str(each.observation_id))
        known[item] = each
        of[each.catalog_number].append(item)
    return {
        (number, window.start_ns, window.end_ns, tuple(UUID(item.name) for item in window.items))
        for number, items in of.items()
        for window in segment(items, SESSION)
        if len({known[item].source_id for item in window.items}) > 1
    }


def sent(items: Sequence[Any]) -> set[tuple[int, int, int, tuple[UUID, ...]]]:
    return {
        (
            update.catalog_number,
            update.start_timestamp,
            update.end_timestamp,
            tuple(each.observation_id for each in update.contributions),
        )
        for update in effective_updates(items).values()
    }


@size
async def test_in_every_order_within_the_lateness_of_the_sources_the_updates_are_the_same(
    events: int, seconds: float, orders: range
) -> None:
    """Twenty orders: equal updates, ids included, none retracted, none late; they are those of the definition."""
    observations = observed(Random(7), events=events, objects=8, seconds=seconds)
    first = None
    for seed in orders:
        items, late, figures = await fused(Random(seed), observations)
        assert (late, figures.counters["fuse"]["late_amended"]) == ([], 0)
        updates = effective_updates(items)
        first = first or updates
        assert updates == first
    assert first is not None
    assert len(first) > events // 100  # the test says something
    assert sent(list(first.values())) == defined(observations)


@size
async def test_beyond_the_lateness_the_updates_differ_by_exactly_the_observations_that_were_too_late(
    events: int, seconds: float, orders: range
) -> None:
    """Delays up to 1.4 times what was promised: some amend, some are dropped, and each dropped one has a dead letter."""
    observations = observed(Random(8), events=events, objects=8, seconds=seconds)
    amended = dropped = 0
    for seed in orders:
        items, late, figures = await fused(Random(seed), observations, slower=1.4)
        counters = figures.counters["fuse"]
        assert len(late) == len({each.observation_id for each in late}) == counters["late"]
        assert figures.ledger.dead_lettered == counters["late"]
        rest = {each.observation_id: each for each in observations}
        for each in late:
            del rest[each.observation_id]
        assert len(rest) == events - counters["late"]
        assert sent(items) == defined(rest.values())
        amended += counters["late_amended"]
        dropped += counters["late"]
    assert amended > len(orders)
    assert dropped > len(orders)


async def test_windows_that_follow_the_newest_observation_lose_pairs_and_are_found() -> None:
    """The design that this one replaces: a radar's observation closes the windows that wait for the archive."""
    observations = observed(Random(7), events=1_000, objects=8, seconds=60.0)
    sound = EventTimeWindows.add

    def newest(self: Any, key: Any, item: Any) -> Any:
        outcome, changes = sound(self, key, item), self.advance(item.sensor_timestamp)
        return Added((*outcome.changes, *changes)) if isinstance(outcome, Added) else outcome

    with patch.object(EventTimeWindows, "add", newest):
        items, late, _ = await fused(Random(0), observations)
    assert len(late) > len(observations) // 10
    assert sent(items) != defined(observations)


async def test_a_lost_retraction_is_found() -> None:
    """Both the old update and the new one count."""
    observations = observed(Random(8), events=1_000, objects=8, seconds=60.0)
    sound = fuse_module.update_of

    def lost(change: Any) -> Any:
        return None if isinstance(change, Retract) else sound(change)

    with patch.object(fuse_module, "update_of", lost):
        items, late, _ = await fused(Random(0), observations, slower=1.4)
    gone = {each.observation_id for each in late}
    assert sent(items) > defined(each for each in observations if each.observation_id not in gone)


def test_the_scene_has_equal_times_and_orders_that_differ() -> None:
    """The tests above would not be worth much otherwise."""
    observations = observed(Random(7), events=1_000, objects=8, seconds=60.0)
    assert len({each.sensor_timestamp for each in observations}) < len(observations)
    orders = {
        tuple(each.observation_id for timeline in arriving(Random(seed), observations).values() for _, each in timeline)
        for seed in range(ORDERS)
    }
    assert len(orders) == ORDERS
