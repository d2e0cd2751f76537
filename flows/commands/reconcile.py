"""``python -m flows reconcile``: report to Prefect how earlier runs ended, without starting a run.

A run that was killed, or that ended while no API answered, leaves a record in its folder. The next start reconciles it with
Prefect, and so does this command. It needs a folder that no run uses, and the server that ``PREFECT_API_URL`` names.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from flows.commands.messages import announce, log_as_json_lines, on_terminal, report_problems
from flows.commands.options import add_api_wait_argument, add_pipeline_argument, add_settings_argument
from flows.local_prefect.api_health import wait_for_api
from flows.output import print_line
from flows.pipelines import PIPELINES
from flows.settings.load import SettingsError
from orchestrator_adapter import Owner, claim
from orchestrator_adapter.process import ExitCode

_BY = "`python -m flows reconcile`"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``reconcile``."""
    add_pipeline_argument(parser)
    add_settings_argument(parser, *(kind.prefix for kind in PIPELINES.values()))
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="the folder of the runs' records (default: prefect.directory of the settings)",
    )
    add_api_wait_argument(parser, default_s=30.0)


def run(args: argparse.Namespace) -> int:
    """Reconcile every earlier run and print a line for each. The exit code is 1, with the reasons, if a run remains."""
    try:
        folder: Path = args.folder or PIPELINES[args.pipeline].load(args.config).prefect.directory
    except SettingsError as error:
        return report_problems("reconcile", error.problems)
    api_url = os.environ.get("PREFECT_API_URL")
    if not api_url:
        return report_problems("reconcile", ["no server to report to: set PREFECT_API_URL"])
    if why := asyncio.run(wait_for_api(api_url, args.api_wait, _announce_wait)):
        return report_problems("reconcile", [f"no Prefect API answers at {api_url} (PREFECT_API_URL): {why}"])
    if on_terminal():
        logging.basicConfig(level=logging.WARNING, format="reconcile: %(message)s", stream=sys.stderr)
    else:
        log_as_json_lines()
    try:
        with claim((f"file://{folder.resolve()}",), Owner.this_process("reconcile")):
            problems = asyncio.run(_reconcile(folder))
    except OSError as error:
        return report_problems("reconcile", [str(error)])
    return report_problems("reconcile", problems) if problems else ExitCode.OK


async def _reconcile(folder: Path) -> list[str]:
    """Returns a sentence for each record that remains."""
    # Imported here: Prefect takes a second.
    from orchestrator_adapter.prefect_flow.recovery import RunRecords, client_without_retries, reconcile_run  # noqa: PLC0415

    records = RunRecords(folder)
    left = [f"{path} is not a valid record of a run; it is left unchanged" for path in records.unreadable()]
    found = list(records.all())
    async with client_without_retries() as client:
        for record in found:
            run = f"flow run {record.flow_run_name!r} ({record.flow_run_id}) of {record.pipeline}"
            done = await reconcile_run(client, records, record, by=_BY)
            if done is None:
                left.append(f"{run}: Prefect does not answer correctly; the record is kept for the next time")
            elif done.flow_run_state is None and not done.task_runs:
                print_line(f"{run}: its state was correct")
            else:
                state = done.flow_run_state or "its state was correct"
                print_line(f"{run}: {state}; {done.task_runs} task runs set Crashed")
    if not found and not left:
        print_line(f"nothing to reconcile in {folder}")
    return left


def _announce_wait(why: str) -> None:
    announce("reconcile", "waiting_for_api", f"waiting for the Prefect API: {why}", cause=why)
