"""Every example of settings in the README and in docs/ is loaded as the command line does it, and as Prefect does it."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.utilities.schema_tools import validate

from flows.pipelines import FUSION, INGEST, PipelineKind
from flows.settings.fusion import FusionSettings
from flows.settings.load import load_settings
from tests.helpers.support import ROOT

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@dataclass(frozen=True)
class Example:
    """One example: where it is, what it is, and its text."""

    page: str
    line: int
    form: str
    text: str

    @property
    def kind(self) -> PipelineKind:
        """The pipeline that the example or its page is about."""
        if self.form == "parameters":
            return FUSION if "sda-fusion/" in self.text else INGEST
        if self.form == "variable":
            return FUSION if self.text.startswith(FUSION.prefix) else INGEST
        return FUSION if self.page in {"fusion.md", "screening.md", "alerts.md", "event-time.md"} else INGEST


FORMS = {
    "file": re.compile(r"```toml\n(.*?)```", re.DOTALL),
    "variable": re.compile(r"\b(SDA_(?:INGEST|FUSION)__\w+=(?:'[^']*'|[^\s`]+))"),
    "parameters": re.compile(r"(deployment run [\w/-]+\s[^`]*?'settings=[^']*')"),
}


def examples() -> Iterator[Example]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for form, pattern in FORMS.items():
            for match in pattern.finditer(text):
                yield Example(page.name, text.count("\n", 0, match.start()) + 1, form, match[1])


EXAMPLES = list(examples())


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(("SDA_INGEST__", "SDA_FUSION__")):
            monkeypatch.delenv(name)


def sent_to_prefect(kind: PipelineKind, parameters: dict[str, Any]) -> Any:
    """The settings that the flow has, after the server has checked the parameters and sent them as JSON."""
    flow = kind.load_flow()
    stored = json.loads(json.dumps(flow.serialize_parameters(parameters)))
    validate(stored, flow.parameters.model_dump_for_openapi(), raise_on_error=True)
    return flow.validate_parameters(stored)["settings"]


def test_the_pages_have_examples_of_each_form() -> None:
    """The patterns that find the examples match what the pages have."""
    assert {example.form for example in EXAMPLES} == set(FORMS)
    assert len(EXAMPLES) >= 8


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda each: f"{each.page}:{each.line}")
def test_every_documented_example_is_valid_on_the_command_line_and_in_prefect(
    example: Example, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have the same settings, and the topology is valid."""
    kind = example.kind
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sites.txt").write_text("4171 CB 52.8344 6.3785 10 Cees Bassa\n")  # the examples' file of stations
    if example.form == "parameters":
        (word,) = (word for word in shlex.split(example.text) if word.startswith("settings="))
        settings = sent_to_prefect(kind, {"settings": json.loads(word.removeprefix("settings="))})
    elif example.form == "variable":
        name, _, value = shlex.split(example.text)[0].partition("=")
        monkeypatch.setenv(name, value)
        settings = kind.load(None)
    else:
        (tmp_path / "settings.toml").write_text(example.text, encoding="utf-8")
        settings = kind.load(tmp_path / "settings.toml")
    assert sent_to_prefect(kind, {"settings": settings}) == settings
    kind.pipeline(settings).graph.validate()


def test_a_catalogue_address_is_used_from_a_file_from_a_variable_and_from_the_form_in_prefect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form sends every default beside the value that was changed."""
    address = "https://celestrak.org/NORAD/elements/gp.php?GROUP=active&FORMAT=csv"
    file = tmp_path / "settings.toml"
    file.write_text(f'[catalog]\nurl = "{address}"\n')
    from_file = load_settings(FusionSettings, file, prefix=FUSION.prefix)
    monkeypatch.setenv("SDA_FUSION__CATALOG__URL", address)
    from_variable = load_settings(FusionSettings, None, prefix=FUSION.prefix)
    form = json.loads(FusionSettings().model_dump_json())
    form["catalog"]["url"] = address
    from_form = sent_to_prefect(FUSION, {"settings": form})
    assert from_file == from_variable == from_form
    assert str(from_file.catalog.location) == address
    assert FusionSettings().catalog.location == Path("run/sda-fusion/catalog.json")
