"""The pipelines that the faults are injected into: ``sda-ingest`` or ``sda-fusion`` as a process, fed over real sockets."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.faults.feeds import Feeds, fed
from bench.faults.observers import Log, read_metrics
from flows.local_prefect.processes import free_ports
from tests.helpers.fusion import FusionPlace, fusion_process, go
from tests.helpers.prefect_server import PrefectServer
from tests.helpers.support import ROOT, environment, wait_until

_ENDS_S = 90.0


@dataclass
class Run:
    """One running pipeline.

    Attributes:
        url: Of its control plane.
        feeds: What feeds it (``sda-ingest`` only).
        server: Its Prefect server, if it has one.
    """

    process: subprocess.Popen[bytes]
    log: Log
    folder: Path
    job: str
    url: str = ""
    feeds: Feeds | None = None
    server: PrefectServer | None = None
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def given(self) -> Feeds:
        """The feeds of ``sda-ingest``."""
        assert self.feeds is not None
        return self.feeds

    def code(self, fault: str) -> float:
        """A fault of code, by a line to ``bench.faults.buggy_pipeline``. Returns when it happened."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(fault.encode() + b"\n")
        self.process.stdin.flush()
        return float(json.loads(self.process.stdout.readline())["at"])

    def end(self) -> None:
        """Ask it to stop, unless it has ended, and read its report."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(_ENDS_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        self.report = json.loads((self.folder / "report.json").read_text())


@contextmanager
def ingest(folder: Path, *, on_prefect: bool = False) -> Iterator[Run]:
    """``sda-ingest``, with every source at work."""
    with fed() as feeds:
        server = PrefectServer(folder / "prefect-server", free_ports(1)[0]) if on_prefect else None
        if server is not None:
            server.home.mkdir()
            server.start()
        try:
            extra = {} if server is None else dict(server.environment)
            command = ["-m", "bench.faults.buggy_pipeline", "ingest", "--quiet"]
            command += [] if on_prefect else ["--no-api"]
            settings = feeds.addresses.settings(folder)
            with _running(command, extra | _variables(settings), folder, "sda-ingest") as run:
                run.feeds, run.server = feeds, server
                _wait_for_every_source(run, ("radar-01", "radar-02", "optical", "isl"))
                yield run
        finally:
            if server is not None:
                server.stop()


def _variables(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: value for name, value in environment(settings).items() if name.startswith("SDA_INGEST__")}


@contextmanager
def fusion(folder: Path) -> Iterator[Run]:
    """``sda-fusion``, whose propagator's worker is busy."""
    place = FusionPlace.free(folder)
    settings, _ = place.prepare_a_busy_worker(seed=6)
    settings |= {"control_plane": {"port": 0}, "propagator": {"max_rebuilds": 4}}
    simulator = place.simulator("--rate-radar", "100", "--rate-optical", "20", "--rate-isl", "20", "--linger", "1")
    try:
        with fusion_process(
            ["fusion", "--no-api", "--quiet"], settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        ) as process:
            assert process.stderr is not None
            run = Run(process, Log(process.stderr), folder, "sda-fusion")
            run.url = run.log.wait(lambda it: it["event"] == "control_plane", "the control plane").fields["url"]
            run.log.wait(lambda it: it["event"] == "worker_ready", "a worker")
            run.log.wait(lambda it: it["event"] == "spawn" and it["operator"] == "correlations", "the graph")
            go(simulator)
            yield run
            run.log.close()
    finally:
        simulator.terminate()
        simulator.wait()


@contextmanager
def _running(command: list[str], variables: Mapping[str, str], folder: Path, job: str) -> Iterator[Run]:
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment({}) | dict(variables),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    run = Run(process, Log(process.stderr), folder, job)
    try:
        run.url = run.log.wait(lambda it: it["event"] == "control_plane", "the control plane").fields["url"]
        yield run
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        run.log.close()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _wait_for_every_source(run: Run, sources: tuple[str, ...]) -> None:
    def all_send() -> bool:
        now = read_metrics(run.url)
        return all(now.get(f'source_ingest_rate{{source="{source}"}}', 0.0) > 1.0 for source in sources)

    wait_until(all_send, "every source sends")
