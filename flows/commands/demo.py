"""``python -m flows demo``: a Prefect server, simulated sensors and a pipeline, on free ports, in one folder."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from flows.commands.demo_alerts import DemoAlerts, passages
from flows.commands.demo_stages import LINGER_S, STAGES, Stage
from flows.commands.messages import announce, report_problems
from flows.commands.options import EXIT_CODES, add_pipeline_argument, at_least_one, seconds
from flows.commands.running import perform, summary
from flows.local_prefect.processes import (
    HOST,
    SERVER_START_S,
    ProcessFailed,
    answers,
    exit_of,
    free_ports,
    last_lines,
    listens,
    wait_for,
)
from flows.output import print_line
from orchestrator_adapter import BuiltGraph, JsonFormatter, Role
from orchestrator_adapter.process import RunOutcome, StopRequests
from sda_ops.simulate import ConfigurationError

EPILOG = EXIT_CODES
_SIMULATOR_START_S = 60.0
_SUBSCRIBER_START_S = 60.0
_STOP_S = 15.0
_FIRST_SCREENING_S = 60.0  # on a busy machine; five seconds on an idle one


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``demo``."""
    add_pipeline_argument(parser)
    parser.add_argument(
        "--seconds", type=seconds, default=30.0, metavar="S", help="how long sensors send (default: 30)"
    )
    parser.add_argument("--no-api", action="store_true", help="run the pipeline without a Prefect server")
    parser.add_argument("--radars", type=at_least_one, default=3, metavar="N", help="radar arrays (default: 3)")
    parser.add_argument(
        "--rate-radar", type=float, default=400.0, metavar="HZ", help="detections/s of each array (default: 400)"
    )
    parser.add_argument(
        "--catalog", type=Path, metavar="FILE", help="TLE, 3LE or OMM file to fly (default: a generated one)"
    )
    parser.add_argument(
        "--objects", type=int, default=2000, metavar="N", help="size of the generated catalogue (default: %(default)s)"
    )
    parser.add_argument(
        "--stage",
        type=passages,
        metavar="N:M",
        help="sda-fusion: N conjunctions and M near misses that appear in the catalogue while the sensors send (default: 1:1)",
    )
    parser.add_argument(
        "--quiet",
        action="store_true",
        help="no live progress (it is shown only if standard error is a terminal)",
    )
    parser.add_argument(
        "--folder", type=Path, metavar="DIR", help="the folder of all files (default: run/demo/<time of the start>)"
    )


def run(args: argparse.Namespace) -> int:
    """Start server and simulator, run the pipeline, stop them, and print a summary. Returns the pipeline's exit code."""
    folder = args.folder or Path("run/demo") / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    stage = _stage(STAGES[args.pipeline], folder, args.radars)
    if args.stage is not None and stage.alerts is None:
        return report_problems("demo", [f"--stage: {args.pipeline} has no alerts; add --pipeline sda-fusion"])
    args.stage = args.stage or (1, 1)
    try:
        (folder / "prefect").mkdir(parents=True)
        stage.prepare(args)
        _log_to(folder / "pipeline.log")
        url = f"http://{HOST}:{stage.control_port}"
        announce("demo", "control_plane_address", f"live page at {url}/ once the pipeline runs", url=url)
        with ExitStack() as processes:
            simulator = processes.enter_context(_simulator(stage, args))
            if stage.alerts is not None:
                processes.enter_context(_subscriber(stage.alerts))
            if not args.no_api:
                processes.enter_context(_prefect_server(stage))
            _wait_for_archive(stage, simulator)
            outcome = asyncio.run(_perform(stage, args, simulator, processes))
    except ConfigurationError as error:
        return report_problems("demo", error.problems)
    except (ProcessFailed, OSError) as error:
        return report_problems("demo", [str(error)])
    print_line(summary(outcome, stage.kind.outputs(stage.settings())))
    return _compare(stage, outcome)


def _stage(make: type[Stage], folder: Path, radars: int) -> Stage:
    ports = iter(free_ports(radars + make.archives + make.rings + 3))
    radar_ports, archive_ports, isl_ports = (
        tuple(islice(ports, count)) for count in (radars, make.archives, make.rings)
    )
    server, control, subscriber = ports
    return make(
        folder,
        radar_ports,
        archive_ports,
        isl_ports,
        server_port=server,
        control_port=control,
        subscriber_port=subscriber,
    )


async def _perform(
    stage: Stage, args: argparse.Namespace, simulator: subprocess.Popen[bytes], processes: ExitStack
) -> RunOutcome:
    settings, stop = stage.settings(), StopRequests()
    conducting: list[asyncio.Task[None]] = []

    def built(graph: BuiltGraph) -> None:
        conducting.append(asyncio.get_running_loop().create_task(_conduct(graph, simulator, args.seconds)))

    def forced_end(outcome: RunOutcome) -> None:
        print_line(summary(outcome, stage.kind.outputs(settings)))
        processes.close()

    try:
        with stop.listen():
            return await perform(
                stage.kind,
                settings,
                prefect=not args.no_api,
                duration_s=None,
                quiet=args.quiet,
                stop=stop,
                on_forced_end=forced_end,
                on_built=built,
            )
    finally:
        for task in conducting:
            task.cancel()
        await asyncio.gather(*conducting, return_exceptions=True)


async def _conduct(graph: BuiltGraph, simulator: subprocess.Popen[bytes], seconds: float) -> None:
    """Start the sensors once all sources listen, and stop the pipeline after they have ended.

    A pipeline that screens has `_FIRST_SCREENING_S` for its first screening before.
    """
    deadline = time.monotonic() + _FIRST_SCREENING_S
    # The status has nothing to await.
    while not (_all_listen(graph) and (_has_screened(graph) or time.monotonic() > deadline)):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    assert simulator.stdin is not None
    simulator.stdin.write(b"go\n")
    simulator.stdin.close()
    await asyncio.sleep(seconds + LINGER_S)
    graph.request_shutdown(f"the sensors have ended after {seconds:g} s")


def _all_listen(graph: BuiltGraph) -> bool:
    listening = [
        operator
        for operator in graph.status().operators
        if operator.role is Role.SOURCE and operator.name.startswith(("radar", "isl"))
    ]
    return all("port" in source.counters for source in listening)


def _has_screened(graph: BuiltGraph) -> bool:
    """Whether the catalogue was screened once; also if the pipeline does not screen."""
    return all(
        operator.counters.get("screenings", 0) > 0 for operator in graph.status().operators if operator.name == "screen"
    )


def _log_to(file: Path) -> None:
    """Write the pipeline's log lines to a file; the terminal shows the progress."""
    handler = logging.FileHandler(file)
    handler.setFormatter(JsonFormatter())
    for name in ("orchestrator_adapter", "sda_ops"):
        logging.getLogger(name).setLevel(logging.INFO)
        logging.getLogger(name).addHandler(handler)
        logging.getLogger(name).propagate = False


@contextmanager
def _process(command: list[str], log: BinaryIO, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A child process in a session of its own, so that only this process gets Ctrl-C. It is stopped at the end."""
    process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True, **options)  # noqa: S603 - our own command
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
def _subscriber(alerts: DemoAlerts) -> Iterator[None]:
    log = alerts.folder / "subscriber.log"
    with log.open("wb") as output, _process(alerts.command(), output) as process:
        wait_for(
            partial(listens, alerts.port),
            timeout_s=_SUBSCRIBER_START_S,
            what="the subscriber",
            ended=lambda: exit_of(process),
            hint=partial(last_lines, log),
            report=_say,
        )
        yield


@contextmanager
def _prefect_server(stage: Stage) -> Iterator[None]:
    """The demo's own Prefect server. The environment of this process names it before Prefect is imported here."""
    server = stage.server
    os.environ.update(server.environment() | {"PREFECT_LOGGING_LEVEL": "WARNING"})
    _say(f"starting a Prefect server on {server.url} (takes some seconds) …")
    log = stage.folder / "prefect-server.log"
    with log.open("wb") as output, _process(server.command(), output) as process:
        wait_for(
            lambda: answers(server.api_url),
            timeout_s=SERVER_START_S,
            what="the Prefect server",
            ended=lambda: exit_of(process),
            hint=partial(last_lines, log),
            report=_say,
        )
        announce("demo", "prefect_ui", f"Prefect UI at {server.url}/runs", url=f"{server.url}/runs")
        yield


def _wait_for_archive(stage: Stage, simulator: subprocess.Popen[bytes]) -> None:
    wait_for(
        lambda: all(map(listens, stage.archive_ports)),
        timeout_s=_SIMULATOR_START_S,
        what="the simulator",
        ended=lambda: exit_of(simulator),
        hint=partial(last_lines, stage.folder / "simulator.log"),
        report=_say,
    )


def _say(what: str) -> None:
    announce("demo", "demo", what)


def _compare(stage: Stage, outcome: RunOutcome) -> int:
    """Print the frames that were sent and taken in, and compare the output with the ledger."""
    summary_file = stage.folder / "simulator.json"
    if summary_file.is_file():
        summary: Mapping[str, Any] = json.loads(summary_file.read_text(encoding="utf-8"))
        sent = sum(sum(by_fault.values()) for by_fault in summary["sent"].values())
        taken_in = outcome.event.figures.ledger.ingested - stage.replayed() - stage.screened()
        missed = sent - taken_in
        drops = sum(counters.get("kernel_drops", 0) for counters in outcome.event.figures.counters.values())
        why = (
            f"; {missed:,} were not: sent after the pipeline had stopped, or dropped by the kernel ({drops:,})"
            if missed
            else ""
        )
        print_line(f"  sent     {sent:,} frames by the simulator; {taken_in:,} were taken in{why}")
    print_line(f"  all in   {stage.folder.resolve()}")
    return stage.check_output(outcome)
