"""Options and help texts that several commands share."""

from __future__ import annotations

import argparse
from math import inf, nan
from pathlib import Path

from flows.pipelines import INGEST, PIPELINES

INSTALLATION = Path("run/prefect")
"""The default folder of a Prefect installation."""

_LAST_PORT = 65_535

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
        type=seconds,
        default=default_s,
        metavar="S",
        help="seconds to wait for the server that PREFECT_API_URL names (default: %(default)s)",
    )


def seconds(text: str) -> float:
    """A duration on the command line. Raises ``ArgumentTypeError`` for one that is negative or not finite."""
    try:
        value = float(text)
    except ValueError:
        value = nan
    if not 0 <= value < inf:
        raise argparse.ArgumentTypeError(f"expected seconds, at least 0, got {text!r}")
    return value


def at_least_one(text: str) -> int:
    """A number of things on the command line. Raises ``ArgumentTypeError`` for one below 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number, at least 1, got {text!r}")
    return int(text)


def tcp_port(text: str) -> int:
    """A port on the command line. Raises ``ArgumentTypeError`` for one that TCP does not have."""
    if not text.isdecimal() or not 1 <= int(text) <= _LAST_PORT:
        raise argparse.ArgumentTypeError(f"expected a port, 1 to {_LAST_PORT}, got {text!r}")
    return int(text)


def add_folder_argument(parser: argparse.ArgumentParser) -> None:
    """The folder of a Prefect installation that ``up`` makes and ``down`` stops."""
    parser.add_argument(
        "--folder",
        type=Path,
        default=INSTALLATION,
        metavar="DIR",
        help="data, logs and up.json of one installation (default: %(default)s)",
    )
