"""Rows from two-line element sets, with or without a name line above."""

from __future__ import annotations

from collections.abc import Iterator

from sda_ops.catalog.elements import ElementSet
from sda_ops.catalog.formats.rows import Row, Unreadable


def looks_like_tle(text: str) -> bool:
    """Whether one of the lines is a line 1."""
    return "\n1 " in f"\n{text}"


def tle_rows(text: str) -> Iterator[Row]:
    """One row for each pair of lines, at its line 1. Blank lines and lines that begin with '#' are skipped."""
    lines = [line.rstrip() for line in text.rstrip().split("\n")]
    name = ""
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        following = lines[number] if number < len(lines) else ""
        if line.startswith("1 ") and following.startswith("2 "):
            try:
                yield number, ElementSet.from_tle(line, following, name=name)
            except ValueError as error:
                yield number, Unreadable(str(error))
            number += 1
            name = ""
        elif line.startswith(("1 ", "2 ")):
            truncated = line[0] == "1" and number == len(lines)
            yield number, Unreadable(f"line {line[0]} has no partner: {line!r}", truncated)
            name = ""
        elif line and not line.startswith("#"):
            name = line.removeprefix("0 ")
    if name:
        yield number, Unreadable(f"name {name!r} has no lines below it")
