"""The section ``control_plane``: the token is a reference and stays one; unsafe access is one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.pipelines import INGEST
from flows.settings.addresses import SecretUnavailable, with_secrets
from flows.settings.fusion import FusionSettings
from flows.settings.ingest import IngestSettings
from flows.settings.load import SettingsError, load_settings
from tests.helpers.acting import TOKEN

ACTING = {"port": 0, "actions": True, "token": "env:ONE_TOKEN"}


def plane(**values: Any) -> dict[str, Any]:
    return {"control_plane": values}


@pytest.mark.parametrize("model", [IngestSettings, FusionSettings])
@pytest.mark.parametrize("reference", ["env:ONE_TOKEN", "file:{folder}/token"])
def test_the_token_is_resolved_for_the_pipeline_and_the_settings_keep_the_reference(
    model: type[IngestSettings | FusionSettings], reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings are what Prefect stores as parameters, and what a report and an artifact show."""
    monkeypatch.setenv("ONE_TOKEN", TOKEN)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    reference = reference.format(folder=tmp_path)
    settings = model.model_validate(plane(**ACTING | {"token": reference}))
    resolved = with_secrets(settings)
    assert resolved.control_plane.token == TOKEN
    assert settings.model_dump(mode="json")["control_plane"]["token"] == reference
    assert TOKEN not in f"{settings!r} {settings.model_dump_json()} {resolved!r}"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "there is no such environment variable"),
        ("too-short", "expected 16 or more visible ASCII characters without spaces as its content"),
        ("sixteen characters, but with spaces", "expected 16 or more visible ASCII characters without spaces"),
    ],
)
def test_a_token_that_is_missing_or_too_weak_is_one_line_without_its_content(
    content: str | None, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the run begins, because the token is looked up there."""
    if content is not None:
        monkeypatch.setenv("ONE_TOKEN", content)
    with pytest.raises(SecretUnavailable) as raised:
        with_secrets(IngestSettings.model_validate(plane(**ACTING)))
    assert str(raised.value).startswith(f"env:ONE_TOKEN: {why}")
    assert "\n" not in str(raised.value)
    assert content is None or content not in str(raised.value)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"token": TOKEN}, "put the secret elsewhere, and write secret:NAME"),
        ({"actions": True}, "actions need a token"),
        ({"behind_proxy": True}, "behind_proxy needs a token"),
        ({"host": "0.0.0.0"}, "'0.0.0.0' can be reached from other machines, so it needs a token and a certificate"),
        ({"host": "0.0.0.0", "token": "env:ONE_TOKEN"}, "so it needs a certificate and its key for TLS"),
        ({"tls_certificate": "c.pem"}, "tls_certificate and tls_key must be set together"),
        ({"tokn": "env:ONE_TOKEN"}, "[control_plane] tokn: there is no such setting; did you mean token?"),
    ],
)
def test_an_access_that_is_not_safe_is_one_line_with_the_section(
    values: dict[str, Any], says: str, tmp_path: Path
) -> None:
    """As a user of ``python -m flows`` sees it. A token in clear is not repeated."""
    file = tmp_path / "settings.toml"
    lines = (f"{name} = {json.dumps(value)}" for name, value in values.items())
    file.write_text("\n".join(["[control_plane]", *lines]))
    with pytest.raises(SettingsError) as raised:
        load_settings(IngestSettings, file, prefix=INGEST.prefix)
    (problem,) = raised.value.problems
    assert says in problem
    assert "control_plane" in problem
    assert "\n" not in problem
    assert TOKEN not in problem
