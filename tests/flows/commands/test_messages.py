"""Standard error of the commands: plain text on a terminal, JSON lines elsewhere."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.prefect_server import PrefectServer
from tests.helpers.support import ROOT

SETTINGS = """
report = "{folder}/report.json"
[[radars]]
name = "radar-01"
port = 0
[optical]
url = "http://127.0.0.1:9/observations"
[isl]
port = 0
[event_log]
directory = "{folder}/log"
[dead_letters]
directory = "{folder}/dead"
[control_plane]
port = 0
[prefect]
directory = "{folder}/prefect"
"""
WITHOUT = ("SDA_INGEST__", "PREFECT_", "FORCE_COLOR")


def command(folder: Path, *options: str) -> list[str]:
    settings = folder / "settings.toml"
    settings.write_text(SETTINGS.format(folder=folder))
    return [sys.executable, "-m", "flows", "ingest", "--config", str(settings), *options]


def environment(**more: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(WITHOUT)} | more


def json_lines(text: str) -> list[dict[str, Any]]:
    """Each line as a JSON object with the fields that every line has."""
    lines = [json.loads(line) for line in text.splitlines()]
    for line in lines:
        assert list(line)[:4] == ["time", "level", "event", "run"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", line["time"])
        assert line["level"] in {"INFO", "WARNING", "ERROR"}
    return lines


def test_standard_error_of_a_run_has_json_lines_only(tmp_path: Path) -> None:
    """Without a terminal there is no live progress; each line has time, level, event and run."""
    done = subprocess.run(
        command(tmp_path, "--no-api", "--duration", "1"),
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = json_lines(done.stderr)
    assert {"control_plane", "spawn", "ended"} <= {line["event"] for line in lines}
    (run,) = {line["run"] for line in lines}
    assert run.startswith("sda-ingest-")
    assert done.stdout.startswith("ShutDown after ")


def test_waiting_for_an_api_is_a_json_line_and_its_failure_a_line_of_text(tmp_path: Path) -> None:
    """Exit code 1: the last line is the problem, in plain text."""
    done = subprocess.run(
        command(tmp_path, "--api-wait", "3"),
        env=environment(PREFECT_API_URL="http://127.0.0.1:9/api"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    *lines, problem = done.stderr.splitlines()
    (line,) = json_lines("\n".join(lines))
    assert (line["event"], line["command"], line["api_url"]) == (
        "waiting_for_api",
        "sda-ingest",
        "http://127.0.0.1:9/api",
    )
    assert done.returncode == 1
    assert problem.startswith("sda-ingest: no Prefect API answers at http://127.0.0.1:9/api (PREFECT_API_URL): ")


@pytest.mark.prefect
def test_standard_error_of_a_flow_run_has_json_lines_only(tmp_path: Path, shared_prefect_server: PrefectServer) -> None:
    """Prefect's own log, too."""
    done = subprocess.run(
        command(tmp_path, "--duration", "1"),
        env={**shared_prefect_server.environment, "PREFECT_LOGGING_LEVEL": "INFO"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    lines = json_lines(done.stderr)
    assert {"control_plane", "spawn", "ended"} <= {line["event"] for line in lines}
    assert [line for line in lines if line.get("logger", "").startswith("prefect")]


def test_a_terminal_shows_the_progress(tmp_path: Path) -> None:
    """A table with the operators; the messages are plain text."""
    near, far = pty.openpty()
    with subprocess.Popen(
        command(tmp_path, "--no-api", "--duration", "3"),
        env=environment(TERM="xterm", COLUMNS="200", LINES="50"),
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=far,
    ) as process:
        os.close(far)
        shown = b""
        while True:
            try:
                shown += os.read(near, 65_536)
            except OSError:  # the process has closed the terminal
                break
        os.close(near)
    assert process.returncode == 0
    assert b"ingest to log" in shown
    assert b"occupancy" in shown


def test_records_of_other_loggers_and_warnings_are_json_lines() -> None:
    """The event ``message`` with the logger's name; an exception has its cause and traceback."""
    program = (
        "import logging, warnings\n"
        "from flows.commands.messages import announce, log_as_json_lines\n"
        "log_as_json_lines()\n"
        "logging.getLogger('asyncio').error('slow %s', 'callback')\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: logging.getLogger('other').exception('failed')\n"
        "warnings.warn('old name')\n"
        "announce('demo', 'prefect_ui', 'Prefect UI at x', url='x')\n"
    )
    errors = subprocess.run(
        [sys.executable, "-W", "default", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    ).stderr
    slow, failed, warned, announced = json_lines(errors)
    assert (slow["event"], slow["logger"], slow["message"]) == ("message", "asyncio", "slow callback")
    assert "ZeroDivisionError" in failed["cause"]
    assert "Traceback" in failed["traceback"]
    assert "old name" in warned["message"]
    assert (announced["event"], announced["url"], announced["command"]) == ("prefect_ui", "x", "demo")
