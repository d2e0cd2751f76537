"""The processes of a Prefect installation on this machine: how they are started, awaited and found again.

Each process that ``up`` starts has a mark in its environment, as have its children: the installation's folder. So the
system's process table shows what runs. There is no pid file, which would be wrong after a reboot or when a pid is reused.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from socket import gethostname
from subprocess import Popen
from typing import Any
from urllib.parse import urlsplit

import psutil

from flows.local_prefect.api_health import api_health
from orchestrator_adapter import RetryOk

HOST = "127.0.0.1"
SERVER_START_S = 120.0  # the first start creates a database; 5 to 21 s were measured
POOL = "sda"  # the work pool that prefect.yaml deploys to

FOLDER_MARK = "SDA_UP_FOLDER"
ROLE_MARK = "SDA_UP_ROLE"
SERVER, WORKER, RUNS = "server", "worker", "runs"  # RUNS: Prefect's worker and its descendants

# Below the ports that Linux (32768) and others (49152, IANA) give to outgoing connections, above those of most services.
_NOT_EPHEMERAL = range(20_000, 32_768)
_RANDOM = random.SystemRandom()  # not a seeded one: concurrent processes must not try the same ports

_POLL_S = 0.1
_REPORT_EVERY_S = 10.0


class ProcessFailed(Exception):
    """A process did not start; the message says why, or where to look."""


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A Prefect server on this machine: the folder of its data, and its port."""

    home: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def api_url(self) -> str:
        return f"{self.url}/api"

    def environment(self) -> dict[str, str]:
        """The environment variables of the server and of its clients."""
        return {
            "PREFECT_HOME": str(self.home.resolve()),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_UI_API_URL": self.api_url,  # without it, the UI calls port 4200
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_CLI_PROMPT": "false",
            # One transaction for each batch instead of each event, so that the server keeps up with a restart storm.
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",  # a small batch would wait 5 s
        }

    def command(self) -> list[str]:
        """The command that runs the server in the foreground."""
        return [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(self.port)]


@dataclass(frozen=True, slots=True)
class MarkedProcess:
    """A live process of an installation."""

    pid: int
    role: str
    leads_session: bool
    environment: Mapping[str, str]

    @property
    def is_flow_run(self) -> bool:
        """Prefect starts each flow run in a session of its own, with its helper processes."""
        return self.leads_session and "PREFECT__FLOW_RUN_ID" in self.environment

    @property
    def port(self) -> int:
        """The port of the server that it is, or that it is a client of."""
        port = urlsplit(self.environment.get("PREFECT_API_URL", "")).port
        if port is None:
            raise ProcessFailed(f"process {self.pid} is marked as a {self.role} of ours, but has no PREFECT_API_URL")
        return port


def default_worker_name() -> str:
    """The worker's name on this machine. It is the same at every start, so that Prefect recognizes the worker."""
    return f"{POOL}-{gethostname()}".replace("/", "-").replace("%", "-")


def environment_of(
    server: LocalServer, folder: Path, role: str, more: Mapping[str, str] | None = None
) -> dict[str, str]:
    """This process's environment without its Prefect variables, with those of ``server`` and the marks."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return kept | server.environment() | {FOLDER_MARK: str(folder), ROLE_MARK: role} | dict(more or {})


def start_detached(command: list[str], environment: Mapping[str, str], *, cwd: Path, log: Path) -> Popen[bytes]:
    """Start a process that outlives this one and its terminal. Its output is appended to ``log``."""
    with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
        return Popen(  # noqa: S603 - our own command
            command, env=dict(environment), cwd=cwd, stdin=nothing, stdout=output, stderr=output, start_new_session=True
        )


def marked_processes(folder: Path) -> list[MarkedProcess]:
    """Every live process that has ``folder`` as its mark. A zombie has no environment and is left out."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it has ended, or belongs to another user
            environment = process.environ()
            if environment.get(FOLDER_MARK) == str(folder):
                role = environment.get(ROLE_MARK, "")
                found.append(MarkedProcess(process.pid, role, _leads_session(process), environment))
    return sorted(found, key=lambda process: process.pid)


def session_leaders_under(parent: int) -> set[int]:
    """The children of ``parent`` that lead a session: of a Prefect process worker, these are its flow runs."""
    leaders = set()
    with suppress(psutil.Error):
        for child in psutil.Process(parent).children():
            with suppress(psutil.Error, OSError):
                if _leads_session(child):
                    leaders.add(child.pid)
    return leaders


def _leads_session(process: psutil.Process) -> bool:
    pid: int = process.pid
    return os.getsid(pid) == pid


def send(signal_: signal.Signals, pids: Iterable[int]) -> None:
    """Send a signal to those processes that still run."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal_)


def wait_for(
    ready: Callable[[], bool],
    *,
    timeout_s: float,
    what: str,
    ended: Callable[[], str | None] = lambda: None,
    hint: Callable[[], str],
    report: Callable[[str], object] = lambda _: None,
) -> None:
    """Wait until ``ready``, at most ``timeout_s``. ``report`` gets a message now and then while it waits.

    Raises ``ProcessFailed``, with the text of ``hint``, after the timeout or once ``ended`` says how the process ended.
    """
    started = reported = time.monotonic()
    while not ready():
        if (how := ended()) is not None:
            raise ProcessFailed(f"{what} ended ({how}); {hint()}")
        now = time.monotonic()
        if now - started > timeout_s:
            raise ProcessFailed(f"{what} was not up after {timeout_s:g} s; {hint()}")
        if now - reported >= _REPORT_EVERY_S:
            reported = now
            report(f"still waiting for {what} ({now - started:.0f} of {timeout_s:g} s) …")
        time.sleep(_POLL_S)


def exit_of(process: Popen[Any]) -> str | None:
    """How a child process has ended; ``None`` while it runs."""
    return f"exit code {process.poll()}" if process.poll() is not None else None


def answers(api_url: str) -> bool:
    """Whether a Prefect API is up at this URL."""
    return isinstance(asyncio.run(api_health(api_url)), RetryOk)


def listens(port: int) -> bool:
    """Whether a process accepts TCP connections on this port."""
    with closing(socket.socket()) as sock:
        return sock.connect_ex((HOST, port)) == 0


def is_free(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> bool:
    """Whether a server could listen on this port; ``kind`` is TCP or UDP."""
    with closing(socket.socket(socket.AF_INET, kind)) as sock:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(
                socket.SOL_SOCKET, socket.SO_REUSEADDR, 1
            )  # as servers do: a connection in TIME_WAIT does not occupy the port
        try:
            sock.bind((HOST, port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """Ports that are free for TCP and UDP, outside the range that the system gives to outgoing connections.

    A port of that range (as ``bind`` to port 0 gives) could be given to another process's connection while a server
    restarts, and the server would find it taken. Raises ``OSError`` if fewer ports are free.
    """
    candidates = _RANDOM.sample(_NOT_EPHEMERAL, len(_NOT_EPHEMERAL))
    free = (port for port in candidates if is_free(port) and is_free(port, socket.SOCK_DGRAM))
    ports = list(islice(free, count))
    if len(ports) < count:
        raise OSError(errno.EADDRINUSE, f"fewer than {count} ports of {HOST} are free in {_NOT_EPHEMERAL}")
    return ports


def last_lines(log: Path, count: int = 15) -> str:
    """The last lines of a log, indented, after its name."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"{log} cannot be read: {error.strerror}"
    return "\n".join([f"the end of {log}:", *(f"  | {line}" for line in lines[-count:] if line.strip())])
