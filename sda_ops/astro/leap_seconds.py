"""Leap seconds: TAI - UTC for each day, and the days that end with a 60th second.

The table is that of ERFA (``erfa.leap_seconds``, from IERS Bulletin C); a new version of ``pyerfa`` brings a new leap second.
The last one was at the end of 2016. Until it is in the table, a new one is rejected as any other 60th second.

Our timestamps are nanoseconds since the Unix epoch, with 86,400 s in each day: they have no value for a time within a leap
second. Such a time is an error here: the value of the second after it belongs to that second.
"""

from __future__ import annotations

from bisect import bisect_right
from datetime import date

import erfa

from sda_ops.astro.time import NS_PER_DAY, NS_PER_S

UNIX_EPOCH_ORDINAL = date(1970, 1, 1).toordinal()

_STEPS = [
    (date(int(row["year"]), int(row["month"]), 1).toordinal() - UNIX_EPOCH_ORDINAL, round(float(row["tai_utc"])))
    for row in erfa.leap_seconds.get()
    if row["year"] >= 1972  # noqa: PLR2004 - the year in which whole leap seconds began
]
"""The days, since the Unix epoch, from which TAI - UTC has a new value, and that value in seconds."""

_TAI_STARTS = [day * NS_PER_DAY + offset_s * NS_PER_S for day, offset_s in _STEPS]
_ENDING_WITH_ONE = frozenset(day - 1 for day, _ in _STEPS[1:])


class LeapSecond(ValueError):
    """The time is within a leap second."""

    def __init__(self) -> None:
        super().__init__("the time is within a leap second, which a timestamp without leap seconds cannot express")


def utc_ns(unix_day: int, *, hour: int, minute: int, second: int, ns: int) -> int:
    """A UTC time of day as nanoseconds since the Unix epoch; ``unix_day`` is the day since that epoch.

    Raises ``LeapSecond`` for the 60th second of a day that has one, and ``ValueError`` for any other invalid time of day.
    """
    if second == 60 and (hour, minute) == (23, 59) and unix_day in _ENDING_WITH_ONE:  # noqa: PLR2004 - a clock's
        raise LeapSecond
    if hour > 23 or minute > 59 or second > 59:  # noqa: PLR2004 - a clock's
        no_leap_second = ", and there is no leap second at that time" if second == 60 else ""  # noqa: PLR2004
        raise ValueError(f"expected a time of day, got {hour:02}:{minute:02}:{second:02}{no_leap_second}")
    return (unix_day * 86_400 + hour * 3_600 + minute * 60 + second) * NS_PER_S + ns


def utc_ns_of_tai(tai_ns: int) -> int:
    """UTC nanoseconds since the Unix epoch of a time in TAI, in nanoseconds of TAI since 1970-01-01T00:00:00 TAI.

    Raises ``LeapSecond``, and ``ValueError`` before 1972, when TAI - UTC was not a whole number of seconds.
    """
    step = bisect_right(_TAI_STARTS, tai_ns) - 1
    if step < 0:
        raise ValueError("expected TIME_SYSTEM UTC before 1972: there were no leap seconds")
    if step + 1 < len(_STEPS) and tai_ns >= _TAI_STARTS[step + 1] - NS_PER_S:
        raise LeapSecond
    return tai_ns - _STEPS[step][1] * NS_PER_S
