"""Printing that cannot change how a command ends: standard output may be full, closed, or unable to show a character.

The outcome of a command decides its exit code. Python itself would end with 1 after a failed ``print``, and with 120 if its
last flush fails. Imports nothing but the standard library, so that every command can use it at once.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import TextIO


def print_line(text: str) -> None:
    """Print to standard output, as far as that is possible."""
    _write(sys.stdout, text)


def print_problem(text: str) -> None:
    """Print to standard error, as far as that is possible."""
    _write(sys.stderr, text)


def prepare_output() -> None:
    """Call it first in a process: characters that the terminal's encoding lacks are escaped, and no file takes a closed stream's place."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:  # closed: the next file that is opened would get this number, and a log's line could end in it
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is not None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # as Python does for standard error


def flush_output() -> None:
    """Call it last in a process: what cannot be written is discarded, so that Python's own last flush does not fail."""
    for stream in (sys.stdout, sys.stderr):
        _write(stream, None)


def _write(stream: TextIO | None, text: str | None) -> None:
    if stream is None:  # it was closed when the process started
        return
    try:
        if text is not None:
            stream.write(f"{text}\n")
        stream.flush()
    except (OSError, ValueError):  # full, a pipe that nothing reads, or closed
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
