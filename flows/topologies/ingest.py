"""``sda-ingest``: settings to a graph. No Prefect here::

radar ×N (UDP) ──┐
optical (HTTP) ──┼─ merge ── normalize ── validate ── dedup ── event log (JSON Lines)
isl (TCP) ───────┘
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import partial

from flows.settings.ingest import IngestSettings
from flows.topologies.event_time import times_of_sensors
from flows.topologies.from_settings import (
    FIVE_A_MINUTE,
    PATIENT,
    THREE_A_MINUTE,
    claims,
    control_plane,
    dead_letter_limits,
    isl_feed,
    optical_feed,
    radar_feed,
    supervision_policy,
    validation,
)
from flows.topologies.panels import LAGS
from orchestrator_adapter import DeadLetterFile, Factory, OperatorGraph, RestartPolicy, VertexId, map_items, sift
from orchestrator_adapter.process import Pipeline
from sda_ops.dedup import deduplicate
from sda_ops.event_time.lags import with_source_lag
from sda_ops.event_time.metrics import EventTimeMetrics
from sda_ops.normalize import Normalizer
from sda_ops.sinks.event_log import EventLogFiles, event_log_sink
from sda_ops.sources.isl import isl_source
from sda_ops.sources.optical import optical_source
from sda_ops.sources.radar import radar_source


def build_topology(settings: IngestSettings, event_time: EventTimeMetrics | None = None) -> OperatorGraph:
    """The graph of ``sda-ingest``. Opens nothing. ``event_time`` gets the lags of its sources and at its end."""
    graph = OperatorGraph("sda-ingest")
    measured = _measured(settings, event_time)
    feeds: list[tuple[VertexId, int, str]] = []
    for radar in settings.radars:
        source = graph.add_source(
            radar.name,
            measured(radar_source(radar_feed(radar))),
            restart_policy=FIVE_A_MINUTE,
            endless=True,
            note="its socket survives a restart; a host that loses sockets more often needs attention",
        )
        feeds.append((source, 4_096, "8 s of one array at 500 Hz, plus the kernel's buffer"))
    optical = graph.add_source(
        "optical",
        measured(optical_source(optical_feed(settings.optical))),
        restart_policy=PATIENT,
        endless=True,
        note="it retries through an outage; permanent errors (an invalid page, a certificate) restart it, with jitter",
    )
    feeds.append((optical, 2_048, "a backlog comes in pages and can wait at the archive"))
    isl = graph.add_source(
        "isl",
        measured(isl_source(isl_feed(settings.isl))),
        restart_policy=FIVE_A_MINUTE,
        endless=True,
        note="its connections survive a restart",
    )
    feeds.append((isl, 2_048, "TCP buffers the rest"))
    merge = graph.add_fan_in("merge", restart_policy=FIVE_A_MINUTE, note="stateless: a restart loses nothing")
    for source, capacity, why in feeds:
        graph.connect(source, merge, capacity, note=why)
    normalize = graph.add_operator(
        "normalize",
        map_items(Normalizer(clock_offset_ns=settings.validation.clock_offset_ns)),
        restart_policy=FIVE_A_MINUTE,
        note="stateless: a restart loses nothing",
    )
    graph.connect(merge, normalize, 1_024, note="four micro-batches keep both ends busy")
    check = graph.add_operator(
        "validate",
        sift(validation(settings.validation)),
        restart_policy=FIVE_A_MINUTE,
        dead_letter_limits=dead_letter_limits(settings.dead_letters),
        note="stateless; if it rejects most of the stream, the deployment is wrong",
    )
    graph.connect(normalize, check, 1_024, note="four micro-batches keep both ends busy")
    unique = graph.add_operator(
        "dedup",
        deduplicate(max_age=timedelta(seconds=settings.dedup.window_s), max_items=settings.dedup.max_ids),
        stateful=True,
        restart_policy=THREE_A_MINUTE,
        note="its seen-set survives a restart",
    )
    graph.connect(check, unique, 1_024, note="four micro-batches keep both ends busy")
    files = EventLogFiles(settings.event_log.directory, settings.event_log.max_file_bytes)
    log = graph.add_sink(
        "event-log",
        event_log_sink(files, metrics=event_time),
        restart_policy=RestartPolicy.never(),
        note="the log must be complete: if it cannot be written, the run ends",
    )
    graph.connect(unique, log, 16_384, note="the items that arrive while the disk syncs")
    return graph


def _measured(settings: IngestSettings, event_time: EventTimeMetrics | None) -> Callable[[Factory], Factory]:
    """Makes a source that measures its lag."""
    if event_time is None:
        return lambda source: source
    return partial(with_source_lag, metrics=event_time, times_of=times_of_sensors(settings.validation))


def ingest_pipeline(settings: IngestSettings) -> Pipeline:
    """``sda-ingest`` as a pipeline: graph, policy, dead-letter store, report, control plane, claims. Opens nothing."""
    event_time = EventTimeMetrics(sources=(*(radar.name for radar in settings.radars), "optical", "isl"))
    return Pipeline(
        graph=build_topology(settings, event_time),
        policy=supervision_policy(settings.shutdown),
        dead_letters=lambda: DeadLetterFile(settings.dead_letters.directory),
        report=settings.report,
        control_plane=control_plane(settings.control_plane, event_time, panels=(LAGS,)),
        claims=claims(
            radars=settings.radars,
            isls=[settings.isl],
            control=settings.control_plane,
            places=(settings.event_log.directory, settings.dead_letters.directory, settings.report),
        ),
    )
