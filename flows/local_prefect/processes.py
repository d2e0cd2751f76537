"""A Prefect installation's processes on this machine: how they are started, awaited, found again and stopped.

What they are to do is for the commands to say. Whatever ``up`` starts carries, as do its children, a mark in its
environment: the installation's folder. ``/proc`` is therefore the one truth about what runs. There is no pid file to
go stale over a reboot, and no foreign process that has got an old pid.
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
from subprocess import Popen
from typing import Any
from urllib.parse import urlsplit

from flows.local_prefect.api_health import api_health
from orchestrator_adapter import RetryOk

HOST = "127.0.0.1"
SERVER_START_S = 120.0  # the first start on a slow machine migrates a database; 5 to 21 s were measured
POOL = "sda"  # the work pool that prefect.yaml deploys to

FOLDER_MARK = "SDA_UP_FOLDER"
ROLE_MARK = "SDA_UP_ROLE"
SERVER, WORKER, RUNS = "server", "worker", "runs"  # RUNS: Prefect's worker and all that descends from it

# Below what Linux (32768) and others (49152, IANA's) give to outgoing connections, above what services like to use.
_NEVER_HANDED_OUT = range(20_000, 32_768)
_CHANCE = random.SystemRandom()  # not the seeded one: processes side by side must not try the same ports

_PROC = Path("/proc")
_POLL_S = 0.1
_TELL_EVERY_S = 10.0


class ProcessFailed(Exception):
    """A process did not come up; the message says what to look at."""


@dataclass(frozen=True, slots=True)
class LocalServer:
    """A Prefect server on this machine: where it keeps its data, and where it answers."""

    home: Path
    port: int

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def api_url(self) -> str:
        return f"{self.url}/api"

    def environment(self) -> dict[str, str]:
        """What the server and whoever talks to it needs to have set."""
        return {
            "PREFECT_HOME": str(self.home.resolve()),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_UI_API_URL": self.api_url,  # off port 4200 the UI would call the wrong API
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_CLI_PROMPT": "false",
            # One transaction a batch instead of one an event: a restart storm is recorded as fast as it comes.
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE": "100",
            "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_FLUSH_INTERVAL": "1",  # or a small batch waits for 5 s
        }

    def command(self) -> list[str]:
        """The server itself, in the foreground."""
        return [sys.executable, "-m", "prefect", "server", "start", "--host", HOST, "--port", str(self.port)]


@dataclass(frozen=True, slots=True)
class MarkedProcess:
    """A living process of an installation."""

    pid: int
    role: str
    leads_session: bool
    environment: Mapping[str, str]

    @property
    def is_flow_run(self) -> bool:
        """Prefect gives every flow run a session of its own; its helpers are in there with it."""
        return self.leads_session and "PREFECT__FLOW_RUN_ID" in self.environment

    @property
    def port(self) -> int:
        """Of the server that it is, or talks to."""
        port = urlsplit(self.environment.get("PREFECT_API_URL", "")).port
        if port is None:
            raise ProcessFailed(f"process {self.pid} is marked as a {self.role} of ours, but has no PREFECT_API_URL")
        return port


def environment_of(
    server: LocalServer, folder: Path, role: str, more: Mapping[str, str] | None = None
) -> dict[str, str]:
    """This process's environment without what is set for another Prefect, with ``server``'s and the marks."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    return kept | server.environment() | {FOLDER_MARK: str(folder), ROLE_MARK: role} | dict(more or {})


def start_detached(command: list[str], environment: Mapping[str, str], *, cwd: Path, log: Path) -> Popen[bytes]:
    """Start what outlives this process and its terminal. Its output is appended to ``log``."""
    with log.open("ab") as output, Path(os.devnull).open("rb") as nothing:
        return Popen(  # noqa: S603 - ours
            command, env=dict(environment), cwd=cwd, stdin=nothing, stdout=output, stderr=output, start_new_session=True
        )


def need_proc() -> None:
    """Refuse where processes cannot be told apart by what they were started with."""
    if not (_PROC / "self" / "environ").exists():
        raise ProcessFailed("this needs /proc, as Linux has it; docs/deployment.md has the commands to do it by hand")


def marked_processes(folder: Path) -> list[MarkedProcess]:
    """Every living process that carries ``folder`` as its mark, of this user. A zombie has no environment: it is gone."""
    mark = f"{FOLDER_MARK}={folder}".encode()
    found = []
    for entry in _PROC.iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):  # it ended meanwhile, or is somebody else's
            variables = (entry / "environ").read_bytes().split(b"\0")
            if mark in variables:
                pairs = (os.fsdecode(variable).partition("=") for variable in variables)
                environment = {name: value for name, _, value in pairs}
                _, session = _parent_and_session(entry)
                pid = int(entry.name)
                found.append(MarkedProcess(pid, environment.get(ROLE_MARK, ""), session == pid, environment))
    return sorted(found, key=lambda process: process.pid)


def session_leaders_under(parent: int) -> set[int]:
    """The children of ``parent`` that lead a session: of a Prefect process worker, these are its flow runs."""
    leaders = set()
    for entry in _PROC.iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if _parent_and_session(entry) == (parent, int(entry.name)):
                    leaders.add(int(entry.name))
    return leaders


def _parent_and_session(entry: Path) -> tuple[int, int]:
    # proc(5): pid (comm) state ppid pgrp session …; comm may hold anything, brackets included.
    _state, parent, _group, session = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()[:4]
    return int(parent), int(session)


def send(signal_: signal.Signals, pids: Iterable[int]) -> None:
    """Send a signal to those of them that still live."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal_)


def wait_for(
    ready: Callable[[], bool],
    *,
    limit_s: float,
    what: str,
    ended: Callable[[], str | None] = lambda: None,
    look_at: Callable[[], str],
    tell: Callable[[str], object] = lambda _: None,
) -> None:
    """Wait until ``ready``, at most ``limit_s``; what has ``ended`` before that will never be. ``tell`` hears of the wait.

    ``look_at`` says, when it is too late, where the reason may be found.
    """
    started = told = time.monotonic()
    while not ready():
        if (how := ended()) is not None:
            raise ProcessFailed(f"{what} ended ({how}); {look_at()}")
        now = time.monotonic()
        if now - started > limit_s:
            raise ProcessFailed(f"{what} was not up after {limit_s:g} s; {look_at()}")
        if now - told >= _TELL_EVERY_S:
            told = now
            tell(f"still waiting for {what} ({now - started:.0f} of {limit_s:g} s) …")
        time.sleep(_POLL_S)


def exit_of(process: Popen[Any]) -> str | None:
    """How a child has ended; ``None`` while it runs."""
    return f"exit code {process.poll()}" if process.poll() is not None else None


def answers(api_url: str) -> bool:
    """Whether a Prefect API is up there."""
    return isinstance(asyncio.run(api_health(api_url)), RetryOk)


def listens(port: int) -> bool:
    """Whether somebody accepts TCP connections there."""
    with closing(socket.socket()) as sock:
        return sock.connect_ex((HOST, port)) == 0


def is_free(port: int, kind: socket.SocketKind = socket.SOCK_STREAM) -> bool:
    """Whether a server could listen there, by TCP unless UDP is asked for."""
    with closing(socket.socket(socket.AF_INET, kind)) as sock:
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: TIME_WAIT is no owner
        try:
            sock.bind((HOST, port))
        except OSError:
            return False
        return True


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses now, neither by TCP nor by UDP, and that the system gives to nobody who does not ask for them.

    Those that it does hand out (``bind`` to port 0) it would hand out again, to any connection of any process, and a
    server that restarts would find its port taken for as long as that connection lasts. Raises ``OSError`` where there
    are fewer.
    """
    candidates = _CHANCE.sample(_NEVER_HANDED_OUT, len(_NEVER_HANDED_OUT))
    free = (port for port in candidates if is_free(port) and is_free(port, socket.SOCK_DGRAM))
    ports = list(islice(free, count))
    if len(ports) < count:
        raise OSError(errno.EADDRINUSE, f"fewer than {count} ports of {HOST} are free in {_NEVER_HANDED_OUT}")
    return ports


def last_lines(log: Path, count: int = 15) -> str:
    """The end of a log, indented, under its name."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        return f"{log} cannot be read: {error.strerror}"
    return "\n".join([f"the end of {log}:", *(f"  | {line}" for line in lines[-count:] if line.strip())])
