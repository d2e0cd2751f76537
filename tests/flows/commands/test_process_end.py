"""How ``python -m flows`` ends as a process: output that cannot be written, threads that hang, signals before the run."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self

import pytest

from tests.helpers.sizes import small_and_long
from tests.helpers.support import ROOT, wait_until

_ENDS_S = 90  # a busy machine
_NO_SERVER = "http://127.0.0.1:9/observations"


def settings(folder: Path, *, isl_port: int = 0) -> Path:
    """Settings that write into ``folder`` and listen on any free port."""
    path = folder / "settings.toml"
    path.write_text(
        f"""
        report = "{folder}/report.json"
        [[radars]]
        name = "radar-01"
        port = 0
        [optical]
        url = "{_NO_SERVER}"
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


def environment(folder: Path, **more: str) -> Mapping[str, str]:
    """This process's environment without settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "SDA_"))}
    return kept | {"ORCHESTRATOR_CLAIMS_DIR": str(folder / "claims")} | more


def flows(folder: Path, *arguments: str, prefix: tuple[str, ...] = (), **more: str) -> dict[str, Any]:
    """What ``Popen`` needs for ``python -m flows``."""
    return {
        "args": [*prefix, sys.executable, "-m", "flows", *arguments],
        "cwd": ROOT,
        "env": environment(folder, **more),
    }


@contextmanager
def full() -> Iterator[IO[bytes]]:
    with Path("/dev/full").open("wb") as file:
        yield file


@contextmanager
def pipe_without_reader() -> Iterator[int]:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


@small_and_long(
    ("output", "broken"),
    (pipe_without_reader, "stdout"),
    (full, "stdout"),
    (full, "stderr"),
    (pipe_without_reader, "stderr"),
)
def test_output_that_cannot_be_written_does_not_change_the_exit_code(tmp_path: Path, output: Any, broken: str) -> None:
    """A help text and a graph, on a full disk and in a pipe that nothing reads: 0."""
    for arguments in (["--help"], ["check"]):
        with output() as stream:
            streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, broken: stream}
            done = subprocess.run(**flows(tmp_path, *arguments), **streams, timeout=_ENDS_S, check=False)
        assert (arguments, done.returncode) == (arguments, 0)


def test_a_run_that_fails_ends_with_its_own_code_although_the_summary_cannot_be_printed(tmp_path: Path) -> None:
    """3: the port of a source is taken, so its budget is exhausted; standard output is full."""
    with socket.create_server(("127.0.0.1", 0)) as taken, full() as stream:
        path = settings(tmp_path, isl_port=taken.getsockname()[1])
        done = subprocess.run(
            **flows(tmp_path, "ingest", "--no-api", "--quiet", "--config", str(path)),
            stdout=stream,
            stderr=subprocess.DEVNULL,
            timeout=_ENDS_S,
            check=False,
        )
    assert json.loads((tmp_path / "report.json").read_text())["event"] == "BudgetExhausted"
    assert done.returncode == 3


@small_and_long("arguments", ["check"], ["check", "--mermaid"], ["ingest", "--help"])
def test_a_terminal_without_the_characters_shows_escapes(tmp_path: Path, arguments: list[str]) -> None:
    """An ASCII terminal: exit code 0."""
    done = subprocess.run(
        **flows(tmp_path, *arguments, PYTHONIOENCODING="ascii", PYTHONUTF8="0"),
        capture_output=True,
        timeout=_ENDS_S,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u" in done.stdout or b"\\x" in done.stdout


HANGS = """
import sys, threading
from flows import pipelines
from flows.__main__ import run_process
made = pipelines.PipelineKind.pipeline
def pipeline(kind, settings):
    threading.Thread(target=threading.Event().wait).start()  # not a daemon: Python waits for it at its exit
    return made(kind, settings)
pipelines.PipelineKind.pipeline = pipeline
run_process()
"""


def test_a_thread_that_hangs_does_not_keep_a_finished_run_alive(tmp_path: Path) -> None:
    """Once the outcome is on disk the process ends within its patience, with the outcome's code and its whole summary."""
    arguments = ["ingest", "--no-api", "--quiet", "--duration", "0.1", "--config", str(settings(tmp_path))]
    done = subprocess.run(
        [sys.executable, "-c", HANGS, *arguments],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=_ENDS_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ShutDown after ")
    assert str(tmp_path / "report.json") in done.stdout


class SilentServer:
    """Accepts connections and never answers."""

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/catalog"
        self._connections: list[socket.socket] = []
        self.asked = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        for connection in self._connections:
            connection.close()

    def _accept(self) -> None:
        try:
            while True:
                self._connections.append(self._socket.accept()[0])
                self.asked.set()
        except OSError:
            return


def as_process_1() -> tuple[str, ...]:
    """The words that make a command process 1 of a new namespace; skips the test where that is not permitted."""
    words = ("unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc")
    try:
        allowed = subprocess.run([*words, "true"], capture_output=True, timeout=_ENDS_S, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("process namespaces are not permitted here")
    return words


@pytest.mark.parametrize("in_container", [False, True])
def test_a_signal_while_the_catalogue_is_downloaded_ends_the_run_with_its_report(
    tmp_path: Path,
    in_container: bool,  # noqa: FBT001 - a parameter
) -> None:
    """Exit code 0 and no operator starts; also as process 1, for which the kernel ignores signals without a handler."""
    config = tmp_path / "fusion.toml"
    config.write_text(
        f"""
        report = "{tmp_path}/report.json"
        [audit]
        directory = "{tmp_path}/audit"
        [dead_letters]
        directory = "{tmp_path}/dead"
        [control_plane]
        port = 0
        """
    )
    prefix = as_process_1() if in_container else ()
    with SilentServer() as server:
        catalog = json.dumps({"url": server.url, "file": None})
        command = flows(
            tmp_path,
            *("fusion", "--no-api", "--quiet", "--config", str(config)),
            prefix=prefix,
            SDA_FUSION__CATALOG=catalog,
        )
        with subprocess.Popen(**command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            try:
                wait_until(server.asked.is_set, "it downloads", limit_s=_ENDS_S)
                os.kill(child_of(process.pid) if in_container else process.pid, signal.SIGTERM)
                output, errors = process.communicate(timeout=_ENDS_S)
            finally:
                process.kill()
    assert process.returncode == 0, errors
    assert re.match(r"ShutDown after \d+\.\d s: SIGTERM \(exit code 0\)\n", output)
    assert '"spawn"' not in errors
    assert json.loads((tmp_path / "report.json").read_text())["cause"] == "SIGTERM"


def child_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def test_a_signal_before_the_run_exists_ends_it_with_its_report(tmp_path: Path) -> None:
    """It arrives while the command is being imported; the run ends as ShutDown."""
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # it is ignored if the tests run under nohup
        "from flows import __main__ as command\n"
        "load = command.import_module\n"
        "def slow_import(name):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    return load(name)\n"
        "command.import_module = slow_import\n"
        "command.run_process()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "ingest", "--no-api", "--quiet", "--config", str(settings(tmp_path))],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=_ENDS_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.match(r"ShutDown after \d+\.\d s: SIGHUP \(exit code 0\)\n", done.stdout)
    assert json.loads((tmp_path / "report.json").read_text())["ledger"]["ingested"] == 0


_LATE_SIGNAL = """
import os, signal, sys
class Late:
    def __del__(self, kill=os.kill, own=os.getpid(), term=signal.SIGTERM):
        kill(own, term)
late = Late()
from flows.__main__ import run_process
run_process()
"""


def test_a_signal_while_python_ends_does_not_replace_the_exit_code_of_the_run(tmp_path: Path) -> None:
    """Objects of ``__main__`` are deleted after Python has restored the default handlers."""
    command = flows(tmp_path, "ingest", "--no-api", "--duration", "0.1", "--config", str(settings(tmp_path)))
    command["args"][1:3] = ["-c", _LATE_SIGNAL]
    ended = subprocess.run(**command, capture_output=True, timeout=_ENDS_S, check=False)
    assert ended.returncode == 0
    assert json.loads((tmp_path / "report.json").read_text())["exit_code"] == 0
