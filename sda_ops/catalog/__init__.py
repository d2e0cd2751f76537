"""Catalogues of objects: element sets read from TLE, 3LE and OMM (JSON, CSV, XML, KVN), or generated.

``live``, a catalogue that is reloaded while running, is a separate import, because only it needs HTTP.
"""

from sda_ops.catalog.columns import ElementColumns
from sda_ops.catalog.elements import ElementSet
from sda_ops.catalog.history import ElementHistory
from sda_ops.catalog.reader import (
    Catalog,
    RowProblem,
    all_of_each,
    nearest_of_each,
    newest_of_each,
    parse_catalog,
    read_catalog,
    without_usable_rows,
)
from sda_ops.catalog.synthetic import synthetic_catalog

__all__ = [
    "Catalog",
    "ElementColumns",
    "ElementHistory",
    "ElementSet",
    "RowProblem",
    "all_of_each",
    "nearest_of_each",
    "newest_of_each",
    "parse_catalog",
    "read_catalog",
    "synthetic_catalog",
    "without_usable_rows",
]
