"""``python -m flows automations`` as far as it goes without a server: what it refuses, what it says, what it would do."""

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
        (["--zombie-after", "9"], None, "--zombie-after: Prefect admits no less than 10 s, got 9"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: list[str], heartbeat_s: int | None, problem: str) -> None:
    """Each is one sentence that says what was expected and what came."""
    (said,) = problems_with(parser().parse_args(["automations", *options]), heartbeat_s)
    assert said.startswith(problem)


@pytest.mark.parametrize(
    ("options", "heartbeat_s"),
    [([], 180), (["--zombie-after", "540"], 180), (["--zombie-after", "90"], 30), (["--zombie-after", "60"], None)],
)
def test_options_that_can_be_meant_are_not_refused(options: list[str], heartbeat_s: int | None) -> None:
    """Three heartbeats are enough; where this environment sends none, any watch that Prefect admits is."""
    assert problems_with(parser().parse_args(["automations", *options]), heartbeat_s) == []


@pytest.mark.parametrize(
    ("options", "heartbeat_s", "beginnings"),
    [
        ([], 180, ["nobody is notified, so there is no alarm:"]),
        (["--on-flapping", "notify"], 180, ["nobody is notified, so there is no alarm and no flapping:"]),
        (["--webhook", "http://x"], 180, []),
        (["--block", "slack-webhook/x"], None, ["no zombie:"]),
        (["--block", "slack-webhook/x", "--zombie-after", "90"], None, []),
    ],
)
def test_what_is_left_undone_is_said(options: list[str], heartbeat_s: int | None, beginnings: list[str]) -> None:
    """Without somebody to notify, and without heartbeats, a sentence says what is missing and how to have it."""
    said = unmet(parser().parse_args(["automations", *options]), heartbeat_s)
    assert [sentence[: len(beginning)] for sentence, beginning in zip(said, beginnings, strict=True)] == beginnings


def test_a_dry_run_needs_no_server(capsys: pytest.CaptureFixture[str]) -> None:
    """It prints one line for each automation that would be installed, sized as asked."""
    assert (
        main(["automations", "--dry-run", "--webhook", "http://127.0.0.1/x", "--restarts", "3", "--within", "60"]) == 0
    )
    out = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1] for line in out] == ["alarm", "flapping", "zombie", "reaped"]
    assert "4 of orchestrator.operator.restart within 60 s" in out[1]
    assert "call-webhook" in out[0]


def test_without_a_server_to_talk_to_it_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1 and one line, whether PREFECT_API_URL is unset or names a port where nobody listens."""
    assert main(["automations"]) == 1
    assert capsys.readouterr().err == "automations: automations live on a Prefect server: set PREFECT_API_URL\n"
    url = f"http://127.0.0.1:{Addresses.free().archive}/api"
    monkeypatch.setenv("PREFECT_API_URL", url)
    assert main(["automations", "--remove", "--api-wait", "0"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"automations: no Prefect API answers at {url} (PREFECT_API_URL): ")
