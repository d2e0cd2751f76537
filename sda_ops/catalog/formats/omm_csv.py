"""Rows from OMM as CSV (CelesTrak, FORMAT=csv; Space-Track, format/csv). One line is one row, quoted or not.

Up to 20 lines of text may precede the header, which names NORAD_CAT_ID.
"""

from __future__ import annotations

import csv

from sda_ops.catalog.formats.rows import OmmRows, Unreadable

_LINES_BEFORE_HEADER = 20


def looks_like_omm_csv(text: str) -> bool:
    """Whether one of the first lines is a header with a catalogue number."""
    return _header(text) is not None


def omm_csv_rows(text: str) -> OmmRows:
    """One row for each line below the header. An unclosed quote costs only its own line: no field contains a line break."""
    found = _header(text)
    if found is None:
        return
    number_of_header, header = found
    for number, line in enumerate(text.split("\n"), start=1):
        row = line.strip("\r")
        if number <= number_of_header or not row.strip():
            continue
        cells = _cells(row)
        if len(cells) != len(header):
            yield number, Unreadable(f"expected {len(header)} fields as in the header, got {len(cells)}")
        else:
            yield number, dict(zip(header, cells, strict=True))


def _header(text: str) -> tuple[int, list[str]] | None:
    """The first line that names the catalogue number, and its cells."""
    for number, line in enumerate(text.split("\n", _LINES_BEFORE_HEADER)[:_LINES_BEFORE_HEADER], start=1):
        if "NORAD_CAT_ID" in (cells := _cells(line.strip())):
            return number, cells
    return None


def _cells(line: str) -> list[str]:
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error:
        return []
