"""``docs/runbook`` and ``docs/on-call.md``: a page for each alert, and everything that they name exists."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # it comes with Prefect, its stubs do not

from flows.__main__ import parser
from scripts import grafana_dashboard
from tests.helpers.expositions import expositions
from tests.helpers.promql import Schema
from tests.helpers.support import ROOT

RUNBOOK = ROOT / "docs" / "runbook"
ON_CALL = ROOT / "docs" / "on-call.md"
SECTIONS = ["Meaning", "First look", "Causes", "If nothing fits", "It is over when"]
RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
    if "alert" in rule
}
PAGES = [*sorted(RUNBOOK.glob("*.md")), ON_CALL]
PATHS = {"health", "metrics", "graph", "events", "dead-letters", "actions"}
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def test_every_alert_has_a_page_and_every_page_has_an_alert() -> None:
    """The rule's runbook_url leads to it."""
    assert {page.stem for page in RUNBOOK.glob("*.md")} == set(RULES)
    for rule in RULES.values():
        assert (ROOT / rule["annotations"]["runbook_url"]).is_file()


@pytest.mark.parametrize("name", RULES)
def test_a_page_has_every_section_in_order_and_the_severity_of_the_rule(name: str) -> None:
    """A table of at least two causes; a query; links only to files that exist."""
    text = (RUNBOOK / f"{name}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n\nSeverity: {RULES[name]['labels']['severity']}: ")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    sections = re.split(r"^## .*$", text, flags=re.MULTILINE)[1:]
    assert all(len(section.strip()) > 20 for section in sections)
    causes = re.findall(r"^\| .* \| .* \| .* \|$", sections[SECTIONS.index("Causes")], re.MULTILINE)
    assert causes[0] == "| you see | cause | do |"
    assert len(causes) >= 1 + 1 + 2
    links = re.findall(r"\]\(([^)#]+)", text)
    assert [link for link in links if not (RUNBOOK / link).exists()] == []


@pytest.fixture(scope="module")
def names() -> set[str]:
    """Metrics, log events, settings, and figures of operators."""
    metrics = {re.sub(r"_(bucket|sum|count)$", "", name) for name in Schema.of(asyncio.run(expositions())).series}
    tables = [ROOT / "docs" / "operations.md", ROOT / "docs" / "log-events.md", ROOT / "docs" / "bulkhead.md"]
    rows = [
        row for page in tables if page.exists() for row in re.findall(r"^\| (`.*?) \|", page.read_text(), re.MULTILINE)
    ]
    events = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    settings = {
        name
        for path in (ROOT / "flows" / "settings").glob("*.py")
        for name in re.findall(r"^    (\w+): ", path.read_text(), re.MULTILINE)
    }
    return metrics | events | settings | {"last_screening_age_s"} | _FIELDS


_FIELDS = {"contact_ns", "promised_ns", "progress_timeout", "exit_code", "receive_buffer_bytes"}


@each_page
def test_every_metric_event_and_setting_that_a_page_names_exists(page: Path, names: set[str]) -> None:
    """Names in backquotes, and those that jq selects."""
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z]+(?:_[a-z0-9]+)+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))
    named |= set(re.findall(r'\.event == "(\w+)"', text))
    assert sorted(named - names) == []


@each_page
def test_every_command_of_a_page_exists(page: Path) -> None:
    """python -m flows accepts its arguments; targets of make, and paths of the control plane."""
    makefile = (ROOT / "Makefile").read_text()
    for command in commands_of(page):
        for words in re.findall(r"-m flows ([^|>]+)", command):
            arguments = shlex.split(words, comments=True)
            parser(arguments[0]).parse_args(arguments)
        for target in re.findall(r"\bmake ([a-z-]+)", command):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), command
        for path in re.findall(r":910[01]/([a-z-]*)", command):
            assert path in PATHS, command


@each_page
def test_the_shell_can_parse_every_command_of_a_page(page: Path) -> None:
    """No quote is left open."""
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        done = subprocess.run(["bash", "-n", "-c", block], capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, done.stderr


def test_the_sheet_fits_on_one_page_and_names_panels_that_exist() -> None:
    """Sixty lines; titles of the dashboard in quotes."""
    text = ON_CALL.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 60
    titles = {panel["title"] for panel in grafana_dashboard.PANELS} | {grafana_dashboard.dashboard()["title"]}
    (table,) = re.findall(r"^\| question.*?\n\n", text, re.MULTILINE | re.DOTALL)
    named = re.findall(r'"([^"]+)"', table)
    assert len(named) > 7
    assert [title for title in named if title not in titles] == []


def commands_of(page: Path) -> Iterator[str]:
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        yield from filter(None, block.splitlines())
