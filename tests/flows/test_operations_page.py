"""``docs/operations.md``: its settings, exit codes, ports and metrics are those of the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from prometheus_client.registry import Collector

from flows.pipelines import INGEST
from flows.settings.fusion import FusionSettings
from flows.settings.ingest import IngestSettings
from flows.settings.load import load_settings
from flows.settings.sections import Section
from orchestrator_adapter.process import ExitCode
from sda_ops.alerts.metrics import AlertMetrics, AlertOutcome
from sda_ops.event_time.metrics import EventTimeMetrics, LateOutcome
from sda_ops.event_time.watermark import Watermark
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


def families_of(*collectors: Collector) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Type and labels of each family, by the name that Prometheus has."""
    found = {}
    for family in (family for collector in collectors for family in collector.collect()):
        labels = {label for sample in family.samples for label in sample.labels if label != "le"}
        found[f"{family.name}_total" if family.type == "counter" else family.name] = (
            family.type,
            tuple(sorted(labels)),
        )
    return found


def of_sda_ops() -> dict[str, tuple[str, tuple[str, ...]]]:
    """Of event time and of alerts, each with at least one sample."""
    event_time = EventTimeMetrics(sources=["a"], operators=["b"])
    event_time.source_mark(Watermark(1, "a"))
    event_time.pipeline_mark(Watermark(1, "a"))
    event_time.source_lag("a", [1])
    event_time.pipeline_lag("a", [1])
    event_time.windows("b", 1, 1)
    return families_of(event_time, AlertMetrics(subscribers=["c"]))


def test_every_metric_of_event_time_and_of_alerts_is_documented_with_type_and_labels() -> None:
    """And no other."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|([^|]*)\|", table("Metrics of event time and of alerts"), re.MULTILINE)
    documented = {
        name: (kind, tuple(sorted(filter(None, (label.strip() for label in labels.split(","))))))
        for name, kind, labels in rows
    }
    assert documented == of_sda_ops()


def test_every_outcome_that_is_counted_is_explained() -> None:
    """Of late items and of alerts."""
    text = table("Metrics of event time and of alerts")
    assert [each for each in (*get_args(LateOutcome), *get_args(AlertOutcome)) if f"`{each}`" not in text] == []
