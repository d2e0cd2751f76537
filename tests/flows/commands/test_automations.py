"""``python -m flows automations`` without a server: rejected options, messages, dry runs."""

from __future__ import annotations

import pytest

from flows.__main__ import main, parser
from flows.commands.automations import problems_with, unmet
from tests.helpers.support import Addresses


@pytest.fixture(autouse=True)
def _no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


@pytest.mark.parametrize(
    ("options", "heartbeat_s", "problem"),
    [
        (
            ["--webhook", "hooks.example/x"],
            180,
            "--webhook: expected an http:// or https:// URL, got 'hooks.example/x'",
        ),
        (["--restarts", "0"], 180, "--restarts: expected at least 1, got 0"),
        (["--within", "nan"], 180, "--within: expected more than 0 s, got nan"),
        (["--zombie-after", "539"], 180, "--zombie-after 539 would crash live runs: heartbeats come every 180 s"),
        (["--zombie-after", "9"], None, "--zombie-after: Prefect accepts no less than 10 s, got 9"),
    ],
)
def test_invalid_options_are_rejected(options: list[str], heartbeat_s: int | None, problem: str) -> None:
    """One sentence each, with the expected and the given value."""
    (found,) = problems_with(parser("automations").parse_args(["automations", *options]), heartbeat_s)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("options", "heartbeat_s"),
    [([], 180), (["--zombie-after", "540"], 180), (["--zombie-after", "90"], 30), (["--zombie-after", "60"], None)],
)
def test_valid_options_are_accepted(options: list[str], heartbeat_s: int | None) -> None:
    """Three heartbeats are enough; without heartbeats, any time that Prefect accepts."""
    assert problems_with(parser("automations").parse_args(["automations", *options]), heartbeat_s) == []


@pytest.mark.parametrize(
    ("options", "heartbeat_s", "beginnings"),
    [
        ([], 180, ["no notification is configured, so there is no alarm:"]),
        (["--on-flapping", "notify"], 180, ["no notification is configured, so there is no alarm and no flapping:"]),
        (["--flow", "sda-fusion"], 180, ["no notification is configured, so there is no alarm and no alerts:"]),
        (["--webhook", "http://x"], 180, []),
        (["--block", "slack-webhook/x"], None, ["no zombie:"]),
        (["--block", "slack-webhook/x", "--zombie-after", "90"], None, []),
    ],
)
def test_each_missing_automation_is_named(options: list[str], heartbeat_s: int | None, beginnings: list[str]) -> None:
    """Without a notification or without heartbeats, a sentence says what is missing and which option adds it."""
    missing = unmet(parser("automations").parse_args(["automations", *options]), heartbeat_s)
    assert [sentence[: len(beginning)] for sentence, beginning in zip(missing, beginnings, strict=True)] == beginnings


def test_a_dry_run_needs_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    """It prints one line for each automation that it would install, with the values of the options."""
    assert (
        main(["automations", "--dry-run", "--webhook", "http://127.0.0.1/x", "--restarts", "3", "--within", "60"]) == 0
    )
    out = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in out] == ["alarm", "flapping", "zombie", "reaped"]
    assert "4 of orchestrator.operator.restart within 60 s" in out[1]
    assert "call-webhook" in out[0]


@pytest.mark.parametrize(
    ("options", "installed"),
    [
        ([], False),
        (["--flow", "sda-fusion"], True),
        (["--flow", "sda-fusion", "--alerts", "none"], False),
        (["--flow", "mine", "--alerts", "high"], True),
    ],
)
def test_alerts_are_notified_of_for_the_pipeline_that_has_them(
    options: list[str],
    installed: bool,  # noqa: FBT001 - a test parameter
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By default for ``sda-fusion`` only."""
    assert main(["automations", "--webhook", "http://x", "--dry-run", *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    least = "high" if "high" in options else "medium or high"
    expected = f": alerts: 1 of conjunction.alert with conjunction.severity {least} -> call-webhook"
    assert sum(expected in line for line in lines) == installed


def test_without_a_server_it_ends_with_1(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With one line, if PREFECT_API_URL is unset and if it names a closed port."""
    assert main(["automations"]) == 1
    assert capsys.readouterr().err == "automations: automations live on a Prefect server: set PREFECT_API_URL\n"
    url = f"http://127.0.0.1:{Addresses.free().archive}/api"
    monkeypatch.setenv("PREFECT_API_URL", url)
    assert main(["automations", "--remove", "--api-wait", "0"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"automations: no Prefect API answers at {url} (PREFECT_API_URL): ")
