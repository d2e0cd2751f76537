"""What runs in a propagation worker process: it stores catalogues and propagates them with SGP4, arrays in and arrays out.

It knows nothing of how workers are started, killed or replaced.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from sda_ops.astro.propagation import Engine, Propagator, one_thread
from sda_ops.catalog.columns import ElementColumns

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]

CATALOG_KEYS = ("catalog-a", "catalog-b")
"""The keys under which catalogues are shared: a worker stores two versions."""

ENGINES: tuple[Engine, ...] = get_args(Engine)
"""An engine is sent as its index in this tuple."""

MAX_AGE_S = "propagation.max_age_s"
ENGINE = "propagation.engine"
VERSION = "propagation.version"
_SETTINGS = frozenset((MAX_AGE_S, ENGINE, VERSION))


class PropagationWorker:
    """The handler of a worker process. One thread, one call at a time."""

    def __init__(self) -> None:
        self._catalogs: dict[str, tuple[int, Propagator]] = {}

    def share(self, key: str, arrays: Arrays) -> None:
        """Replace the catalogue of this key: 0.1 s for 15,000 objects, heyoka's compilation included."""
        if key not in CATALOG_KEYS:
            raise ValueError(f"expected a share of one of {CATALOG_KEYS}, got {key!r}")
        one_thread()
        columns = ElementColumns.from_arrays({name: array for name, array in arrays.items() if name not in _SETTINGS})
        max_age_s = float(arrays[MAX_AGE_S][0])
        propagator = Propagator(
            columns.satrecs(),
            engine=ENGINES[int(arrays[ENGINE][0])],
            max_age=None if np.isinf(max_age_s) else timedelta(seconds=max_age_s),
        )
        self._catalogs[key] = int(arrays[VERSION][0]), propagator

    def handle(self, method: str, arrays: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Answer ``"propagate"`` with the states and the version of the catalogue that was used.

        If the requested version is not stored here, the answer has no states and the newest stored version (0 for none).
        """
        if method != "propagate":
            raise ValueError(f"expected a call of 'propagate', got {method!r}")
        catalogs = dict(self._catalogs.values())
        propagator = catalogs.get(int(arrays[VERSION][0]))
        if propagator is None:
            return {VERSION: np.array([max(catalogs, default=0)])}
        states = propagator.propagate(arrays["timestamp_ns"], objects=arrays.get("objects"))
        return {**states._asdict(), VERSION: arrays[VERSION]}
