"""``python -m flows subscriber``: receive alerts over HTTP, each one once, and print each new one as a line.

The reference subscriber: for demonstrations, and as a model for a subscriber of your own (docs/alerts.md).
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from flows.commands.messages import report_problems
from flows.output import print_line, print_problem
from flows.settings.addresses import SecretUnavailable, SigningSecret, value_of
from orchestrator_adapter import SystemClock, listen_tcp
from orchestrator_adapter.process import ExitCode
from sda_ops.alerts.delivery.signature import signing_key
from sda_ops.alerts.subscriber.application import application
from sda_ops.alerts.subscriber.plain_line import plain_line
from sda_ops.alerts.subscriber.table import SubscriberTable

EPILOG = """\
settings of sda-fusion that deliver to it:
  [[alerts.subscribers]]
  name = "reference"
  url = "http://127.0.0.1:9500/alerts"

examples:
  python -m flows subscriber --table run/subscriber/alerts.sqlite
  ALERTS_SECRET=whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw python -m flows subscriber --secret env:ALERTS_SECRET
"""

_BACKLOG = 64
_LAST_ANSWERS_S = 2  # at the end, for requests that have begun
_LAST_PORT = 65_535


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add every option of ``subscriber``."""
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="HOST", help="listen there (default: %(default)s, this machine only)"
    )
    parser.add_argument(
        "--port", type=_port, default=9500, metavar="PORT", help="0 for any free one (default: %(default)s)"
    )
    parser.add_argument(
        "--table",
        type=Path,
        default=Path("run/subscriber/alerts.sqlite"),
        metavar="FILE",
        help="what was received, SQLite; made if it is missing (default: %(default)s)",
    )
    parser.add_argument(
        "--secret",
        type=_reference,
        metavar="WHERE",
        help="reject deliveries without this secret's signature; env:NAME or file:PATH, where it is, as in the settings",
    )


def run(args: argparse.Namespace) -> int:
    """Receive until SIGTERM, SIGHUP or Ctrl-C. The exit code is 1, with one line, if it cannot start."""
    try:
        key = None if args.secret is None else signing_key(value_of(args.secret))
    except SecretUnavailable as error:
        return report_problems("subscriber", [f"--secret: {error}"])
    try:
        table = SubscriberTable(args.table)
    except (OSError, sqlite3.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        return report_problems("subscriber", [f"--table {args.table}: {why}; choose another file"])
    try:
        listening = listen_tcp(args.host, args.port, backlog=_BACKLOG)
    except OSError as error:
        table.close()
        return report_problems("subscriber", [f"cannot listen on {args.host}:{args.port}: {error.strerror}"])
    known = len(table.keys())
    port = listening.getsockname()[1]
    print_problem(f"subscriber: listening on http://{_in_url(args.host)}:{port}/, {known} alerts in {args.table}")
    try:
        app = application(
            table, now_ns=SystemClock().now_ns, key=key, on_alert=lambda alert: print_line(plain_line(alert))
        )
        server = _Server(
            uvicorn.Config(
                app,
                ws="none",
                lifespan="off",
                access_log=False,
                log_config=None,
                log_level="error",
                timeout_graceful_shutdown=_LAST_ANSWERS_S,
            )
        )
        asyncio.run(server.until_stopped(listening))
    finally:
        listening.close()
        table.close()
    return ExitCode.OK


class _Server(uvicorn.Server):
    """Uvicorn's server, stopped by the event loop's signal handlers: uvicorn's own would end the process with exit code 1."""

    async def until_stopped(self, listening: socket.socket) -> None:
        """Serve until a signal."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, self._stop)
        await self.serve(sockets=[listening])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to the event loop."""
        yield

    def _stop(self) -> None:
        self.should_exit = True


def _reference(text: str) -> SigningSecret:
    if not text.startswith(("env:", "file:")):
        raise argparse.ArgumentTypeError(
            "expected env:NAME or file:PATH, where the secret is: every user of this machine sees arguments"
        )
    return SigningSecret(text)


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > _LAST_PORT:
        raise argparse.ArgumentTypeError(f"expected a port, 0 to {_LAST_PORT}, got {text!r}")
    return int(text)


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
