"""What every format's reader yields: the line at which a row begins, and its content."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from sda_ops.catalog.elements import ElementSet
from sda_ops.catalog.omm_fields import OmmFields


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that could not be read.

    Attributes:
        reason: What was expected, and what the row has.
        truncated: Whether the text ends within the row.
    """

    reason: str
    truncated: bool = False


@dataclass(frozen=True, slots=True)
class Remark:
    """Something unusual that costs no element set. Remarks with one text are reported once, with their number."""

    text: str


OmmRows: TypeAlias = Iterator[tuple[int, OmmFields | Unreadable]]
"""Line numbers count from 1."""

Row: TypeAlias = tuple[int, ElementSet | Unreadable | Remark]


def read_omm(rows: OmmRows) -> Iterator[Row]:
    """Element sets from the fields of each row."""
    for line, fields in rows:
        if isinstance(fields, Unreadable):
            yield line, fields
            continue
        try:
            yield line, ElementSet.from_omm(fields)
        except ValueError as error:
            yield line, Unreadable(str(error))
