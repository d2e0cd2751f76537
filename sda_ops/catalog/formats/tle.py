"""Rows from two-line element sets, with or without a name line above.

**Which line is what.** A line is decided by its structure, not by its first characters, because names may begin with "1 "
or "2 ". It is a line of elements if it begins with its number and a blank, and either is as long as one (60 characters,
where the longest names have 24) or has the columns of one as far as it goes, at least up to its catalogue number. Every
other line is text. A line 1 with a line 2 directly below it is a set, and the text directly above it (blank lines do not
count) is its name, with or without the "0 " of 3LE. All other text, such as a header, remarks between the sets or a
footer, is skipped. Blank lines and lines that begin with '#' are skipped everywhere.

**A set without checksums**, as in old archives, ends in column 68 in both lines. It is accepted, and remarked on.
"""

from __future__ import annotations

from collections.abc import Iterator

from sda_ops.catalog.elements import ElementSet, begins_like_line, has_no_checksum
from sda_ops.catalog.formats.rows import Remark, Row, Unreadable

_ELEMENTS_LENGTH = 60
"""A line at least as long is one of elements if it begins with '1 ' or '2 '."""


def looks_like_tle(text: str) -> bool:
    """Whether one of the lines is a line of elements."""
    return any(_number(line.rstrip()) for line in text.split("\n"))


def tle_rows(text: str) -> Iterator[Row]:
    """One row for each set, at its line 1, and for each line of elements without a partner."""
    lines = [line.rstrip() for line in text.rstrip().split("\n")]
    name = ""
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        following = lines[number] if number < len(lines) else ""
        kind = _number(line)
        if kind == 1 and _number(following) == 2:  # noqa: PLR2004 - the number of a line
            try:
                yield number, ElementSet.from_tle(line, following, name=name)
                if has_no_checksum(line):
                    yield number, Remark("an element set without checksums is accepted")
            except ValueError as error:
                yield number, Unreadable(str(error))
            number += 1
            name = ""
        elif kind:
            yield number, Unreadable(f"line {kind} has no partner: {line!r}", kind == 1 and number == len(lines))
            name = ""
        elif line and not line.startswith("#"):
            name = line.removeprefix("0 ")
    if name and not text.endswith("\n") and lines[-1][:2] in ("1", "1 ", "2", "2 "):
        yield number, Unreadable(f"the text ends within a line: {lines[-1]!r}", truncated=True)
    elif name:
        yield number, Remark(f"the text after the last element set is skipped: {name[:60]!r}")


def _number(line: str) -> int:
    """1 or 2 if it is a line of elements, 0 if it is text."""
    if not line.startswith(("1 ", "2 ")):
        return 0
    number = int(line[0])
    return number if len(line) >= _ELEMENTS_LENGTH or begins_like_line(number, line) else 0
