"""The progress of a screening: a bar with the time left on a terminal, a JSON line for every tenth elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from types import TracebackType
from typing import Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from flows.commands.messages import announce, on_terminal
from flows.commands.progress import Terminal

_TENTHS = 10


class ScreeningProgress:
    """Shows the finished windows on standard error, as a context manager. Call it as ``on_progress``."""

    def __init__(self, *, quiet: bool, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._quiet = quiet
        self._monotonic = monotonic
        self._started = monotonic()
        self._tenths = 0
        self._bar: Progress | None = None
        if not quiet and on_terminal():
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("screening"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("windows"),
                TimeElapsedColumn(),
                TextColumn("{task.fields[left]}"),
                console=Terminal(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("screening", total=None, left="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, finished: int, total: int, seconds_left: float | None) -> None:
        """Show that so many windows are finished."""
        if self._quiet:
            return
        if self._bar is not None:
            left = "" if seconds_left is None else f"about {_rounded(seconds_left)} left"
            self._bar.update(self._task, completed=finished, total=total, left=Text(left))
            return
        tenths = _TENTHS * finished // max(1, total)
        if tenths == self._tenths:
            return
        self._tenths = tenths
        left = "" if seconds_left is None else f", about {_rounded(seconds_left)} left"
        announce(
            "screen",
            "progress",
            f"{finished} of {total} windows{left}",
            finished=finished,
            windows=total,
            elapsed_s=round(self._monotonic() - self._started, 1),
            left_s=None if seconds_left is None else round(seconds_left, 1),
        )


def _rounded(seconds: float) -> str:
    """A time as people say it: 8 s, 2:05 min, 1:10 h."""
    whole = round(timedelta(seconds=seconds).total_seconds())
    if whole < 60:  # noqa: PLR2004 - seconds of a minute
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:  # noqa: PLR2004 - minutes of an hour
        return f"{minutes}:{rest:02} min"
    return f"{minutes // 60}:{minutes % 60:02} h"
