"""The feeds of ``sda-fusion`` as sources that send watermarks. No Prefect here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from operator import attrgetter

from flows.settings.feed_time import FeedTimeSettings
from flows.settings.fusion import NamedIslSettings, NamedOpticalSettings, TimedRadarSettings
from flows.settings.sections import ValidationSettings
from flows.topologies.from_settings import isl_feed, optical_feed, radar_feed
from orchestrator_adapter import Factory
from sda_ops.event_time.metrics import EventTimeMetrics
from sda_ops.event_time.promises import PromiseRules, ReadOrder
from sda_ops.event_time.source import OnContact, TimesOf, watermarked
from sda_ops.records.observation import Observation
from sda_ops.sources.isl import isl_source
from sda_ops.sources.optical import optical_source
from sda_ops.sources.radar import radar_source


@dataclass(frozen=True, slots=True)
class WatermarkedFeeds:
    """Makes the sources.

    Attributes:
        validation: Its clock offsets are subtracted before the promises are made, as ``normalize`` does behind the
            sources. If the feeds are replays, they have their own time.
        metrics: Of all sources.
    """

    validation: ValidationSettings
    metrics: EventTimeMetrics | None = None

    def radar(self, radar: TimedRadarSettings) -> Factory:
        """A socket: one queue."""
        feed = radar_feed(radar)
        rules = self._rules(radar, ReadOrder.ARRIVAL)
        return self._watermarked(lambda on_contact: radar_source(feed, on_contact=on_contact), rules)

    def optical(self, optical: NamedOpticalSettings) -> Factory:
        """An archive, which is read in the order of the measurements."""
        feed = optical_feed(optical)
        rules = self._rules(optical, ReadOrder.EVENT_TIME)
        return self._watermarked(lambda on_contact: optical_source(feed, on_contact=on_contact), rules)

    def isl(self, isl: NamedIslSettings) -> Factory:
        """Connections, which are read in turn. A silent one counts for as long as an observation may be late."""
        feed = isl_feed(isl)
        rules = self._rules(isl, ReadOrder.ANY)
        return self._watermarked(
            lambda on_contact: isl_source(feed, on_contact=on_contact, live_for=rules.max_lateness), rules
        )

    def replay(self, replay: Factory) -> Factory:
        """Files, merged in time order. Its time is its own, and everything waits for it until it ends."""
        rules = PromiseRules(
            max_lateness=timedelta(0),
            order=ReadOrder.EVENT_TIME,
            order_slack=self._order_slack,
            own_time=True,
            idle_after=None,
        )
        return self._watermarked(lambda _: replay, rules)

    def _watermarked(self, make: Callable[[OnContact], Factory], rules: PromiseRules) -> Factory:
        return watermarked(make, rules, times_of=times_of_sensors(self.validation), metrics=self.metrics)

    def _rules(self, feed: FeedTimeSettings, order: ReadOrder) -> PromiseRules:
        return PromiseRules(
            max_lateness=timedelta(seconds=feed.lateness_s),
            clock_error=timedelta(seconds=feed.error_s),
            order=order,
            order_slack=self._order_slack,
            own_time=self.validation.replay,
            idle_after=timedelta(seconds=feed.idle_s),
        )

    @property
    def _order_slack(self) -> timedelta:
        """How far subtracted clock offsets may change the order of the observations of one feed."""
        offsets_ns = (0, *self.validation.clock_offset_ns.values())
        return timedelta(microseconds=-((min(offsets_ns) - max(offsets_ns)) // 1_000))


def times_of_sensors(validation: ValidationSettings) -> TimesOf:
    """The event time of an observation, with the known clock offset of its sensor subtracted, and its arrival."""
    offsets_ns = {source: offset for source, offset in validation.clock_offset_ns.items() if offset}
    return _times_with(offsets_ns) if offsets_ns else attrgetter("sensor_timestamp", "ingest_timestamp")


def _times_with(offsets_ns: Mapping[str, int]) -> TimesOf:
    def times_of(observation: Observation) -> tuple[int, int]:
        offset_ns = offsets_ns.get(observation.source_id, 0)
        return observation.sensor_timestamp - offset_ns, observation.ingest_timestamp

    return times_of
