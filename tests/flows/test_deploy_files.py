"""``prefect.yaml`` and ``deploy/``: what can be known of them without Prefect's server and without a container engine."""

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
    """``prefect.yaml``, the images' tags and the Dockerfile say what requirements.txt says."""
    version = pinned_prefect()
    assert str(yaml.safe_load((ROOT / "prefect.yaml").read_text())["prefect-version"]) == version
    for service in ("server", "deploy", "worker"):
        each = compose()["services"][service]
        assert each["image"].endswith(f":prefect-{version}")
        assert each["build"]["args"]["PREFECT_IMAGE"] == f"prefecthq/prefect:{version}-python3.11"
    assert f"ARG PREFECT_IMAGE=prefecthq/prefect:{version}-python3.11\n" in (ROOT / "deploy/Dockerfile").read_text()


@pytest.mark.parametrize("deployment", deployments(), ids=lambda each: each["name"])
def test_no_deployment_depends_on_the_api_while_it_runs(deployment: Any) -> None:
    """None has a concurrency limit, whose lease ends the flow; each bounds its event queue and sends heartbeats."""
    assert "concurrency_limit" not in deployment
    assert deployment["work_pool"]["name"] == POOL
    assert set(deployment["work_pool"]["job_variables"]["env"]) == {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY",
        "PREFECT_EVENTS_WORKER_MAX_QUEUE_SIZE",
    }


@pytest.mark.parametrize("deployment", deployments(), ids=lambda each: each["name"])
def test_every_deployment_says_what_it_is(deployment: Any) -> None:
    """A sentence, a tag, and an entry point whose file is there."""
    assert deployment["description"].endswith(".")
    assert "sda" in deployment["tags"]
    assert (ROOT / deployment["entrypoint"].split(":")[0]).is_file()


def test_every_prefect_variable_is_a_setting_of_prefect() -> None:
    """A name that Prefect does not know is silently without effect."""
    texts = [path.read_text() for path in (ROOT / "prefect.yaml", COMPOSE, ROOT / "flows/local_prefect/processes.py")]
    texts.append((ROOT / "flows/commands/up.py").read_text())
    ours = {"PREFECT_IMAGE", "PREFECT_AUTH", "PREFECT_LISTEN"} | {
        "PREFECT_PROFILE"
    }  # which chooses settings, but is none
    names = {name for text in texts for name in re.findall(r"\bPREFECT_[A-Z][A-Z_]*[A-Z]\b", text)} - ours
    assert len(names) > 8
    assert [name for name in sorted(names) if not hasattr(prefect.settings, name)] == []


def test_what_compose_refers_to_is_there() -> None:
    """Every named volume is declared, every service that another one waits for exists and can be waited for."""
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
    """Those without a default are set there, the others shown; no secret has a default."""
    example = (ROOT / "deploy/.env.example").read_text()
    used = set(re.findall(r"\$\{([A-Z_]+)(:[-?])?", COMPOSE.read_text()))
    optional = {name for name, how in used if how == ":-"}
    needed = {name for name, _ in used} - optional
    assert needed == {"POSTGRES_PASSWORD", "PREFECT_AUTH"}
    assert set(re.findall(r"^([A-Z_]+)=", example, re.MULTILINE)) == needed
    assert set(re.findall(r"^# ([A-Z_]+)=", example, re.MULTILINE)) == optional
    assert "/deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_worker_publishes_the_ports_that_the_settings_name() -> None:
    """Radars by UDP, ISL by TCP, and the control plane to this host alone."""
    settings = IngestSettings()
    assert compose()["services"]["worker"]["ports"] == [
        *(f"{radar.port}:{radar.port}/udp" for radar in settings.radars),
        f"{settings.isl.port}:{settings.isl.port}/tcp",
        f"127.0.0.1:{settings.control_plane.port}:{settings.control_plane.port}/tcp",
    ]


def test_the_worker_is_given_longer_to_stop_than_it_takes() -> None:
    """Else the engine kills what still drains."""
    from flows.commands.worker import STOP_S  # noqa: PLC0415 - beside what it is compared with

    assert float(compose()["services"]["worker"]["stop_grace_period"].removesuffix("s")) > STOP_S + 5
    assert STOP_S < 30
