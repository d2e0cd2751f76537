"""The settings of alerts: what they mean for the outbox, which mistakes are one clear line, and that no secret is shown."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from flows.pipelines import FUSION
from flows.settings.addresses import Address, SecretUnavailable, with_secrets
from flows.settings.alerts import AlertSettings, SubscriberSettings
from flows.settings.fusion import FusionSettings
from flows.settings.load import SettingsError
from sda_ops.alerts.outbox.rules import AlertRules, SubscriberRules
from sda_ops.alerts.outbox.values import Bounds

SECRET = "a secret of thirty-one letters!"
SUBSCRIBER = """
[[alerts.subscribers]]
name = "dynamics"
url = "https://dynamics.example/alerts"
"""


def loaded(tmp_path: Path, text: str) -> FusionSettings:
    file = tmp_path / "fusion.toml"
    file.write_text(text, encoding="utf-8")
    settings = FUSION.load(file)
    assert isinstance(settings, FusionSettings)
    return settings


def test_defaults_are_those_of_the_outbox() -> None:
    settings = FusionSettings().alerts
    assert (settings.rules(), settings.bounds()) == (AlertRules(), Bounds())
    assert settings.outbox == Path("run/sda-fusion/alerts/alerts.sqlite")
    subscriber = SubscriberSettings(name="a", url=Address("https://a.example/"))
    assert subscriber.rules() == SubscriberRules(name="a")


def test_every_setting_reaches_the_outbox(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        """
        [alerts]
        miss_distance_m = 2000
        min_severity = "low"
        fleets = true
        keep_days = 2
        max_age_days = 0.5
        max_mib = 64

        [[alerts.subscribers]]
        name = "dynamics"
        url = "https://dynamics.example/alerts"
        min_severity = "high"
        miss_distance_m = 500
        min_probability = 1e-5
        objects = [25544, 5]
        min_observations = 3
        miss_change = 0.5
        probability_factor = 10
        tca_shift_s = 60
        finals = true
        """,
    ).alerts
    assert settings.rules() == AlertRules(miss_distance_m=2_000.0, min_severity="low", fleets=True)
    assert settings.bounds() == Bounds(keep=timedelta(days=2), max_age=timedelta(hours=12), max_bytes=64 * 2**20)
    assert settings.subscribers[0].rules() == SubscriberRules(
        name="dynamics",
        min_severity="high",
        miss_distance_m=500.0,
        min_probability=1e-5,
        objects=frozenset({5, 25_544}),
        min_observations=3,
        miss_change=0.5,
        probability_factor=10.0,
        tca_shift_s=60.0,
        finals=True,
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (SUBSCRIBER + SUBSCRIBER, "[alerts]: subscribers: names must differ, got dynamics more than once"),
        (SUBSCRIBER + 'format = "xml"\n', "format: Input should be 'json', 'cdm-kvn' or 'cdm-xml', got 'xml'"),
        (SUBSCRIBER + 'min_severty = "high"\n', "there is no such setting; did you mean min_severity?"),
        (
            SUBSCRIBER + "miss_distance_m = 5000\n",
            (
                "subscribers: dynamics: miss_distance_m must be <= that of [alerts], 1000, because farther conjunctions "
                "become no alerts: got 5000"
            ),
        ),
        (
            SUBSCRIBER + 'min_severity = "low"\n',
            (
                "subscribers: dynamics: min_severity must not be below that of [alerts], medium, because less severe "
                "conjunctions become no alerts: got low"
            ),
        ),
        (
            SUBSCRIBER + "[screening]\nenabled = false\n",
            "alerts.subscribers: alerts come from screening; set screening.enabled = true, or alerts.enabled = false",
        ),
        ('[[alerts.subscribers]]\nname = "a b"\nurl = "https://a.example/"\n', "name: String should match pattern"),
    ],
)
def test_a_mistake_is_one_line_that_says_where_and_what(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, text)
    (line,) = caught.value.problems
    assert problem in line
    assert str(tmp_path / "fusion.toml") in line


def test_several_mistakes_are_reported_together(tmp_path: Path) -> None:
    text = f'{SUBSCRIBER}miss_distance_m = 5000\n{SUBSCRIBER}min_severity = "low"\n'
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, text)
    parts = ("names must differ", "miss_distance_m must be", "min_severity must not")
    assert [part in line for part, line in zip(parts, caught.value.problems, strict=True)] == [True] * len(parts)


def test_a_secret_in_the_settings_is_rejected_and_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, f'{SUBSCRIBER}secret = "{SECRET}"\n')
    (line,) = caught.value.problems
    assert line.endswith(
        "[alerts.subscribers #1] secret: settings are stored and shown in clear; put the secret elsewhere, and write "
        "secret:NAME (a Secret block of Prefect), env:NAME or file:PATH"
    )
    assert SECRET not in line


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ('[alerts.subscribers]\nsecret = "{}"\n', "expected a list of tables, [[alerts.subscribers]], got a table"),
        ('[[alerts.subscribers]]\nname = "a"\nurl = "http://a/"\nsecret = ["{}"]\n', "should be a valid string"),
        ('[alerts]\nsubscribers = [["{}"]]\n', "[alerts.subscribers #1]: expected a table, got a list"),
    ],
)
def test_a_secret_in_a_setting_of_the_wrong_type_is_not_repeated(tmp_path: Path, wrong: str, problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        loaded(tmp_path, wrong.format(SECRET))
    (line,) = caught.value.problems
    assert problem in line
    assert SECRET not in line


def test_a_secret_in_a_variable_that_is_not_json_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDA_FUSION__ALERTS__SUBSCRIBERS", f'[{{"secret": "{SECRET}"')
    with pytest.raises(SettingsError) as caught:
        FUSION.load(None)
    (line,) = caught.value.problems
    assert "SDA_FUSION__ALERTS__SUBSCRIBERS: expected JSON" in line
    assert SECRET not in line


def test_each_reference_to_no_secret_is_reported(tmp_path: Path) -> None:
    settings = loaded(tmp_path, '[[alerts.subscribers]]\nname = "a"\nurl = "env:NO_URL"\nsecret = "file:/no/such"\n')
    with pytest.raises(SecretUnavailable) as raised:
        with_secrets(settings)
    assert str(raised.value).splitlines() == [
        "env:NO_URL: there is no such environment variable",
        "file:/no/such: No such file or directory",
    ]


def test_the_secret_and_the_address_are_known_to_the_pipeline_and_in_no_dump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The settings of a pipeline that runs do not show the secret either, should they ever be logged."""
    (tmp_path / "secret").write_text(SECRET + "\n")
    monkeypatch.setenv("RECEIVER", "https://me:pass@dynamics.example/")
    text = f'[[alerts.subscribers]]\nname = "a"\nurl = "env:RECEIVER"\nsecret = "file:{tmp_path}/secret"\n'
    settings = loaded(tmp_path, text)
    assert SECRET not in settings.model_dump_json()
    running = with_secrets(settings).alerts
    assert running.subscribers[0].secret == SECRET
    assert running.subscribers[0].url == "https://me:pass@dynamics.example/"
    assert SECRET not in repr(running)
    assert "me:pass" not in repr(running)


@pytest.mark.parametrize(
    ("secret", "is_usable"),
    [
        ("x" * 24, True),
        ("x" * 23, False),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", True),  # the example of Standard Webhooks: 24 bytes
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLa==", False),
        ("whsec_" + "?" * 40, False),
    ],
)
def test_a_secret_that_is_too_short_stops_the_start_with_the_reference_and_the_length(
    monkeypatch: pytest.MonkeyPatch, secret: str, *, is_usable: bool
) -> None:
    monkeypatch.setenv("SIGNING", secret)
    document = {"subscribers": [{"name": "a", "url": "https://a.example/", "secret": "env:SIGNING"}]}
    settings = AlertSettings.model_validate(document)
    if is_usable:
        assert with_secrets(settings).subscribers[0].secret == secret
        return
    with pytest.raises(SecretUnavailable) as raised:
        with_secrets(settings)
    expected = "env:SIGNING: expected a secret of at least 24 bytes, or whsec_ and base64 as its content"
    assert str(raised.value) == expected
