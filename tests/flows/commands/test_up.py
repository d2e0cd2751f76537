"""``up`` and ``down`` without a Prefect server: what they refuse, and in which order they stop what there is."""

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
from flows.commands.up import stop
from flows.commands.worker import default_name
from flows.local_prefect.processes import (
    FOLDER_MARK,
    ROLE_MARK,
    LocalServer,
    MarkedProcess,
    ProcessFailed,
    environment_of,
    exit_of,
    is_free,
    last_lines,
    marked_processes,
    session_leaders_under,
    start_detached,
    wait_for,
)
from orchestrator_adapter.process.report import ExitCode
from tests.helpers.support import wait_until

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def marked(pid: int, role: str, *, flow_run: bool = False) -> MarkedProcess:
    return MarkedProcess(pid, role, flow_run, {"PREFECT__FLOW_RUN_ID": "x"} if flow_run else {})


class Machine:
    """Processes that end some time after a SIGTERM, or never; SIGKILL ends them all."""

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


def test_the_server_is_stopped_last_and_flow_runs_are_left_to_their_worker() -> None:
    """While a worker lives it alone gets the SIGTERM: it is the one that lets them drain."""
    machine = Machine(
        {1: (marked(1, "server"), 1), 2: (marked(2, "worker"), 3), 3: (marked(3, "runs", flow_run=True), 9)}
    )
    machine.ends[3] = 2.5  # the worker sees to that
    assert machine.stop()
    assert machine.signals == [("SIGTERM", {2}), ("SIGTERM", {1})]


def test_flow_runs_that_have_lost_their_worker_drain_before_the_server_ends() -> None:
    """After a ``kill -9`` of the worker, Prefect's part of it goes after the flow runs have."""
    machine = Machine(
        {1: (marked(1, "server"), 1), 3: (marked(3, "runs", flow_run=True), 9), 4: (marked(4, "runs"), 1)}
    )
    machine.stop()
    assert machine.signals == [("SIGTERM", {3}), ("SIGTERM", {4}), ("SIGTERM", {1})]


def test_what_does_not_end_is_killed_and_said_so() -> None:
    """Within 30 s for a worker."""
    machine = Machine({2: (marked(2, "worker"), 1e9)})
    machine.stop()
    assert machine.signals == [("SIGTERM", {2}), ("SIGKILL", {2})]
    assert machine.time < 30
    assert machine.said[-1] == "the worker had not ended after 28 s and was killed"


def test_where_nothing_runs_nothing_is_stopped() -> None:
    """And nothing is said."""
    machine = Machine({})
    assert not machine.stop()
    assert (machine.signals, machine.said) == ([], [])


def test_down_twice_or_anywhere_exits_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing was running; it makes no folder, and a stale up.json is gone."""
    assert main(["down", "--folder", str(tmp_path / "none")]) == 0
    assert not (tmp_path / "none").exists()
    (tmp_path / "up.json").write_text('{"server": {"pid": 1}}')
    assert main(["down", "--folder", str(tmp_path)]) == 0
    assert "nothing was running" in capsys.readouterr().out
    assert not (tmp_path / "up.json").exists()


def test_a_process_is_ours_by_its_mark_not_by_its_id(tmp_path: Path) -> None:
    """Only what was started with this folder is found, with its role; a child of its own session as a flow run's would be."""
    environment = environment_of(LocalServer(tmp_path, 4711), tmp_path, "runs", {"PREFECT__FLOW_RUN_ID": "x"})
    process = start_detached(SLEEPER, environment, cwd=tmp_path, log=tmp_path / "log")
    try:
        wait_until(lambda: bool(marked_processes(tmp_path)), "it carries its mark")
        (found,) = marked_processes(tmp_path)
        assert (found.pid, found.role, found.is_flow_run, found.port) == (process.pid, "runs", True, 4711)
        assert marked_processes(tmp_path / "other") == []
        assert process.pid in session_leaders_under(os.getpid())
    finally:
        process.kill()
    wait_until(lambda: not marked_processes(tmp_path), "a zombie is gone")
    process.wait()


def test_nothing_that_is_set_for_another_prefect_gets_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No database, key or profile of the shell's; everything else stays."""
    monkeypatch.setenv("PREFECT_API_DATABASE_CONNECTION_URL", "postgresql+asyncpg://production")
    monkeypatch.setenv("PREFECT_API_URL", "https://production/api")
    monkeypatch.setenv("ELSE", "stays")
    got = environment_of(LocalServer(tmp_path, 4711), tmp_path, "server")
    assert "PREFECT_API_DATABASE_CONNECTION_URL" not in got
    assert got["PREFECT_API_URL"] == got["PREFECT_UI_API_URL"] == "http://127.0.0.1:4711/api"
    assert (got["ELSE"], got[FOLDER_MARK], got[ROLE_MARK]) == ("stays", str(tmp_path), "server")


def test_up_on_a_port_that_is_taken_names_it_and_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, and both ways out."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert not is_free(port)
        assert main(["up", "--folder", str(tmp_path), "--port", str(port)]) == ExitCode.FAILED
    told = capsys.readouterr().err
    assert (
        f"up: port {port} is taken by somebody else; --port N takes another one, --free-port any that is free" in told
    )
    assert marked_processes(tmp_path) == []


def test_up_beside_another_one_is_refused_and_names_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So is down."""
    holds = (
        "import fcntl, os, sys, time\n"
        "lock = open(sys.argv[1], 'w'); fcntl.flock(lock, fcntl.LOCK_EX)\n"
        "print(os.getpid(), file=lock, flush=True); print(flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", holds, str(tmp_path / "up.lock")], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        for command in ("up", "down"):
            assert main([command, "--folder", str(tmp_path)]) == ExitCode.FAILED
            assert f"is at work on {tmp_path} (process {other.pid})" in capsys.readouterr().err
        other.kill()


def test_what_dies_while_it_is_awaited_shows_how_and_the_end_of_its_log(tmp_path: Path) -> None:
    """The exit code and the last lines, at once: not after the time that it may take."""
    log = tmp_path / "it.log"
    process = start_detached(
        [sys.executable, "-c", "print('no such thing'); raise SystemExit(7)"], os.environ, cwd=tmp_path, log=log
    )
    with pytest.raises(ProcessFailed) as failed:
        wait_for(lambda: False, limit_s=60, what="it", ended=lambda: exit_of(process), look_at=lambda: last_lines(log))
    assert str(failed.value) == f"it ended (exit code 7); the end of {log}:\n  | no such thing"


def test_the_workers_name_is_one_that_prefect_takes_and_always_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect refuses slashes and percent signs."""
    monkeypatch.setattr("flows.commands.worker.gethostname", lambda: "a/b%c")
    assert default_name() == default_name() == "sda-a-b-c"
