"""Addresses in settings: credentials are rejected, and a reference leads to the whole address."""

from __future__ import annotations

from pathlib import Path

import pytest
from prefect.utilities.schema_tools import validate
from pydantic import TypeAdapter, ValidationError

from flows.ingest import sda_ingest
from flows.pipelines import FUSION, INGEST
from flows.settings.addresses import Address, SchedulerAddress, SecretUnavailable, value_of, with_secrets
from flows.settings.fusion import FusionSettings
from flows.settings.ingest import IngestSettings

PASSWORD = "hunter2"


@pytest.mark.parametrize(
    "text",
    [
        "https://archive.example/observations?GROUP=active&FORMAT=csv",
        "http://[::1]:9300/",
        "secret:archive",
        "env:ARCHIVE_URL",
        "file:/run/secrets/archive",
    ],
)
def test_an_address_without_credentials_and_a_reference_are_kept_as_they_are(text: str) -> None:
    """In the settings, in a dump of them, and in JSON."""
    settings = IngestSettings.model_validate({"optical": {"url": text}})
    assert str(settings.optical.url) == text
    assert settings.model_dump()["optical"]["url"] == text
    assert settings.optical.url.is_reference is not text.startswith("http")


@pytest.mark.parametrize(
    ("url", "what"),
    [
        (f"https://me:{PASSWORD}@archive.example/", "a user or password"),
        (f"https://{PASSWORD}@archive.example/", "a user or password"),
        (f"https://archive.example/?since=1&token={PASSWORD}", "the parameter 'token'"),
        (f"https://archive.example/?API_KEY={PASSWORD}", "the parameter 'API_KEY'"),
    ],
)
def test_an_address_with_credentials_is_rejected_and_not_repeated(url: str, what: str) -> None:
    """Settings are stored and shown in clear. The message says where the secret can be put."""
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(Address).validate_python(url)
    (problem,) = raised.value.errors()
    assert problem["msg"] == (
        f"Value error, the address has {what}, and settings are stored and shown in clear; put the whole address elsewhere, "
        "and write secret:NAME (a Secret block of Prefect), env:NAME or file:PATH"
    )


@pytest.mark.parametrize(
    "text", ["", "nonsense", "ftp://archive", "http://", "http://a b/", "http://a:99999/", "secret:", "env: "]
)
def test_what_is_neither_an_address_nor_a_reference_is_rejected(text: str) -> None:
    """With the value, if it cannot have a secret."""
    with pytest.raises(ValidationError, match="expected"):
        TypeAdapter(Address).validate_python(text)


def test_a_scheduler_may_have_any_scheme() -> None:
    """The rules for credentials are the same."""
    assert TypeAdapter(SchedulerAddress).validate_python("tcp://scheduler:8786") == "tcp://scheduler:8786"
    with pytest.raises(ValidationError, match="has a user or password"):
        TypeAdapter(SchedulerAddress).validate_python(f"tls://me:{PASSWORD}@scheduler:8786")


@pytest.mark.parametrize(
    ("url", "is_stored"),
    [(f"http://me:{PASSWORD}@archive/", False), ("http://archive:1/x@y?a=b", True), ("secret:archive", True)],
)
def test_prefect_s_check_of_parameters_rejects_credentials_before_a_run_is_created(url: str, is_stored: bool) -> None:  # noqa: FBT001 - parametrized
    """A Prefect server validates the parameters of a deployment's run against this schema before it stores them."""
    schema = sda_ingest.parameters.model_dump_for_openapi()
    assert (not validate({"settings": {"optical": {"url": url}}}, schema)) is is_stored


def test_a_reference_is_resolved_for_the_pipeline_and_the_settings_keep_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In sections, lists and optional sections; what has no reference stays the same object."""
    (tmp_path / "archive").write_text(f"https://me:{PASSWORD}@archive.example/\n")
    monkeypatch.setenv("CATALOG_URL", f"https://catalog.example/?token={PASSWORD}")
    settings = FusionSettings.model_validate(
        {
            "opticals": [
                {"name": "optical-01", "url": f"file:{tmp_path / 'archive'}"},
                {"name": "optical-02", "url": "http://127.0.0.1:1/"},
            ],
            "catalog": {"url": "env:CATALOG_URL"},
        }
    )
    resolved = with_secrets(settings)
    assert resolved.opticals[0].url == f"https://me:{PASSWORD}@archive.example/"
    assert resolved.catalog.url == f"https://catalog.example/?token={PASSWORD}"
    assert resolved.opticals[1] is settings.opticals[1]
    assert resolved.radars is settings.radars
    assert PASSWORD not in repr(settings) + settings.model_dump_json()
    assert with_secrets(resolved) is resolved


@pytest.mark.parametrize(
    ("reference", "why"),
    [
        ("env:NO_SUCH_VARIABLE", "there is no such environment variable"),
        ("file:/no/such/file", "No such file or directory"),
        ("secret:archive", "a run without Prefect has no blocks; write env:NAME or file:PATH"),
        ("env:NOT_AN_ADDRESS", "expected the address http://…, https://… as its content"),
    ],
)
def test_a_reference_that_leads_to_nothing_is_an_error_in_one_line(
    reference: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the reference; no part of the content is repeated."""
    monkeypatch.setenv("NOT_AN_ADDRESS", PASSWORD)
    with pytest.raises(SecretUnavailable) as raised:
        value_of(Address(reference))
    assert str(raised.value) == f"{reference}: {why}"


def test_a_pipeline_is_drawn_without_its_secrets() -> None:
    """``check`` needs no secret, and ``pipeline_to_run`` does."""
    ingest = IngestSettings.model_validate({"optical": {"url": "env:NO_SUCH_VARIABLE"}})
    fusion = FusionSettings.model_validate({"catalog": {"url": "secret:no-such-block"}})
    INGEST.pipeline(ingest).graph.validate()
    FUSION.pipeline(fusion).graph.validate()
    for kind, settings in ((INGEST, ingest), (FUSION, fusion)):
        with pytest.raises(SecretUnavailable):
            kind.pipeline_to_run(settings)
