"""Options and help texts that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

from flows.pipelines import INGEST, PIPELINES

INSTALLATION = Path("run/prefect")
"""The default folder of a Prefect installation."""

EXIT_CODES = """\
exit codes:
  0  the run ended by itself, or was asked to stop and drained
  1  the run did not start: settings, topology, no catalogue, a claim of another run, dead-letter store, control plane,
     Prefect API (each problem is named)
  2  the command line is wrong
  3  an operator exhausted its restart budget (a port that is taken, a log that cannot be written, …)
  4  an operator panicked (a bug)
  5  an operator did not stop (it is named, with its stack)
  6  the ledger does not balance: items are unaccounted for
"""


def add_settings_argument(parser: argparse.ArgumentParser, *prefixes: str) -> None:
    """The settings file; environment variables with these prefixes override it."""
    variables = " or ".join(f"{prefix}SECTION__NAME" for prefix in prefixes)
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help=f"settings, TOML; variables {variables} override it (default: built-in defaults)",
    )


def add_pipeline_argument(parser: argparse.ArgumentParser) -> None:
    """The pipeline, for commands that work with each of them."""
    parser.add_argument(
        "--pipeline", choices=sorted(PIPELINES), default=INGEST.name, help="which pipeline (default: %(default)s)"
    )


def add_api_wait_argument(parser: argparse.ArgumentParser, *, default_s: float) -> None:
    """How long the command waits for a Prefect API."""
    parser.add_argument(
        "--api-wait",
        type=float,
        default=default_s,
        metavar="S",
        help="seconds to wait for the server that PREFECT_API_URL names (default: %(default)s)",
    )


def add_folder_argument(parser: argparse.ArgumentParser) -> None:
    """The folder of a Prefect installation that ``up`` makes and ``down`` stops."""
    parser.add_argument(
        "--folder",
        type=Path,
        default=INSTALLATION,
        metavar="DIR",
        help="data, logs and up.json of one installation (default: %(default)s)",
    )
