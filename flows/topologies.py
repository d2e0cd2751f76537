"""Settings to graphs. Each ``build_topology`` reads like the picture it makes; no Prefect here.

``sda-ingest``::

    radar ×N (UDP) ──┐
    optical (HTTP) ──┼─ merge ── normalize ── validate ── dedup ── event log (JSON Lines)
    isl (TCP) ───────┘
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from flows.settings import ControlPlaneSettings, IngestSettings, OpticalSettings, RetrySettings
from orchestrator_adapter import (
    Backoff,
    BreakerPolicy,
    DeadLetterLimits,
    OperatorGraph,
    Reject,
    RestartPolicy,
    RetryPolicy,
    SupervisionPolicy,
    VertexId,
    map_items,
    sift,
)
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.dead_letter import DeadLetterFile
from orchestrator_adapter.operators import Verdict
from orchestrator_adapter.pipeline import Pipeline
from sda_ops.dedup import deduplicate
from sda_ops.normalize import Normalizer
from sda_ops.records import Observation
from sda_ops.sinks.event_log import EventLog, event_log_sink
from sda_ops.sources.isl import IslFeed, isl_source
from sda_ops.sources.optical import SHORT_MEMORY, OpticalFeed, optical_source
from sda_ops.sources.radar import RadarFeed, radar_source
from sda_ops.validate import ValidationLimits, validate

FIVE_A_MINUTE = RestartPolicy.bounded(5, timedelta(seconds=60))
THREE_A_MINUTE = RestartPolicy.bounded(3, timedelta(seconds=60))
PATIENT = RestartPolicy.always(backoff=Backoff(initial=timedelta(milliseconds=500), cap=timedelta(seconds=15)))


def build_topology(settings: IngestSettings) -> OperatorGraph:
    """``sda-ingest``, as the picture above draws it. Opens nothing."""
    graph = OperatorGraph("sda-ingest")
    feeds: list[tuple[VertexId, int, str]] = []
    for radar in settings.radars:
        source = graph.add_source(
            radar.name,
            radar_source(RadarFeed(radar.host, radar.port, radar.receive_buffer_bytes)),
            restart_policy=FIVE_A_MINUTE,
            endless=True,
            note="its socket outlives it; a host that loses sockets more often needs a person",
        )
        feeds.append((source, 4_096, "8 s of one array at 500 Hz; the kernel's buffer comes on top"))
    optical = graph.add_source(
        "optical",
        optical_source(_optical_feed(settings)),
        restart_policy=PATIENT,
        endless=True,
        note="it waits an outage out; what no retry mends (a wrong page, a certificate) it comes back to, jittered",
    )
    feeds.append((optical, 2_048, "a backlog comes in pages; it can wait at the archive"))
    isl = graph.add_source(
        "isl",
        isl_source(_isl_feed(settings)),
        restart_policy=FIVE_A_MINUTE,
        endless=True,
        note="its connections outlive it",
    )
    feeds.append((isl, 2_048, "TCP holds what does not fit"))
    merge = graph.add_fan_in("merge", restart_policy=FIVE_A_MINUTE, note="stateless: a restart forgets nothing")
    for source, capacity, why in feeds:
        graph.connect(source, merge, capacity, note=why)
    normalize = graph.add_operator(
        "normalize",
        map_items(Normalizer(clock_offset_ns=settings.validation.clock_offset_ns)),
        restart_policy=FIVE_A_MINUTE,
        note="stateless: a restart forgets nothing",
    )
    graph.connect(merge, normalize, 1_024, note="four micro-batches: enough to keep both ends busy")
    check = graph.add_operator(
        "validate",
        sift(_judge(settings)),
        restart_policy=FIVE_A_MINUTE,
        dead_letter_limits=DeadLetterLimits(
            max_share=settings.dead_letters.max_share,
            min_items=settings.dead_letters.min_items,
            max_consecutive=settings.dead_letters.max_consecutive,
        ),
        note="stateless; if it rejects most of the stream, the deployment is at fault",
    )
    graph.connect(normalize, check, 1_024, note="four micro-batches: enough to keep both ends busy")
    unique = graph.add_operator(
        "dedup",
        deduplicate(max_age=timedelta(seconds=settings.dedup.window_s), max_items=settings.dedup.max_ids),
        stateful=True,
        restart_policy=THREE_A_MINUTE,
        note="what it remembers outlives it",
    )
    graph.connect(check, unique, 1_024, note="four micro-batches: enough to keep both ends busy")
    log = graph.add_sink(
        "event-log",
        event_log_sink(EventLog(settings.event_log.directory, settings.event_log.max_file_bytes)),
        restart_policy=RestartPolicy.never(),
        note="the record of what was seen: if it cannot be written, nothing may pretend that it was",
    )
    graph.connect(unique, log, 16_384, note="what gathers while the disk syncs")
    return graph


def ingest_pipeline(settings: IngestSettings) -> Pipeline:
    """``sda-ingest`` with its dead-letter store, report, control plane and way of stopping. Opens nothing."""
    seconds = settings.shutdown
    return Pipeline(
        graph=build_topology(settings),
        policy=SupervisionPolicy(timedelta(seconds=seconds.grace_s), timedelta(seconds=seconds.patience_s)),
        dead_letters=lambda: DeadLetterFile(settings.dead_letters.directory),
        report=settings.report,
        control_plane=_control_plane(settings.control_plane),
        claims=_claims(settings),
    )


def _claims(settings: IngestSettings) -> tuple[str, ...]:
    """Every socket and every place on disk that no other pipeline may have meanwhile."""
    control_plane = settings.control_plane
    sockets = [
        *(("udp", radar.host, radar.port) for radar in settings.radars),
        ("tcp", settings.isl.host, settings.isl.port),
        ("http", control_plane.host, control_plane.port if control_plane.enabled else 0),
    ]
    places = (settings.event_log.directory, settings.dead_letters.directory, settings.report)
    return (
        *(_socket(scheme, host, port) for scheme, host, port in sockets if port),
        *(f"file://{_resolved(place)}" for place in places),
    )


def _socket(scheme: str, host: str, port: int) -> str:
    """With the address that the host stands for, as the sources choose it; a name that nobody knows stays a name."""
    with suppress(OSError, UnicodeError):
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        host = str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _resolved(place: Path) -> str:
    try:
        return os.path.realpath(place)
    except ValueError:  # a path that is none; whoever opens it will say so
        return str(place)


def _control_plane(settings: ControlPlaneSettings) -> ControlPlane | None:
    return ControlPlane(host=settings.host, port=settings.port) if settings.enabled else None


def _optical_feed(settings: IngestSettings) -> OpticalFeed:
    optical = settings.optical
    return OpticalFeed(
        url=str(optical.url),
        poll_interval=timedelta(seconds=optical.poll_interval_s),
        long_poll=timedelta(seconds=optical.long_poll_s),
        timeout=timedelta(seconds=optical.timeout_s),
        lookback=timedelta(seconds=optical.lookback_s),
        max_body_bytes=optical.max_body_bytes,
        retry=_retry_policy(optical.retry),
        breaker=_breaker_policy(optical),
        ca_file=optical.ca_file,
    )


def _retry_policy(retry: RetrySettings) -> RetryPolicy:
    return RetryPolicy(timedelta(seconds=retry.initial_s), timedelta(seconds=retry.cap_s), retry.max_attempts or None)


def _breaker_policy(optical: OpticalSettings) -> BreakerPolicy:
    breaker = optical.breaker
    shortest_s = max(SHORT_MEMORY.window.total_seconds(), optical.longest_time_outs_s)
    return BreakerPolicy(
        threshold=breaker.threshold,
        window=timedelta(seconds=shortest_s if breaker.window_s is None else breaker.window_s),
        cooldown=timedelta(seconds=breaker.cooldown_s),
        min_calls=breaker.min_calls,
    )


def _isl_feed(settings: IngestSettings) -> IslFeed:
    isl = settings.isl
    return IslFeed(
        isl.host,
        isl.port,
        max_connections=isl.max_connections,
        max_connections_per_peer=isl.max_connections_per_peer,
        inbox_frames=isl.inbox_frames,
        frame_deadline=timedelta(seconds=isl.frame_deadline_s),
        silence_deadline=timedelta(seconds=isl.silence_deadline_s),
        max_frame_bytes=isl.max_frame_bytes,
        max_malformed_frames=isl.max_malformed_frames,
    )


def _judge(settings: IngestSettings) -> Callable[[Observation], Verdict]:
    """A live observation is judged by the clock at its arrival; a replayed one has only its own."""
    skew = timedelta(seconds=settings.validation.max_clock_skew_s)
    live = ValidationLimits(max_clock_skew=skew)
    archived = ValidationLimits(max_clock_skew=skew, max_age=timedelta(seconds=settings.validation.max_archive_age_s))
    replay = settings.validation.replay

    def judge(observation: Observation) -> Verdict:
        reference_ns = observation.sensor_timestamp if replay else observation.ingest_timestamp
        limits = archived if observation.source_kind == "optical" else live
        rejection = validate(observation, reference_time_ns=reference_ns, limits=limits)
        return None if rejection is None else Reject(f"{rejection.reason}: {rejection.message}")

    return judge
