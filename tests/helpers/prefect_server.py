"""A real ``prefect server start`` for tests: a process that can be killed and started again on its port and database.

Knows nothing of the pipelines. Unlike Prefect's test harness it runs every service, the evaluation of triggers included.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.helpers.support import environment, listens, wait_until

_HOST = "127.0.0.1"
_START_LIMIT_S = 120.0  # 5 to 21 s were measured; the first start migrates a database
_STOP_LIMIT_S = 20.0
_ANSWER_LIMIT_S = 2.0


class PrefectServer:
    """A Prefect server with its own home, for the whole session.

    Its methods block; a test with an event loop of its own calls them with ``asyncio.to_thread``.

    Attributes:
        api_url: For ``PREFECT_API_URL``.
        home: Its ``PREFECT_HOME``, with the database and ``server.log``.
        process: The running server; ``None`` after ``kill`` or ``stop``.
    """

    def __init__(self, home: Path, port: int, settings: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.port = port
        self.api_url = f"http://{_HOST}:{port}/api"
        self.process: subprocess.Popen[bytes] | None = None
        self._settings = dict(settings or {})

    @property
    def log(self) -> Path:
        return self.home / "server.log"

    @property
    def environment(self) -> Mapping[str, str]:
        """For child processes that use this server: this process's environment, without any other Prefect settings."""
        return {
            **environment({}),
            "PREFECT_HOME": str(self.home),
            "PREFECT_API_URL": self.api_url,
            "PREFECT_UI_API_URL": self.api_url,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_LEVEL": "WARNING",
            "PREFECT_CLI_PROMPT": "false",
            "DO_NOT_TRACK": "1",
            **self._settings,
        }

    def start(self) -> None:
        """Start it, always with the same port and database, and wait until it answers."""
        assert self.process is None, "it is already running"
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", _HOST, "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = process = subprocess.Popen(
                command, stdout=log, stderr=log, env=dict(self.environment), start_new_session=True
            )
        try:
            wait_until(lambda: self._answers(process), f"the server answers; see {self.log}", limit_s=_START_LIMIT_S)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Kill it as in a crash of the machine: SIGKILL, nothing is flushed. Returns once the process has ended."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop it with SIGTERM, and with SIGKILL if that takes too long."""
        try:
            self._end(signal.SIGTERM)
        except subprocess.TimeoutExpired:
            self.kill()

    def _end(self, signal_: signal.Signals) -> None:
        if self.process is None:
            return
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal_)  # it is the leader of its own session
        self.process.wait(_STOP_LIMIT_S)
        self.process = None

    def _answers(self, process: subprocess.Popen[bytes]) -> bool:
        assert process.poll() is None, f"the server ended with exit code {process.returncode}; see {self.log}"
        try:
            # The port first: a request costs 30 ms of CPU, which the starting server needs.
            return listens(self.port) and httpx.get(f"{self.api_url}/health", timeout=_ANSWER_LIMIT_S).is_success
        except httpx.TransportError:
            return False


@contextmanager
def used_by_this_process(server: PrefectServer) -> Iterator[None]:
    """This process's flows use this server; what they still have to send it is sent before this returns.

    As ``prefect.testing.utilities.prefect_test_harness`` does it, which would start a server of its own.
    """
    from prefect.context import _temporary_global_settings_context, get_settings_context  # noqa: PLC0415 - 2 s of imports
    from prefect.events.worker import EventsWorker  # noqa: PLC0415
    from prefect.logging.handlers import APILogWorker  # noqa: PLC0415
    from prefect.settings import PREFECT_API_URL, temporary_settings  # noqa: PLC0415

    with (
        temporary_settings({PREFECT_API_URL: server.api_url}),
        _temporary_global_settings_context(get_settings_context()),
    ):
        yield
        for worker in (APILogWorker, EventsWorker):
            worker.drain_all(timeout=_STOP_LIMIT_S, at_exit=False)
