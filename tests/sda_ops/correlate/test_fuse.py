"""The ``fuse`` operator in running graphs."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from itertools import permutations
from typing import Any
from unittest.mock import patch
from uuid import UUID, uuid5

import pytest
from prometheus_client.registry import Collector

from orchestrator_adapter import BuiltGraph, Control, DeadLetterList, OperatorError, WiredEnds, source_of
from orchestrator_adapter.testing import CollectSink, ListSource, ManualClock, Pause, run_graph
from sda_ops.astro.time import NS_PER_S
from sda_ops.correlate.fuse import FusionWindows, fuse
from sda_ops.event_time.metrics import EventTimeMetrics
from sda_ops.event_time.watermark import Watermark
from sda_ops.records.correlation import Contribution, Correlation, CrossSensorUpdate, Residuals
from tests.helpers.running import NOON_NS, Fault, eventually
from tests.scenes.operators import correlations_of, fusing, updates_of
from tests.scenes.windows import correlation, effective_updates

TWO_SECONDS = FusionWindows(
    gap=timedelta(seconds=2), longest=timedelta(seconds=10), allowed_lateness=timedelta(seconds=5)
)


def mark(at_s: float | None) -> Watermark:
    return Watermark(None if at_s is None else NOON_NS + round(at_s * NS_PER_S), "merge")


def radar(observation: int, at_s: float, number: int = 27386, **others: Any) -> Correlation:
    return correlation(number, "radar-1", observation=observation, at_s=at_s, **others)


def telescope(observation: int, at_s: float, number: int = 27386, **others: Any) -> Correlation:
    return correlation(number, "optical-1", observation=observation, at_s=at_s, **others)


def isl(observation: int, at_s: float, number: int = 27386, **others: Any) -> Correlation:
    return correlation(number, "isl-1", observation=observation, at_s=at_s, **others)


async def fused(
    items: Sequence[Correlation | Control],
    windows: FusionWindows = TWO_SECONDS,
    *,
    metrics: EventTimeMetrics | None = None,
    dead_letters: DeadLetterList | None = None,
) -> tuple[list[Any], Any]:
    """What the operator sends for these items, with the run's figures. The ledger holds."""
    sink = CollectSink(controls=True)
    graph = fusing(source_of(items), fuse(windows, metrics=metrics), sink=sink)
    event = await run_graph(graph, clock=ManualClock(), dead_letters=dead_letters)
    assert event.figures.ledger_holds
    return sink.items, event.figures


def kinds(items: Sequence[Any]) -> list[str]:
    return ["retraction" if getattr(item, "retracted", False) else type(item).__name__ for item in items]


async def test_two_sensors_that_observe_one_object_in_one_window_give_one_update_when_the_mark_closes_it() -> None:
    """The window ends a gap after its last observation. A mark one nanosecond before does not close it."""
    first = radar(7, 0.0, ingested_ns=NOON_NS + 90)
    second = telescope(5, 1.5, ingested_ns=NOON_NS + 50)
    before, at = Watermark(mark(3.5).time_ns - 1, "merge"), mark(3.5)  # type: ignore[operator] # not idle
    items, figures = await fused([second, before, first, at])
    update = items[3]
    assert items == [second, before, first, update, at]
    assert update == CrossSensorUpdate(
        update.update_id,
        27386,
        NOON_NS,
        NOON_NS + 3_500_000_000,
        (
            Contribution(first.observation_id, "radar-1", first.sensor_timestamp, Residuals(range_m=7.0)),
            Contribution(second.observation_id, "optical-1", second.sensor_timestamp, Residuals(range_m=5.0)),
        ),
        NOON_NS + 50,
        retracted=False,
    )
    assert (figures.ledger.derived, figures.ledger.absorbed) == (1, 0)


async def test_marks_are_passed_on_behind_what_they_close() -> None:
    """An idle mark, and one that closes nothing, are passed on as well."""
    items, _ = await fused([radar(1, 0), mark(None), telescope(2, 1), mark(2), mark(20), radar(3, 21), mark(30)])
    assert kinds(items) == [
        *("Correlation", "Watermark", "Correlation", "Watermark", "CrossSensorUpdate", "Watermark"),
        *("Correlation", "Watermark"),
    ]


async def test_observations_belong_together_by_the_times_of_the_sensors_not_by_their_arrival() -> None:
    """Three observations, 10 ms apart, that arrive 0.08, 10 and 30 s after they were made, are one update."""
    items, _ = await fused(
        [radar(1, 14.0), mark(-16.0), telescope(2, 14.010), radar(3, 14.020), mark(16.019), mark(16.020)]
    )
    (update,) = updates_of(items)
    assert [each.sensor_timestamp - NOON_NS for each in update.contributions] == [
        14_000_000_000,
        14_010_000_000,
        14_020_000_000,
    ]


async def test_one_sensor_alone_gives_no_update() -> None:
    """However often it observes the object."""
    items, figures = await fused([radar(n, n / 10) for n in range(1, 20)])
    assert (updates_of(items), figures.ledger.derived) == ([], 0)


@pytest.mark.parametrize("association", ["ambiguous", "uct", "unpredicted"])
async def test_observations_without_an_object_are_passed_on_and_are_in_no_window(association: Any) -> None:
    """Both sensors, at one time."""
    undecided = [radar(1, 0, association=association), telescope(2, 0, association=association)]
    items, figures = await fused([*undecided, mark(60)])
    assert items == [*undecided, mark(60)]
    assert figures.counters["fuse"]["late"] == 0


async def test_a_late_observation_retracts_the_update_and_inserts_the_new_one() -> None:
    """The retraction has the first update's id and content; the new one has all three observations."""
    items, figures = await fused([radar(1, 0), telescope(2, 1), mark(3), radar(3, 0.5), mark(4)])
    assert kinds(items) == [
        *("Correlation", "Correlation", "CrossSensorUpdate", "Watermark"),
        *("Correlation", "retraction", "CrossSensorUpdate", "Watermark"),
    ]
    first, retraction, second = updates_of(items)
    assert (retraction.update_id, retraction.contributions) == (first.update_id, first.contributions)
    assert [each.observation_id.int for each in second.contributions] == [1, 3, 2]
    assert effective_updates(items) == {second.update_id: second}
    counters = figures.counters["fuse"]
    assert {name: counters[name] for name in ("updates", "retractions", "late_amended", "late")} == {
        "updates": 2,
        "retractions": 1,
        "late_amended": 1,
        "late": 0,
    }


async def test_a_late_observation_that_joins_two_windows_retracts_both() -> None:
    """[0, 1] and [3.5, 4] become one window; two retractions come before the one insertion."""
    items, _ = await fused([radar(1, 0), telescope(2, 1), radar(3, 3.5), telescope(4, 4), mark(6), radar(5, 2.0)])
    assert kinds(items)[-4:] == ["Correlation", "retraction", "retraction", "CrossSensorUpdate"]
    (update,) = effective_updates(items).values()
    assert [each.observation_id.int for each in update.contributions] == [1, 2, 5, 3, 4]


async def test_an_update_with_the_content_of_a_retracted_one_has_an_id_of_its_own() -> None:
    """Late observations in front shift where the longest window is cut: [a b] is split, and later whole again."""
    windows = FusionWindows(
        gap=timedelta(seconds=8), longest=timedelta(seconds=10), allowed_lateness=timedelta(seconds=60)
    )
    items, _ = await fused([radar(1, 10), telescope(2, 15), mark(30), radar(3, 4.5), radar(4, -2), mark(31)], windows)
    assert kinds(updates_of(items)) == ["CrossSensorUpdate", "retraction", "CrossSensorUpdate"]
    first, _, again = updates_of(items)
    assert first.contributions == again.contributions
    assert first.update_id != again.update_id
    assert list(effective_updates(items).values()) == [again]


async def test_the_same_observations_have_the_same_update_id_in_every_process() -> None:
    """In any order of arrival; the id is pinned, because the audit's rows of earlier versions have it."""
    one, _ = await fused([radar(1, 0), telescope(2, 1)])
    other, _ = await fused([telescope(2, 1), radar(1, 0)])
    assert [each.update_id for each in updates_of(one)] == [each.update_id for each in updates_of(other)]
    namespace = UUID("6f1c1a52-6f0b-5c39-9f43-3f4f6b8a2c11")
    assert updates_of(one)[0].update_id == uuid5(namespace, f"27386 {UUID(int=1)} {UUID(int=2)}")


@pytest.mark.parametrize("policy", ["count", "dead_letter"])
async def test_an_observation_that_is_too_late_is_passed_on_and_is_in_no_update(policy: Any) -> None:
    """``dead_letter``: a dead letter has it as well, and is a derived item of the ledger. The update is not changed."""
    letters = DeadLetterList()
    windows = FusionWindows(allowed_lateness=timedelta(seconds=5), late=policy)
    late = radar(3, 0.5)
    items, figures = await fused([radar(1, 0), telescope(2, 1), mark(8), late, mark(60)], windows, dead_letters=letters)
    (update,) = updates_of(items)
    assert len(update.contributions) == 2
    assert late in correlations_of(items)
    assert figures.counters["fuse"]["late"] == 1
    ledger = figures.ledger
    if policy == "count":
        assert (ledger.dead_lettered, ledger.derived, list(letters.letters)) == (0, 1, [])
    else:
        assert (ledger.dead_lettered, ledger.derived) == (1, 2)
        (letter,) = letters.letters
        assert letter.payload == late
        assert letter.message == (
            "too late: 7.500 s before the watermark, and the window of object 27386 is released; "
            "the correlation is passed on, and is in no cross-sensor update"
        )


async def test_the_cap_closes_the_oldest_window_early_and_counts_it() -> None:
    """Ten objects, and room for four correlations: six windows close early, with what they have."""
    windows = FusionWindows(max_held=4)
    pairs = [item for n in range(5) for item in (radar(2 * n, n, n), telescope(2 * n + 1, n, n))]
    items, figures = await fused(pairs, windows)
    assert len(updates_of(items)) == 5
    assert (figures.counters["fuse"]["closed_early"], figures.counters["fuse"]["late_amended"]) == (3, 0)
    assert figures.counters["fuse"]["held"] == 0
    whole, _ = await fused(pairs)
    assert effective_updates(items) == effective_updates(whole)


async def test_the_windows_outlive_the_instance() -> None:
    """Correlations before a restart and after it still make one update for each object."""
    clock, sink, fault = ManualClock(), CollectSink(), Fault(fuse(TWO_SECONDS))
    first, second = [radar(n, 0, n) for n in range(1, 4)], [telescope(10 + n, 1, n) for n in range(1, 4)]
    source = ListSource(first, Pause(timedelta(minutes=1)), second)

    async def strike(_: BuiltGraph) -> None:
        await eventually(lambda: len(sink.items) == 3, "the first sensor's correlations arrive")
        fault.strike()
        await clock.advance_when_idle(5.0)  # the longest backoff
        await eventually(lambda: fault.instances == 2, "the operator is restarted")
        await clock.advance_when_idle(60.0)

    event = await run_graph(fusing(source, fault, sink=sink), clock=clock, during=strike)
    assert event.figures.restarts["fuse"].total == 1
    assert correlations_of(sink.items) == [*first, *second]
    assert [len(update.contributions) for update in updates_of(sink.items)] == [2, 2, 2]
    assert event.figures.ledger_holds


class Failing(DeadLetterList):
    """A store that fails at its first letter."""

    failures = 1

    def append(self, letters: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise OperatorError("the disk is full")
        super().append(letters)


@pytest.mark.parametrize("last", list(permutations([radar(3, 0.5), radar(4, -20)])))
async def test_a_failure_within_a_batch_loses_no_retraction_and_no_update(last: tuple[Correlation, ...]) -> None:
    """The dead letter of one item fails. The other one, which has amended a window, is redelivered, and is a duplicate then."""
    windows = FusionWindows(allowed_lateness=timedelta(seconds=5), late="dead_letter")
    sink, clock = CollectSink(), ManualClock()
    sent = [radar(1, 0), telescope(2, 1), radar(9, -9, 4), mark(7), *last]
    graph = fusing(source_of(sent), fuse(windows), sink=sink)

    async def strike(_: BuiltGraph) -> None:
        await clock.advance_when_idle(5.0)

    event = await run_graph(graph, clock=clock, dead_letters=Failing(), during=strike)
    assert event.figures.restarts["fuse"].total == 1
    assert event.figures.ledger_holds
    (update,) = effective_updates(sink.items).values()
    assert [each.observation_id.int for each in update.contributions] == [1, 3, 2]


@pytest.mark.parametrize("call", range(1, 8))
async def test_a_failure_before_any_commit_changes_no_update(call: int) -> None:
    """What was read is delivered again, marks included; what the windows had reported before is not lost."""
    sent: list[Correlation | Control]
    sent = [radar(1, 0), telescope(2, 1), mark(3), radar(3, 0.5), mark(4), telescope(4, 1.5), mark(6), radar(5, 9)]
    whole, _ = await fused(sent)
    calls, sound, clock, sink = 0, WiredEnds.commit, ManualClock(), CollectSink(controls=True)

    def failing(self: WiredEnds, outputs: Sequence[Any], *, acknowledge: int) -> None:
        nonlocal calls
        calls += self.name == "fuse"
        if self.name == "fuse" and calls == call:
            raise OperatorError("away")
        sound(self, outputs, acknowledge=acknowledge)

    async def strike(_: BuiltGraph) -> None:
        await clock.advance_when_idle(5.0)

    with patch.object(WiredEnds, "commit", failing):
        event = await run_graph(fusing(source_of(sent), fuse(TWO_SECONDS), sink=sink), clock=clock, during=strike)
    assert event.figures.restarts["fuse"].total == 1
    assert event.figures.ledger_holds
    assert effective_updates(sink.items) == effective_updates(whole)
    assert [each for each in sink.items if isinstance(each, Control)] == [
        each for each in sent if isinstance(each, Control)
    ]
    assert correlations_of(sink.items) == correlations_of(sent)


async def test_the_metrics_have_the_tiers_the_late_items_the_retractions_and_the_lag() -> None:
    """After an amendment and an observation that is too late."""
    metrics = EventTimeMetrics(operators=["fuse"])
    then_ns = ManualClock().now_ns() - NS_PER_S
    late = [radar(3, 0.5, ingested_ns=then_ns), radar(4, -20, ingested_ns=then_ns)]
    await fused([telescope(1, 0), telescope(6, 1), isl(2, 1), mark(3), *late, mark(4)], metrics=metrics)
    assert sample(metrics, "late_items_total", outcome="amended") == 1
    assert sample(metrics, "late_items_total", outcome="dropped") == 1
    assert sample(metrics, "retractions_emitted_total") == 1
    assert sample(metrics, "pending_windows", tier="active") == 0
    assert sample(metrics, "pipeline_watermark_seconds") == NOON_NS / NS_PER_S + 4
    assert sample(metrics, "pipeline_lag_seconds_count", source="radar") == 2
    assert sample(metrics, "pipeline_lag_seconds_sum", source="radar") == 2.0


def sample(metrics: Collector, name: str, **labels: str) -> float:
    """The one sample of this name with these labels."""
    (value,) = (
        each.value
        for family in metrics.collect()
        for each in family.samples
        if each.name == name and labels.items() <= each.labels.items()
    )
    return value


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"gap": timedelta(0)}, "FusionWindows: gap must be > 0, got datetime.timedelta(0)"),
        (
            {"gap": timedelta(seconds=2), "longest": timedelta(seconds=1)},
            "FusionWindows: longest must be >= gap = 0:00:02, got datetime.timedelta(seconds=1)",
        ),
        ({"max_held": 0}, "FusionWindows: max_held must be > 0, got 0"),
    ],
)
def test_bounds_that_make_no_windows_are_rejected(wrong: dict[str, Any], message: str) -> None:
    """The message has the bound and the value."""
    with pytest.raises(ValueError, match="FusionWindows") as caught:
        FusionWindows(**wrong)
    assert str(caught.value) == message
