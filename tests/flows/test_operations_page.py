"""``docs/operations.md``: its settings, exit codes, ports, metrics and events are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from flows.pipelines import INGEST
from flows.settings.fusion import FusionSettings
from flows.settings.ingest import IngestSettings
from flows.settings.load import load_settings
from flows.settings.sections import Section
from orchestrator_adapter.primitives.decision import Decision
from orchestrator_adapter.process import ExitCode
from tests.helpers.support import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def table(heading: str) -> str:
    """The text after a heading, up to the next one."""
    return re.split(r"^##", PAGE.split(f"# {heading}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_the_example_of_the_settings_is_valid(tmp_path: Path) -> None:
    """It sets the paths that it shows."""
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    file = tmp_path / "settings.toml"
    file.write_text(example)
    settings = load_settings(IngestSettings, file, prefix=INGEST.prefix)
    assert settings.event_log.directory == Path("/data/log")
    assert settings.radars[0].receive_buffer_bytes == 8_388_608


def test_the_exit_codes_are_those_of_the_process() -> None:
    """All of them, in order."""
    codes = re.findall(r"^\| (\d) \|", table("Exit codes"), re.MULTILINE)
    assert [int(code) for code in codes] == [int(code) for code in ExitCode]


def test_the_default_ports_and_paths_are_those_of_the_settings() -> None:
    """Of both pipelines."""
    ingest, fusion = IngestSettings(), FusionSettings()
    text = table("Settings")
    ports = [
        *(radar.port for radar in (*ingest.radars, fusion.radars[0], fusion.radars[-1])),
        *(ingest.isl.port, ingest.control_plane.port),
        *(isl.port for isl in fusion.isls),
        fusion.control_plane.port,
    ]
    assert [port for port in ports if str(port) not in text] == []
    assert ingest.event_log.directory == Path("run/sda-ingest/log")
    assert ingest.dead_letters.directory == Path("run/sda-ingest/dead-letters")
    assert ingest.report == Path("run/sda-ingest/report.json")


def test_every_setting_that_the_page_names_exists() -> None:
    """Written as ``section.name``."""
    named = re.findall(r"`(shutdown|optical|isl|prefect)\.(\w+)`", PAGE)
    assert named
    for section, name in named:
        settings: Section = getattr(IngestSettings(), section)
        assert name in type(settings).model_fields


def test_the_metrics_that_matter_are_documented_metrics() -> None:
    """``docs/control-plane.md`` lists each of them."""
    reference = (ROOT / "docs" / "control-plane.md").read_text(encoding="utf-8")
    first_cells = re.findall(r"^\| (`.*?) \|", table("Metrics that matter"), re.MULTILINE)
    names = [name for cell in first_cells for name in re.findall(r"`(\w+)", cell)]
    assert len(names) > 12
    assert [name for name in names if f"`{name}`" not in reference] == []


def test_every_decision_is_in_the_table_of_events() -> None:
    """With its name in the log."""
    text = table("The log")
    assert [decision.value for decision in Decision if f"`{decision}`" not in text] == []
