"""``python -m flows down``: stop what ``up`` has started."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from flows.commands.messages import report_problems
from flows.commands.options import add_folder_argument
from flows.local_prefect.processes import ProcessFailed, marked_processes
from flows.local_prefect.stopping import locked, stop
from flows.output import print_line
from orchestrator_adapter.process import ExitCode


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``down``."""
    add_folder_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Stop flow runs, worker and server, in this order; print what was stopped and where the data are."""
    folder: Path = args.folder.resolve()
    if not folder.is_dir():
        _say(f"nothing was running; there is no {folder}")
        return ExitCode.OK
    try:
        with locked(folder):
            was_running = stop(partial(marked_processes, folder), _say)
            (folder / "up.json").unlink(missing_ok=True)
    except (ProcessFailed, OSError) as error:
        return report_problems("down", [str(error)])
    if not was_running:
        _say("nothing was running")
    _say(f"data and logs stay in {folder}")
    return ExitCode.OK


def _say(text: str) -> None:
    print_line(f"down: {text}")
