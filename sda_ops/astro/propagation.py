"""Many element sets at many times, by SGP4 (sgp4's C++ ``SatrecArray``). Holds the GIL while it computes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sgp4.api import SatrecArray

from sda_ops.astro.time import Floats, Nanoseconds, julian_date

M_PER_KM = 1000.0


class States(NamedTuple):
    """State vectors in TEME of date.

    Attributes:
        r_teme_m: Positions ``(objects, times, 3)``; NaN where ``error`` is not 0.
        v_teme_m_s: Velocities, likewise.
        error: SGP4's error codes ``(objects, times)``; 0 is none, 6 is decayed (AIAA 2006-6753).
    """

    r_teme_m: Floats
    v_teme_m_s: Floats
    error: npt.NDArray[np.uint8]


def propagate(satrecs: SatrecArray, timestamp_ns: Nanoseconds) -> States:
    """The state of every object at every UTC time ``(times,)``; sgp4's own figures, in metres."""
    jd, fraction = julian_date(np.atleast_1d(timestamp_ns))
    error, r_km, v_km_s = satrecs.sgp4(jd, fraction)
    failed = error != 0
    r_km[failed] = np.nan
    v_km_s[failed] = np.nan
    return States(r_km * M_PER_KM, v_km_s * M_PER_KM, error)
