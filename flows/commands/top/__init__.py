"""``python -m flows top``: the picture of a running pipeline in the terminal, over HTTP.

Modules, bottom to top: ``figures`` and ``picture`` (a document to what is shown, pure), ``client`` (documents from a control
plane), ``watch`` (keeps the picture up to date). This module has the options.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from flows.commands.options import seconds

SHORTEST_INTERVAL_S = 0.2
"""A control plane makes a new document at most this often."""

EPILOG = """\
examples:
  python -m flows top                                      the pipeline on this machine (port 9100, else 9101)
  python -m flows top 9101                                 sda-fusion on this machine
  python -m flows top https://sda.example:9100 --token-file token --ca ca.pem
  python -m flows top --once                               one picture, for example into a file
  python -m flows top --json | jq .bottlenecks             the document, as /graph sends it

On a terminal: q or Ctrl-C ends it. Elsewhere: as with --once.

exit codes:
  0  the picture was shown; with --once and --json: the run's health is ok, degraded or draining
  1  no document: the address cannot be reached, needs a token, is not a control plane, … (one line says which)
  2  the command line is wrong
  3  with --once and --json: the run's health is failing
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``top``."""
    parser.add_argument(
        "address",
        nargs="?",
        metavar="ADDRESS",
        help="the control plane: port, host:port or URL (default: 127.0.0.1:9100, else 127.0.0.1:9101)",
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="the file with the control plane's token")
    parser.add_argument(
        "--ca",
        type=Path,
        metavar="FILE",
        help="PEM file with the certificate authority to trust (default: the system's)",
    )
    parser.add_argument("--once", action="store_true", help="show one picture and end")
    parser.add_argument("--json", action="store_true", help="print the document as JSON and end")
    parser.add_argument(
        "--interval",
        type=interval,
        default=1.0,
        metavar="S",
        help=f"seconds between two pictures, at least {SHORTEST_INTERVAL_S} (default: %(default)s)",
    )


def interval(text: str) -> float:
    """The time between two pictures on the command line, seconds."""
    value = seconds(text)
    if value < SHORTEST_INTERVAL_S:
        raise argparse.ArgumentTypeError(f"expected at least {SHORTEST_INTERVAL_S} seconds, got {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    from flows.commands.top.watch import top  # noqa: PLC0415 - the help needs neither rich nor a client of HTTP

    return top(args)
