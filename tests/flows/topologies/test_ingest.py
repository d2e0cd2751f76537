from __future__ import annotations

import inspect
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import certifi
import pytest

from flows.settings.ingest import IngestSettings
from flows.settings.sections import ControlPlaneSettings
from flows.topologies.from_settings import optical_feed, validation
from flows.topologies.ingest import build_topology, ingest_pipeline
from orchestrator_adapter import BreakerPolicy, DeadLetterLimits, GraphError, Reject, RetryPolicy
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.storage.dead_letter import DeadLetterFile
from sda_ops.records.observation import Observation, OpticalTarget, StateTarget, Uncertainty
from sda_ops.sources.optical import SHORT_WINDOW, UNLIMITED_RETRY, OpticalFeed
from tests.helpers.metrics import scraped_from

SETTINGS = IngestSettings.model_validate(
    {"radars": [{"name": f"radar-{number:02}", "port": 9200 + number} for number in (1, 2, 3)]}
)
NOON_NS = 1_767_268_800_000_000_000
DAY_NS = 86_400 * 10**9


def test_build_topology_is_under_80_lines() -> None:
    """One screen."""
    assert len(inspect.getsource(build_topology).splitlines()) < 80


def test_the_operators_come_in_the_order_of_the_data() -> None:
    """Sources, fan-in, normalize, validate, dedup, event log; sources in the order of the settings."""
    plan = build_topology(SETTINGS).validate()
    assert [vertex.name for vertex in plan.order] == [
        "radar-01",
        "radar-02",
        "radar-03",
        "optical",
        "isl",
        "merge",
        "normalize",
        "validate",
        "dedup",
        "event-log",
    ]


def test_every_operator_and_every_edge_has_a_reason() -> None:
    """Each restart policy and each capacity, in one line."""
    plan = build_topology(SETTINGS).validate()
    reasons = [*(vertex.note for vertex in plan.order), *(edge.note for edge in plan.edges)]
    assert all(reasons)
    assert not [reason for reason in reasons if "\n" in reason]


def test_restart_policies_are_those_of_the_specification() -> None:
    """Five a minute for sources and stateless operators, three for dedup, always for the archive, never for the log."""
    plan = build_topology(SETTINGS).validate()
    assert {vertex.name: str(vertex.restart_policy) for vertex in plan.order} == {
        "radar-01": "bounded(5, 60 s)",
        "radar-02": "bounded(5, 60 s)",
        "radar-03": "bounded(5, 60 s)",
        "optical": "always, backoff 0.5–15 s",
        "isl": "bounded(5, 60 s)",
        "merge": "bounded(5, 60 s)",
        "normalize": "bounded(5, 60 s)",
        "validate": "bounded(5, 60 s)",
        "dedup": "bounded(3, 60 s)",
        "event-log": "never",
    }


def test_every_feed_is_endless() -> None:
    """So the unexpected end of a source makes ``/health`` fail."""
    plan = build_topology(SETTINGS).validate()
    assert {vertex.name for vertex in plan.order if vertex.endless} == {
        *("radar-01", "radar-02", "radar-03", "optical", "isl")
    }


def test_the_control_plane_has_the_address_of_the_settings_or_is_disabled() -> None:
    """By default the loopback's port 9100. It serves the lags of every source, which begin with no skew."""
    plane = ingest_pipeline(SETTINGS).control_plane
    assert plane is not None
    assert replace(plane, collectors=(), panels=()) == ControlPlane(host="127.0.0.1", port=9100)
    (event_time,) = plane.collectors
    skews = {labels for name, labels in scraped_from(event_time) if name == "clock_skew_observed_total"}
    assert skews == {(name,) for name in (*(radar.name for radar in SETTINGS.radars), "optical", "isl")}
    elsewhere = SETTINGS.model_copy(update={"control_plane": ControlPlaneSettings(host="::1", port=5)})
    there = ingest_pipeline(elsewhere).control_plane
    assert there is not None
    assert (there.host, there.port) == ("::1", 5)
    nowhere = SETTINGS.model_copy(update={"control_plane": ControlPlaneSettings(enabled=False)})
    assert ingest_pipeline(nowhere).control_plane is None


def test_the_pipeline_claims_every_socket_and_every_path_it_writes_to(tmp_path: Path) -> None:
    """Radars, beacons, control plane, log, dead letters and report. Names stay: resolving them may take long."""
    (tmp_path / "link").symlink_to(tmp_path)
    settings = IngestSettings.model_validate(
        {
            "radars": [
                {"name": "a", "host": "0:0::1", "port": 9201},
                {"name": "b", "host": "localhost", "port": 9202},
                {"name": "c", "host": "", "port": 9203},
                {"name": "d", "host": "no such host", "port": 9204},
            ],
            "isl": {"host": "::", "port": 9400},
            "control_plane": {"host": "127.0.0.1", "port": 9100},
            "event_log": {"directory": tmp_path / "link" / "log"},
            "dead_letters": {"directory": tmp_path / "x" / ".." / "dead"},
            "report": tmp_path / "report.json",
        }
    )
    assert ingest_pipeline(settings).claims == (
        "udp://[0:0::1]:9201",
        "udp://localhost:9202",
        "udp://0.0.0.0:9203",
        "udp://no such host:9204",
        "tcp://[::]:9400",
        "http://127.0.0.1:9100",
        f"file://{tmp_path}/log",
        f"file://{tmp_path}/dead",
        f"file://{tmp_path}/report.json",
    )


@pytest.mark.parametrize("control_plane", [{"port": 0}, {"enabled": False}])
def test_ports_that_the_system_chooses_are_not_claimed(
    control_plane: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor a disabled control plane. Relative paths are resolved."""
    monkeypatch.chdir(tmp_path)
    settings = IngestSettings.model_validate(
        {
            "radars": [{"name": "a", "port": 0}],
            "isl": {"port": 0},
            "control_plane": control_plane,
            "event_log": {"directory": "log"},
            "dead_letters": {"directory": "dead"},
            "report": "report.json",
        }
    )
    assert ingest_pipeline(settings).claims == (
        f"file://{tmp_path}/log",
        f"file://{tmp_path}/dead",
        f"file://{tmp_path}/report.json",
    )


def test_validate_has_the_configured_dead_letter_limits() -> None:
    """No other operator has limits: a malformed frame never stops a source."""
    settings = SETTINGS.model_copy(
        update={"dead_letters": SETTINGS.dead_letters.model_copy(update={"max_share": 0.1, "min_items": 5})}
    )
    limits = {vertex.name: vertex.dead_letter_limits for vertex in build_topology(settings).validate().order}
    assert limits.pop("validate") == DeadLetterLimits(max_share=0.1, min_items=5, max_consecutive=10_000)
    assert set(limits.values()) == {None}


@pytest.mark.parametrize("taken", ["radar-01", "merge", "optical", "event-log"])
def test_a_radar_with_the_name_of_another_operator_is_an_error(taken: str) -> None:
    """The message has the name."""
    radars = [{"name": "radar-01", "port": 1}, {"name": taken, "port": 2}]
    with pytest.raises(GraphError) as raised:
        build_topology(IngestSettings.model_validate({"radars": radars})).validate()
    assert any(repr(taken) in str(problem) for problem in raised.value.problems)


def test_building_ingest_opens_nothing(tmp_path: Path) -> None:
    """Neither disk nor network; the store is made on demand."""
    settings = IngestSettings.model_validate(
        {
            "event_log": {"directory": tmp_path / "log"},
            "dead_letters": {"directory": tmp_path / "dead"},
            "report": tmp_path / "report.json",
        }
    )
    pipeline = ingest_pipeline(settings)
    pipeline.graph.validate()
    assert not list(tmp_path.iterdir())
    assert pipeline.dead_letters is not None
    store = pipeline.dead_letters()
    assert isinstance(store, DeadLetterFile)
    store.close()
    assert (tmp_path / "dead").is_dir()


def test_the_optical_feed_has_the_values_of_the_settings() -> None:
    """Seconds become durations."""
    settings = IngestSettings.model_validate(
        {
            "optical": {
                "url": "http://archive.example:8080/obs?x=1",
                "poll_interval_s": 0.5,
                "long_poll_s": 20,
                "timeout_s": 3,
                "lookback_s": 7,
                "max_body_bytes": 99,
                "ca_file": certifi.where(),
                "retry": {"initial_s": 0.3, "cap_s": 30, "max_attempts": 8},
                "breaker": {"threshold": 0.7, "window_s": 110, "cooldown_s": 12, "min_calls": 4},
            }
        }
    )
    feed = optical_feed(settings.optical)
    assert feed.url == "http://archive.example:8080/obs?x=1"
    durations = (feed.poll_interval, feed.long_poll, feed.timeout, feed.lookback)
    assert [duration.total_seconds() for duration in durations] == [0.5, 20, 3, 7]
    assert (feed.max_body_bytes, feed.ca_file) == (99, Path(certifi.where()))
    assert feed.retry == RetryPolicy(timedelta(seconds=0.3), timedelta(seconds=30), max_attempts=8)
    assert feed.breaker == BreakerPolicy(
        threshold=0.7, window=timedelta(seconds=110), cooldown=timedelta(seconds=12), min_calls=4
    )


def test_the_default_window_of_a_breaker_fits_enough_timeouts_to_open_it() -> None:
    """For short and long timeouts and polls."""
    for timeout_s, long_poll_s, window_s in ((1, 0, 15), (5, 0, 15), (10, 0, 30), (5, 20, 75)):
        settings = IngestSettings.model_validate({"optical": {"timeout_s": timeout_s, "long_poll_s": long_poll_s}})
        assert optical_feed(settings.optical).breaker.window == timedelta(seconds=window_s)


def test_the_default_settings_and_the_sources_own_defaults_agree() -> None:
    """Retry, breaker and size of a page."""
    feed = optical_feed(IngestSettings().optical)
    assert (feed.retry, feed.breaker) == (UNLIMITED_RETRY, SHORT_WINDOW)
    assert feed.max_body_bytes == OpticalFeed("").max_body_bytes


def seen(kind: str, at_ns: int) -> Observation:
    target = OpticalTarget(1.0, 0.5) if kind == "optical" else StateTarget((7e6, 0.0, 0.0), (0.0, 7.5e3, 0.0))
    uncertainty = (
        Uncertainty(sigma_angle_rad=1e-6)
        if kind == "optical"
        else Uncertainty(sigma_position_m=1.0, sigma_velocity_m_s=0.1)
    )
    return Observation(
        UUID(int=1), f"{kind}-1", "optical" if kind == "optical" else "isl", at_ns, NOON_NS, target, uncertainty
    )


def test_only_the_archive_may_be_late() -> None:
    """An optical observation may be an hour old; others are rejected. No timestamp may lie an hour in the future."""
    verdict = validation(IngestSettings().validation)
    hour_ns = 3_600 * 10**9
    assert verdict(seen("optical", NOON_NS - hour_ns)) is None
    assert isinstance(verdict(seen("isl", NOON_NS - hour_ns)), Reject)
    assert isinstance(verdict(seen("optical", NOON_NS - 2 * DAY_NS)), Reject)
    assert isinstance(verdict(seen("optical", NOON_NS + hour_ns)), Reject)
    assert verdict(seen("isl", NOON_NS - 10**9)) is None


def test_a_replayed_observation_is_validated_at_its_own_time() -> None:
    """Old timestamps pass, impossible speeds do not."""
    verdict = validation(IngestSettings.model_validate({"validation": {"replay": True}}).validation)
    assert verdict(seen("isl", NOON_NS - 400 * DAY_NS)) is None
    fast = seen("isl", NOON_NS)
    rejected = verdict(
        Observation(
            fast.observation_id,
            fast.source_id,
            "isl",
            NOON_NS,
            NOON_NS,
            StateTarget((7e6, 0.0, 0.0), (0.0, 3e8, 0.0)),
            fast.uncertainty,
        )
    )
    assert isinstance(rejected, Reject)
    assert rejected.reason.startswith("speed: ")


def test_a_thousand_radars_are_a_graph_like_any_other() -> None:
    """The topology has no limit."""
    radars = [{"name": f"r{number}", "port": number} for number in range(1_000)]
    plan = build_topology(IngestSettings.model_validate({"radars": radars})).validate()
    assert len(plan.order) == 1_007
