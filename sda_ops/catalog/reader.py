"""Catalogue files -> element sets. The format is told from the content; a bad row costs only itself."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from sda_ops.catalog.elements import ElementSet


@dataclass(frozen=True, slots=True)
class RowProblem:
    """A row that gave no element set.

    Attributes:
        file: Where it stands.
        row: Line number from 1 (TLE, CSV) or position in the array from 1 (JSON).
        reason: What was expected and what came.
    """

    file: str
    row: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Catalog:
    """What a file held.

    Attributes:
        element_sets: Its good rows, in file order.
        problems: Its bad rows, likewise.
    """

    element_sets: tuple[ElementSet, ...]
    problems: tuple[RowProblem, ...]


def read_catalog(path: Path) -> Catalog:
    """Read a TLE, 3LE, OMM JSON or OMM CSV file (UTF-8).

    Raises ``OSError`` where the file cannot be read and ``ValueError`` where it is in none of these formats.
    """
    return parse_catalog(path.read_text(encoding="utf-8-sig", errors="replace"), file=str(path))


def parse_catalog(text: str, *, file: str) -> Catalog:
    """As `read_catalog`, for text already read; ``file`` is what problems call it."""
    start = text.lstrip()[:1]
    first_line = text.lstrip().partition("\n")[0]
    if start in ("[", "{"):
        rows = _json_rows(text, file)
    elif "," in first_line and "NORAD_CAT_ID" in first_line:
        rows = _csv_rows(text)
    elif "\n1 " in f"\n{text}":
        rows = _tle_rows(text)
    else:
        raise ValueError(f"{file}: expected TLE, 3LE, OMM JSON or OMM CSV, got {first_line[:60]!r}")
    element_sets: list[ElementSet] = []
    problems: list[RowProblem] = []
    for row, outcome in rows:
        if isinstance(outcome, ElementSet):
            element_sets.append(outcome)
        else:
            problems.append(RowProblem(file, row, outcome))
    return Catalog(tuple(element_sets), tuple(problems))


_Rows: TypeAlias = Iterator[tuple[int, ElementSet | str]]
"""Row number, and what it held or why it held nothing."""


def _json_rows(text: str, file: str) -> _Rows:
    try:
        document = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{file}: not JSON: {error}") from error
    for row, message in enumerate(document if isinstance(document, list) else [document], start=1):
        yield row, _from_omm(message)


def _csv_rows(text: str) -> _Rows:
    reader = csv.DictReader(text.lstrip().splitlines())
    for message in reader:
        yield reader.line_num, _from_omm(message)


def _from_omm(message: object) -> ElementSet | str:
    if not isinstance(message, dict):
        return f"expected an object of OMM fields, got {type(message).__name__}"
    try:
        return ElementSet.from_omm(message)
    except (ValueError, TypeError) as error:
        return str(error)


def _tle_rows(text: str) -> _Rows:
    lines = [line.rstrip() for line in text.splitlines()]
    name = ""
    row = 0
    while row < len(lines):
        line = lines[row]
        row += 1
        following = lines[row] if row < len(lines) else ""
        if line.startswith("1 ") and following.startswith("2 "):
            try:
                yield row, ElementSet.from_tle(line, following, name=name)
            except ValueError as error:
                yield row, str(error)
            row += 1
            name = ""
        elif line.startswith(("1 ", "2 ")):
            yield row, f"line {line[0]} has no partner: {line!r}"
            name = ""
        elif line and not line.startswith("#"):
            name = line.removeprefix("0 ")
