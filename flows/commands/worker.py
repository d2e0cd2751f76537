"""``python -m flows worker``: a Prefect process worker whose flow runs drain when it is told to stop.

Prefect's own worker ends its flow runs with SIGKILL as soon as it gets a SIGTERM (its task is cancelled, and with it the
subprocess's transport, which kills: ``anyio``'s ``Process.aclose``). A pipeline would never drain at ``systemctl stop``
or ``docker compose stop``. So this process starts Prefect's worker in a session of its own and, asked to stop, asks the
flow runs first. And Prefect's worker gives up after a quarter of an hour without an API, likewise with SIGKILL for its flow
runs: this one does not (``patient_worker``).
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from socket import gethostname
from types import FrameType

from flows.local_prefect.processes import POOL, ROLE_MARK, RUNS, ProcessFailed, need_proc, send, session_leaders_under
from orchestrator_adapter.process import ExitCode

DRAIN_S = 20.0  # for the flow runs; a pipeline's own grace is 5 s, and Prefect is told of the end after it
_SETTLE_S = 1.0  # for Prefect's worker to tell the API of a flow run that could not do so itself
_END_S = 5.0  # for Prefect's worker itself
STOP_S = DRAIN_S + _SETTLE_S + _END_S
_POLL_S = 0.1


def default_name() -> str:
    """The worker's name on this machine: the same at every start, so that Prefect knows it again."""
    return f"{POOL}-{gethostname()}".replace("/", "-").replace("%", "-")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``worker``."""
    parser.add_argument("--pool", default=POOL, metavar="NAME", help="the work pool (default: %(default)s)")
    parser.add_argument("--name", metavar="NAME", help=f"the worker's name (default: {POOL}-<this machine's name>)")


def run(args: argparse.Namespace) -> int:
    """Run Prefect's worker until a SIGTERM or SIGINT (a second one does not wait) or until it ends by itself."""
    asked: list[str] = []

    def ask(number: int, _frame: FrameType | None) -> None:
        asked.append(signal.Signals(number).name)

    try:
        need_proc()
    except ProcessFailed as error:
        print(f"worker: {error}", file=sys.stderr)
        return ExitCode.FAILED
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, ask)
    worker = subprocess.Popen(  # noqa: S603 - ours
        [
            *(
                sys.executable,
                "-m",
                "flows.local_prefect.patient_worker",
                "worker",
                "start",
                "--type",
                "process",
                "--install-policy",
                "never",
            ),
            *("--pool", args.pool, "--name", args.name or default_name()),
        ],
        env=os.environ | ({ROLE_MARK: RUNS} if ROLE_MARK in os.environ else {}),
        start_new_session=True,  # a terminal's Ctrl-C is for this process to handle
    )
    while not asked:
        if worker.poll() is not None:
            print(f"worker: Prefect's worker ended by itself, with exit code {worker.returncode}", file=sys.stderr)
            return ExitCode.FAILED
        time.sleep(_POLL_S)
    _drain(worker, asked)
    worker.terminate()
    try:
        worker.wait(_END_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
    return ExitCode.OK


def _drain(worker: subprocess.Popen[bytes], asked: list[str]) -> None:
    """Ask every flow run to stop, and wait until they have; what has not after ``DRAIN_S`` is left to the worker's end."""
    told: set[int] = set()
    deadline = time.monotonic() + DRAIN_S
    while running := session_leaders_under(worker.pid):
        if new := running - told:
            print(
                f"worker: {asked[0]}: {len(new)} flow run(s) have {DRAIN_S:g} s to drain", file=sys.stderr, flush=True
            )
            send(signal.SIGTERM, new)
            told |= new
        if time.monotonic() > deadline or len(asked) > 1:
            print(f"worker: {len(running)} flow run(s) still run and are killed", file=sys.stderr, flush=True)
            return
        time.sleep(_POLL_S)
    if told:
        time.sleep(_SETTLE_S)
