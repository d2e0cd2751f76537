"""``prefect.yaml`` and ``deploy/``, checked without a Prefect server and without a container engine."""

from __future__ import annotations

import re
from typing import Any

import prefect.settings
import pytest
import yaml  # type: ignore[import-untyped]  # it comes with Prefect, its stubs do not

from flows.local_prefect.processes import POOL
from flows.settings.ingest import IngestSettings
from tests.helpers.support import ROOT

COMPOSE = ROOT / "deploy/compose.yaml"


def compose() -> Any:
    return yaml.safe_load(COMPOSE.read_text())


def pinned_prefect() -> str:
    found = re.search(r"^prefect==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def deployments() -> Any:
    return yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


def test_every_file_names_the_pinned_version_of_prefect() -> None:
    """``prefect.yaml``, the images' tags and the Dockerfile have the version of requirements.txt."""
    version = pinned_prefect()
    assert str(yaml.safe_load((ROOT / "prefect.yaml").read_text())["prefect-version"]) == version
    for service in ("server", "deploy", "worker"):
        each = compose()["services"][service]
        assert each["image"].endswith(f":prefect-{version}")
        assert each["build"]["args"]["PREFECT_IMAGE"] == f"prefecthq/prefect:{version}-python3.11"
    assert f"ARG PREFECT_IMAGE=prefecthq/prefect:{version}-python3.11\n" in (ROOT / "deploy/Dockerfile").read_text()


@pytest.mark.parametrize("deployment", deployments(), ids=lambda each: each["name"])
def test_no_deployment_depends_on_the_api_while_it_runs(deployment: Any) -> None:
    """No concurrency limit, whose lease would end the flow; a bounded event queue; heartbeats."""
    assert "concurrency_limit" not in deployment
    assert deployment["work_pool"]["name"] == POOL
    assert set(deployment["work_pool"]["job_variables"]["env"]) == {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY",
        "PREFECT_EVENTS_WORKER_MAX_QUEUE_SIZE",
    }


@pytest.mark.parametrize("deployment", deployments(), ids=lambda each: each["name"])
def test_every_deployment_has_a_description_and_an_entry_point(deployment: Any) -> None:
    """And the tag sda; the file of the entry point exists."""
    assert deployment["description"].endswith(".")
    assert "sda" in deployment["tags"]
    assert (ROOT / deployment["entrypoint"].split(":")[0]).is_file()


def test_every_prefect_variable_is_a_setting_of_prefect() -> None:
    """Prefect ignores a name that it does not know."""
    texts = [path.read_text() for path in (ROOT / "prefect.yaml", COMPOSE, ROOT / "flows/local_prefect/processes.py")]
    texts.append((ROOT / "flows/commands/up.py").read_text())
    ours = {"PREFECT_IMAGE", "PREFECT_AUTH", "PREFECT_LISTEN"} | {
        "PREFECT_PROFILE"
    }  # it chooses settings, but is not a setting
    names = {name for text in texts for name in re.findall(r"\bPREFECT_[A-Z][A-Z_]*[A-Z]\b", text)} - ours
    assert len(names) > 8
    assert [name for name in sorted(names) if not hasattr(prefect.settings, name)] == []


def test_everything_that_compose_refers_to_exists() -> None:
    """Every named volume is declared; every dependency exists and has the condition that is waited for."""
    document = compose()
    services = document["services"]
    assert set(services) == {"postgres", "server", "deploy", "worker"}
    mounted = {volume.split(":")[0] for each in services.values() for volume in each.get("volumes", ())}
    assert mounted == set(document["volumes"])
    for each in services.values():
        for name, how in each.get("depends_on", {}).items():
            assert how["condition"] != "service_healthy" or "healthcheck" in services[name]
            assert how["condition"] != "service_completed_successfully" or services[name]["restart"] == "no"
    built = services["worker"]["build"]
    assert (COMPOSE.parent / built["context"] / built["dockerfile"]).is_file()
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / built["dockerfile"]).read_text(), re.MULTILINE)
    assert all((ROOT / name).exists() for names in copied for name in names.split())


def test_every_variable_of_compose_is_in_the_example() -> None:
    """Variables without a default are set there, the others are comments; no secret has a default."""
    example = (ROOT / "deploy/.env.example").read_text()
    used = set(re.findall(r"\$\{([A-Z_]+)(:[-?])?", COMPOSE.read_text()))
    optional = {name for name, how in used if how == ":-"}
    needed = {name for name, _ in used} - optional
    assert needed == {"POSTGRES_PASSWORD", "PREFECT_AUTH"}
    assert set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE)) == needed
    assert set(re.findall(r"^# ([A-Z_]+)=", example, re.MULTILINE)) == optional
    assert "/deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_worker_publishes_the_ports_of_the_settings() -> None:
    """Radars by UDP, ISL by TCP, and the control plane to this host alone."""
    settings = IngestSettings()
    assert compose()["services"]["worker"]["ports"] == [
        *(f"{radar.port}:{radar.port}/udp" for radar in settings.radars),
        f"{settings.isl.port}:{settings.isl.port}/tcp",
        f"127.0.0.1:{settings.control_plane.port}:{settings.control_plane.port}/tcp",
    ]


def test_the_worker_gets_more_time_to_stop_than_it_needs() -> None:
    """Else the engine would kill flow runs that drain."""
    from flows.local_prefect.stopping import WORKER_S  # noqa: PLC0415 - beside the value that it is compared with

    assert float(compose()["services"]["worker"]["stop_grace_period"].removesuffix("s")) > WORKER_S + 5
    assert WORKER_S < 30
