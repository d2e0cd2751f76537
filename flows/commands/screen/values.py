"""Values on the command line of ``screen``: durations and distances with units, times, names of objects, files.

Each parser raises ``ArgumentTypeError`` that says what was expected, and the nearest right form where there is one.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, TypeAlias

MAX_HORIZON = timedelta(days=30)
MAX_MISS_M = 100_000.0
"""14,683 objects have 9 million approaches below 100 km a day, which take 5.5 GB."""

MAX_ORIGINATOR = 200
"""A line of a message has at most 254 characters."""

Start: TypeAlias = int | Literal["now", "epoch"]
"""The start of a screening: nanoseconds UTC, the clock's time, or the median epoch of the catalogue."""

TABLE_SUFFIXES = (".csv", ".parquet", ".json")
PICTURE_SUFFIXES = (".svg", ".png", ".pdf")

_TERM = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*([^\d\s.]*)\s*")
_SECONDS = {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0}
_METRES = {"km": 1_000.0, "m": 1.0}
_DURATION = "a duration with its unit (w, d, h, m, s), such as 24h, 90m or 1d12h"
_DISTANCE = "a distance in km or m, such as 5km or 500m"
_LONG_UNITS = {
    "w": {"week", "weeks"},
    "d": {"day", "days"},
    "h": {"hour", "hours", "hr", "hrs"},
    "m": {"min", "mins", "minute", "minutes", "metre", "metres", "meter", "meters"},
    "s": {"sec", "secs", "second", "seconds"},
    "km": {"kms", "kilometre", "kilometres", "kilometer", "kilometers"},
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def duration(text: str) -> timedelta:
    """``24h``, ``90m``, ``7d``, ``1d12h``: positive, at most `MAX_HORIZON`."""
    seconds = _total(text, _SECONDS)
    if seconds is None:
        raise _wrong(_DURATION, text, _right_form(text, _SECONDS, "h"))
    if not 0 < seconds <= MAX_HORIZON.total_seconds():
        raise _wrong(f"a duration above 0 and at most {MAX_HORIZON.days}d", text)
    return timedelta(seconds=seconds)


def distance_m(text: str) -> float:
    """``5km``, ``500m``: positive, at most `MAX_MISS_M`."""
    metres = _total(text, _METRES)
    if metres is None:
        raise _wrong(_DISTANCE, text, _right_form(text, _METRES, "km"))
    if not 0 < metres <= MAX_MISS_M:
        raise _wrong(f"a distance above 0 and at most {MAX_MISS_M / 1_000:g}km", text)
    return metres


def start(text: str) -> Start:
    """``now``, ``epoch``, or a time in ISO 8601, UTC unless it has an offset."""
    word = text.strip().lower()
    if word == "now":
        return "now"
    if word == "epoch":
        return "epoch"
    try:
        return ns_of(datetime.fromisoformat(text.strip()))
    except (ValueError, OverflowError):
        close = get_close_matches(word, ["now", "epoch"], n=1)
        raise _wrong("now, epoch, or a time such as 2026-03-10T00:00:00Z", text, close[0] if close else None) from None


def ns_of(moment: datetime) -> int:
    """Nanoseconds UTC; a time without an offset is UTC."""
    since = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH
    return ((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000


def identifiers(text: str) -> list[str]:
    """Numbers or names, separated by commas."""
    found = [part.strip() for part in text.split(",")]
    if not all(found):
        raise _wrong("catalogue numbers or names, separated by commas, such as 25544,20580", text)
    return found


def originator(text: str) -> str:
    """A name that every form of a message can have."""
    name = text.strip()
    if not name or not name.isascii() or not name.isprintable() or len(name) > MAX_ORIGINATOR:
        raise _wrong(f"a name of at most {MAX_ORIGINATOR} printable ASCII characters", text[:60])
    return name


def table_file(text: str) -> Path:
    """A file of one of `TABLE_SUFFIXES`."""
    return _file(text, TABLE_SUFFIXES, "table")


def picture_file(text: str) -> Path:
    """A file of one of `PICTURE_SUFFIXES`."""
    return _file(text, PICTURE_SUFFIXES, "picture")


def pair_of(text: str) -> tuple[str, str] | None:
    """Two objects; ``None`` for ``top``, the conjunction with the greatest maximum probability."""
    if text.strip().lower() == "top":
        return None
    found = [part.strip() for part in text.split(",")]
    if len(found) != 2 or not all(found) or found[0] == found[1]:  # noqa: PLR2004 - a pair
        raise _wrong("two different objects, such as 25544,20580, or top", text)
    return found[0], found[1]


def compact(span: timedelta) -> str:
    """A duration as `duration` reads it: ``1d12h``."""
    rest = span.total_seconds()
    parts = []
    for unit in ("d", "h", "m"):
        count, rest = divmod(rest, _SECONDS[unit])
        if count:
            parts.append(f"{count:g}{unit}")
    if rest or not parts:
        parts.append(f"{rest:g}s")
    return "".join(parts)


def _total(text: str, units: Mapping[str, float]) -> float | None:
    """The sum of the terms of ``text``; ``None`` if a unit is missing, unknown, or occurs twice."""
    terms = _terms(text.strip())
    names = [unit for _, unit in terms]
    if not terms or len({*names}) < len(names) or not all(name in units for name in names):
        return None
    return sum(float(number) * units[unit] for number, unit in terms)


def _terms(text: str) -> list[tuple[str, str]]:
    found = list(_TERM.finditer(text))
    if "".join(match.group() for match in found) != text:
        return []
    return [(match.group(1), match.group(2)) for match in found]


def _right_form(text: str, units: Mapping[str, float], default: str) -> str | None:
    """The value that was probably meant; ``None`` if that is not clear."""
    terms = [(number, _right_unit(unit.lower(), units, default)) for number, unit in _terms(text.strip())]
    form = "".join(f"{number}{unit}" for number, unit in terms)
    return form if terms and _total(form, units) is not None else None


def _right_unit(written: str, units: Mapping[str, float], default: str) -> str:
    if not written:
        return default
    if written in units:
        return written
    return next((unit for unit in units if written in _LONG_UNITS[unit]), "?")


def _file(text: str, suffixes: tuple[str, ...], what: str) -> Path:
    path = Path(text)
    suffix = path.suffix.lower()
    if suffix not in suffixes:
        close = get_close_matches(suffix, suffixes, n=1, cutoff=0.5)
        form = str(path.with_suffix(close[0])) if suffix and close else None
        raise _wrong(f"a {what} as {', '.join(suffixes[:-1])} or {suffixes[-1]}", text, form)
    return path


def _wrong(expected: str, text: str, close: str | None = None) -> argparse.ArgumentTypeError:
    hint = f"; did you mean {close}?" if close is not None and close != text else ""
    return argparse.ArgumentTypeError(f"expected {expected}, got {text!r}{hint}")
