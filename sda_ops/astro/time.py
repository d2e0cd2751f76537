"""UTC nanoseconds since the Unix epoch <-> two-part Julian dates.

Integers are exact; the pair has the day and its fraction apart, so that the fraction keeps its digits. Like Unix time and
like SGP4, this ignores leap seconds: every UTC day has 86,400 s, which is wrong only within a leap second (the last one was
at the end of 2016).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]
Nanoseconds: TypeAlias = npt.NDArray[np.int64]

UNIX_EPOCH_JD = 2440587.5
"""1970-01-01T00:00:00 UTC as a Julian date, days."""

SECONDS_PER_DAY = 86_400.0
NS_PER_S = 1_000_000_000
NS_PER_DAY = 86_400 * NS_PER_S

TT_MINUS_UTC_DAYS = (32.184 + 37.0) / SECONDS_PER_DAY
"""TT - UTC since 2017 (37 leap seconds; IERS Bulletin C). Used for precession and nutation only, where an error of one
leap second makes 2e-6 arcseconds."""


def julian_date(timestamp_ns: Nanoseconds) -> tuple[Floats, Floats]:
    """UTC nanoseconds (any shape) as ``(jd, fraction)``: ``jd`` ends in .5 (midnight), ``0 <= fraction < 1``, days.

    Error: half a unit in the last place of the fraction, 5 picoseconds.
    """
    days, ns_of_day = np.divmod(np.asarray(timestamp_ns, dtype=np.int64), NS_PER_DAY)
    return days + UNIX_EPOCH_JD, ns_of_day / NS_PER_DAY


def utc_ns(jd: Floats, fraction: Floats) -> Nanoseconds:
    """The inverse of `julian_date`; exact for the pairs that it makes.

    Any split of the date is accepted; a fraction of a day in ``jd`` is accurate to 40 microseconds only.
    """
    days = np.floor(np.asarray(jd) - UNIX_EPOCH_JD)
    rest_days = (np.asarray(jd) - UNIX_EPOCH_JD - days) + np.asarray(fraction)
    result: Nanoseconds = days.astype(np.int64) * NS_PER_DAY + np.rint(rest_days * NS_PER_DAY).astype(np.int64)
    return result
