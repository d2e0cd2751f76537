from __future__ import annotations

import inspect
import math
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from flows.settings.alerts import AlertSettings
from flows.settings.fusion import FusionSettings
from flows.settings.simulated import simulated_sensors
from flows.topologies.alerts import _webhook
from flows.topologies.fusion import (
    _associator,
    _conventions,
    _prediction,
    _replayed,
    build_topology,
    fusion_pipeline,
    orbits_of,
)
from orchestrator_adapter.bulkhead import Launcher, LocalProcesses, Network
from orchestrator_adapter.control_plane import ControlPlane
from orchestrator_adapter.prefect_flow import workers
from sda_ops.alerts.outbox.file import AlertOutboxError
from sda_ops.alerts.outbox.store import AlertOutbox
from sda_ops.astro.sites import Site
from sda_ops.catalog.fetch import CatalogFile, CatalogUrl
from sda_ops.event_time.metrics import EventTimeMetrics
from sda_ops.records.alert import Alert
from sda_ops.simulate.places import RADAR_SITES
from tests.sda_ops.alerts.risks import T0, risk

SETTINGS = FusionSettings()
SOURCES = ["radar-01", "radar-02", "radar-03", "optical-01", "optical-02", "isl-01", "isl-02", "replay"]


def test_build_topology_of_eight_sources_is_under_80_lines() -> None:
    """One screen."""
    assert len(inspect.getsource(build_topology).splitlines()) < 80


def test_the_operators_come_in_the_order_of_the_data_from_eight_sources() -> None:
    """Sources, fan-in, the chain to the tee, then both branches."""
    plan = fusion_pipeline(SETTINGS).graph.validate()
    names = [vertex.name for vertex in plan.order]
    assert names[:8] == SOURCES
    beside = ("screen", "found", "conjunctions", "evidence", "risk", "alerts")
    of_stream = [name for name in names if name not in beside]
    assert of_stream[8:13] == ["merge", "normalize", "validate", "dedup", "tee"]
    assert set(of_stream[13:]) == {"audit", "propagate", "correlate", "matched", "fuse", "correlations"}
    assert {str(edge.id) for edge in plan.edges if set(edge.id.split(" -> ")) & {*beside, "matched"}} == {
        "correlate -> matched",
        "matched -> fuse",
        "matched -> evidence",
        "screen -> found",
        "found -> conjunctions",
        "found -> evidence",
        "evidence -> risk",
        "risk -> alerts",
    }
    at_the_tee = [str(edge.id) for edge in plan.edges if "tee" in str(edge.id)]
    assert at_the_tee == ["dedup -> tee", "tee -> audit", "tee -> propagate"]


def test_every_vertex_and_every_edge_of_fusion_has_a_reason() -> None:
    """Each restart policy and each capacity, in one line."""
    plan = fusion_pipeline(SETTINGS).graph.validate()
    reasons = [*(vertex.note for vertex in plan.order), *(edge.note for edge in plan.edges)]
    assert all(reasons)
    assert not [reason for reason in reasons if "\n" in reason]


def test_propagator_and_alerts_have_a_spilling_edge_and_every_other_edge_has_backpressure() -> None:
    """What does not fit on disk is shed, because the audit has it. The settings name folder, size and what else may happen.

    Conjunctions are never shed on their way to the alerts.
    """
    plan = fusion_pipeline(SETTINGS).graph.validate()
    policies = {edge.id: str(edge.policy) for edge in plan.edges}
    for edge_id in ("tee -> propagate", "matched -> evidence"):
        assert policies.pop(edge_id) == "spill to run/sda-fusion/spill, at most 1 GiB, then shed"
    assert set(policies.values()) == {"backpressure"}
    settings = FusionSettings.model_validate(
        {"spill": {"directory": "elsewhere", "max_mib": 10, "when_full": "backpressure"}}
    )
    plan = build_topology(settings, orbits_of(settings)).validate()
    (edge,) = [edge for edge in plan.edges if edge.id == "tee -> propagate"]
    assert str(edge.policy) == "spill to elsewhere, at most 10 MiB, then backpressure"


def test_fusions_restart_policies_are_those_of_the_specification() -> None:
    """Five a minute for sources and stateless operators, three for stateful ones, always for archives, the screening and the alerts, never for the audit."""
    plan = fusion_pipeline(SETTINGS).graph.validate()
    policies = {vertex.name: str(vertex.restart_policy) for vertex in plan.order}
    assert {name for name, policy in policies.items() if policy == "bounded(3, 60 s)"} == {
        "dedup",
        "propagate",
        "fuse",
        "risk",
    }
    assert {name for name, policy in policies.items() if policy == "never"} == {"audit", "correlations", "conjunctions"}
    assert {name for name, policy in policies.items() if policy.startswith("always")} == {
        "optical-01",
        "optical-02",
        "screen",
        "alerts",
    }
    assert {policy for name, policy in policies.items() if name.startswith(("radar", "isl", "replay", "merge"))} == {
        "bounded(5, 60 s)"
    }


def test_only_the_replay_may_end_by_itself() -> None:
    """The end of a live feed makes ``/health`` fail; the end of a file does not."""
    plan = fusion_pipeline(SETTINGS).graph.validate()
    assert {vertex.name for vertex in plan.order if vertex.endless} == {*SOURCES[:-1], "screen"}


def test_the_default_claims_of_fusion_and_ingest_do_not_overlap(tmp_path: Path) -> None:
    """Both pipelines can run on one machine with their defaults."""
    from flows.settings.ingest import IngestSettings  # noqa: PLC0415 - the other pipeline, needed here only
    from flows.topologies.ingest import ingest_pipeline  # noqa: PLC0415 - the same

    ours = set(fusion_pipeline(SETTINGS).claims)
    assert len(ours) == 12  # three radars, two rings, control plane, audit, spill, dead letters, report, table, outbox
    assert not ours & set(ingest_pipeline(IngestSettings()).claims)
    moved = SETTINGS.model_copy(update={"report": tmp_path / "report.json"})
    assert f"file://{os.path.realpath(tmp_path)}/report.json" in fusion_pipeline(moved).claims


def test_the_pipeline_has_its_pool_and_its_control_plane() -> None:
    """Two bulkheads, started and stopped with it; the metrics of event time are served."""
    pipeline = fusion_pipeline(SETTINGS)
    assert [bulkhead.name for bulkhead in pipeline.bulkheads] == ["propagator", "screening"]
    assert pipeline.control_plane is not None
    assert replace(pipeline.control_plane, collectors=(), panels=()) == ControlPlane(host="127.0.0.1", port=9101)
    assert any(isinstance(each, EventTimeMetrics) for each in pipeline.control_plane.collectors)


def test_without_screening_there_is_neither_its_source_nor_its_workers_nor_its_folder() -> None:
    settings = FusionSettings.model_validate({"screening": {"enabled": False}})
    pipeline = fusion_pipeline(settings)
    assert not {"screen", "conjunctions"} & {vertex.id.name for vertex in pipeline.graph.vertices}
    assert [bulkhead.name for bulkhead in pipeline.bulkheads] == ["propagator"]
    assert not [claim for claim in pipeline.claims if claim.endswith("/screening")]


@pytest.mark.parametrize("switched_off", ["alerts", "screening"])
def test_without_alerts_or_without_screening_the_graph_has_no_part_of_the_alerts(switched_off: str) -> None:
    """Neither operators nor an outbox."""
    pipeline = fusion_pipeline(FusionSettings.model_validate({switched_off: {"enabled": False}}))
    names = {vertex.id.name for vertex in pipeline.graph.vertices}
    assert not {"matched", "found", "evidence", "risk", "alerts"} & names
    assert not [claim for claim in pipeline.claims if claim.endswith("/alerts")]
    assert pipeline.notices is None


async def test_a_damaged_outbox_is_found_before_anything_runs(tmp_path: Path) -> None:
    """One line says what to do."""
    file = tmp_path / "alerts.sqlite"
    file.write_bytes(b"no database" * 1_000)
    pipeline = fusion_pipeline(FusionSettings.model_validate({"alerts": {"directory": tmp_path}}))
    with pytest.raises(
        AlertOutboxError, match=r"^outbox of alerts .*alerts\.sqlite: the file is damaged .*; restore it from a backup"
    ):
        await pipeline.preparations[-1]()


async def test_a_table_of_conjunctions_that_was_lost_gets_what_stands_as_an_alert_before_anything_runs(
    tmp_path: Path,
) -> None:
    in_the_future = 4_000_000_000 * 10**9
    outbox = AlertOutbox(tmp_path / "alerts.sqlite")
    outbox.open(T0)
    outbox.record([risk(tca_timestamp=in_the_future)], T0)
    outbox.close()
    folders = {"alerts": {"directory": tmp_path}, "screening": {"directory": tmp_path / "new"}}
    pipeline = fusion_pipeline(FusionSettings.model_validate(folders))
    for prepare in pipeline.preparations[-2:]:
        await prepare()
    (table,) = (tmp_path / "new").glob("*.sqlite")
    with closing(sqlite3.connect(table)) as db:
        assert db.execute("SELECT id, status FROM conjunctions").fetchall() == [(str(risk().conjunction_id), "active")]


@pytest.mark.parametrize(
    ("format_", "begins", "content_type"),
    [
        ("json", b'{"schema_version":1,', "application/json"),
        ("cdm-kvn", b"CCSDS_CDM_VERS", "text/plain; charset=utf-8"),
        ("cdm-xml", b"<?xml", "application/xml"),
    ],
)
def test_each_subscriber_gets_its_format(
    format_: str, begins: bytes, content_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its own address, pace and timeout."""
    (settings,) = AlertSettings.model_validate(
        {"subscribers": [{"name": "a", "url": "http://there/", "format": format_, "max_per_s": 3, "timeout_s": 7}]}
    ).subscribers
    webhook = _webhook(settings, None)
    states: dict[str, Any] = {
        f"{one}_{axis}": 0.0 for one in ("first", "second") for axis in ("y_m", "z_m", "vx_m_s", "vz_m_s")
    }
    states |= {"first_x_m": 7e6, "second_x_m": 7e6 + 812.5, "first_vy_m_s": 7_500.0, "second_vy_m_s": -7_500.0}
    alert = Alert(conjunction_id=UUID(int=1), revision=0, severity="medium", recorded_timestamp=0, risk=risk(**states))
    assert webhook.body(alert).startswith(begins)
    assert (webhook.url, webhook.content_type, webhook.max_per_s) == ("http://there/", content_type, 3.0)
    assert webhook.timeout == timedelta(seconds=7)


@pytest.mark.parametrize("kind", ["dask", "ray"])
def test_workers_of_a_cluster_are_launched_there_and_connect_back(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By that cluster's launcher, with the scheduler's address and this machine's address."""
    launched: list[tuple[str, str, Network]] = []

    def launcher(of: str) -> Callable[..., Launcher]:
        def launch(address: str, *, network: Network) -> Launcher:
            launched.append((of, address, network))
            return LocalProcesses(network=network)

        return launch

    for each in ("dask", "ray"):
        monkeypatch.setattr(workers, f"{each}_launcher", launcher(each))
    cluster = {"kind": kind, "address": "tcp://there:1", "host": "here", "bind": "0.0.0.0", "port": 7}
    orbits_of(FusionSettings.model_validate({"propagator": {"cluster": cluster}}))
    assert launched == [(kind, "tcp://there:1", Network("here", bind="0.0.0.0", port=7))]
    orbits_of(SETTINGS)
    assert len(launched) == 1
    settings = FusionSettings.model_validate({"screening": {"cluster": cluster}})
    fusion_pipeline(settings)
    assert launched == [(kind, "tcp://there:1", Network("here", bind="0.0.0.0", port=7))] * 2


def test_building_fusion_opens_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither disk nor network; it needs no catalogue."""
    monkeypatch.chdir(tmp_path)
    fusion_pipeline(SETTINGS).graph.validate()
    assert not list(tmp_path.iterdir())


def test_the_catalogue_is_a_file_or_an_address() -> None:
    """The address wins over the default file."""
    assert orbits_of(SETTINGS).catalog.source == CatalogFile(Path("run/sda-fusion/catalog.json"))
    by_http = FusionSettings.model_validate({"catalog": {"url": "https://example.org/gp.php?GROUP=active"}})
    assert orbits_of(by_http).catalog.source == CatalogUrl("https://example.org/gp.php?GROUP=active")


def test_there_are_no_sensors_by_default() -> None:
    """A real radar-1 is never compared at the place of a simulated one."""
    assert _associator(SETTINGS)._sensors == {}


def test_the_simulators_sensors_have_the_simulators_positions() -> None:
    """By source id, with the deviation of angles if it is given."""
    sensors = _associator(FusionSettings(sensors=simulated_sensors()))._sensors
    assert set(sensors) == {*(f"radar-{n}" for n in range(1, 7)), *(f"optical-{n}" for n in range(1, 5))}
    site = sensors["radar-2"].site
    assert site is not None
    assert site.r_fixed_m == pytest.approx(RADAR_SITES[1].r_fixed_m, abs=0.01)
    assert sensors["radar-2"].sigma.sigma_angle_rad == pytest.approx(5e-4, rel=2e-3)
    assert sensors["optical-1"].sigma.sigma_angle_rad is None


@pytest.mark.parametrize(("feeds", "kind"), [("radars", "radar"), ("opticals", "optical"), ("isls", "isl")])
def test_the_largest_clock_error_that_is_set_for_a_kind_of_feed_widens_its_gate(feeds: str, kind: str) -> None:
    """And no other. The defaults are bounds for watermarks, and widen none."""
    first, second, *rest = getattr(SETTINGS, feeds)
    changed = [first.model_copy(update={"clock_error_s": 1.0}), second.model_copy(update={"clock_error_s": 2.0}), *rest]
    settings = SETTINGS.model_copy(update={feeds: tuple(changed)})
    none = {"radar": 0.0, "optical": 0.0, "isl": 0.0}
    assert _associator(SETTINGS)._clock_s == none
    assert _associator(settings)._clock_s == none | {kind: pytest.approx(2.0 / 3.0**0.5)}


def test_the_stations_of_a_file_are_sensors(tmp_path: Path) -> None:
    """By their numbers; a table in [[sensors]] wins, and all of the file are replays if the settings say so."""
    file = tmp_path / "sites.txt"
    file.write_text("# IOD sites\n4171 CB 52.8344 6.3785 10 Cees Bassa\n0433 GR -33.9406 18.5129 10\n")
    settings = FusionSettings.model_validate(
        {
            "stations": {"file": file, "replayed": True, "sigma_angle_arcsec": 60},
            "sensors": [{"source_id": "optical-433", "latitude_deg": 1, "longitude_deg": 2, "height_m": 3}],
        }
    )
    sensors = _associator(settings)._sensors
    assert set(sensors) == {"optical-4171", "optical-433"}
    expected = Site.from_degrees("x", latitude_deg=52.8344, longitude_deg=6.3785, height_m=10)
    site, own = sensors["optical-4171"].site, sensors["optical-433"].site
    assert site is not None
    assert own is not None
    assert site.r_fixed_m == pytest.approx(expected.r_fixed_m, abs=0.01)
    assert sensors["optical-4171"].sigma.sigma_angle_rad == pytest.approx(60 * math.radians(1 / 3600))
    assert math.degrees(own.latitude_rad) == pytest.approx(1)
    assert _replayed(settings) == {"optical-4171"}


def test_a_file_of_a_replay_has_its_own_conventions_where_they_are_set() -> None:
    """A path alone has those of [replay]."""
    settings = FusionSettings.model_validate(
        {
            "replay": {
                "files": ["a.tdm", {"path": "b.tdm", "doppler_sign": -1, "sigma_range_m": 5}],
                "sigma_range_m": 30,
                "range_is_round_trip": False,
            }
        }
    )
    plain, own = (_conventions(settings.replay.of_file(file)) for file in settings.replay.files)
    assert [file.path for file in settings.replay.files] == [Path("a.tdm"), Path("b.tdm")]
    assert (plain.doppler_sign, plain.uncertainty.sigma_range_m, plain.range_is_round_trip) == (1, 30.0, False)
    assert (own.doppler_sign, own.uncertainty.sigma_range_m, own.range_is_round_trip) == (-1, 5.0, False)


def test_element_set_errors_are_the_built_in_ones_by_default() -> None:
    """Each class of orbits is set separately."""
    names = [f"{axis}_m" for axis in ("radial", "in_track", "cross_track")]
    axes = dict(zip((*names, *(f"{name}_per_day" for name in names)), range(1, 7), strict=True))
    settings = FusionSettings.model_validate({"correlation": {"near_earth": axes}})
    built_in, ours = _prediction(SETTINGS).errors, _prediction(settings).errors
    assert (ours.near_earth.in_track_m, ours.near_earth.cross_track_m_per_day) == (2.0, 6.0)
    assert ours.deep_space == built_in.deep_space


def test_only_replayed_sensors_are_validated_at_their_own_time() -> None:
    """By source id."""
    settings = FusionSettings.model_validate(
        {
            "sensors": [
                {"source_id": "tdm-A", "latitude_deg": 1, "longitude_deg": 2, "height_m": 3, "replayed": True},
                {"source_id": "radar-1", "latitude_deg": 1, "longitude_deg": 2, "height_m": 3},
            ]
        }
    )
    assert _replayed(settings) == {"tdm-A"}


def test_the_durations_are_those_of_the_settings() -> None:
    """Fractions of seconds are kept."""
    settings = FusionSettings.model_validate({"audit": {"commit_every_s": 0.5}, "propagator": {"answer_within_s": 7}})
    assert settings.audit.commit_every_s == 0.5
    assert timedelta(seconds=settings.propagator.answer_within_s) == timedelta(seconds=7)
