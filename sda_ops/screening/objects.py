"""The objects of one screening: one element set of each object, with names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from sgp4.api import Satrec

from sda_ops.catalog.columns import ElementColumns
from sda_ops.catalog.elements import ElementSet

Rows = npt.NDArray[np.intp]
"""Row numbers of the screened objects."""


@dataclass(frozen=True, eq=False)
class ScreenedObjects:
    """One element set of each object. A row number identifies an object within one screening.

    Attributes:
        columns: The elements, one row for each object; no catalogue number occurs twice.
        names: ``(objects,)``; empty where the catalogue has no name.
        designators: ``(objects,)``; international designators as in a TLE (``98067A``); empty if unknown.
    """

    columns: ElementColumns
    names: tuple[str, ...]
    designators: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.columns) == len(self.names) == len(self.designators):
            raise ValueError(
                f"expected a name and a designator for each of {len(self.columns)} objects, "
                f"got {len(self.names)} and {len(self.designators)}"
            )
        numbers, counts = np.unique(self.columns.catalog_number, return_counts=True)
        if (counts > 1).any():
            raise ValueError(
                f"expected one element set of each object, got {counts.max()} of {numbers[counts.argmax()]}"
            )

    @classmethod
    def of(cls, element_sets: Sequence[ElementSet]) -> ScreenedObjects:
        """From element sets, one of each object (`sda_ops.catalog.reader.nearest_of_each`). Raises ``ValueError``."""
        return cls(
            ElementColumns.of(element_sets),
            tuple(element_set.name for element_set in element_sets),
            tuple(element_set.satrec.intldesg.strip() for element_set in element_sets),
        )

    @cached_property
    def satrecs(self) -> list[Satrec]:
        """sgp4's records, in the order of the rows. They propagate as the originals, to the bit."""
        return self.columns.satrecs()

    def __len__(self) -> int:
        return len(self.columns)
