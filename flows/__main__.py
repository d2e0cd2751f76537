"""The command line: ``python -m flows COMMAND``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial

from flows.commands import automations as automations_command
from flows.commands import demo as demo_command
from flows.commands import reconcile as reconcile_command
from flows.commands import run as run_command
from flows.commands import simulate as simulate_command
from flows.commands import up as up_command
from flows.commands import worker as worker_command
from flows.pipelines import FUSION, INGEST
from orchestrator_adapter.process import ExitCode

_EXIT_CODES = """\
exit codes:
  0  all ended well, or was asked to stop and drained
  1  did not come about: settings, topology, no catalogue, what another run has, dead-letter store, control plane,
     Prefect API (each is named)
  2  the command line is wrong
  3  an operator exhausted its restart budget (a port that is taken, a log that cannot be written, …)
  4  an operator panicked (a bug)
  5  something would not stop (it is named, with its stack)
  6  the ledger does not balance: items are unaccounted for
"""

_EPILOGS = {
    "ingest": _EXIT_CODES,
    "fusion": _EXIT_CODES,
    "demo": _EXIT_CODES,
    "automations": automations_command.EPILOG,
}


def parser() -> argparse.ArgumentParser:
    """The whole command line, with help."""
    top = argparse.ArgumentParser(
        prog="python -m flows",
        description="Run and check the space-safety pipelines, and simulate the sensors that feed them.",
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, help_, add_arguments, run in (
        ("ingest", "run sda-ingest: radar, optical and ISL into the event log", *_INGEST),
        ("fusion", "run sda-fusion: eight sources, correlated with a catalogue, into the audit", *_FUSION),
        ("simulate", "send what sensors would send, over real sockets", *_SIMULATE),
        ("check", "validate settings and topology and print the graph", *_CHECK),
        ("demo", "Prefect server, simulator and pipeline together, with live progress", *_DEMO),
        ("automations", "install Prefect automations on a pipeline's events: alarm, flapping, zombie", *_AUTOMATIONS),
        (
            "reconcile",
            "tell Prefect what earlier runs could not: how they ended, and what happened meanwhile",
            *_RECONCILE,
        ),
        ("up", "start a Prefect server and a worker that stay, with every pipeline deployed", *_UP),
        ("down", "stop what `up` has started; its flow runs drain first", *_DOWN),
        ("worker", "run a Prefect process worker whose flow runs drain when it is told to stop", *_WORKER),
    ):
        command = commands.add_parser(
            name,
            help=help_,
            description=f"{help_[0].upper()}{help_[1:]}.",
            epilog=_EPILOGS.get(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_arguments(command)
        command.set_defaults(run=run)
    return top


_INGEST = (partial(run_command.add_run_arguments, INGEST), partial(run_command.run, INGEST))
_FUSION = (partial(run_command.add_run_arguments, FUSION), partial(run_command.run, FUSION))
_SIMULATE = (simulate_command.add_arguments, simulate_command.run)
_CHECK = (run_command.add_check_arguments, run_command.run_check)
_DEMO = (demo_command.add_arguments, demo_command.run)
_AUTOMATIONS = (automations_command.add_arguments, automations_command.run)
_RECONCILE = (reconcile_command.add_arguments, reconcile_command.run)
_UP = (up_command.add_up_arguments, up_command.run_up)
_DOWN = (up_command.add_down_arguments, up_command.run_down)
_WORKER = (worker_command.add_arguments, worker_command.run)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code."""
    args = parser().parse_args(arguments)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:  # before or after the pipeline's own handling of signals
        return ExitCode.FAILED


if __name__ == "__main__":
    sys.exit(main())
