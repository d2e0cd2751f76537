"""One object's mean elements, ready for SGP4. Knows nothing of files and formats except TLE lines and OMM fields."""

from __future__ import annotations

import calendar
import math
import re
from dataclasses import dataclass
from math import pi

from sgp4 import alpha5
from sgp4.api import WGS72, Satrec
from sgp4.io import compute_checksum

from sda_ops.catalog.omm_fields import MeanElements, OmmFields, check_ephemeris_type

TLE_LINE_LENGTH = 69
MAX_SGP4_SATNUM = 339_999
"""sgp4 stores the number in five Alpha-5 characters, 'Z9999' at most. `ElementSet` stores it separately."""

SGP4_EPOCH_JD = 2433281.5
"""1949 December 31 00:00 UTC, from which ``sgp4init`` counts days."""


@dataclass(frozen=True, slots=True)
class ElementSet:
    """Mean elements of one object at one epoch.

    Attributes:
        catalog_number: In the catalogue that it comes from: up to nine digits in OMM, six (Alpha-5) in a TLE.
        name: The object's name in that catalogue; empty if it has no name.
        satrec: sgp4's record, WGS-72, ready to propagate. Its own ``satnum`` is 0 above 339,999.
        sgp4_epoch_days: Days since 1949-12-31T00:00 UTC that ``sgp4init`` was given, of which ``satrec`` itself has only a
            rounded value. Deep-space orbits depend on its last bit. None if unknown.
    """

    catalog_number: int
    name: str
    satrec: Satrec
    sgp4_epoch_days: float | None = None

    @classmethod
    def from_tle(cls, line1: str, line2: str, *, name: str = "") -> ElementSet:
        """From the two lines of a TLE. Raises ``ValueError`` that says what is wrong with them.

        Both lines may lack their checksum, the last character (or have a blank for it).
        """
        lines = [line.rstrip() for line in (line1, line2)]
        if all(map(has_no_checksum, lines)):
            lines = [f"{line}{compute_checksum(line)}" for line in lines]
        for number, line, shape in zip((1, 2), lines, (_TLE_LINE1, _TLE_LINE2), strict=True):
            if not line.startswith(f"{number} ") or len(line) != TLE_LINE_LENGTH or not line.isascii():
                raise ValueError(f"line {number} must be {TLE_LINE_LENGTH} characters beginning '{number} ': {line!r}")
            if not line[-1].isdigit() or int(line[-1]) != compute_checksum(line):
                raise ValueError(f"line {number} must end in checksum {compute_checksum(line)}, got {line[-1]!r}")
            # The checksum ignores letters and blanks, and sgp4 reads a field as far as it can, without an error.
            if shape.fullmatch(line) is None:
                raise ValueError(f"line {number} has a field that is not in its columns: {line!r}")
        line1, line2 = lines
        if line1[2:7] != line2[2:7]:
            raise ValueError(f"both lines must carry one catalogue number, got {line1[2:7]!r} and {line2[2:7]!r}")
        check_ephemeris_type(int(line1[62].strip() or 0), name="ephemeris type")
        _check_day(int(line1[18:20]), int(line1[20:23]))
        catalog_number = alpha5.from_alpha5(line1[2:7].replace(" ", "0"))
        if catalog_number == 0:
            raise ValueError(f"the catalogue number must not be 0, got {line1[2:7]!r}")
        satrec = _usable(Satrec.twoline2rv(line1, line2))
        return cls(catalog_number, name.strip(), satrec, tle_epoch_days(satrec))

    @classmethod
    def from_omm(cls, fields: OmmFields) -> ElementSet:
        """From the fields of one Orbit Mean-Elements Message. The orbit equals that of ``sgp4.omm.initialize``, to the bit.

        Raises ``ValueError`` that says what is wrong with them.
        """
        mean = MeanElements.from_fields(fields)
        satrec = Satrec()
        satrec.sgp4init(
            WGS72,
            "i",
            mean.catalog_number if mean.catalog_number <= MAX_SGP4_SATNUM else 0,
            mean.epoch_days,
            mean.bstar,
            mean.mean_motion_dot / _NDOT_UNITS,
            mean.mean_motion_ddot / _NDDOT_UNITS,
            mean.eccentricity,
            mean.perigee_deg * _RADIANS,
            mean.inclination_deg * _RADIANS,
            mean.anomaly_deg * _RADIANS,
            mean.mean_motion / 720.0 * pi,
            mean.node_deg * _RADIANS,
        )
        satrec.intldesg = mean.designator
        satrec.elnum = mean.element_set_number
        satrec.revnum = mean.revolution_number
        return cls(mean.catalog_number, mean.name, _usable(satrec), mean.epoch_days)


# The conversions of sgp4.omm, in its order: another order of the same factors differs in the last bit.
_RADIANS = pi / 180.0
_NDOT_UNITS = 1036800.0 / pi
_NDDOT_UNITS = 2985984000.0 / 2.0 / pi

# Columns of a TLE (CelesTrak, "NORAD Two-Line Element Set Format"), with the blanks that publishers use.
_TLE_LINE1 = re.compile(
    r"1 [ 0-9A-HJ-NP-Z][ 0-9]{3}[0-9][ A-Z] .{8} [ 0-9][0-9][ 0-9]{2}[0-9]\.[0-9]{8} "
    r"[-+ 0]\.[0-9]{8} [-+ ][ 0-9]{5}[-+ ][0-9] [-+ ][ 0-9]{5}[-+ ][0-9] [ 0-9] [ 0-9]{4}[0-9]"
)
_TLE_LINE2 = re.compile(
    r"2 [ 0-9A-HJ-NP-Z][ 0-9]{3}[0-9] [ 0-9]{2}[0-9]\.[0-9]{4} [ 0-9]{2}[0-9]\.[0-9]{4} [ 0-9]{6}[0-9] "
    r"[ 0-9]{2}[0-9]\.[0-9]{4} [ 0-9]{2}[0-9]\.[0-9]{4} [ 0-9][0-9]\.[0-9]{8}[ 0-9]{5}[0-9]"
)


# A line of valid elements, of which `begins_like_line` takes what a shorter line lacks.
_EXAMPLES = {
    1: "1 00005U 58002B   00179.78495062  .00000023  00000-0  28098-4 0  4753",
    2: "2 00005  34.2682 348.7242 1859667 331.7664  19.3264 10.82419157413667",
}
_COLUMNS = {1: _TLE_LINE1, 2: _TLE_LINE2}
_TO_CATALOG_NUMBER = 7
_FIRST_YEAR = 57  # of a two-digit year: 1957, when the first satellite was launched


def begins_like_line(number: int, line: str) -> bool:
    """Whether ``line`` has the columns of line 1 or 2 as far as it goes, which must be beyond its catalogue number."""
    return (
        len(line) > _TO_CATALOG_NUMBER and _COLUMNS[number].fullmatch(line + _EXAMPLES[number][len(line) :]) is not None
    )


def has_no_checksum(line: str) -> bool:
    """Whether a line of a TLE ends one column too early, or has a blank for its checksum."""
    return len(line.rstrip()) == TLE_LINE_LENGTH - 1


def _check_day(year: int, day: int) -> None:
    """Raise ``ValueError`` for a day that the year does not have: sgp4 would count it into another year."""
    year += 1900 if year >= _FIRST_YEAR else 2000
    if not 1 <= day <= 365 + calendar.isleap(year):
        raise ValueError(f"the epoch of line 1 is wrong: there is no day {day:03} in {year}")


def tle_epoch_days(satrec: Satrec) -> float:
    """The epoch that ``twoline2rv`` gave to ``sgp4init``, days since 1949-12-31T00:00 UTC.

    sgp4 computes hours, minutes and seconds, and rounds the fraction of the day only afterwards (SGP4.cpp,
    ``days2mdhms_SGP4`` and ``jday_SGP4``; wrapper.cpp). These are the same steps, in the same order.
    """
    day = satrec.epochdays
    hours = (day - math.floor(day)) * 24.0
    minutes = (hours - math.floor(hours)) * 60.0
    seconds = (minutes - math.floor(minutes)) * 60.0
    fraction = (seconds + math.floor(minutes) * 60.0 + math.floor(hours) * 3600.0) / 86400.0
    days: float = (satrec.jdsatepoch + fraction) - SGP4_EPOCH_JD
    return days


def _usable(satrec: Satrec) -> Satrec:
    """The record, if SGP4 can start from it. sgp4 itself accepts NaN and negative mean motion without an error."""
    if not (satrec.no_kozai > 0.0 and 0.0 <= satrec.ecco < 1.0):
        raise ValueError(
            f"mean motion must be > 0 and eccentricity in [0, 1), got {satrec.no_kozai} rad/min and {satrec.ecco}"
        )
    rest = (satrec.inclo, satrec.nodeo, satrec.argpo, satrec.mo, satrec.bstar, satrec.ndot, satrec.nddot)
    if not all(map(math.isfinite, (satrec.no_kozai, *rest))):
        raise ValueError(f"elements must be finite, got {rest}")
    if not 0.0 <= satrec.inclo <= pi:
        raise ValueError(f"inclination must be in [0, 180] deg, got {math.degrees(satrec.inclo):g}")
    error, r_km, v_km_s = satrec.sgp4(satrec.jdsatepoch, satrec.jdsatepochF)
    if error != 0:
        raise ValueError(f"SGP4 cannot start from these elements: its error {error} (AIAA 2006-6753)")
    if not all(map(math.isfinite, (*r_km, *v_km_s))):  # an inclination of 1e-311 deg: a 0/0 that sgp4 does not detect
        raise ValueError(f"SGP4 computes no finite state from these elements: {rest}")
    return satrec
