from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.__main__ import main
from orchestrator_adapter.process.report import ExitCode
from orchestrator_adapter.storage.jsonl import RotatingJsonLines
from tests.helpers.support import ROOT

COMMANDS = (
    "ingest",
    "fusion",
    "screen",
    "simulate",
    "check",
    "top",
    "conjunctions",
    "subscriber",
    "demo",
    "automations",
    "reconcile",
    "up",
    "down",
    "worker",
)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith(("SDA_INGEST__", "SDA_FUSION__", "PREFECT_API_URL")):
            monkeypatch.delenv(name)


def config(folder: Path, *, isl_port: int = 0, extra: str = "") -> Path:
    """Settings that write into ``folder``, listen on any free port and poll an archive that does not exist."""
    path = folder / "settings.toml"
    path.write_text(
        f"""
        report = "{folder}/report.json"
        {extra}
        [[radars]]
        name = "radar-01"
        port = 0
        [optical]
        url = "http://127.0.0.1:9/observations"
        [isl]
        port = {isl_port}
        [event_log]
        directory = "{folder}/log"
        [dead_letters]
        directory = "{folder}/dead"
        [control_plane]
        port = 0
        """
    )
    return path


def ingest(path: Path, *options: str) -> int:
    return main(["ingest", "--config", str(path), "--no-api", "--quiet", *options])


def report(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_every_command_has_help(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """It exits with 0 and explains every option."""
    with pytest.raises(SystemExit) as ended:
        main([*command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m flows")
    if command:
        options = re.findall(r"^  (--?\S.*)$", text, re.MULTILINE)
        assert options
    else:
        assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "absent"),
    [
        ([], ["flows.commands", "orchestrator_adapter", "sda_ops", "pydantic", "numpy"]),
        (["ingest"], ["flows.commands.demo", "flows.commands.fusion", "flows.topologies", "scipy", "prefect"]),
        (
            ["screen"],
            ["flows.commands.screen.screening_run", "flows.settings", "sda_ops", "numpy", "sgp4", "pyarrow", "rich"],
        ),
        (["down"], ["flows.commands.up", "flows.topologies", "sda_ops", "prefect"]),
    ],
)
def test_help_imports_only_what_the_command_needs(arguments: list[str], absent: list[str]) -> None:
    """The help of all commands imports none of them; the help of one command imports no other one."""
    program = (
        "import sys; from flows.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('imported:', *sorted(sys.modules))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program, *arguments, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    imported = output.rpartition("imported:")[2].split()
    assert [name for name in imported if name.startswith(tuple(absent))] == []


@pytest.mark.parametrize("command", ["ingest", "fusion", "demo"])
def test_the_help_explains_every_exit_code(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The table has every exit code of the process."""
    with pytest.raises(SystemExit):
        main([command, "--help"])
    table = capsys.readouterr().out.split("exit codes:")[1]
    assert [int(code) for code in re.findall(r"^  (\d)  ", table, re.MULTILINE)] == [int(code) for code in ExitCode]


@pytest.mark.parametrize("arguments", [[], ["frobnicate"], ["ingest", "--frobnicate"], ["ingest", "--duration", "x"]])
def test_a_wrong_command_line_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """With the usage on standard error."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == ExitCode.USAGE
    assert "usage: " in capsys.readouterr().err


def test_check_prints_the_graph(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0; the output has every operator with its policy and every edge with its reason."""
    assert main(["check", "--config", str(config(tmp_path))]) == 0
    text = capsys.readouterr().out
    for word in ("radar-01", "optical", "isl", "merge", "normalize", "validate", "event-log", "restart never", "4096"):
        assert word in text
    assert [path.name for path in tmp_path.iterdir()] == ["settings.toml"]


def test_check_can_draw_the_graph(capsys: pytest.CaptureFixture[str]) -> None:
    """As a Mermaid flowchart, from the defaults alone."""
    assert main(["check", "--mermaid"]) == 0
    assert capsys.readouterr().out.startswith("flowchart ")


@pytest.mark.parametrize("command", [["check"], ["ingest", "--no-api", "--quiet"]])
def test_every_problem_of_the_settings_is_named(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, one line for each problem on standard error, nothing on standard output, nothing on disk."""
    monkeypatch.setenv("SDA_INGEST__SHUTDOWN__GRACE_S", "soon")
    path = config(tmp_path, isl_port=70_000, extra='unknown = "x"')
    assert main([*command, "--config", str(path)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    prefix = f"sda-ingest: {path}"
    assert sorted(line.rsplit(": ", 1)[0] for line in printed.err.splitlines()) == [
        f"{prefix}: [isl] port",
        f"{prefix}: unknown",
        "sda-ingest: environment variable SDA_INGEST__SHUTDOWN__GRACE_S: [shutdown] grace_s",
    ]
    assert [each.name for each in tmp_path.iterdir()] == ["settings.toml"]


@pytest.mark.parametrize("command", [["check"], ["ingest", "--no-api", "--quiet"]])
def test_problems_of_the_graph_are_named(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two radars with the same name, and one with the name of an operator: exit code 1, both are named."""
    radars = [{"name": name, "port": 0} for name in ("twin", "twin", "merge")]
    monkeypatch.setenv("SDA_INGEST__RADARS", json.dumps(radars))
    assert main(command) == 1
    errors = capsys.readouterr().err
    assert "'twin'" in errors
    assert "'merge'" in errors


def test_check_names_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 1, and the message has the path."""
    assert main(["check", "--config", str(tmp_path / "missing.toml")]) == 1
    assert capsys.readouterr().err == f"sda-ingest: settings file {tmp_path / 'missing.toml'}: no such file\n"


def test_ingest_runs_for_its_duration_and_prints_a_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 0; event, ledger and paths on standard output; the report at the path of ``--report``."""
    path = tmp_path / "elsewhere.json"
    assert ingest(config(tmp_path), "--duration", "0.01", "--report", str(path)) == 0
    result = json.loads(path.read_text())
    assert (result["event"], result["cause"], result["exit_code"]) == ("ShutDown", "ran for 0.01 s", 0)
    text = capsys.readouterr().out
    assert text.startswith("ShutDown after ")
    assert f"  log      {tmp_path / 'log'}\n" in text
    assert f"  report   {path}\n" in text
    assert not (tmp_path / "report.json").exists()


def test_a_port_that_is_taken_ends_with_3_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """BudgetExhausted; the summary and the report have the address."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert ingest(config(tmp_path, isl_port=port)) == ExitCode.BUDGET_EXHAUSTED
    assert f"cannot listen on tcp://127.0.0.1:{port}" in capsys.readouterr().out
    assert f"tcp://127.0.0.1:{port}" in report(tmp_path)["cause"]
    assert report(tmp_path)["ledger_holds"]


def test_a_control_planes_port_that_is_taken_ends_with_1_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on standard error with the address and the setting; no report, no log."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv("SDA_INGEST__CONTROL_PLANE__PORT", str(port))
        assert ingest(config(tmp_path)) == ExitCode.FAILED
    (problem,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("sda-ingest: "))
    assert problem.startswith(f"sda-ingest: control plane: cannot listen on http://127.0.0.1:{port}: ")
    assert "control_plane.port" in problem
    assert not (tmp_path / "report.json").exists()
    assert not (tmp_path / "log").exists()


def test_no_catalogue_ends_with_1_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on standard error with the file and the settings; no process is started, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert main(["fusion", "--no-api", "--quiet"]) == ExitCode.FAILED
    (problem,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("sda-fusion: "))
    assert problem == (
        "sda-fusion: no catalogue to begin with (catalog.file or catalog.url): "
        "run/sda-fusion/catalog.json: No such file or directory"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", [["fusion", "--no-api", "--quiet"], ["check", "--pipeline", "sda-fusion"]])
def test_a_cluster_without_its_extra_ends_with_1_and_says_what_to_install(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a run and for a check."""
    monkeypatch.setitem(sys.modules, "prefect_ray.task_runners", None)
    monkeypatch.setenv(
        "SDA_FUSION__PROPAGATOR__CLUSTER", json.dumps({"kind": "ray", "address": "ray://head:10001", "host": "here"})
    )
    assert main(command) == ExitCode.FAILED
    assert capsys.readouterr().err == (
        "sda-fusion: workers on Ray need an extra: pip install 'sda-stream-orchestrator[ray]'\n"
    )


def test_an_event_log_in_use_ends_with_3_and_names_the_process(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sink is never restarted: BudgetExhausted, with the id of the other process."""
    with RotatingJsonLines(tmp_path / "log", stem="observations"):
        assert ingest(config(tmp_path)) == ExitCode.BUDGET_EXHAUSTED
    assert f"is being written by process {os.getpid()}" in capsys.readouterr().out
    assert report(tmp_path)["restarts"].get("event-log") is None


def test_a_dead_letter_store_in_use_ends_with_1_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on standard error with the folder and the process; no report, no log."""
    with RotatingJsonLines(tmp_path / "dead", stem="dead-letters"):
        assert ingest(config(tmp_path)) == ExitCode.FAILED
    errors = capsys.readouterr().err
    assert f"sda-ingest: {tmp_path / 'dead'} is being written by process {os.getpid()}" in errors
    assert not (tmp_path / "report.json").exists()
    assert not (tmp_path / "log").exists()


def test_a_report_that_cannot_be_written_is_a_problem_in_the_summary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With its path; the exit code is still 0."""
    assert ingest(config(tmp_path), "--duration", "0.01", "--report", "/dev/null/report.json") == 0
    assert "  problem  writing the report /dev/null/report.json failed: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "command",
    [["simulate", "--duration", "0.1"], ["demo", "--no-api", "--quiet", "--pipeline", "sda-fusion"]],
    ids=lambda command: command[0],
)
def test_a_command_that_gets_no_catalogue_writes_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it fails."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gp.csv").write_text("No GP data found\n")
    assert main([*command, "--catalog", "gp.csv"]) != 0
    assert capsys.readouterr().err == (
        f"{command[0]}: catalog: gp.csv: expected TLE, 3LE, or OMM as CSV, JSON, XML or KVN, got 'No GP data found'\n"
    )


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        (["ingest", "--no-api", "--duration", "-1"], "--duration: expected seconds, at least 0, got '-1'"),
        (["fusion", "--no-api", "--duration", "nan"], "--duration: expected seconds, at least 0, got 'nan'"),
        (["reconcile", "--api-wait", "soon"], "--api-wait: expected seconds, at least 0, got 'soon'"),
        (["demo", "--seconds", "inf"], "--seconds: expected seconds, at least 0, got 'inf'"),
        (["demo", "--radars", "0"], "--radars: expected a whole number, at least 1, got '0'"),
        (["up", "--port", "99999"], "--port: expected a port, 1 to 65535, got '99999'"),
    ],
)
def test_a_value_out_of_range_is_one_line_that_names_the_option(
    command: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the exit code of a wrong command line, before anything starts."""
    with pytest.raises(SystemExit) as raised:
        main(command)
    assert raised.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(f"error: argument {problem}")
