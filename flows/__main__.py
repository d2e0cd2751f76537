"""The command line: ``python -m flows COMMAND``. It imports the module of the command that is asked for, and no other."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

# Each command's help and its module, which has `add_arguments(parser)`, `run(args) -> exit code` and perhaps an `EPILOG`.
COMMANDS = {
    "ingest": ("run sda-ingest: radar, optical and ISL into the event log", "flows.commands.ingest"),
    "fusion": ("run sda-fusion: eight sources, correlated with a catalogue, into the audit", "flows.commands.fusion"),
    "simulate": ("send what sensors would send, over real sockets", "flows.commands.simulate"),
    "check": ("validate settings and topology and print the graph", "flows.commands.check"),
    "demo": ("run Prefect server, simulator and pipeline together, with live progress", "flows.commands.demo"),
    "automations": (
        "install Prefect automations on a pipeline's events: alarm, flapping, zombie",
        "flows.commands.automations",
    ),
    "reconcile": ("report to Prefect how earlier runs ended, where they could not", "flows.commands.reconcile"),
    "up": ("start a permanent Prefect server and worker, with every pipeline deployed", "flows.commands.up"),
    "down": ("stop what `up` has started; its flow runs drain first", "flows.commands.down"),
    "worker": ("run a Prefect process worker whose flow runs drain when it is stopped", "flows.commands.worker"),
}

_INTERRUPTED = 1


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    try:
        args = parser(words[0] if words else None).parse_args(words)
        return int(args.run(args))
    except KeyboardInterrupt:  # before or after the time in which the command handles signals itself
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
