"""The ``screen`` source in a graph: what is screened when, what is sent on, and what a restart or a shutdown costs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from orchestrator_adapter import Backoff, BuiltGraph, OperatorError, OperatorGraph, RestartPolicy, events
from orchestrator_adapter.testing import CollectSink, ManualClock, run_graph
from sda_ops.catalog.columns import ElementColumns
from sda_ops.catalog.elements import ElementSet
from sda_ops.catalog.synthetic import synthetic_catalog
from sda_ops.records.conjunction import ConjunctionEstimate, ConjunctionUpdate
from sda_ops.screening.conjunctions.conjunction_table import ConjunctionTable, Screened
from sda_ops.screening.conjunctions.coverage import CoveragePlan
from sda_ops.screening.conjunctions.operator import (
    Found,
    ScreeningRules,
    confirming,
    newest_objects,
    screen_conjunctions,
)
from sda_ops.screening.objects import Rows, ScreenedObjects
from sda_ops.sinks.audit import Audit, audit_sink
from tests.helpers.running import counter, eventually
from tests.sda_ops.screening.conjunctions.test_conjunction_table import estimate

MINUTE = 60 * 10**9
HOUR = 60 * MINUTE
T0 = 492_000 * HOUR  # a multiple of the window
NOW = T0 + HOUR
PLAN = CoveragePlan(horizon=timedelta(hours=6), window=timedelta(hours=3), all_above=3)
ALL = ("all", T0, T0 + 9 * HOUR)


@dataclass(frozen=True)
class Version:
    number: int
    element_sets: Sequence[ElementSet]
    columns: ElementColumns


class Catalog:
    """A catalogue that a test replaces."""

    def __init__(self) -> None:
        self.sets = synthetic_catalog(objects=12, epoch_ns=T0)
        self._listeners: list[Callable[[Version], object]] = []
        self.current = Version(1, self.sets, ElementColumns.of(self.sets))

    @property
    def numbers(self) -> list[int]:
        return sorted(each.catalog_number for each in self.sets)

    async def load(self) -> None:
        pass

    def on_change(self, listener: Callable[[Version], object]) -> Callable[[], None]:
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def move(self, rows: Sequence[int]) -> None:
        """A new version, in which these rows have other elements."""
        arrays = {name: column.copy() for name, column in self.current.columns.arrays().items()}
        arrays["mo"][list(rows)] += 1e-6
        self._publish(Version(self.current.number + 1, self.sets, ElementColumns.from_arrays(arrays)))

    def remove(self, number: int) -> None:
        """A new version without this object."""
        self.sets = tuple(each for each in self.sets if each.catalog_number != number)
        self._publish(Version(self.current.number + 1, self.sets, ElementColumns.of(self.sets)))

    def _publish(self, version: Version) -> None:
        self.current = version
        for listener in self._listeners:
            listener(version)


@dataclass
class Screener:
    """Returns what the test says, and keeps what it was asked for."""

    found: list[ConjunctionEstimate] = field(default_factory=list)
    calls: list[tuple[object, int, int]] = field(default_factory=list)
    fail: int = 0
    hangs: bool = False

    async def screen(self, objects: ScreenedObjects, start_ns: int, end_ns: int, rows: Rows | None) -> Found:
        self.calls.append(("all" if rows is None else tuple(rows.tolist()), start_ns, end_ns))
        if self.fail:
            self.fail -= 1
            raise OperatorError("two workers were lost")
        if self.hangs:
            await asyncio.Event().wait()
        numbers = None if rows is None else set(objects.columns.catalog_number[rows].tolist())
        return Found(
            [
                each
                for each in self.found
                if start_ns <= each.tca_timestamp < end_ns
                and (numbers is None or numbers & {each.catalog_number_first, each.catalog_number_second})
            ],
            slow_pairs={(1, 2), (3, 4)},
            unscreened=("object 7 has decayed",),
        )


@dataclass
class Scene:
    """A graph of the source and a sink, on a table that outlives it."""

    table: ConjunctionTable
    catalog: Catalog = field(default_factory=Catalog)
    screener: Screener = field(default_factory=Screener)
    clock: ManualClock = field(default_factory=lambda: ManualClock(now_ns=NOW))
    sink: CollectSink = field(default_factory=CollectSink)
    graph: BuiltGraph | None = None

    async def run(self, during: Callable[[], Coroutine[None, None, None]]) -> events.SupervisorEvent:
        graph = OperatorGraph("screening")
        source = graph.add_source(
            "screen",
            screen_conjunctions(self.catalog, self.screener, self.table, ScreeningRules(plan=PLAN)),
            restart_policy=RestartPolicy.bounded(
                5, timedelta(seconds=60), backoff=Backoff(timedelta(milliseconds=1), timedelta(milliseconds=1))
            ),
        )
        graph.connect(source, graph.add_sink("sink", self.sink), 8)

        async def conduct(built: BuiltGraph) -> None:
            self.graph = built
            await during()
            built.request_shutdown("the test is over")

        event = await run_graph(graph, clock=self.clock, during=conduct)
        assert event.figures.ledger_holds, event.figures.violations
        return event

    @property
    def updates(self) -> list[ConjunctionUpdate]:
        return self.sink.items

    async def received(self, count: int) -> None:
        await eventually(lambda: len(self.updates) >= count, f"{count} updates")

    async def idle(self, screenings: int) -> None:
        """Wait until so many screenings are done, and the source waits for time to pass."""
        assert self.graph is not None
        graph = self.graph
        await eventually(
            lambda: counter(graph, "screenings", "screen") == screenings and len(self.clock.pending_timers) > 0,
            "an idle source",
        )

    async def later(self, seconds: float) -> None:
        """Move the time on when the source waits."""
        await eventually(lambda: bool(self.clock.pending_timers), "a timer")
        await self.clock.advance_when_idle(seconds)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(ConjunctionTable(tmp_path / "conjunctions.sqlite"))


def key(update: ConjunctionUpdate) -> tuple[str, int, str]:
    return str(update.conjunction_id), update.revision, update.status


async def test_everything_is_screened_at_the_start_and_each_conjunction_is_sent_on(scene: Scene) -> None:
    scene.screener.found = [estimate(5, 9, tca_ns=T0 + 2 * HOUR), estimate(6, 7, tca_ns=T0 + 5 * HOUR)]

    async def during() -> None:
        await scene.received(2)

    event = await scene.run(during)
    assert scene.screener.calls == [ALL]
    assert [(u.catalog_number_first, u.revision, u.status) for u in scene.updates] == [
        (5, 1, "active"),
        (6, 1, "active"),
    ]
    assert event.figures.ledger.ingested == event.figures.ledger.written == 2
    figures = event.figures.counters["screen"]
    assert {name: figures[name] for name in ("conjunctions", "screenings", "rescreenings", "slow_pairs")} == {
        "conjunctions": 2,
        "screenings": 1,
        "rescreenings": 0,
        "slow_pairs": 2,
    }
    assert figures["unscreened_objects"] == 1


async def test_a_new_catalogue_screens_the_changed_objects_only(scene: Scene) -> None:
    first, second, third = scene.catalog.numbers[:3]
    scene.screener.found = [
        estimate(first, third, tca_ns=T0 + 2 * HOUR),
        estimate(second, third, tca_ns=T0 + 3 * HOUR),
    ]

    async def during() -> None:
        await scene.received(2)
        await scene.idle(1)
        # The approach of the second one is not there any more; the other one has moved by two seconds.
        scene.screener.found = [estimate(first, third, tca_ns=T0 + 2 * HOUR + 2 * 10**9, epoch_ns=T0)]
        scene.catalog.move(
            [row for row, each in enumerate(scene.catalog.sets) if each.catalog_number in (first, second)]
        )
        await scene.received(4)

    await scene.run(during)
    assert scene.screener.calls == [ALL, ((0, 1), T0, T0 + 9 * HOUR)]
    before, after = scene.updates[:2], scene.updates[2:]
    assert sorted(map(key, after)) == sorted(
        [(str(before[0].conjunction_id), 2, "active"), (str(before[1].conjunction_id), 2, "withdrawn")]
    )


async def test_a_conjunction_of_an_object_that_leaves_the_catalogue_is_withdrawn_with_that_reason(scene: Scene) -> None:
    first, second, third, fourth = scene.catalog.numbers[:4]
    scene.screener.found = [
        estimate(first, second, tca_ns=T0 + 2 * HOUR),
        estimate(third, fourth, tca_ns=T0 + 2 * HOUR),
    ]

    async def during() -> None:
        await scene.received(2)
        await scene.idle(1)
        scene.screener.found = []
        scene.catalog.remove(second)
        await scene.received(3)
        await scene.idle(2)

    await scene.run(during)
    (withdrawn,) = scene.updates[2:]
    assert key(withdrawn) == (str(scene.updates[0].conjunction_id), 2, "withdrawn")
    assert withdrawn.reason == "left_catalog"


async def test_a_new_catalogue_with_many_changes_screens_everything(scene: Scene) -> None:
    async def during() -> None:
        await scene.idle(1)
        scene.catalog.move(range(4))
        await scene.idle(2)

    event = await scene.run(during)
    assert scene.screener.calls == [ALL, ALL]
    assert event.figures.counters["screen"]["rescreenings"] == 1


async def test_time_brings_the_next_window_and_ends_what_is_over(scene: Scene) -> None:
    scene.screener.found = [estimate(5, 9, tca_ns=T0 + 2 * HOUR), estimate(6, 7, tca_ns=T0 + 10 * HOUR)]

    async def during() -> None:
        await scene.received(1)
        for _ in range(121):
            await scene.later(60.0)
        await scene.idle(2)
        await scene.received(3)

    await scene.run(during)
    assert scene.screener.calls == [ALL, ("all", T0 + 9 * HOUR - 40 * MINUTE, T0 + 12 * HOUR)]
    assert sorted((u.catalog_number_first, u.revision, u.status) for u in scene.updates) == [
        (5, 1, "active"),
        (5, 2, "passed"),
        (6, 1, "active"),
    ]


async def test_a_failed_screening_is_repeated_and_sends_nothing_twice(scene: Scene) -> None:
    scene.screener.found = [estimate(5, 9, tca_ns=T0 + 2 * HOUR)]

    async def during() -> None:
        await scene.received(1)
        await scene.idle(1)
        scene.screener.fail = 1
        scene.screener.found = [estimate(5, 9, tca_ns=T0 + 2 * HOUR, epoch_ns=T0)]
        scene.catalog.move(range(4))
        await eventually(lambda: len(scene.screener.calls) == 2, "the failed screening")
        await eventually(lambda: bool(scene.clock.pending_timers), "the backoff")
        await scene.later(1.0)
        await scene.received(2)

    event = await scene.run(during)
    assert scene.screener.calls == [ALL, ALL, ALL]
    assert event.figures.restarts["screen"].total == 1
    assert [(u.revision, u.status) for u in scene.updates] == [(1, "active"), (2, "active")]


async def test_the_age_of_the_last_screening_is_known_before_the_first_has_succeeded(scene: Scene) -> None:
    """An alert on it must also fire if no screening ever succeeds."""
    scene.screener.fail = 1
    scene.screener.hangs = True

    async def during() -> None:
        await eventually(lambda: len(scene.screener.calls) == 1, "the failed screening")
        await eventually(lambda: bool(scene.clock.pending_timers), "the backoff")
        await scene.later(5.0)
        await eventually(lambda: len(scene.screener.calls) == 2, "the next one")
        assert scene.graph is not None
        assert counter(scene.graph, "last_screening_age_s", "screen") == 5

    await scene.run(during)


async def test_a_shutdown_ends_a_screening_at_once(scene: Scene) -> None:
    scene.screener.hangs = True

    async def during() -> None:
        await eventually(lambda: bool(scene.screener.calls), "a screening")

    event = await scene.run(during)
    assert isinstance(event, events.ShutDown)
    assert event.figures.stragglers == ()
    assert event.figures.counters["screen"]["screenings"] == 0


async def test_the_next_process_sends_what_no_sink_has_confirmed(scene: Scene) -> None:
    scene.screener.found = [estimate(5, 9, tca_ns=T0 + 2 * HOUR), estimate(6, 7, tca_ns=T0 + 5 * HOUR)]

    async def during() -> None:
        await scene.received(2)

    await scene.run(during)
    first = scene.updates
    scene.table.open()
    confirming(scene.table)(first[:1])
    scene.table.close()
    again = Scene(scene.table, screener=scene.screener)

    async def until_idle() -> None:
        await again.received(1)
        await again.idle(1)

    await again.run(until_idle)
    assert again.updates == first[1:]  # the same id and revision, and nothing new from the same element sets


async def test_a_process_without_the_table_of_the_first_one_makes_the_same_ids(tmp_path: Path) -> None:
    """From other element sets, and in another order."""
    found = [estimate(5, 9, tca_ns=T0 + 2 * HOUR), estimate(6, 7, tca_ns=T0 + 5 * HOUR)]
    ids = []
    for number, listed in enumerate((found, found[::-1])):
        other = Scene(ConjunctionTable(tmp_path / f"{number}.sqlite"))
        other.screener.found = [
            replace(each, tca_timestamp=each.tca_timestamp + (1 + number) * 10**9, epoch_first_timestamp=T0 + number)
            for each in listed
        ]
        await other.run(partial(other.received, 2))
        ids.append([each.conjunction_id for each in other.updates])
    assert ids[0] == ids[1]


async def test_updates_in_the_audit_are_confirmed_and_never_sent_again(scene: Scene, tmp_path: Path) -> None:
    scene.screener.found = [estimate(5, 9, tca_ns=T0 + 2 * HOUR), estimate(6, 7, tca_ns=T0 + 5 * HOUR)]
    sink = audit_sink(Audit(directory=tmp_path / "audit", commit_every=timedelta(0)), on_commit=confirming(scene.table))
    graph = OperatorGraph("screening")
    settings = ScreeningRules(plan=PLAN)
    source = graph.add_source("screen", screen_conjunctions(scene.catalog, scene.screener, scene.table, settings))
    graph.connect(source, graph.add_sink("sink", sink), 8)

    async def during(built: BuiltGraph) -> None:
        await eventually(lambda: counter(built, "rows", "sink") == 2, "both rows")
        built.request_shutdown("the test is over")

    await run_graph(graph, clock=scene.clock, during=during)
    scene.table.open()
    assert scene.table.undelivered(0, 10) == []
    scene.table.close()
    assert len(list((tmp_path / "audit" / "conjunctions").rglob("*.parquet"))) >= 1


def test_updates_that_cannot_be_confirmed_are_logged_and_are_no_failure_of_the_sink(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The table is not open: as if it was damaged, or another program had locked it."""
    table = ConjunctionTable(tmp_path / "conjunctions.sqlite")
    table.open()
    table.record([estimate(tca_ns=NOW + HOUR)], Screened(T0, T0 + 9 * HOUR), NOW)
    updates = table.undelivered(0, 10)
    table.close()
    confirming(table)(updates)
    assert "updates that are on the disk are not confirmed" in caplog.text
    table.open()
    assert table.undelivered(0, 10) == updates
    table.close()


def test_the_nearest_element_set_of_each_object_is_screened_in_the_order_of_catalogue_numbers() -> None:
    old, new = (synthetic_catalog(objects=5, epoch_ns=T0 + days * 24 * HOUR) for days in (-3, 0))
    sets = [*reversed(new), *old]
    objects = newest_objects(Version(1, sets, ElementColumns.of(sets)), T0)
    assert (np.diff(objects.columns.catalog_number) > 0).all()
    by_number = {each.catalog_number: each for each in new}
    assert [by_number[n].name for n in objects.columns.catalog_number.tolist()] == list(objects.names)
    newest_ns = {each.catalog_number: ElementColumns.of([each]).epoch_ns[0] for each in new}
    assert objects.columns.epoch_ns.tolist() == [newest_ns[n] for n in objects.columns.catalog_number.tolist()]
