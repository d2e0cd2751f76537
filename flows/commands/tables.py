"""What commands print of conjunctions and alerts: tables that fit the terminal, times, objects, and an id from its beginning."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from shutil import get_terminal_size
from typing import TypeAlias, TypeVar

from sda_ops.records.conjunction import ConjunctionEstimate

Row = TypeVar("Row")
Columns: TypeAlias = Sequence[tuple[str, Callable[[Row], str]]]
"""A heading and a function for each column."""

SHORT_ID = 13  # characters: 48 bits, enough for any table
_NS_PER_S = 10**9
_IDS_NAMED = 5


class NotOneId(Exception):
    """A text is not the beginning of exactly one id; the message has the nearest ones."""


def one_id(given: str, ids: Callable[[str, int], list[str]], *, what: str, none: str, listing: str) -> str:
    """The id that begins with ``given``. Raises `NotOneId`.

    Args:
        given: What the user wrote.
        ids: The first ids, at most so many, that begin with a text.
        what: What has the id: ``conjunction``.
        none: What is said if there is no id at all.
        listing: The command that lists all.
    """
    wanted = given.strip().lower()
    if not wanted:
        raise NotOneId("expected the beginning of an id, got an empty one")
    found = ids(wanted, _IDS_NAMED + 1)
    if len(found) == 1:
        return found[0]
    if found:
        more = ", …" if len(found) > _IDS_NAMED else ""
        raise NotOneId(f"{given!r} is the beginning of several ids: {', '.join(found[:_IDS_NAMED])}{more}")
    nearest: list[str] = []
    beginning = wanted
    while beginning and not nearest:
        beginning = beginning[:-1]
        nearest = ids(beginning, _IDS_NAMED)
    if not nearest:
        raise NotOneId(f"no {what} {given!r}: {none}")
    near = ", ".join(name[:SHORT_ID] for name in nearest)
    raise NotOneId(f"no {what} begins with {given!r}; the nearest ids: {near} (`{listing}` has all)")


def fitting(wide: list[str], narrow: list[str]) -> list[str]:
    """The narrow table if standard output is a terminal that is too narrow for the wide one."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return narrow if is_terminal and max(map(len, wide)) > get_terminal_size().columns else wide


def table(
    columns: Columns[Row],
    rows: Iterable[Row],
    *,
    text: Collection[str],
    below: Callable[[Row], Sequence[str]] | None = None,
) -> list[str]:
    """Lines with aligned columns: those with a heading in ``text`` to the left, numbers to the right.

    ``below`` makes further lines of each row.
    """
    rows = list(rows)
    cells = [[heading for heading, _ in columns], *([cell(row) for _, cell in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    is_text = [heading in text for heading, _ in columns]
    heading, *lines = [
        "  ".join(
            part.ljust(width) if left else part.rjust(width)
            for part, width, left in zip(row, widths, is_text, strict=True)
        ).rstrip()
        for row in cells
    ]
    if below is None:
        return [heading, *lines]
    return [heading, *(part for line, row in zip(lines, rows, strict=True) for part in (line, *below(row)))]


def time_text(timestamp_ns: int) -> str:
    """UTC, with milliseconds."""
    whole, rest = divmod(timestamp_ns, _NS_PER_S)
    return f"{datetime.fromtimestamp(whole, UTC):%Y-%m-%d %H:%M:%S}.{rest // 1_000_000:03}"


def minute_text(timestamp_ns: int) -> str:
    """UTC, to the minute, without the year."""
    return f"{datetime.fromtimestamp(timestamp_ns // _NS_PER_S, UTC):%m-%d %H:%M}"


def object_text(number: int, name: str) -> str:
    """An object's number and name."""
    return f"{number} {name}".rstrip()


def pair_text(estimate: ConjunctionEstimate) -> str:
    """Both objects' numbers and names."""
    first = object_text(estimate.catalog_number_first, estimate.name_first)
    return f"{first} | {object_text(estimate.catalog_number_second, estimate.name_second)}"


def objects_text(estimate: ConjunctionEstimate) -> list[str]:
    """A line for each object: number, name, orbit class, fleet, assumed radius."""
    e = estimate
    return [
        f"{object_text(number, name)} ({', '.join(filter(None, (orbit, fleet, f'assumed radius {radius_m:g} m')))})"
        for number, name, orbit, fleet, radius_m in (
            (e.catalog_number_first, e.name_first, e.orbit_class_first, e.fleet_first, e.radius_first_m),
            (e.catalog_number_second, e.name_second, e.orbit_class_second, e.fleet_second, e.radius_second_m),
        )
    ]


def probability_text(value: float | None) -> str:
    """A probability, or a dash."""
    return "-" if value is None else f"{value:.2E}"


def catalog_number(text: str) -> int:
    """An argument that is a catalogue number."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a catalogue number, got {text!r}")
    return int(text)
