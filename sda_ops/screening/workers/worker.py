"""What runs in a screening worker process: it stores one catalogue and screens windows of it, arrays in and arrays out.

It knows nothing of how workers are started, killed or replaced, nor of how a horizon is cut into windows
(``sda_ops.screening.workers.windows``, whose functions are what users call).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from sda_ops.astro.propagation import Engine, one_thread
from sda_ops.catalog.columns import ElementColumns
from sda_ops.screening.geometry.against import screen_against
from sda_ops.screening.geometry.ephemeris import PreparedObjects
from sda_ops.screening.geometry.screen import ScreeningOptions, screen_window
from sda_ops.screening.objects import Rows, ScreenedObjects
from sda_ops.screening.workers.encoding import Arrays, arrays_of, bytes_of, digest_of, record_of
from sda_ops.screening.workers.held import HeldPositions

METHODS = ("screen_window", "screen_against")

CATALOG = "catalog"
"""The key under which the catalogue is shared."""

NICENESS = "screening.niceness"
HELD_BYTES = "screening.held_bytes"
VERSION = "screening.version"
ANSWER_SIZE = "screening.answer_size"
REQUEST = "screening.request"
ROWS = "screening.rows"
WINDOW = "screening.window"
_SETTINGS = frozenset((NICENESS, HELD_BYTES, VERSION))


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What is the same for all windows of a screening.

    Attributes:
        miss_distance_m: As for ``screen_window``.
        options: As for ``screen_window``.
        answer_bytes: The largest answer.
    """

    miss_distance_m: float
    options: ScreeningOptions
    answer_bytes: int


class ScreeningWorker:
    """The handler of a worker process. One thread, one call at a time.

    ``share("catalog", …)`` stores the columns of a catalogue (`ElementColumns.arrays`), one element set of each object, under
    its version (`catalog_version`, which is made of its content). A row number means the same object in all calls until
    the next catalogue.

    ``"screen_window"`` screens all objects against each other in a window; ``"screen_against"`` screens the objects of
    ``rows`` against all. Both answer with a `Screening` (``encoding.arrays_of``). The positions of each window of a call of
    ``"screen_against"`` stay in the worker, up to ``held_bytes``, and the window that was used least recently goes first. Of
    a new catalogue, only new objects and changed element sets are propagated in them.

    A call that names another version than the stored one is answered with the stored version alone (0 for none). An answer
    larger than ``answer_bytes`` of the call is replaced by its size alone.
    """

    def __init__(self) -> None:
        self._version = 0
        self._objects: ScreenedObjects | None = None
        self._prepared: tuple[Engine, PreparedObjects] | None = None
        self._held = HeldPositions()

    def share(self, key: str, arrays: Arrays) -> None:
        """Replace the catalogue. Sharing the stored version again does nothing."""
        if key != CATALOG:
            raise ValueError(f"expected a share of {CATALOG!r}, got {key!r}")
        one_thread()
        _lower_priority_to(int(arrays[NICENESS][0]))
        self._held.max_bytes = int(arrays[HELD_BYTES][0])
        version = int(arrays[VERSION][0])
        if version == self._version:
            return
        columns = ElementColumns.from_arrays({name: array for name, array in arrays.items() if name not in _SETTINGS})
        unnamed = ("",) * len(columns)
        self._objects = ScreenedObjects(columns, unnamed, unnamed)
        self._version, self._prepared = version, None

    def handle(self, method: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Answer ``"screen_window"`` or ``"screen_against"``."""
        if method not in METHODS:
            raise ValueError(f"expected a call of one of {METHODS}, got {method!r}")
        if self._objects is None or int(arrays[VERSION][0]) != self._version:
            return {VERSION: np.array([self._version])}
        request = record_of(arrays[REQUEST], Request)
        start_ns, end_ns = arrays[WINDOW].tolist()
        prepared = self._prepare(self._objects, request.options.engine)
        if method == "screen_window":
            screening = screen_window(prepared, start_ns, end_ns, request.miss_distance_m, request.options)
        else:
            ephemeris = self._held.of_window(prepared, start_ns, end_ns, request.options)
            screening = screen_against(
                ephemeris, arrays[ROWS], request.miss_distance_m, start_ns=start_ns, end_ns=end_ns
            )
        answer = arrays_of(screening)
        size = sum(array.nbytes for array in answer.values())
        return answer if size <= request.answer_bytes else {ANSWER_SIZE: np.array([size])}

    def _prepare(self, objects: ScreenedObjects, engine: Engine) -> PreparedObjects:
        """The objects of the stored catalogue for this engine."""
        if self._prepared is None or self._prepared[0] != engine:
            self._prepared = engine, PreparedObjects(objects, engine=engine)
        return self._prepared[1]


def encoded_request(
    request: Request, start_ns: int, end_ns: int, *, version: int, rows: Rows | None
) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a call: of ``"screen_against"`` with ``rows``, of ``"screen_window"`` without."""
    arrays = {REQUEST: bytes_of(request), WINDOW: np.array([start_ns, end_ns]), VERSION: np.array([version])}
    return arrays if rows is None else {**arrays, ROWS: rows}


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
