"""``up`` and ``down`` without a Prefect server: rejected calls, and the order in which they stop processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from flows.__main__ import main
from flows.local_prefect.processes import (
    FOLDER_MARK,
    ROLE_MARK,
    LocalServer,
    MarkedProcess,
    ProcessFailed,
    default_worker_name,
    environment_of,
    exit_of,
    is_free,
    last_lines,
    marked_processes,
    session_leaders_under,
    start_detached,
    wait_for,
)
from flows.local_prefect.stopping import stop
from orchestrator_adapter.process.report import ExitCode
from tests.helpers.support import wait_until

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def marked(pid: int, role: str, *, flow_run: bool = False) -> MarkedProcess:
    return MarkedProcess(pid, role, flow_run, {"PREFECT__FLOW_RUN_ID": "x"} if flow_run else {})


class Machine:
    """Processes that end some time after a SIGTERM, or only after SIGKILL."""

    def __init__(self, processes: dict[int, tuple[MarkedProcess, float]]) -> None:
        self.processes = processes
        self.ends: dict[int, float] = {}
        self.signals: list[tuple[str, set[int]]] = []
        self.said: list[str] = []
        self.time = 0.0

    def find(self) -> list[MarkedProcess]:
        return [each for pid, (each, _) in self.processes.items() if self.ends.get(pid, self.time + 1) > self.time]

    def send(self, number: signal.Signals, pids: Iterable[int]) -> None:
        self.signals.append((number.name, set(pids)))
        for pid in self.signals[-1][1]:
            self.ends[pid] = self.time + (0 if number is signal.SIGKILL else self.processes[pid][1])

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def stop(self) -> bool:
        return stop(self.find, self.said.append, send=self.send, sleep=self.sleep, now=lambda: self.time)


def test_the_server_is_stopped_last_and_the_worker_stops_its_flow_runs() -> None:
    """A live worker gets the SIGTERM, and its flow runs do not: it makes them drain."""
    machine = Machine(
        {1: (marked(1, "server"), 1), 2: (marked(2, "worker"), 3), 3: (marked(3, "runs", flow_run=True), 9)}
    )
    machine.ends[3] = 2.5  # the worker stops it
    assert machine.stop()
    assert machine.signals == [("SIGTERM", {2}), ("SIGTERM", {1})]


def test_flow_runs_without_a_worker_drain_before_the_server_ends() -> None:
    """After a ``kill -9`` of the worker, Prefect's own worker process is stopped after the flow runs."""
    machine = Machine(
        {1: (marked(1, "server"), 1), 3: (marked(3, "runs", flow_run=True), 9), 4: (marked(4, "runs"), 1)}
    )
    machine.stop()
    assert machine.signals == [("SIGTERM", {3}), ("SIGTERM", {4}), ("SIGTERM", {1})]


def test_a_process_that_does_not_end_is_killed() -> None:
    """A worker within 30 s; a message says so."""
    machine = Machine({2: (marked(2, "worker"), 1e9)})
    machine.stop()
    assert machine.signals == [("SIGTERM", {2}), ("SIGKILL", {2})]
    assert machine.time < 30
    assert machine.said[-1] == "the worker had not ended after 28 s and was killed"


def test_without_processes_nothing_is_stopped() -> None:
    """And there is no message."""
    machine = Machine({})
    assert not machine.stop()
    assert (machine.signals, machine.said) == ([], [])


def test_down_without_an_installation_exits_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It makes no folder, and removes a stale up.json."""
    assert main(["down", "--folder", str(tmp_path / "none")]) == 0
    assert not (tmp_path / "none").exists()
    (tmp_path / "up.json").write_text('{"server": {"pid": 1}}')
    assert main(["down", "--folder", str(tmp_path)]) == 0
    assert "nothing was running" in capsys.readouterr().out
    assert not (tmp_path / "up.json").exists()


def test_a_process_is_found_by_its_mark(tmp_path: Path) -> None:
    """By the folder in its environment, with its role. It leads a session, as a flow run does."""
    environment = environment_of(LocalServer(tmp_path, 4711), tmp_path, "runs", {"PREFECT__FLOW_RUN_ID": "x"})
    process = start_detached(SLEEPER, environment, cwd=tmp_path, log=tmp_path / "log")
    try:
        wait_until(lambda: bool(marked_processes(tmp_path)), "its mark")
        (found,) = marked_processes(tmp_path)
        assert (found.pid, found.role, found.is_flow_run, found.port) == (process.pid, "runs", True, 4711)
        assert marked_processes(tmp_path / "other") == []
        assert process.pid in session_leaders_under(os.getpid())
    finally:
        process.kill()
    wait_until(lambda: not marked_processes(tmp_path), "a zombie has no mark")
    process.wait()


def test_settings_for_another_prefect_are_removed_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every variable of the shell that starts with PREFECT_; all others stay."""
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://production")
    monkeypatch.setenv("PREFECT_API_URL", "https://production/api")
    monkeypatch.setenv("ELSE", "stays")
    environment = environment_of(LocalServer(tmp_path, 4711), tmp_path, "server")
    assert "PREFECT_API_DATABASE_CONNECTION_URL" not in environment
    assert environment["PREFECT_API_URL"] == environment["PREFECT_UI_API_URL"] == "http://127.0.0.1:4711/api"
    assert (environment["ELSE"], environment[FOLDER_MARK], environment[ROLE_MARK]) == ("stays", str(tmp_path), "server")


def test_up_on_a_port_that_is_taken_names_it_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1; the message has both options that help."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert not is_free(port)
        assert main(["up", "--folder", str(tmp_path), "--port", str(port)]) == ExitCode.FAILED
    errors = capsys.readouterr().err
    assert (
        f"up: port {port} is taken by another process; --port N takes another one, --free-port any that is free"
        in errors
    )
    assert marked_processes(tmp_path) == []


def test_up_and_down_are_rejected_while_another_one_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names its process."""
    lock = (
        "import fcntl, os, sys, time\n"
        "lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print(os.getpid(), file=lock, flush=True); print(flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", lock, str(tmp_path / "up.lock")], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for command in ("up", "down"):
            assert main([command, "--folder", str(tmp_path)]) == ExitCode.FAILED
            assert f"is working on {tmp_path} (process {other.pid})" in capsys.readouterr().err
        other.kill()


def test_a_process_that_ends_while_it_is_awaited_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    """The exit code and the last lines, at once and not after the timeout."""
    log = tmp_path / "it.log"
    process = start_detached(
        [sys.executable, "-c", "print('no such thing'); raise SystemExit(7)"], os.environ, cwd=tmp_path, log=log
    )
    with pytest.raises(ProcessFailed) as failed:
        wait_for(lambda: False, timeout_s=60, what="it", ended=lambda: exit_of(process), hint=lambda: last_lines(log))
    assert str(failed.value) == f"it ended (exit code 7); the end of {log}:\n  | no such thing"


def test_the_workers_name_is_valid_for_prefect_and_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect rejects slashes and percent signs."""
    monkeypatch.setattr("flows.local_prefect.processes.gethostname", lambda: "a/b%c")
    assert default_worker_name() == default_worker_name() == "sda-a-b-c"
