"""Catalogues of objects: element sets read from TLE, 3LE and OMM (JSON, CSV), or generated."""

from sda_ops.catalog.elements import ElementSet
from sda_ops.catalog.reader import Catalog, RowProblem, parse_catalog, read_catalog
from sda_ops.catalog.synthetic import synthetic_catalog

__all__ = ["Catalog", "ElementSet", "RowProblem", "parse_catalog", "read_catalog", "synthetic_catalog"]
