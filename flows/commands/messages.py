"""What commands write to standard error: plain text on a terminal, JSON lines elsewhere.

A problem that keeps a command from starting is one line of plain text everywhere.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable

from flows.output import print_problem
from orchestrator_adapter import EventLog, JsonFormatter
from orchestrator_adapter.process import ExitCode

logger = logging.getLogger("flows.commands")


def on_terminal() -> bool:
    """Whether standard error is a terminal."""
    return sys.stderr is not None and sys.stderr.isatty()


def announce(command: str, event: str, text: str, **fields: object) -> None:
    """Write one message: ``command: text`` on a terminal, elsewhere the JSON line ``event`` with ``message`` and ``fields``."""
    if on_terminal():
        print_problem(f"{command}: {text}")
        return
    log_as_json_lines()
    EventLog(logger).write(event, logging.INFO, {"command": command, "message": text, **fields})


def report_problems(command: str, problems: Iterable[str]) -> ExitCode:
    """Write each problem as one line of plain text. Returns the exit code of a command that did not start."""
    for problem in problems:
        print_problem(f"{command}: {problem}")
    return ExitCode.FAILED


def log_as_json_lines() -> None:
    """Write all log records to standard error as JSON lines, Python's warnings included; nothing if there is a handler."""
    if logging.root.handlers:
        return
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs a line for each request
    logging.captureWarnings(capture=True)


def log_prefect_as_json_lines() -> None:
    """Make JSON lines of Prefect's own log, too. Call it after Prefect is imported: the import replaces the log handlers."""
    for each in (logging.root, *logging.root.manager.loggerDict.values()):
        if isinstance(each, logging.Logger):
            for handler in tuple(each.handlers):
                if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
                    each.removeHandler(handler)
                    each.propagate = True
    log_as_json_lines()
