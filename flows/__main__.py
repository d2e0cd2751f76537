"""The command line: ``python -m flows COMMAND``. It imports the module of the command that is asked for, and no other."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from types import FrameType
from typing import NoReturn

from flows.output import flush_output, prepare_output

# Each command's help and its module, which has `add_arguments(parser)`, `run(args) -> exit code` and perhaps an `EPILOG`.
COMMANDS = {
    "ingest": ("run sda-ingest: radar, optical and ISL into the event log", "flows.commands.ingest"),
    "fusion": ("run sda-fusion: eight sources, correlated with a catalogue, into the audit", "flows.commands.fusion"),
    "screen": ("find every close approach of a catalogue's objects within a horizon", "flows.commands.screen"),
    "simulate": ("send what sensors would send, over real sockets", "flows.commands.simulate"),
    "check": ("validate settings and topology and print the graph", "flows.commands.check"),
    "top": ("show a running pipeline in the terminal: bottleneck, states, errors, losses", "flows.commands.top"),
    "conjunctions": ("list the conjunctions that sda-fusion has found, and show one", "flows.commands.conjunctions"),
    "subscriber": ("receive alerts over HTTP, each one once, and print them", "flows.commands.subscriber"),
    "alerts": ("list sda-fusion's alerts and who has received them, send again, park", "flows.commands.alerts"),
    "demo": ("run Prefect server, simulator and pipeline together, with live progress", "flows.commands.demo"),
    "automations": (
        "install Prefect automations on a pipeline's events: alarm, alerts, flapping, zombie",
        "flows.commands.automations",
    ),
    "reconcile": ("report to Prefect how earlier runs ended, where they could not", "flows.commands.reconcile"),
    "up": ("start a permanent Prefect server and worker, with every pipeline deployed", "flows.commands.up"),
    "down": ("stop what `up` has started; its flow runs drain first", "flows.commands.down"),
    "worker": ("run a Prefect process worker whose flow runs drain when it is stopped", "flows.commands.worker"),
}

_INTERRUPTED = 1
_RUNS = ("ingest", "fusion")
"""The commands that turn a signal from before their start into a request to stop, so that even this run leaves a report."""


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """The command line with the options of ``command``, and the names and helps of all commands."""
    top = argparse.ArgumentParser(
        prog="python -m flows",
        description="Run and check the space-safety pipelines, and simulate the sensors that feed them.",
    )
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (help_, module_name) in COMMANDS.items():
        added = commands.add_parser(
            name,
            help=help_,
            description=f"{help_[0].upper()}{help_[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if name == command:
            module = import_module(module_name)
            module.add_arguments(added)
            added.epilog = getattr(module, "EPILOG", None)
            added.set_defaults(run=module.run)
    return top


def main(
    arguments: Sequence[str] | None = None, *, ends_process: bool = False, early_signals: Sequence[str] = ()
) -> int:
    """Run one command and return the process's exit code.

    ``ends_process`` says that the process ends with it: when a run's outcome is on disk, nothing may keep the process alive.
    ``early_signals`` has the signals that arrive before the command handles them; it may still grow.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        args = parser(words[0] if words else None).parse_args(words)
        args.ends_process, args.early_signals = ends_process, early_signals
        return int(args.run(args))
    except KeyboardInterrupt:  # before or after the time in which the command handles signals itself
        return _INTERRUPTED


def run_process() -> NoReturn:
    """Run the command of this process's command line.

    Signals are handled from the first statement on: process 1 of a container ignores them otherwise. A run keeps them until it
    can handle them; any other command is interrupted, as by Ctrl-C.
    """
    early: list[str] = []

    def keep(number: int, _frame: FrameType | None) -> None:
        early.append(signal.Signals(number).name)

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    on_signal = keep if sys.argv[1:2] and sys.argv[1] in _RUNS else interrupt
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        if (
            signal.getsignal(number) is not signal.SIG_IGN
        ):  # nohup ignores SIGHUP, and a shell SIGINT of a job in the background
            signal.signal(number, on_signal)
    prepare_output()
    try:
        sys.exit(main(ends_process=True, early_signals=early))
    finally:
        flush_output()


if __name__ == "__main__":
    run_process()
