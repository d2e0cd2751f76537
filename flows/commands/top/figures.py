"""Figures and texts of a document as short terminal text. Pure.

What the pipeline says (names, errors, reasons) is untrusted: ``clean`` makes each of it one printable line, and it becomes a
``rich.text.Text``, in which rich interprets no markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.text import Text

from orchestrator_adapter.control_plane.document import Quantiles, Shares

_UNITS = ((1e9, "G"), (1e6, "M"), (1e4, "k"))
_SMALL = 10
_S_PER_MIN, _MIN_PER_H, _H_PER_D = 60, 60, 24
_MS_PER_S = 1_000
_LEVELS = "▁▂▃▄▅▆▇█"
MISSING = "-"


def clean(text: str) -> str:
    """One line of printable characters: line breaks and tabs become spaces, and any other control character ``?``."""
    return "".join(character if character.isprintable() else "?" for character in " ".join(text.split()))


def number(value: float) -> str:
    """At most six characters: ``0.4``, ``12``, ``9,990``, ``12.3k``, ``1.20M``."""
    for unit, letter in _UNITS:
        if abs(value) >= unit:
            scaled = value / (unit if unit != _UNITS[-1][0] else _MS_PER_S)
            return f"{scaled:.3g}{letter}" if scaled < _MS_PER_S else f"{scaled:,.0f}{letter}"
    if 0 < abs(value) < _SMALL and value != round(value):
        return f"{value:.1f}"
    return f"{value:,.0f}"


def percent(share: float) -> str:
    """``98%``; ``<1%`` for a share that is not zero."""
    return "<1%" if 0 < share < 0.005 else f"{share:.0%}"  # noqa: PLR2004 - half a per cent is rounded to zero


def duration(seconds: float) -> str:
    """``0.4 ms``, ``12 ms``, ``3.2 s``, ``2 min 5 s``, ``3 h 4 min``, ``2 d 3 h``."""
    if 0 < seconds < 1:
        return f"{seconds * _MS_PER_S:.2g} ms" if seconds < 0.1 else f"{seconds * _MS_PER_S:.0f} ms"  # noqa: PLR2004
    if seconds < _SMALL:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), _S_PER_MIN)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, _MIN_PER_H)
    if not hours:
        return f"{minutes} min {rest} s"
    days, hours = divmod(hours, _H_PER_D)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"


def clock_time(at: float) -> str:
    """A time of the day in UTC, ``03:04:05Z``."""
    try:
        return f"{datetime.fromtimestamp(at, UTC):%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):  # not a time of this calendar
        return MISSING


def data_size(size: int) -> str:
    """``181 MB``."""
    return f"{size / 1e6:,.0f} MB"


def quantiles(measured: Quantiles | None) -> str:
    """``p50 4.0 ms  p99 21 ms``."""
    if measured is None:
        return "nothing measured"
    return f"p50 {duration(measured.p50_s)}  p99 {duration(measured.p99_s)}"


def shares_bar(shares: Shares, width: int) -> Text:
    """What an operator did with its time, as a bar: ``█`` busy, ``▒`` blocked, ``×`` down, ``·`` idle."""
    parts = ((shares.busy, "█", "green"), (shares.blocked, "▒", "yellow"), (shares.down, "×", "red"))
    bar, done, reached = Text(), 0, 0.0
    for share, character, style in parts:
        reached += min(max(share, 0.0), 1.0)
        until = min(width, round(reached * width))
        bar.append(character * (until - done), style)
        done = max(done, until)
    return bar.append("·" * (width - done), "dim")


def trend(values: Sequence[float | None], width: int) -> str:
    """The last ``width`` values as a line of bars from 0 to the greatest; a space where there is no value."""
    last = values[-width:]
    top = max((value for value in last if value is not None), default=0.0)
    if top <= 0:
        return ""
    return "".join(
        " " if value is None else _LEVELS[min(len(_LEVELS) - 1, int(len(_LEVELS) * value / top))] for value in last
    )
