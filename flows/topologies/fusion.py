"""``sda-fusion``: settings to a graph. No Prefect here::

radar ×3 (UDP) ────┐                                            ┌─ audit: observations (Parquet)
optical ×2 (HTTP) ─┼─ merge ── normalize ── validate ── dedup ── tee
isl ×2 (TCP) ──────┤ (least mark)                               └─ propagate ── correlate ── matched ── fuse ── correlations
replay (files) ────┘                                                  │                        │
                                                               process pool                    └─ evidence ── risk ── alerts
                                                                                                   │             (SQLite, HTTP)
catalogue ── screen ── found ── conjunctions                                                       │
                │        └─────────────────────────────────────────────────────────────────────────┘
     process pool, table (SQLite)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine, Iterable
from dataclasses import dataclass
from datetime import timedelta
from math import pi
from pathlib import Path
from typing import Any

from flows.settings.feed_time import FeedTimeSettings
from flows.settings.fusion import FusionSettings, ReplaySettings, SensorSettings, SpillSettings
from flows.settings.uncertainty import element_set_errors
from flows.topologies.alerts import Alerts, alerts_of
from flows.topologies.cluster import launcher_of
from flows.topologies.event_time import WatermarkedFeeds
from flows.topologies.from_settings import (
    FIVE_A_MINUTE,
    PATIENT,
    THREE_A_MINUTE,
    claims,
    control_plane,
    dead_letter_limits,
    supervision_policy,
    validation,
)
from flows.topologies.panels import ALERTS, OUTBOX, WATERMARKS
from flows.topologies.screening import UNTIL_IT_WORKS, CatalogScreening, screening_of
from orchestrator_adapter import (
    DeadLetterFile,
    Factory,
    FlowPolicy,
    OperatorGraph,
    RestartPolicy,
    VertexId,
    WiredEnds,
    map_items,
    merge,
    sift,
    source_of,
)
from orchestrator_adapter.bulkhead import Bulkhead
from orchestrator_adapter.process import Pipeline
from sda_ops.astro.sites import Site
from sda_ops.catalog.fetch import CatalogFile, CatalogUnavailable, CatalogUrl
from sda_ops.catalog.live import CatalogCache, LiveCatalog
from sda_ops.catalog.refreshing import keep_fresh_in_graph
from sda_ops.correlate.associate import AssociationRules, Associator
from sda_ops.correlate.fuse import fuse
from sda_ops.correlate.operator import correlate
from sda_ops.correlate.sensors import Sensor
from sda_ops.dedup import deduplicate
from sda_ops.event_time.metrics import EventTimeMetrics
from sda_ops.event_time.watermark import Watermark, least_watermark
from sda_ops.normalize import Normalizer
from sda_ops.propagation.operator import Prediction, propagate
from sda_ops.propagation.pool import PropagatorPool
from sda_ops.records.observation import Uncertainty
from sda_ops.sinks.audit import Audit, audit_sink
from sda_ops.sources.replay import ReplayFeed, replay_source
from sda_ops.wire.tdm import TdmConventions

NEVER = RestartPolicy.never()

_RAD_PER_ARCSEC = pi / (180 * 3600)
_STATELESS = "stateless: a restart loses nothing"
_LEAST_MARK = "stateless but for the marks of its inputs, which survive a restart"
_MICRO_BATCHES = "four micro-batches keep both ends busy"
_NO_GAPS = "the items that wait for one file; a slow disk holds both branches, because the audit must be complete"
_ASIDE = "a stuck propagator holds nothing: what waits for it is on disk, and the audit has what is shed"
_IRREPLACEABLE = "the audit must be complete: if it cannot be written, the run ends"


@dataclass(frozen=True, slots=True)
class Orbits:
    """The catalogue, the process pool that propagates it, and its screening, unless that is switched off."""

    catalog: LiveCatalog
    pool: Bulkhead
    propagator: PropagatorPool
    screening: CatalogScreening | None = None

    def figures(self) -> dict[str, int]:
        """The pool's figures, for metrics and the report."""
        pool = self.pool.statistics()
        return {
            "workers_alive": pool.alive,
            "worker_restarts": pool.restarts,
            "calls_answered": pool.answered,
            "calls_resubmitted": pool.resubmitted,
            "calls_lost": pool.lost,
        }


def build_topology(
    settings: FusionSettings,
    orbits: Orbits,
    *,
    alerts: Alerts | None = None,
    event_time: EventTimeMetrics | None = None,
) -> OperatorGraph:
    """The graph of ``sda-fusion``. Opens nothing. Alerts need the screening of ``orbits``."""
    graph = OperatorGraph("sda-fusion")
    least = merge(combine={Watermark: least_watermark()})
    fan_in = graph.add_fan_in("merge", least, restart_policy=FIVE_A_MINUTE, note=_LEAST_MARK)
    replayed = _replayed(settings)
    _connect_sources(graph, fan_in, settings, WatermarkedFeeds(settings.validation, event_time), replayed)

    normalizer = map_items(Normalizer(clock_offset_ns=settings.validation.clock_offset_ns))
    normalize = graph.add_operator("normalize", normalizer, restart_policy=FIVE_A_MINUTE, note=_STATELESS)
    graph.connect(fan_in, normalize, 1_024, note=_MICRO_BATCHES)
    check = graph.add_operator(
        "validate",
        sift(validation(settings.validation, replayed=replayed.__contains__)),
        restart_policy=FIVE_A_MINUTE,
        dead_letter_limits=dead_letter_limits(settings.dead_letters),
        note="stateless; if it rejects most of the stream, the deployment is wrong",
    )
    graph.connect(normalize, check, 1_024, note=_MICRO_BATCHES)
    seen = deduplicate(max_age=timedelta(seconds=settings.dedup.window_s), max_items=settings.dedup.max_ids)
    dedup = graph.add_operator(
        "dedup", seen, stateful=True, restart_policy=THREE_A_MINUTE, note="its seen-set survives a restart"
    )
    graph.connect(check, dedup, 1_024, note=_MICRO_BATCHES)
    tee = graph.add_fan_out("tee", restart_policy=FIVE_A_MINUTE, note=_STATELESS)
    graph.connect(dedup, tee, 1_024, note=_MICRO_BATCHES)
    audit = graph.add_sink("audit", _audit(settings, "observations"), restart_policy=NEVER, note=_IRREPLACEABLE)
    graph.connect(tee, audit, 16_384, note=_NO_GAPS)

    predict = graph.add_operator(
        "propagate",
        propagate(
            orbits.catalog,
            orbits.propagator,
            _prediction(settings),
            keep_fresh=_keep_fresh(settings, orbits),
            figures=orbits.figures,
        ),
        stateful=True,
        restart_policy=THREE_A_MINUTE,
        max_deliveries=5,  # a failure here comes from the pool, not from an item: the budget must be exhausted first
        note="its propagated states survive a restart; the pool itself is a bulkhead",
    )
    graph.connect(tee, predict, 16_384, policy=_spill(settings.spill), note=_ASIDE)
    associate = correlate(_associator(settings))
    find = graph.add_operator("correlate", associate, restart_policy=FIVE_A_MINUTE, note=_STATELESS)
    graph.connect(predict, find, 1_024, note=_MICRO_BATCHES)
    matched = find if alerts is None else _branching(graph, find, "matched")
    combine = graph.add_operator(
        "fuse",
        fuse(settings.event_time.windows, metrics=event_time),
        stateful=True,
        expanding=True,
        restart_policy=THREE_A_MINUTE,
        note="its windows survive a restart; updates are derived",
    )
    graph.connect(matched, combine, 1_024, note=_MICRO_BATCHES)
    store = _audit(settings, "correlations")
    correlations = graph.add_sink("correlations", store, restart_policy=NEVER, note=_IRREPLACEABLE)
    graph.connect(combine, correlations, 16_384, note="the items that wait for one file")
    if (screening := orbits.screening) is not None:
        note = "tried again without end: a screening that fails leaves no gap in the audit of the stream"
        screen = graph.add_source("screen", screening.source, restart_policy=UNTIL_IT_WORKS, endless=True, note=note)
        found = screen if alerts is None else _branching(graph, screen, "found")
        store = _conjunctions(settings, screening)
        conjunctions = graph.add_sink("conjunctions", store, restart_policy=NEVER, note=_IRREPLACEABLE)
        graph.connect(found, conjunctions, 4_096, note="the rest waits in the table")
        if alerts is not None:
            alerts.connect(graph, matched, found, _spill(settings.spill))
    return graph


def _branching(graph: OperatorGraph, upstream: VertexId, name: str) -> VertexId:
    """What comes from ``upstream``, for the audit and for the alerts."""
    branches = graph.add_fan_out(name, restart_policy=FIVE_A_MINUTE, note=_STATELESS)
    graph.connect(upstream, branches, 1_024, note=_MICRO_BATCHES)
    return branches


def _connect_sources(
    graph: OperatorGraph, fan_in: VertexId, settings: FusionSettings, feeds: WatermarkedFeeds, replayed: set[str]
) -> None:
    """The sources of observations, each with its watermarks. The replay adds its sensors to ``replayed``."""
    for radar in settings.radars:
        factory, note = feeds.radar(radar), "its socket survives a restart; more losses need attention"
        source = graph.add_source(radar.name, factory, restart_policy=FIVE_A_MINUTE, endless=True, note=note)
        graph.connect(source, fan_in, 4_096, note="8 s of one array at 500 Hz, plus the kernel's buffer")
    for optical in settings.opticals:
        factory, note = feeds.optical(optical), "it retries through an outage; other errors restart it"
        source = graph.add_source(optical.name, factory, restart_policy=PATIENT, endless=True, note=note)
        graph.connect(source, fan_in, 2_048, note="a backlog comes in pages and can wait at the archive")
    for isl in settings.isls:
        factory, note = feeds.isl(isl), "its connections survive a restart"
        source = graph.add_source(isl.name, factory, restart_policy=FIVE_A_MINUTE, endless=True, note=note)
        graph.connect(source, fan_in, 2_048, note="TCP buffers the rest")
    factory, note = feeds.replay(_replay(settings, replayed.update)), "a restart continues where it was"
    replay = graph.add_source("replay", factory, restart_policy=FIVE_A_MINUTE, note=note)
    graph.connect(replay, fan_in, 1_024, note="its files can wait")


def fusion_pipeline(settings: FusionSettings) -> Pipeline:
    """``sda-fusion`` as a pipeline: graph, process pool, dead-letter store, report, control plane, claims. Opens nothing."""
    orbits = orbits_of(settings)
    screening = orbits.screening
    event_time = EventTimeMetrics(sources=settings.source_names, operators=("fuse", "risk"))
    alerts = _alerts(settings, screening, event_time)
    return Pipeline(
        graph=build_topology(settings, orbits, alerts=alerts, event_time=event_time),
        policy=supervision_policy(settings.shutdown),
        dead_letters=lambda: DeadLetterFile(settings.dead_letters.directory),
        report=settings.report,
        control_plane=control_plane(
            settings.control_plane,
            event_time,
            *(() if alerts is None else (alerts.metrics,)),
            panels=(WATERMARKS, *(() if alerts is None else (OUTBOX, ALERTS))),
        ),
        claims=claims(
            radars=settings.radars,
            isls=settings.isls,
            control=settings.control_plane,
            places=(
                settings.audit.directory,
                settings.spill.directory,
                settings.dead_letters.directory,
                settings.report,
                *((settings.screening.directory,) if screening is not None else ()),
                *((settings.alerts.directory,) if alerts is not None else ()),
            ),
        ),
        preparations=(
            _first_catalog(orbits),
            *((screening.prepare,) if screening is not None else ()),
            *((alerts.prepare,) if alerts is not None else ()),
        ),
        bulkheads=(orbits.pool, *((screening.pool,) if screening is not None else ())),
        notices=None if alerts is None else alerts.notices,
    )


def orbits_of(settings: FusionSettings) -> Orbits:
    """The catalogue and the pools, not loaded and not started."""
    wanted = settings.propagator
    pool = Bulkhead(
        "propagator",
        "sda_ops.propagation.worker:PropagationWorker",
        workers=wanted.workers,
        answer_within=timedelta(seconds=wanted.answer_within_s),
        rebuilds=RestartPolicy.bounded(wanted.max_rebuilds, timedelta(seconds=60)) if wanted.max_rebuilds else NEVER,
        launcher=launcher_of(wanted.cluster),
    )
    catalog = LiveCatalog(
        _source(settings),
        cache=CatalogCache(settings.catalog.cache, fresh_for=settings.catalog.refresh_every),
    )
    return Orbits(
        catalog,
        pool,
        PropagatorPool(pool, engine=wanted.engine, max_age=timedelta(days=settings.catalog.max_age_days)),
        screening_of(settings.screening, catalog) if settings.screening.enabled else None,
    )


def _alerts(
    settings: FusionSettings, screening: CatalogScreening | None, event_time: EventTimeMetrics
) -> Alerts | None:
    """Conjunctions become alerts, unless that is switched off, or the screening is."""
    if screening is None or not settings.alerts.enabled:
        return None
    errors = element_set_errors(settings.screening.near_earth, settings.screening.deep_space)
    return alerts_of(settings.alerts, settings.event_time, screening.table, errors=errors, metrics=event_time)


def _spill(spill: SpillSettings) -> FlowPolicy:
    return FlowPolicy.spill(spill.directory, max_bytes=spill.max_mib << 20, when_full=spill.when_full)


def _first_catalog(orbits: Orbits) -> Callable[[], Coroutine[Any, Any, None]]:
    async def load() -> None:
        try:
            await orbits.catalog.load()
        except CatalogUnavailable as error:
            raise CatalogUnavailable(f"no catalogue to begin with (catalog.file or catalog.url): {error}") from error

    return load


def _source(settings: FusionSettings) -> CatalogFile | CatalogUrl:
    location = settings.catalog.location
    return CatalogFile(location) if isinstance(location, Path) else CatalogUrl(str(location))


def _replay(settings: FusionSettings, on_sensors: Callable[[Collection[str]], None]) -> Factory:
    replay = settings.replay
    if not replay.files:
        return source_of(())
    feed = ReplayFeed(
        paths=tuple(file.path for file in replay.files),
        pace=replay.pace or None,
        conventions_of={file.path: _conventions(replay.of_file(file)) for file in replay.files},
    )
    return replay_source(feed, on_sensors=on_sensors)


def _conventions(replay: ReplaySettings) -> TdmConventions:
    return TdmConventions(
        range_is_round_trip=replay.range_is_round_trip,
        doppler_is_round_trip=replay.doppler_is_round_trip,
        doppler_sign=replay.doppler_sign,
        uncertainty=Uncertainty(
            sigma_range_m=replay.sigma_range_m,
            sigma_range_rate_m_s=replay.sigma_range_rate_m_s,
            sigma_angle_rad=replay.sigma_angle_arcsec * _RAD_PER_ARCSEC,
        ),
    )


def _replayed(settings: FusionSettings) -> set[str]:
    """The sensors that are validated at their own time; the replay adds those of its files."""
    return {sensor.source_id for sensor in settings.known_sensors if sensor.replayed}


def _audit(settings: FusionSettings, part: str) -> Factory:
    return audit_sink(_place(settings, part))


def _conjunctions(settings: FusionSettings, screening: CatalogScreening) -> Factory:
    return audit_sink(_place(settings, "conjunctions"), on_commit=screening.confirm, measures_latency=False)


def _place(settings: FusionSettings, part: str) -> Audit:
    audit, commit_every = settings.audit, timedelta(seconds=settings.audit.commit_every_s)
    return Audit(directory=audit.directory / part, max_rows=audit.max_rows, commit_every=commit_every)


def _prediction(settings: FusionSettings) -> Prediction:
    wanted = settings.correlation
    return Prediction(errors=element_set_errors(wanted.near_earth, wanted.deep_space))


def _associator(settings: FusionSettings) -> Associator:
    wanted = settings.correlation
    rules = AssociationRules(
        gate_miss=wanted.gate_miss,
        min_probability=wanted.min_probability,
        clock_error_s={
            "radar": _stated_error_s(settings.radars),
            "optical": _stated_error_s(settings.opticals),
            "isl": _stated_error_s(settings.isls),
        },
    )
    return Associator({sensor.source_id: _sensor(sensor) for sensor in settings.known_sensors}, rules)


def _stated_error_s(feeds: Iterable[FeedTimeSettings]) -> float:
    """The largest ``clock_error_s`` that is set; 0 if none is. The defaults are bounds for watermarks: they do not widen the gate."""
    return max((feed.clock_error_s or 0.0 for feed in feeds), default=0.0)


def _sensor(sensor: SensorSettings) -> Sensor:
    site = Site.from_degrees(
        sensor.source_id,
        latitude_deg=sensor.latitude_deg,
        longitude_deg=sensor.longitude_deg,
        height_m=sensor.height_m,
    )
    arcsec = sensor.sigma_angle_arcsec
    return Sensor(site, Uncertainty(sigma_angle_rad=None if arcsec is None else arcsec * _RAD_PER_ARCSEC))


def _keep_fresh(settings: FusionSettings, orbits: Orbits) -> Callable[[WiredEnds], Coroutine[Any, Any, None]]:
    every = settings.catalog.refresh_every
    return lambda ends: keep_fresh_in_graph(orbits.catalog, every, ends)
