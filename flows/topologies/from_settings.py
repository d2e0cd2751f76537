"""Settings to feeds, policies, limits and claims, for both pipelines. No Prefect here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path

from prometheus_client.registry import Collector

from flows.settings.sections import (
    ControlPlaneSettings,
    DeadLetterSettings,
    IslSettings,
    OpticalSettings,
    RadarSettings,
    RetrySettings,
    ShutdownSettings,
    ValidationSettings,
)
from orchestrator_adapter import (
    Backoff,
    BreakerPolicy,
    DeadLetterLimits,
    RestartPolicy,
    RetryPolicy,
    SupervisionPolicy,
    Verdict,
)
from orchestrator_adapter.control_plane import ControlPlane, MetricsPanel
from sda_ops.records.observation import Observation
from sda_ops.sources.isl import IslFeed
from sda_ops.sources.optical import SHORT_WINDOW, OpticalFeed
from sda_ops.sources.radar import RadarFeed
from sda_ops.validate import validator

FIVE_A_MINUTE = RestartPolicy.bounded(5, timedelta(seconds=60))
THREE_A_MINUTE = RestartPolicy.bounded(3, timedelta(seconds=60))
PATIENT = RestartPolicy.always(backoff=Backoff(initial=timedelta(milliseconds=500), cap=timedelta(seconds=15)))


def radar_feed(radar: RadarSettings) -> RadarFeed:
    """The feed of one radar array."""
    return RadarFeed(radar.host, radar.port, radar.receive_buffer_bytes)


def optical_feed(optical: OpticalSettings) -> OpticalFeed:
    """The feed of one archive."""
    return OpticalFeed(
        url=str(optical.url),
        poll_interval=timedelta(seconds=optical.poll_interval_s),
        long_poll=timedelta(seconds=optical.long_poll_s),
        timeout=timedelta(seconds=optical.timeout_s),
        lookback=timedelta(seconds=optical.lookback_s),
        max_body_bytes=optical.max_body_bytes,
        retry=retry_policy(optical.retry),
        breaker=_breaker_policy(optical),
        ca_file=optical.ca_file,
    )


def isl_feed(isl: IslSettings) -> IslFeed:
    """The feed of one ring of beacons."""
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


def retry_policy(retry: RetrySettings) -> RetryPolicy:
    """The delays between attempts."""
    return RetryPolicy(timedelta(seconds=retry.initial_s), timedelta(seconds=retry.cap_s), retry.max_attempts or None)


def _breaker_policy(optical: OpticalSettings) -> BreakerPolicy:
    breaker = optical.breaker
    shortest_s = max(SHORT_WINDOW.window.total_seconds(), optical.longest_time_outs_s)
    return BreakerPolicy(
        threshold=breaker.threshold,
        window=timedelta(seconds=shortest_s if breaker.window_s is None else breaker.window_s),
        cooldown=timedelta(seconds=breaker.cooldown_s),
        min_calls=breaker.min_calls,
    )


def validation(
    settings: ValidationSettings, *, replayed: Callable[[str], bool] = lambda _: False
) -> Callable[[Observation], Verdict]:
    """The function for ``sift``. ``replayed`` says which sources are validated at their own time."""
    return validator(
        max_clock_skew=timedelta(seconds=settings.max_clock_skew_s),
        max_archive_age=timedelta(seconds=settings.max_archive_age_s),
        uses_own_time=(lambda _: True) if settings.replay else replayed,
    )


def dead_letter_limits(settings: DeadLetterSettings) -> DeadLetterLimits:
    """The most dead letters of an operator."""
    return DeadLetterLimits(
        max_share=settings.max_share, min_items=settings.min_items, max_consecutive=settings.max_consecutive
    )


def supervision_policy(shutdown: ShutdownSettings) -> SupervisionPolicy:
    """How a pipeline is stopped."""
    return SupervisionPolicy(timedelta(seconds=shutdown.grace_s), timedelta(seconds=shutdown.patience_s))


def control_plane(
    settings: ControlPlaneSettings, *collectors: Collector, panels: tuple[MetricsPanel, ...] = ()
) -> ControlPlane | None:
    """The control plane, with these metrics and tables too, unless it is disabled."""
    if not settings.enabled:
        return None
    return ControlPlane(
        host=settings.host,
        port=settings.port,
        collectors=collectors,
        panels=panels,
        token=settings.token or "",
        tls=settings.tls,
        behind_proxy=settings.behind_proxy,
        actions=settings.actions,
    )


def claims(
    *,
    radars: Iterable[RadarSettings],
    isls: Iterable[IslSettings],
    control: ControlPlaneSettings,
    places: Iterable[Path],
) -> tuple[str, ...]:
    """The sockets and the paths that no other run may use at the same time."""
    sockets = [
        *(("udp", radar.host, radar.port) for radar in radars),
        *(("tcp", isl.host, isl.port) for isl in isls),
        ("http", control.host, control.port if control.enabled else 0),
    ]
    return (
        *(_socket(scheme, host, port) for scheme, host, port in sockets if port),
        *(f"file://{os.path.realpath(place)}" for place in places),
    )


def _socket(scheme: str, host: str, port: int) -> str:
    """The claim on a socket, with the host as it is written; empty is every IPv4 address. The run resolves names."""
    host = host or "0.0.0.0"  # noqa: S104 - what the feed's setting means
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
