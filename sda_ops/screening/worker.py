"""What runs in a screening worker process: it stores one catalogue and screens windows of it, arrays in and arrays out.

It knows nothing of how workers are started, killed or replaced, nor of how a horizon is cut into windows
(``sda_ops.screening.windows``, whose functions are what users call).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt

from sda_ops.astro.propagation import one_thread
from sda_ops.catalog.columns import ElementColumns
from sda_ops.screening.encoding import Arrays, digest_of
from sda_ops.screening.objects import ScreenedObjects

CATALOG = "catalog"
"""The key under which the catalogue is shared."""

NICENESS = "screening.niceness"
HELD_BYTES = "screening.held_bytes"
VERSION = "screening.version"
_SETTINGS = frozenset((NICENESS, HELD_BYTES, VERSION))


class ScreeningWorker:
    """The handler of a worker process. One thread, one call at a time.

    ``share("catalog", …)`` stores the columns of a catalogue (`ElementColumns.arrays`), one element set of each object, under
    its version (`catalog_version`, which is made of its content). A row number means the same object in all calls until
    the next catalogue.

    ``"screen_window"`` screens all objects against each other in a window; ``"screen_against"`` screens the objects of
    ``rows`` against all. Both answer with a `Screening` (``encoding.arrays_of``). The positions of each window of a call of
    ``"screen_against"`` stay in the worker, up to ``held_bytes``, and the window that was used least recently goes first. If
    a new catalogue has the same objects in the same rows, only the positions of the changed rows are computed again. Otherwise
    all held positions are dropped.

    A call that names another version than the stored one is answered with the stored version alone (0 for none). An answer
    larger than ``answer_bytes`` of the call is replaced by its size alone.
    """

    def __init__(self) -> None:
        self._version = 0
        self._objects: ScreenedObjects | None = None

    def share(self, key: str, arrays: Arrays) -> None:
        """Replace the catalogue. Sharing the stored version again does nothing."""
        if key != CATALOG:
            raise ValueError(f"expected a share of {CATALOG!r}, got {key!r}")
        one_thread()
        _lower_priority_to(int(arrays[NICENESS][0]))
        version = int(arrays[VERSION][0])
        if version == self._version:
            return
        columns = ElementColumns.from_arrays({name: array for name, array in arrays.items() if name not in _SETTINGS})
        unnamed = ("",) * len(columns)
        self._objects = ScreenedObjects(columns, unnamed, unnamed)
        self._version = version

    def handle(self, method: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Answer ``"screen_window"`` or ``"screen_against"``."""
        del arrays
        raise ValueError(f"expected a call of 'screen_window' or 'screen_against', got {method!r}")


def catalog_version(columns: ElementColumns) -> int:
    """A number, above 0, that identifies the content of a catalogue: the order of its rows, and every element."""
    return int(digest_of(columns.arrays())[:15], 16) + 1


def shared_catalog(columns: ElementColumns, *, niceness: int, held_bytes: int) -> dict[str, npt.NDArray[Any]]:
    """What ``share("catalog", …)`` expects. ``niceness`` is the least niceness of the worker process, 0 to 19."""
    return {
        **columns.arrays(),
        VERSION: np.array([catalog_version(columns)]),
        NICENESS: np.array([niceness]),
        HELD_BYTES: np.array([held_bytes]),
    }


def _lower_priority_to(niceness: int) -> None:
    """Raise this process's niceness to ``niceness``; it is never lowered, which needs privileges."""
    os.nice(max(0, niceness - os.nice(0)))
