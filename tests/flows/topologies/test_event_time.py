"""The sources of ``sda-fusion`` with the rules that follow from its settings."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from pydantic import ValidationError

from flows.settings.fusion import FusionSettings
from flows.topologies import event_time
from flows.topologies.event_time import WatermarkedFeeds
from flows.topologies.fusion import build_topology, orbits_of
from orchestrator_adapter import source_of
from sda_ops.event_time.promises import PromiseRules, ReadOrder, SourcePromises
from sda_ops.event_time.source import TimesOf
from sda_ops.normalize import Normalizer
from tests.helpers.running import observations


def rules_of(settings: FusionSettings) -> dict[str, tuple[PromiseRules, TimesOf]]:
    """What each source is wrapped with, by the kind of its feed."""
    made: list[tuple[PromiseRules, TimesOf]] = []

    def recorded(_: Any, rules: PromiseRules, *, times_of: TimesOf, metrics: Any) -> Any:
        made.append((rules, times_of))

    feeds = WatermarkedFeeds(settings.validation)
    with patch.object(event_time, "watermarked", recorded):
        feeds.radar(settings.radars[0])
        feeds.optical(settings.opticals[0])
        feeds.isl(settings.isls[0])
        feeds.replay(source_of(()))
    return dict(zip(("radar", "optical", "isl", "replay"), made, strict=True))


def test_the_default_rules_are_those_of_each_kind_of_feed() -> None:
    """Lateness, clock error, time until idle in seconds, and the order of reading."""
    rules = {kind: rules for kind, (rules, _) in rules_of(FusionSettings()).items()}
    assert {
        kind: (it.max_lateness.total_seconds(), it.clock_error.total_seconds(), it.order) for kind, it in rules.items()
    } == {
        "radar": (0.1, 0.011, ReadOrder.ARRIVAL),
        "optical": (30.0, 0.011, ReadOrder.EVENT_TIME),
        "isl": (10.0, 0.36, ReadOrder.ANY),
        "replay": (0.0, 0.0, ReadOrder.EVENT_TIME),
    }
    idle_after = [it.idle_after for it in rules.values()]
    assert idle_after == [*(timedelta(seconds=seconds) for seconds in (15, 45, 30)), None]
    assert [it.own_time for it in rules.values()] == [False, False, False, True]


def test_an_archive_that_is_polled_seldom_may_be_later_and_is_idle_later() -> None:
    """One poll every two minutes with a retry after up to 15 s: 120 + 5 + 15 s, and twice that."""
    settings = FusionSettings.model_validate(
        {"opticals": [{"name": "optical-01", "url": "http://127.0.0.1:1/o", "poll_interval_s": 120}]}
    )
    rules, _ = rules_of(settings)["optical"]
    assert (rules.max_lateness, rules.idle_after) == (timedelta(seconds=140), timedelta(seconds=280))


def test_the_settings_of_a_feed_replace_the_defaults() -> None:
    radar = {"name": "radar-01", "port": 1, "max_lateness_s": 0.25, "clock_error_s": 0.0, "idle_after_s": 60}
    rules, _ = rules_of(FusionSettings.model_validate({"radars": [radar]}))["radar"]
    assert rules.max_lateness == timedelta(milliseconds=250)
    assert (rules.clock_error, rules.idle_after) == (timedelta(0), timedelta(minutes=1))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"max_lateness": 1}, "max_lateness"),
        ({"max_lateness_s": 0}, "greater than or equal to 0.001"),
        ({"clock_error_s": -1}, "greater than or equal to 0"),
    ],
)
def test_a_setting_that_does_not_exist_or_is_out_of_bounds_is_named(setting: dict[str, float], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        FusionSettings.model_validate({"radars": [{"name": "radar-01", "port": 1, **setting}]})


@given(
    offsets_ns=st.lists(st.integers(-(10**9), 10**9), min_size=3, max_size=3),
    seconds=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3 * 10**9)), min_size=1, max_size=8),
)
def test_an_archives_mark_holds_for_times_with_their_clock_offsets_subtracted(
    offsets_ns: Sequence[int], seconds: Sequence[tuple[int, int]]
) -> None:
    """Three telescopes; the archive serves them in the order of their own clocks, and windows use the corrected times."""
    names = ["optical-1", "optical-2", "optical-3"]
    offsets = dict(zip(names, offsets_ns, strict=True))
    settings = FusionSettings.model_validate({"validation": {"clock_offset_ns": offsets}})
    rules, times_of = rules_of(settings)["optical"]
    normalize = Normalizer(clock_offset_ns=offsets)
    promises = SourcePromises(rules, "optical", now_s=0.0)
    arrived_ns = 10**18 + 2 * 10**9  # some are dated later than this
    newest_ns = 0
    for at, raw_ns in sorted(seconds, key=lambda pair: pair[1]):
        raw_ns += 10**18  # noqa: PLW2901 - a time that an observation may have
        # What the source promises of its own: nothing before the newest entry that is not in the future.
        template = observations(1)[0]
        observation = replace(template, source_id=names[at], sensor_timestamp=raw_ns, ingest_timestamp=arrived_ns)
        event_ns, ingest_ns = times_of(observation)
        promises.emitted([event_ns], [ingest_ns], now_s=0.0)
        newest_ns = max(newest_ns, raw_ns) if raw_ns <= arrived_ns else newest_ns
        for name in names:  # the earliest that may still come, from any telescope
            earliest = normalize(replace(template, source_id=name, sensor_timestamp=newest_ns))
            assert promises.promised_ns is None or earliest.sensor_timestamp >= promises.promised_ns


def test_every_source_of_observations_is_watermarked_and_the_fan_in_knows_it() -> None:
    """Eight sources: none reaches the fan-in without marks, which would hold it for ever."""
    wrapped: list[str] = []

    def recorded(make: Any, rules: PromiseRules, **_: Any) -> Any:
        wrapped.append(rules.order)
        return source_of(())

    settings = FusionSettings()
    with patch.object(event_time, "watermarked", recorded):
        plan = build_topology(settings, orbits_of(settings)).validate()
    sources = [str(edge.id) for edge in plan.edges if str(edge.id).endswith("-> merge")]
    assert len(wrapped) == len(sources) == 8
    assert [source.split(" ")[0] for source in sources] == list(settings.source_names)
