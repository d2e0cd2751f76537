"""Ends this process although something in it does not end: a thread, a task, a pipe that nothing reads."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn

_FLUSH_S = 0.5


def end_process(exit_code: int, *, within_s: float) -> None:
    """End this process with ``exit_code`` in ``within_s`` seconds, unless it has ended by then.

    For the last step of a program, once its outcome is on disk: a thread that hangs, or a task that swallows its cancellation,
    would otherwise keep the process alive when Python waits for it. Returns at once. Exit handlers (``atexit``) are skipped
    if the time is over.
    """

    def wait() -> None:
        threading.Event().wait(within_s)
        exit_now(exit_code)

    threading.Thread(target=wait, name="end-of-process", daemon=True).start()


def exit_now(exit_code: int) -> NoReturn:
    """End this process now, from any thread. Standard output and error are flushed, if that takes less than half a second."""
    flushing = threading.Thread(target=_flush, name="flush", daemon=True)
    with suppress(RuntimeError):  # the interpreter is shutting down and starts no threads; it has flushed both
        flushing.start()
        flushing.join(_FLUSH_S)
    os._exit(exit_code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # full, closed, or not there
            stream.flush()
