"""``python -m flows reconcile``: tell Prefect what earlier runs could not, without starting another one.

A run that was killed, or that ended while no API answered, has left a record in its folder; the next start puts it right,
and so does this. It works on a folder that no run has, and on the server that ``PREFECT_API_URL`` names.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from pathlib import Path

from flows.commands.run import add_pipeline_argument, add_settings_argument
from flows.local_prefect.api_health import add_api_wait_argument, wait_for_api
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
        help="where the runs' records are (default: prefect.directory of the settings)",
    )
    add_api_wait_argument(parser, default_s=30.0)


def run(args: argparse.Namespace) -> int:
    """Put every earlier run right, a line each. 1, with the reason, if something is left to be done."""
    try:
        folder: Path = args.folder or PIPELINES[args.pipeline].load(args.config).prefect.directory
    except SettingsError as error:
        return _refuse(error.problems)
    api_url = os.environ.get("PREFECT_API_URL")
    if not api_url:
        return _refuse(["there is nobody to tell: set PREFECT_API_URL"])
    if why := asyncio.run(wait_for_api(api_url, args.api_wait, _say_that_it_waits)):
        return _refuse([f"no Prefect API answers at {api_url} (PREFECT_API_URL): {why}"])
    logging.basicConfig(level=logging.WARNING, format="reconcile: %(message)s", stream=sys.stderr)
    try:
        with claim((f"file://{folder.resolve()}",), Owner.this_process("reconcile")):
            problems = asyncio.run(_reconcile(folder))
    except OSError as error:
        return _refuse([str(error)])
    return _refuse(problems) if problems else ExitCode.OK


async def _reconcile(folder: Path) -> list[str]:
    """Returns what is left, each in a sentence."""
    # Importing Prefect takes a second, and `--help` of another command does not need it.
    from orchestrator_adapter.prefect_flow.recovery import RunRecords, client_without_retries, reconcile_run  # noqa: PLC0415

    records = RunRecords(folder)
    left = [f"{path} should be the record of a run and is none; it is left alone" for path in records.unreadable()]
    found = list(records.all())
    async with client_without_retries() as client:
        for record in found:
            run = f"flow run {record.flow_run_name!r} ({record.flow_run_id}) of {record.pipeline}"
            done = await reconcile_run(client, records, record, by=_BY)
            if done is None:
                left.append(f"{run}: Prefect does not answer, or not well; it is left for the next time")
            elif done.flow_run_state is None and not done.task_runs:
                print(f"{run}: its state was right")
            else:
                state = done.flow_run_state or "its state was right"
                print(f"{run}: {state}; {done.task_runs} task runs set Crashed")
    if not found and not left:
        print(f"nothing to put right in {folder}")
    return left


def _say_that_it_waits(why: str) -> None:
    print(f"reconcile: waiting for the Prefect API: {why}", file=sys.stderr, flush=True)


def _refuse(problems: list[str]) -> int:
    for problem in problems:
        print(f"reconcile: {problem}", file=sys.stderr)
    return ExitCode.FAILED
