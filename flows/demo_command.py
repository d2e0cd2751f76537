"""``python -m flows demo``: a Prefect server, simulated sensors and ``sda-ingest`` together, on free ports, in one folder."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from flows.pipelines import INGEST
from flows.prefect_processes import (
    HOST,
    SERVER_START_S,
    LocalServer,
    ProcessFailed,
    answers,
    exit_of,
    free_ports,
    last_lines,
    listens,
    wait_for,
)
from flows.run_command import closing_words, perform
from flows.settings import IngestSettings
from orchestrator_adapter import BuiltGraph, Role
from orchestrator_adapter.pipeline import Outcome
from orchestrator_adapter.report import ExitCode
from sda_ops.sinks.event_log import read_event_log

_SIMULATOR_START_S = 60.0
_STOP_S = 15.0
_LINGER_S = 1.0  # after the last observation, for the poller to fetch what the archive still has


@dataclass(frozen=True, slots=True)
class Stage:
    """Where everything is in this demo."""

    folder: Path
    radar_ports: tuple[int, ...]
    archive_port: int
    isl_port: int
    server_port: int
    control_port: int

    @property
    def server(self) -> LocalServer:
        return LocalServer(self.folder / "prefect", self.server_port)

    def settings(self) -> IngestSettings:
        """The pipeline's settings on this stage."""
        radars = [
            {"name": f"radar-{number:02}", "host": HOST, "port": port}
            for number, port in enumerate(self.radar_ports, 1)
        ]
        return IngestSettings.model_validate(
            {
                "radars": radars,
                "optical": {"url": f"http://{HOST}:{self.archive_port}/observations"},
                "isl": {"host": HOST, "port": self.isl_port},
                "event_log": {"directory": self.folder / "log"},
                "dead_letters": {"directory": self.folder / "dead-letters"},
                "control_plane": {"host": HOST, "port": self.control_port},
                "prefect": {"directory": self.folder / "prefect-runs"},
                "report": self.folder / "report.json",
            }
        )

    def simulator_arguments(self, args: argparse.Namespace) -> list[str]:
        """The simulator's command line on this stage."""
        radars = [word for port in self.radar_ports for word in ("--radar", f"{HOST}:{port}")]
        catalog = ["--catalog", str(args.catalog)] if args.catalog is not None else []
        return [
            *("--hold", *radars, "--archive", f"{HOST}:{self.archive_port}", "--isl", f"{HOST}:{self.isl_port}"),
            *("--rate-radar", str(args.rate_radar), "--rate-optical", "50", "--rate-isl", "100", *catalog),
            *("--malformed", "0.005", "--impossible", "0.005", "--duplicates", "0.005"),
            *(
                "--duration",
                str(args.seconds),
                "--linger",
                str(_STOP_S + _LINGER_S),
            ),  # the archive outlives the pipeline
            *("--truth", str(self.folder / "truth.jsonl"), "--summary", str(self.folder / "simulator.json")),
        ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``demo``."""
    parser.add_argument("--seconds", type=float, default=30.0, metavar="S", help="how long sensors send (default: 30)")
    parser.add_argument("--no-api", action="store_true", help="without a Prefect server: the pipeline alone")
    parser.add_argument("--radars", type=int, default=3, metavar="N", help="radar arrays (default: 3)")
    parser.add_argument(
        "--rate-radar", type=float, default=400.0, metavar="HZ", help="detections/s of each array (default: 400)"
    )
    parser.add_argument(
        "--catalog", type=Path, metavar="FILE", help="TLE or OMM file to fly (default: a generated one)"
    )
    parser.add_argument("--quiet", action="store_true", help="no live progress")
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="where everything goes (default: run/demo/<time of the start>)"
    )


def run(args: argparse.Namespace) -> int:
    """Set the stage, run, clear it away, and say what happened. Returns the pipeline's exit code."""
    folder = args.folder or Path("run/demo") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    ports = free_ports(args.radars + 4)
    stage = Stage(folder, tuple(ports[4:]), *ports[:4])
    try:
        (folder / "prefect").mkdir(parents=True)
        _log_to(folder / "pipeline.log")
        with ExitStack() as processes:
            simulator = processes.enter_context(_simulator(stage, args))
            if not args.no_api:
                processes.enter_context(_prefect_server(stage))
            _wait_for_archive(stage, simulator)
            _say(f"health and metrics at http://{HOST}:{stage.control_port}/metrics")
            outcome = asyncio.run(_perform(stage, args, simulator))
    except (ProcessFailed, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return ExitCode.FAILED
    print(closing_words(outcome, INGEST.outputs(stage.settings())))
    return _compare(stage, outcome)


async def _perform(stage: Stage, args: argparse.Namespace, simulator: subprocess.Popen[bytes]) -> Outcome:
    settings = stage.settings()
    conducting: list[asyncio.Task[None]] = []

    def built(graph: BuiltGraph) -> None:
        conducting.append(asyncio.get_running_loop().create_task(_conduct(graph, simulator, args.seconds)))

    try:
        return await perform(
            INGEST, settings, prefect=not args.no_api, duration_s=None, quiet=args.quiet, on_built=built
        )
    finally:
        for task in conducting:
            task.cancel()
        await asyncio.gather(*conducting, return_exceptions=True)


async def _conduct(graph: BuiltGraph, simulator: subprocess.Popen[bytes], seconds: float) -> None:
    """Let the sensors send once everything listens, and stop the pipeline when they have ended."""
    while not _all_listen(graph):  # noqa: ASYNC110 - the status has nothing to await
        await asyncio.sleep(0.02)
    assert simulator.stdin is not None
    simulator.stdin.write(b"go\n")
    simulator.stdin.close()
    await asyncio.sleep(seconds + _LINGER_S)
    graph.request_shutdown(f"the sensors have ended after {seconds:g} s")


def _all_listen(graph: BuiltGraph) -> bool:
    sources = [operator for operator in graph.status().operators if operator.role is Role.SOURCE]
    return all("port" in source.counters for source in sources if source.name != "optical")


def _log_to(file: Path) -> None:
    """The pipeline's own log lines go to a file, so that the terminal is free for the progress."""
    handler = logging.FileHandler(file)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("orchestrator_adapter", "sda_ops"):
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).propagate = False


@contextmanager
def _process(command: list[str], log: BinaryIO, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child in a session of its own (Ctrl-C is for us to handle), stopped at the end, by force if need be."""
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **options)  # noqa: S603 - ours
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def _simulator(stage: Stage, args: argparse.Namespace) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "flows", "simulate", *stage.simulator_arguments(args)]
    with (stage.folder / "simulator.log").open("wb") as log, _process(command, log, stdin=subprocess.PIPE) as process:
        yield process


@contextmanager
def _prefect_server(stage: Stage) -> Iterator[None]:
    """A Prefect server of the demo's own; this process is pointed at it before Prefect is imported here."""
    server = stage.server
    os.environ.update(server.environment() | {"PREFECT_LOGGING_LEVEL": "WARNING"})
    _say(f"starting a Prefect server on {server.url} (some seconds) …")
    log = stage.folder / "prefect-server.log"
    with log.open("wb") as output, _process(server.command(), output) as process:
        wait_for(
            lambda: answers(server.api_url),
            limit_s=SERVER_START_S,
            what="the Prefect server",
            ended=lambda: exit_of(process),
            look_at=partial(last_lines, log),
            tell=_say,
        )
        _say(f"Prefect UI at {server.url}/runs")
        yield


def _wait_for_archive(stage: Stage, simulator: subprocess.Popen[bytes]) -> None:
    wait_for(
        lambda: listens(stage.archive_port),
        limit_s=_SIMULATOR_START_S,
        what="the simulator",
        ended=lambda: exit_of(simulator),
        look_at=partial(last_lines, stage.folder / "simulator.log"),
        tell=_say,
    )


def _say(what: str) -> None:
    print(f"demo: {what}", file=sys.stderr, flush=True)


def _compare(stage: Stage, outcome: Outcome) -> int:
    """Hold what was sent against what came in, and read the log back."""
    observations = sum(1 for _ in read_event_log(stage.folder / "log"))
    written = outcome.event.figures.ledger.written
    print(f"  read     {observations:,} lines of the log parse back; the ledger says {written:,} were written")
    summary_file = stage.folder / "simulator.json"
    if summary_file.is_file():
        summary: Mapping[str, Any] = json.loads(summary_file.read_text(encoding="utf-8"))
        sent = sum(sum(by_fault.values()) for by_fault in summary["sent"].values())
        missed = sent - outcome.event.figures.ledger.ingested
        drops = sum(counters.get("kernel_drops", 0) for counters in outcome.event.figures.counters.values())
        why = (
            f"; {missed:,} were not: sent after it had stopped, or dropped by the kernel ({drops:,})" if missed else ""
        )
        print(f"  sent     {sent:,} frames by the simulator; {sent - missed:,} were taken in{why}")
    print(f"  all in   {stage.folder.resolve()}")
    if observations != written:
        print("demo: the log and the ledger disagree", file=sys.stderr)
        return ExitCode.LEDGER_VIOLATION
    return outcome.exit_code
