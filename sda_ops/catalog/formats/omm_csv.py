"""Rows from OMM as CSV (CelesTrak, FORMAT=csv; Space-Track, format/csv). One line is one row, quoted or not."""

from __future__ import annotations

import csv

from sda_ops.catalog.formats.rows import OmmRows, Unreadable


def looks_like_omm_csv(text: str) -> bool:
    """Whether the first line is a header with a catalogue number."""
    return "NORAD_CAT_ID" in _cells(text.lstrip().partition("\n")[0].strip())


def omm_csv_rows(text: str) -> OmmRows:
    """One row for each line. An unclosed quote costs only its own line, because no field contains a line break."""
    header: list[str] | None = None
    for number, line in enumerate(text.split("\n"), start=1):
        row = line.strip("\r")
        if not row.strip():
            continue
        cells = _cells(row)
        if header is None:
            header = cells
        elif len(cells) != len(header):
            yield number, Unreadable(f"expected {len(header)} fields as in the header, got {len(cells)}")
        else:
            yield number, dict(zip(header, cells, strict=True))


def _cells(line: str) -> list[str]:
    if '"' not in line:
        return line.split(",")
    try:
        return next(csv.reader([line], strict=True))
    except csv.Error:
        return []
