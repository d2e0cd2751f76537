"""What every notation's reader yields: the line at which a row begins, and what stands there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from sda_ops.catalog.elements import ElementSet
from sda_ops.catalog.formats.omm_fields import OmmFields


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A row that gave nothing.

    Attributes:
        reason: What was expected and what came.
        truncated: Whether the text ends in the middle of it.
    """

    reason: str
    truncated: bool = False


OmmRows: TypeAlias = Iterator[tuple[int, OmmFields | Unreadable]]
"""Line numbers from 1."""

Row: TypeAlias = tuple[int, ElementSet | Unreadable]


def read_omm(rows: OmmRows) -> Iterator[Row]:
    """Fields -> element sets."""
    for line, fields in rows:
        if isinstance(fields, Unreadable):
            yield line, fields
            continue
        try:
            yield line, ElementSet.from_omm(fields)
        except ValueError as error:
            yield line, Unreadable(str(error))
