"""``python -m flows worker``: a Prefect process worker whose flow runs drain when it is stopped.

Prefect's own worker ends its flow runs with SIGKILL when it gets a SIGTERM (its task is cancelled, and with it the
subprocess's transport, which kills: ``anyio``'s ``Process.aclose``). A pipeline would never drain at ``systemctl stop``
or ``docker compose stop``. So this process starts Prefect's worker in a session of its own. When it is asked to stop, it
first sends the flow runs a SIGTERM. Prefect's worker also ends after a quarter of an hour without an API, and kills its
flow runs; ``patient_worker`` prevents that.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from types import FrameType

from flows.commands.messages import announce, report_problems
from flows.local_prefect.processes import POOL, ROLE_MARK, RUNS, default_worker_name, send, session_leaders_under
from flows.local_prefect.stopping import DRAIN_S, END_S, SETTLE_S
from orchestrator_adapter.process import ExitCode

_POLL_S = 0.1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``worker``."""
    parser.add_argument("--pool", default=POOL, metavar="NAME", help="the work pool (default: %(default)s)")
    parser.add_argument("--name", metavar="NAME", help=f"the worker's name (default: {POOL}-<this machine's name>)")


def run(args: argparse.Namespace) -> int:
    """Run Prefect's worker until a SIGTERM, SIGINT or SIGHUP (a second one does not wait for the drain), or until it ends by itself."""
    signals: list[str] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        signals.append(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    worker = subprocess.Popen(  # noqa: S603 - our own command
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
            *("--pool", args.pool, "--name", args.name or default_worker_name()),
        ],
        env=os.environ | ({ROLE_MARK: RUNS} if ROLE_MARK in os.environ else {}),
        start_new_session=True,  # so that only this process gets a terminal's Ctrl-C
    )
    while not signals:
        if worker.poll() is not None:
            return report_problems("worker", [f"Prefect's worker ended by itself, with exit code {worker.returncode}"])
        time.sleep(_POLL_S)
    _drain(worker, signals)
    worker.terminate()
    try:
        worker.wait(END_S)
    except subprocess.TimeoutExpired:
        worker.kill()
        worker.wait()
    return ExitCode.OK


def _drain(worker: subprocess.Popen[bytes], signals: list[str]) -> None:
    """Send every flow run a SIGTERM and wait until they have ended, ``DRAIN_S`` at most; the worker's end kills the rest."""
    notified: set[int] = set()
    deadline = time.monotonic() + DRAIN_S
    while running := session_leaders_under(worker.pid):
        if new := running - notified:
            text = f"{signals[0]}: {len(new)} flow run(s) have {DRAIN_S:g} s to drain"
            announce("worker", "worker_draining", text, flow_runs=len(new))
            send(signal.SIGTERM, new)
            notified |= new
        if time.monotonic() > deadline or len(signals) > 1:
            text = f"{len(running)} flow run(s) still run and are killed"
            announce("worker", "worker_kills_flow_runs", text, flow_runs=len(running))
            return
        time.sleep(_POLL_S)
    if notified:
        time.sleep(SETTLE_S)
